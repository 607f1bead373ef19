/* H2O, the heavy-hitter oracle (arXiv 2306.14048): half of the budget to the tokens that all queries so far attended to most,
 * half to the most recent ones.
 *
 *     score_j = sum_i a_ij / n = global_j
 *
 * The paper sums columns of causal attention, raw: early tokens were seen by more queries and are favoured; that bias is
 * part of the method and stays. Dividing by the number of queries changes no rank. Differences: the sum runs over strided
 * queries; a KV head has one set for its group of query heads, whose attention is averaged (the paper's models have as many
 * KV heads as query heads); the halves are those of what is left beside the sinks and the window.
 */
#include <math.h>
#include <string.h>

#include "kvcache/h2o/h2o.h"
#include "kvcache/score.h"

static int score(const struct kv_head *h, float *out)
{
    memcpy(out, h->global, (size_t)h->n * sizeof *out);
    return 0;
}

static int select_half(const struct kv_head *h, const float *s, struct kv_kept *kept)
{
    float *rank = arena_alloc(h->arena, (size_t)h->n * sizeof *rank);
    if (rank == NULL)
        return ERR_NOMEM;
    memcpy(rank, s, (size_t)h->n * sizeof *rank);
    int recent = (kept->n - kv_count_protected(s, h->n)) / 2;
    for (int j = h->n - 1; j >= 0 && recent > 0; j--) {
        if (rank[j] != INFINITY) {
            rank[j] = INFINITY;
            recent--;
        }
    }
    memset(kept->exact, 0, (size_t)kept->n * sizeof *kept->exact);
    kv_top(rank, h->n, kept->n, kept->keep);
    return 0;
}

const struct kv_policy kv_h2o = { .name = "h2o",
                                  .shares_prefix = true,
                                  .split = KV_SPLIT_UNIFORM,
                                  .merge = KV_MERGE_NONE,
                                  .score = score,
                                  .select = select_half };
