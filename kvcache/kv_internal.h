/* What the files of the cache share, and what tests look into.
 *
 * A zeroed page is a free page that was never touched, so the arrays come as untouched memory and opening a huge pool
 * costs nothing: indices are stored plus one, 0 means none.
 */
#ifndef WRING_KVCACHE_KV_INTERNAL_H
#define WRING_KVCACHE_KV_INTERNAL_H

#include "kvcache/kv.h"

/* One wide page. Free: no reference, no entry, not split. */
struct page {
    int32_t ref;   /* sequences that hold it */
    int32_t entry; /* index entry + 1 */
    int32_t next;  /* in the free list: page + 1 */
    int32_t split; /* narrow pages in use + 1 when it is split, else 0 */
};

/* One KV_PAGE of tokens in the index, with its pages of all layers. `parent` may have been replaced by another entry since:
 * then its serial differs and this entry can no longer be found from the front (an orphan). */
struct entry {
    uint64_t hash;          /* of the parent's hash (the salt at the front) and the tokens */
    uint64_t serial;        /* never given twice; 0: entry unused */
    uint64_t parent_serial; /* 0: the front */
    uint64_t salt;          /* a chain keeps its own */
    int32_t parent;         /* index, meaningless at the front */
    int32_t next;           /* in its hash chain, or in the list of unused entries: index + 1 */
    int32_t lru_newer, lru_older; /* index + 1; only while idle */
    int32_t n_ref;                /* sum of its pages' references; 0: idle, in the LRU list */
    int32_t token[KV_PAGE];
};

struct kv_pool {
    struct be *be;
    struct kv_shape shape;
    int32_t n_pages;
    size_t block_bytes, page_bytes;
    size_t side_bytes;                 /* of a narrow page's biases and scales */
    size_t record_bytes, sample_bytes; /* of one record, of those that go with a page */
    void *base;
    void *sample; /* [n_pages][samples] records; NULL: none are kept */
    float *beta;  /* [blocks][side_bytes] */
    struct page *page;
    int32_t free_list, n_fresh; /* page + 1; pages from n_fresh on were never used */
    int64_t n_free, n_cached, n_split, n_narrow;
    /* narrow pages: the free blocks of split pages, doubly linked, block + 1 */
    int32_t *narrow_next, *narrow_prev;
    int32_t narrow_list;
    uint8_t *narrow_used; /* [blocks] */
    /* the prefix index */
    struct entry *entry;
    int32_t *entry_page; /* [n_entries][n_layers] */
    int32_t *bucket;     /* [n_buckets] entry + 1; n_buckets is a power of two */
    int32_t n_entries, n_buckets;
    int32_t entry_list, entry_fresh; /* as for pages */
    int32_t lru_oldest, lru_newest;  /* index + 1 */
    uint64_t last_serial, last_root;
    uint64_t hash_mask; /* all ones; a test narrows it to provoke collisions */
    uint64_t prefix_queries, prefix_hits, evictions;
};

/* A free wide page with one reference, evicting a cached one if needed; -1 when every page is in use. */
int32_t pool_page_take(struct kv_pool *p);
void pool_page_ref(struct kv_pool *p, int32_t page);
void pool_page_unref(struct kv_pool *p, int32_t page);
/* Puts a page with neither reference nor entry back into the free list. */
void pool_page_free(struct kv_pool *p, int32_t page);

/* Wide pages that would have to be split for n more narrow ones. */
int64_t pool_narrow_need(const struct kv_pool *p, int64_t n);
void *pool_page_at(const struct kv_pool *p, int32_t page);
void *pool_block_at(const struct kv_pool *p, int32_t block);
void *pool_sample_at(const struct kv_pool *p, int32_t page); /* NULL: none are kept */
float *pool_beta_at(const struct kv_pool *p, int32_t block);
static inline int pool_narrow_slots(const struct kv_pool *p) /* of a narrow page */
{
    return kv_narrow_slots(p->shape.narrow_type);
}
/* Narrow pages for n slots of a head. */
static inline int pool_narrow_pages(const struct kv_pool *p, int n)
{
    int page = pool_narrow_slots(p);
    return n / page + (n % page != 0);
}

static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}
static inline int max_int(int a, int b)
{
    return a > b ? a : b;
}

/* The first token whose query is kept for pressing the prompt. */
static inline int seq_window0(const struct kv_seq *s)
{
    return s->n_prompt > KV_WINDOW_QUERIES ? s->n_prompt - KV_WINDOW_QUERIES : 0;
}
static inline int pool_page_records(const struct kv_pool *p)
{
    return (int)(p->page_bytes / p->record_bytes);
}
/* From one sample to the next, in tokens. */
static inline int pool_stride(const struct kv_pool *p)
{
    return KV_PAGE / p->shape.samples;
}
static inline int pages_of_slots(int n)
{
    return n / KV_PAGE + (n % KV_PAGE != 0);
}
static inline int32_t *seq_wide(const struct kv_seq *s, int layer)
{
    return s->wide + (size_t)layer * (size_t)s->max_blocks;
}
static inline int pool_heads(const struct kv_pool *p) /* of all layers */
{
    return p->shape.n_layers * p->shape.n_kv_heads;
}
/* Record i of the prompt's last queries; s->n_query > 0. */
void *seq_window_at(const struct kv_seq *s, const struct kv_pool *p, int layer, int i);
/* Gives all spare narrow pages and the query pages back. */
void seq_release(struct kv_seq *s, struct kv_pool *p);
/* Gives wide pages [0, n) of every layer back; what follows moves to the front. */
void seq_drop_wide(struct kv_seq *s, struct kv_pool *p, int n);
int64_t swap_need(const struct kv_seq *s, const struct kv_pool *p);

int prefix_open(struct kv_pool *p);
void prefix_close(struct kv_pool *p);
bool prefix_evict(struct kv_pool *p); /* the oldest idle entry's pages become free; false: none */
/* A page of entry i gained its first or lost its last reference: called by the pool for every change. */
void prefix_ref(struct kv_pool *p, int32_t i);
void prefix_unref(struct kv_pool *p, int32_t i);
bool prefix_check(const struct kv_pool *p);

#endif
