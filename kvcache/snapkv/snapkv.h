/* The policy `snapkv`: what the end of the prompt attends to, with its neighbours. */
#ifndef WRING_KVCACHE_SNAPKV_SNAPKV_H
#define WRING_KVCACHE_SNAPKV_SNAPKV_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_snapkv;

/* Its score, which pyramidkv and adakv share. */
int kv_snapkv_score(const struct kv_head *h, float *out);

#endif
