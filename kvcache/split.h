/* How a budget is split over layers and heads. */
#ifndef WRING_KVCACHE_SPLIT_H
#define WRING_KVCACHE_SPLIT_H

#include "kvcache/policy.h"

struct kv_split_in {
    int n_layers, n_kv_heads;
    int n;                     /* candidates of every head */
    const float *const *score; /* [n_layers * n_kv_heads] -> [n], protected ones +inf */
    int n_protected;           /* candidates of each head that stay in any case */
    int budget;          /* candidates a head keeps on average; at least n_protected, at most n */
    enum kv_split split; /* not KV_SPLIT_DEFAULT */
};
/* Whether a layer's shares follow from its own scores, so that it may be pressed before the next one is computed. Those of
 * the pyramid follow from the layer's number. */
static inline bool kv_split_by_layer(enum kv_split split)
{
    return split != KV_SPLIT_MASS;
}
/* budget[n_layers * n_kv_heads]: each from n_protected to n, their sum at most n_layers * n_kv_heads * in->budget.
 * ERR_NOMEM only (scratch from the arena). */
int kv_split_budget(const struct kv_split_in *in, int *budget, struct arena *a) WARN_UNUSED;

#endif
