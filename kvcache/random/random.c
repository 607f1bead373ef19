/* Chance: the floor under every comparison. "Random Attention" (arXiv 2609.03430) found it hard to beat on long reasoning.
 *
 *     score_j = hash(layer, head, position of j; opt.seed) in [0, 1)
 *
 * A hash and not a generator: a token that stayed once keeps its score, whoever its neighbours are, and a seed gives the same
 * choice on every machine. Sinks and window stay, as with every policy.
 */
#include <xxhash.h>

#include "kvcache/random/random.h"

static int score(const struct kv_head *h, float *out)
{
    for (int j = 0; j < h->n; j++) {
        int32_t key[3] = { h->layer, h->head, h->pos[j] };
        out[j] = (float)(XXH3_64bits_withSeed(key, sizeof key, h->opt->seed) >> 40) * 0x1p-24f;
    }
    return 0;
}

const struct kv_policy kv_random = { .name = "random",
                                     .shares_prefix = true,
                                     .split = KV_SPLIT_UNIFORM,
                                     .merge = KV_MERGE_NONE,
                                     .score = score };
