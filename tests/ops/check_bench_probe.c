/* Speed of probing and pressing (be_ops.probe, be_ops.press) on a device, for `checkops --bench`: eight layers of
 * Llama-3.1-8B, with as many queries as pressing a prompt takes, and the budget that it is pressed to.
 */
#include <math.h>
#include <stdio.h>

#include "tests/ops/check.h"
#include "tests/ops/check_bench.h"

enum { PROBE_LAYERS = 8, PROBE_REFS = 256, PROBE_HEADS_MOST = PROBE_LAYERS * 8, PRESS_KEEP = 256 };
static const int probe_sets[BE_PROBE_SETS] = { 32, 224, 1 };

static void call_probe(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    (void)i;
    (void)step;
    ASSERT(b->be->ops->probe(b->be, t->more) > 0);
}

static void call_press(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    (void)i;
    (void)step;
    b->be->ops->press(b->be, t->more);
}

/* Both questions and their arrays. */
struct question {
    struct be_probe probe;
    struct be_press press;
    struct be_probe_out out[PROBE_HEADS_MOST];
    int32_t n_keep[PROBE_HEADS_MOST], keep[PROBE_HEADS_MOST * PRESS_KEEP];
    int32_t block[PROBE_HEADS_MOST * PRESS_KEEP / KV_PAGE];
    bool exact[PROBE_HEADS_MOST * PRESS_KEEP];
    float low[PROBE_HEADS_MOST * PRESS_KEEP], high[PROBE_HEADS_MOST * PRESS_KEEP];
    int32_t *wide, *see;
    const void **record;
    float *angle, *weight, *room;
};

static struct be_probe probe_of(const struct shape *s, enum kv_type type, int depth)
{
    struct be_probe p = {
        .kv = { .type = type, .n_kv_heads = s->kv_heads, .head_dim = s->head_dim },
        .n_layers = PROBE_LAYERS,
        .n_heads = s->heads,
        .scale = 1 / sqrtf((float)s->head_dim),
        .n_wide = depth,
        .n_records = PROBE_REFS,
        .n_ref = PROBE_REFS,
        .half = s->head_dim / 2,
        .half_split = true
    };
    for (int k = 0; k < BE_PROBE_SETS; k++) {
        p.n_set[k] = probe_sets[k];
        p.n_records += probe_sets[k];
    }
    return p;
}

/* Pages in order, records at the pool's front: it is as random as any other memory. */
static void fill_probe(struct question *q, const struct shape *s)
{
    struct be_probe *p = &q->probe;
    size_t bytes = kv_record_bytes(p->kv.type, s->heads, s->head_dim), n = (size_t)p->n_wide;
    size_t rows = (size_t)(p->n_ref * s->heads / s->kv_heads);
    float *out = q->room;
    for (int i = 0; i < PROBE_LAYERS * p->n_wide / KV_PAGE; i++)
        q->wide[i] = i;
    for (int i = 0; i < PROBE_LAYERS * p->n_records; i++)
        q->record[i] = (const char *)p->kv.pool + (size_t)i * bytes;
    for (int k = 0, at = 0; k < BE_PROBE_SETS; k++)
        for (int i = 0; i < probe_sets[k]; i++)
            q->see[at++] = k == 1 ? (i + 1) * p->n_wide / probe_sets[k] : p->n_wide;
    for (int i = 0; i < p->n_ref * p->half; i++)
        q->angle[i] = 0.7f;
    for (int i = 0; i < PROBE_LAYERS * s->kv_heads; i++) {
        struct be_probe_out *o = &q->out[i];
        float **column[] = { &o->set[0], &o->set[1], &o->set[2], &o->mean, &o->rms, &o->beta };
        for (int k = 0; k < COUNT(column); k++, out += n)
            *column[k] = out;
        o->lse = out;
        o->tail_lse = out + rows;
        out += 2 * rows;
    }
    p->wide = q->wide;
    p->see = q->see;
    p->record = q->record;
    p->cos = p->sin = q->angle;
    p->out = q->out;
}

/* Every so-many-th slot stays, every other one exact; into pages behind the wide ones. */
static void fill_press(struct question *q, const struct shape *s)
{
    int depth = q->probe.n_wide, heads = PROBE_LAYERS * s->kv_heads;
    size_t rows = (size_t)(PROBE_REFS * s->heads / s->kv_heads) * (size_t)heads;
    for (int i = 0; i < heads; i++)
        q->n_keep[i] = PRESS_KEEP;
    for (int i = 0; i < heads * PRESS_KEEP; i++) {
        q->keep[i] = (int)((int64_t)(i % PRESS_KEEP) * depth / PRESS_KEEP);
        q->exact[i] = i % 2 == 0;
        q->low[i] = 0.14f;
        q->high[i] = 54;
    }
    for (int i = 0; i < heads * PRESS_KEEP / KV_PAGE; i++)
        q->block[i] = heads * depth / KV_PAGE + i;
    for (size_t i = 0; i < rows; i++)
        q->weight[i] = 1;
    q->press = (struct be_press){ .asked = &q->probe,
                                  .n_keep = q->n_keep,
                                  .keep = q->keep,
                                  .exact = q->exact,
                                  .block = q->block,
                                  .low = q->low,
                                  .high = q->high,
                                  .weight = q->weight,
                                  .rounds = 10,
                                  .values = true,
                                  .lambda = 0.02f };
}

/* What comes to the host counts as bytes, too. */
static void measure_probe(struct bench *b, const struct question *q)
{
    const struct shape *s = b->s;
    const struct be_probe *p = &q->probe;
    double group = (double)s->heads / s->kv_heads, rows = PROBE_REFS * group, seen = 0;
    double dim = s->head_dim, depth = p->n_wide, items = (double)PROBE_LAYERS * s->kv_heads;
    for (int k = 0; k < BE_PROBE_SETS; k++)
        seen += (k == 1 ? 0.5 : 1) * probe_sets[k] * group;
    struct speed t = { .op = "probe",
                       .form = kv_type_name(p->kv.type),
                       .call = call_probe,
                       .more = p,
                       .copies = 1,
                       .n = (int)rows,
                       .peak = BOUND_BF16,
                       .ops = items * depth * dim * (6 * rows + 2 * seen) };
    t.bytes = items * (depth * dim * 2 * (double)kv_elem_bytes(p->kv.type) +
                       (6 * depth + 2 * rows) * sizeof(float));
    (void)snprintf(t.shape, sizeof t.shape, "%d heads at %d", (int)items, p->n_wide);
    bench_measure(b, &t);
}

/* Bytes: what the references read of the cache; nearly all else stays in L2. */
static void measure_press(struct bench *b, const struct question *q)
{
    const struct shape *s = b->s;
    const struct be_probe *p = &q->probe;
    double rows = (double)PROBE_REFS * s->heads / s->kv_heads, n = PRESS_KEEP, m = n / 2;
    double dim = s->head_dim, depth = p->n_wide, items = (double)PROBE_LAYERS * s->kv_heads;
    struct speed t = { .op = "press",
                       .form = kv_type_name(p->kv.type),
                       .call = call_press,
                       .more = &q->press,
                       .copies = 1,
                       .n = (int)rows,
                       .peak = BOUND_BF16 };
    t.ops = items *
            (4 * rows * dim * (depth + n) + rows * m * (m + 2 * dim) + m * m * (m / 3 + 2 * dim));
    t.bytes = items * (depth + n) * dim * 2 * (double)kv_elem_bytes(p->kv.type);
    (void)snprintf(t.shape, sizeof t.shape, "%d heads at %d to %d", (int)items, p->n_wide,
                   PRESS_KEEP);
    bench_measure(b, &t);
}

static void free_arrays(struct question *q)
{
    mem_free(q->room);
    mem_free(q->weight);
    mem_free(q->angle);
    mem_free(q->record);
    mem_free(q->see);
    mem_free(q->wide);
}

static bool alloc_arrays(struct question *q, const struct shape *s)
{
    const struct be_probe *p = &q->probe;
    size_t heads = (size_t)(PROBE_LAYERS * s->kv_heads), n = (size_t)p->n_wide;
    size_t rows = (size_t)(PROBE_REFS * s->heads / s->kv_heads);
    q->wide = mem_alloc((size_t)(PROBE_LAYERS * p->n_wide / KV_PAGE) * sizeof *q->wide);
    q->see = mem_alloc((size_t)p->n_records * sizeof *q->see);
    q->record = mem_alloc((size_t)(PROBE_LAYERS * p->n_records) * sizeof *q->record);
    q->angle = mem_alloc((size_t)(PROBE_REFS * p->half) * sizeof *q->angle);
    q->weight = mem_alloc(heads * rows * sizeof *q->weight);
    q->room = mem_alloc(heads * (6 * n + 2 * rows) * sizeof *q->room);
    return q->wide != NULL && q->see != NULL && q->record != NULL && q->angle != NULL &&
           q->weight != NULL && q->room != NULL;
}

/* Some layers of a prompt of `depth` tokens. */
static void bench_one(struct bench *b, enum kv_type type, int depth)
{
    static struct question q;
    const struct shape *s = b->s;
    size_t blocks = (size_t)(PROBE_LAYERS * s->kv_heads) * (size_t)((depth + PRESS_KEEP) / KV_PAGE);
    size_t pages = blocks * kv_block_bytes(type, s->head_dim);
    size_t sides = blocks * kv_side_floats(KV_NARROW_SAME) * sizeof(float);
    q = (struct question){ .probe = probe_of(s, type, depth) };
    size_t records =
        (size_t)(PROBE_LAYERS * q.probe.n_records) * kv_record_bytes(type, s->heads, s->head_dim);
    struct caches c = { .type = type, .bytes = pages > records ? pages : records };
    float *side = b->be->ops->alloc(b->be, sides);
    if (side != NULL && alloc_arrays(&q, s) && bench_caches(b, &c, c.bytes)) {
        q.probe.kv.pool = c.pool;
        q.probe.kv.beta = side;
        fill_probe(&q, s);
        fill_press(&q, s);
        measure_probe(b, &q);
        measure_press(b, &q);
        b->be->ops->free(b->be, c.pool, c.bytes);
    }
    b->be->ops->free(b->be, side, sides);
    free_arrays(&q);
}

void bench_probes(struct bench *b)
{
    for (int type = 0; type < KV_F32 && b->be->ops->probe != NULL; type++)
        for (int d = 0; d < b->s->n_depths; d++)
            bench_one(b, type, b->s->depth[d]);
}
