/* EMS (arXiv 2412.08521), rebuilt. Its code and most of its formulas were never published; what follows keeps to what the
 * abstract, the reviews and the figures tell, and fills the gaps with the simplest choice.
 *
 *   score        Global-Local: s_j = opt.local * local_j + (1 - opt.local) * global_j, both average attention per query, which is
 *                the paper's alignment of the two by their means.
 *   sparsity     Tokens by falling s; the first m hold p_keep of the head's total.
 *                  important      the N_imp that the budget has room for beside the protected ones
 *                  to be merged   ranks N_imp .. m - 1, at most kappa N_imp of them
 *                  irrelevant     the others: gone
 *   redundancy   rho(j, c) = cos(k_j, k_c) cos(v_j, v_c), or -1 unless both cosines are positive: two that point apart in both are
 *                not alike. j joins the kept c of highest rho if that is at least tau, otherwise the *zero class*: dropped,
 *                never forced into a merge that does not fit. Window tokens take part as centres; sinks and the system prompt
 *                do not.
 *   merge        over a cluster, weights w_j = s_j / sum s:
 *                  v_c <- sum w_j v_j
 *                  k_c <- |k_c| u / |u|,  u = sum w_j k_j / |k_j|      direction averaged, norm kept, position c's
 *
 * The paper's zero class is a row of zeros in a matrix, so that all heads have one shape on a GPU; in C it is "skip". GQA: a KV
 * head has one set. Known weakness, measured: an average of n tokens has the attention of one; `merge: mean` counts votes.
 */
#include <math.h>
#include <string.h>

#include "kernels/dense.h"
#include "kvcache/ems_r/ems_r.h"
#include "kvcache/score.h"

enum { TILE = 64 };
static const float LEAST_WEIGHT = 1e-9f; /* so that no cluster weighs nothing */
const struct kv_ems_r_limits kv_ems_r_defaults = { .p_keep = 0.98f, .kappa = 4, .tau = 0.6f };

/* Kept slots that may take others in, and what they took; rows of [n][dim]. */
struct centers {
    int n;
    int32_t *slot; /* [n] places in kept */
    float *k, *v;  /* unit vectors */
    float *sum_k, *sum_v, *weight;
    int *joined;
};

static int score(const struct kv_head *h, float *out)
{
    float *s = arena_alloc(h->arena, (size_t)h->n * sizeof *s);
    if (s == NULL)
        return ERR_NOMEM;
    int reach = kv_pool_reach(h->opt, 0);
    kv_global_local(h, s);
    kv_pool_max(out, s, h->n, reach, reach);
    return 0;
}

/* order[n] = all candidates by rank: the protected ones, the important ones, those to be merged (returns how many), the rest. */
static int classify(const struct kv_head *h, const float *s, const struct kv_kept *kept,
                    const struct kv_ems_r_limits *limits, int32_t *order, int32_t *scratch)
{
    int n_protected = kv_count_protected(s, h->n), n_imp = kept->n - n_protected;
    kv_order(s, h->n, order, scratch);
    double total = 0, sum = 0;
    for (int i = n_protected; i < h->n; i++)
        total += (double)s[order[i]];
    int m = 0, most = n_imp * (1 + limits->kappa);
    while (n_protected + m < h->n && m < most && sum < (double)limits->p_keep * total)
        sum += (double)s[order[n_protected + m++]];
    return m > n_imp ? m - n_imp : 0;
}

static int centers_make(const struct kv_head *h, const float *weight, const struct kv_kept *kept,
                        struct centers *c)
{
    size_t dim = (size_t)h->dim, all = (size_t)kept->n * dim * sizeof(float);
    int fixed = h->opt->sinks > h->opt->protect ? h->opt->sinks : h->opt->protect;
    c->slot = arena_alloc(h->arena, (size_t)kept->n * sizeof *c->slot);
    c->weight = arena_alloc(h->arena, (size_t)kept->n * sizeof *c->weight);
    c->joined = arena_alloc(h->arena, (size_t)kept->n * sizeof *c->joined);
    c->k = arena_alloc(h->arena, all);
    c->v = arena_alloc(h->arena, all);
    c->sum_k = arena_alloc(h->arena, all);
    c->sum_v = arena_alloc(h->arena, all);
    if (c->slot == NULL || c->weight == NULL || c->joined == NULL || c->k == NULL || c->v == NULL ||
        c->sum_k == NULL || c->sum_v == NULL)
        return ERR_NOMEM;
    for (int i = 0; i < kept->n; i++) {
        if (h->pos[kept->keep[i]] < fixed)
            continue;
        size_t at = (size_t)c->n * dim, from = (size_t)i * dim;
        float w = c->weight[c->n] = fmaxf(weight[kept->keep[i]], LEAST_WEIGHT);
        kv_unit(c->k + at, kept->k + from, h->dim);
        kv_unit(c->v + at, kept->v + from, h->dim);
        for (size_t d = 0; d < dim; d++) {
            c->sum_k[at + d] = w * c->k[at + d];
            c->sum_v[at + d] = w * kept->v[from + d];
        }
        c->slot[c->n++] = i;
    }
    return 0;
}

/* The center of highest redundancy, the first of equals. */
static int nearest(const float *cos_k, const float *cos_v, int n, float *rho)
{
    int best = 0;
    *rho = -2;
    for (int c = 0; c < n; c++) {
        float r = cos_k[c] > 0 && cos_v[c] > 0 ? cos_k[c] * cos_v[c] : -1;
        if (r > *rho) {
            *rho = r;
            best = c;
        }
    }
    return best;
}

/* Sends each of tbm[n] to its center or to nowhere; returns how many found one. */
static int route(const struct kv_head *h, const float *weight, const int32_t *tbm, int n, float tau,
                 struct centers *c)
{
    size_t dim = (size_t)h->dim;
    float *k = arena_alloc(h->arena, 2 * TILE * dim * sizeof *k), *v = k + TILE * dim;
    float *cos_k = arena_alloc(h->arena, 2 * TILE * (size_t)c->n * sizeof *cos_k);
    if (k == NULL || cos_k == NULL)
        return ERR_NOMEM;
    float *cos_v = cos_k + TILE * (size_t)c->n;
    int merged = 0;
    for (int first = 0; first < n; first += TILE) {
        int rows = n - first < TILE ? n - first : TILE;
        for (int r = 0; r < rows; r++) {
            kv_unit(k + (size_t)r * dim, h->k + (size_t)tbm[first + r] * dim, h->dim);
            kv_unit(v + (size_t)r * dim, h->v + (size_t)tbm[first + r] * dim, h->dim);
        }
        dense_nt(h->isa, cos_k, k, c->k, rows, c->n, h->dim, 1);
        dense_nt(h->isa, cos_v, v, c->v, rows, c->n, h->dim, 1);
        for (int r = 0; r < rows; r++) {
            float rho, w = fmaxf(weight[tbm[first + r]], LEAST_WEIGHT);
            size_t row = (size_t)r * (size_t)c->n;
            int to = nearest(cos_k + row, cos_v + row, c->n, &rho);
            if (!(rho >= tau))
                continue;
            const float *value = h->v + (size_t)tbm[first + r] * dim;
            for (size_t d = 0; d < dim; d++) {
                c->sum_k[(size_t)to * dim + d] += w * k[(size_t)r * dim + d];
                c->sum_v[(size_t)to * dim + d] += w * value[d];
            }
            c->weight[to] += w;
            c->joined[to]++;
            merged++;
        }
    }
    return merged;
}

/* Writes the clusters; a center that took nothing in keeps every bit. */
static void centers_write(const struct centers *c, int dim, struct kv_kept *kept)
{
    for (int i = 0; i < c->n; i++) {
        if (c->joined[i] == 0)
            continue;
        size_t from = (size_t)i * (size_t)dim, at = (size_t)c->slot[i] * (size_t)dim;
        float length = kv_norm(kept->k + at, dim), sum = kv_norm(c->sum_k + from, dim);
        for (int d = 0; d < dim; d++) {
            kept->v[at + (size_t)d] = c->sum_v[from + (size_t)d] / c->weight[i];
            if (sum > 0) /* directions that cancel leave the key as it is */
                kept->k[at + (size_t)d] = c->sum_k[from + (size_t)d] * (length / sum);
        }
    }
}

int kv_ems_r_merge(const struct kv_head *h, const float *s, struct kv_kept *kept,
                   const struct kv_ems_r_limits *limits, struct kv_ems_r_counts *counts)
{
    struct kv_ems_r_counts none;
    counts = counts != NULL ? counts : &none;
    *counts = (struct kv_ems_r_counts){ .irrelevant = h->n - kept->n };
    if (h->n == kept->n || kept->n == 0)
        return 0;
    int32_t *order = arena_alloc(h->arena, 2 * (size_t)h->n * sizeof *order);
    float *weight = arena_alloc(h->arena, (size_t)h->n * sizeof *weight);
    if (order == NULL || weight == NULL)
        return ERR_NOMEM;
    TRY(score(h, weight)); /* s has no finite score for window tokens */
    int n_tbm = classify(h, s, kept, limits, order, order + h->n);
    counts->dropped = n_tbm;
    counts->irrelevant -= n_tbm;
    struct centers c = { 0 };
    TRY(centers_make(h, weight, kept, &c));
    if (n_tbm == 0 || c.n == 0)
        return 0;
    int merged = route(h, weight, order + kept->n, n_tbm, limits->tau, &c);
    TRY(merged);
    centers_write(&c, h->dim, kept);
    counts->merged = merged;
    counts->dropped -= merged;
    return 0;
}

static int merge(const struct kv_head *h, const float *s, struct kv_kept *kept)
{
    struct kv_ems_r_counts counts;
    TRY(kv_ems_r_merge(h, s, kept, &kv_ems_r_defaults, &counts));
    kept->merged = counts.merged;
    return 0;
}

const struct kv_policy kv_ems_r = { .name = "ems-r",
                                    .shares_prefix = true,
                                    .wants_kv = true,
                                    .split = KV_SPLIT_UNIFORM,
                                    .merge = KV_MERGE_NONE,
                                    .global_local = true,
                                    .score = score,
                                    .merge_own = merge };
