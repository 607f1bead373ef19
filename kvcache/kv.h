/* The KV cache: one pool of blocks, page tables, the prefix index, and the table of policies.
 *
 * Layout of a block, and what wide and narrow pages are: kernels/backend.h. A *wide page* (KV_PAGE tokens x all KV
 * heads of one layer) is append-only, immutable when full, reference-counted and shareable by prefix. A *narrow page*
 * (one block, one KV head) is private and written only by compaction. Both live in one pool: a wide page may be split
 * into its n_kv_heads blocks, which come back together when all of them are free.
 *
 * Thread: the engine's only. Owner: the engine owns the pool and the index, a sequence owns its tables and holds one
 * reference to each of its pages.
 *
 * Rules for pages
 *   R1 a wide page with more than one reference is never written;
 *   R2 a full wide page is never written;
 *   R3 a page in the prefix index and in no sequence has no reference and may be taken back at any time (oldest first);
 *   R4 free + cached + in use = all wide pages, split ones counted as in use; kv_pool_check() proves it.
 */
#ifndef WRING_KVCACHE_KV_H
#define WRING_KVCACHE_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "server/base/err.h"

struct kv_shape {
    int n_layers, n_kv_heads, head_dim;
    enum kv_type type;
};
size_t kv_token_bytes(
    const struct kv_shape *s); /* bytes one token takes in a full cache, all layers */

struct kv_pool;

/* A pool for at least n_tokens tokens in wide pages of all layers. Address space is taken at once, memory when used. */
int kv_pool_open(struct kv_pool **out, struct be *be, const struct kv_shape *s, int64_t n_tokens,
                 struct err *e) WARN_UNUSED;
void kv_pool_close(struct kv_pool *p);
const struct kv_shape *kv_pool_shape(const struct kv_pool *p);
void *kv_pool_base(const struct kv_pool *p); /* block 0, for struct be_kv */
float *kv_pool_beta(
    const struct kv_pool *p); /* [blocks][KV_PAGE]; NULL until the first narrow page */

struct kv_stats {
    int64_t pages, free, cached, used, split; /* wide pages */
    int64_t narrow;                           /* narrow pages in use */
    size_t page_bytes;
    uint64_t prefix_queries, prefix_hits; /* tokens asked for, tokens found */
    uint64_t evictions;                   /* cached pages taken back */
};
void kv_pool_stats(const struct kv_pool *p, struct kv_stats *out);
bool kv_pool_check(
    const struct kv_pool *p); /* walks everything: R4 holds and counts agree. For tests. */

/* Narrow pages; ERR_LIMIT when the pool is full. */
int kv_narrow_alloc(struct kv_pool *p, int32_t *block) WARN_UNUSED;
void kv_narrow_free(struct kv_pool *p, int32_t block);

/* ---- a sequence's tables ------------------------------------------------------------------------------------- */
struct kv_seq {
    const struct kv_policy *policy;
    int n_tokens; /* tokens whose keys and values are in the cache */
    int n_cached; /* of those, found in the prefix index at admission */
    int n_blocks; /* wide pages a layer in the tables */
    int max_blocks;
    int32_t *wide;    /* [n_layers][max_blocks] page ids */
    int wide_pos0;    /* logical position of wide slot 0 (0 for a full cache) */
    int32_t **narrow; /* [n_layers * n_kv_heads] tables, NULL without compaction */
    int32_t *n_narrow;
    uint64_t hash; /* chained hash of the full pages in the index so far */
    int n_hashed;  /* tokens covered by it */
};
/* Tables for at most max_tokens tokens; no page is taken yet. */
int kv_seq_open(struct kv_seq *s, struct kv_pool *p, const struct kv_policy *policy,
                int max_tokens) WARN_UNUSED;
void kv_seq_close(struct kv_seq *s,
                  struct kv_pool *p); /* drops every reference; safe on a zeroed seq */
/* Drops every reference and keeps the tables: empty, ready for the same tokens again. Allocates nothing. */
void kv_seq_clear(struct kv_seq *s, struct kv_pool *p);
/* Pages for tokens up to n_tokens in all layers, evicting cached pages if needed. All or nothing: ERR_LIMIT. */
int kv_seq_reserve(struct kv_seq *s, struct kv_pool *p, int n_tokens) WARN_UNUSED;
/* Wide pages (all layers) that kv_seq_reserve(s, n_tokens) would have to take now. */
int64_t kv_seq_need(const struct kv_seq *s, const struct kv_pool *p, int n_tokens);
int64_t kv_pool_available(const struct kv_pool *p); /* free + cached wide pages */
void kv_seq_view(const struct kv_seq *s, const struct kv_pool *p, int layer, struct kv_view *out);
size_t kv_seq_bytes(const struct kv_seq *s,
                    const struct kv_pool *p); /* physical bytes held (shared pages count whole) */

/* ---- prefix index: full pages of KV_PAGE tokens by chained hash (XXH3 of parent hash and tokens); tokens are compared,
 * so a collision is a miss. `salt` keeps caches apart that must not be shared (policies that write, adapters). ----- */
/* Gives an empty s the longest cached prefix of tokens[0, n), at most n - 1 tokens so that one is left to compute.
 * Returns the tokens found. */
int kv_prefix_match(struct kv_seq *s, struct kv_pool *p, const int32_t *tokens, int n,
                    uint64_t salt);
/* Publishes the full pages that s has got since the last call; tokens holds its first n_tokens tokens. */
void kv_prefix_publish(struct kv_seq *s, struct kv_pool *p, const int32_t *tokens, uint64_t salt);
void kv_prefix_clear(struct kv_pool *p); /* forgets everything cached */

/* ---- policies ------------------------------------------------------------------------------------------------- */
/* One folder each and one line in kvcache/policy.c. `full` keeps everything and leaves both slots NULL. */
struct kv_policy {
    const char *name;
    bool shares_prefix; /* its wide pages are those of a full cache, so they may be shared */
    /* Called when a prompt's last chunk is in the cache, layer by layer; NULL: nothing to do. */
    int (*compact)(struct kv_seq *s, struct kv_pool *p, struct be *be, int layer, struct err *e);
};
extern const struct kv_policy
    *const kv_policy_list[]; /* NULL-terminated; the first is the default */
const struct kv_policy *kv_policy_find(const char *name);
const char *kv_policy_names(void); /* for messages: "full, ..." */

#endif
