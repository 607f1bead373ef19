/* Keeps everything: nothing is ever pressed, so its cache is the one that all others are measured against. */
#include "kvcache/full/full.h"

const struct kv_policy kv_full = { .name = "full", .shares_prefix = true, .keeps_all = true };
