/* The policy `h2o`: heavy hitters of all queries so far, and recent tokens. */
#ifndef WRING_KVCACHE_H2O_H2O_H
#define WRING_KVCACHE_H2O_H2O_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_h2o;

#endif
