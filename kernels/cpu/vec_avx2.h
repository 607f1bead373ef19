/* One register of 8 floats. vec_avx512.h has the same words for 16; code between `vec_` words is written once. */
#ifndef WRING_KERNELS_CPU_VEC_AVX2_H
#define WRING_KERNELS_CPU_VEC_AVX2_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

/* Nothing here is ever called, all of it is inlined: how registers would be passed does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"

#define VEC    __m256
#define VEC_FN static inline __attribute__((always_inline, unused))
enum { VEC_N = 8 };
#define VEC_LOG2E 1.44269504088896340736f

VEC_FN VEC vec_zero(void)
{
    return _mm256_setzero_ps();
}
VEC_FN VEC vec_set(float x)
{
    return _mm256_set1_ps(x);
}
VEC_FN VEC vec_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
VEC_FN void vec_store(float *p, VEC x)
{
    _mm256_storeu_ps(p, x);
}
/* All bits of the first n lanes; n may be anything. */
VEC_FN __m256i vec_head(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/* The first n floats, zeros behind them. */
VEC_FN VEC vec_load_head(const float *p, int n)
{
    return _mm256_maskload_ps(p, vec_head(n));
}
VEC_FN void vec_store_head(float *p, int n, VEC x)
{
    _mm256_maskstore_ps(p, vec_head(n), x);
}
VEC_FN VEC vec_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}
VEC_FN VEC vec_load_bf16(const uint16_t *p)
{
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
VEC_FN VEC vec_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
/* The first n of them, 0 < n < VEC_N. */
VEC_FN VEC vec_load_i8_head(const int8_t *p, int n)
{
    int8_t head[VEC_N] = { 0 };
    __builtin_memcpy(head, p, (size_t)n);
    return vec_load_i8(head);
}
/* As half_within_f16(): of a NaN, min and max take the second. */
VEC_FN VEC vec_within_f16(VEC x)
{
    return _mm256_max_ps(_mm256_set1_ps(-65504), _mm256_min_ps(_mm256_set1_ps(65504), x));
}
VEC_FN void vec_store_f16(uint16_t *p, VEC x)
{
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
VEC_FN void vec_store_bf16(uint16_t *p, VEC x)
{
    __m256i u = _mm256_castps_si256(x), up = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(up, _mm256_set1_epi32(1));
    __m256i near = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_or_si256(up, _mm256_set1_epi32(0x40));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    near = _mm256_blendv_epi8(_mm256_srli_epi32(near, 16), nan, is_nan);
    __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(near, near), 0xd8);
    _mm_storeu_si128((void *)p, _mm256_castsi256_si128(both));
}
/* p[0] p[1] p[0] p[1] ... */
VEC_FN VEC vec_pair(const float *p)
{
    double d;
    __builtin_memcpy(&d, p, sizeof(d));
    return _mm256_castpd_ps(_mm256_set1_pd(d));
}
/* p[0] p[0] p[1] p[1] ... */
VEC_FN VEC vec_load_twice(const float *p)
{
    const __m256i at = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), at);
}
/* x1 x0 x3 x2 ... */
VEC_FN VEC vec_swap_pairs(VEC x)
{
    return _mm256_permute_ps(x, 0xb1);
}
VEC_FN VEC vec_add(VEC a, VEC b)
{
    return _mm256_add_ps(a, b);
}
VEC_FN VEC vec_sub(VEC a, VEC b)
{
    return _mm256_sub_ps(a, b);
}
VEC_FN VEC vec_mul(VEC a, VEC b)
{
    return _mm256_mul_ps(a, b);
}
VEC_FN VEC vec_div(VEC a, VEC b)
{
    return _mm256_div_ps(a, b);
}
/* a * b + c, rounded once */
VEC_FN VEC vec_fma(VEC a, VEC b, VEC c)
{
    return _mm256_fmadd_ps(a, b, c);
}
/* b where either is NaN */
VEC_FN VEC vec_max(VEC a, VEC b)
{
    return _mm256_max_ps(a, b);
}
/* even lanes a - b, odd lanes a + b */
VEC_FN VEC vec_sub_add(VEC a, VEC b)
{
    return _mm256_addsub_ps(a, b);
}
VEC_FN float vec_max_of(VEC x)
{
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
/* Lane j with lane j + half, then halves again. */
VEC_FN float vec_sum_of(VEC x)
{
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
/* Sums of neighbours: those of a, then those of b. */
VEC_FN VEC vec_pair_sums(VEC a, VEC b)
{
    __m256d x = _mm256_castps_pd(_mm256_hadd_ps(a, b));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(x, 0xd8));
}
/* Lanes whose bit is 0 become -inf. */
VEC_FN VEC vec_hide(VEC x, uint64_t seen)
{
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i m = _mm256_and_si256(_mm256_set1_epi32((int)(seen & 0xff)), bit);
    return _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), x,
                            _mm256_castsi256_ps(_mm256_cmpeq_epi32(m, bit)));
}
/* 2^x within 1.5 ulp; exact at integers, 0 below -150, inf from 128 on, NaN for NaN. The polynomial is a weighted
 * minimax fit of (2^r - 1) / r on [-1/2, 1/2], relative error 9.2e-8. */
VEC_FN VEC vec_exp2(VEC x)
{
    x = _mm256_min_ps(_mm256_set1_ps(160.0f), _mm256_max_ps(_mm256_set1_ps(-160.0f), x));
    VEC n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    VEC r = _mm256_sub_ps(x, n);
    VEC p = _mm256_set1_ps(0.001326472614891827f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.009671512991189957f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.05550733581185341f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.24022242426872253f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.6931470036506653f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    /* 2^n in two factors, so that subnormal results are reached. */
    __m256i e = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(e, 1);
    __m256i bias = _mm256_set1_epi32(127), rest = _mm256_sub_epi32(e, half);
    VEC f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    VEC g = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(p, f), g);
}
VEC_FN float vec_exp2_one(float x)
{
    return _mm256_cvtss_f32(vec_exp2(_mm256_set1_ps(x)));
}

#endif
