/* The KV cache: one pool of blocks, page tables, the prefix index. Policies: kvcache/policy.h.
 *
 * Layout of a block, and what wide and narrow pages are: kernels/backend.h. A *wide page* (KV_PAGE tokens x all KV
 * heads of one layer) is append-only, immutable when full, reference-counted and shareable by prefix. A *narrow page*
 * (one block, one KV head) is private and written only by compaction. Both live in one pool: a wide page may be split
 * into its n_kv_heads blocks, which come back together when all of them are free. With kv_shape.narrow_type
 * KV_NARROW_Q8 a narrow page holds twice as many slots as a block of a wide page, in the same bytes; what is merged is
 * summed in f32 and rounded once, when it is written.
 *
 * Thread: the engine's only, kv_seq_plan() excepted. Owner: the engine owns the pool and the index, a sequence owns its
 * tables and holds one reference to each of its pages.
 *
 * Records (kernels/backend.h) of queries are kept for policies that score. With every wide page go those of `samples` of
 * its tokens, evenly strided, so a prefix that is found in the index brings its samples along. The records of a prompt's
 * last KV_WINDOW_QUERIES tokens lie in wide pages of the sequence's own (*query pages*) until it has been pressed.
 *
 * Layer-major: a prompt that is pressed anyway can go through one layer after the other, each pressed before the next
 * begins. Its layers then take turns on the same wide pages, so that the prompt takes the pages of one layer, and those of
 * all layers only for what stays wide (a prefix that was found in the index, the tail page). The slots kept, the logits and
 * all that follows are the same bits (on a GPU as long as it can press all heads itself: heads that are too long for it are
 * pressed by the host, together with those of their layer here, with all of them otherwise). The shares of the budget must not depend on layers to come: not with
 * KV_SPLIT_MASS, nor with a guard that may raise the budget. What is computed so is never in the prefix index.
 *
 * Rules for pages
 *   R1 a wide page with more than one reference is never written, unless all are those of layers that take turns on it;
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
#include "kvcache/policy.h"
#include "server/base/err.h"

struct kv_shape {
    int n_layers, n_kv_heads, head_dim;
    enum kv_type type;
    int n_heads; /* query heads; 0: no queries are kept */
    int samples; /* queries kept with every wide page: 0, 1, 2, 4, ... KV_PAGE, evenly strided */
    enum kv_narrow narrow_type; /* KV_NARROW_Q8: not with KV_F32 */
};
/* Bytes that KV_PAGE tokens take in a pool of this shape, as in kv_pool_bytes. */
size_t kv_span_bytes(const struct kv_shape *s);
size_t kv_token_bytes(
    const struct kv_shape *s); /* bytes one token takes in a full cache, all layers */

/* Bytes one narrow slot takes in every head of every layer: key, value, bias, scales, struct kv_slot. For kv_options_fill. */
int64_t kv_slot_bytes(const struct kv_shape *s);

struct kv_pool;

/* A pool for at least n_tokens tokens in wide pages of all layers. Address space is taken at once, memory when used.
 * ERR_INVALID, ERR_LIMIT (more than can be numbered), ERR_UNSUPPORTED (q8 in an f32 cache), ERR_NOMEM. */
int kv_pool_open(struct kv_pool **out, struct be *be, const struct kv_shape *s, int64_t n_tokens,
                 struct err *e) WARN_UNUSED;
void kv_pool_close(struct kv_pool *p);
const struct kv_shape *kv_pool_shape(const struct kv_pool *p);
/* What it takes in all: pages with their samples, and the biases and scales that they have as narrow pages (at 128 dims a
 * twentieth of the rest for q8, a hundredth without). Not counted are its tables. */
size_t kv_pool_bytes(const struct kv_pool *p);
void *kv_pool_base(const struct kv_pool *p);  /* block 0, for struct be_kv */
float *kv_pool_beta(const struct kv_pool *p); /* [blocks][kv_side_floats] */

struct kv_stats {
    int64_t pages, free, cached, used, split; /* wide pages */
    int64_t narrow;                           /* narrow pages in use */
    size_t page_bytes;                        /* keys and values */
    size_t sample_bytes;                      /* of the records that go with a page */
    uint64_t prefix_queries, prefix_hits;     /* tokens asked for, tokens found */
    uint64_t evictions;                       /* cached pages taken back */
};
void kv_pool_stats(const struct kv_pool *p, struct kv_stats *out);
bool kv_pool_check(
    const struct kv_pool *p); /* walks everything: R4 holds and counts agree. For tests. */

/* Narrow pages; ERR_LIMIT when the pool is full. */
int kv_narrow_alloc(struct kv_pool *p, int32_t *block) WARN_UNUSED;
void kv_narrow_free(struct kv_pool *p, int32_t block);

/* ---- a sequence's tables ------------------------------------------------------------------------------------- */

/* What is known of a narrow slot beside its key, value and votes; host memory. */
struct kv_slot {
    int32_t pos; /* logical position */
    /* Average attention per query when it was last scored: of the global queries or, with policies that score so, the sum of
     * kv_global_local(). */
    float score;
};

struct kv_swap;
struct kv_seq {
    struct kv_options opt; /* filled; opt.policy is never NULL */
    uint64_t root; /* of no other sequence of the pool, but its forks: their prompts are the same */
    int n_prompt;  /* tokens after which it may be pressed for the first time */
    int n_tokens; /* tokens whose keys and values are in the cache; layer-major: of the layer under way */
    int n_cached; /* of those, found in the prefix index at admission */
    int n_blocks; /* wide pages a layer in the tables */
    int max_blocks;
    int32_t *wide;    /* [n_layers][max_blocks] page ids */
    int wide_pos0;    /* logical position of wide slot 0 (0 for a full cache) */
    bool layer_major; /* the prompt goes layer by layer */
    int layer;        /* then: the one under way, until all are pressed */
    double mass;      /* then: sum over the heads pressed so far, see struct kv_report */
    /* Of each KV head, [n_layers * n_kv_heads]; NULL before the first compaction. One piece of memory, which starts at
     * `narrow`; the lists of a layer's heads are another, which starts at the list of its first (compact_commit.c). */
    int32_t **narrow;      /* block ids, -1 while swapped */
    int32_t *n_narrow;     /* slots used */
    int32_t *n_block;      /* narrow pages held: enough for its quota, if it may be pressed again */
    struct kv_slot **slot; /* [n_narrow] */
    int32_t *quota;        /* slots it may have, the wide tail at the time of pressing included */
    int32_t *spare; /* narrow pages held for the first compaction; NULL: it is never pressed */
    int n_spare, max_spare;
    int32_t *query; /* [n_layers][n_query] pages of the records of the prompt's last tokens */
    int n_query;    /* a layer; 0: none are held */
    int want_query; /* a layer, as long as the prompt is not pressed; 0: the policy keeps all, or the prompt fits */
    struct kv_swap
        *swap;     /* the bytes of a sequence that gave its pages back; see kv_seq_swap_out */
    uint64_t hash; /* chained hash of the full pages in the index so far */
    int n_hashed;  /* tokens covered by it */
};
/* Tables for at most max_tokens tokens, of which the first n_prompt are the prompt; no page is taken yet. *opt is copied and
 * filled (kv_options_fill), and decides with the pool's size whether the prompt goes layer by layer. ERR_INVALID (an option),
 * ERR_UNSUPPORTED (the pool keeps no queries to score by), ERR_LIMIT (the pool cannot hold the prompt, or the layer of it that
 * is to be pressed, and what pressing leaves side by side), ERR_NOMEM. Where only the answer could outgrow the budget and the
 * pool has no room to press it then, the sequence stays whole. */
int kv_seq_open(struct kv_seq *s, struct kv_pool *p, const struct kv_options *opt, int n_prompt,
                int max_tokens, struct err *e) WARN_UNUSED;
/* kv_seq_open in two halves. What it would refuse, but for ERR_NOMEM, needs neither memory nor a page: the plan is numbers in
 * *s without tables, from what is constant in a pool, so that any thread may ask. */
int kv_seq_plan(struct kv_seq *s, const struct kv_pool *p, const struct kv_options *opt,
                int n_prompt, int max_tokens, struct err *e) WARN_UNUSED;
/* The tables that were planned. ERR_NOMEM: s is closed. */
int kv_seq_tables(struct kv_seq *s, struct kv_pool *p, struct err *e) WARN_UNUSED;
void kv_seq_close(struct kv_seq *s,
                  struct kv_pool *p); /* drops every reference; safe on a zeroed seq */
/* Drops every reference and keeps the wide tables: empty, ready for the same tokens again. Allocates nothing. */
void kv_seq_clear(struct kv_seq *s, struct kv_pool *p);
/* Pages for tokens up to n_tokens in all layers, and those that a compaction will need (narrow pages, query pages), evicting
 * cached pages if needed. All or nothing: ERR_LIMIT. */
int kv_seq_reserve(struct kv_seq *s, struct kv_pool *p, int n_tokens) WARN_UNUSED;
/* Wide pages (all layers; narrow pages rounded up to such) that kv_seq_reserve(s, n_tokens) would have to take now. For a
 * swapped sequence: that kv_seq_swap_in would. */
int64_t kv_seq_need(const struct kv_seq *s, const struct kv_pool *p, int n_tokens);
int64_t kv_pool_available(const struct kv_pool *p); /* free + cached wide pages */
void kv_seq_view(const struct kv_seq *s, const struct kv_pool *p, int layer, struct kv_view *out);
/* Where the query of the token at position pos is to be kept in this layer; its page is reserved. False: nowhere, in no
 * layer. */
bool kv_seq_keep(const struct kv_seq *s, const struct kv_pool *p, int layer, int pos,
                 struct be_keep *out);
/* Physical bytes held: pages (shared ones count whole) with their samples, sides of narrow pages, struct kv_slot. */
size_t kv_seq_bytes(const struct kv_seq *s, const struct kv_pool *p);
static inline bool kv_seq_pressed(const struct kv_seq *s) /* in all layers */
{
    return s->wide_pos0 > 0;
}
/* Its prompt goes layer by layer and is not through yet: only layer s->layer may be run, for tokens from s->n_tokens on. */
static inline bool kv_seq_by_layer(const struct kv_seq *s)
{
    return s->layer_major && !kv_seq_pressed(s);
}
/* Slots of the largest head: narrow ones and the wide tail. */
int kv_seq_slots(const struct kv_seq *s, const struct kv_pool *p);

/* Opens dst with the tokens of src, which must hold its whole prompt and not have been pressed, under other options: shares
 * its full and query pages, copies the last one. Neither goes layer by layer (opt->layer_major is 0). Both live on independently. Errors as kv_seq_open's and kv_seq_reserve's,
 * and ERR_UNSUPPORTED when dst wants the prompt's last queries and src holds none; dst is closed then. */
int kv_seq_fork(struct kv_seq *dst, const struct kv_seq *src, struct kv_pool *p,
                const struct kv_options *opt, int max_tokens, struct err *e) WARN_UNUSED;

/* A pressed sequence cannot be computed again: when it has to make room, its pages (few) are copied to ordinary memory and
 * given back; swap_in takes pages (ERR_LIMIT: not enough, nothing changed) and restores every bit.
 * ERR_NOMEM, ERR_DEVICE: s is as it was. */
int kv_seq_swap_out(struct kv_seq *s, struct kv_pool *p, struct err *e) WARN_UNUSED;
int kv_seq_swap_in(struct kv_seq *s, struct kv_pool *p, struct err *e) WARN_UNUSED;

/* ---- prefix index: full pages of KV_PAGE tokens by chained hash (XXH3 of parent hash and tokens); tokens are compared,
 * so a collision is a miss. `salt` keeps caches apart that must not be shared (policies that write, adapters). ----- */
/* Gives an empty s the longest cached prefix of tokens[0, n), at most n - 1 tokens so that one is left to compute.
 * Returns the tokens found. */
int kv_prefix_match(struct kv_seq *s, struct kv_pool *p, const int32_t *tokens, int n,
                    uint64_t salt);
/* Publishes the full pages that s has got since the last call; tokens holds its first n_tokens tokens. None of a prompt that
 * goes layer by layer. */
void kv_prefix_publish(struct kv_seq *s, struct kv_pool *p, const int32_t *tokens, uint64_t salt);
void kv_prefix_clear(struct kv_pool *p); /* forgets everything cached */

#endif
