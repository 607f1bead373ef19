/* Probing on a device against the plain C definition of one head (kernels/probe.h): every type of cache, odd sizes, narrow
 * and wide slots, a tail, queries that see some, all or nothing. What nobody may read is NaN.
 */
#include <math.h>
#include <string.h>

#include "kernels/probe.h"
#include "tests/ops/check.h"
#include "tests/tools/elem.h"
#include "tests/tools/levels.h"

struct probe_shape {
    int n_layers, n_kv, group, dim, half, n_wide, n_tail, n_ref;
    int n_set[BE_PROBE_SETS];
    int narrow; /* slots of head 0, each further head has 5 more; -1: there are none anywhere */
    bool half_split;
    bool copies; /* all layers have the pages and records of the first */
    enum kv_narrow narrow_type;
};

/* A cache, its records and the question, in host memory; pool, beta and records as they will lie on the device. */
struct probe_case {
    struct probe_shape s;
    enum kv_type type;
    struct be_probe p;
    char *pool, *records;
    float *beta, *q; /* q: [layers][records][n_heads][dim], as the records hold them */
    size_t pool_bytes, beta_bytes, record_bytes, n_blocks;
    int32_t *wide, *narrow, *n_narrow, *see;
    int *record_at; /* [layers][records] its place among the records */
};

static enum check_id rule_of(enum kv_type type)
{
    return CHECK_PROBE_F16 + (int)type;
}

static int pages_of(int slots)
{
    return (slots + KV_PAGE - 1) / KV_PAGE;
}

static int kinds(const struct probe_shape *s) /* layers that have pages of their own */
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
    int n = pages_of(s->n_wide), tail = s->n_tail > 0;
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
    int pages = pages_of(s->n_wide) + (s->n_tail > 0), layers = s->n_layers;
    int page_slots = kv_narrow_slots(s->narrow_type), most = s->narrow + 5 * (s->n_kv - 1);
    int narrow = s->narrow >= 0 ? (most + page_slots - 1) / page_slots : 0;
    int n_pages = kinds(s) * pages, n_blocks = kinds(s) * narrow * s->n_kv;
    t->p.narrow_pages = narrow;
    t->n_blocks = (size_t)(n_pages * s->n_kv + n_blocks);
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

static struct probe_head head_of(struct check *c, const struct probe_case *t, int item)
{
    const struct probe_shape *s = &t->s;
    int pages = pages_of(s->n_wide) + (s->n_tail > 0);
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
static float *queries_of(struct check *c, const struct probe_case *t, int item, int record, int n)
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

static float *record_lse(const struct probe_case *t, int item, int record)
{
    const struct probe_shape *s = &t->s;
    int at = t->record_at[item / s->n_kv * t->p.n_records + record];
    char *p = t->records + (size_t)at * t->record_bytes;
    p += kv_record_lse(t->type, s->n_kv * s->group, s->dim);
    return (float *)(void *)p + item % s->n_kv * s->group;
}

/* What each query of a set sees, [n * group]. */
static int32_t *seen_of(struct check *c, const struct probe_case *t, int record, int n)
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
    struct probe_head h = head_of(c, t, item);
    int first = 0, group = t->s.group;
    for (int k = 0; k < BE_PROBE_SETS; k++) {
        int n = t->s.n_set[k];
        struct probe_queries q = { queries_of(c, t, item, first, n), seen_of(c, t, first, n),
                                   n * group };
        float *o = check_host(c, (size_t)(n * group * t->s.dim) * sizeof *o);
        float *lse = check_host(c, (size_t)(n * group) * sizeof *lse);
        probe_attend(CPU_REF, &h, &q, o, lse, NULL);
        for (int i = 0; i < n; i++)
            memcpy(record_lse(t, item, first + i), lse + i * group, (size_t)group * sizeof *lse);
        first += n;
    }
    *record_lse(t, item, first - 1) = -INFINITY; /* counts for nothing, whatever it sees */
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
    for (int i = 0; i < kinds(s) * s->n_kv; i++)
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

static void case_open(struct check *c, struct probe_case *t, const struct probe_shape *s,
                      enum kv_type type)
{
    *t = (struct probe_case){ .s = *s, .type = type };
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
    check_case(
        c, "probe, %s, %d layers of %d x %d heads of %d, %d wide, tail %d, narrow %d %s, %d rows",
        kv_type_name(type), s->n_layers, s->n_kv, s->group, s->dim, s->n_wide, s->n_tail, s->narrow,
        kv_narrow_name(s->narrow_type), s->n_ref * s->group);
    fill_cache(c, t);
    fill_records(c, t);
    fill_turns(c, t);
    t->p.wide = t->wide;
    t->p.narrow = s->narrow >= 0 ? t->narrow : NULL;
    t->p.n_narrow = s->narrow >= 0 ? t->n_narrow : NULL;
    t->p.see = t->see;
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

static struct be_probe_out out_of(struct check *c, const struct probe_case *t, int item)
{
    size_t n = (size_t)(t->n_narrow[item] + t->s.n_wide), rows = (size_t)(t->s.n_ref * t->s.group);
    struct be_probe_out o;
    float **columns[] = { &o.set[0], &o.set[1], &o.set[2], &o.mean, &o.rms, &o.beta };
    for (int i = 0; i < COUNT(columns); i++)
        *columns[i] = check_host(c, n * sizeof(float));
    o.q = check_host(c, rows * (size_t)t->s.dim * sizeof(float));
    o.o = check_host(c, rows * (size_t)t->s.dim * sizeof(float));
    o.lse = check_host(c, rows * sizeof(float));
    o.tail_lse = check_host(c, rows * sizeof(float));
    return o;
}

/* Asks the backend under test about the first n_layers; one result an item. */
static struct be_probe_out *ask(struct check *c, struct probe_case *t, int n_layers)
{
    int n = t->s.n_layers * t->p.n_records, items = n_layers * t->s.n_kv;
    struct be_probe_out *out = check_host(c, (size_t)items * sizeof *out);
    const void **record = check_host(c, (size_t)n * sizeof *record);
    char *records = check_put(c, c->be, t->records, (size_t)n * t->record_bytes);
    for (int i = 0; i < n; i++)
        record[i] = records + (size_t)t->record_at[i] * t->record_bytes;
    for (int i = 0; i < items; i++)
        out[i] = out_of(c, t, i);
    struct be_probe p = t->p;
    p.n_layers = n_layers;
    p.record = record;
    p.out = out;
    p.kv.pool = check_put(c, c->be, t->pool, t->pool_bytes);
    p.kv.beta = check_put(c, c->be, t->beta, t->beta_bytes);
    check_that(c, rule_of(t->type), c->be->ops->probe(c->be, &p), "it does not fit");
    return out;
}

/* ---- the definition ---------------------------------------------------------------------------------------------- */

static float *ones(struct check *c, int n, float x)
{
    float *p = check_host(c, (size_t)n * sizeof *p);
    for (int i = 0; i < n; i++)
        p[i] = x;
    return p;
}

static void want_sets(struct check *c, const struct probe_case *t, int item,
                      const struct probe_head *h, struct be_probe_out *o)
{
    int first = 0, group = t->s.group;
    for (int k = 0; k < BE_PROBE_SETS; k++) {
        int n = t->s.n_set[k];
        float *lse = check_host(c, (size_t)(n * group) * sizeof *lse);
        for (int i = 0; i < n; i++)
            memcpy(lse + i * group, record_lse(t, item, first + i), (size_t)group * sizeof *lse);
        struct probe_queries q = { queries_of(c, t, item, first, n), seen_of(c, t, first, n),
                                   n * group };
        probe_sums(CPU_REF, h, &q, lse, ones(c, n * group, 1 / (float)(n * group)), o->set[k], NULL,
                   NULL);
        first += n;
    }
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

static void want_references(struct check *c, const struct probe_case *t, int item,
                            const struct probe_head *h, struct be_probe_out *o)
{
    const struct probe_shape *s = &t->s;
    int rows = s->n_ref * s->group, page = kv_narrow_slots(s->narrow_type);
    size_t side = kv_side_floats(s->narrow_type);
    o->q = queries_of(c, t, item, t->p.n_records - s->n_ref, s->n_ref);
    want_turned(t, o->q);
    struct probe_queries q = { o->q, NULL, rows };
    probe_attend(CPU_REF, h, &q, o->o, o->lse, NULL);
    struct probe_head tail = *h;
    tail.n_narrow = 0;
    tail.wide += pages_of(s->n_wide);
    tail.n_wide = s->n_tail;
    float *lse = check_host(c, (size_t)rows * sizeof *lse);
    float *none = check_host(c, (size_t)(rows * s->dim) * sizeof *none);
    probe_attend(CPU_REF, &tail, &q, none, o->tail_lse, NULL);
    for (int i = 0; i < rows; i++)
        lse[i] =
            (float)((double)o->lse[i] + log1p(exp((double)o->tail_lse[i] - (double)o->lse[i])));
    probe_sums(CPU_REF, h, &q, lse, ones(c, rows, 1 / (float)rows), o->mean, o->rms, NULL);
    int n = h->n_narrow + h->n_wide;
    for (int j = 0; j < n; j++) {
        o->rms[j] = sqrtf(o->rms[j]);
        if (j < h->n_narrow)
            o->beta[j] = t->beta[(size_t)h->narrow[j / page] * side + (size_t)(j % page)];
    }
}

/* Calls f for each array of two results. */
typedef void pair_fn(struct check *c, const struct probe_case *t, int kind, const float *got,
                     const float *want, size_t n);
enum { PAIR_COLUMN, PAIR_BETA, PAIR_TURNED, PAIR_OUT, PAIR_LSE };

static void each_pair(struct check *c, const struct probe_case *t, int item,
                      const struct be_probe_out *got, const struct be_probe_out *want, pair_fn *f)
{
    size_t n = (size_t)(t->n_narrow[item] + t->s.n_wide), rows = (size_t)(t->s.n_ref * t->s.group);
    for (int k = 0; k < BE_PROBE_SETS; k++)
        f(c, t, PAIR_COLUMN, got->set[k], want->set[k], n);
    f(c, t, PAIR_COLUMN, got->mean, want->mean, n);
    f(c, t, PAIR_COLUMN, got->rms, want->rms, n);
    f(c, t, PAIR_BETA, got->beta, want->beta, n);
    f(c, t, PAIR_TURNED, got->q, want->q, rows * (size_t)t->s.dim);
    f(c, t, PAIR_OUT, got->o, want->o, rows * (size_t)t->s.dim);
    f(c, t, PAIR_LSE, got->lse, want->lse, rows);
    f(c, t, PAIR_LSE, got->tail_lse, want->tail_lse, rows);
}

static void compare(struct check *c, const struct probe_case *t, int kind, const float *got,
                    const float *want, size_t n)
{
    enum check_id id = rule_of(t->type);
    size_t dim = (size_t)t->s.dim;
    if (kind == PAIR_BETA)
        check_same(c, id, "beta", got, want, n * sizeof *got);
    else if (kind == PAIR_TURNED)
        check_near(c, CHECK_ROPE, got, want, n, 1);
    else if (kind != PAIR_OUT)
        check_near(c, id, got, want, n, kind == PAIR_LSE);
    for (size_t i = 0; kind == PAIR_OUT && i < n; i += dim) {
        double sum = 0;
        for (size_t d = 0; d < dim; d++)
            sum += (double)want[i + d] * (double)want[i + d];
        check_near(c, id, got + i, want + i, dim, sqrt(sum / (double)dim) + 1e-30);
    }
}

static void compare_bits(struct check *c, const struct probe_case *t, int kind, const float *got,
                         const float *want, size_t n)
{
    (void)kind;
    check_same(c, rule_of(t->type), "a head in other company", got, want, n * sizeof *got);
}

/* The heads against the definition, then the first layer alone, or all layers if they are copies, against its bits. */
static void check_shape(struct check *c, const struct probe_shape *s, enum kv_type type)
{
    struct probe_case t;
    case_open(c, &t, s, type);
    struct be_probe_out *got = ask(c, &t, s->n_layers);
    for (int i = 0; i < kinds(s) * s->n_kv; i++) {
        struct probe_head h = head_of(c, &t, i);
        struct be_probe_out want = out_of(c, &t, i);
        want_sets(c, &t, i, &h, &want);
        want_references(c, &t, i, &h, &want);
        each_pair(c, &t, i, &got[i], &want, compare);
    }
    struct be_probe_out *alone = s->copies ? got : ask(c, &t, 1);
    for (int i = 0; i < (s->copies ? s->n_layers : 1) * s->n_kv; i++)
        each_pair(c, &t, i, &got[i], &alone[i % s->n_kv], compare_bits);
    check_close(c, rule_of(type));
}

/* A head of three million slots does not fit the scratch. */
static void check_too_long(struct check *c)
{
    const int n = 3 << 20;
    int32_t *wide = check_host(c, (size_t)pages_of(n) * sizeof *wide);
    struct be_probe_out out = { .q = NULL };
    struct be_probe p = { .kv = { .type = KV_BF16, .n_kv_heads = 1, .head_dim = 64 },
                          .n_layers = 1,
                          .n_heads = 1,
                          .n_wide = n,
                          .wide = wide,
                          .out = &out };
    check_case(c, "probe, a head of %d slots", n);
    check_that(c, CHECK_PROBE_BF16, !c->be->ops->probe(c->be, &p), "it fits");
    check_close(c, CHECK_PROBE_BF16);
}

/* ---- chosen slots ------------------------------------------------------------------------------------------------ */

static void check_gather(struct check *c, enum kv_type type, enum kv_narrow narrow, int dim, int n)
{
    enum { BLOCKS = 9 };
    struct probe_case t = { .s = { .dim = dim }, .type = type };
    bool q8 = narrow == KV_NARROW_Q8;
    int page = kv_narrow_slots(narrow);
    size_t bytes = BLOCKS * kv_block_bytes(type, dim), floats = (size_t)n * (size_t)dim;
    size_t sides = BLOCKS * kv_side_floats(narrow) * sizeof *t.beta;
    check_case(c, "kv_gather, %s %s, %d slots of %d", kv_type_name(type), kv_narrow_name(narrow), n,
               dim);
    t.pool = check_host(c, bytes);
    t.beta = check_host(c, sides);
    int32_t all[BLOCKS];
    for (int b = 0; b < BLOCKS; b++) {
        all[b] = b;
        (q8 ? fill_q8 : fill_block)(c, &t, b, page);
    }
    int64_t *place = check_host(c, (size_t)n * sizeof *place);
    float *k = check_host(c, floats * sizeof *k), *v = check_host(c, floats * sizeof *v);
    float *want_k = check_host(c, floats * sizeof *k), *want_v = check_host(c, floats * sizeof *v);
    struct probe_head h = { .pool = t.pool,
                            .beta = t.beta,
                            .type = type,
                            .narrow_type = narrow,
                            .dim = dim,
                            .narrow = all,
                            .n_narrow = BLOCKS * page };
    for (int i = 0; i < n; i++) {
        int32_t slot = (int32_t)(rnd_bits() % (uint32_t)(BLOCKS * page));
        place[i] = q8 ? -1 - slot : slot;
        probe_gather(&h, &slot, 1, want_k + (size_t)i * (size_t)dim,
                     want_v + (size_t)i * (size_t)dim);
    }
    struct be_kv kv = { .pool = check_put(c, c->be, t.pool, bytes),
                        .beta = check_put(c, c->be, t.beta, sides),
                        .type = type,
                        .narrow_type = narrow,
                        .n_kv_heads = 1,
                        .head_dim = dim };
    c->be->ops->kv_gather(c->be, &kv, place, n, k, v);
    check_same(c, CHECK_KV_GATHER, "keys", k, want_k, floats * sizeof *k);
    check_same(c, CHECK_KV_GATHER, "values", v, want_v, floats * sizeof *v);
    check_close(c, CHECK_KV_GATHER);
}

void check_probe(struct check *c)
{
    static const struct probe_shape shape[] = {
        { 2, 2, 3, 64, 32, 96, 7, 9, { 5, 1, 20 }, -1, true, false, KV_NARROW_SAME },
        { 1, 3, 1, 80, 16, 33, 0, 17, { 1, 1, 3 }, 3, false, false, KV_NARROW_SAME },
        { 2, 1, 4, 128, 64, 160, 31, 20, { 32, 1, 40 }, 70, true, false, KV_NARROW_SAME },
        { 1, 1, 2, 6, 3, 65, 1, 1, { 2, 2, 2 }, 0, false, false, KV_NARROW_SAME },
        { 2, 2, 7, 48, 24, 1056, 16, 12, { 32, 1, 33 }, 600, true, false, KV_NARROW_SAME },
        { 1, 2, 1, 256, 128, 40, 3, 33, { 7, 1, 9 }, 31, true, false, KV_NARROW_SAME },
        { 1, 1, 16, 512, 256, 70, 32, 3, { 3, 1, 4 }, 64, false, false, KV_NARROW_SAME },
        { 1, 2, 2, 32, 16, 0, 5, 6, { 2, 1, 3 }, 130, true, false, KV_NARROW_SAME },
        /* more than fits the scratch at once */
        { 80, 1, 16, 512, 0, 32, 0, 16, { 1, 1, 1 }, -1, true, true, KV_NARROW_SAME },
    };
    check_that(c, CHECK_KV_GATHER, (c->be->ops->probe == NULL) == (c->be->ops->kv_gather == NULL),
               "probe and kv_gather come together");
    if (c->be->ops->probe == NULL)
        return;
    for (int i = 0; i < (c->small ? 4 : COUNT(shape)); i++)
        for (int type = 0; type < (shape[i].copies ? 1 : KV_TYPE_N); type++) {
            struct probe_shape s = shape[i];
            check_shape(c, &s, (enum kv_type)type);
            s.narrow_type = KV_NARROW_Q8;
            if (s.narrow > 0 && type != KV_F32)
                check_shape(c, &s, (enum kv_type)type);
        }
    check_too_long(c);
    for (int type = 0; type < KV_TYPE_N; type++) {
        check_gather(c, (enum kv_type)type, KV_NARROW_SAME, 6, 1);
        check_gather(c, (enum kv_type)type, KV_NARROW_SAME, 80, 37);
        if (!c->small)
            check_gather(c, (enum kv_type)type, KV_NARROW_SAME, 512, 16700); /* more than fits */
        if (type != KV_F32)
            check_gather(c, (enum kv_type)type, KV_NARROW_Q8, 80, 50);
    }
}
