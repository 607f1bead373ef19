/* Forking: a second sequence over the same tokens, under other options. One prefill serves many. */
#include <string.h>

#include "server/base/mem.h"

#include "kvcache/kv_internal.h"

/* Backend to backend by way of the host, unless the host may touch both. */
static int copy(struct kv_pool *p, void *dst, const void *src, size_t bytes, struct err *e)
{
    struct be *be = p->be;
    if (be->host) {
        memcpy(dst, src, bytes);
        return 0;
    }
    void *via = mem_alloc(bytes);
    if (via == NULL)
        return err_set(e, ERR_NOMEM, "no memory to copy a page of the KV cache");
    be->ops->download(be, via, src, bytes);
    be->ops->upload(be, dst, via, bytes);
    int rc = be->ops->sync(be, e);
    mem_free(via);
    return rc;
}

static void share(struct kv_seq *dst, const struct kv_seq *src, struct kv_pool *p, int n_full)
{
    for (int b = 0; b < n_full; b++) {
        for (int l = 0; l < p->shape.n_layers; l++) {
            int32_t page = seq_wide(src, l)[b];
            seq_wide(dst, l)[b] = page;
            pool_page_ref(p, page);
        }
    }
    dst->n_blocks = n_full;
    if (dst->want_query == 0)
        return;
    dst->n_query = src->n_query;
    for (int i = 0; i < p->shape.n_layers * src->n_query; i++) {
        dst->query[i] = src->query[i];
        pool_page_ref(p, src->query[i]);
    }
}

/* The page that both go on writing. */
static int copy_last(struct kv_seq *dst, const struct kv_seq *src, struct kv_pool *p, int b,
                     struct err *e)
{
    for (int l = 0; l < p->shape.n_layers; l++) {
        int32_t to = seq_wide(dst, l)[b], from = seq_wide(src, l)[b];
        TRY(copy(p, pool_page_at(p, to), pool_page_at(p, from), p->page_bytes, e));
        if (p->sample != NULL)
            TRY(copy(p, pool_sample_at(p, to), pool_sample_at(p, from), p->sample_bytes, e));
    }
    return 0;
}

static int fill(struct kv_seq *dst, const struct kv_seq *src, struct kv_pool *p, struct err *e)
{
    int n_full = src->n_tokens / KV_PAGE;
    if (dst->want_query > 0 && src->n_query == 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "a fork is to be pressed by the prompt's last queries, which were not kept");
    if (n_full > dst->max_blocks)
        return err_set(e, ERR_LIMIT, "a fork of %d tokens has tables for %d", src->n_tokens,
                       dst->max_blocks * KV_PAGE);
    dst->root = src->root;
    share(dst, src, p, n_full);
    int rc = kv_seq_reserve(dst, p, src->n_tokens);
    if (rc < 0)
        return err_set(e, rc, "the KV cache has no room for a fork of %d tokens", src->n_tokens);
    dst->n_tokens = src->n_tokens;
    dst->n_cached = src->n_cached;
    dst->hash = src->hash;
    dst->n_hashed = src->n_hashed;
    return src->n_tokens % KV_PAGE != 0 ? copy_last(dst, src, p, n_full, e) : 0;
}

int kv_seq_fork(struct kv_seq *dst, const struct kv_seq *src, struct kv_pool *p,
                const struct kv_options *opt, int max_tokens, struct err *e)
{
    ASSERT(!kv_seq_pressed(src) && !src->layer_major && opt->layer_major == 0);
    ASSERT(src->n_tokens >= src->n_prompt);
    TRY(kv_seq_open(dst, p, opt, src->n_prompt, max_tokens, e));
    int rc = fill(dst, src, p, e);
    if (rc < 0)
        kv_seq_close(dst, p);
    return rc;
}
