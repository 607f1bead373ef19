/* StreamingLLM (arXiv 2309.17453): the sinks, on which attention rests its spare mass, and the most recent tokens.
 *
 *     score_j = j,  the place of j in the list: the later the better
 *
 * The sinks come with opt.sinks, as for every policy. The paper numbers positions within the cache anew, which lets a model
 * run past its trained context; here survivors keep their positions, as their keys are rotated already.
 */
#include "kvcache/window/window.h"

static int score(const struct kv_head *h, float *out)
{
    for (int j = 0; j < h->n; j++)
        out[j] = (float)j;
    return 0;
}

const struct kv_policy kv_window = { .name = "window",
                                     .shares_prefix = true,
                                     .split = KV_SPLIT_UNIFORM,
                                     .merge = KV_MERGE_NONE,
                                     .score = score };
