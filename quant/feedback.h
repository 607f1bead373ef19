/* Error feedback from column to column: GPTQ (arXiv 2210.17323, algorithm 1), which is LDLQ (arXiv 2307.13304).
 *
 * The rows of a matrix do not know of each other, so a caller may press any of them at a time; within them one column (or
 * block of columns) after the other is quantised, and what was lost is made good by the columns still to come.
 *
 * Layout: columns are contiguous, x[cols][n] for n rows, so that every update is a loop over rows. They stand in the order of
 * the moments, struct moments.order: column j of x and q is input order[j].
 */
#ifndef WRING_QUANT_FEEDBACK_H
#define WRING_QUANT_FEEDBACK_H

#include "quant/moments.h"

/* Quantises columns [j0, j0 + b): x[b][n] to q[b][n], their nearest (for b > 1: in the metric of `metric`) values. metric:
 * [b][b] upper triangular, inverse(u[j0.., j0..]), the loss of a row is |(x - q) metric|^2; NULL when b == 1. */
typedef void feedback_fn(void *arg, int j0, int b, int n, const float *x, const float *metric,
                         float *q);

/* x is overwritten by what each column was when its turn came; q is the result. block: columns at a time, 1 to 32,
 * a divisor of cols. The total loss tr((w - q) h (w - q)^T) is the sum of what fn left of each block, |(x - q) metric|^2, for
 * b == 1 with 1 / u[j][j] as the metric. A row's bits do not depend on n. One thread; 64 to 256
 * rows at a time are best: with 2048 columns it takes 104 ns a weight for 16 rows, 44 for 128, 54 for 512 (Zen 3, AVX2).
 * ERR_NOMEM. */
int feedback_run(const struct moments *m, float *x, float *q, int n, int block, feedback_fn *fn,
                 void *arg, struct err *e) WARN_UNUSED;
/* The factor for each of n rows by which q should be multiplied to be nearest to w in H's metric: (q H w) / (q H q); 1
 * where the denominator is not positive. Both [cols][n]; moments that were not reordered. ERR_NOMEM. */
int feedback_refit(const struct moments *m, const float *w, const float *q, int n, float *factor,
                   struct err *e) WARN_UNUSED;
/* dst[cols][n] = src[n][cols]^T; with n and cols exchanged, back. */
void feedback_turn(const float *src, float *dst, int n, int cols);

#endif
