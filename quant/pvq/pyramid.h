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

enum {
    PYRAMID_N = 16,
    PYRAMID_LEVELS = 5, /* level l is about 2^l elements: 2, 4, 8, 16 */
    PYRAMID_K = 49,     /* pulses at most; V(16, 49) < 2^61, and |y| fits a tile's code */
    PYRAMID_QUARTER =
        15, /* pulses up to which four elements are a look-up: 156 KB, of which 11 pulses use a third */
    PYRAMID_TABLE = 39041, /* points of P(4, 0) to P(4, PYRAMID_QUARTER) */
    PYRAMID_POINTS = 16,   /* worked on together */
    PYRAMID_GUESSES = 64,
    PYRAMID_ZERO = 64 /* elements are stored with this added */
};

/* Numbers whose first half has one count of pulses. */
struct pyramid_part {
    uint64_t base;
    uint64_t count, inverse; /* of the second half's points, and (2^64 - 1) / count */
};

/* How the numbers of one pyramid split. */
struct pyramid_split {
    uint64_t count, inverse; /* V */
    uint32_t shift;
    uint8_t guess
        [PYRAMID_GUESSES]; /* the part of the first of the numbers whose bits from `shift` on are these */
    struct pyramid_part part[PYRAMID_K + 2]; /* and one more, whose base is V */
};

struct pyramid {
    struct pyramid_split split[PYRAMID_LEVELS][PYRAMID_K + 1];
    uint32_t quarter[PYRAMID_QUARTER + 1]; /* where the points of P(4, k) begin */
    uint8_t point[PYRAMID_TABLE][4];
};

/* The tables: constants, worked out (in about a millisecond) by the first thread that asks. */
const struct pyramid *pyramid_tables(void);

/* The number of y[16], k pulses in all. */
uint64_t pyramid_number(const struct pyramid *t, const int8_t *y, int k);

/* The point of P(16, k) nearest to x[16] in direction: the one with the largest <x, y> / |y| up to moves of one pulse. */
void pyramid_project(const float *x, int k, int8_t *y);

/* i / d and what is left, by the inverse (2^64 - 1) / d: the product's upper half is at most 1 too small. */
static inline uint64_t pyramid_divide(uint64_t i, uint64_t d, uint64_t inverse, uint64_t *left)
{
    __extension__ typedef unsigned __int128 wide;
    uint64_t q = (uint64_t)((wide)i * inverse >> 64);
    uint64_t r = i - q * d;
    uint64_t more = r >= d;
    *left = more ? r - d : r;
    return q + more;
}

/* Pulses of the first half; the number i, below V, becomes those of the two halves. One step from the guess is nearly
 * always enough, and taken without a branch. */
static inline int pyramid_split(const struct pyramid_split *s, uint64_t i, uint64_t *first,
                                uint64_t *second)
{
    const struct pyramid_part *p = s->part + s->guess[i >> s->shift];
    p += i >= p[1].base;
    while (__builtin_expect(i >= p[1].base, 0))
        p++;
    *first = pyramid_divide(i - p->base, p->count, p->inverse, second);
    return (int)(p - s->part);
}

/* P(2, k), with PYRAMID_ZERO added. */
static inline void pyramid_pair(int k, uint32_t i, uint8_t *y)
{
    int m = (int)(i >> 2);
    int sign = i & 2 ? -1 : 1;
    int u = i & 1 ? -m : k - m;
    int v = i & 1 ? k - m : m;
    y[0] = (uint8_t)(PYRAMID_ZERO + sign * u);
    y[1] = (uint8_t)(PYRAMID_ZERO + sign * v);
}

static inline void pyramid_two_pairs(const struct pyramid *t, int k, uint64_t i, uint8_t *y)
{
    uint64_t first;
    uint64_t second;
    int a = pyramid_split(&t->split[2][k], i, &first, &second);
    pyramid_pair(a, (uint32_t)first, y);
    pyramid_pair(k - a, (uint32_t)second, y + 2);
}

static inline void pyramid_quarter(const struct pyramid *t, int k, uint64_t i, uint8_t *y)
{
    if (k <= PYRAMID_QUARTER)
        memcpy(y, t->point[t->quarter[k] + i], 4);
    else
        pyramid_two_pairs(t, k, i, y);
}

static inline void pyramid_half(const struct pyramid *t, int k, uint64_t i, uint8_t *y,
                                size_t stride)
{
    uint64_t first;
    uint64_t second;
    int a = pyramid_split(&t->split[3][k], i, &first, &second);
    pyramid_quarter(t, a, first, y);
    pyramid_quarter(t, k - a, second, y + stride);
}

/* The points of P(16, k) with n <= PYRAMID_POINTS numbers below V(16, k): four quarters each, `stride` bytes apart, with
 * PYRAMID_ZERO added; the points lie side by side in them. All numbers are split before any half is, because a processor
 * then works on as many at a time as its queue of instructions holds: 14 ns a point where one after the other takes 27. */
static inline void pyramid_points(const struct pyramid *t, int k, const uint64_t *number, int n,
                                  uint8_t *y, size_t stride)
{
    uint64_t half[2][PYRAMID_POINTS];
    int pulses[PYRAMID_POINTS];
    for (int i = 0; i < n; i++)
        pulses[i] = pyramid_split(&t->split[4][k], number[i], &half[0][i], &half[1][i]);
    for (int i = 0; i < n; i++)
        pyramid_half(t, pulses[i], half[0][i], y + 4 * i, stride);
    for (int i = 0; i < n; i++)
        pyramid_half(t, k - pulses[i], half[1][i], y + 2 * stride + 4 * i, stride);
}

#endif
