/* Sampling. See sample.h for the order of things.
 *
 * One row of a 150k vocabulary is read two or three times and never sorted: the maximum first, then the exponentials and
 * their sum in fixed lanes (so the compiler vectorises and the result is the same everywhere), then only the few
 * candidates that can matter go through a heap.
 */
#include "server/engine/sample.h"

#include <math.h>
#include <string.h>

#include "server/base/mem.h"

enum {
    LANES = 16,
    SPAN = 1024,   /* elements summed in f32 before the sum goes on in f64 */
    BUCKETS = 4096 /* 128 an octave */
};

struct candidate {
    float w;
    int32_t id;
};

struct sampler {
    struct sample_params p;
    int n_vocab;
    uint64_t n_drawn;
    float
        *row; /* [n_vocab] logits with bias and penalties applied; NULL when nothing changes them */
    float *w; /* [n_vocab] weights; NULL when greedy */
    double *span;           /* [spans] sums of w */
    struct candidate *heap; /* [n_vocab]; NULL when neither top_k nor top_p can need it */
    double *bucket;         /* [BUCKETS] with the heap */
    uint32_t *n_out;        /* [n_vocab] times a token was chosen; NULL without penalties */
    uint8_t *seen;          /* [n_vocab] in prompt or output */
    int32_t *seen_id;       /* the ids with seen set */
    int n_seen;
};

/* ---- opening ------------------------------------------------------------------------------------------------- */

static bool has_penalty(const struct sample_params *p)
{
    return p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

static int check_params(const struct sample_params *p, int n_vocab, struct err *e)
{
    if (!(p->temperature >= 0) || isinf(p->temperature))
        return err_set(e, ERR_INVALID, "temperature is %g; 0 or more is needed",
                       (double)p->temperature);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return err_set(e, ERR_INVALID, "top_p is %g; more than 0 and at most 1 is needed",
                       (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p < 1))
        return err_set(e, ERR_INVALID, "min_p is %g; 0 or more and less than 1 is needed",
                       (double)p->min_p);
    if (!(p->repetition_penalty > 0) || isinf(p->repetition_penalty))
        return err_set(e, ERR_INVALID, "repetition_penalty is %g; more than 0 is needed",
                       (double)p->repetition_penalty);
    if (!isfinite(p->presence_penalty) || !isfinite(p->frequency_penalty))
        return err_set(e, ERR_INVALID, "presence and frequency penalties must be finite");
    if (p->top_k < 0 || p->n_logprobs < -1 || p->n_logprobs > SAMPLE_MAX_LOGPROBS)
        return err_set(e, ERR_INVALID, "top_k is %d and logprobs %d; at most %d logprobs are given",
                       p->top_k, p->n_logprobs, SAMPLE_MAX_LOGPROBS);
    for (int i = 0; i < p->n_bias; i++)
        if (p->bias[i].id < 0 || p->bias[i].id >= n_vocab)
            return err_set(e, ERR_INVALID, "logit_bias names token %d; the vocabulary has %d",
                           p->bias[i].id, n_vocab);
    return 0;
}

static int open_arrays(struct sampler *s)
{
    size_t n = (size_t)s->n_vocab;
    bool penalty = has_penalty(&s->p);
    bool ok = true;
    if (penalty || s->p.n_bias > 0)
        ok = (s->row = mem_zalloc(n, sizeof *s->row)) != NULL;
    if (ok && penalty)
        ok = (s->n_out = mem_zalloc(n, sizeof *s->n_out)) != NULL &&
             (s->seen = mem_zalloc(n, 1)) != NULL &&
             (s->seen_id = mem_zalloc(n, sizeof *s->seen_id)) != NULL;
    if (ok && s->p.temperature > 0)
        ok = (s->w = mem_zalloc(n, sizeof *s->w)) != NULL &&
             (s->span = mem_zalloc(n / SPAN + 1, sizeof *s->span)) != NULL;
    if (ok && s->p.temperature > 0 && (s->p.top_k > 0 || s->p.top_p < 1))
        ok = (s->heap = mem_zalloc(n, sizeof *s->heap)) != NULL &&
             (s->bucket = mem_zalloc(BUCKETS, sizeof *s->bucket)) != NULL;
    return ok ? 0 : ERR_NOMEM;
}

int sampler_open(struct sampler **out, const struct sample_params *p, int n_vocab, struct err *e)
{
    if (n_vocab < 1)
        return err_set(e, ERR_INVALID, "a vocabulary of %d tokens", n_vocab);
    TRY(check_params(p, n_vocab, e));
    struct sampler *s = mem_zalloc(1, sizeof *s);
    if (s != NULL) {
        s->p = *p;
        s->n_vocab = n_vocab;
    }
    if (s == NULL || open_arrays(s) < 0) {
        sampler_close(s);
        return err_set(e, ERR_NOMEM, "no memory to sample from %d tokens", n_vocab);
    }
    *out = s;
    return 0;
}

void sampler_close(struct sampler *s)
{
    if (s == NULL)
        return;
    mem_free(s->seen_id);
    mem_free(s->seen);
    mem_free(s->n_out);
    mem_free(s->bucket);
    mem_free(s->heap);
    mem_free(s->span);
    mem_free(s->w);
    mem_free(s->row);
    mem_free(s);
}

/* ---- penalties ----------------------------------------------------------------------------------------------- */

static void see(struct sampler *s, int32_t id)
{
    if (s->seen == NULL || id < 0 || id >= s->n_vocab || s->seen[id])
        return;
    s->seen[id] = 1;
    s->seen_id[s->n_seen++] = id;
}

void sampler_accept_prompt(struct sampler *s, const int32_t *id, int n)
{
    for (int i = 0; s->seen != NULL && i < n; i++)
        see(s, id[i]);
}

static const float *adjust(struct sampler *s, const float *logits)
{
    if (s->row == NULL)
        return logits;
    memcpy(s->row, logits, (size_t)s->n_vocab * sizeof *s->row);
    for (int i = 0; i < s->p.n_bias; i++)
        s->row[s->p.bias[i].id] += s->p.bias[i].bias;
    for (int i = 0; i < s->n_seen; i++) {
        float *x = &s->row[s->seen_id[i]];
        uint32_t n = s->n_out[s->seen_id[i]];
        *x = *x > 0 ? *x / s->p.repetition_penalty : *x * s->p.repetition_penalty;
        if (n > 0)
            *x -= s->p.presence_penalty + s->p.frequency_penalty * (float)n;
    }
    return s->row;
}

/* ---- passes over a row --------------------------------------------------------------------------------------- */

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

/* The largest logit; -inf when there is none. NaN compares false and so never wins. */
static float row_max(const float *x, int n)
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

/* The first id whose logit is `max`; 0 when there is none. */
static int32_t row_find(const float *x, int n, float max)
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

static float exp_one(float x)
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
        w[i] = exp_one((x[i] - max) * inv_t);
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

/* w[i] = exp((x[i] - max) * inv_t); returns the sum, and the sums of the spans in span. w and span may be NULL. */
static double row_exp(const float *x, float *w, double *span, int n, float max, float inv_t)
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

/* ---- logprobs ------------------------------------------------------------------------------------------------ */

/* The n largest, falling, ties by rising id, by insertion: nearly every element fails the first comparison. */
static int top_few(const float *x, int n_vocab, int n, struct token_logprob *top)
{
    int have = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        while (have == n && i + LANES <= n_vocab && !any_above(x + i, top[n - 1].logprob))
            i += LANES;
        if (i == n_vocab || isnan(x[i]) || (have == n && !(x[i] > top[n - 1].logprob)))
            continue;
        int at = have < n ? have++ : n - 1;
        for (; at > 0 && x[i] > top[at - 1].logprob; at--)
            top[at] = top[at - 1];
        top[at] = (struct token_logprob){ i, x[i] };
    }
    return have;
}

static float logprob_of(float x, float max, double log_sum)
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

/* ---- the draw ------------------------------------------------------------------------------------------------ */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Draw n of a seed, in [0, 1): splitmix64's finaliser over a counter, keyed by the mixed seed. */
static double uniform(uint64_t seed, uint64_t n)
{
    uint64_t key = mix(seed + 0x9e3779b97f4a7c15u);
    return (double)(mix(mix(key + (n + 1) * 0x9e3779b97f4a7c15u) ^ key) >> 11) * 0x1p-53;
}

/* Whether a stands before b: heavier, or as heavy with the lower id. */
static bool before(struct candidate a, struct candidate b)
{
    return a.w > b.w || (a.w == b.w && a.id < b.id);
}

/* A heap with the first candidate (sign 1) or the last (sign -1) at its root. */
static bool above(struct candidate a, struct candidate b, int sign)
{
    return sign > 0 ? before(a, b) : before(b, a);
}

static void sift_down(struct candidate *h, int n, int i, int sign)
{
    struct candidate c = h[i];
    for (int k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && above(h[k + 1], h[k], sign))
            k++;
        if (!above(h[k], c, sign))
            break;
        h[i] = h[k];
    }
    h[i] = c;
}

static void heapify(struct candidate *h, int n, int sign)
{
    for (int i = n / 2 - 1; i >= 0; i--)
        sift_down(h, n, i, sign);
}

/* The k largest logits go to h, unordered. */
static int keep_top_k(struct candidate *h, const float *x, int n, int k)
{
    int have = 0;
    int32_t i = 0;
    for (; i < n && have < k; i++)
        if (x[i] > -INFINITY)
            h[have++] = (struct candidate){ x[i], i };
    heapify(h, have, -1);
    for (; i < n; i++) {
        while (i + LANES <= n && !any_above(x + i, h[0].w))
            i += LANES;
        if (i == n || !(x[i] > h[0].w))
            continue;
        h[0] = (struct candidate){ x[i], i };
        sift_down(h, have, 0, -1);
    }
    return have;
}

/* Drops candidates lighter than min; returns how many are left and their sum. */
static int keep_heavy(struct candidate *h, int n, float min, double *sum)
{
    int have = 0;
    *sum = 0;
    for (int i = 0; i < n; i++) {
        if (h[i].w < min)
            continue;
        h[have++] = h[i];
        *sum += (double)h[i].w;
    }
    return have;
}

/* The bucket of a weight in (0, 1]: its float's exponent and seven bits of mantissa, heavy ones first. */
static int bucket_of(float w)
{
    uint32_t bits;
    memcpy(&bits, &w, sizeof bits);
    uint32_t b = bits >= 0x3f800000 ? 0 : (0x3f800000 - bits) >> 16;
    return b < BUCKETS ? (int)b : BUCKETS - 1;
}

/* Reorders h for a nucleus of mass goal: first the candidates that are in for sure, then those in the bucket where the
 * mass is reached; the others are dropped. */
static void split_nucleus(double *bucket, struct candidate *h, int *n, double goal, int *n_sure)
{
    memset(bucket, 0, BUCKETS * sizeof *bucket);
    for (int i = 0; i < *n; i++)
        bucket[bucket_of(h[i].w)] += (double)h[i].w;
    int last = 0;
    for (double mass = bucket[0]; mass < goal && last < BUCKETS - 1;)
        mass += bucket[++last];
    int sure = 0, have = 0;
    for (int i = 0; i < *n; i++) {
        int b = bucket_of(h[i].w);
        if (b > last)
            continue;
        struct candidate c = h[i];
        h[have] = h[sure];
        if (b < last)
            h[sure++] = c;
        else
            h[have] = c;
        have++;
    }
    *n = have;
    *n_sure = sure;
}

/* Draws among the heaviest candidates that together weigh top_p * sum. */
static int32_t draw_nucleus(struct sampler *s, int n, double sum, double u)
{
    struct candidate *h = s->heap;
    double mass = 0, goal = sum * (double)s->p.top_p;
    int sure = 0;
    if (n > BUCKETS / 2)
        split_nucleus(s->bucket, h, &n, goal, &sure);
    for (int i = 0; i < sure; i++)
        mass += (double)h[i].w;
    /* the rest one by one: taken ones gather at the end, heaviest last */
    int left = n - sure;
    heapify(h + sure, left, 1);
    while (left > 0 && (mass < goal || sure + left == n)) {
        struct candidate c = h[sure];
        left--;
        h[sure] = h[sure + left];
        sift_down(h + sure, left, 0, 1);
        h[sure + left] = c;
        mass += (double)c.w;
    }
    double at = u * mass, run = 0;
    for (int i = 0; i < sure; i++) {
        run += (double)h[i].w;
        if (at < run)
            return h[i].id;
    }
    for (int i = n - 1; i > sure + left; i--) {
        run += (double)h[i].w;
        if (at < run)
            return h[i].id;
    }
    return h[sure + left < n ? sure + left : n - 1].id;
}

/* Among all weights of at least min, in the order of ids. */
static int32_t draw_any(const struct sampler *s, double sum, float min, double u)
{
    double at = u * sum, run = 0;
    int32_t last = 0;
    for (int i = 0; i < s->n_vocab; i += SPAN) {
        int end = s->n_vocab - i < SPAN ? s->n_vocab : i + SPAN;
        if (min <= 0 && run + s->span[i / SPAN] < at) {
            run += s->span[i / SPAN];
            continue;
        }
        for (int32_t k = i; k < end; k++) {
            if (s->w[k] <= 0 || s->w[k] < min)
                continue;
            last = k;
            run += (double)s->w[k];
            if (at < run)
                return k;
        }
    }
    return last;
}

/* The sum of the weights of at least min. */
static double heavy_sum(const float *w, int n, float min)
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

static int32_t draw(struct sampler *s, const float *x, float max, double u)
{
    const struct sample_params *p = &s->p;
    float inv_t = 1 / p->temperature, min_w = p->min_p;
    double sum;
    if (p->top_k > 0 && p->top_k < s->n_vocab) {
        int n = keep_top_k(s->heap, x, s->n_vocab, p->top_k);
        for (int i = 0; i < n; i++)
            s->heap[i].w = exp_one((s->heap[i].w - max) * inv_t);
        n = keep_heavy(s->heap, n, min_w, &sum);
        return draw_nucleus(s, n, sum, u);
    }
    sum = row_exp(x, s->w, s->span, s->n_vocab, max, inv_t);
    if (min_w > 0)
        sum = heavy_sum(s->w, s->n_vocab, min_w);
    if (p->top_p >= 1)
        return draw_any(s, sum, min_w, u);
    /* All weights up to (1 - top_p) * sum / n_vocab together weigh at most (1 - top_p) * sum: none is in the nucleus.
     * Half of that, so that rounding cannot matter. */
    float light = (float)(0.5 * (1 - (double)p->top_p) * sum / s->n_vocab);
    float min = light > min_w ? light : min_w;
    float below = min > 0 ? nextafterf(min, 0) : 0;
    int n = 0;
    for (int32_t i = 0; i < s->n_vocab; i++) {
        while (i + LANES <= s->n_vocab && !any_above(s->w + i, below))
            i += LANES;
        if (i < s->n_vocab && s->w[i] > below)
            s->heap[n++] = (struct candidate){ s->w[i], i };
    }
    return draw_nucleus(s, n, sum, u);
}

void sampler_next(struct sampler *s, const float *logits, struct sample_result *out)
{
    const float *x = adjust(s, logits);
    double u = uniform(s->p.seed, s->n_drawn++);
    float max = row_max(x, s->n_vocab);
    int32_t id;
    /* 1 / temperature may overflow: so cold is greedy */
    if (s->p.temperature <= 1e-5f || isinf(max))
        id = row_find(x, s->n_vocab, max);
    else
        id = draw(s, x, max, u);
    out->id = id;
    out->logprob = 0;
    out->n_top = 0;
    if (s->p.n_logprobs >= 0)
        sample_logprobs(x, s->n_vocab, id, s->p.n_logprobs, out);
    if (s->n_out != NULL) {
        s->n_out[id]++;
        see(s, id);
    }
}
