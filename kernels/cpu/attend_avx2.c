/* Attention with AVX2: six rows of two registers of sums. */
#define VECS 2
#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/attend_f32.inc"

const struct attend_kernel attend_kernel_avx2 = { pack, tile, finish, sums };
