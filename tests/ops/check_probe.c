/* Probing on a device against the plain C definition of one head (kernels/probe.h): every type of cache, odd sizes, narrow
 * and wide slots, a tail, queries that see some, all or nothing. What the references get over the candidates is checked where
 * it shows: check_press.c.
 */
#include <math.h>
#include <string.h>

#include "tests/ops/check_probe.h"

static enum check_id rule_of(enum kv_type type)
{
    return CHECK_PROBE_F16 + (int)type;
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

static struct be_probe_out out_of(struct check *c, const struct probe_case *t, int item)
{
    size_t n = (size_t)(t->n_narrow[item] + t->s.n_wide), rows = (size_t)(t->s.n_ref * t->s.group);
    struct be_probe_out o;
    float **columns[] = { &o.set[0], &o.set[1], &o.set[2], &o.mean, &o.rms, &o.beta };
    for (int i = 0; i < COUNT(columns); i++)
        *columns[i] = check_host(c, n * sizeof(float));
    o.lse = check_host(c, rows * sizeof(float));
    o.tail_lse = check_host(c, rows * sizeof(float));
    return o;
}

/* Asks the backend under test about the first n_layers; one result an item. */
static struct be_probe_out *ask(struct check *c, struct probe_case *t, int n_layers)
{
    int items = n_layers * t->s.n_kv;
    struct be_probe_out *out = check_host(c, (size_t)items * sizeof *out);
    for (int i = 0; i < items; i++)
        out[i] = out_of(c, t, i);
    struct be_probe p = probe_case_put(c, t, n_layers);
    p.out = out;
    check_that(c, rule_of(t->type), c->be->ops->probe(c->be, &p) > 0, "it does not fit");
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
            memcpy(lse + i * group, probe_case_lse(t, item, first + i),
                   (size_t)group * sizeof *lse);
        struct probe_queries q = { probe_case_queries(c, t, item, first, n),
                                   probe_case_seen(c, t, first, n), n * group };
        probe_sums(CPU_REF, h, &q, lse, ones(c, n * group, 1 / (float)(n * group)), o->set[k], NULL,
                   NULL);
        first += n;
    }
}

static void want_references(struct check *c, const struct probe_case *t, int item,
                            const struct probe_head *h, struct be_probe_out *o)
{
    const struct probe_shape *s = &t->s;
    int rows = s->n_ref * s->group, page = kv_narrow_slots(s->narrow_type);
    size_t side = kv_side_floats(s->narrow_type);
    const struct probe_rows r = probe_case_rows(c, t, item, h);
    struct probe_queries q = { r.q, NULL, rows };
    memcpy(o->lse, r.lse, (size_t)rows * sizeof *r.lse);
    struct probe_head tail = *h;
    tail.n_narrow = 0;
    tail.wide += probe_pages(s->n_wide);
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
enum { PAIR_COLUMN, PAIR_BETA, PAIR_LSE };

static void each_pair(struct check *c, const struct probe_case *t, int item,
                      const struct be_probe_out *got, const struct be_probe_out *want, pair_fn *f)
{
    size_t n = (size_t)(t->n_narrow[item] + t->s.n_wide), rows = (size_t)(t->s.n_ref * t->s.group);
    for (int k = 0; k < BE_PROBE_SETS; k++)
        f(c, t, PAIR_COLUMN, got->set[k], want->set[k], n);
    f(c, t, PAIR_COLUMN, got->mean, want->mean, n);
    f(c, t, PAIR_COLUMN, got->rms, want->rms, n);
    f(c, t, PAIR_BETA, got->beta, want->beta, n);
    f(c, t, PAIR_LSE, got->lse, want->lse, rows);
    f(c, t, PAIR_LSE, got->tail_lse, want->tail_lse, rows);
}

static void compare(struct check *c, const struct probe_case *t, int kind, const float *got,
                    const float *want, size_t n)
{
    enum check_id id = rule_of(t->type);
    if (kind == PAIR_BETA)
        check_same(c, id, "beta", got, want, n * sizeof *got);
    else
        check_near(c, id, got, want, n, kind == PAIR_LSE);
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
    probe_case_open(c, &t, s, type, 0);
    struct be_probe_out *got = ask(c, &t, s->n_layers);
    for (int i = 0; i < probe_kinds(s) * s->n_kv; i++) {
        struct probe_head h = probe_case_head(c, &t, i);
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
    int32_t *wide = check_host(c, (size_t)probe_pages(n) * sizeof *wide);
    struct be_probe_out out = { .lse = NULL };
    struct be_probe p = { .kv = { .type = KV_BF16, .n_kv_heads = 1, .head_dim = 64 },
                          .n_layers = 1,
                          .n_heads = 1,
                          .n_wide = n,
                          .wide = wide,
                          .out = &out };
    check_case(c, "probe, a head of %d slots", n);
    check_that(c, CHECK_PROBE_BF16, c->be->ops->probe(c->be, &p) == 0, "it fits");
    check_close(c, CHECK_PROBE_BF16);
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
}
