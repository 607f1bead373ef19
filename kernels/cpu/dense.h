/* Dense products on the CPU: what the file with the algorithms (dense.c) and the loops per instruction set (dense_*.c) say
 * to each other.
 */
#ifndef WRING_KERNELS_CPU_DENSE_H
#define WRING_KERNELS_CPU_DENSE_H

#include "kernels/dense.h"

enum {
    DENSE_BASE = 16
}; /* a triangle of so many rows is solved directly, a larger one is halved */

struct dense_kernel {
    void (*product)(const struct dense_product *t);
    /* Both for n <= DENSE_BASE and an upper triangular u, whose rows are u_row apart: U^T x = b and U x = b; b[n][m], rows
     * b_row apart, is overwritten by x. */
    void (*forward)(const float *u, size_t u_row, float *b, size_t b_row, int n, int m);
    void (*back)(const float *u, size_t u_row, float *b, size_t b_row, int n, int m);
    void (*exp)(float *y, const float *x, int n);
};

extern const struct dense_kernel dense_kernel_avx2;
extern const struct dense_kernel dense_kernel_avx512;

#endif
