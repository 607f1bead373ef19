/* Expected Attention (arXiv 2510.00636): a token is worth the attention that queries to come are expected to pay it, times the
 * length of what it then says.
 *
 * Queries before RoPE are taken as normal. Seen from the next 512 positions, with R the mean rotation over them, they have
 * mean mu and covariance S, and the expectation of exp(q.k / sqrt d) has a closed form:
 *
 *     z_j     = mu.k_j / sqrt d + k_j' S k_j / 2 d + beta_j      mu = R mean(q),  S = R cov(q) R'
 *     score_j = (mean over the group's query heads of softmax(z)_j + 0.02) |v_j|
 *
 * Here the queries are the reference queries, turned back by where they stand; the paper's code takes all of the prompt. R is
 * linear, so each query is turned by it and mu and S are those of what comes out. Each query head has a Gaussian of its
 * own, the KV head one set by their mean. Sinks, which would take most of the softmax, are left out of it, as in the paper's
 * code; they get 0, and stay anyway. |v| stands for |W_o v|, as there. beta: votes of slots that stand for several.
 */
#include <math.h>
#include <string.h>

#include "kernels/dense.h"
#include "kvcache/expected/expected.h"
#include "kvcache/score.h"

enum { FUTURE = 512, TILE = 64 };
static const float EPSILON = 0.02f;

struct gaussian {
    float *query; /* [n_ref][dim] */
    float *mean;  /* [dim] scale * mu */
    float *cov;   /* [dim][dim] scale^2 / 2 * S */
};

/* Rotates q, which stands at position 0, by R for positions from .. from + FUTURE - 1. The mean of exp(i p theta) over them is a
 * geometric sum: exp(i theta (from + (F - 1) / 2)) sin(F theta / 2) / (F sin(theta / 2)). */
static void turn_to_future(const struct kv_rope *r, float *q, int from)
{
    for (int i = 0; i < r->half; i++) {
        double theta = (double)r->inv_freq[i], middle = from + (FUTURE - 1) / 2.0;
        double s = sin(theta / 2), size = s != 0 ? sin(FUTURE * theta / 2) / (FUTURE * s) : 1;
        double re = size * cos(theta * middle), im = size * sin(theta * middle);
        float *a = r->half_split ? q + i : q + 2 * i;
        float *b = r->half_split ? q + i + r->half : q + 2 * i + 1;
        double a0 = *a, b0 = *b;
        *a = (float)(a0 * re - b0 * im);
        *b = (float)(a0 * im + b0 * re);
    }
}

/* The Gaussian of query head g. Without reference queries: all 0. */
static void fit_gaussian(const struct kv_head *h, int g, struct gaussian *out)
{
    size_t dim = (size_t)h->dim;
    memset(out->mean, 0, dim * sizeof *out->mean);
    memset(out->cov, 0, dim * dim * sizeof *out->cov);
    for (int i = 0; i < h->n_ref; i++) {
        float *q = out->query + (size_t)i * dim;
        memcpy(q, h->ref_q + ((size_t)i * (size_t)h->group + (size_t)g) * dim, dim * sizeof *q);
        kv_rope_turn(h->rope, q, 1, h->dim, -(h->ref_pos[i] + h->ref_turn[i]));
        turn_to_future(h->rope, q, h->n_tokens);
        for (size_t d = 0; d < dim; d++)
            out->mean[d] += q[d] / (float)h->n_ref;
    }
    float root = h->scale / sqrtf(2 * (float)h->n_ref);
    for (int i = 0; i < h->n_ref; i++)
        for (size_t d = 0; d < dim; d++)
            out->query[(size_t)i * dim + d] =
                (out->query[(size_t)i * dim + d] - out->mean[d]) * root;
    dense_tn(h->isa, out->cov, out->query, out->query, h->dim, h->dim, h->n_ref);
    for (size_t d = 0; d < dim; d++)
        out->mean[d] *= h->scale;
}

/* z[j] = k_j.(mean + cov k_j) + beta_j; t: [TILE][dim]. */
static void log_expectation(const struct kv_head *h, const struct gaussian *g, float *t, float *z)
{
    size_t dim = (size_t)h->dim;
    for (int first = 0; first < h->n; first += TILE) {
        int rows = h->n - first < TILE ? h->n - first : TILE;
        const float *k = h->k + (size_t)first * dim;
        for (int r = 0; r < rows; r++)
            memcpy(t + (size_t)r * dim, g->mean, dim * sizeof *t);
        dense_nn(h->isa, t, k, g->cov, rows, h->dim, h->dim);
        for (int r = 0; r < rows; r++) {
            size_t row = (size_t)r * dim;
            dense_nt(h->isa, z + first + r, t + row, k + row, 1, 1, h->dim, 1);
            z[first + r] += h->beta[first + r];
        }
    }
}

/* out += softmax(z) / group over candidates first .. n - 1; z is overwritten. */
static void add_softmax(const struct kv_head *h, int first, float *z, float *out)
{
    float top = -INFINITY;
    for (int j = first; j < h->n; j++)
        top = z[j] > top ? z[j] : top;
    for (int j = first; j < h->n; j++)
        z[j] -= top;
    dense_exp(h->isa, z + first, z + first, h->n - first);
    double sum = 0;
    for (int j = first; j < h->n; j++)
        sum += (double)z[j];
    float share = (float)(1 / (sum * h->group));
    for (int j = first; j < h->n; j++)
        out[j] += z[j] * share;
}

static int score(const struct kv_head *h, float *out)
{
    size_t dim = (size_t)h->dim;
    struct gaussian g = { .query =
                              arena_alloc(h->arena, ((size_t)h->n_ref + 1) * dim * sizeof(float)),
                          .mean = arena_alloc(h->arena, dim * sizeof(float)),
                          .cov = arena_alloc(h->arena, dim * dim * sizeof(float)) };
    float *t = arena_alloc(h->arena, TILE * dim * sizeof *t);
    float *z = arena_alloc(h->arena, (size_t)h->n * sizeof *z);
    if (g.query == NULL || g.mean == NULL || g.cov == NULL || t == NULL || z == NULL)
        return ERR_NOMEM;
    int first = 0;
    while (first < h->n && h->pos[first] < h->opt->sinks)
        first++;
    memset(out, 0, (size_t)h->n * sizeof *out);
    for (int i = 0; i < h->group; i++) {
        fit_gaussian(h, i, &g);
        log_expectation(h, &g, t, z);
        add_softmax(h, first, z, out);
    }
    for (int j = first; j < h->n; j++)
        out[j] = (out[j] + EPSILON) * kv_norm(h->v + (size_t)j * dim, h->dim);
    return 0;
}

const struct kv_policy kv_expected = { .name = "expected",
                                       .shares_prefix = true,
                                       .wants_kv = true,
                                       .split = KV_SPLIT_UNIFORM,
                                       .merge = KV_MERGE_NONE,
                                       .score = score };
