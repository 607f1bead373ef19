/* Small dense products in f32 on the host: one thread, fixed order of every sum, so the same bits every time.
 *
 * Row-major, dense rows (a row's stride is its length); outputs overlap no input. Plain C (CPU_REF) is the definition;
 * other levels are tested against it. What the fits of kvcache/fit.c are made of: some hundred rows and columns, so that
 * everything stays in L2.
 */
#ifndef WRING_KERNELS_DENSE_H
#define WRING_KERNELS_DENSE_H

#include "kernels/backend.h"

/* c[m][n] = scale * a[m][k] b[n][k]^T: dot products of rows. */
void dense_nt(enum cpu_isa isa, float *c, const float *a, const float *b, int m, int n, int k,
              float scale);
/* c[m][n] += a[m][k] b[k][n] */
void dense_nn(enum cpu_isa isa, float *c, const float *a, const float *b, int m, int n, int k);
/* c[m][n] += a[k][m]^T b[k][n] */
void dense_tn(enum cpu_isa isa, float *c, const float *a, const float *b, int m, int n, int k);
/* What dense_cholesky reads of a[rows][cols]^T a (c[cols][cols]), or, of_rows, of a a^T (c[rows][rows]): half of the
 * work. c holds its upper triangle; below it some numbers are written that mean nothing. */
void dense_gram(enum cpu_isa isa, float *c, const float *a, int rows, int cols, bool of_rows);
/* Solves a x = b for a symmetric positive definite a[n][n] (upper triangle read and overwritten by its Cholesky factor U,
 * a = U^T U), b[n][m] overwritten by x. ERR_INVALID when a pivot is not positive: a is not positive definite in f32. */
int dense_cholesky(enum cpu_isa isa, float *a, float *b, int n, int m) WARN_UNUSED;
/* y[i] = exp(x[i]), within 4 ulp where that is a normal number; -inf gives 0, NaN gives NaN. y may be x. */
void dense_exp(enum cpu_isa isa, float *y, const float *x, int n);

#endif
