/* The policy `pyramidkv`: SnapKV's scores, budgets that fall from layer to layer. */
#ifndef WRING_KVCACHE_PYRAMIDKV_PYRAMIDKV_H
#define WRING_KVCACHE_PYRAMIDKV_PYRAMIDKV_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_pyramidkv;

#endif
