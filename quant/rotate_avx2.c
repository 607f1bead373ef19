#include "kernels/cpu/vec_avx2.h"

/* The bit of lane i moves to the sign. */
VEC_FN VEC flip(VEC x, uint32_t bits)
{
    const __m256i up = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    __m256i top = _mm256_sllv_epi32(_mm256_set1_epi32((int)bits), up);
    top = _mm256_and_si256(top, _mm256_set1_epi32(INT32_MIN));
    return _mm256_xor_ps(x, _mm256_castsi256_ps(top));
}

/* Each lane plus its partner, the upper one of a pair with its sign changed. */
VEC_FN VEC fold(VEC x)
{
    x = _mm256_add_ps(_mm256_permute_ps(x, 0xb1), flip(x, 0xaa));
    x = _mm256_add_ps(_mm256_permute_ps(x, 0x4e), flip(x, 0xcc));
    return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 1), flip(x, 0xf0));
}

#define ROTATE_ROW rotate_row_avx2
#include "quant/rotate_kernel.inc"
