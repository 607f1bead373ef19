/* OpenBLAS, opened at run time: only pressing weights needs it, and a server should not.
 *
 * Without the library every function returns false, and the caller does the same sums itself, slower.
 */
#ifndef WRING_QUANT_BLAS_H
#define WRING_QUANT_BLAS_H

#include <stdbool.h>

/* Whether there is one; opens it at the first call, with n_threads threads. Thread: call once before the others. */
bool blas_open(int n_threads);
/* Upper triangle of row-major c[n][n] += a[k][n]^T a. */
bool blas_gram(float *c, const float *a, int k, int n);
/* Row-major c[m][n] = a[m][k] b[k][n] (+ c when add). */
bool blas_product(float *c, const float *a, const float *b, int m, int n, int k, bool add);
/* Row-major, upper triangles: a = u^T u, in place; then inverse(a) from u, in place. bad: the minor that is not positive,
 * 0: none. */
bool blas_cholesky(float *a, int n, int *bad);
bool blas_inverse(float *u, int n);

#endif
