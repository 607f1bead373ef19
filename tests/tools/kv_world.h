/* What tests of compaction share: sequences whose keys, values and queries are made up from position, layer and head alone.
 * The log-sum-exp that goes with a query is computed in double, from the cache as it is.
 *
 * The backend is the CPU's plain C, a pretended device whose addresses no CPU can follow, or a device.
 */
#ifndef WRING_TESTS_TOOLS_KV_WORLD_H
#define WRING_TESTS_TOOLS_KV_WORLD_H

#include "kvcache/compact.h"
#include "kvcache/kv_internal.h"

enum {
    KV_LAYERS = 2,
    KV_HEADS = 2,
    KV_ALL = KV_LAYERS * KV_HEADS,
    KV_GROUP = 2,
    KV_DIM = 16,
    KV_PAGES = 64, /* a layer */
    KV_SAMPLES = 4,
    KV_TOKENS_MOST = 640
};
static const float KV_SCALE = 0.25f;

struct kv_world {
    struct be *be, far; /* far.state: NULL, or an int, how many waits until it is lost */
    struct kv_pool *p;
    struct kv_compactor *c;
};
void kv_world_open(struct kv_world *w, enum kv_type type, int threads, bool device);
/* With every query kept. */
void kv_world_open_exact(struct kv_world *w, enum kv_type type, int threads, bool device);
/* With q8 narrow pages in a bf16 cache. */
void kv_world_open_q8(struct kv_world *w, int threads, bool device);
/* On the device "cuda", with ops that a test may change: w->far. */
void kv_world_open_cuda(struct kv_world *w, enum kv_type type, enum kv_narrow narrow);
void kv_world_close(struct kv_world *w);     /* fails the test when a page is held */
void kv_world_compactor(struct kv_world *w); /* a new one, with no memory of its own yet */

extern const struct kv_rope kv_world_rope;
extern const struct kv_policy kv_world_evict; /* keeps the best by Global-Local score */
/* Merges nothing, splits evenly. */
struct kv_options kv_world_options(const struct kv_policy *policy, int budget);

/* The element i, rounded to the type: kind 0 keys, 1 values, both of a KV head; 2 queries, of a query head. */
float kv_made_up(enum kv_type type, int kind, int layer, int head, int pos, int i);

/* All slots of a KV head as attention sees them. */
struct kv_slots {
    int n;
    int pos[KV_TOKENS_MOST];
    float k[KV_TOKENS_MOST][KV_DIM], v[KV_TOKENS_MOST][KV_DIM], beta[KV_TOKENS_MOST];
};
void kv_slots_read(const struct kv_world *w, const struct kv_seq *s, int layer, int head,
                   struct kv_slots *out);
double kv_slots_logit(const struct kv_slots *k, int j, const float *q);
double kv_slots_lse(const struct kv_slots *k, const float *q, int pos); /* over slots up to pos */

/* Opens s and puts its prompt in. */
void kv_world_start(const struct kv_world *w, struct kv_seq *s, const struct kv_options *o,
                    int n_prompt, int max_tokens);
/* Tokens up to n, with what is kept of their queries; of one whose prompt goes layer by layer, in the layer under way. */
void kv_world_grow(const struct kv_world *w, struct kv_seq *s, int n);
/* Presses s, which must be due. */
struct kv_report kv_world_press(const struct kv_world *w, struct kv_seq *s);
/* A number over every bit that attention reads, samples, and what the tables say. */
uint64_t kv_world_bits(const struct kv_world *w, const struct kv_seq *s);

#endif
