/* What policies share: pooling of scores over positions, and the choice of the best. */
#ifndef WRING_KVCACHE_SCORE_H
#define WRING_KVCACHE_SCORE_H

#include "kvcache/policy.h"

/* out[j] = max of s over the candidates j - before .. j + after, or mean over j - reach .. j + reach, of what exists. Candidates
 * are neighbours when they are neighbours in the list. NaN never is the max. out is not s. */
void kv_pool_max(float *out, const float *s, int n, int before, int after);
void kv_pool_mean(float *out, const float *s, int n, int reach);
/* opt.pool resolved: 0: a policy's own reach, negative: 0. */
static inline int kv_pool_reach(const struct kv_options *o, int own)
{
    return o->pool == 0 ? own : o->pool < 0 ? 0 : o->pool;
}

/* order[n] = the candidates from best to worst; ties: the later one is better; NaN is the worst. scratch[n]. Takes O(n). */
void kv_order(const float *score, int n, int32_t *order, int32_t *scratch);
/* keep[k] = the k <= n candidates with the highest score, rising; ties go to the later one; NaN counts as the lowest. O(n). */
void kv_top(const float *score, int n, int k, int32_t *keep);

/* The weight of the local score, opt.local; when a cache is pressed again at most a half, for what is remembered of a slot: the
 * queries of an answer do not speak for what its question saw. */
float kv_local_weight(const struct kv_options *o, bool again);
/* EMS's Global-Local score of a candidate, with that weight, and of all. */
static inline float kv_blend(float weight, float local, float global)
{
    return weight * local + (1 - weight) * global;
}
void kv_global_local(const struct kv_head *h, float *out);

/* Candidates that must stay: their score is +inf. */
int kv_count_protected(const float *score, int n);

/* |x|, summed in double. */
float kv_norm(const float *x, int dim);
/* out = x / |x|, or zeros. */
void kv_unit(float *out, const float *x, int dim);

#endif
