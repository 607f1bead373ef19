#include "tests/tools/world.h"

#include <math.h>
#include <string.h>

#include "kernels/probe.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

static float *floats(size_t n, float scale)
{
    float *p = mem_alloc(n * sizeof(float));
    ASSERT(p != NULL);
    rnd_fill(p, n, scale);
    return p;
}

/* Behind the slots of a page NaN takes the places of scales and biases that nobody may read. */
static void fill_q8(struct world *w, int32_t block, const float *k, const float *v, int n)
{
    float *side = w->beta + (size_t)block * kv_side_floats(KV_NARROW_Q8);
    char *page = (char *)w->kv.pool + (size_t)block * kv_block_bytes(w->kv.type, w->s.dim);
    probe_write_q8(page, side, w->s.dim, k, v, n);
    for (int t = 0; t < KV_PAGE_Q8; t++) {
        side[t] = t < n ? rnd_unit() : NAN;
        if (t >= n)
            side[KV_PAGE_Q8 + t] = NAN;
        if (t >= (n + 1) / 2 * 2)
            side[2 * KV_PAGE_Q8 + t] = NAN;
    }
}

/* Narrow slots of the cache's type are written as wide pages of a model with one KV head. */
static void fill_narrow(struct world *w, struct be *ref, int i, int h, int32_t *next)
{
    int n = w->n_narrow[i][h], page = kv_narrow_slots(w->s.narrow_type);
    w->narrow_of[i][h] = w->narrow[i][h];
    for (int p = 0; p * page < n; p++)
        w->narrow[i][h][p] = --*next;
    struct be_seq seq = { .n_rows = n, .kv = { .wide = w->narrow[i][h] } };
    struct be_kv kv = w->kv;
    kv.n_kv_heads = 1;
    kv.n_seqs = 1;
    kv.seqs = &seq;
    float *k = floats((size_t)(n * w->s.dim) + 1, 1), *v = floats((size_t)(n * w->s.dim) + 1, 1);
    if (w->s.narrow_type == KV_NARROW_SAME)
        ref->ops->kv_append(ref, &kv, k, v);
    for (int at = 0; at < n && w->s.narrow_type == KV_NARROW_Q8; at += page)
        fill_q8(w, w->narrow[i][h][at / page], k + at * w->s.dim, v + at * w->s.dim,
                n - at < page ? n - at : page);
    mem_free(k);
    mem_free(v);
}

static void fill_wide(struct world *w, struct be *ref)
{
    for (int i = 0; i < w->s.n_seqs; i++) {
        struct be_seq all = w->seqs[i];
        all.row0 = 0;
        all.pos0 = w->s.from[i];
        all.n_rows = w->s.len[i] - w->s.from[i];
        size_t n = (size_t)all.n_rows * (size_t)(w->s.n_kv * w->s.dim);
        w->k[i] = floats(n + 1, 1);
        w->v[i] = floats(n + 1, 1);
        struct be_kv kv = w->kv;
        kv.n_seqs = 1;
        kv.seqs = &all;
        ref->ops->kv_append(ref, &kv, w->k[i], w->v[i]);
    }
}

static void open_pool(struct world *w, enum kv_type type)
{
    const struct world_shape *s = &w->s;
    size_t pages = 8;
    for (int i = 0; i < s->n_seqs; i++)
        pages += (size_t)(s->len[i] / KV_PAGE + 1 + s->narrow[i] / KV_PAGE + 3);
    w->n_blocks = pages * (size_t)s->n_kv;
    w->pool_bytes = w->n_blocks * kv_block_bytes(type, s->dim);
    w->beta_bytes = w->n_blocks * kv_side_floats(s->narrow_type) * sizeof(float);
    w->beta = floats(w->beta_bytes / sizeof(float), 1);
    w->kv = (struct be_kv){ .type = type,
                            .narrow_type = s->narrow_type,
                            .n_kv_heads = s->n_kv,
                            .head_dim = s->dim,
                            .n_seqs = s->n_seqs,
                            .seqs = w->seqs };
    w->kv.pool = mem_alloc(w->pool_bytes);
    ASSERT(w->kv.pool != NULL);
    memset(w->kv.pool, 0xff, w->pool_bytes);
}

void world_open(struct world *w, struct be *ref, const struct world_shape *s, enum kv_type type)
{
    memset(w, 0, sizeof(*w));
    w->s = *s;
    w->n_heads = s->n_kv * s->group;
    open_pool(w, type);
    int32_t page = 0, block = (int32_t)w->n_blocks;
    bool any_narrow = false;
    for (int i = 0; i < s->n_seqs; i++) {
        int n_pages = (s->len[i] - s->from[i] + KV_PAGE - 1) / KV_PAGE;
        for (int p = 0; p < n_pages; p++)
            w->wide[i][n_pages - 1 - p] = page++;
        w->seqs[i] = (struct be_seq){ .row0 = w->n_rows,
                                      .n_rows = s->rows[i],
                                      .pos0 = s->len[i] - s->rows[i],
                                      .kv = { .wide = w->wide[i], .wide_pos0 = s->from[i] } };
        w->n_rows += s->rows[i];
        for (int h = 0; h < s->n_kv && s->narrow[i]; h++) {
            w->n_narrow[i][h] = (s->narrow[i] < 0 ? 0 : s->narrow[i]) + 3 * h;
            fill_narrow(w, ref, i, h, &block);
            w->seqs[i].kv.narrow = w->narrow_of[i];
            w->seqs[i].kv.n_narrow = w->n_narrow[i];
            any_narrow = true;
        }
    }
    ASSERT(page * s->n_kv <= block);
    fill_wide(w, ref);
    w->kv.beta = any_narrow ? w->beta : NULL;
    size_t heads = (size_t)w->n_rows * (size_t)w->n_heads;
    w->q = floats(heads * (size_t)s->dim, 4);
    w->out = floats(heads * (size_t)s->dim, 1);
    w->lse = floats(heads, 1);
}

void world_close(struct world *w)
{
    for (int i = 0; i < w->s.n_seqs; i++) {
        mem_free(w->k[i]);
        mem_free(w->v[i]);
    }
    mem_free(w->kv.pool);
    mem_free(w->beta);
    mem_free(w->q);
    mem_free(w->out);
    mem_free(w->lse);
}

struct be_attend world_ask(const struct world *w, float *out, float *lse)
{
    return (struct be_attend){ .kv = w->kv,
                               .q = w->q,
                               .out = out,
                               .lse = lse,
                               .n_heads = w->n_heads,
                               .scale = 1.0f / sqrtf((float)w->s.dim),
                               .window = w->s.window };
}

size_t world_floats(const struct world *w)
{
    return (size_t)w->n_rows * (size_t)(w->n_heads * w->s.dim);
}
