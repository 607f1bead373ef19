/* The draw: from weights to one token. See sample_internal.h.
 *
 * A row is never sorted: only the few candidates that can matter go through a heap.
 */
#include <math.h>
#include <string.h>

#include "server/engine/sample_internal.h"

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Splitmix64's finaliser over a counter, keyed by the mixed seed. */
double draw_uniform(uint64_t seed, uint64_t n)
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
    for (; have > 0 && (i = row_above(x, n, i, h[0].w)) < n; i++) {
        h[0] = (struct candidate){ x[i], i };
        sift_down(h, have, 0, -1);
    }
    return have;
}

int draw_keep_heavy(struct candidate *h, int n, float min, double *sum)
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

int32_t draw_nucleus(double *bucket, struct candidate *h, int n, double top_p, double sum, double u)
{
    double mass = 0, goal = sum * top_p;
    int sure = 0;
    if (n > BUCKETS / 2)
        split_nucleus(bucket, h, &n, goal, &sure);
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

int32_t draw_row(struct sampler *s, const float *x, float max, double u)
{
    const struct sample_params *p = &s->p;
    float inv_t = 1 / p->temperature, min_w = p->min_p;
    double sum, top_p = (double)p->top_p;
    if (sampler_top_k(s)) {
        int n = keep_top_k(s->heap, x, s->n_vocab, p->top_k);
        for (int i = 0; i < n; i++)
            s->heap[i].w = row_exp_one((s->heap[i].w - max) * inv_t);
        n = draw_keep_heavy(s->heap, n, min_w, &sum);
        return draw_nucleus(s->bucket, s->heap, n, top_p, sum, u);
    }
    sum = row_exp(x, s->w, s->span, s->n_vocab, max, inv_t);
    if (min_w > 0)
        sum = row_heavy_sum(s->w, s->n_vocab, min_w);
    if (p->top_p >= 1)
        return draw_any(s, sum, min_w, u);
    /* All weights up to (1 - top_p) * sum / n_vocab together weigh at most (1 - top_p) * sum: none is in the nucleus.
     * Half of that, so that rounding cannot matter. */
    float light = (float)(0.5 * (1 - top_p) * sum / s->n_vocab);
    float min = light > min_w ? light : min_w;
    float below = min > 0 ? nextafterf(min, 0) : 0;
    int n = 0;
    for (int32_t i = 0; (i = row_above(s->w, s->n_vocab, i, below)) < s->n_vocab; i++)
        s->heap[n++] = (struct candidate){ s->w[i], i };
    return draw_nucleus(s->bucket, s->heap, n, top_p, sum, u);
}
