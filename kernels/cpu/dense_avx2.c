/* Dense products with AVX2: six rows of two registers of sums. */
#define VECS 2
#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/dense.inc"

const struct dense_kernel dense_kernel_avx2 = { product, forward, back, exp_all };
