/* The policy `window`: the first tokens and the last ones stay. */
#ifndef WRING_KVCACHE_WINDOW_WINDOW_H
#define WRING_KVCACHE_WINDOW_WINDOW_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_window;

#endif
