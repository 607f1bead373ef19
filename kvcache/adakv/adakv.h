/* The policy `adakv`: SnapKV's scores, budgets that the heads of a layer compete for. */
#ifndef WRING_KVCACHE_ADAKV_ADAKV_H
#define WRING_KVCACHE_ADAKV_ADAKV_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_adakv;

#endif
