/* Item after item, a front of states: sums of bytes in rising order, each with the least error that so many bytes can buy,
 * which falls. A state that costs more and errs as much as another is on no best way and is dropped at once.
 */
#include "quant/allocate.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "server/base/mem.h"

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

static size_t cheapest(const struct allocate_item *item)
{
    size_t least = item->bytes[0];
    for (int i = 1; i < item->n; i++)
        least = item->bytes[i] < least ? item->bytes[i] : least;
    return least;
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
