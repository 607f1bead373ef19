#include "quant/allocate.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "server/base/mem.h"

static int cheapest_of(const struct allocate_item *item)
{
    int best = 0;
    for (int i = 1; i < item->n; i++)
        best = item->bytes[i] < item->bytes[best] ? i : best;
    return best;
}

static size_t cheapest(const struct allocate_item *item)
{
    return item->bytes[cheapest_of(item)];
}

/* least: what the smallest forms need. */
static int check(const struct allocate_item *item, int n, size_t budget, size_t *least,
                 struct err *e)
{
    *least = 0;
    for (int i = 0; i < n; i++) {
        if (item[i].n < 1 || item[i].n > ALLOCATE_CHOICES)
            return err_set(e, ERR_INVALID, "matrix %d has %d forms to choose from, not 1 to %d", i,
                           item[i].n, ALLOCATE_CHOICES);
        for (int c = 0; c < item[i].n; c++)
            if (!isfinite(item[i].error[c]))
                return err_set(e, ERR_INVALID, "form %d of matrix %d has no finite error", c, i);
        *least += cheapest(&item[i]);
    }
    if (*least > budget)
        return err_set(e, ERR_LIMIT, "%zu bytes are too few, the smallest forms need %zu", budget,
                       *least);
    return 0;
}

/* ---- the least sum of errors -------------------------------------------------------------------------------------
 *
 * Item after item, a front of states: sums of bytes in rising order, each with the least error that so many bytes can buy,
 * which falls. A state that costs more and errs as much as another is on no best way and is dropped at once. */

enum { FRONT_MAX = 1 << 14 };

struct state {
    size_t bytes;
    double error;
    uint32_t
        step; /* how it came about: (its index in the front of one item less) * ALLOCATE_CHOICES + choice */
};

struct front {
    struct state *at;
    size_t n;
};

static bool before(const struct state *a, const struct state *b)
{
    return a->bytes < b->bytes || (a->bytes == b->bytes && a->error < b->error);
}

/* The next of all sums in the order of before(); false when none is left. head[c]: states that choice c has used. */
static bool next_sum(const struct front *from, const struct allocate_item *item, uint32_t *head,
                     struct state *out)
{
    bool found = false;
    for (int c = 0; c < item->n; c++) {
        if (head[c] >= from->n)
            continue;
        const struct state *s = &from->at[head[c]];
        struct state sum = { s->bytes + item->bytes[c], s->error + item->error[c],
                             head[c] * ALLOCATE_CHOICES + (uint32_t)c };
        if (!found || before(&sum, out))
            *out = sum;
        found = true;
    }
    if (found)
        head[out->step % ALLOCATE_CHOICES]++;
    return found;
}

/* The front with one item more: states of at most `room` bytes. */
static void extend(const struct front *from, const struct allocate_item *item, size_t room,
                   struct front *to)
{
    uint32_t head[ALLOCATE_CHOICES] = { 0 };
    struct state s;
    while (next_sum(from, item, head, &s) && s.bytes <= room)
        if (to->n == 0 || s.error < to->at[to->n - 1].error)
            to->at[to->n++] = s;
}

/* Of states that lie close together only the best stays; the first, without which nothing might fit, does too. */
static void thin(struct front *f, size_t room)
{
    size_t cell = room / FRONT_MAX + 1, kept = 0;
    if (f->n <= FRONT_MAX)
        return;
    for (size_t i = 0; i < f->n; i++)
        if (i == 0 || i + 1 == f->n || f->at[i].bytes / cell != f->at[i + 1].bytes / cell)
            f->at[kept++] = f->at[i];
    f->n = kept;
}

/* f with one item more; step: how its states came about, for the caller to free. */
static int add_item(struct front *f, const struct allocate_item *item, size_t room, uint32_t **step)
{
    struct front next = { mem_alloc(f->n * (size_t)item->n * sizeof *next.at), 0 };
    if (next.at == NULL)
        return ERR_NOMEM;
    extend(f, item, room, &next);
    thin(&next, room);
    mem_free(f->at);
    *f = next;
    *step = mem_alloc(f->n * sizeof **step);
    if (*step == NULL)
        return ERR_NOMEM;
    for (size_t i = 0; i < f->n; i++)
        (*step)[i] = f->at[i].step;
    return 0;
}

static int search(const struct allocate_item *item, int n, size_t room, struct front *f,
                  uint32_t **step)
{
    *f = (struct front){ mem_zalloc(1, sizeof *f->at), 1 };
    if (f->at == NULL)
        return ERR_NOMEM;
    for (int i = 0; i < n; i++) {
        room += cheapest(&item[i]);
        TRY(add_item(f, &item[i], room, &step[i]));
    }
    return 0;
}

int allocate_dp(const struct allocate_item *item, int n, size_t budget, int *choice, struct err *e)
{
    struct front f = { 0 };
    size_t least;
    TRY(check(item, n, budget, &least, e));
    uint32_t **step = mem_zalloc((size_t)n + 1, sizeof *step);
    int rc = step == NULL ? ERR_NOMEM : search(item, n, budget - least, &f, step);
    uint32_t at = (uint32_t)f.n - 1; /* the least error, and back from there */
    for (int i = n - 1; i >= 0 && rc == 0; i--) {
        choice[i] = (int)(step[i][at] % ALLOCATE_CHOICES);
        at = step[i][at] / ALLOCATE_CHOICES;
    }
    for (int i = 0; i < n && step != NULL; i++)
        mem_free(step[i]);
    mem_free(step);
    mem_free(f.at);
    return rc == 0 ? 0 : err_set(e, rc, "no memory to choose the forms of %d matrices", n);
}

/* ---- a water level ----------------------------------------------------------------------------------------------- */

int allocate_next(const struct allocate_item *item, int c, bool up)
{
    int best = -1;
    for (int i = 0; i < item->n; i++) {
        bool beyond = up ? item->bytes[i] > item->bytes[c] : item->bytes[i] < item->bytes[c];
        bool nearer = best < 0 || (up ? item->bytes[i] < item->bytes[best]
                                      : item->bytes[i] > item->bytes[best]);
        best = beyond && nearer ? i : best;
    }
    return best;
}

/* Rising, the level rounds one item after the other up to its next form: when item i is half way between the two. The item
 * whose turn is next; -1: all have their largest form. */
static int next_up(const struct allocate_item *item, const double *weights, const double *want,
                   int n, const int *choice)
{
    int best = -1;
    double lowest = 0;
    for (int i = 0; i < n; i++) {
        int next = allocate_next(&item[i], choice[i], true);
        if (next < 0)
            continue;
        double half_way = 4 * ((double)item[i].bytes[choice[i]] + (double)item[i].bytes[next]);
        double level = half_way / weights[i] - want[i];
        if (best < 0 || level < lowest) {
            best = i;
            lowest = level;
        }
    }
    return best;
}

int allocate_level(const struct allocate_item *item, const double *weights, const double *want,
                   int n, size_t budget, int *choice, struct err *e)
{
    size_t sum;
    int i;
    TRY(check(item, n, budget, &sum, e));
    for (i = 0; i < n; i++) {
        choice[i] = cheapest_of(&item[i]);
        if (!isfinite(want[i]))
            return err_set(e, ERR_INVALID, "matrix %d wants no finite number of bits", i);
    }
    while ((i = next_up(item, weights, want, n, choice)) >= 0) {
        int next = allocate_next(&item[i], choice[i], true);
        sum += item[i].bytes[next] - item[i].bytes[choice[i]];
        if (sum > budget)
            break;
        choice[i] = next;
    }
    return 0;
}
