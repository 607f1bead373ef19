/* Swapping: the pages of a pressed sequence in ordinary memory, so that others may have the room. They are few. */
#include <string.h>

#include "server/base/mem.h"

#include "kvcache/kv_internal.h"

/* Wide pages with their samples, layer by layer, then narrow pages with their sides, head by head. */
struct kv_swap {
    int n_blocks; /* wide pages a layer */
    int64_t n_narrow;
    char bytes[];
};

enum way { OUT, IN };

/* Moves one piece between the pool and *at, which goes on. */
static void move(struct kv_pool *p, enum way way, char **at, void *there, size_t bytes)
{
    if (way == OUT)
        p->be->ops->download(p->be, *at, there, bytes);
    else
        p->be->ops->upload(p->be, there, *at, bytes);
    *at += bytes;
}

static void move_all(const struct kv_seq *s, struct kv_pool *p, struct kv_swap *w, enum way way)
{
    char *at = w->bytes;
    for (int l = 0; l < p->shape.n_layers; l++) {
        for (int b = 0; b < w->n_blocks; b++) {
            int32_t page = seq_wide(s, l)[b];
            move(p, way, &at, pool_page_at(p, page), p->page_bytes);
            if (p->sample != NULL)
                move(p, way, &at, pool_sample_at(p, page), p->sample_bytes);
        }
    }
    for (int i = 0; i < pool_heads(p); i++) {
        for (int b = 0; b < s->n_block[i]; b++) {
            move(p, way, &at, pool_block_at(p, s->narrow[i][b]), p->block_bytes);
            move(p, way, &at, pool_beta_at(p, s->narrow[i][b]), p->side_bytes);
        }
    }
}

static void drop_all(struct kv_seq *s, struct kv_pool *p)
{
    seq_drop_wide(s, p, s->n_blocks);
    for (int i = 0; i < pool_heads(p); i++) {
        for (int b = s->n_block[i] - 1; b >= 0; b--) {
            kv_narrow_free(p, s->narrow[i][b]);
            s->narrow[i][b] = -1;
        }
    }
}

int kv_seq_swap_out(struct kv_seq *s, struct kv_pool *p, struct err *e)
{
    ASSERT(kv_seq_pressed(s) && s->swap == NULL);
    size_t wide = (size_t)s->n_blocks * (size_t)p->shape.n_layers;
    size_t narrow = 0;
    for (int i = 0; i < pool_heads(p); i++)
        narrow += (size_t)s->n_block[i];
    size_t bytes =
        wide * (p->page_bytes + p->sample_bytes) + narrow * (p->block_bytes + p->side_bytes);
    struct kv_swap *w = mem_alloc(sizeof *w + bytes);
    if (w == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %zu bytes of a swapped KV cache", bytes);
    w->n_blocks = s->n_blocks;
    w->n_narrow = (int64_t)narrow;
    move_all(s, p, w, OUT);
    int rc = p->be->ops->sync(p->be, e);
    if (rc < 0) {
        mem_free(w);
        return rc;
    }
    drop_all(s, p);
    s->swap = w;
    return 0;
}

int64_t swap_need(const struct kv_seq *s, const struct kv_pool *p)
{
    return (int64_t)s->swap->n_blocks * p->shape.n_layers + pool_narrow_need(p, s->swap->n_narrow);
}

int kv_seq_swap_in(struct kv_seq *s, struct kv_pool *p, struct err *e)
{
    ASSERT(s->swap != NULL);
    struct kv_swap *w = s->swap;
    if (swap_need(s, p) > kv_pool_available(p))
        return err_set(e, ERR_LIMIT, "the KV cache has no room for a swapped sequence");
    for (; s->n_blocks < w->n_blocks; s->n_blocks++) {
        for (int l = 0; l < p->shape.n_layers; l++) {
            int32_t page = pool_page_take(p);
            ASSERT(page >= 0);
            seq_wide(s, l)[s->n_blocks] = page;
        }
    }
    for (int i = 0; i < pool_heads(p); i++) {
        for (int b = 0; b < s->n_block[i]; b++) {
            int rc = kv_narrow_alloc(p, &s->narrow[i][b]);
            ASSERT(rc == 0);
        }
    }
    move_all(s, p, w, IN);
    int rc = p->be->ops->sync(p->be, e);
    if (rc < 0) {
        drop_all(s, p);
        return rc;
    }
    mem_free(w);
    s->swap = NULL;
    return 0;
}
