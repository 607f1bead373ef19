/* Ada-KV (arXiv 2407.11550): heads differ in how many tokens they attend to, so those of a layer share one budget: the best
 * slots of all of them together are counted, and each head gets its count. Within a head it is SnapKV.
 *
 * The split is KV_SPLIT_ADA of kvcache/split.c: with a mean of R slots beside the protected ones and H heads, c_h of the H R best
 * belong to head h, and it gets 0.8 c_h + 0.2 R. The floor of 0.2 is kvpress's; the authors' code has 0.5. Scores are normalised
 * per head before they are compared, as pooling leaves heads with sums of their own.
 */
#include "kvcache/adakv/adakv.h"
#include "kvcache/snapkv/snapkv.h"

const struct kv_policy kv_adakv = { .name = "adakv",
                                    .shares_prefix = true,
                                    .split = KV_SPLIT_ADA,
                                    .merge = KV_MERGE_NONE,
                                    .score = kv_snapkv_score };
