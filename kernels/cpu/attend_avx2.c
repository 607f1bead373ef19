/* Attention with AVX2: three rows, 12 sums in registers. */
#define ROWS 3
#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/attend_f32.h"

const struct attend_kernel attend_kernel_avx2 = { pack, tile, finish };
