/* Attention with AVX-512: six rows, 24 sums in registers. */
#define ROWS 6
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/attend_f32.h"

const struct attend_kernel attend_kernel_avx512 = { pack, tile, finish };
