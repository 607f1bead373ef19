/* The pool: wide pages with reference counts, and wide pages split into narrow ones. See kv.h and kv_internal.h. */
#include "server/base/mem.h"

#include "kvcache/kv_internal.h"

size_t kv_token_bytes(const struct kv_shape *s)
{
    return 2 * (size_t)s->n_layers * (size_t)s->n_kv_heads * (size_t)s->head_dim *
           kv_elem_bytes(s->type);
}

int64_t kv_slot_bytes(const struct kv_shape *s)
{
    size_t heads = (size_t)s->n_layers * (size_t)s->n_kv_heads;
    size_t slots = (size_t)kv_narrow_slots(s->narrow_type);
    size_t page =
        kv_block_bytes(s->type, s->head_dim) + kv_side_floats(s->narrow_type) * sizeof(float);
    return (int64_t)(heads * (page / slots + sizeof(struct kv_slot)));
}

size_t kv_span_bytes(const struct kv_shape *s)
{
    size_t layers = (size_t)s->n_layers, blocks = layers * (size_t)s->n_kv_heads;
    size_t records =
        layers * (size_t)s->samples * kv_record_bytes(s->type, s->n_heads, s->head_dim);
    size_t sides = blocks * kv_side_floats(s->narrow_type) * sizeof(float);
    return KV_PAGE * kv_token_bytes(s) + records + sides;
}

static size_t n_blocks(const struct kv_pool *p)
{
    return (size_t)p->n_pages * (size_t)p->shape.n_kv_heads;
}

static int open_arrays(struct kv_pool *p)
{
    if (p->sample_bytes > 0) {
        p->sample = p->be->ops->alloc(p->be, (size_t)p->n_pages * p->sample_bytes);
        if (p->sample == NULL)
            return ERR_NOMEM;
    }
    p->base = p->be->ops->alloc(p->be, (size_t)p->n_pages * p->page_bytes);
    p->beta = p->be->ops->alloc(p->be, n_blocks(p) * p->side_bytes);
    p->page = mem_map((size_t)p->n_pages * sizeof *p->page);
    p->narrow_next = mem_map(n_blocks(p) * sizeof *p->narrow_next);
    p->narrow_prev = mem_map(n_blocks(p) * sizeof *p->narrow_prev);
    p->narrow_used = mem_map(n_blocks(p));
    if (p->base == NULL || p->beta == NULL || p->page == NULL || p->narrow_next == NULL ||
        p->narrow_prev == NULL || p->narrow_used == NULL)
        return ERR_NOMEM;
    return prefix_open(p);
}

/* Says how much would fit, and closes what was opened. */
static int no_room(struct kv_pool *p, int64_t n_tokens, struct err *e)
{
    struct be *be = p->be;
    size_t bytes = kv_pool_bytes(p), span = kv_span_bytes(&p->shape), free_bytes, total;
    kv_pool_close(p);
    be->ops->memory(be, &free_bytes, &total);
    free_bytes -= free_bytes / 10; /* activations want some too */
    if (free_bytes == 0)
        return err_set(e, ERR_NOMEM, "no memory for a KV pool of %lld tokens (%zu bytes)",
                       (long long)n_tokens, bytes);
    return err_set(e, ERR_NOMEM,
                   "a KV pool of %lld tokens takes %zu MiB; %s has room for %zu MiB beside "
                   "the weights, which would hold %zu tokens (--kv-size %zuM)",
                   (long long)n_tokens, bytes >> 20, be->device, free_bytes >> 20,
                   free_bytes / span * KV_PAGE, free_bytes >> 20);
}

int kv_pool_open(struct kv_pool **out, struct be *be, const struct kv_shape *s, int64_t n_tokens,
                 struct err *e)
{
    if (n_tokens < 1 || s->n_layers < 1 || s->n_kv_heads < 1 || s->head_dim < 2)
        return err_set(e, ERR_INVALID, "a KV pool of %lld tokens, %d layers, %d heads of %d",
                       (long long)n_tokens, s->n_layers, s->n_kv_heads, s->head_dim);
    if (s->n_heads % s->n_kv_heads != 0 || s->samples < 0 || s->samples > KV_PAGE ||
        (s->samples & (s->samples - 1)) != 0)
        return err_set(
            e, ERR_INVALID,
            "a KV pool with %d queries a page of %d heads over %d; 0, 1, 2, 4, ... %d of a "
            "multiple are kept",
            s->samples, s->n_heads, s->n_kv_heads, KV_PAGE);
    int64_t most = INT32_MAX / s->n_layers / s->n_kv_heads - 1;
    int64_t spans = n_tokens / KV_PAGE + (n_tokens % KV_PAGE != 0);
    if (spans > most)
        return err_set(e, ERR_LIMIT, "a KV pool of %lld tokens; at most %lld can be numbered",
                       (long long)n_tokens, (long long)most * KV_PAGE);
    if (s->narrow_type == KV_NARROW_Q8 && s->type == KV_F32)
        return err_set(e, ERR_UNSUPPORTED,
                       "q8 narrow pages lie in a KV cache of 16-bit elements; this one has f32");
    struct kv_pool *p = mem_zalloc(1, sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_NOMEM, "no memory for a KV pool");
    p->be = be;
    p->shape = *s;
    p->n_pages = (int32_t)(spans * s->n_layers);
    p->n_free = p->n_pages;
    p->block_bytes = kv_block_bytes(s->type, s->head_dim);
    p->page_bytes = p->block_bytes * (size_t)s->n_kv_heads;
    p->side_bytes = kv_side_floats(s->narrow_type) * sizeof(float);
    if (s->n_heads > 0 && s->samples > 0) {
        p->record_bytes = kv_record_bytes(s->type, s->n_heads, s->head_dim);
        p->sample_bytes = (size_t)s->samples * p->record_bytes;
    }
    if (open_arrays(p) < 0)
        return no_room(p, n_tokens, e);
    *out = p;
    return 0;
}

static void unmap(void *m, size_t bytes)
{
    if (m != NULL)
        mem_unmap(m, bytes);
}

void kv_pool_close(struct kv_pool *p)
{
    if (p == NULL)
        return;
    prefix_close(p);
    unmap(p->narrow_used, n_blocks(p));
    unmap(p->narrow_prev, n_blocks(p) * sizeof *p->narrow_prev);
    unmap(p->narrow_next, n_blocks(p) * sizeof *p->narrow_next);
    unmap(p->page, (size_t)p->n_pages * sizeof *p->page);
    if (p->beta != NULL)
        p->be->ops->free(p->be, p->beta, n_blocks(p) * p->side_bytes);
    if (p->base != NULL)
        p->be->ops->free(p->be, p->base, (size_t)p->n_pages * p->page_bytes);
    if (p->sample != NULL)
        p->be->ops->free(p->be, p->sample, (size_t)p->n_pages * p->sample_bytes);
    mem_free(p);
}

size_t kv_pool_bytes(const struct kv_pool *p)
{
    return (size_t)(p->n_pages / p->shape.n_layers) * kv_span_bytes(&p->shape);
}

const struct kv_shape *kv_pool_shape(const struct kv_pool *p)
{
    return &p->shape;
}

void *kv_pool_base(const struct kv_pool *p)
{
    return p->base;
}

float *kv_pool_beta(const struct kv_pool *p)
{
    return p->beta;
}

void *pool_page_at(const struct kv_pool *p, int32_t page)
{
    return (char *)p->base + (size_t)page * p->page_bytes;
}

void *pool_block_at(const struct kv_pool *p, int32_t block)
{
    return (char *)p->base + (size_t)block * p->block_bytes;
}

void *pool_sample_at(const struct kv_pool *p, int32_t page)
{
    return p->sample == NULL ? NULL : (char *)p->sample + (size_t)page * p->sample_bytes;
}

float *pool_beta_at(const struct kv_pool *p, int32_t block)
{
    return p->beta + (size_t)block * kv_side_floats(p->shape.narrow_type);
}

int64_t kv_pool_available(const struct kv_pool *p)
{
    return p->n_free + p->n_cached;
}

void kv_pool_stats(const struct kv_pool *p, struct kv_stats *out)
{
    *out = (struct kv_stats){
        .pages = p->n_pages,
        .free = p->n_free,
        .cached = p->n_cached,
        .used = p->n_pages - p->n_free - p->n_cached,
        .split = p->n_split,
        .narrow = p->n_narrow,
        .page_bytes = p->page_bytes,
        .sample_bytes = p->sample_bytes,
        .prefix_queries = p->prefix_queries,
        .prefix_hits = p->prefix_hits,
        .evictions = p->evictions,
    };
}

/* ---- wide pages ---------------------------------------------------------------------------------------------- */

/* Used pages come before fresh ones, so that a lightly loaded pool touches little memory. */
static int32_t free_pop(struct kv_pool *p)
{
    int32_t i;
    if (p->free_list != 0) {
        i = p->free_list - 1;
        p->free_list = p->page[i].next;
        p->page[i].next = 0;
    } else if (p->n_fresh < p->n_pages) {
        i = p->n_fresh++;
    } else {
        return -1;
    }
    p->n_free--;
    return i;
}

void pool_page_free(struct kv_pool *p, int32_t i)
{
    struct page *g = &p->page[i];
    ASSERT(g->ref == 0 && g->entry == 0 && g->split == 0);
    g->next = p->free_list;
    p->free_list = i + 1;
    p->n_free++;
}

/* A page that belongs to nobody. */
static int32_t claim(struct kv_pool *p)
{
    if (p->n_free == 0 && !prefix_evict(p))
        return -1;
    return free_pop(p);
}

int32_t pool_page_take(struct kv_pool *p)
{
    int32_t i = claim(p);
    if (i >= 0)
        p->page[i].ref = 1;
    return i;
}

void pool_page_ref(struct kv_pool *p, int32_t i)
{
    struct page *g = &p->page[i];
    g->ref++;
    if (g->entry != 0)
        prefix_ref(p, g->entry - 1);
}

void pool_page_unref(struct kv_pool *p, int32_t i)
{
    struct page *g = &p->page[i];
    ASSERT(g->ref > 0);
    g->ref--;
    if (g->entry != 0)
        prefix_unref(p, g->entry - 1);
    else if (g->ref == 0)
        pool_page_free(p, i);
}

/* ---- narrow pages -------------------------------------------------------------------------------------------- */

static void narrow_link(struct kv_pool *p, int32_t block)
{
    p->narrow_prev[block] = 0;
    p->narrow_next[block] = p->narrow_list;
    if (p->narrow_list != 0)
        p->narrow_prev[p->narrow_list - 1] = block + 1;
    p->narrow_list = block + 1;
}

static void narrow_unlink(struct kv_pool *p, int32_t block)
{
    int32_t next = p->narrow_next[block], prev = p->narrow_prev[block];
    if (next != 0)
        p->narrow_prev[next - 1] = prev;
    if (prev != 0)
        p->narrow_next[prev - 1] = next;
    else
        p->narrow_list = next;
}

int64_t pool_narrow_need(const struct kv_pool *p, int64_t n)
{
    int64_t heads = p->shape.n_kv_heads, more = n - (p->n_split * heads - p->n_narrow);
    return more <= 0 ? 0 : (more + heads - 1) / heads;
}

static int split_page(struct kv_pool *p)
{
    int32_t i = claim(p);
    if (i < 0)
        return ERR_LIMIT;
    p->page[i].split = 1;
    p->n_split++;
    for (int h = p->shape.n_kv_heads - 1; h >= 0; h--)
        narrow_link(p, i * p->shape.n_kv_heads + h);
    return 0;
}

int kv_narrow_alloc(struct kv_pool *p, int32_t *block)
{
    if (p->narrow_list == 0)
        TRY(split_page(p));
    int32_t b = p->narrow_list - 1;
    narrow_unlink(p, b);
    p->narrow_used[b] = 1;
    p->page[b / p->shape.n_kv_heads].split++;
    p->n_narrow++;
    *block = b;
    return 0;
}

void kv_narrow_free(struct kv_pool *p, int32_t block)
{
    int32_t heads = p->shape.n_kv_heads, i = block / heads;
    struct page *g = &p->page[i];
    ASSERT(p->narrow_used[block] && g->split > 1);
    p->narrow_used[block] = 0;
    p->n_narrow--;
    g->split--;
    narrow_link(p, block);
    if (g->split > 1)
        return;
    for (int32_t h = 0; h < heads; h++)
        narrow_unlink(p, i * heads + h);
    g->split = 0;
    p->n_split--;
    pool_page_free(p, i);
}

/* ---- the proof ----------------------------------------------------------------------------------------------- */

static bool check_free(const struct kv_pool *p)
{
    int64_t n = p->n_pages - p->n_fresh;
    for (int32_t i = p->free_list; i != 0; i = p->page[i - 1].next) {
        const struct page *g = &p->page[i - 1];
        if (i > p->n_fresh || g->ref != 0 || g->entry != 0 || g->split != 0 || ++n > p->n_pages)
            return false;
    }
    return n == p->n_free;
}

static bool check_narrow(const struct kv_pool *p)
{
    int64_t listed = 0, used = 0, split = 0, heads = p->shape.n_kv_heads;
    for (int32_t b = p->narrow_list, prev = 0; b != 0; prev = b, b = p->narrow_next[b - 1]) {
        if (p->narrow_used[b - 1] || p->narrow_prev[b - 1] != prev ||
            p->page[(b - 1) / heads].split == 0 || ++listed > (int64_t)n_blocks(p))
            return false;
    }
    for (int32_t i = 0; i < p->n_fresh; i++) {
        const struct page *g = &p->page[i];
        int n = 0;
        for (int64_t h = 0; h < heads; h++)
            n += p->narrow_used[i * heads + h];
        if (n != (g->split != 0 ? g->split - 1 : 0) || (g->split != 0 && n == 0))
            return false;
        split += g->split != 0;
        used += n;
    }
    return used == p->n_narrow && split == p->n_split && listed == split * heads - used;
}

bool kv_pool_check(const struct kv_pool *p)
{
    int64_t used = 0, cached = 0, idle = 0;
    for (int32_t i = 0; i < p->n_fresh; i++) {
        const struct page *g = &p->page[i];
        if (g->ref < 0 || (g->split != 0 && (g->ref != 0 || g->entry != 0)))
            return false;
        if (g->entry != 0 && p->entry[g->entry - 1].n_ref == 0)
            cached++;
        else if (g->ref > 0 || g->split != 0 || g->entry != 0)
            used++;
        else
            idle++;
    }
    return idle + p->n_pages - p->n_fresh == p->n_free && cached == p->n_cached &&
           used + cached + p->n_free == p->n_pages && check_free(p) && check_narrow(p) &&
           prefix_check(p);
}
