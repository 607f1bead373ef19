/* OpenBLAS, opened at run time: only pressing weights needs it, and a server should not.
 *
 * Its own threads do the work, as many as it finds processors (OPENBLAS_NUM_THREADS: fewer), whatever the size of our pool:
 * the same machine gives the same bits. On Zen 3 one thread of it sums up and factors 1.2 to 1.6 times as fast as the
 * products of kernels/dense.h (2048 inputs: 28 ms against 41 for 512 rows, 121 against 141 to factor).
 */
#ifndef WRING_QUANT_OPENBLAS_H
#define WRING_QUANT_OPENBLAS_H

#include <stdbool.h>

/* What was found in the library. The library itself stays loaded until the process ends, so opening it again is cheap and
 * nothing is to be closed. */
struct openblas {
    void (*ssyrk)(int order, int triangle, int turn, int n, int k, float alpha, const float *a,
                  int lda, float beta, float *c, int ldc);
    void (*spotrf)(const char *triangle, const int *n, float *a, const int *lda, int *info);
    void (*strtri)(const char *triangle, const char *unit, const int *n, float *a, const int *lda,
                   int *info);
};

/* False when there is none. */
bool openblas_open(struct openblas *b);
/* Upper triangle of row-major c[n][n] += scale * a[k][n]^T a. */
void openblas_gram(const struct openblas *b, float *c, const float *a, int k, int n, float scale);
/* Row-major, upper triangles, in place: a = u^T u, and the inverse of u. False: a is not positive definite, u not regular. */
bool openblas_cholesky(const struct openblas *b, float *a, int n);
bool openblas_invert(const struct openblas *b, float *u, int n);

#endif
