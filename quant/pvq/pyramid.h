/* Points of the pyramid P(N, K), the y in Z^N with |y[0]| + ... + |y[N - 1]| = K, and their codes.
 *
 * V(N, K) = V(N - 1, K) + V(N, K - 1) + V(N - 1, K - 1) counts them (Fischer, "A pyramid vector quantizer", 1986). The
 * order is our own, chosen because it is decoded quickly. The 16 elements are 8 pairs, of which z are not (0, 0); each of
 * those is (u, v), u > 0, v >= 0, turned by one of four right angles. So a point is
 *
 *     turns     two bits for each of the z pairs: the signs of its two elements, 1 for minus, whereby
 *               00 is (u, v), 01 (-v, u), 10 (v, -u), 11 (-u, -v)
 *     place     which of the 8 pairs they are: the sets of z, as binary numbers, in rising order
 *     pattern   the u and v in turn, whose sum is K
 *
 * and a code, which holds one of L levels too (pvq.c),
 *
 *     base[z] + ((pattern * L + level) * C(8, z) + place) * 4^z + turns,    base[z] = all codes of more than z pairs.
 *
 * base[z] is a multiple of 4^z, so that the turns are the code's lowest bits as they are. Patterns Q(z, k) = C(k + z - 1,
 * 2 z - 1) in number are sorted by how many pulses the first of the pairs have (4 pairs of 5 to 8, 2 of 3 and 4, 1 of 2),
 * then by the pattern of those, then by that of the rest,
 *
 *     base[a] + number(first) * Q(rest, k - a) + number(rest),    a = pulses of the first,
 *
 * down to one pair, whose number is v. The first pairs are 4, then 2, whatever z: a pattern falls into quarters of two
 * pairs that always lie in the same place.
 */
#ifndef WRING_QUANT_PVQ_PYRAMID_H
#define WRING_QUANT_PVQ_PYRAMID_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "quant/codec.h"

enum {
    PYRAMID_N = 16,
    PYRAMID_PAIRS = PYRAMID_N / 2,
    PYRAMID_K = 49,   /* pulses at most; V(16, 49) < 2^61, and |y| fits a tile's code */
    PYRAMID_ZERO = 64 /* what tiles add to elements */
};

struct pyramid {
    uint64_t patterns[PYRAMID_PAIRS + 1][PYRAMID_K + 1];            /* Q(pairs, k) */
    uint64_t base[PYRAMID_PAIRS + 1][PYRAMID_K + 1][PYRAMID_K + 2]; /* of two pairs and more */
    int places[PYRAMID_PAIRS + 1];                                  /* C(8, pairs) */
    int place_from[PYRAMID_PAIRS + 1];                              /* where they begin in place */
    uint8_t place[1 << PYRAMID_PAIRS];                              /* sets of pairs, eight first */
    uint8_t place_of[1 << PYRAMID_PAIRS];                           /* among those of as many */
};

/* The tables: constants, worked out by the first thread that asks. Any thread. */
const struct pyramid *pyramid_tables(void);

/* How many of some pairs, two or more, are the first. */
CODEC_INLINE int pyramid_first(int pairs)
{
    return pairs > 4 ? 4 : pairs > 2 ? 2 : 1;
}

/* A pair from (u, v) and the two lowest bits of turn. */
CODEC_INLINE void pyramid_turn(int u, int v, unsigned turn, int8_t *y)
{
    bool low = turn & 1;
    bool high = turn >> 1 & 1;
    int first = low != high ? v : u;
    int second = low != high ? u : v;
    y[0] = (int8_t)(low ? -first : first);
    y[1] = (int8_t)(high ? -second : second);
}

/* How many codes P(16, k) and so many levels have, V(16, k) * levels, and how many of them are of more than some pairs. */
uint64_t pyramid_codes(const struct pyramid *t, int k, int levels);
uint64_t pyramid_base(const struct pyramid *t, int k, int levels, int pairs);

/* The code of y[16], k pulses in all, and a level. */
uint64_t pyramid_code(const struct pyramid *t, const int8_t *y, int k, int levels, int level);

/* The point y[16] and the level of a code; those of the last code where there are not so many. */
int pyramid_point(const struct pyramid *t, int k, int levels, uint64_t code, int8_t *y);

/* u and v of every pair of a pattern, into x[2 * pairs]. */
void pyramid_pattern(const struct pyramid *t, int pairs, int k, uint64_t i, uint8_t *x);

/* The point of P(16, k) nearest to x[16] in direction: the one with the largest <x, y> / |y| up to moves of one pulse. */
void pyramid_project(const float *x, int k, int8_t *y);

#endif
