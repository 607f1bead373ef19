#include "kernels/cpu/vec_avx512.h"

VEC_FN VEC flip(VEC x, uint32_t bits)
{
    return _mm512_mask_xor_ps(x, (__mmask16)bits, x, _mm512_set1_ps(-0.0f));
}

/* Each lane plus its partner, the upper one of a pair with its sign changed. */
VEC_FN VEC fold(VEC x)
{
    x = _mm512_add_ps(_mm512_permute_ps(x, 0xb1), flip(x, 0xaaaa));
    x = _mm512_add_ps(_mm512_permute_ps(x, 0x4e), flip(x, 0xcccc));
    x = _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0xb1), flip(x, 0xf0f0));
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0x4e), flip(x, 0xff00));
}

#define ROTATE_ROW rotate_row_avx512
#include "quant/rotate_kernel.inc"
