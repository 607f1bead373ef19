/* EMS (arXiv 2412.08521) with its merge solved by least squares: the default when a cache is pressed.
 *
 * EMS parts the tokens of a head in three: the important ones stay as they are, the next ones are merged into them, the
 * irrelevant ones go. Its code and formulas were never published; `ems-r` rebuilds them. Here the three-way split is kept and
 * the middle part done anew:
 *
 *   important    a share phi of the budget, by the Global-Local score, pooled widely:
 *
 *                    s = opt.local * local + (1 - opt.local) * global
 *                    score_j = max over j - 5 <= i <= j + 1 of mean over |m - i| <= 1 of s_m
 *
 *                Unless told otherwise local is all of it: the queries of the question, or the last ones. What the whole
 *                prompt looks at has the next part, and took the place of what the question needs. These slots are exact: no
 *                merge touches their votes or values. The reach matters more than anything else: models spell numbers digit by
 *                digit, and only the first digit is attended from the question, so what follows it must stay. On SmolLM2-135M
 *                SnapKV's reach of 3 to both sides lost all of 19 planted numbers at a budget of 128 of 2048; one of 5 to both
 *                sides kept 16, but what it kept in front of a peak took the place of other peaks: at 64 slots the KL of a number
 *                told was .59, that of a word .70, and with 5 behind and 1 in front they are .23 and .17 (7 and 5 samples).
 *                Where a question is marked phi is .9, else 1/2. At 192 slots the KL of answers is .64 with 3/4 and .34 with .9
 *                where two rules are asked for (38 samples), .094 and .055 of three numbers (30), .25 and .18 of a word (19);
 *                that of a chain of names .049 and .059 (23), and where nothing is asked .072 with 1/2, .084 and .093 (24): what
 *                is asked needs exact slots, what is not asked a merge.
 *   merged into  the rest of the budget, by rms_j = sqrt(mean_i P_ij^2) of the reference queries, which are turned to the
 *                positions to come: what the least-squares fit needs most, for a column's energy is what it can explain.
 *                Their votes and values, and those of sinks and window, are free.
 *   irrelevant   everything else: its mass dissolves in the free votes, what it said in the free values (kvcache/fit.h).
 *
 * Measured on SmolLM2-135M, 200 samples of 2048 tokens, 128 and 256 slots: KL to the full cache with nothing asked .087
 * and .051, without the merge .144 and .077, SnapKV .216 and .124. When it is seen, of 130 numbers 92 and 98 % are told, SnapKV
 * 6 and 16; of 127 words 88 and 93 %, SnapKV 80 and 91. In a prototype, values of all slots free had less KL (.051 and .030 for
 * .064 and .032) but 8 and 15 of 19 numbers for 18 and 19: the fit bends the very slots that hold facts.
 */
#include <math.h>
#include <string.h>

#include "kvcache/ems/ems.h"
#include "kvcache/score.h"

enum { MEAN_REACH = 1, BEFORE = 5, AFTER = 1 };

static int score(const struct kv_head *h, float *out)
{
    if (h->opt->pool < 0) {
        kv_global_local(h, out);
        return 0;
    }
    float *smooth = arena_alloc(h->arena, (size_t)h->n * sizeof *smooth);
    if (smooth == NULL)
        return ERR_NOMEM;
    kv_global_local(h, out);
    kv_pool_mean(smooth, out, h->n, MEAN_REACH);
    kv_pool_max(out, smooth, h->n, kv_pool_reach(h->opt, BEFORE), AFTER);
    return 0;
}

/* The protected and the important ones by score; then, those set to +inf, what is left of the budget by rms. */
static int select_parts(const struct kv_head *h, const float *s, struct kv_kept *kept)
{
    int n_protected = kv_count_protected(s, h->n);
    int n_first = n_protected + (int)(h->opt->phi * (float)(kept->n - n_protected));
    float *rank = arena_alloc(h->arena, (size_t)h->n * sizeof *rank);
    if (rank == NULL)
        return ERR_NOMEM;
    kv_top(s, h->n, n_first, kept->keep);
    memcpy(rank, h->rms, (size_t)h->n * sizeof *rank);
    for (int i = 0; i < n_first; i++)
        rank[kept->keep[i]] = INFINITY;
    kv_top(rank, h->n, kept->n, kept->keep);
    for (int i = 0; i < kept->n; i++)
        kept->exact[i] = rank[kept->keep[i]] == INFINITY && s[kept->keep[i]] != INFINITY;
    return 0;
}

const struct kv_policy kv_ems = { .name = "ems",
                                  .shares_prefix = true,
                                  .split = KV_SPLIT_UNIFORM,
                                  .merge = KV_MERGE_FIT,
                                  .global_local = true,
                                  .local = 1,
                                  .score = score,
                                  .select = select_parts };
