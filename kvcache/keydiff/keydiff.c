/* KeyDiff (arXiv 2504.15364): keys of one head point mostly the same way; those that point elsewhere are the ones that get
 * attention. No query is asked, so it needs no attention at all.
 *
 *     score_j = -cos(k_j, m),   m = mean over j of k_j / |k_j|
 *
 * As in the paper, on rotated keys. There are no query heads in it, so grouped queries change nothing. A key of length 0 counts
 * as one at a right angle to m.
 */
#include "kvcache/keydiff/keydiff.h"
#include "kernels/dense.h"
#include "kvcache/score.h"

static int score(const struct kv_head *h, float *out)
{
    float *norm = arena_alloc(h->arena, (size_t)h->n * sizeof *norm);
    float *mean = arena_alloc(h->arena, (size_t)h->dim * sizeof *mean);
    if (norm == NULL || mean == NULL)
        return ERR_NOMEM;
    for (int j = 0; j < h->n; j++) {
        const float *k = h->k + (size_t)j * (size_t)h->dim;
        norm[j] = kv_norm(k, h->dim);
        for (int i = 0; i < h->dim && norm[j] > 0; i++)
            mean[i] += k[i] / norm[j] / (float)h->n;
    }
    float length = kv_norm(mean, h->dim);
    dense_nt(h->isa, out, h->k, mean, h->n, 1, h->dim, 1);
    for (int j = 0; j < h->n; j++) {
        float size = norm[j] * length;
        out[j] = size > 0 ? -out[j] / size : 0;
    }
    return 0;
}

const struct kv_policy kv_keydiff = { .name = "keydiff",
                                      .shares_prefix = true,
                                      .wants_kv = true,
                                      .split = KV_SPLIT_UNIFORM,
                                      .merge = KV_MERGE_NONE,
                                      .score = score };
