/* Made-up caches and records for probing and pressing. What nobody may read is NaN. */
#include <math.h>
#include <string.h>

#include "tests/ops/check_probe.h"
#include "tests/tools/elem.h"
#include "tests/tools/levels.h"

int probe_kinds(const struct probe_shape *s)
{
    return s->copies ? 1 : s->n_layers;
}

/* ---- a cache ----------------------------------------------------------------------------------------------------- */

/* A page with n slots; behind them NaN, but for the value that shares a pair with the last one. */
static void fill_block(struct check *c, struct probe_case *t, int32_t block, int n)
{
    int dim = t->s.dim;
    size_t elem = kv_elem_bytes(t->type), half = kv_block_bytes(t->type, dim) / 2;
    char *k = t->pool + (size_t)block * 2 * half, *v = k + half;
    size_t count = (size_t)n * (size_t)dim;
    probe_write(k, t->type, dim, check_floats(c, count, 2), check_floats(c, count, 1), n);
    for (int i = n; i < KV_PAGE; i++)
        for (int d = 0; d < dim; d++) {
            memset(k + kv_k_index(i, d) * elem, 0xff, elem);
            if (i >= (n + 1) / 2 * 2)
                memset(v + kv_v_index(i, d, dim) * elem, 0xff, elem);
        }
    for (int i = 0; i < n; i++)
        t->beta[(size_t)block * KV_PAGE + (size_t)i] = 2 * rnd_unit();
}

static int32_t *shuffled(struct check *c, int n)
{
    int32_t *p = check_host(c, (size_t)n * sizeof *p);
    for (int i = 0; i < n; i++) {
        int j = (int)(rnd_bits() % (uint32_t)(i + 1));
        p[i] = p[j];
        p[j] = i;
    }
    return p;
}

/* The same of a q8 page: NaN takes the places of scales and biases. */
static void fill_q8(struct check *c, struct probe_case *t, int32_t block, int n)
{
    int dim = t->s.dim;
    size_t count = (size_t)n * (size_t)dim;
    float *side = t->beta + (size_t)block * kv_side_floats(KV_NARROW_Q8);
    probe_write_q8(t->pool + (size_t)block * kv_block_bytes(t->type, dim), side, dim,
                   check_floats(c, count, 2), check_floats(c, count, 1), n);
    for (int i = 0; i < KV_PAGE_Q8; i++) {
        side[i] = i < n ? 2 * rnd_unit() : NAN;
        if (i >= n)
            side[KV_PAGE_Q8 + i] = NAN;
        if (i >= (n + 1) / 2 * 2)
            side[2 * KV_PAGE_Q8 + i] = NAN;
    }
}

static void fill_layer(struct check *c, struct probe_case *t, int layer, const int32_t *page,
                       const int32_t *block)
{
    const struct probe_shape *s = &t->s;
    int n = probe_pages(s->n_wide), tail = s->n_tail > 0;
    int32_t *wide = t->wide + (size_t)layer * (size_t)(n + tail);
    for (int i = 0; i < n + tail; i++) {
        int slots = i == n ? s->n_tail : i == n - 1 ? s->n_wide - i * KV_PAGE : KV_PAGE;
        wide[i] = page[i];
        for (int h = 0; h < s->n_kv; h++)
            fill_block(c, t, wide[i] * s->n_kv + h, slots);
    }
    for (int h = 0; h < s->n_kv && s->narrow >= 0; h++) {
        int item = layer * s->n_kv + h, slots = s->narrow + 5 * h;
        t->n_narrow[item] = slots;
        int page_slots = kv_narrow_slots(s->narrow_type);
        for (int i = 0; i * page_slots < slots; i++) {
            int at = h * t->p.narrow_pages + i, left = slots - i * page_slots;
            int some = left < page_slots ? left : page_slots;
            t->narrow[(size_t)layer * (size_t)(s->n_kv * t->p.narrow_pages) + (size_t)at] =
                block[at];
            if (s->narrow_type == KV_NARROW_Q8)
                fill_q8(c, t, block[at], some);
            else
                fill_block(c, t, block[at], some);
        }
    }
}

static void fill_cache(struct check *c, struct probe_case *t)
{
    const struct probe_shape *s = &t->s;
    int pages = probe_pages(s->n_wide) + (s->n_tail > 0), layers = s->n_layers;
    int page_slots = kv_narrow_slots(s->narrow_type), most = s->narrow + 5 * (s->n_kv - 1);
    int narrow = s->narrow >= 0 ? (most + page_slots - 1) / page_slots : 0;
    int n_pages = probe_kinds(s) * pages, n_blocks = probe_kinds(s) * narrow * s->n_kv;
    t->p.narrow_pages = narrow;
    t->n_blocks = (size_t)(n_pages * s->n_kv + n_blocks + t->n_spare);
    t->pool_bytes = t->n_blocks * kv_block_bytes(t->type, s->dim);
    t->pool = check_host(c, t->pool_bytes);
    memset(t->pool, 0xff, t->pool_bytes);
    t->beta_bytes = t->n_blocks * kv_side_floats(s->narrow_type) * sizeof *t->beta;
    t->beta = check_host(c, t->beta_bytes);
    memset(t->beta, 0xff, t->beta_bytes);
    t->wide = check_host(c, (size_t)(layers * pages) * sizeof *t->wide);
    t->narrow = check_host(c, (size_t)(layers * s->n_kv * narrow) * sizeof *t->narrow);
    t->n_narrow = check_host(c, (size_t)(layers * s->n_kv) * sizeof *t->n_narrow);
    int32_t *page = shuffled(c, n_pages), *block = shuffled(c, n_blocks);
    for (int i = 0; i < n_blocks; i++)
        block[i] += n_pages * s->n_kv; /* narrow pages lie behind the wide ones */
    for (int l = 0; l < layers; l++) {
        int of = s->copies ? 0 : l;
        if (of == l)
            fill_layer(c, t, l, page + l * pages, block + l * narrow * s->n_kv);
        memcpy(t->wide + l * pages, t->wide + of * pages, (size_t)pages * sizeof *t->wide);
        memcpy(t->narrow + l * s->n_kv * narrow, t->narrow + of * s->n_kv * narrow,
               (size_t)(s->n_kv * narrow) * sizeof *t->narrow);
        memcpy(t->n_narrow + l * s->n_kv, t->n_narrow + of * s->n_kv,
               (size_t)s->n_kv * sizeof *t->n_narrow);
    }
}

/* ---- one head, as kernels/probe.h sees it ------------------------------------------------------------------------ */

struct probe_head probe_case_head(struct check *c, const struct probe_case *t, int item)
{
    const struct probe_shape *s = &t->s;
    int pages = probe_pages(s->n_wide) + (s->n_tail > 0);
    int32_t *wide = check_host(c, (size_t)pages * sizeof *wide);
    for (int i = 0; i < pages; i++)
        wide[i] = t->wide[item / s->n_kv * pages + i] * s->n_kv + item % s->n_kv;
    return (struct probe_head){ .pool = t->pool,
                                .beta = t->beta,
                                .type = t->type,
                                .narrow_type = s->narrow_type,
                                .dim = s->dim,
                                .narrow = t->narrow + (size_t)item * (size_t)t->p.narrow_pages,
                                .wide = wide,
                                .n_narrow = t->n_narrow[item],
                                .n_wide = s->n_wide,
                                .scale = t->p.scale };
}

/* Queries of n records from the given one on, of the heads of an item's group. */
float *probe_case_queries(struct check *c, const struct probe_case *t, int item, int record, int n)
{
    const struct probe_shape *s = &t->s;
    size_t part = (size_t)s->group * (size_t)s->dim;
    float *q = check_host(c, (size_t)n * part * sizeof *q);
    for (int i = 0; i < n; i++) {
        size_t at = (size_t)(item / s->n_kv * t->p.n_records + record + i);
        memcpy(q + (size_t)i * part,
               t->q + (at * (size_t)s->n_kv + (size_t)(item % s->n_kv)) * part, part * sizeof *q);
    }
    return q;
}

float *probe_case_lse(const struct probe_case *t, int item, int record)
{
    const struct probe_shape *s = &t->s;
    int at = t->record_at[item / s->n_kv * t->p.n_records + record];
    char *p = t->records + (size_t)at * t->record_bytes;
    p += kv_record_lse(t->type, s->n_kv * s->group, s->dim);
    return (float *)(void *)p + item % s->n_kv * s->group;
}

/* What each query of a set sees, [n * group]. */
int32_t *probe_case_seen(struct check *c, const struct probe_case *t, int record, int n)
{
    int32_t *see = check_host(c, (size_t)(n * t->s.group) * sizeof *see);
    for (int i = 0; i < n * t->s.group; i++)
        see[i] = t->see[record + i / t->s.group];
    return see;
}

/* ---- records ----------------------------------------------------------------------------------------------------- */

/* The log-sum-exp that a record keeps is that of what its query saw of the candidates. */
static void fill_lse(struct check *c, struct probe_case *t, int item)
{
    struct probe_head h = probe_case_head(c, t, item);
    int first = 0, group = t->s.group;
    for (int k = 0; k < BE_PROBE_SETS; k++) {
        int n = t->s.n_set[k];
        struct probe_queries q = { probe_case_queries(c, t, item, first, n),
                                   probe_case_seen(c, t, first, n), n * group };
        float *o = check_host(c, (size_t)(n * group * t->s.dim) * sizeof *o);
        float *lse = check_host(c, (size_t)(n * group) * sizeof *lse);
        probe_attend(CPU_REF, &h, &q, o, lse, NULL);
        for (int i = 0; i < n; i++)
            memcpy(probe_case_lse(t, item, first + i), lse + i * group,
                   (size_t)group * sizeof *lse);
        first += n;
    }
    *probe_case_lse(t, item, first - 1) = -INFINITY; /* counts for nothing, whatever it sees */
}

static void fill_records(struct check *c, struct probe_case *t)
{
    const struct probe_shape *s = &t->s;
    int n_heads = s->n_kv * s->group, n = t->p.n_records, seen = n - s->n_ref, at = 0;
    size_t floats = (size_t)n_heads * (size_t)s->dim;
    t->record_bytes = kv_record_bytes(t->type, n_heads, s->dim);
    t->records = check_host(c, (size_t)(s->n_layers * n) * t->record_bytes);
    memset(t->records, 0xff, (size_t)(s->n_layers * n) * t->record_bytes);
    t->q = check_floats(c, (size_t)(s->n_layers * n) * floats, 2);
    t->see = check_host(c, (size_t)seen * sizeof *t->see);
    for (int k = 0; k < BE_PROBE_SETS; k++) /* from nothing to more than there is */
        for (int i = 0; i < s->n_set[k]; i++, at++)
            t->see[at] = s->n_set[k] == 1 ? s->n_wide : i * (s->n_wide + 40) / s->n_set[k];
    t->record_at = shuffled(c, s->n_layers * n);
    for (int i = 0; i < s->n_layers * n; i++) {
        float *q = t->q + (size_t)i * floats;
        if (s->copies && i >= n) {
            t->record_at[i] = t->record_at[i % n];
            memcpy(q, t->q + (size_t)(i % n) * floats, floats * sizeof *q);
            continue;
        }
        char *record = t->records + (size_t)t->record_at[i] * t->record_bytes;
        for (size_t d = 0; d < floats; d++) {
            elem_store(t->type, record, d, q[d]);
            q[d] = elem_rounded(t->type, q[d]);
        }
    }
    for (int i = 0; i < probe_kinds(s) * s->n_kv; i++)
        fill_lse(c, t, i);
}

static void fill_turns(struct check *c, struct probe_case *t)
{
    const struct probe_shape *s = &t->s;
    size_t n = (size_t)s->n_ref * (size_t)s->half;
    float *cosine = check_host(c, n * sizeof *cosine), *sine = check_host(c, n * sizeof *sine);
    for (size_t i = 0; i < n; i++) {
        double angle = 100.0 * (double)rnd_unit();
        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
    }
    t->p.cos = cosine;
    t->p.sin = sine;
}

void probe_case_open(struct check *c, struct probe_case *t, const struct probe_shape *s,
                     enum kv_type type, int n_spare)
{
    *t = (struct probe_case){ .s = *s, .type = type, .n_spare = n_spare };
    int n_records = s->n_ref;
    for (int k = 0; k < BE_PROBE_SETS; k++)
        n_records += s->n_set[k];
    t->p = (struct be_probe){
        .kv = { .type = type,
                .narrow_type = s->narrow_type,
                .n_kv_heads = s->n_kv,
                .head_dim = s->dim },
        .n_layers = s->n_layers,
        .n_heads = s->n_kv * s->group,
        .scale = 1 / sqrtf((float)s->dim),
        .n_wide = s->n_wide,
        .n_tail = s->n_tail,
        .n_records = n_records,
        .n_set = { s->n_set[0], s->n_set[1], s->n_set[2] },
        .n_ref = s->n_ref,
        .half = s->half,
        .half_split = s->half_split,
    };
    check_case(c, "%s, %d layers of %d x %d heads of %d, %d wide, tail %d, narrow %d %s, %d rows",
               kv_type_name(type), s->n_layers, s->n_kv, s->group, s->dim, s->n_wide, s->n_tail,
               s->narrow, kv_narrow_name(s->narrow_type), s->n_ref * s->group);
    fill_cache(c, t);
    fill_records(c, t);
    fill_turns(c, t);
    t->p.wide = t->wide;
    t->p.narrow = s->narrow >= 0 ? t->narrow : NULL;
    t->p.n_narrow = s->narrow >= 0 ? t->n_narrow : NULL;
    t->p.see = t->see;
}

/* ---- asking and the references' definition ----------------------------------------------------------------------- */

struct be_probe probe_case_put(struct check *c, const struct probe_case *t, int n_layers)
{
    int n = t->s.n_layers * t->p.n_records;
    const void **record = check_host(c, (size_t)n * sizeof *record);
    char *records = check_put(c, c->be, t->records, (size_t)n * t->record_bytes);
    for (int i = 0; i < n; i++)
        record[i] = records + (size_t)t->record_at[i] * t->record_bytes;
    struct be_probe p = t->p;
    p.n_layers = n_layers;
    p.record = record;
    p.kv.pool = check_put(c, c->be, t->pool, t->pool_bytes);
    p.kv.beta = check_put(c, c->be, t->beta, t->beta_bytes);
    return p;
}

static void want_turned(const struct probe_case *t, float *q)
{
    const struct probe_shape *s = &t->s;
    for (int r = 0; r < s->n_ref * s->group; r++, q += s->dim)
        for (int i = 0; i < s->half; i++) {
            size_t at = (size_t)(r / s->group * s->half + i);
            int x = s->half_split ? i : 2 * i, y = s->half_split ? i + s->half : 2 * i + 1;
            double a = (double)q[x], b = (double)q[y];
            q[x] = (float)(a * (double)t->p.cos[at] - b * (double)t->p.sin[at]);
            q[y] = (float)(a * (double)t->p.sin[at] + b * (double)t->p.cos[at]);
        }
}

struct probe_rows probe_case_rows(struct check *c, const struct probe_case *t, int item,
                                  const struct probe_head *h)
{
    const struct probe_shape *s = &t->s;
    size_t rows = (size_t)(s->n_ref * s->group);
    struct probe_rows r = { .q =
                                probe_case_queries(c, t, item, t->p.n_records - s->n_ref, s->n_ref),
                            .o = check_host(c, rows * (size_t)s->dim * sizeof *r.o),
                            .lse = check_host(c, rows * sizeof *r.lse) };
    want_turned(t, r.q);
    probe_attend(CPU_REF, h, &(struct probe_queries){ r.q, NULL, (int)rows }, r.o, r.lse, NULL);
    return r;
}
