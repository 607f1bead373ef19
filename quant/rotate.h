/* Rotations of inputs: what makes weights Gaussian before they are pressed (incoherence processing, QuIP# arXiv 2402.04396,
 * section 3; the run-time half of it on the input side only).
 *
 * R = (C_m (x) H_p) diag(s) for cols = m * p, p the largest power of two in it: H_p the Hadamard matrix / sqrt(p) in
 * natural (Sylvester) order, C_m the Hartley matrix cas(2 pi a b / m) / sqrt(m), the identity where m > ROTATE_MIX, and s
 * signs: s[i] is -1 where bit i % 64 of rotate_signs(cols, i / 64) is set. Element i of a row is (i / p, i % p). R is
 * orthogonal, a function of cols alone, and C and H are their own inverses: R^-1 = diag(s) (C (x) H).
 *
 * Every level gives the same bits, without fused operations. H: butterflies in place with the stride rising. C, with
 * x[b] what the blocks b hold at one place: for a = 0 ... m / 2, in this order, P = cos(0) x[0] and Q = 0, then for b = 1 ...
 * m / 2, t = 2 pi a b / m, P += cos(t) (x[b] + x[m - b]) and Q += sin(t) (x[b] - x[m - b]); outputs a and m - a are P + Q and
 * P - Q, which halves the multiplications. Then one multiplication by 1 / sqrt(p).
 */
#ifndef WRING_QUANT_ROTATE_H
#define WRING_QUANT_ROTATE_H

#include "quant/codec.h"

enum { ROTATE_MIX = 64 };

/* The two factors for a number of columns, cheap enough to be made for every call. */
struct rotate_factors {
    int cols, m, p;
    bool mix;                                   /* C is not the identity */
    float cosine[ROTATE_MIX], sine[ROTATE_MIX]; /* of 2 pi i / m, / sqrt(m), for i < m */
    float scale;                                /* 1 / sqrt(p) */
};
void rotate_factors(struct rotate_factors *f, int cols);

/* The signs of elements 64 i ... 64 i + 63, the first in bit 0: the mixer of splitmix64. */
CODEC_INLINE uint64_t rotate_signs(int cols, int i)
{
    uint64_t z = ((uint64_t)(unsigned)cols << 32) + (uint64_t)(unsigned)i + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* y = R x for n rows of cols; y may be x. One thread. */
void rotate_rows(enum cpu_isa isa, const float *x, float *y, int n, int cols);
/* y = R^-1 x */
void rotate_back(enum cpu_isa isa, const float *x, float *y, int n, int cols);
/* h = R h R^T of a symmetric h[cols][cols], in place; spreads over par. */
void rotate_moments(enum cpu_isa isa, struct par *par, float *h, int cols);
/* The rotated input, in the memory of `in` behind its preparations; spreads over be->par when there are many rows. */
void rotate_input(struct be *be, struct input *in, struct input *rotated);
/* x = R^-1 x in place, for n rows of a device's memory: what its look-up of a codec that rotates gives. */
void rotate_device_back(struct be *be, float *x, int n, int cols);

/* One row: y = (C (x) H) x with the signs of x changed first when `signs`. Those for an instruction set want p >= 16. */
typedef void rotate_row_fn(const struct rotate_factors *f, const float *x, float *y, bool signs);
rotate_row_fn rotate_row_avx2, rotate_row_avx512;

#endif
