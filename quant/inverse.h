/* The triangle that error feedback reads: u with inverse(h) = u^T u.
 *
 * No inverse is ever made. Let P reverse the order of rows: P h P = w^T w by Cholesky, so h = v v^T with the upper triangle
 * v = P w^T P, and u = inverse(v) = P inverse(w)^T P. Against Cholesky, inverse and Cholesky again (what GPTQ does) that is
 * half of the work, and the condition number enters once.
 */
#ifndef WRING_QUANT_INVERSE_H
#define WRING_QUANT_INVERSE_H

#include "kernels/backend.h"

struct openblas;

/* From all of the symmetric h[n][n] to all of u[n][n], zeros below the diagonal. With blas NULL the work is cut into blocks
 * by n alone and spread over par: the same bits for any number of threads. ERR_NOMEM; ERR_INVALID: h is not positive
 * definite in f32, and u holds nothing of use. */
int inverse_factor(float *u, const float *h, int n, const struct openblas *blas, enum cpu_isa isa,
                   struct par *par, struct err *e) WARN_UNUSED;

#endif
