/* Policies: which slots of a KV head stay when a sequence is pressed, and what becomes of the others.
 *
 * A policy is one folder here, one const struct kv_policy and one line in policy.c; nobody outside of kvcache names one.
 * kvcache/compact.c runs it: it probes every head (kernels/probe.h), asks the policy for scores, splits the budget over
 * heads and layers (split.h), lets the policy choose, merges (fit.h), and writes what is left to narrow pages.
 *
 * Notation, as in EMS (arXiv 2412.08521) and SnapKV (2404.14469): a_ij is the attention of query i to slot j, averaged over
 * the query heads that share the KV head; "local" queries are those of the question (or of the last tokens), "global" ones
 * are at most opt.queries of the samples, strided over the whole prompt, or every opt.stride-th query of it. Both scores are
 * average attention per query, which is EMS's mean alignment: the rows of a softmax sum to one.
 */
#ifndef WRING_KVCACHE_POLICY_H
#define WRING_KVCACHE_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "server/base/err.h"
#include "server/base/mem.h"

struct kv_policy;

enum kv_merge {
    KV_MERGE_DEFAULT, /* the policy's own */
    KV_MERGE_NONE,    /* what is evicted is gone */
    KV_MERGE_VOTES,   /* logit biases fitted, values as they were */
    KV_MERGE_VALUES,  /* values fitted, biases 0 */
    KV_MERGE_FIT,     /* both */
    KV_MERGE_MEAN     /* values averaged into the most similar survivor, bias log n (EMS+) */
};
enum kv_split {
    KV_SPLIT_DEFAULT, /* the policy's own */
    KV_SPLIT_UNIFORM, /* every head the same */
    KV_SPLIT_PYRAMID, /* layers fall linearly (PyramidKV, arXiv 2406.02069; beta 20) */
    KV_SPLIT_ADA, /* the best of a layer's heads together (Ada-KV, arXiv 2407.11550; floor 0.2) */
    KV_SPLIT_MASS /* heads in proportion to the slots that hold 98 % of their score */
};

/* What a request asks for. A zeroed one with a policy means the defaults: kv_options_fill() puts them in. */
struct kv_options {
    const struct kv_policy *policy; /* NULL: the first of the list, which keeps everything */
    /* Slots per KV head, on average over heads and layers, those of the uncompressed tail at the time of pressing
     * included. One of the three; 0: not given. */
    int budget;
    double budget_fraction; /* of the prompt's tokens, in (0, 1) */
    int64_t budget_bytes;   /* of the whole request's narrow pages */
    int budget_max;         /* the guard may raise the budget up to it; 0: no further */
    float
        mass_floor; /* the guard: least average attention that the kept slots must hold; 0: no guard */
    int sinks;      /* first tokens always kept; 0: 4, -1: none */
    int window;     /* last tokens always kept, at most a quarter of the budget; 0: 32 */
    int tail; /* tokens beyond the budget that start the next pressing; 0: as the budget, 128 to 256 */
    int protect; /* first tokens kept (a system prompt), behind the sinks as they are, at most a quarter of the budget */
    int question0,
        question1; /* tokens of the question: [question0, question1); empty: the last tokens */
    float local; /* weight of the local score against the global one; 0: the policy's own; -1: 0 */
    int pool;    /* reach of pooling over positions; 0: the policy's own, -1: none */
    /* ems: share of the budget chosen by pooled score and kept exact; 0: 0.9 where a question is marked, else 0.5; -1: 0 */
    float phi;
    float lambda; /* ridge of the value fit; 0: 0.02 */
    int queries; /* reference positions strided over the prompt; 0: 224, in long prompts fewer, down to 96 */
    int stride; /* the global score is that of every so-many-th query of the prompt, 1: exact; 0: of `queries` of them. A
                   multiple of what lies between the queries that are kept (kv_shape.samples) */
    enum kv_merge merge;
    enum kv_split split;
    uint64_t seed; /* of `random` */
    /* The server's: a prompt of so many tokens is computed and pressed layer by layer, where its options allow that (kv.h);
     * INT_MAX: only one that the pool cannot hold otherwise; 0: none. */
    int layer_major;
};
enum {
    KV_BUDGET_MIN = 16,
    KV_BUDGET_DEFAULT = 256,
    KV_WINDOW_QUERIES = 32,
    KV_TAIL_LEAST = 128,
    KV_TAIL_MOST = 256
};

/* Puts the defaults in and resolves the budget to slots for a prompt of n_prompt tokens. slot_bytes: of one slot of all
 * heads of all layers. ERR_INVALID names the option, what it was and its range. */
int kv_options_fill(struct kv_options *o, int n_prompt, int64_t slot_bytes,
                    struct err *e) WARN_UNUSED;
enum kv_merge kv_merge_find(const char *name); /* "none", "votes", ...; KV_MERGE_DEFAULT: unknown */
enum kv_split kv_split_find(const char *name); /* "uniform", ...; KV_SPLIT_DEFAULT: unknown */
const char *kv_merge_names(void);              /* for messages: "fit, votes, ..." */
const char *kv_split_names(void);

/* How the model turns queries: for asking from another position. Host memory. */
struct kv_rope {
    const float *inv_freq; /* [half] */
    int half;              /* pairs rotated */
    bool half_split;       /* pairs are (i, i + half), not (2i, 2i + 1) */
};
/* Rotates the queries q[n][dim] on by `delta` positions. */
void kv_rope_turn(const struct kv_rope *r, float *q, int n, int dim, int delta);

/* One KV head as a policy sees it: n candidates by rising position. Host memory, of one thread, valid during the call. */
struct kv_head {
    const struct kv_options *opt; /* filled */
    int layer, head, n_layers, n_kv_heads;
    int n;        /* candidates */
    int n_tokens; /* of the sequence */
    bool again;   /* pressed before: global of a slot kept then is what it is remembered by */
    int dim, group;
    float scale;
    enum cpu_isa isa;   /* for kernels/dense.h */
    const int32_t *pos; /* [n] */
    const float *beta;  /* [n] log votes so far; NULL in a choice */
    /* [n] average attention per query: of the local and the global queries, each from where it stood, and of the last query
     * alone. Pressed again, local and global are `mean`. */
    const float *local, *global, *last;
    /* [n] of the reference queries, turned to the positions to come: mean_i P_ij and sqrt(mean_i P_ij^2). */
    const float *mean, *rms;
    const float *k, *v; /* [n][dim]; NULL unless the policy's wants_kv, and in a choice */
    /* Reference queries: n_ref positions times `group` heads, position-major; none in a choice. ref_q and ref_o are there for
     * merges, and for scores of a policy that wants_kv. */
    int n_ref;
    const int32_t *ref_pos;  /* [n_ref] where each stood */
    const float *ref_q;      /* [n_ref * group][dim] turned to n_tokens and on */
    const int32_t *ref_turn; /* [n_ref] by how many positions */
    const float *ref_o;      /* [n_ref * group][dim] full attention */
    const float *ref_lse;    /* [n_ref * group] */
    const float *ref_weight; /* [n_ref * group] mean 1: what a query counts in the fits */
    const struct kv_rope *rope;
    struct arena *arena; /* scratch, emptied after the call */
};

/* What a head keeps. keep and exact are the policy's choice; k, v, beta start as copies and may be changed by a merge. */
struct kv_kept {
    int n;
    int32_t *keep; /* [n] candidates, rising */
    bool *exact;   /* [n] a merge leaves its votes and value as they are */
    float *k, *v;  /* [n][dim] */
    float *beta;   /* [n] */
    int merged;    /* candidates that a merge took in; 0 before */
};

struct kv_policy {
    const char *name;
    bool shares_prefix;  /* its wide pages are those of a full cache, so they may be shared */
    bool keeps_all;      /* nothing is ever pressed: every slot below is NULL */
    bool wants_kv;       /* score or merge reads kv_head.k, .v, .ref_q or .ref_o */
    bool one_set;        /* all heads of a layer keep the same tokens: their scores are averaged */
    enum kv_split split; /* its own */
    enum kv_merge merge; /* its own */
    bool global_local;   /* scores by kv_global_local(), and a slot is remembered by that */
    float local;         /* its own weight there; 0: 0.5 */
    /* score[n]: the higher the longer it stays. Protected slots are set to +inf afterwards. ERR_NOMEM only. */
    int (*score)(const struct kv_head *h, float *score);
    /* Chooses kept->n candidates: keep and exact. NULL: the best scores, ties to the later position. Protected ones (score
     * +inf) are never more than kept->n and must stay. ERR_NOMEM only. */
    int (*select)(const struct kv_head *h, const float *score, struct kv_kept *kept);
    /* Its own way to merge what is not kept into what is, see kept->merged; NULL: one of enum kv_merge. ERR_NOMEM only. */
    int (*merge_own)(const struct kv_head *h, const float *score, struct kv_kept *kept);
};
extern const struct kv_policy
    *const kv_policy_list[]; /* NULL-terminated; the first is the default */
const struct kv_policy *kv_policy_find(const char *name);
const char *kv_policy_names(void); /* for messages: "full, ..." */

#endif
