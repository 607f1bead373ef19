/* A sequence's page tables. */
#include <string.h>

#include "server/base/mem.h"

#include "kvcache/kv_internal.h"

int kv_seq_open(struct kv_seq *s, struct kv_pool *p, const struct kv_policy *policy, int max_tokens)
{
    int blocks = max_tokens / KV_PAGE + (max_tokens % KV_PAGE != 0);
    *s = (struct kv_seq){ .policy = policy, .max_blocks = blocks > 0 ? blocks : 1 };
    s->wide = mem_zalloc((size_t)p->shape.n_layers * (size_t)s->max_blocks, sizeof *s->wide);
    return s->wide == NULL ? ERR_NOMEM : 0;
}

static int narrow_blocks(int n_slots)
{
    return (n_slots + KV_PAGE - 1) / KV_PAGE;
}

static void close_narrow(struct kv_seq *s, struct kv_pool *p)
{
    int n = p->shape.n_layers * p->shape.n_kv_heads;
    for (int i = 0; s->narrow != NULL && i < n; i++) {
        for (int b = 0; s->narrow[i] != NULL && b < narrow_blocks(s->n_narrow[i]); b++)
            kv_narrow_free(p, s->narrow[i][b]);
        mem_free(s->narrow[i]);
    }
    mem_free(s->narrow);
    mem_free(s->n_narrow);
}

/* Last pages first: see prefix.c. */
static void drop_pages(struct kv_seq *s, struct kv_pool *p)
{
    for (int b = s->n_blocks - 1; b >= 0; b--)
        for (int l = 0; l < p->shape.n_layers; l++)
            pool_page_unref(p, s->wide[(size_t)l * (size_t)s->max_blocks + (size_t)b]);
    s->n_blocks = 0;
}

void kv_seq_close(struct kv_seq *s, struct kv_pool *p)
{
    if (s->wide == NULL)
        return;
    drop_pages(s, p);
    close_narrow(s, p);
    mem_free(s->wide);
    *s = (struct kv_seq){ 0 };
}

void kv_seq_clear(struct kv_seq *s, struct kv_pool *p)
{
    drop_pages(s, p);
    close_narrow(s, p);
    *s = (struct kv_seq){ .policy = s->policy, .max_blocks = s->max_blocks, .wide = s->wide };
}

static int blocks_for(const struct kv_seq *s, int n_tokens)
{
    int tail = n_tokens - s->wide_pos0;
    return tail <= 0 ? 0 : tail / KV_PAGE + (tail % KV_PAGE != 0);
}

int64_t kv_seq_need(const struct kv_seq *s, const struct kv_pool *p, int n_tokens)
{
    int more = blocks_for(s, n_tokens) - s->n_blocks;
    return more <= 0 ? 0 : (int64_t)more * p->shape.n_layers;
}

int kv_seq_reserve(struct kv_seq *s, struct kv_pool *p, int n_tokens)
{
    int want = blocks_for(s, n_tokens);
    if (want > s->max_blocks || kv_seq_need(s, p, n_tokens) > kv_pool_available(p))
        return ERR_LIMIT;
    for (; s->n_blocks < want; s->n_blocks++) {
        for (int l = 0; l < p->shape.n_layers; l++) {
            int32_t page = pool_page_take(p);
            ASSERT(page >= 0);
            s->wide[(size_t)l * (size_t)s->max_blocks + (size_t)s->n_blocks] = page;
        }
    }
    return 0;
}

void kv_seq_view(const struct kv_seq *s, const struct kv_pool *p, int layer, struct kv_view *out)
{
    size_t head0 = (size_t)layer * (size_t)p->shape.n_kv_heads;
    *out = (struct kv_view){
        .wide = s->wide + (size_t)layer * (size_t)s->max_blocks,
        .wide_pos0 = s->wide_pos0,
        .narrow = s->narrow != NULL ? (const int32_t *const *)(s->narrow + head0) : NULL,
        .n_narrow = s->narrow != NULL ? s->n_narrow + head0 : NULL,
    };
}

size_t kv_seq_bytes(const struct kv_seq *s, const struct kv_pool *p)
{
    size_t bytes = (size_t)s->n_blocks * (size_t)p->shape.n_layers * p->page_bytes;
    int n = p->shape.n_layers * p->shape.n_kv_heads;
    for (int i = 0; s->narrow != NULL && i < n; i++)
        bytes += (size_t)narrow_blocks(s->n_narrow[i]) * p->block_bytes;
    return bytes;
}
