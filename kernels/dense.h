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

/* ---- blocks of larger matrices ------------------------------------------------------------------------------------- */

/* c[i][j] = (add ? c[i][j] : 0) + scale * sum_p a[i][p] b[p][j]. Strides in floats; c's columns are adjacent. An element's
 * bits depend on neither m nor n, unless m is 1 and both a_col and b_row are 1. */
struct dense_product {
    float *c;
    const float *a, *b;
    int m, n, k;
    size_t c_row, a_row, a_col, b_row, b_col;
    float scale;
    bool add;
    bool upper; /* c[i][j] is wanted for j >= i only; others may be written, or not */
};
void dense_product(enum cpu_isa isa, const struct dense_product *t);
/* The upper triangle of a, whose rows are a_row apart, by its Cholesky factor U, a = U^T U; ERR_INVALID as above. */
int dense_factor(enum cpu_isa isa, float *a, size_t a_row, int n) WARN_UNUSED;
/* U^T x = b and U x = b for an upper triangular u[n][n]; b[n][m] is overwritten by x. */
void dense_forward(enum cpu_isa isa, const float *u, size_t u_row, float *b, size_t b_row, int n,
                   int m);
void dense_back(enum cpu_isa isa, const float *u, size_t u_row, float *b, size_t b_row, int n,
                int m);

/* y[i] = exp(x[i]), within 4 ulp where that is a normal number; -inf gives 0, NaN gives NaN. y may be x. */
void dense_exp(enum cpu_isa isa, float *y, const float *x, int n);

#endif
