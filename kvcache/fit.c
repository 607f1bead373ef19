/* Merging what is evicted into what stays: the least-squares fit, and the mean of what is alike.
 *
 * Both work on one head in one thread. Everything is f32: the ridge keeps the systems' condition near 1 / lambda.
 */
#include "kvcache/fit.h"

#include <math.h>
#include <string.h>

#include "kernels/dense.h"
#include "kvcache/score.h"

/* ---- the system: what the reference queries see of the kept slots ------------------------------------------------ */

enum { ROWS_AT_ONCE = 32 }; /* of a [n][slots] matrix: they stay in L1 between two uses */

/* e[i][c] = exp(x[i][c] - top[i]) with x the logits over the kept slots as they stand and top the largest of a row. So
 * exp(x - lse) is e * exp(top - lse), and softmax(x + log w) is w e / sum(w e), which no query underflows. */
struct fit {
    const struct kv_head *h;
    int rows, slots; /* rows: reference queries */
    float *e;        /* [rows][slots]; later the weights p */
    float *scale;    /* [rows] exp(top - lse) */
    float *w;        /* [slots] factor of the votes so far */
};

/* Sixteen running maxima, which the compiler keeps in registers. */
static float max_of(const float *x, int n)
{
    enum { LANES = 16 };
    float m[LANES], top = x[0];
    for (int j = 0; j < LANES; j++)
        m[j] = x[0];
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
    for (; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int j = 0; j < LANES; j++)
        top = m[j] > top ? m[j] : top;
    return top;
}

static int fit_open(struct fit *f, const struct kv_head *h, const struct kv_kept *kept)
{
    int rows = h->n_ref * h->group, slots = kept->n;
    *f = (struct fit){ .h = h, .rows = rows, .slots = slots };
    f->e = arena_alloc(h->arena, (size_t)rows * (size_t)slots * sizeof *f->e);
    f->scale = arena_alloc(h->arena, (size_t)rows * sizeof *f->scale);
    f->w = arena_alloc(h->arena, (size_t)slots * sizeof *f->w);
    if (!f->e || !f->scale || !f->w)
        return ERR_NOMEM;
    dense_nt(h->isa, f->e, h->ref_q, kept->k, rows, slots, h->dim, h->scale);
    for (int i = 0; i < rows; i++) {
        float *x = f->e + (size_t)i * (size_t)slots;
        for (int c = 0; c < slots; c++)
            x[c] += kept->beta[c];
        float top = max_of(x, slots);
        for (int c = 0; c < slots; c++)
            x[c] -= top;
        dense_exp(h->isa, x, x, slots);
        f->scale[i] = top - h->ref_lse[i];
    }
    dense_exp(h->isa, f->scale, f->scale, rows);
    for (int c = 0; c < slots; c++)
        f->w[c] = 1;
    return 0;
}

/* ---- votes ------------------------------------------------------------------------------------------------------- */

/* One pressing moves votes by e^-2 ... e^4: reference logits are those of a sample, and a slot that it hardly sees must not be
 * blown up. What pressings add up to is bounded by what votes mean: never under e^-2 of its own token, or one that is kept
 * would fade away, and never over all tokens there were (a fixed e^4 would be wrong: a slot of a long stream stands for
 * hundreds). Votes that another merge left outside are not moved further out.
 *
 * Exact slots have their own vote only: with those of evicted tokens beside it what a question looks for there drowns out the
 * other places that it looks at. SmolLM2-135M, 2,048 tokens, 192 slots, KL with all votes fitted, with these not, and without
 * any merge: one number of several keys .068, .022, .036 (21 samples), a number .026, .007, .017 (25), a word .43, .25, .34
 * (19), nothing asked .083, .085, .138 (40). */
void kv_fit_range(bool exact, float beta, int n_tokens, float *lo, float *hi)
{
    float most = fmaxf(4, logf((float)(n_tokens > 1 ? n_tokens : 1)));
    *lo = exact ? 1 : expf(fminf(0, fmaxf(-2, -2 - beta)));
    *hi = exact ? 1 : expf(fmaxf(0, fminf(4, most - beta)));
}

/* sum[c] = sum_i u_i a_ic / y_i with a = e * scale; y_i = 1 when w is NULL, else max(sum_c w_c a_ic, 1e-6). */
static void carried(const struct fit *f, const float *w, float *sum)
{
    const struct kv_head *h = f->h;
    float y[ROWS_AT_ONCE];
    memset(sum, 0, (size_t)f->slots * sizeof *sum);
    for (int i0 = 0; i0 < f->rows; i0 += ROWS_AT_ONCE) {
        int n = f->rows - i0 < ROWS_AT_ONCE ? f->rows - i0 : ROWS_AT_ONCE;
        const float *e = f->e + (size_t)i0 * (size_t)f->slots;
        if (w)
            dense_nt(h->isa, y, w, e, 1, n, f->slots, 1);
        for (int i = 0; i < n; i++) {
            float s = f->scale[i0 + i], all = w ? y[i] * s : 1;
            y[i] = h->ref_weight[i0 + i] * s / (all > 1e-6f ? all : 1e-6f);
        }
        dense_nn(h->isa, sum, y, e, 1, f->slots, n);
    }
}

/* w_c <- w_c (sum_i u_i a_ic / y_i) / (sum_i u_i a_ic): the updates of Lee and Seung (NIPS 2000) for the divergence between
 * the mass y_i that the slots carry and the whole mass, 1, of every query. 10 rounds are within 4 % of the output error of
 * 30. Votes stay as they are when a number is not finite. */
static int fit_votes(struct fit *f, struct kv_kept *kept)
{
    int slots = f->slots;
    float *own = arena_alloc(f->h->arena, (size_t)slots * 4 * sizeof *own);
    if (!own)
        return ERR_NOMEM;
    float *sum = own + slots, *lo = sum + slots, *hi = lo + slots;
    for (int c = 0; c < slots; c++)
        kv_fit_range(kept->exact[c], kept->beta[c], f->h->n_tokens, &lo[c], &hi[c]);
    carried(f, NULL, own);
    for (int round = 0; round < KV_FIT_ROUNDS; round++) {
        carried(f, f->w, sum);
        for (int c = 0; c < slots; c++) {
            float w = f->w[c] * (sum[c] + 1e-4f) / (own[c] + 1e-4f), least = lo[c], most = hi[c];
            w = w < least ? least : w;
            f->w[c] = w > most ? most : w;
        }
    }
    bool ok = true;
    for (int c = 0; c < slots; c++)
        ok = ok && isfinite(f->w[c]);
    for (int c = 0; c < slots; c++) {
        if (ok)
            kept->beta[c] += logf(f->w[c]);
        else
            f->w[c] = 1;
    }
    return 0;
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

/* e becomes p, the rows of softmax(x + log w) times sqrt(weight), and r[rows][dim], zeroed, what they miss of the whole
 * output. Returns tr(p p^T). */
static double weigh_rows(const struct fit *f, const struct kv_kept *kept, float *r)
{
    const struct kv_head *h = f->h;
    double trace = 0;
    for (int i = 0; i < f->rows; i++) {
        float *p = f->e + (size_t)i * (size_t)f->slots, sum, square;
        dense_nt(h->isa, &sum, f->w, p, 1, 1, f->slots, 1);
        float to_p = sqrtf(h->ref_weight[i]) / sum;
        for (int c = 0; c < f->slots; c++)
            p[c] *= f->w[c] * to_p;
        dense_nt(h->isa, &square, p, p, 1, 1, f->slots, 1);
        trace += (double)square;
    }
    dense_nn(h->isa, r, f->e, kept->v, f->rows, h->dim, f->slots);
    for (int i = 0; i < f->rows; i++) {
        float root = sqrtf(h->ref_weight[i]);
        for (size_t at = (size_t)i * (size_t)h->dim, j = 0; j < (size_t)h->dim; j++, at++)
            r[at] = root * h->ref_o[at] - r[at];
    }
    return trace;
}

/* The slots that are not exact, by rising number; returns how many. */
static int list_free(const struct kv_kept *kept, int32_t *slot)
{
    int n = 0;
    for (int c = 0; c < kept->n; c++) {
        slot[n] = c;
        n += !kept->exact[c];
    }
    return n;
}

/* Leaves the columns `slot` of p[rows][slots], in place: a number never moves to where one is still to be read. By number and
 * not by asking each column: which are exact cannot be foreseen, and these branches took 3 % of a pressing. */
static void keep_columns(float *p, int rows, int slots, const int32_t *slot, int n)
{
    float *to = p;
    for (int i = 0; i < rows; i++, p += slots)
        for (int c = 0; c < n; c++)
            *to++ = p[slot[c]];
}

/* delta[n][dim], zeroed, = (p^T p + l I)^-1 p^T r, or, where there are fewer rows than columns, the same as
 * p^T (p p^T + l I)^-1 r: the smaller of the two systems. r is overwritten. */
static int ridge(const struct kv_head *h, float *delta, const float *p, float *r, int rows, int n,
                 float l)
{
    bool by_rows = rows < n;
    int size = by_rows ? rows : n;
    float *gram = arena_alloc(h->arena, (size_t)size * (size_t)size * sizeof *gram);
    if (!gram)
        return ERR_NOMEM;
    dense_gram(h->isa, gram, p, rows, n, by_rows);
    for (int i = 0; i < size; i++)
        gram[(size_t)i * (size_t)size + (size_t)i] += l;
    if (!by_rows)
        dense_tn(h->isa, delta, p, r, n, h->dim, rows);
    TRY(dense_cholesky(h->isa, gram, by_rows ? r : delta, size, h->dim));
    if (by_rows)
        dense_tn(h->isa, delta, p, r, n, h->dim, rows);
    return 0;
}

static const float F16_END = 65504;

/* Whether v + d stays what an f16 can hold; NaN is not. */
static bool within_f16(const float *v, const float *d, int n)
{
    int out = 0;
    for (int j = 0; j < n; j++)
        out |= !(fabsf(v[j] + d[j]) < F16_END);
    return !out;
}

/* Adds delta[n][dim] to the values of the slots named, if all of them stay what an f16 can hold. */
static void add_values(struct kv_kept *kept, const int32_t *slot, int n, const float *delta,
                       size_t dim)
{
    for (int c = 0; c < n; c++)
        if (!within_f16(kept->v + (size_t)slot[c] * dim, delta + (size_t)c * dim, (int)dim))
            return;
    for (int c = 0; c < n; c++) {
        float *v = kept->v + (size_t)slot[c] * dim;
        for (size_t j = 0; j < dim; j++)
            v[j] += delta[(size_t)c * dim + j];
    }
}

/* v += (p^T p + l I)^-1 p^T (o - p v) over the slots that are not exact, l = lambda tr(p p^T) / rows. */
static int fit_values(const struct fit *f, struct kv_kept *kept)
{
    const struct kv_head *h = f->h;
    size_t dim = (size_t)h->dim;
    int32_t *slot = arena_alloc(h->arena, (size_t)f->slots * sizeof *slot);
    if (!slot)
        return ERR_NOMEM;
    int n = list_free(kept, slot);
    if (n == 0)
        return 0;
    float *r = arena_alloc(h->arena, (size_t)f->rows * dim * sizeof *r);
    float *delta = arena_alloc(h->arena, (size_t)n * dim * sizeof *delta);
    if (!r || !delta)
        return ERR_NOMEM;
    double l = (double)h->opt->lambda * weigh_rows(f, kept, r) / f->rows;
    keep_columns(f->e, f->rows, f->slots, slot, n);
    int rc = ridge(h, delta, f->e, r, f->rows, n, (float)l);
    if (rc == 0)
        add_values(kept, slot, n, delta, dim);
    return rc == ERR_NOMEM ? rc : 0;
}

int kv_fit(const struct kv_head *h, struct kv_kept *kept, enum kv_merge mode)
{
    struct fit f;
    if (h->n_ref == 0 || !kv_fit_takes(kept->exact, kept->n))
        return 0;
    TRY(fit_open(&f, h, kept));
    kept->merged = h->n - kept->n;
    if (mode != KV_MERGE_VALUES)
        TRY(fit_votes(&f, kept));
    return mode == KV_MERGE_VOTES ? 0 : fit_values(&f, kept);
}

/* ---- the mean ---------------------------------------------------------------------------------------------------- */

/* Merging what is less alike is worse than evicting it: SmolLM2-135M, divergence .35 against .22. */
enum { MEAN_VOTES_MAX = 16 };
static const float MEAN_COSINE_MIN = 0.8f;

/* The slots that take others in, by rising position. */
struct centers {
    int n;
    int32_t *slot; /* [n] in kept */
    float *key;    /* [n][dim] normalised */
    float *votes;  /* [slots of kept] of all that joined, their own included; 0: nobody joined */
};

static int centers_open(struct centers *t, const struct kv_head *h, const struct kv_kept *kept)
{
    size_t slots = (size_t)kept->n, dim = (size_t)h->dim;
    *t = (struct centers){ .n = 0 };
    t->slot = arena_alloc(h->arena, slots * sizeof *t->slot);
    t->key = arena_alloc(h->arena, slots * dim * sizeof *t->key);
    t->votes = arena_alloc(h->arena, slots * sizeof *t->votes);
    if (!t->slot || !t->key || !t->votes)
        return ERR_NOMEM;
    for (int c = 0; c < kept->n; c++) {
        if (kept->exact[c] || h->pos[kept->keep[c]] < h->opt->sinks)
            continue;
        kv_unit(t->key + (size_t)t->n * dim, kept->k + (size_t)c * dim, h->dim);
        t->slot[t->n++] = c;
    }
    return 0;
}

/* Candidate j joins slot c, whose value is a sum over its cluster from the first one on. */
static void join(struct centers *t, const struct kv_head *h, struct kv_kept *kept, int j, int c)
{
    float *v = kept->v + (size_t)c * (size_t)h->dim, votes = expf(h->beta[j]);
    const float *from = h->v + (size_t)j * (size_t)h->dim;
    if (t->votes[c] == 0) {
        t->votes[c] = expf(kept->beta[c]);
        for (int i = 0; i < h->dim; i++)
            v[i] *= t->votes[c];
    }
    t->votes[c] += votes;
    for (int i = 0; i < h->dim; i++)
        v[i] += votes * from[i];
    kept->merged++;
}

/* n evicted candidates to the centers of the nearest keys, the first of equals. cosine: [n][t->n]. */
static void join_nearest(struct centers *t, const struct kv_head *h, struct kv_kept *kept,
                         const int32_t *evicted, const float *cosine, int n)
{
    for (int i = 0; i < n; i++, cosine += t->n) {
        int best = 0;
        for (int c = 1; c < t->n; c++)
            best = cosine[c] > cosine[best] ? c : best;
        if (cosine[best] >= MEAN_COSINE_MIN)
            join(t, h, kept, evicted[i], t->slot[best]);
    }
}

int kv_merge_mean(const struct kv_head *h, struct kv_kept *kept)
{
    struct centers t;
    size_t dim = (size_t)h->dim;
    TRY(centers_open(&t, h, kept));
    kept->merged = 0;
    if (t.n == 0)
        return 0;
    float *key = arena_alloc(h->arena, ROWS_AT_ONCE * dim * sizeof *key);
    float *cosine = arena_alloc(h->arena, ROWS_AT_ONCE * (size_t)t.n * sizeof *cosine);
    if (!key || !cosine)
        return ERR_NOMEM;
    int32_t evicted[ROWS_AT_ONCE];
    for (int j = 0, next = 0, n = 0; j <= h->n; j++) {
        if (n == ROWS_AT_ONCE || (j == h->n && n > 0)) {
            dense_nt(h->isa, cosine, key, t.key, n, t.n, h->dim, 1);
            join_nearest(&t, h, kept, evicted, cosine, n);
            n = 0;
        }
        if (next < kept->n && kept->keep[next] == j) {
            next++;
        } else if (j < h->n) {
            kv_unit(key + (size_t)n * dim, h->k + (size_t)j * dim, h->dim);
            evicted[n++] = j;
        }
    }
    for (int i = 0; i < t.n; i++) {
        int c = t.slot[i];
        float votes = t.votes[c];
        if (votes == 0)
            continue;
        for (size_t at = (size_t)c * dim, d = 0; d < dim; d++, at++)
            kept->v[at] /= votes;
        /* never fewer than a fit gave it before */
        kept->beta[c] = fmaxf(kept->beta[c], logf(fminf(votes, MEAN_VOTES_MAX)));
    }
    return 0;
}
