/* The policy `keydiff`: keys unlike the others stay; no query is asked. */
#ifndef WRING_KVCACHE_KEYDIFF_KEYDIFF_H
#define WRING_KVCACHE_KEYDIFF_KEYDIFF_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_keydiff;

#endif
