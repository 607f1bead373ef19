/* PyramidKV (arXiv 2406.02069): low layers attend widely and high layers to a few tokens, so budgets fall linearly with the
 * layer; within a layer it is SnapKV. The split is KV_SPLIT_PYRAMID of kvcache/split.c: with a mean of m slots beside the
 * protected ones, the last layer has m / 20 and the first 2 m - m / 20 (beta 20 as in the authors' code).
 */
#include "kvcache/pyramidkv/pyramidkv.h"
#include "kvcache/snapkv/snapkv.h"

const struct kv_policy kv_pyramidkv = { .name = "pyramidkv",
                                        .shares_prefix = true,
                                        .split = KV_SPLIT_PYRAMID,
                                        .merge = KV_MERGE_NONE,
                                        .score = kv_snapkv_score };
