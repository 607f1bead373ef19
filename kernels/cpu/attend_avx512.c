/* Attention with AVX-512: six rows of four registers of sums. */
#define VECS 4
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/attend_f32.inc"

const struct attend_kernel attend_kernel_avx512 = { pack, tile, finish, sums };
