/* Passes over a row of logits, and log-probabilities. See sample_internal.h.
 *
 * One row of a 150k vocabulary is read two or three times and never sorted: the maximum first, then the exponentials and
 * their sum in fixed lanes (so the compiler vectorises and the result is the same everywhere).
 */
#include <math.h>
#include <string.h>

#include "server/engine/sample_internal.h"

enum { LANES = 16 };

/* Four floats at a time, in the compiler's own vectors: left to itself it does not vectorise conditions (3 to 25 times
 * slower on 49k logits). */
typedef float vec __attribute__((vector_size(16)));
typedef uint32_t uvec __attribute__((vector_size(16)));

static inline vec vec_load(const float *x)
{
    vec v;
    memcpy(&v, x, sizeof v);
    return v;
}

/* a where a > b (never where a is NaN), else b */
static inline vec vec_max(vec a, vec b)
{
    uvec above = (uvec)(a > b);
    return (vec)(((uvec)a & above) | ((uvec)b & ~above));
}

static inline bool vec_any(uvec v)
{
    uint64_t half[2];
    memcpy(half, &v, sizeof v);
    return (half[0] | half[1]) != 0;
}

float row_max(const float *x, int n)
{
    vec m[LANES / 4];
    float max = -INFINITY;
    int i = 0;
    for (int j = 0; j < LANES / 4; j++)
        m[j] = (vec){ max, max, max, max };
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES / 4; j++)
            m[j] = vec_max(vec_load(x + i + 4 * j), m[j]);
    for (int j = 0; j < LANES; j++)
        max = m[j / 4][j % 4] > max ? m[j / 4][j % 4] : max;
    for (; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

/* Whether any of LANES logits is v. */
static inline bool any_equal(const float *x, float v)
{
    uvec hit = { 0 };
    for (int j = 0; j < LANES; j += 4)
        hit |= (uvec)(vec_load(x + j) == v);
    return vec_any(hit);
}

static inline bool any_above(const float *x, float v)
{
    uvec hit = { 0 };
    for (int j = 0; j < LANES; j += 4)
        hit |= (uvec)(vec_load(x + j) > v);
    return vec_any(hit);
}

int32_t row_above(const float *x, int n, int32_t i, float v)
{
    while (i + LANES <= n && !any_above(x + i, v))
        i += LANES;
    while (i < n && !(x[i] > v))
        i++;
    return i;
}

int32_t row_find(const float *x, int n, float max)
{
    int32_t i = 0;
    while (i + LANES <= n && !any_equal(x + i, max))
        i += LANES;
    for (; i < n; i++)
        if (x[i] == max)
            return i;
    return 0;
}

/* exp(x) for x <= 0, 0 below -87 and for NaN: 2^k * p(r), r in [-ln2/2, ln2/2], p of degree 6 (relative error below
 * 2e-7). */
static inline vec exp_neg(vec x)
{
    const float low = -87;
    uvec in_range = (uvec)(x > low);
    vec in = (vec)(((uvec)x & in_range) | ((uvec)(vec){ low, low, low, low } & ~in_range));
    vec k = in * 1.44269504f + 12582912.0f; /* rounds to an integer in the low bits */
    uvec scale = ((uvec)k << 23) + 0x3f800000;
    k -= 12582912.0f;
    vec r = in - k * 0.693359375f + k * 2.12194440e-4f;
    vec p = r * 1.38888889e-3f + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (vec)((uvec)(p * (vec)scale) & in_range);
}

float row_exp_one(float x)
{
    return exp_neg((vec){ x, x, x, x })[0];
}

static void span_exp(const float *x, float *w, int n, float max, float inv_t)
{
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        vec v = exp_neg((vec_load(x + i) - max) * inv_t);
        memcpy(w + i, &v, sizeof v);
    }
    for (; i < n; i++)
        w[i] = row_exp_one((x[i] - max) * inv_t);
}

/* The sum of n <= SPAN numbers in LANES partial sums. */
static double span_sum(const float *w, int n)
{
    float lane[LANES] = { 0 };
    double sum = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += w[i + j];
    for (int j = 0; i < n; i++, j++)
        lane[j] += w[i];
    for (int j = 0; j < LANES; j++)
        sum += (double)lane[j];
    return sum;
}

double row_exp(const float *x, float *w, double *span, int n, float max, float inv_t)
{
    float part[SPAN];
    double sum = 0;
    for (int i = 0; i < n; i += SPAN) {
        int len = n - i < SPAN ? n - i : SPAN;
        float *out = w != NULL ? w + i : part;
        span_exp(x + i, out, len, max, inv_t);
        double s = span_sum(out, len);
        if (span != NULL)
            span[i / SPAN] = s;
        sum += s;
    }
    return sum;
}

double row_heavy_sum(const float *w, int n, float min)
{
    float part[SPAN];
    double sum = 0;
    for (int i = 0; i < n; i += SPAN) {
        int len = n - i < SPAN ? n - i : SPAN;
        int j = 0;
        for (; j + 4 <= len; j += 4) {
            vec v = vec_load(w + i + j);
            v = (vec)((uvec)v & (uvec)(v >= min));
            memcpy(part + j, &v, sizeof v);
        }
        for (; j < len; j++)
            part[j] = w[i + j] >= min ? w[i + j] : 0.0f;
        sum += span_sum(part, len);
    }
    return sum;
}

/* ---- logprobs ------------------------------------------------------------------------------------------------ */

/* The n largest, falling, ties by rising id, by insertion: nearly every element fails the first comparison. */
static int top_few(const float *x, int n_vocab, int n, struct token_logprob *top)
{
    int have = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        if (have == n)
            i = row_above(x, n_vocab, i, top[n - 1].logprob);
        if (i == n_vocab || isnan(x[i]))
            continue;
        int at = have < n ? have++ : n - 1;
        for (; at > 0 && x[i] > top[at - 1].logprob; at--)
            top[at] = top[at - 1];
        top[at] = (struct token_logprob){ i, x[i] };
    }
    return have;
}

float logprob_of(float x, float max, double log_sum)
{
    if (isnan(x) || x == -INFINITY)
        return -INFINITY;
    return x == max && isinf(max) ? 0 : (float)((double)x - (double)max - log_sum);
}

void sample_logprobs(const float *logits, int n_vocab, int32_t id, int n_top,
                     struct sample_result *out)
{
    float max = row_max(logits, n_vocab);
    double log_sum = isinf(max) ? 0 : log(row_exp(logits, NULL, NULL, n_vocab, max, 1));
    out->id = id;
    out->logprob = logprob_of(logits[id], max, log_sum);
    out->n_top = 0;
    if (n_top <= 0)
        return;
    if (n_top > SAMPLE_MAX_LOGPROBS)
        n_top = SAMPLE_MAX_LOGPROBS;
    out->n_top = top_few(logits, n_vocab, n_top, out->top);
    for (int i = 0; i < out->n_top; i++)
        out->top[i].logprob = logprob_of(out->top[i].logprob, max, log_sum);
}
