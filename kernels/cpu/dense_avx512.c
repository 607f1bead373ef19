/* Dense products with AVX-512: six rows of four registers of sums. */
#define VECS 4
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/dense.inc"

const struct dense_kernel dense_kernel_avx512 = { product, forward, back, exp_all };
