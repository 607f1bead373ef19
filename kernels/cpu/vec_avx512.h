/* One register of 16 floats. vec_avx2.h has the same words for 8; code between `vec_` words is written once. */
#ifndef WRING_KERNELS_CPU_VEC_AVX512_H
#define WRING_KERNELS_CPU_VEC_AVX512_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

/* Nothing here is ever called, all of it is inlined: how registers would be passed does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"

#define VEC    __m512
#define VEC_FN static inline __attribute__((always_inline, unused))
enum { VEC_N = 16 };
#define VEC_LOG2E 1.44269504088896340736f

VEC_FN VEC vec_zero(void)
{
    return _mm512_setzero_ps();
}
VEC_FN VEC vec_set(float x)
{
    return _mm512_set1_ps(x);
}
VEC_FN VEC vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
VEC_FN void vec_store(float *p, VEC x)
{
    _mm512_storeu_ps(p, x);
}
/* Mask of the first n lanes; n may be anything. */
VEC_FN __mmask16 vec_head(int n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1);
}
/* The first n floats, zeros behind them. */
VEC_FN VEC vec_load_head(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(vec_head(n), p);
}
VEC_FN void vec_store_head(float *p, int n, VEC x)
{
    _mm512_mask_storeu_ps(p, vec_head(n), x);
}
VEC_FN VEC vec_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
VEC_FN VEC vec_load_bf16(const uint16_t *p)
{
    __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
VEC_FN VEC vec_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
/* The first n of them, 0 < n < VEC_N. */
VEC_FN VEC vec_load_i8_head(const int8_t *p, int n)
{
    __mmask16 m = (__mmask16)((1u << n) - 1);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, p)));
}
/* As half_within_f16(): of a NaN, min and max take the second. */
VEC_FN VEC vec_within_f16(VEC x)
{
    return _mm512_max_ps(_mm512_set1_ps(-65504), _mm512_min_ps(_mm512_set1_ps(65504), x));
}
VEC_FN void vec_store_f16(uint16_t *p, VEC x)
{
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
VEC_FN void vec_store_bf16(uint16_t *p, VEC x)
{
    __m512i u = _mm512_castps_si512(x), up = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(up, _mm512_set1_epi32(1));
    __m512i near = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    __m512i nan = _mm512_or_si512(up, _mm512_set1_epi32(0x40));
    near = _mm512_mask_mov_epi32(_mm512_srli_epi32(near, 16),
                                 _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nan);
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16(near));
}
/* p[0] p[1] p[0] p[1] ... */
VEC_FN VEC vec_pair(const float *p)
{
    double d;
    __builtin_memcpy(&d, p, sizeof(d));
    return _mm512_castpd_ps(_mm512_set1_pd(d));
}
/* p[0] p[0] p[1] p[1] ... */
VEC_FN VEC vec_load_twice(const float *p)
{
    const __m512i at = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(at, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
}
/* x1 x0 x3 x2 ... */
VEC_FN VEC vec_swap_pairs(VEC x)
{
    return _mm512_permute_ps(x, 0xb1);
}
VEC_FN VEC vec_add(VEC a, VEC b)
{
    return _mm512_add_ps(a, b);
}
VEC_FN VEC vec_sub(VEC a, VEC b)
{
    return _mm512_sub_ps(a, b);
}
VEC_FN VEC vec_mul(VEC a, VEC b)
{
    return _mm512_mul_ps(a, b);
}
VEC_FN VEC vec_div(VEC a, VEC b)
{
    return _mm512_div_ps(a, b);
}
/* a * b + c, rounded once */
VEC_FN VEC vec_fma(VEC a, VEC b, VEC c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* b where either is NaN */
VEC_FN VEC vec_max(VEC a, VEC b)
{
    return _mm512_max_ps(a, b);
}
/* even lanes a - b, odd lanes a + b */
VEC_FN VEC vec_sub_add(VEC a, VEC b)
{
    return _mm512_mask_sub_ps(_mm512_add_ps(a, b), 0x5555, a, b);
}
VEC_FN float vec_max_of(VEC x)
{
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
/* Lane j with lane j + half, then halves again. */
VEC_FN float vec_sum_of(VEC x)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
/* Sums of neighbours: those of a, then those of b. */
VEC_FN VEC vec_pair_sums(VEC a, VEC b)
{
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd =
        _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_add_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
}
/* Lanes whose bit is 0 become -inf. */
VEC_FN VEC vec_hide(VEC x, uint64_t seen)
{
    return _mm512_mask_blend_ps((__mmask16)seen, _mm512_set1_ps(-INFINITY), x);
}
/* 2^x within 1.5 ulp; exact at integers, subnormal and 0 in the end, NaN for NaN. VREDUCE gives x - floor(x) (0 for
 * infinities) and VSCALEF multiplies by 2^floor(x). The polynomial is a weighted minimax fit of (2^r - 1) / r on [0, 1],
 * relative error 8.2e-8. */
VEC_FN VEC vec_exp2(VEC x)
{
    VEC r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    VEC p = _mm512_set1_ps(0.00186713f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.009017031f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.055799913f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24016444f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.6931513f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);
}
VEC_FN float vec_exp2_one(float x)
{
    return _mm512_cvtss_f32(vec_exp2(_mm512_set1_ps(x)));
}

#endif
