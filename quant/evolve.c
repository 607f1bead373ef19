#include "quant/evolve.h"

#include <string.h>

#include "server/base/mem.h"
#include "server/base/mix.h"

static const int survivors[EVOLVE_ROUNDS - 1] = { 4, 1 };

/* An offspring on its way. */
struct child {
    const struct evolve *v;
    int *choice;
    signed char *moved; /* [n] 1: raised by the mutation under way, -1: lowered */
    size_t bytes;
    uint64_t key, drawn; /* of the random numbers */
};

/* Less than n. */
static int draw(struct child *c, int n)
{
    return (int)(mix64(c->key + ++c->drawn * 0x9e3779b97f4a7c15u) % (uint64_t)n);
}

static size_t bytes_of(const struct evolve *v, const int *choice)
{
    size_t sum = 0;
    for (int i = 0; i < v->n; i++)
        sum += v->item[i].bytes[choice[i]];
    return sum;
}

/* Whether item i had a form to go to. */
static bool move(struct child *c, int i, bool up)
{
    const struct allocate_item *item = &c->v->item[i];
    int next = allocate_next(item, c->choice[i], up);
    if (next < 0)
        return false;
    c->bytes = c->bytes - item->bytes[c->choice[i]] + item->bytes[next];
    c->choice[i] = next;
    c->moved[i] = up ? 1 : -1;
    return true;
}

/* Any item that can go there and has not gone the other way; false: none. */
static bool move_one(struct child *c, bool up)
{
    int n = c->v->n, first = draw(c, n);
    for (int k = 0; k < n; k++) {
        int i = (first + k) % n;
        if (c->moved[i] != (up ? -1 : 1) && move(c, i, up))
            return true;
    }
    return false;
}

/* Raises what still fits, from anywhere on. */
static void spend_rest(struct child *c)
{
    int n = c->v->n, first = draw(c, n);
    for (int k = 0; k < n; k++) {
        int i = (first + k) % n;
        int next = allocate_next(&c->v->item[i], c->choice[i], true);
        if (next < 0 || c->moved[i] < 0)
            continue;
        size_t bytes = c->bytes - c->v->item[i].bytes[c->choice[i]] + c->v->item[i].bytes[next];
        if (bytes <= c->v->budget)
            (void)move(c, i, true);
    }
}

static void mutate(struct child *c, const int *parent)
{
    int n = c->v->n;
    int a = draw(c, 3), b = draw(c, 3);
    memcpy(c->choice, parent, (size_t)n * sizeof *parent);
    c->bytes = bytes_of(c->v, parent);
    for (int k = 0; k <= (a < b ? a : b); k++) {
        memset(c->moved, 0, (size_t)n);
        if (!move_one(c, true))
            return; /* everything has its largest form */
        while (c->bytes > c->v->budget)
            if (!move_one(c, false)) { /* it cannot be paid for */
                memcpy(c->choice, parent, (size_t)n * sizeof *parent);
                c->bytes = bytes_of(c->v, parent);
                return;
            }
        spend_rest(c);
    }
}

/* Leaves the `keep` best of the n children in front, the best first; equal ones as they stood. */
static int select_best(const struct evolve *v, int generation, int round, int **child, int n,
                       int keep, struct err *e)
{
    double loss[EVOLVE_OFFSPRING];
    for (int i = 0; i < n; i++) {
        int *is = child[i], at = i;
        double l;
        TRY(v->judge(v->arg, is, generation, round, &l, e));
        for (; at > 0 && l < loss[at - 1]; at--) {
            loss[at] = loss[at - 1];
            child[at] = child[at - 1];
        }
        loss[at] = l;
        child[at] = is;
    }
    return keep < n ? keep : n;
}

static int select_one(const struct evolve *v, int generation, int **child, int *parent,
                      double *loss, struct err *e)
{
    double l;
    int n = EVOLVE_OFFSPRING;
    for (int r = 0; r < EVOLVE_ROUNDS - 1; r++) {
        n = select_best(v, generation, r, child, n, survivors[r], e);
        if (n < 0)
            return n;
    }
    TRY(v->judge(v->arg, child[0], generation, EVOLVE_ROUNDS - 1, &l, e));
    if (l < *loss) {
        memcpy(parent, child[0], (size_t)v->n * sizeof *parent);
        *loss = l;
    }
    return 0;
}

int evolve_generation(const struct evolve *v, int generation, int *choice, double *loss,
                      struct err *e)
{
    size_t n = (size_t)v->n;
    int *child[EVOLVE_OFFSPRING];
    if (n == 0)
        return 0;
    int *all = mem_alloc(EVOLVE_OFFSPRING * n * sizeof *all);
    struct child c = { .v = v, .moved = mem_alloc(n) };
    int rc = all != NULL && c.moved != NULL
                 ? 0
                 : err_set(e, ERR_NOMEM, "no memory for the offspring of %d matrices", v->n);
    for (int i = 0; i < EVOLVE_OFFSPRING && rc == 0; i++) {
        c.key = mix64(mix64(v->seed + (uint64_t)generation) + (uint64_t)i);
        c.drawn = 0;
        c.choice = child[i] = all + (size_t)i * n;
        mutate(&c, choice);
    }
    if (rc == 0)
        rc = select_one(v, generation, child, choice, loss, e);
    mem_free(c.moved);
    mem_free(all);
    return rc;
}
