/* TOVA, token omission via attention (arXiv 2401.06104): the tokens that the last query attends to stay, the same ones in all
 * heads of a layer.
 *
 *     score_j = a_Tj of the last query T, averaged over all heads of the layer
 *
 * The average over the query heads of a KV head is in kv_head.last; one_set has it averaged over the KV heads. The paper drops
 * one token with every token generated; here many go at once, by the query that came last.
 */
#include <string.h>

#include "kvcache/tova/tova.h"

static int score(const struct kv_head *h, float *out)
{
    memcpy(out, h->last, (size_t)h->n * sizeof *out);
    return 0;
}

const struct kv_policy kv_tova = { .name = "tova",
                                   .shares_prefix = true,
                                   .one_set = true,
                                   .split = KV_SPLIT_UNIFORM,
                                   .merge = KV_MERGE_NONE,
                                   .score = score };
