/* See check_press.h. */
#include <math.h>
#include <string.h>

#include "tests/ops/check_press.h"
#include "tests/tools/levels.h"

enum { N_TOKENS = 10 }; /* so few that votes meet their upper bound */

static int slots_of(const struct press_case *p, int item)
{
    return p->t.n_narrow[item] + p->t.s.n_wide;
}

int press_case_rows(const struct press_case *p)
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

float press_case_bias(const struct press_case *p, const struct probe_head *h, int candidate)
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
        kv_fit_range(p->exact[i], press_case_bias(p, &h, p->keep[i]), N_TOKENS, &p->low[i],
                     &p->high[i]);
    }
}

static void choose_all(struct check *c, struct press_case *p, const struct press_shape *shape)
{
    int kv = shape->s.n_kv, most = shape->keep + shape->more * (kv - 1);
    size_t slots = (size_t)(p->items * most), rows = (size_t)press_case_rows(p);
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

void press_case_open(struct check *c, struct press_case *p, const struct press_shape *shape,
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

struct pressed press_case_run(struct check *c, struct press_case *p, int n_layers, bool in_place)
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

struct kv_kept press_case_head(struct check *c, const struct press_case *p, int item)
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
                                  .ref_weight = p->weight + (size_t)(item * press_case_rows(p)),
                                  .arena = &c->arena };
    probe_gather(&h, kept.keep, kept.n, kept.k, kept.v);
    for (int i = 0; i < kept.n; i++)
        kept.beta[i] = press_case_bias(p, &h, kept.keep[i]);
    if (p->how.merge != KV_MERGE_NONE)
        ASSERT(kv_fit(&head, &kept, p->how.merge) == 0);
    return kept;
}

struct pressed press_case_pages(struct check *c, const struct press_case *p,
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

/* ---- read again ------------------------------------------------------------------------------------------------- */

struct kv_kept press_case_read(struct check *c, const struct press_case *p,
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
