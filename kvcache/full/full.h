/* The policy `full`: every token's keys and values stay. */
#ifndef WRING_KVCACHE_FULL_FULL_H
#define WRING_KVCACHE_FULL_FULL_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_full;

#endif
