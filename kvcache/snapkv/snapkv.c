/* SnapKV (arXiv 2404.14469): the last queries of a prompt vote for the tokens they attend to; votes are pooled over neighbouring
 * positions, because a fact is more than the one token that attention hits.
 *
 *     score_j = max over |i - j| <= 3 of local_i,   local_j = mean over the local queries i of a_ij
 *
 * Max-pooling of kernel 7 and a window of 32 are the values of its authors' code for LongBench; opt.pool changes the reach. The
 * paper keeps a set per query head, 3 to 8 times the bytes of a model with grouped queries; here a KV head has one set, by the
 * mean over its query heads. Where the question is marked, its tokens are the local queries, not the last ones whatever.
 */
#include "kvcache/snapkv/snapkv.h"
#include "kvcache/score.h"

enum { POOL_REACH = 3 };

int kv_snapkv_score(const struct kv_head *h, float *out)
{
    int reach = kv_pool_reach(h->opt, POOL_REACH);
    kv_pool_max(out, h->local, h->n, reach, reach);
    return 0;
}

const struct kv_policy kv_snapkv = { .name = "snapkv",
                                     .shares_prefix = true,
                                     .split = KV_SPLIT_UNIFORM,
                                     .merge = KV_MERGE_NONE,
                                     .score = kv_snapkv_score };
