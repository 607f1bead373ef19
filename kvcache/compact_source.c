/* Where a compaction reads: the pool itself, or a copy of one layer; candidates and queries of a head in it. */
#include <string.h>

#include "kvcache/compact_internal.h"

/* ---- layers ---------------------------------------------------------------------------------------------------- */

static const int32_t *const *narrow_of(const struct press *w, int l)
{
    if (!kv_seq_pressed(w->s))
        return NULL;
    return (const int32_t *const *)(w->s->narrow + w->head0 +
                                    (size_t)l * w->pool->shape.n_kv_heads);
}

static const int32_t *query_of(const struct press *w, int l)
{
    return w->s->query + (size_t)(w->layer0 + l) * w->s->n_query;
}

void source_direct(struct press *w)
{
    const struct kv_pool *p = w->pool;
    for (int l = 0; l < w->n_layers; l++)
        w->source[l] = (struct source){ .pool = p->base,
                                        .sample = p->sample,
                                        .beta = p->beta,
                                        .wide = seq_wide(w->s, w->layer0 + l),
                                        .query = query_of(w, l),
                                        .narrow = narrow_of(w, l) };
}

/* A staged layer, and its tables: pages are numbered in the order in which they are brought, wide ones, query pages, then
 * narrow pages side by side. */
struct staged {
    int n_wide, n_query, n_narrow;
    char *pool, *sample;
    float *beta;
    int32_t *wide, *query, *narrow;
    const int32_t **narrow_of;
};

static size_t lay_out(const struct press *w, struct staged *g, char *base)
{
    const struct kv_pool *p = w->pool;
    size_t used = 0, heads = (size_t)p->shape.n_kv_heads;
    size_t blocks = ((size_t)g->n_wide + (size_t)g->n_query) * heads + (size_t)g->n_narrow;
    g->pool = room_piece(base, &used, blocks * p->block_bytes);
    g->sample = room_piece(base, &used, (size_t)g->n_wide * p->sample_bytes);
    g->beta = room_piece(base, &used, blocks * p->side_bytes);
    g->wide = room_piece(base, &used, (size_t)g->n_wide * sizeof *g->wide);
    g->query = room_piece(base, &used, (size_t)g->n_query * sizeof *g->query);
    g->narrow = room_piece(base, &used, (size_t)g->n_narrow * sizeof *g->narrow);
    g->narrow_of = room_piece(base, &used, heads * sizeof *g->narrow_of);
    return used;
}

static void bring_wide(struct press *w, int l, struct staged *g)
{
    struct kv_pool *p = w->pool;
    struct be *be = p->be;
    for (int b = 0; b < g->n_wide; b++) {
        int32_t page = seq_wide(w->s, w->layer0 + l)[b];
        g->wide[b] = b;
        be->ops->download(be, g->pool + (size_t)b * p->page_bytes, pool_page_at(p, page),
                          p->page_bytes);
        be->ops->download(be, g->sample + (size_t)b * p->sample_bytes, pool_sample_at(p, page),
                          p->sample_bytes);
    }
    for (int b = 0; b < g->n_query; b++) {
        int32_t page = query_of(w, l)[b];
        g->query[b] = g->n_wide + b;
        be->ops->download(be, g->pool + (size_t)g->query[b] * p->page_bytes, pool_page_at(p, page),
                          p->page_bytes);
    }
}

static void bring_narrow(struct press *w, int l, struct staged *g)
{
    struct kv_pool *p = w->pool;
    struct be *be = p->be;
    int heads = p->shape.n_kv_heads, k = 0;
    for (int h = 0; g->n_narrow > 0 && h < heads; h++) {
        size_t i = (size_t)w->head0 + (size_t)l * heads + h;
        g->narrow_of[h] = g->narrow + k;
        for (int b = 0; b < w->s->n_block[i]; b++, k++) {
            int32_t from = w->s->narrow[i][b], to = (g->n_wide + g->n_query) * heads + k;
            g->narrow[k] = to;
            be->ops->download(be, g->pool + (size_t)to * p->block_bytes, pool_block_at(p, from),
                              p->block_bytes);
            be->ops->download(be, g->beta + (size_t)to * (p->side_bytes / sizeof *g->beta),
                              pool_beta_at(p, from), p->side_bytes);
        }
    }
}

int source_stage(struct press *w, int l, struct err *e)
{
    int heads = w->pool->shape.n_kv_heads;
    struct staged g = { .n_wide = w->n_wide / KV_PAGE + (w->n_tail > 0), .n_query = w->s->n_query };
    for (int h = 0; kv_seq_pressed(w->s) && h < heads; h++)
        g.n_narrow += w->s->n_block[(size_t)w->head0 + (size_t)l * heads + h];
    TRY(room_reserve(&w->c->stage, lay_out(w, &g, NULL), e));
    lay_out(w, &g, w->c->stage.at);
    bring_wide(w, l, &g);
    bring_narrow(w, l, &g);
    w->source[l] = (struct source){ .pool = g.pool,
                                    .sample = g.sample,
                                    .beta = g.beta,
                                    .wide = g.wide,
                                    .query = g.query,
                                    .narrow = g.n_narrow > 0 ? g.narrow_of : NULL };
    return 0;
}

/* ---- records --------------------------------------------------------------------------------------------------- */

struct record source_sample(const struct press *w, const struct source *src, int i)
{
    const struct kv_pool *p = w->pool;
    int a_page = p->shape.samples;
    return (struct record){ src->sample + (size_t)src->wide[i / a_page] * p->sample_bytes +
                                (size_t)(i % a_page) * p->record_bytes,
                            w->s->wide_pos0 + (i + 1) * pool_stride(p) - 1 };
}

struct record source_window(const struct press *w, const struct source *src, int i)
{
    const struct kv_pool *p = w->pool;
    int a_page = pool_page_records(p);
    return (struct record){ src->pool + (size_t)src->query[i / a_page] * p->page_bytes +
                                (size_t)(i % a_page) * p->record_bytes,
                            seq_window0(w->s) + i };
}

/* Strided samples, then the prompt's last queries. */
struct record source_reference(const struct press *w, const struct source *src, int i)
{
    int last = w->n_strided - 1;
    if (i > last)
        return source_window(w, src, i - w->n_strided);
    int at = last < 1 ? w->strided_n - 1 : (int)((int64_t)i * (w->strided_n - 1) / last);
    return source_sample(w, src, w->strided0 + at);
}

/* To one of the 64 positions to come: 37 is odd, so 64 references in a row get 64 different ones. */
int source_turn(const struct press *w, int i, int pos)
{
    return w->s->n_tokens + i * 37 % 64 - pos;
}

int source_seen(const struct press *w, int pos)
{
    int n = pos + 1 - w->s->wide_pos0;
    return n < w->n_wide ? n : w->n_wide;
}

void item_queries(const struct item *t, const struct record *r, int n, float *q, float *lse,
                  int32_t *see)
{
    const struct kv_shape *s = &t->w->pool->shape;
    int dim = t->h.dim, group = t->h.group;
    size_t head_bytes = (size_t)dim * kv_elem_bytes(s->type);
    size_t lse_at = kv_record_lse(s->type, s->n_heads, dim);
    for (int i = 0; i < n; i++) {
        for (int g = 0; g < group; g++) {
            size_t row = (size_t)i * group + g, head = (size_t)t->h.head * group + g;
            probe_floats(s->type, q + row * dim, r[i].at + head * head_bytes, dim);
            memcpy(&lse[row], r[i].at + lse_at + head * sizeof *lse, sizeof *lse);
            if (see != NULL)
                see[row] = source_seen(t->w, r[i].pos);
        }
    }
}

/* ---- a head ---------------------------------------------------------------------------------------------------- */

int press_candidate_pos(const struct press *w, int head, int j)
{
    int i = w->head0 + head, n_narrow = kv_seq_pressed(w->s) ? w->s->n_narrow[i] : 0;
    return j < n_narrow ? w->s->slot[i][j].pos : w->s->wide_pos0 + j - n_narrow;
}

int item_slots(struct item *t)
{
    const struct press *w = t->w;
    struct kv_head *h = &t->h;
    int n_pages = w->n_wide / KV_PAGE, slots = pool_narrow_slots(w->pool);
    size_t side = kv_side_floats(w->pool->shape.narrow_type);
    float *beta = arena_alloc(h->arena, (size_t)h->n * sizeof *beta);
    int32_t *block = arena_alloc(h->arena, ((size_t)n_pages + 1) * sizeof *block);
    if (beta == NULL || block == NULL)
        return ERR_NOMEM;
    for (int b = 0; b < n_pages + (w->n_tail > 0); b++)
        block[b] = t->src->wide[b] * h->n_kv_heads + h->head;
    t->probe = (struct probe_head){ .pool = t->src->pool,
                                    .beta = t->src->beta,
                                    .type = w->pool->shape.type,
                                    .narrow_type = w->pool->shape.narrow_type,
                                    .dim = h->dim,
                                    .narrow = t->src->narrow ? t->src->narrow[h->head] : NULL,
                                    .wide = block,
                                    .n_narrow = h->n - w->n_wide,
                                    .n_wide = w->n_wide,
                                    .scale = h->scale };
    t->tail = block + n_pages;
    for (int j = 0; !w->probed && t->probe.narrow != NULL && j < t->probe.n_narrow; j++)
        beta[j] = t->src->beta[(size_t)t->probe.narrow[j / slots] * side + j % slots];
    h->beta = w->probed ? t->st->beta : beta;
    return 0;
}

static int turn_references(struct item *t, const struct record *r)
{
    struct kv_head *h = &t->h;
    size_t rows = (size_t)h->n_ref * h->group;
    float *q = arena_alloc(h->arena, rows * h->dim * sizeof *q);
    float *lse = arena_alloc(h->arena, rows * sizeof *lse); /* of where they stood: not used */
    if (q == NULL || lse == NULL)
        return ERR_NOMEM;
    item_queries(t, r, h->n_ref, q, lse, NULL);
    for (int i = 0; i < h->n_ref; i++)
        kv_rope_turn(h->rope, q + (size_t)i * h->group * h->dim, h->group, h->dim, h->ref_turn[i]);
    h->ref_q = q;
    return 0;
}

int item_references(struct item *t)
{
    const struct press *w = t->w;
    struct kv_head *h = &t->h;
    struct record *r = arena_alloc(h->arena, (size_t)w->n_ref * sizeof *r);
    int32_t *pos = arena_alloc(h->arena, (size_t)w->n_ref * sizeof *pos);
    int32_t *turn = arena_alloc(h->arena, (size_t)w->n_ref * sizeof *turn);
    if (r == NULL || pos == NULL || turn == NULL)
        return ERR_NOMEM;
    for (int i = 0; i < w->n_ref; i++) {
        r[i] = source_reference(w, t->src, i);
        pos[i] = r[i].pos;
        turn[i] = source_turn(w, i, pos[i]);
    }
    h->n_ref = w->n_ref;
    h->ref_pos = pos;
    h->ref_turn = turn;
    return w->probed ? 0 : turn_references(t, r);
}

int item_kv(struct item *t)
{
    struct kv_head *h = &t->h;
    size_t bytes = (size_t)h->n * h->dim * sizeof(float);
    int32_t *slot = arena_alloc(h->arena, (size_t)h->n * sizeof *slot);
    float *k = arena_alloc(h->arena, bytes), *v = arena_alloc(h->arena, bytes);
    if (slot == NULL || k == NULL || v == NULL)
        return ERR_NOMEM;
    for (int j = 0; j < h->n; j++)
        slot[j] = j;
    probe_gather(&t->probe, slot, h->n, k, v);
    h->k = k;
    h->v = v;
    return 0;
}

int item_open(struct item *t, const struct press *w, int head, int thread)
{
    const struct kv_shape *s = &w->pool->shape;
    const struct kv_options *o = &w->s->opt;
    struct press_head *st = &w->head[head];
    struct arena *a = &w->c->arena[thread];
    int32_t *pos = arena_alloc(a, (size_t)st->n * sizeof *pos);
    if (pos == NULL)
        return ERR_NOMEM;
    for (int j = 0; j < st->n; j++)
        pos[j] = press_candidate_pos(w, head, j);
    *t = (struct item){
        .w = w,
        .src = &w->source[head / s->n_kv_heads],
        .st = st,
        .scratch = w->c->probe.at + (size_t)thread * w->c->probe_bytes,
        .h = { .opt = o,
               .layer = w->layer0 + head / s->n_kv_heads,
               .head = head % s->n_kv_heads,
               .n_layers = s->n_layers,
               .n_kv_heads = s->n_kv_heads,
               .n = st->n,
               .n_tokens = w->s->n_tokens,
               .again = kv_seq_pressed(w->s),
               .dim = s->head_dim,
               .group = w->c->group,
               .scale = w->c->scale,
               .isa = w->pool->be->isa,
               .pos = pos,
               .local = st->local,
               .global = st->global,
               .last = st->last,
               .mean = st->mean,
               .rms = st->rms,
               .ref_o = st->ref_o,
               .ref_lse = st->ref_lse,
               .ref_weight = st->ref_weight,
               .rope = &w->c->rope,
               .arena = a },
    };
    return 0;
}
