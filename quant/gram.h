/* Sums of outer products: what second moments are made of. */
#ifndef WRING_QUANT_GRAM_H
#define WRING_QUANT_GRAM_H

#include "kernels/backend.h"

struct openblas;

/* Upper triangle of h[cols][cols] += scale * x[n][cols]^T x; what lies below it is not defined afterwards. With blas NULL
 * the work is cut into strips of h and spread over par: the same bits for any number of threads. */
void gram_add(float *h, const float *x, int n, int cols, float scale, const struct openblas *blas,
              enum cpu_isa isa, struct par *par);

#endif
