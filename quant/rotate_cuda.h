/* Rotations on the GPU, for rotate.c. Built only with WRING_CUDA. */
#ifndef WRING_QUANT_ROTATE_CUDA_H
#define WRING_QUANT_ROTATE_CUDA_H

#include "kernels/backend.h"

/* y = R x, or R^-1 x with `back`, for n rows of cols, be's memory both; y may be x. The bits of rotate_rows, rotate_back. */
void rotate_rows_cuda(struct be *be, const float *x, float *y, int n, int cols, bool back);

#endif
