#include "kvcache/full/full.h"

const struct kv_policy kv_full = { .name = "full", .shares_prefix = true };
