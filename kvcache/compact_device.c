/* A compaction on a device that can probe: all heads at once (be_ops.probe), so that no page comes to the host. Only results
 * do: 24 bytes a candidate, the references with what they got, and keys and values of what is kept.
 *
 * Of an 8B model (256 heads of 128, 4 query heads each) with 8,192 tokens of which 256 are kept that is 0.4 GB, three quarters
 * of it references; its pages are 1.1 GB.
 */
#include <math.h>
#include <string.h>

#include "kvcache/compact_internal.h"

bool device_can(const struct press *w)
{
    const struct kv_options *o = &w->s->opt;
    bool all_kv = o->policy->wants_kv || o->merge == KV_MERGE_MEAN;
    return w->pool->be->ops->probe != NULL && !all_kv;
}

/* ---- the question ------------------------------------------------------------------------------------------------ */

/* The host arrays of a struct be_probe. */
struct question {
    int32_t *wide, *narrow, *n_narrow, *see;
    const void **record;
    float *cos, *sin;
    struct be_probe_out *out;
    struct record *list; /* [n_records] of one layer */
};

static size_t lay_out(const struct press *w, const struct be_probe *p, struct question *q,
                      char *base)
{
    size_t used = 0, layers = (size_t)p->n_layers, heads = (size_t)w->n_heads;
    size_t records = (size_t)p->n_records, angles = (size_t)p->n_ref * (size_t)p->half;
    size_t pages = (size_t)pages_of_slots(p->n_wide) + (size_t)(p->n_tail > 0);
    q->wide = room_piece(base, &used, layers * pages * sizeof *q->wide);
    q->narrow = room_piece(base, &used, heads * (size_t)p->narrow_pages * sizeof *q->narrow);
    q->n_narrow = room_piece(base, &used, heads * sizeof *q->n_narrow);
    q->see = room_piece(base, &used, records * sizeof *q->see);
    q->record = room_piece(base, &used, layers * records * sizeof *q->record);
    q->cos = room_piece(base, &used, angles * sizeof *q->cos);
    q->sin = room_piece(base, &used, angles * sizeof *q->sin);
    q->out = room_piece(base, &used, heads * sizeof *q->out);
    q->list = room_piece(base, &used, records * sizeof *q->list);
    return used;
}

static void fill_pages(const struct press *w, const struct be_probe *p, struct question *q)
{
    size_t pages = (size_t)pages_of_slots(p->n_wide) + (size_t)(p->n_tail > 0);
    for (int l = 0; l < p->n_layers; l++)
        memcpy(q->wide + (size_t)l * pages, w->source[l].wide, pages * sizeof *q->wide);
    for (int i = 0; i < w->n_heads; i++) {
        q->n_narrow[i] = w->head[i].n - w->n_wide;
        if (q->n_narrow[i] > 0)
            memcpy(q->narrow + (size_t)i * (size_t)p->narrow_pages, w->s->narrow[w->head0 + i],
                   (size_t)pool_narrow_pages(w->pool, q->n_narrow[i]) * sizeof *q->narrow);
    }
}

/* The sets in the order of be_probe_out.set: local, global, last. */
static void fill_records(const struct press *w, const struct be_probe *p, struct question *q)
{
    int n_seen = p->n_records - p->n_ref;
    for (int l = 0; l < p->n_layers; l++) {
        const struct source *src = &w->source[l];
        struct record *r = q->list;
        r += press_local(w, src, r);
        r += press_global(w, src, r);
        *r++ = press_last(w, src);
        for (int i = 0; i < p->n_ref; i++)
            *r++ = source_reference(w, src, i);
        for (int i = 0; i < p->n_records; i++)
            q->record[(size_t)l * (size_t)p->n_records + (size_t)i] = q->list[i].at;
    }
    for (int i = 0; i < n_seen; i++)
        q->see[i] = source_seen(w, q->list[i].pos);
    for (int i = 0; i < p->n_ref; i++) {
        int turn = source_turn(w, i, q->list[n_seen + i].pos);
        for (int k = 0; k < p->half; k++) {
            double angle = (double)turn * (double)w->c->inv_freq[k];
            q->cos[(size_t)i * (size_t)p->half + (size_t)k] = (float)cos(angle);
            q->sin[(size_t)i * (size_t)p->half + (size_t)k] = (float)sin(angle);
        }
    }
}

static void fill_out(const struct press *w, struct question *q)
{
    for (int i = 0; i < w->n_heads; i++) {
        const struct press_head *h = &w->head[i];
        q->out[i] = (struct be_probe_out){ .set = { h->local, h->global, h->last },
                                           .mean = h->mean,
                                           .rms = h->rms,
                                           .beta = h->beta,
                                           .q = h->ref_q,
                                           .o = h->ref_o,
                                           .lse = h->ref_lse,
                                           .tail_lse = h->tail_lse };
    }
}

static struct be_kv cache_of(const struct press *w)
{
    const struct kv_pool *p = w->pool;
    return (struct be_kv){ .pool = p->base,
                           .beta = p->beta,
                           .type = p->shape.type,
                           .narrow_type = p->shape.narrow_type,
                           .n_kv_heads = p->shape.n_kv_heads,
                           .head_dim = p->shape.head_dim };
}

int device_probe(struct press *w, struct err *e)
{
    const struct kv_shape *s = &w->pool->shape;
    struct be *be = w->pool->be;
    struct question q;
    struct record local[KV_WINDOW_QUERIES];
    source_direct(w);
    struct be_probe p = { .kv = cache_of(w),
                          .n_layers = w->n_layers,
                          .n_heads = s->n_kv_heads * w->c->group,
                          .scale = w->c->scale,
                          .n_wide = w->n_wide,
                          .n_tail = w->n_tail,
                          .n_set = { press_local(w, &w->source[0], local),
                                     press_global(w, NULL, NULL), 1 },
                          .n_ref = w->n_ref,
                          .half = w->c->rope.half,
                          .half_split = w->c->rope.half_split };
    p.n_records = p.n_set[0] + p.n_set[1] + p.n_set[2] + p.n_ref;
    for (int i = 0; i < w->n_heads; i++) {
        int pages = pool_narrow_pages(w->pool, w->head[i].n - w->n_wide);
        p.narrow_pages = pages > p.narrow_pages ? pages : p.narrow_pages;
    }
    TRY(room_reserve(&w->c->stage, lay_out(w, &p, &q, NULL), e));
    lay_out(w, &p, &q, w->c->stage.at);
    fill_pages(w, &p, &q);
    fill_records(w, &p, &q);
    fill_out(w, &q);
    p.wide = q.wide;
    p.narrow = q.narrow;
    p.n_narrow = q.n_narrow;
    p.record = q.record;
    p.see = q.see;
    p.cos = q.cos;
    p.sin = q.sin;
    p.out = q.out;
    w->probed = be->ops->probe(be, &p);
    return be->ops->sync(be, e);
}

/* ---- what is kept ------------------------------------------------------------------------------------------------ */

static void name_slots(const struct press *w, int head, int64_t *slot)
{
    const struct kv_shape *s = &w->pool->shape;
    const struct press_head *h = &w->head[head];
    const struct source *src = &w->source[head / s->n_kv_heads];
    int n_narrow = h->n - w->n_wide, page = pool_narrow_slots(w->pool);
    for (int i = 0; i < h->n_keep; i++) {
        int j = h->keep[i], k = j - n_narrow;
        int64_t block =
            k < 0 ? w->s->narrow[w->head0 + head][j / page]
                  : (int64_t)src->wide[k / KV_PAGE] * s->n_kv_heads + head % s->n_kv_heads;
        slot[i] = block * (k < 0 ? page : KV_PAGE) + (k < 0 ? j % page : k % KV_PAGE);
        if (k < 0 && s->narrow_type == KV_NARROW_Q8)
            slot[i] = -1 - slot[i];
    }
}

int device_gather(struct press *w, struct err *e)
{
    struct be *be = w->pool->be;
    const struct be_kv kv = cache_of(w);
    size_t n = 0, used = 0;
    for (int i = 0; i < w->n_heads; i++) {
        w->head[i].kept0 = n;
        n += (size_t)w->head[i].n_keep;
    }
    size_t bytes = n * (size_t)kv.head_dim * sizeof(float);
    room_piece(NULL, &used, bytes);
    room_piece(NULL, &used, bytes);
    room_piece(NULL, &used, n * sizeof(int64_t));
    TRY(room_reserve(&w->c->stage, used, e));
    used = 0;
    w->kept_k = room_piece(w->c->stage.at, &used, bytes);
    w->kept_v = room_piece(w->c->stage.at, &used, bytes);
    int64_t *slot = room_piece(w->c->stage.at, &used, n * sizeof *slot);
    for (int i = 0; i < w->n_heads; i++)
        name_slots(w, i, slot + w->head[i].kept0);
    be->ops->kv_gather(be, &kv, slot, (int)n, w->kept_k, w->kept_v);
    return be->ops->sync(be, e);
}
