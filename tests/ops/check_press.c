/* Pressing on a device against what the host does with the same head: probe_gather, kv_fit and probe_write (_q8). Into spare
 * pages, into the head's own, and of one layer alone: the same bits. What no fit changes is bit for bit what it was.
 */
#include <math.h>
#include <string.h>

#include "kvcache/fit.h"
#include "tests/ops/check_probe.h"
#include "tests/tools/levels.h"

enum { N_TOKENS = 10 }; /* so few that votes meet their upper bound */

struct press_shape {
    struct probe_shape s;
    int keep, more; /* slots of head 0; how many more each further head keeps */
    int exact;      /* of 4 kept slots */
};

/* What is asked of the fit, and what is wrong with its numbers. */
enum fault { FAULT_NONE, FAULT_WEIGHT, FAULT_RIDGE, FAULT_KEY, FAULT_VALUE, FAULT_N };
struct how {
    enum kv_merge merge;
    float lambda;
    enum fault fault;
};

struct press_case {
    struct probe_case t;
    struct how how;
    int items, pages;               /* pages: that a head may fill */
    int32_t *n_keep, *keep, *first; /* first[i]: where keep of item i begins */
    bool *exact;
    float *low, *high, *weight;
};

/* What a run leaves: the pool and its sides, and which blocks were written. */
struct pressed {
    char *pool;
    float *side;
    const int32_t *block; /* [items][pages] */
};

static enum check_id rule_of(const struct press_case *p)
{
    return CHECK_PRESS_F16 + (int)p->t.type;
}

static int slots_of(const struct press_case *p, int item)
{
    return p->t.n_narrow[item] + p->t.s.n_wide;
}

static int rows_of(const struct press_case *p)
{
    return p->t.s.n_ref * p->t.s.group;
}

/* ---- a choice ---------------------------------------------------------------------------------------------------- */

/* n of all, rising, each set as likely. */
static void choose(int32_t *keep, int n, int all)
{
    for (int j = 0, k = 0; k < n; j++)
        if ((int)(rnd_bits() % (uint32_t)(all - j)) < n - k)
            keep[k++] = j;
}

static float bias_of(const struct press_case *p, const struct probe_head *h, int candidate)
{
    int page = kv_narrow_slots(h->narrow_type);
    if (candidate >= h->n_narrow)
        return 0;
    return p->t.beta[(size_t)h->narrow[candidate / page] * kv_side_floats(h->narrow_type) +
                     (size_t)(candidate % page)];
}

static void choose_head(struct check *c, struct press_case *p, int item, int n, int exact)
{
    int at = p->first[item];
    const struct probe_head h = probe_case_head(c, &p->t, item);
    p->n_keep[item] = n;
    choose(p->keep + at, n, slots_of(p, item));
    for (int i = at; i < at + n; i++) {
        p->exact[i] = (int)(rnd_bits() % 4) < exact;
        kv_fit_range(bias_of(p, &h, p->keep[i]), N_TOKENS, &p->low[i], &p->high[i]);
    }
}

static void choose_all(struct check *c, struct press_case *p, const struct press_shape *shape)
{
    int kv = shape->s.n_kv, most = shape->keep + shape->more * (kv - 1);
    size_t slots = (size_t)(p->items * most), rows = (size_t)rows_of(p);
    p->n_keep = check_host(c, (size_t)p->items * sizeof *p->n_keep);
    p->first = check_host(c, ((size_t)p->items + 1) * sizeof *p->first);
    p->keep = check_host(c, slots * sizeof *p->keep);
    p->exact = check_host(c, slots * sizeof *p->exact);
    p->low = check_host(c, slots * sizeof *p->low);
    p->high = check_host(c, slots * sizeof *p->high);
    p->weight = check_floats(c, (size_t)p->items * rows, 1);
    for (int i = 0; i < p->items; i++) {
        int all = slots_of(p, i), n = shape->keep + shape->more * (i % kv), of = i % kv;
        size_t to = (size_t)p->first[i], from = (size_t)p->first[of];
        n = n < all ? n : all;
        p->first[i + 1] = p->first[i] + n;
        choose_head(c, p, i, n, shape->exact);
        for (size_t r = 0; r < rows; r++)
            p->weight[(size_t)i * rows + r] += 1;
        if (!shape->s.copies || of == i)
            continue;
        memcpy(p->keep + to, p->keep + from, (size_t)n * sizeof *p->keep);
        memcpy(p->exact + to, p->exact + from, (size_t)n * sizeof *p->exact);
        memcpy(p->low + to, p->low + from, (size_t)n * sizeof *p->low);
        memcpy(p->high + to, p->high + from, (size_t)n * sizeof *p->high);
        memcpy(p->weight + (size_t)i * rows, p->weight + (size_t)of * rows,
               rows * sizeof *p->weight);
    }
}

/* Biases so far out that votes meet their lower bound. */
static void spread_biases(struct press_case *p)
{
    int page = kv_narrow_slots(p->t.s.narrow_type);
    for (int i = 0; i < p->items; i++)
        for (int j = 0; j < p->t.n_narrow[i]; j++) {
            int32_t block = p->t.narrow[i * p->t.p.narrow_pages + j / page];
            p->t.beta[(size_t)block * kv_side_floats(p->t.s.narrow_type) + (size_t)(j % page)] *=
                2.5f;
        }
}

/* In the first head: a row that counts NaN, or an element of a kept slot that cannot be. Caches of f32 only. */
static void plant(struct press_case *p)
{
    float *block = (float *)(void *)p->t.pool;
    int dim = p->t.s.dim, slot = p->keep[p->n_keep[0] - 1] - p->t.n_narrow[0];
    size_t at = (size_t)p->t.wide[slot / KV_PAGE] * (size_t)p->t.s.n_kv * 2 * KV_PAGE * (size_t)dim;
    if (p->how.fault == FAULT_WEIGHT)
        p->weight[1] = NAN;
    else if (p->how.fault == FAULT_KEY)
        block[at + kv_k_index(slot % KV_PAGE, 1)] = INFINITY;
    else if (p->how.fault == FAULT_VALUE)
        block[at + (size_t)(KV_PAGE * dim) + kv_v_index(slot % KV_PAGE, 1, dim)] = 1e6f;
}

static void press_open(struct check *c, struct press_case *p, const struct press_shape *shape,
                       enum kv_type type, const struct how *how)
{
    const struct probe_shape *s = &shape->s;
    int page = kv_narrow_slots(s->narrow_type), most = shape->keep + shape->more * (s->n_kv - 1);
    *p = (struct press_case){ .how = *how, .items = s->n_layers * s->n_kv };
    p->pages = (most + page - 1) / page;
    probe_case_open(c, &p->t, s, type, p->items * p->pages);
    if (!s->copies)
        spread_biases(p);
    choose_all(c, p, shape);
    if (how->fault == FAULT_KEY || how->fault == FAULT_VALUE || how->fault == FAULT_WEIGHT)
        plant(p);
}

/* ---- on the device ----------------------------------------------------------------------------------------------- */

/* Where the heads go: to the spare blocks, or to those that they have. */
static int32_t *blocks_for(struct check *c, const struct press_case *p, bool in_place)
{
    const struct probe_case *t = &p->t;
    int32_t *block = check_host(c, (size_t)(p->items * p->pages) * sizeof *block);
    for (int i = 0; i < p->items; i++)
        for (int b = 0; b < p->pages; b++)
            block[i * p->pages + b] =
                in_place ? t->narrow[i * t->p.narrow_pages + b]
                         : (int32_t)t->n_blocks - 1 - i * p->pages - b; /* not in order */
    return block;
}

static struct pressed press(struct check *c, struct press_case *p, int n_layers, bool in_place)
{
    const struct probe_case *t = &p->t;
    struct be_probe asked = probe_case_put(c, t, n_layers);
    int page = kv_narrow_slots(t->s.narrow_type), n = 0, items = n_layers * t->s.n_kv;
    int32_t *block = check_host(c, (size_t)(p->items * p->pages) * sizeof *block);
    struct pressed out = { check_host(c, t->pool_bytes), check_host(c, t->beta_bytes),
                           blocks_for(c, p, in_place) };
    for (int i = 0; i < items; i++)
        for (int b = 0; b * page < p->n_keep[i]; b++)
            block[n++] = out.block[i * p->pages + b];
    struct be_press ask = { .asked = &asked,
                            .n_keep = p->n_keep,
                            .keep = p->keep,
                            .exact = p->exact,
                            .block = block,
                            .low = p->low,
                            .high = p->high,
                            .weight = p->weight,
                            .lambda = p->how.lambda };
    ask.values = p->how.merge == KV_MERGE_VALUES || p->how.merge == KV_MERGE_FIT;
    if (p->how.merge == KV_MERGE_VOTES || p->how.merge == KV_MERGE_FIT)
        ask.rounds = KV_FIT_ROUNDS;
    c->be->ops->press(c->be, &ask);
    check_get(c, c->be, out.pool, asked.kv.pool, t->pool_bytes);
    check_get(c, c->be, out.side, asked.kv.beta, t->beta_bytes);
    return out;
}

/* ---- the definition ---------------------------------------------------------------------------------------------- */

static struct kv_kept kept_open(struct check *c, const struct press_case *p, int item)
{
    size_t n = (size_t)p->n_keep[item], dim = (size_t)p->t.s.dim;
    return (struct kv_kept){ .n = (int)n,
                             .keep = p->keep + p->first[item],
                             .exact = p->exact + p->first[item],
                             .k = check_host(c, n * dim * sizeof(float)),
                             .v = check_host(c, n * dim * sizeof(float)),
                             .beta = check_host(c, n * sizeof(float)) };
}

static struct kv_kept want_head(struct check *c, const struct press_case *p, int item)
{
    const struct probe_head h = probe_case_head(c, &p->t, item);
    const struct probe_rows rows = probe_case_rows(c, &p->t, item, &h);
    const struct kv_options o = { .lambda = p->how.lambda };
    struct kv_kept kept = kept_open(c, p, item);
    const struct kv_head head = { .opt = &o,
                                  .n = slots_of(p, item),
                                  .n_tokens = N_TOKENS,
                                  .dim = h.dim,
                                  .group = p->t.s.group,
                                  .scale = h.scale,
                                  .isa = CPU_REF,
                                  .n_ref = p->t.s.n_ref,
                                  .ref_q = rows.q,
                                  .ref_o = rows.o,
                                  .ref_lse = rows.lse,
                                  .ref_weight = p->weight + (size_t)(item * rows_of(p)),
                                  .arena = &c->arena };
    probe_gather(&h, kept.keep, kept.n, kept.k, kept.v);
    for (int i = 0; i < kept.n; i++)
        kept.beta[i] = bias_of(p, &h, kept.keep[i]);
    if (p->how.merge != KV_MERGE_NONE)
        ASSERT(kv_fit(&head, &kept, p->how.merge) == 0);
    return kept;
}

/* The pages of a head, as probe_write leaves them. */
static struct pressed want_pages(struct check *c, const struct press_case *p,
                                 const struct kv_kept *kept, const int32_t *block)
{
    const struct probe_shape *s = &p->t.s;
    int page = kv_narrow_slots(s->narrow_type), dim = s->dim;
    size_t side = kv_side_floats(s->narrow_type), bytes = kv_block_bytes(p->t.type, dim);
    struct pressed out = { check_host(c, p->t.pool_bytes), check_host(c, p->t.beta_bytes), block };
    for (int i = 0; i < kept->n; i += page, block++) {
        int some = kept->n - i < page ? kept->n - i : page;
        const float *k = kept->k + (size_t)(i * dim), *v = kept->v + (size_t)(i * dim);
        char *to = out.pool + (size_t)*block * bytes;
        float *to_side = out.side + (size_t)*block * side;
        if (s->narrow_type == KV_NARROW_Q8)
            probe_write_q8(to, to_side, dim, k, v, some);
        else
            probe_write(to, p->t.type, dim, k, v, some);
        memcpy(to_side, kept->beta + i, (size_t)some * sizeof *to_side);
    }
    return out;
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

/* All slots of a head's pages, those behind its own too. */
static struct kv_kept read_pages(struct check *c, const struct press_case *p,
                                 const struct pressed *out, const int32_t *block, int pages)
{
    const struct probe_shape *s = &p->t.s;
    int page = kv_narrow_slots(s->narrow_type), n = pages * page;
    size_t count = (size_t)n * (size_t)s->dim, side = kv_side_floats(s->narrow_type);
    int32_t *all = check_host(c, (size_t)n * sizeof *all);
    struct kv_kept r = { .n = n,
                         .k = check_host(c, count * sizeof(float)),
                         .v = check_host(c, count * sizeof(float)),
                         .beta = check_host(c, (size_t)n * sizeof(float)) };
    const struct probe_head h = { .pool = out->pool,
                                  .beta = out->side,
                                  .type = p->t.type,
                                  .narrow_type = s->narrow_type,
                                  .dim = s->dim,
                                  .narrow = block,
                                  .n_narrow = n };
    for (int i = 0; i < n; i++) {
        all[i] = i;
        r.beta[i] = out->side[(size_t)block[i / page] * side + (size_t)(i % page)];
    }
    probe_gather(&h, all, n, r.k, r.v);
    return r;
}

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
    const struct kv_kept kept = want_head(c, p, item);
    const int32_t *block = got->block + (size_t)(item * p->pages);
    const struct pressed want = want_pages(c, p, &kept, block);
    int page = kv_narrow_slots(p->t.s.narrow_type), pages = (kept.n + page - 1) / page;
    struct kv_kept a = read_pages(c, p, got, block, pages);
    struct kv_kept b = read_pages(c, p, &want, block, pages);
    size_t dim = (size_t)p->t.s.dim;
    bool votes = p->how.merge == KV_MERGE_VOTES || p->how.merge == KV_MERGE_FIT;
    bool values = p->how.merge == KV_MERGE_VALUES || p->how.merge == KV_MERGE_FIT;
    check_near(c, CHECK_PRESS_COPY, a.k, b.k, (size_t)a.n * dim, 1);
    for (int i = 0; i < a.n; i++) {
        size_t at = (size_t)i * dim;
        bool fitted = i < kept.n && values && !kept.exact[i];
        check_near(c, fitted ? rule_of(p) : CHECK_PRESS_COPY, a.v + at, b.v + at, dim,
                   fitted ? size_of(b.v + at, dim) : 1);
        check_near(c, i < kept.n && votes ? rule_of(p) : CHECK_PRESS_COPY, &a.beta[i], &b.beta[i],
                   1, 1);
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
    press_open(c, &p, shape, type, how);
    const struct pressed got = press(c, &p, s->n_layers, false);
    for (int i = 0; i < probe_kinds(s) * s->n_kv; i++)
        compare_head(c, &p, i, &got);
    compare_others(c, &p, &got);
    for (int i = s->n_kv; s->copies && i < p.items; i++)
        compare_bits(c, &p, &got, i, &got, i % s->n_kv);
    bool company = !s->copies && (how->merge == KV_MERGE_FIT || how->merge == KV_MERGE_NONE);
    if (company && s->n_layers > 1) {
        const struct pressed alone = press(c, &p, 1, false);
        for (int i = 0; i < s->n_kv; i++)
            compare_bits(c, &p, &alone, i, &got, i);
    }
    if (company && p.pages <= p.t.p.narrow_pages) {
        const struct pressed own = press(c, &p, s->n_layers, true);
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
    press_open(c, &p, shape, KV_F32, &how);
    for (int i = 0; i < p.first[p.items]; i++)
        p.low[i] = p.high[i] = 1.5f + rnd_unit();
    const struct pressed got = press(c, &p, shape->s.n_layers, false);
    for (int i = 0; i < p.items; i++) {
        const struct probe_head h = probe_case_head(c, &p.t, i);
        const int32_t *block = got.block + (size_t)(i * p.pages);
        const struct kv_kept a = read_pages(c, &p, &got, block, p.pages);
        for (int k = 0; k < p.n_keep[i]; k++) {
            int at = p.first[i] + k;
            float want = bias_of(&p, &h, p.keep[at]) + logf(p.low[at]);
            check_near(c, CHECK_PRESS_F32, &a.beta[k], &want, 1, 1);
        }
    }
    check_close(c, CHECK_PRESS_F32);
}

/* ---- what the references get ------------------------------------------------------------------------------------- */

/* Another one for each head. */
static int row_for(const struct press_case *p, int item)
{
    return (item + 1) * 37 % rows_of(p);
}

/* One slot that only one row counts for takes that row's output as its value: the attention of references, which no op
 * hands out. */
static void check_outputs(struct check *c, const struct probe_shape *s, enum kv_type type)
{
    const struct press_shape one = { *s, 1, 0, 0 };
    const struct how how = { .merge = KV_MERGE_VALUES, .lambda = 1e-6f };
    struct press_case p;
    press_open(c, &p, &one, type, &how);
    int rows = rows_of(&p);
    enum check_id id = CHECK_PROBE_F16 + (int)(s->narrow_type == KV_NARROW_Q8 ? KV_BF16 : type);
    for (int i = 0; i < p.items * rows; i++)
        p.weight[i] = i % rows == row_for(&p, i / rows) ? (float)rows : 0;
    const struct pressed got = press(c, &p, s->n_layers, false);
    for (int i = 0; i < probe_kinds(s) * s->n_kv; i++) {
        const struct probe_head h = probe_case_head(c, &p.t, i);
        const float *want = probe_case_rows(c, &p.t, i, &h).o + (size_t)(row_for(&p, i) * s->dim);
        const struct kv_kept a = read_pages(c, &p, &got, got.block + (size_t)(i * p.pages), 1);
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
