/* The policy `random`: chance decides; what any method has to beat. */
#ifndef WRING_KVCACHE_RANDOM_RANDOM_H
#define WRING_KVCACHE_RANDOM_RANDOM_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_random;

#endif
