/* A compaction on a device that can: all heads at once are probed (be_ops.probe) and, when the host has chosen, fitted and
 * written (be_ops.press), so that no page goes over the bus. Only numbers do that scores and choice are made of: 24 bytes a
 * candidate, 8 a row of references; and back what was chosen, 13 bytes a slot, and what a row counts.
 *
 * Of an 8B model (256 heads of 128, 4 query heads each) with 8,192 tokens of which 256 are kept that is 53 MB; its pages are
 * 1.1 GB.
 */
#include <math.h>
#include <string.h>

#include "kvcache/compact_internal.h"
#include "kvcache/fit.h"

bool device_can(const struct press *w)
{
    const struct kv_options *o = &w->s->opt;
    bool own = o->merge == KV_MERGE_DEFAULT || o->merge == KV_MERGE_MEAN;
    return w->pool->be->ops->probe != NULL && !o->policy->wants_kv && !own;
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

/* But for the tables. */
static struct be_probe ask(const struct press *w)
{
    const struct kv_shape *s = &w->pool->shape;
    struct record local[KV_WINDOW_QUERIES];
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
    return p;
}

int device_probe(struct press *w, struct err *e)
{
    struct be *be = w->pool->be;
    struct be_probe *p = &w->asked;
    struct question q;
    source_direct(w);
    *p = ask(w);
    TRY(room_reserve(&w->c->stage, lay_out(w, p, &q, NULL), e));
    lay_out(w, p, &q, w->c->stage.at);
    fill_pages(w, p, &q);
    fill_records(w, p, &q);
    fill_out(w, &q);
    p->wide = q.wide;
    p->narrow = q.narrow;
    p->n_narrow = q.n_narrow;
    p->record = q.record;
    p->see = q.see;
    p->cos = q.cos;
    p->sin = q.sin;
    p->out = q.out;
    w->keep_most = be->ops->probe(be, p);
    return be->ops->sync(be, e);
}

/* ---- the answer -------------------------------------------------------------------------------------------------- */

/* The host arrays of a struct be_press. */
struct answer {
    int32_t *n_keep, *keep, *block;
    bool *exact;
    float *low, *high, *weight;
};

static size_t lay_out_answer(const struct press *w, struct answer *a, char *base)
{
    size_t used = 0, slots = 0, blocks = 0, heads = (size_t)w->n_heads;
    size_t rows = (size_t)w->n_ref * (size_t)w->c->group;
    for (int i = 0; i < w->n_heads; i++) {
        slots += (size_t)w->head[i].n_keep;
        blocks += (size_t)pool_narrow_pages(w->pool, w->head[i].n_keep);
    }
    a->n_keep = room_piece(base, &used, heads * sizeof *a->n_keep);
    a->keep = room_piece(base, &used, slots * sizeof *a->keep);
    a->block = room_piece(base, &used, blocks * sizeof *a->block);
    a->exact = room_piece(base, &used, slots * sizeof *a->exact);
    a->low = room_piece(base, &used, slots * sizeof *a->low);
    a->high = room_piece(base, &used, slots * sizeof *a->high);
    a->weight = room_piece(base, &used, heads * rows * sizeof *a->weight);
    return used;
}

/* s: which pages are to be written. */
static void fill_answer(const struct press *w, const struct kv_seq *s, const struct answer *a)
{
    size_t rows = (size_t)w->n_ref * (size_t)w->c->group, slot = 0, block = 0;
    for (int i = 0; i < w->n_heads; i++) {
        const struct press_head *h = &w->head[i];
        size_t n = (size_t)h->n_keep, pages = (size_t)pool_narrow_pages(w->pool, h->n_keep);
        a->n_keep[i] = h->n_keep;
        memcpy(a->keep + slot, h->keep, n * sizeof *a->keep);
        memcpy(a->exact + slot, h->exact, n * sizeof *a->exact);
        memcpy(a->block + block, s->narrow[w->head0 + i], pages * sizeof *a->block);
        memcpy(a->weight + (size_t)i * rows, h->ref_weight, rows * sizeof *a->weight);
        for (size_t c = 0; c < n; c++)
            kv_fit_range(h->exact[c], h->beta[h->keep[c]], w->s->n_tokens, &a->low[slot + c],
                         &a->high[slot + c]);
        slot += n;
        block += pages;
    }
}

bool device_fits(const struct press *w)
{
    int most = 0;
    for (int i = 0; i < w->n_heads; i++)
        most = w->head[i].n_keep > most ? w->head[i].n_keep : most;
    return w->keep_most > 0 && most <= w->keep_most;
}

int device_write(struct press *w, const struct kv_seq *s, struct err *e)
{
    const struct kv_options *o = &w->s->opt;
    struct be *be = w->pool->be;
    struct answer a;
    bool values = o->merge == KV_MERGE_VALUES || o->merge == KV_MERGE_FIT;
    bool votes = o->merge == KV_MERGE_VOTES || o->merge == KV_MERGE_FIT;
    TRY(room_reserve(&w->c->out, lay_out_answer(w, &a, NULL), e));
    lay_out_answer(w, &a, w->c->out.at);
    fill_answer(w, s, &a);
    const struct be_press p = { .asked = &w->asked,
                                .n_keep = a.n_keep,
                                .keep = a.keep,
                                .exact = a.exact,
                                .block = a.block,
                                .low = a.low,
                                .high = a.high,
                                .weight = a.weight,
                                .rounds = votes ? KV_FIT_ROUNDS : 0,
                                .values = values,
                                .lambda = o->lambda };
    be->ops->press(be, &p);
    for (int i = 0; i < w->n_heads; i++) {
        struct press_head *h = &w->head[i];
        bool fitted = (votes || values) && w->n_ref > 0 && kv_fit_takes(h->exact, h->n_keep);
        h->merged = fitted ? h->n - h->n_keep : 0;
    }
    return be->ops->sync(be, e);
}
