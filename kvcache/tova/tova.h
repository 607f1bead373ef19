/* The policy `tova`: what the last query attends to. */
#ifndef WRING_KVCACHE_TOVA_TOVA_H
#define WRING_KVCACHE_TOVA_TOVA_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_tova;

#endif
