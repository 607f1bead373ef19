/* Pooling, and the choice of the best: a radix sort for those that need all ranks (the 98 % of `mass` and `ems-r`), whose
 * stability settles ties, and a radix selection, in six tenths of its time, for those that do not.
 */
#include <math.h>
#include <string.h>

#include "kvcache/score.h"

void kv_pool_max(float *out, const float *s, int n, int before, int after)
{
    for (int j = 0; j < n; j++) {
        float best = -INFINITY;
        for (int i = j > before ? j - before : 0; i < n && i - j <= after; i++)
            best = s[i] > best ? s[i] : best;
        out[j] = best;
    }
}

void kv_pool_mean(float *out, const float *s, int n, int reach)
{
    for (int j = 0; j < n; j++) {
        int first = j > reach ? j - reach : 0, end = n - j > reach ? j + reach + 1 : n;
        float sum = 0;
        for (int i = first; i < end; i++)
            sum += s[i];
        out[j] = sum / (float)(end - first);
    }
}

/* The bits of a float in an order in which the best is the least: the sign bit flipped for positive numbers, all bits for
 * negative ones, makes floats rise as unsigned integers do. */
static uint32_t rank_bits(float f)
{
    if (isnan(f))
        return UINT32_MAX;
    f += 0.0f; /* -0 is 0 */
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return ~(u >> 31 ? ~u : u | (uint32_t)1 << 31);
}

void kv_order(const float *score, int n, int32_t *order, int32_t *scratch)
{
    int32_t *from = order, *to = scratch;
    for (int i = 0; i < n; i++)
        from[i] = n - 1 - i; /* each pass is stable: of equals, the later one stays in front */
    for (int shift = 0; shift < 32; shift += 8) {
        int32_t place[257] = { 0 };
        for (int i = 0; i < n; i++)
            place[(rank_bits(score[i]) >> shift & 255) + 1]++;
        for (int b = 0; b < 256; b++)
            place[b + 1] += place[b];
        for (int i = 0; i < n; i++)
            to[place[rank_bits(score[from[i]]) >> shift & 255]++] = from[i];
        int32_t *swap = from;
        from = to;
        to = swap;
    }
    /* four passes: the last one wrote to order */
}

/* The rank bits of the k-th best, k > 0, a byte at a time from the highest on; *equals: how many of those that have the same are
 * among the k. */
static uint32_t rank_bits_of(const float *score, int n, int k, int *equals)
{
    uint32_t known = 0, mask = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int32_t count[256] = { 0 };
        for (int i = 0; i < n; i++) {
            uint32_t u = rank_bits(score[i]);
            count[u >> shift & 255] += (u & mask) == known;
        }
        uint32_t byte = 0;
        for (; k > count[byte]; byte++)
            k -= count[byte];
        known |= byte << shift;
        mask |= (uint32_t)255 << shift;
    }
    *equals = k;
    return known;
}

void kv_top(const float *score, int n, int k, int32_t *keep)
{
    if (k == 0)
        return;
    int equals;
    uint32_t last = rank_bits_of(score, n, k, &equals);
    for (int j = n - 1, i = k - 1; i >= 0; j--) {
        uint32_t u = rank_bits(score[j]);
        bool tie = u == last && equals > 0;
        keep[i] = j;
        i -= u < last || tie;
        equals -= tie;
    }
}

float kv_local_weight(const struct kv_options *o, bool again)
{
    return again && o->local > 0.5f ? 0.5f : o->local;
}

void kv_global_local(const struct kv_head *h, float *out)
{
    float w = kv_local_weight(h->opt, h->again);
    for (int j = 0; j < h->n; j++)
        out[j] = kv_blend(w, h->local[j], h->global[j]);
}

int kv_count_protected(const float *score, int n)
{
    int count = 0;
    for (int j = 0; j < n; j++)
        count += score[j] == INFINITY;
    return count;
}

float kv_norm(const float *x, int dim)
{
    double sum[2] = { 0 };
    for (int i = 0; i < dim; i++)
        sum[i % 2] += (double)x[i] * (double)x[i];
    return (float)sqrt(sum[0] + sum[1]);
}

void kv_unit(float *out, const float *x, int dim)
{
    float size = kv_norm(x, dim);
    for (int i = 0; i < dim; i++)
        out[i] = size > 0 ? x[i] / size : 0;
}
