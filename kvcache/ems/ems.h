/* The policy `ems`: important slots kept exact, the rest of the budget merged into by least squares. */
#ifndef WRING_KVCACHE_EMS_EMS_H
#define WRING_KVCACHE_EMS_EMS_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_ems;

#endif
