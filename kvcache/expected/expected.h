/* The policy `expected`: attention expected of the queries to come. */
#ifndef WRING_KVCACHE_EXPECTED_EXPECTED_H
#define WRING_KVCACHE_EXPECTED_EXPECTED_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_expected;

#endif
