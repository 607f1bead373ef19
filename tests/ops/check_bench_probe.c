/* Speed of probing (be_ops.probe) on a device, for `checkops --bench`: eight layers of Llama-3.1-8B, with as many queries as
 * pressing a prompt takes.
 */
#include <math.h>
#include <stdio.h>

#include "tests/ops/check.h"
#include "tests/ops/check_bench.h"

enum { PROBE_LAYERS = 8, PROBE_REFS = 256 };
static const int probe_sets[BE_PROBE_SETS] = { 32, 224, 1 };

static void call_probe(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    (void)i;
    (void)step;
    ASSERT(b->be->ops->probe(b->be, t->more));
}

/* Pages in order, records at the pool's front: it is as random as any other memory. */
static void fill_probe(const struct bench *b, struct be_probe *p, int32_t *wide, int32_t *see,
                       const void **record, float *angle, float *out)
{
    const struct shape *s = b->s;
    size_t bytes = kv_record_bytes(p->kv.type, s->heads, s->head_dim), n = (size_t)p->n_wide;
    size_t rows = (size_t)(p->n_ref * s->heads / s->kv_heads), dims = rows * (size_t)s->head_dim;
    for (int i = 0; i < PROBE_LAYERS * p->n_wide / KV_PAGE; i++)
        wide[i] = i;
    for (int i = 0; i < PROBE_LAYERS * p->n_records; i++)
        record[i] = (const char *)p->kv.pool + (size_t)i * bytes;
    for (int k = 0, at = 0; k < BE_PROBE_SETS; k++)
        for (int i = 0; i < probe_sets[k]; i++)
            see[at++] = k == 1 ? (i + 1) * p->n_wide / probe_sets[k] : p->n_wide;
    for (int i = 0; i < p->n_ref * p->half; i++)
        angle[i] = 0.7f;
    for (int i = 0; i < PROBE_LAYERS * s->kv_heads; i++) {
        struct be_probe_out *o = &p->out[i];
        float **column[] = { &o->set[0], &o->set[1], &o->set[2], &o->mean, &o->rms, &o->beta };
        for (int k = 0; k < COUNT(column); k++, out += n)
            *column[k] = out;
        *o = (struct be_probe_out){ .set = { o->set[0], o->set[1], o->set[2] },
                                    .mean = o->mean,
                                    .rms = o->rms,
                                    .beta = o->beta,
                                    .q = out,
                                    .o = out + dims,
                                    .lse = out + 2 * dims,
                                    .tail_lse = out + 2 * dims + rows };
        out += 2 * dims + 2 * rows;
    }
    p->wide = wide;
    p->see = see;
    p->record = record;
    p->cos = p->sin = angle;
}

/* Some layers of a prompt of `depth` tokens; what comes to the host counts as bytes, too. */
static void bench_probe(struct bench *b, enum kv_type type, int depth)
{
    const struct shape *s = b->s;
    struct be_probe_out outs[PROBE_LAYERS * 8];
    struct be_probe p = {
        .kv = { .type = type, .n_kv_heads = s->kv_heads, .head_dim = s->head_dim },
        .n_layers = PROBE_LAYERS,
        .n_heads = s->heads,
        .scale = 1 / sqrtf((float)s->head_dim),
        .n_wide = depth,
        .n_records = PROBE_REFS,
        .n_ref = PROBE_REFS,
        .half = s->head_dim / 2,
        .half_split = true,
        .out = outs
    };
    struct caches c = { .type = type };
    struct speed t = { .op = "probe", .form = kv_type_name(type), .call = call_probe, .more = &p };
    double rows = (double)PROBE_REFS * s->heads / s->kv_heads, dim = s->head_dim, seen = 0;
    double out = 6.0 * depth + rows * (2 * dim + 2), items = (double)PROBE_LAYERS * s->kv_heads;
    for (int k = 0; k < BE_PROBE_SETS; k++) {
        p.n_set[k] = probe_sets[k];
        p.n_records += probe_sets[k];
        seen += (k == 1 ? 0.5 : 1) * probe_sets[k] * s->heads / s->kv_heads;
    }
    t.copies = 1;
    t.n = (int)rows;
    t.peak = BOUND_BF16;
    t.ops = items * depth * dim * (6 * rows + 2 * seen);
    t.bytes = items * (depth * dim * 2 * (double)kv_elem_bytes(type) + out * 4);
    (void)snprintf(t.shape, sizeof t.shape, "%d heads at %d", (int)items, depth);
    size_t pages =
        (size_t)(PROBE_LAYERS * depth / KV_PAGE * s->kv_heads) * kv_block_bytes(type, s->head_dim);
    size_t records =
        (size_t)(PROBE_LAYERS * p.n_records) * kv_record_bytes(type, s->heads, s->head_dim);
    c.bytes = pages > records ? pages : records;
    int32_t *wide = mem_alloc((size_t)(PROBE_LAYERS * depth / KV_PAGE) * sizeof *wide);
    int32_t *see = mem_alloc((size_t)p.n_records * sizeof *see);
    const void **record = mem_alloc((size_t)(PROBE_LAYERS * p.n_records) * sizeof *record);
    float *angle = mem_alloc((size_t)(PROBE_REFS * p.half) * sizeof *angle);
    float *room = mem_alloc((size_t)(items * out) * sizeof *room);
    if (wide != NULL && see != NULL && record != NULL && angle != NULL && room != NULL &&
        bench_caches(b, &c, c.bytes)) {
        p.kv.pool = c.pool;
        fill_probe(b, &p, wide, see, record, angle, room);
        bench_measure(b, &t);
        b->be->ops->free(b->be, c.pool, c.bytes);
    }
    mem_free(room);
    mem_free(angle);
    mem_free(record);
    mem_free(see);
    mem_free(wide);
}

void bench_probes(struct bench *b)
{
    for (int type = 0; type < KV_F32 && b->be->ops->probe != NULL; type++)
        for (int d = 0; d < b->s->n_depths; d++)
            bench_probe(b, type, b->s->depth[d]);
}
