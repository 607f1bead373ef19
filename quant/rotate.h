/* Rotations of inputs: what makes weights Gaussian before they are pressed (incoherence processing, QuIP# arXiv 2402.04396,
 * section 3; the run-time half of it on the input side only).
 *
 * R = (C_m (x) H_p) diag(s) for cols = m * p, p the largest power of two in it: H_p the Hadamard matrix / sqrt(p) in
 * natural (Sylvester) order, C_m the Hartley matrix cas(2 pi a b / m) / sqrt(m), the identity where m > ROTATE_MIX, and s
 * signs: s[i] is -1 where bit 0 of splitmix64(cols * 2^32 + i) is set. Element i of a row is (i / p, i % p). R is orthogonal,
 * a function of cols alone, and C and H are their own inverses: R^-1 = diag(s) (C (x) H).
 *
 * Every level gives the same bits: butterflies in place with the stride rising, then for each output a of C the sum over b
 * in rising order without fused operations, then one multiplication by 1 / sqrt(p).
 */
#ifndef WRING_QUANT_ROTATE_H
#define WRING_QUANT_ROTATE_H

#include "kernels/backend.h"

struct input;

enum { ROTATE_MIX = 64 };

/* y = R x for n rows of cols; y may be x. One thread. */
void rotate_rows(enum cpu_isa isa, const float *x, float *y, int n, int cols);
/* y = R^-1 x */
void rotate_back(enum cpu_isa isa, const float *x, float *y, int n, int cols);
/* h = R h R^T of a symmetric h[cols][cols], in place; spreads over par. */
void rotate_moments(enum cpu_isa isa, struct par *par, float *h, int cols);
/* The rotated input, in the memory of `in` behind its preparations; spreads over be->par when there are many rows. */
void rotate_input(struct be *be, struct input *in, struct input *rotated);

#endif
