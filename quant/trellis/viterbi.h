/* The best path through a trellis: which symbols make a stream of weights come closest to given numbers.
 *
 * Position t of a stream of n symbols reads the window of symbols t, t + 1, ... (12 bits in all), circular: the window of
 * the last positions runs on into the first symbols. A window is three nibbles, and these give the value
 *
 *      value[n2][n0 ^ q[n1] ^ r[n2]]
 *
 * The state before a step is the window without its newest symbol; 2^(12 - bits) states, 2^bits steps from each. Costs are
 * whole numbers of 16 bits (squared distance, cut off far from the number, and never reaching the top), so every level finds
 * the same path; of equal ones that with the lowest symbol.
 *
 * Sources: Viterbi's algorithm (Forney 1973), tail-biting as in QTIP (arXiv 2406.11235, section 3.3), two passes.
 */
#ifndef WRING_QUANT_TRELLIS_VITERBI_H
#define WRING_QUANT_TRELLIS_VITERBI_H

#include <stdint.h>

#include "kernels/backend.h"

enum { VITERBI_LENGTH = 128, VITERBI_WINDOWS = 4096, VITERBI_STATES = 1024 };

/* A number to come close to, in the unit of costs. */
struct viterbi_target {
    float x;
    float least; /* squared distance from the range of all values: it would be in every cost */
};

struct viterbi;
/* One position: cost and chosen symbol of every state after it. in, out: [states], cost | symbol in the low bits; least: of
 * all costs in `in`. Returns the least of `out`. */
typedef uint16_t viterbi_step_fn(const struct viterbi *v, struct viterbi_target to, uint16_t least,
                                 const uint16_t *in, uint16_t *out);

/* Some 280 KB: for a stack or a workspace. One thread. */
struct viterbi {
    int bits, states;
    viterbi_step_fn *step;
    float gain;                                  /* of a distance, so that its square is a cost */
    float lo, hi;                                /* range of the values, times gain */
    float far;                                   /* where costs are cut off */
    float value[16][16];                         /* times gain */
    _Alignas(32) uint8_t index[VITERBI_WINDOWS]; /* n0 ^ q[n1] ^ r[n2] by viterbi_at() */
    _Alignas(32) uint16_t path[VITERBI_LENGTH + 1][VITERBI_STATES];
};

/* bits: 2 to 4. value: [n2][16]; with 2 bits all n2 have the same. */
void viterbi_open(struct viterbi *v, int bits, const uint8_t q[16], const uint8_t r[16],
                  const float value[256], enum cpu_isa isa);
/* n: up to VITERBI_LENGTH, at least 16. Any x will do, NaN too. */
void viterbi_run(struct viterbi *v, const float *x, int n, uint8_t *symbol);

/* ---- what a state is --------------------------------------------------------------------------------------------- */

/* Symbols u0 (the oldest), u1, ... of a state lie in it from the low bits on; with 3 bits their low two bits first, then their
 * high bits, as the window's nibbles have them. */
static inline int viterbi_before(int bits, int state, int symbol)
{
    if (bits == 3)
        return (state << 2 & 0x3c) | (symbol & 3) | ((state >> 5 & 6) | symbol >> 2) << 6;
    return (state << bits | symbol) & ((1 << (12 - bits)) - 1);
}

/* The window of the step that ends in state and drops symbol: nibbles n0, n1, n2 from the low bits on. */
static inline int viterbi_window(int bits, int state, int symbol)
{
    if (bits == 3)
        return (symbol & 3) | (state & 63) << 2 | (symbol >> 2 | state >> 6 << 1) << 8;
    return state << bits | symbol;
}

/* The window that position t of n circular symbols reads. */
static inline int viterbi_window_at(int bits, const uint8_t *symbol, int n, int t)
{
    int state = 0;
    for (int j = 12 / bits - 1; j > 0; j--)
        state = viterbi_before(bits, state, symbol[(t + j) % n]);
    return viterbi_window(bits, state, symbol[t]);
}

/* Where index has a step: sixteen states and two symbols side by side, in the order in which 32-byte registers unpack. */
static inline int viterbi_at(int bits, int state, int symbol)
{
    int pair = (state >> 4 << bits | symbol) >> 1;
    return pair * 32 + (state >> 3 & 1) * 16 + (symbol & 1) * 8 + (state & 7);
}

uint16_t viterbi_step_2_avx2(const struct viterbi *v, struct viterbi_target to, uint16_t least,
                             const uint16_t *in, uint16_t *out);
uint16_t viterbi_step_3_avx2(const struct viterbi *v, struct viterbi_target to, uint16_t least,
                             const uint16_t *in, uint16_t *out);
uint16_t viterbi_step_4_avx2(const struct viterbi *v, struct viterbi_target to, uint16_t least,
                             const uint16_t *in, uint16_t *out);

#endif
