/* Points of the pyramid P(N, K), the y in Z^N with |y[0]| + ... + |y[N - 1]| = K, and their numbers 0 ... V(N, K) - 1.
 *
 * V(N, K) = V(N - 1, K) + V(N, K - 1) + V(N - 1, K - 1) counts them (Fischer, "A pyramid vector quantizer", 1986). The
 * order is our own, chosen because it is decoded quickly: points are sorted by how many of the K pulses the first half of
 * the elements has, then by the number of the first half, then by that of the second,
 *
 *     number(y) = base[a] + number(first) * V(N/2, K - a) + number(second),    a = pulses of the first half,
 *     base[a]   = sum of V(N/2, i) * V(N/2, K - i) over i < a,
 *
 * down to pairs, P(2, K) with V(2, K) = 4 K: number 4 m + q is (K - m, m) turned by q right angles, m < K. So decoding
 * sixteen elements is three searches and three divisions, and the four quarters come from a table.
 */
#ifndef WRING_QUANT_PVQ_PYRAMID_H
#define WRING_QUANT_PVQ_PYRAMID_H

#include <stdint.h>
#include <string.h>

#include "quant/codec.h"

enum {
    PYRAMID_N = 16,
    PYRAMID_LEVELS = 5,     /* level l is about 2^l elements: 2, 4, 8, 16 */
    PYRAMID_K = 49,         /* pulses at most; V(16, 49) < 2^61, and |y| fits a tile's code */
    PYRAMID_QUARTER = 24,   /* pulses up to which four elements are a look-up */
    PYRAMID_TABLE = 241601, /* points of P(4, 0) to P(4, PYRAMID_QUARTER) */
    PYRAMID_POINTS = 16,    /* worked on together */
    PYRAMID_GUESSES = 64,
    PYRAMID_ZERO = 64 /* elements are stored with this added */
};

/* Numbers whose first half has the same count of pulses. Their halves have `first` and `second` pulses; where halves are
 * quarters these say where the points with so many begin in the table, PYRAMID_TABLE if they are not there. */
struct pyramid_part {
    uint64_t base;
    uint64_t count, inverse; /* points of the second half, and 2^63 / count, rounded up */
    uint32_t first, second;
};

/* How the numbers of one pyramid split. guess is the part of the first of the numbers whose bits from `shift` on are the
 * index. */
struct pyramid_split {
    uint64_t count, inverse; /* V, and (2^64 - 1) / V */
    uint32_t shift;
    uint8_t guess[PYRAMID_GUESSES];
    struct pyramid_part part[PYRAMID_K + 2]; /* and one more, whose base is V */
};

struct pyramid {
    struct pyramid_split split[PYRAMID_LEVELS][PYRAMID_K + 1];
    uint8_t point[PYRAMID_TABLE][4];
};

/* The tables: constants, worked out by the first thread that asks (17 million instructions). Any thread. */
const struct pyramid *pyramid_tables(void);

/* The number of y[16], k pulses in all. */
uint64_t pyramid_number(const struct pyramid *t, const int8_t *y, int k);

/* The point of P(16, k) nearest to x[16] in direction: the one with the largest <x, y> / |y| up to moves of one pulse. */
void pyramid_project(const float *x, int k, int8_t *y);

/* The upper half of a product. */
static inline uint64_t pyramid_upper(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)((wide)a * b >> 64);
}

/* i / d and what is left, by the inverse (2^64 - 1) / d, which makes the quotient at most 1 too small. */
static inline uint64_t pyramid_divide(uint64_t i, uint64_t d, uint64_t inverse, uint64_t *left)
{
    uint64_t q = pyramid_upper(i, inverse);
    uint64_t r = i - q * d;
    uint64_t more = r >= d;
    *left = more ? r - d : r;
    return q + more;
}

/* The part that number i, below V, lies in; i becomes the numbers of the two halves. One step from the guess is nearly
 * always enough, and taken without a branch. The quotient i * inverse / 2^63 is exact for i * count < 2^63, which holds
 * below level 4, and at most 1 too large there. */
static inline const struct pyramid_part *pyramid_split(const struct pyramid *t, int level, int k,
                                                       uint64_t i, uint64_t *first,
                                                       uint64_t *second)
{
    const struct pyramid_split *s = &t->split[level][k];
    const struct pyramid_part *p = s->part + s->guess[i >> s->shift];
    p += i >= p[1].base;
    while (__builtin_expect(i >= p[1].base, 0))
        p++;
    i -= p->base;
    uint64_t q = pyramid_upper(i << 1, p->inverse);
    uint64_t r = i - q * p->count;
    uint64_t less = level == PYRAMID_LEVELS - 1 ? r >> 63 : 0;
    *first = q - less;
    *second = r + (p->count & -less);
    return p;
}

/* P(2, k), with PYRAMID_ZERO added. */
CODEC_INLINE void pyramid_pair(int k, uint32_t i, uint8_t *y)
{
    int m = (int)(i >> 2);
    int sign = i & 2 ? -1 : 1;
    int u = i & 1 ? -m : k - m;
    int v = i & 1 ? k - m : m;
    y[0] = (uint8_t)(PYRAMID_ZERO + sign * u);
    y[1] = (uint8_t)(PYRAMID_ZERO + sign * v);
}

/* P(4, k). */
static inline void pyramid_two_pairs(const struct pyramid *t, int k, uint64_t i, uint8_t *y)
{
    uint64_t first;
    uint64_t second;
    const struct pyramid_part *p = pyramid_split(t, 2, k, i, &first, &second);
    pyramid_pair((int)p->first, (uint32_t)first, y);
    pyramid_pair((int)p->second, (uint32_t)second, y + 2);
}

/* P(8, k), two quarters that are `stride` bytes apart. */
static inline void pyramid_half(const struct pyramid *t, int k, uint64_t i, uint8_t *y,
                                size_t stride)
{
    uint64_t first;
    uint64_t second;
    const struct pyramid_part *p = pyramid_split(t, 3, k, i, &first, &second);
    int a = (int)(p - t->split[3][k].part);
    if (__builtin_expect(p->first < PYRAMID_TABLE, 1))
        memcpy(y, t->point[p->first + first], 4);
    else
        pyramid_two_pairs(t, a, first, y);
    if (__builtin_expect(p->second < PYRAMID_TABLE, 1))
        memcpy(y + stride, t->point[p->second + second], 4);
    else
        pyramid_two_pairs(t, k - a, second, y + stride);
}

/* The points of P(16, k) with n <= PYRAMID_POINTS numbers below V(16, k): four quarters each, `stride` bytes apart, with
 * PYRAMID_ZERO added; the points lie side by side in them. All numbers are split before any half is, because a processor
 * then works on as many at a time as its queue of instructions holds: 15 ns a point where one after the other takes 27
 * (Zen 3). */
static inline void pyramid_points(const struct pyramid *t, int k, const uint64_t *number, int n,
                                  uint8_t *y, size_t stride)
{
    uint64_t half[2][PYRAMID_POINTS];
    const struct pyramid_part *part[PYRAMID_POINTS];
    for (int i = 0; i < n; i++)
        part[i] = pyramid_split(t, 4, k, number[i], &half[0][i], &half[1][i]);
    for (int i = 0; i < n; i++)
        pyramid_half(t, (int)part[i]->first, half[0][i], y + 4 * i, stride);
    for (int i = 0; i < n; i++)
        pyramid_half(t, (int)part[i]->second, half[1][i], y + 2 * stride + 4 * i, stride);
}

#endif
