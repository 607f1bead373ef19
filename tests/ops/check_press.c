/* Pressing on a device against what the host does with the same head: probe_gather, kv_fit and probe_write (_q8). Into spare
 * pages, into the head's own, and of one layer alone: the same bits. What no fit changes is bit for bit what it was.
 */
#include <math.h>
#include <string.h>

#include "tests/ops/check_press.h"
#include "tests/tools/levels.h"

static enum check_id rule_of(const struct press_case *p)
{
    return CHECK_PRESS_F16 + (int)p->t.type;
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

/* The largest element of a value, which a q8 number's step follows, or 1, about what values are when they are no fit's. */
static double size_of(const float *v, size_t dim)
{
    double most = 1;
    for (size_t d = 0; d < dim; d++)
        most = fmax(most, fabs((double)v[d]));
    return isfinite(most) ? most : 1;
}

/* One head of `got`: what a fit may change is near what the host makes of it, all else has its bits. */
static void compare_head(struct check *c, const struct press_case *p, int item,
                         const struct pressed *got)
{
    const struct kv_kept kept = press_case_head(c, p, item);
    const int32_t *block = got->block + (size_t)(item * p->pages);
    const struct pressed want = press_case_pages(c, p, &kept, block);
    int page = kv_narrow_slots(p->t.s.narrow_type), pages = (kept.n + page - 1) / page;
    struct kv_kept a = press_case_read(c, p, got, block, pages);
    struct kv_kept b = press_case_read(c, p, &want, block, pages);
    size_t dim = (size_t)p->t.s.dim;
    bool votes = p->how.merge == KV_MERGE_VOTES || p->how.merge == KV_MERGE_FIT;
    bool values = p->how.merge == KV_MERGE_VALUES || p->how.merge == KV_MERGE_FIT;
    check_near(c, CHECK_PRESS_COPY, a.k, b.k, (size_t)a.n * dim, 1);
    for (int i = 0; i < a.n; i++) {
        size_t at = (size_t)i * dim;
        bool fitted = i < kept.n && values && !kept.exact[i];
        check_near(c, fitted ? rule_of(p) : CHECK_PRESS_COPY, a.v + at, b.v + at, dim,
                   fitted ? size_of(b.v + at, dim) : 1);
        bool moved = i < kept.n && votes && !kept.exact[i];
        check_near(c, moved ? rule_of(p) : CHECK_PRESS_COPY, &a.beta[i], &b.beta[i], 1, 1);
    }
}

/* Whether block b is written for one of the first n heads. */
static bool is_written(const struct press_case *p, const struct pressed *got, int n, int32_t b)
{
    int page = kv_narrow_slots(p->t.s.narrow_type);
    for (int i = 0; i < n; i++)
        for (int k = 0; k * page < p->n_keep[i]; k++)
            if (got->block[i * p->pages + k] == b)
                return true;
    return false;
}

static void compare_others(struct check *c, const struct press_case *p, const struct pressed *got)
{
    size_t bytes = kv_block_bytes(p->t.type, p->t.s.dim), side = kv_side_floats(p->t.s.narrow_type);
    for (size_t b = 0; b < p->t.n_blocks; b++) {
        if (is_written(p, got, p->items, (int32_t)b))
            continue;
        check_same(c, CHECK_PRESS_COPY, "a page of others", got->pool + b * bytes,
                   p->t.pool + b * bytes, bytes);
        check_same(c, CHECK_PRESS_COPY, "a side of others", got->side + b * side,
                   p->t.beta + b * side, side * sizeof *got->side);
    }
}

/* Head i of one run and head k of another: the same bits. */
static void compare_bits(struct check *c, const struct press_case *p, const struct pressed *got,
                         int i, const struct pressed *want, int k)
{
    size_t bytes = kv_block_bytes(p->t.type, p->t.s.dim), side = kv_side_floats(p->t.s.narrow_type);
    int page = kv_narrow_slots(p->t.s.narrow_type);
    for (int b = 0; b * page < p->n_keep[i]; b++) {
        size_t x = (size_t)got->block[i * p->pages + b], y = (size_t)want->block[k * p->pages + b];
        check_same(c, CHECK_PRESS_COPY, "a page in other company", got->pool + x * bytes,
                   want->pool + y * bytes, bytes);
        check_same(c, CHECK_PRESS_COPY, "a side in other company", got->side + x * side,
                   want->side + y * side, side * sizeof *got->side);
    }
}

static void check_shape(struct check *c, const struct press_shape *shape, enum kv_type type,
                        const struct how *how)
{
    struct press_case p;
    const struct probe_shape *s = &shape->s;
    press_case_open(c, &p, shape, type, how);
    const struct pressed got = press_case_run(c, &p, s->n_layers, false);
    for (int i = 0; i < probe_kinds(s) * s->n_kv; i++)
        compare_head(c, &p, i, &got);
    compare_others(c, &p, &got);
    for (int i = s->n_kv; s->copies && i < p.items; i++)
        compare_bits(c, &p, &got, i, &got, i % s->n_kv);
    bool company = !s->copies && (how->merge == KV_MERGE_FIT || how->merge == KV_MERGE_NONE);
    if (company && s->n_layers > 1) {
        const struct pressed alone = press_case_run(c, &p, 1, false);
        for (int i = 0; i < s->n_kv; i++)
            compare_bits(c, &p, &alone, i, &got, i);
    }
    if (company && p.pages <= p.t.p.narrow_pages) {
        const struct pressed own = press_case_run(c, &p, s->n_layers, true);
        for (int i = 0; i < p.items; i++)
            compare_bits(c, &p, &own, i, &got, i);
        compare_others(c, &p, &own);
    }
    check_close(c, rule_of(&p));
}

/* Where the bounds leave no choice each slot's votes are multiplied by its own. */
static void check_bounds(struct check *c, const struct press_shape *shape)
{
    const struct how how = { .merge = KV_MERGE_FIT, .lambda = 0.02f };
    struct press_case p;
    press_case_open(c, &p, shape, KV_F32, &how);
    for (int i = 0; i < p.first[p.items]; i++)
        p.low[i] = p.high[i] = 1.5f + rnd_unit();
    const struct pressed got = press_case_run(c, &p, shape->s.n_layers, false);
    for (int i = 0; i < p.items; i++) {
        const struct probe_head h = probe_case_head(c, &p.t, i);
        const int32_t *block = got.block + (size_t)(i * p.pages);
        const struct kv_kept a = press_case_read(c, &p, &got, block, p.pages);
        for (int k = 0; k < p.n_keep[i]; k++) {
            int at = p.first[i] + k;
            float want = press_case_bias(&p, &h, p.keep[at]) + logf(p.low[at]);
            check_near(c, CHECK_PRESS_F32, &a.beta[k], &want, 1, 1);
        }
    }
    check_close(c, CHECK_PRESS_F32);
}

/* ---- what the references get ------------------------------------------------------------------------------------- */

/* Another one for each head. */
static int row_for(const struct press_case *p, int item)
{
    return (item + 1) * 37 % press_case_rows(p);
}

/* One slot that only one row counts for takes that row's output as its value: the attention of references, which no op
 * hands out. */
static void check_outputs(struct check *c, const struct probe_shape *s, enum kv_type type)
{
    const struct press_shape one = { *s, 1, 0, 0 };
    const struct how how = { .merge = KV_MERGE_VALUES, .lambda = 1e-6f };
    struct press_case p;
    press_case_open(c, &p, &one, type, &how);
    int rows = press_case_rows(&p);
    enum check_id id = CHECK_PROBE_F16 + (int)(s->narrow_type == KV_NARROW_Q8 ? KV_BF16 : type);
    for (int i = 0; i < p.items * rows; i++)
        p.weight[i] = i % rows == row_for(&p, i / rows) ? (float)rows : 0;
    const struct pressed got = press_case_run(c, &p, s->n_layers, false);
    for (int i = 0; i < probe_kinds(s) * s->n_kv; i++) {
        const struct probe_head h = probe_case_head(c, &p.t, i);
        const float *want = probe_case_rows(c, &p.t, i, &h).o + (size_t)(row_for(&p, i) * s->dim);
        const struct kv_kept a = press_case_read(c, &p, &got, got.block + (size_t)(i * p.pages), 1);
        double sum = 0;
        for (int d = 0; d < s->dim; d++)
            sum += (double)want[d] * (double)want[d];
        check_near(c, id, a.v, want, (size_t)s->dim, sqrt(sum / s->dim) + 1e-30);
    }
    check_close(c, id);
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static void check_modes(struct check *c, const struct press_shape *shape, enum kv_type type,
                        bool all)
{
    static const enum kv_merge modes[] = { KV_MERGE_FIT, KV_MERGE_NONE, KV_MERGE_VOTES,
                                           KV_MERGE_VALUES };
    for (int m = 0; m < (all ? COUNT(modes) : 1); m++) {
        struct how how = { .merge = modes[m], .lambda = 0.02f };
        check_shape(c, shape, type, &how);
    }
    if (!shape->s.copies)
        check_outputs(c, &shape->s, type);
}

static void check_faults(struct check *c)
{
    const struct press_shape shape = {
        { 1, 2, 2, 16, 8, 64, 3, 5, { 1, 1, 1 }, -1, true, false, KV_NARROW_SAME }, 9, 3, 1
    };
    for (int f = 1; f < FAULT_N; f++) {
        struct how how = { .merge = KV_MERGE_FIT, .lambda = 0.02f, .fault = (enum fault)f };
        if (f == FAULT_RIDGE)
            how.lambda = -1000;
        check_shape(c, &shape, KV_F32, &how);
    }
}

void check_press(struct check *c)
{
    static const struct press_shape shape[] = {
        /* fewer columns than rows, and more; a page and a slot; nearly all kept; one slot; pressed again in place; all exact */
        { { 2, 2, 3, 64, 32, 96, 7, 9, { 5, 1, 20 }, -1, true, false, KV_NARROW_SAME }, 33, 3, 1 },
        { { 1, 3, 1, 80, 16, 33, 0, 17, { 1, 1, 3 }, 30, false, false, KV_NARROW_SAME }, 58, 3, 1 },
        { { 2, 1, 4, 128, 64, 160, 31, 20, { 32, 1, 40 }, 70, true, false, KV_NARROW_SAME },
          65,
          3,
          2 },
        { { 1, 1, 2, 6, 3, 65, 1, 1, { 2, 2, 2 }, 0, false, false, KV_NARROW_SAME }, 1, 3, 0 },
        { { 1, 2, 1, 256, 128, 40, 3, 33, { 7, 1, 9 }, 31, true, false, KV_NARROW_SAME },
          68,
          3,
          1 },
        { { 1, 1, 16, 512, 256, 70, 32, 3, { 3, 1, 4 }, 64, false, false, KV_NARROW_SAME },
          96,
          3,
          4 },
        { { 2, 2, 7, 48, 24, 1056, 16, 12, { 32, 1, 33 }, 600, true, false, KV_NARROW_SAME },
          301,
          3,
          1 },
        { { 1, 2, 2, 32, 16, 0, 5, 6, { 2, 1, 3 }, 130, true, false, KV_NARROW_SAME }, 100, 3, 2 },
        /* more than fits the scratch at once */
        { { 80, 1, 16, 512, 0, 32, 0, 16, { 1, 1, 1 }, -1, true, true, KV_NARROW_SAME }, 20, 3, 1 },
    };
    check_that(c, CHECK_PRESS_COPY, (c->be->ops->probe == NULL) == (c->be->ops->press == NULL),
               "probe and press come together");
    if (c->be->ops->press == NULL)
        return;
    for (int i = 0; i < (c->small ? 4 : COUNT(shape)); i++)
        for (int type = 0; type < (shape[i].s.copies ? 1 : KV_TYPE_N); type++) {
            struct press_shape s = shape[i];
            check_modes(c, &s, (enum kv_type)type, i < 4);
            s.s.narrow_type = KV_NARROW_Q8;
            if (type != KV_F32 && !s.s.copies)
                check_modes(c, &s, (enum kv_type)type, i < 4);
        }
    check_faults(c);
    check_bounds(c, &shape[1]);
}
