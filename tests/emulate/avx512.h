/* AVX-512 for machines without it: the instructions that the kernels of the levels avx512 and bf16 use, in plain C after the
 * operations of Intel's manual (Software Developer's Manual, volume 2), so that their results are checked everywhere.
 * Included before everything else in those kernels and in kernels/cpu/cpu.c (Makefile, tests/emulated). Rounding is to
 * nearest even; masked-off lanes are not touched in memory. What is not here does not compile.
 */
#ifndef WRING_TESTS_EMULATE_AVX512_H
#define WRING_TESTS_EMULATE_AVX512_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* The machine that is emulated has all that is asked for. */
#define __builtin_cpu_supports(feature) 1
/* What quant/vec16.h chooses by; not before <immintrin.h>, which chooses by it too. */
#define __AVX512VNNI__                  1

/* Macros already, in some compiler, not functions that macros may hide. */
#undef _mm512_alignr_epi32
#undef _mm512_cmp_ps_mask
#undef _mm512_cmplt_epi32_mask
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x8_ps
#undef _mm512_inserti32x4
#undef _mm512_mask_blend_epi8
#undef _mm512_permute_ps
#undef _mm512_reduce_ps
#undef _mm512_setr_epi32
#undef _mm512_shuffle_f32x4
#undef _mm512_slli_epi16
#undef _mm512_slli_epi32
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32
#undef _mm_dpbusd_epi32

/* Not inlined, for the time that unrolled kernels then take to compile. */
#define EMU static __attribute__((noinline, unused))

enum { EMU_LANES = 16 };

/* A register, by its parts. */
typedef union {
    float f[16];
    double d[8];
    int32_t i[16];
    uint32_t u[16];
    uint16_t h[32];
    uint8_t b[64];
    __m128i q[4];
    __m256 half[2];
    __m256i halfi[2];
    __m512 ps;
    __m512d pd;
    __m512i si;
    __m512bh bh;
} emu;

#define EMU_LANE(expression)                                                                       \
    do {                                                                                           \
        for (int l = 0; l < EMU_LANES; l++)                                                        \
            expression;                                                                            \
    } while (0)

/* ---- moves ------------------------------------------------------------------------------------------------------- */

EMU __m512i emu_load(const void *p)
{
    emu r;
    memcpy(&r, p, sizeof r);
    return r.si;
}
EMU void emu_store(void *p, __m512i a)
{
    memcpy(p, &a, sizeof a);
}
EMU __m512i emu_mask_load(__mmask16 k, const void *p)
{
    emu r;
    for (int l = 0; l < EMU_LANES; l++)
        if (k >> l & 1)
            memcpy(&r.u[l], (const char *)p + 4 * l, 4);
        else
            r.u[l] = 0;
    return r.si;
}
EMU void emu_mask_store(float *p, __mmask16 k, __m512 a)
{
    emu x = { .ps = a };
    for (int l = 0; l < EMU_LANES; l++)
        if (k >> l & 1)
            p[l] = x.f[l];
}
EMU __m128i emu_mask_load_bytes(__mmask16 k, const void *p)
{
    union {
        uint8_t b[16];
        __m128i v;
    } r;
    for (int l = 0; l < 16; l++)
        r.b[l] = k >> l & 1 ? ((const uint8_t *)p)[l] : 0;
    return r.v;
}
EMU __m512i emu_set32(uint32_t x)
{
    emu r;
    EMU_LANE(r.u[l] = x);
    return r.si;
}
EMU __m512 emu_setf(float x)
{
    emu r;
    EMU_LANE(r.f[l] = x);
    return r.ps;
}
EMU __m512d emu_setd(double x)
{
    emu r;
    for (int l = 0; l < 8; l++)
        r.d[l] = x;
    return r.pd;
}
EMU __m512i emu_select(__mmask16 k, __m512i yes, __m512i no)
{
    emu a = { .si = yes }, b = { .si = no }, r;
    EMU_LANE(r.u[l] = k >> l & 1 ? a.u[l] : b.u[l]);
    return r.si;
}

#define _mm512_loadu_ps(p)                ((__m512)emu_load(p))
#define _mm512_loadu_si512(p)             emu_load(p)
#define _mm512_storeu_ps(p, a)            emu_store(p, (__m512i)(a))
#define _mm512_storeu_si512(p, a)         emu_store(p, a)
#define _mm512_store_si512(p, a)          emu_store(p, a)
#define _mm512_maskz_loadu_ps(k, p)       ((__m512)emu_mask_load(k, p))
#define _mm512_maskz_loadu_epi32          emu_mask_load
#define _mm512_mask_storeu_ps             emu_mask_store
#define _mm_maskz_loadu_epi8              emu_mask_load_bytes
#define _mm512_set1_ps                    emu_setf
#define _mm512_set1_pd                    emu_setd
#define _mm512_set1_epi32(x)              emu_set32((uint32_t)(x))
#define _mm512_set1_epi16(x)              emu_set32((uint32_t)(uint16_t)(x)*0x10001u)
#define _mm512_set1_epi8(x)               emu_set32((uint32_t)(uint8_t)(x)*0x1010101u)
#define _mm512_setzero_ps()               emu_setf(0)
#define _mm512_setzero_si512()            emu_set32(0)
#define _mm512_setr_epi32(...)            (((emu){ .i = { __VA_ARGS__ } }).si)
#define _mm512_castps_si512(a)            ((__m512i)(a))
#define _mm512_castsi512_ps(a)            ((__m512)(a))
#define _mm512_castps_pd(a)               ((__m512d)(a))
#define _mm512_castpd_ps(a)               ((__m512)(a))
#define _mm512_castps512_ps256(a)         (((emu){ .ps = (a) }).half[0])
#define _mm512_castps256_ps512(a)         (((emu){ .half = { (a), (a) } }).ps)
#define _mm512_extractf32x8_ps(a, n)      (((emu){ .ps = (a) }).half[n])
#define _mm512_cvtss_f32(a)               (((emu){ .ps = (a) }).f[0])
#define _mm512_broadcast_i32x4(a)         (((emu){ .q = { (a), (a), (a), (a) } }).si)
#define _mm512_mask_mov_epi32(no, k, yes) emu_select(k, yes, no)
#define _mm512_mask_set1_epi32(no, k, x)  emu_select(k, _mm512_set1_epi32(x), no)
#define _mm512_mask_blend_ps(k, no, yes)  ((__m512)emu_select(k, (__m512i)(yes), (__m512i)(no)))

/* ---- floats ------------------------------------------------------------------------------------------------------ */

EMU __m512 emu_fma(__m512 a, __m512 b, __m512 c)
{
    emu x = { .ps = a }, y = { .ps = b }, z = { .ps = c };
    for (int i = 0; i < 2; i++)
        z.half[i] = _mm256_fmadd_ps(x.half[i], y.half[i], z.half[i]);
    return z.ps;
}
/* The second operand unless the first is less, or greater: so of NaN, and of zeros. */
EMU __m512 emu_min(__m512 a, __m512 b)
{
    emu x = { .ps = a }, y = { .ps = b }, r;
    EMU_LANE(r.f[l] = x.f[l] < y.f[l] ? x.f[l] : y.f[l]);
    return r.ps;
}
EMU __m512 emu_max(__m512 a, __m512 b)
{
    emu x = { .ps = a }, y = { .ps = b }, r;
    EMU_LANE(r.f[l] = x.f[l] > y.f[l] ? x.f[l] : y.f[l]);
    return r.ps;
}
EMU __mmask16 emu_cmp(__m512 a, __m512 b, int how)
{
    emu x = { .ps = a }, y = { .ps = b };
    unsigned k = 0;
    if (how != _CMP_EQ_OQ && how != _CMP_UNORD_Q)
        __builtin_trap();
    for (int l = 0; l < EMU_LANES; l++)
        k |= (unsigned)(how == _CMP_EQ_OQ ? x.f[l] == y.f[l] : isunordered(x.f[l], y.f[l])) << l;
    return (__mmask16)k;
}
EMU __m512 emu_sqrt(__m512 a)
{
    emu x = { .ps = a };
    for (int i = 0; i < 2; i++)
        x.half[i] = _mm256_sqrt_ps(x.half[i]);
    return x.ps;
}
/* VREDUCEPS by floor and without a fraction: x - floor(x), 0 of infinities. */
EMU __m512 emu_reduce(__m512 a, int how)
{
    emu x = { .ps = a }, r;
    if (how != (_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC))
        __builtin_trap();
    EMU_LANE(r.f[l] = isinf(x.f[l]) ? 0 : x.f[l] - floorf(x.f[l]));
    return r.ps;
}
/* VSCALEFPS of finite a: a times two to the power of floor(b). */
EMU float emu_scale_one(float a, float b)
{
    if (isnan(b) || isnan(a))
        return NAN;
    if (isinf(b))
        return b > 0 ? (a == 0 ? NAN : copysignf(INFINITY, a)) : copysignf(0, a);
    return ldexpf(a, (int)floorf(fminf(fmaxf(b, -1000), 1000)));
}
EMU __m512 emu_scale(__m512 a, __m512 b)
{
    emu x = { .ps = a }, y = { .ps = b }, r;
    EMU_LANE(r.f[l] = emu_scale_one(x.f[l], y.f[l]));
    return r.ps;
}

#define _mm512_add_ps(a, b)             ((__m512)(a) + (__m512)(b))
#define _mm512_sub_ps(a, b)             ((__m512)(a) - (__m512)(b))
#define _mm512_mul_ps(a, b)             ((__m512)(a) * (__m512)(b))
#define _mm512_div_ps(a, b)             ((__m512)(a) / (__m512)(b))
#define _mm512_mask_sub_ps(no, k, a, b) _mm512_mask_blend_ps(k, no, _mm512_sub_ps(a, b))
#define _mm512_fmadd_ps                 emu_fma
#define _mm512_min_ps                   emu_min
#define _mm512_max_ps                   emu_max
#define _mm512_cmp_ps_mask              emu_cmp
#define _mm512_sqrt_ps                  emu_sqrt
#define _mm512_reduce_ps                emu_reduce
#define _mm512_scalef_ps                emu_scale

/* ---- integers ---------------------------------------------------------------------------------------------------- */

typedef uint8_t emu_bytes __attribute__((vector_size(64), may_alias));
typedef uint16_t emu_words __attribute__((vector_size(64), may_alias));
typedef uint32_t emu_longs __attribute__((vector_size(64), may_alias));

EMU int emu_most(__m512i a)
{
    emu x = { .si = a };
    int most = x.i[0];
    EMU_LANE(most = x.i[l] > most ? x.i[l] : most);
    return most;
}
EMU __mmask16 emu_less(__m512i a, __m512i b)
{
    emu x = { .si = a }, y = { .si = b };
    unsigned k = 0;
    for (int l = 0; l < EMU_LANES; l++)
        k |= (unsigned)(x.i[l] < y.i[l]) << l;
    return (__mmask16)k;
}
EMU __m512i emu_least(__m512i a, __m512i b)
{
    emu x = { .si = a }, y = { .si = b }, r;
    EMU_LANE(r.u[l] = x.u[l] < y.u[l] ? x.u[l] : y.u[l]);
    return r.si;
}
/* Nothing is left of a number that is moved by 32 bits and more. */
EMU __m512i emu_shift_each(__m512i a, __m512i n)
{
    emu x = { .si = a }, y = { .si = n }, r;
    EMU_LANE(r.u[l] = y.u[l] < 32 ? x.u[l] >> y.u[l] : 0);
    return r.si;
}
EMU __m512i emu_abs_bytes(__m512i a)
{
    emu x = { .si = a }, r;
    for (int i = 0; i < 64; i++)
        r.b[i] = (uint8_t)((int8_t)x.b[i] < 0 ? -x.b[i] : x.b[i]);
    return r.si;
}
/* Four products of an unsigned byte with a signed one to each lane. */
EMU __m512i emu_dot(__m512i s, __m512i a, __m512i b)
{
    emu r = { .si = s }, x = { .si = a }, y = { .si = b };
    for (int i = 0; i < 64; i++)
        r.u[i / 4] += (uint32_t)(x.b[i] * (int8_t)y.b[i]);
    return r.si;
}
EMU __m128i emu_dot_128(__m128i s, __m128i a, __m128i b)
{
    emu x = { .q = { s } }, y = { .q = { a } }, z = { .q = { b } };
    return ((emu){ .si = emu_dot(x.si, y.si, z.si) }).q[0];
}

#define _mm512_and_si512(a, b)    ((__m512i)(a) & (__m512i)(b))
#define _mm512_or_si512(a, b)     ((__m512i)(a) | (__m512i)(b))
#define _mm512_xor_si512(a, b)    ((__m512i)(a) ^ (__m512i)(b))
#define _mm512_andnot_si512(a, b) (~(__m512i)(a) & (__m512i)(b))
#define _mm512_mask_xor_ps(no, k, a, b)                                                            \
    _mm512_mask_blend_ps(k, no, (__m512)_mm512_xor_si512((__m512i)(a), (__m512i)(b)))
#define _mm512_add_epi8(a, b)              ((__m512i)((emu_bytes)(a) + (emu_bytes)(b)))
#define _mm512_add_epi32(a, b)             ((__m512i)((emu_longs)(a) + (emu_longs)(b)))
#define _mm512_srli_epi16(a, n)            ((__m512i)((emu_words)(a) >> (n)))
#define _mm512_slli_epi16(a, n)            ((__m512i)((emu_words)(a) << (n)))
#define _mm512_srli_epi32(a, n)            ((__m512i)((emu_longs)(a) >> (n)))
#define _mm512_slli_epi32(a, n)            ((__m512i)((emu_longs)(a) << (n)))
#define _mm512_sub_epi32(a, b)             ((__m512i)((emu_longs)(a) - (emu_longs)(b)))
#define _mm512_sub_epi8(a, b)              ((__m512i)((emu_bytes)(a) - (emu_bytes)(b)))
#define _mm512_mullo_epi32(a, b)           ((__m512i)((emu_longs)(a) * (emu_longs)(b)))
#define _mm512_mask_sub_epi32(no, k, a, b) emu_select(k, _mm512_sub_epi32(a, b), no)
#define _mm512_mask_sub_epi8(no, k, a, b)  emu_select_bytes(k, no, _mm512_sub_epi8(a, b))
#define _mm512_cmplt_epi32_mask            emu_less
#define _mm512_min_epu32                   emu_least
#define _mm512_srlv_epi32                  emu_shift_each
#define _mm512_abs_epi8                    emu_abs_bytes
#define _mm512_reduce_max_epi32            emu_most
#define _mm512_dpbusd_epi32                emu_dot
#define _mm_dpbusd_epi32                   emu_dot_128

/* ---- one type to another ----------------------------------------------------------------------------------------- */

EMU __m512 emu_float(__m512i a)
{
    emu x = { .si = a }, r;
    EMU_LANE(r.f[l] = (float)x.i[l]);
    return r.ps;
}
EMU __m512i emu_int(__m512 a)
{
    emu x = { .ps = a }, r;
    EMU_LANE(r.i[l] = fabsf(x.f[l]) < 0x1p31f ? (int)rintf(x.f[l]) : INT32_MIN);
    return r.si;
}
EMU __m512i emu_cut(__m512 a)
{
    emu x = { .ps = a }, r;
    EMU_LANE(r.i[l] = fabsf(x.f[l]) < 0x1p31f ? (int)x.f[l] : INT32_MIN);
    return r.si;
}
EMU __m512 emu_from_f16(__m256i a)
{
    union {
        __m256i v;
        __m128i q[2];
    } x = { .v = a };
    emu r = { .half = { _mm256_cvtph_ps(x.q[0]), _mm256_cvtph_ps(x.q[1]) } };
    return r.ps;
}
EMU __m256i emu_to_f16(__m512 a, int how)
{
    emu x = { .ps = a }, r;
    if (how != _MM_FROUND_TO_NEAREST_INT)
        __builtin_trap();
    r.q[0] = _mm256_cvtps_ph(x.half[0], _MM_FROUND_TO_NEAREST_INT);
    r.q[1] = _mm256_cvtps_ph(x.half[1], _MM_FROUND_TO_NEAREST_INT);
    return r.halfi[0];
}
EMU __m512i emu_from_i8(__m128i a)
{
    emu x = { .q = { a } }, r;
    EMU_LANE(r.i[l] = (int8_t)x.b[l]);
    return r.si;
}
EMU __m512i emu_from_u16(__m256i a)
{
    emu x = { .halfi = { a } }, r;
    EMU_LANE(r.u[l] = x.h[l]);
    return r.si;
}
EMU __m256i emu_to_16(__m512i a)
{
    emu x = { .si = a }, r;
    EMU_LANE(r.h[l] = (uint16_t)x.u[l]);
    return r.halfi[0];
}
EMU __m128i emu_to_8(__m512i a)
{
    emu x = { .si = a }, r;
    EMU_LANE(r.b[l] = (uint8_t)x.u[l]);
    return r.q[0];
}
/* Subnormal numbers become zeros. */
EMU uint16_t emu_bf16(uint32_t u)
{
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    if ((u & 0x7f800000) == 0)
        return (uint16_t)(u >> 16 & 0x8000);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
EMU __m512bh emu_two_bf16(__m512 high, __m512 low)
{
    emu x = { .ps = high }, y = { .ps = low }, r;
    EMU_LANE((r.h[l] = emu_bf16(y.u[l]), r.h[l + 16] = emu_bf16(x.u[l])));
    return r.bh;
}
EMU __m256i emu_one_bf16(__m512 a)
{
    emu r = { .bh = emu_two_bf16(a, a) };
    return r.halfi[0];
}
EMU float emu_wide(uint16_t h)
{
    emu r = { .u = { (uint32_t)h << 16 } };
    return r.f[0];
}
/* The odd products first, then the even ones. */
EMU __m512 emu_dot_bf16(__m512 s, __m512bh a, __m512bh b)
{
    emu r = { .ps = s }, x = { .bh = a }, y = { .bh = b };
    for (int odd = 1; odd >= 0; odd--)
        EMU_LANE(r.f[l] = __builtin_fmaf(emu_wide(x.h[2 * l + odd]), emu_wide(y.h[2 * l + odd]),
                                         r.f[l]));
    return r.ps;
}

#define _mm512_cvtepi32_ps    emu_float
#define _mm512_cvtps_epi32    emu_int
#define _mm512_cvttps_epi32   emu_cut
#define _mm512_cvtph_ps       emu_from_f16
#define _mm512_cvtps_ph       emu_to_f16
#define _mm512_cvtepi8_epi32  emu_from_i8
#define _mm512_cvtepu16_epi32 emu_from_u16
#define _mm512_cvtepi32_epi16 emu_to_16
#define _mm512_cvtepi32_epi8  emu_to_8
#define _mm512_cvtneps_pbh    emu_one_bf16
#define _mm512_cvtne2ps_pbh   emu_two_bf16
#define _mm512_dpbf16_ps      emu_dot_bf16

/* ---- lanes that change places ------------------------------------------------------------------------------------ */

EMU __m512i emu_shuffle_bytes(__m512i a, __m512i index)
{
    emu x = { .si = a }, at = { .si = index }, r;
    for (int i = 0; i < 64; i++)
        r.b[i] = at.b[i] & 0x80 ? 0 : x.b[i / 16 * 16 + at.b[i] % 16];
    return r.si;
}
/* Lanes of b, then of a, from lane n on. */
EMU __m512i emu_align(__m512i a, __m512i b, int n)
{
    emu x = { .si = a }, y = { .si = b }, r;
    EMU_LANE(r.u[l] = l + n < 16 ? y.u[l + n] : x.u[l + n - 16]);
    return r.si;
}
EMU __m512 emu_permute(__m512 a, int how)
{
    emu x = { .ps = a }, r;
    EMU_LANE(r.f[l] = x.f[l / 4 * 4 + (how >> 2 * (l % 4) & 3)]);
    return r.ps;
}
EMU __m512 emu_permute_two(__m512 a, __m512i index, __m512 b)
{
    emu x = { .ps = a }, y = { .ps = b }, at = { .si = index }, r;
    EMU_LANE(r.f[l] = (at.u[l] & 16 ? y.f : x.f)[at.u[l] % 16]);
    return r.ps;
}
EMU __m512 emu_shuffle_quarters(__m512 a, __m512 b, int how)
{
    emu x = { .ps = a }, y = { .ps = b }, r;
    for (int i = 0; i < 4; i++)
        r.q[i] = (i < 2 ? x.q : y.q)[how >> 2 * i & 3];
    return r.ps;
}
/* Within quarters: the low (half 0) or the high numbers of a and b in turn. */
EMU __m512 emu_unpack(__m512 a, __m512 b, int half)
{
    emu x = { .ps = a }, y = { .ps = b }, r;
    EMU_LANE(r.f[l] = (l % 2 ? y.f : x.f)[l / 4 * 4 + 2 * half + l % 4 / 2]);
    return r.ps;
}
EMU __m512d emu_unpack_doubles(__m512d a, __m512d b, int half)
{
    emu x = { .pd = a }, y = { .pd = b }, r;
    for (int l = 0; l < 8; l++)
        r.d[l] = (l % 2 ? y.d : x.d)[l / 2 * 2 + half];
    return r.pd;
}

/* Numbers of n bytes, within quarters: the low (half 0) or the high ones of a and b in turn. */
EMU __m512i emu_unpack_bytes(__m512i a, __m512i b, int n, int half)
{
    emu x = { .si = a }, y = { .si = b }, r;
    for (int i = 0; i < 64; i++) {
        int at = i % 16 / n; /* which number of the quarter */
        r.b[i] = (at % 2 ? y.b : x.b)[i / 16 * 16 + 8 * half + at / 2 * n + i % n];
    }
    return r.si;
}
EMU __m512i emu_permute_bytes(__m512i a, __m512i index, __m512i b)
{
    emu x = { .si = a }, y = { .si = b }, at = { .si = index }, r;
    for (int i = 0; i < 64; i++)
        r.b[i] = (at.b[i] & 64 ? y.b : x.b)[at.b[i] % 64];
    return r.si;
}
EMU __m512i emu_permute_ints(__m512i index, __m512i a)
{
    emu x = { .si = a }, at = { .si = index }, r;
    EMU_LANE(r.u[l] = x.u[at.u[l] % 16]);
    return r.si;
}
EMU __m512i emu_insert(__m512i a, __m128i b, int n)
{
    emu r = { .si = a };
    r.q[n] = b;
    return r.si;
}
EMU __mmask64 emu_top_bits(__m512i a)
{
    emu x = { .si = a };
    __mmask64 k = 0;
    for (int i = 0; i < 64; i++)
        k |= (__mmask64)(x.b[i] >> 7) << i;
    return k;
}
EMU __m512i emu_select_bytes(__mmask64 k, __m512i no, __m512i yes)
{
    emu a = { .si = yes }, b = { .si = no }, r;
    for (int i = 0; i < 64; i++)
        r.b[i] = k >> i & 1 ? a.b[i] : b.b[i];
    return r.si;
}

#define _mm512_castsi128_si512(a)   (((emu){ .q = { (a) } }).si)
/* Nobody may rely on the upper half. */
#define _mm512_castsi256_si512(a)   (((emu){ .halfi = { (a), ~(__m256i)(a) } }).si)
#define _mm512_inserti32x4          emu_insert
#define _mm512_movepi8_mask         emu_top_bits
#define _mm512_mask_blend_epi8      emu_select_bytes
#define _mm512_permutexvar_epi32    emu_permute_ints
#define _mm512_permutex2var_epi8    emu_permute_bytes
#define _mm512_unpacklo_epi8(a, b)  emu_unpack_bytes(a, b, 1, 0)
#define _mm512_unpackhi_epi8(a, b)  emu_unpack_bytes(a, b, 1, 1)
#define _mm512_unpacklo_epi16(a, b) emu_unpack_bytes(a, b, 2, 0)
#define _mm512_unpackhi_epi16(a, b) emu_unpack_bytes(a, b, 2, 1)
#define _mm512_unpacklo_epi32(a, b) emu_unpack_bytes(a, b, 4, 0)
#define _mm512_unpackhi_epi32(a, b) emu_unpack_bytes(a, b, 4, 1)
#define _mm512_unpacklo_epi64(a, b) emu_unpack_bytes(a, b, 8, 0)
#define _mm512_unpackhi_epi64(a, b) emu_unpack_bytes(a, b, 8, 1)
#define _mm512_shuffle_epi8         emu_shuffle_bytes
#define _mm512_mask_shuffle_epi8(no, k, a, index)                                                  \
    emu_select_bytes(k, no, emu_shuffle_bytes(a, index))
#define _mm512_alignr_epi32             emu_align
#define _mm512_permute_ps               emu_permute
#define _mm512_permutexvar_ps(index, a) emu_permute_two(a, index, a)
#define _mm512_permutex2var_ps          emu_permute_two
#define _mm512_shuffle_f32x4            emu_shuffle_quarters
#define _mm512_unpacklo_ps(a, b)        emu_unpack(a, b, 0)
#define _mm512_unpackhi_ps(a, b)        emu_unpack(a, b, 1)
#define _mm512_unpacklo_pd(a, b)        emu_unpack_doubles(a, b, 0)
#define _mm512_unpackhi_pd(a, b)        emu_unpack_doubles(a, b, 1)

#endif
