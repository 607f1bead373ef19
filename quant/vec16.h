/* Sixteen lanes, one lane an output row: the few operations that every codec's fast kernels are written in.
 *
 * Two implementations with one meaning, chosen by the flags a file is compiled with (its suffix decides those): AVX-512
 * with VNNI, AVX2 with FMA. Fused multiply-adds round once, as fmaf does, and integer sums are exact, so a kernel
 * written with these gives the same bits on every level and in plain C.
 */
#ifndef WRING_QUANT_VEC16_H
#define WRING_QUANT_VEC16_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/*  v16           16 floats                        v16i          16 int32
 *  v16_f16(p)    from 16 halves                   v16_bf16(p)   from 16 bfloat16
 *  v16_fma(a, b, c) = a * b + c                   v16_min(a, b) = a < b ? a : b
 *  v16q                    64 bytes of codes; v16q_lo / v16q_hi: its low or high nibbles
 *  v16q_byte(q, b)         byte b of each lane as floats
 *  v16q_field(q, from, to, width)  bits [from, from + width) of each byte, moved to [to, to + width): constants
 *  v16i_dot_u4(acc, w, x)  acc[l] += sum of w[4l+b] * x[b], b = 0..3, w unsigned below 16, x four signed bytes
 *  v16i_dot_u7             the same with w unsigned below 128
 *  v16i_add_u5, v16i_sum_u5  the same with w unsigned below 32: sum(s), where s = add(s, w, x) was zeros before one to four
 *                          calls
 *  v16i_dot_s8(acc, w, x)  the same with w signed, stored with 128 added and loaded by v16q_load_s8; acc must begin as
 *                          v16i_start_s8(-128 * sum of all x)
 *  V16_ROWS                input rows worked on together, as many as there are registers for */

static inline int32_t v16_load_i32(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Inlined at once: a function that only fetches has no effects that gcc 12 knows of, and it would drop the call. */
static inline __attribute__((always_inline)) void v16_prefetch(const void *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

#if defined(__AVX512VNNI__)

enum { V16_ROWS = 8 };

typedef __m512 v16;
typedef __m512i v16i;
typedef __m512i v16q;

static inline v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void v16_store(float *p, v16 v)
{
    _mm512_storeu_ps(p, v);
}
static inline v16 v16_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}
static inline v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}
static inline v16 v16_min(v16 a, v16 b)
{
    return _mm512_min_ps(a, b);
}
static inline v16 v16_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
static inline v16 v16_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
static inline v16i v16i_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
static inline v16 v16i_float(v16i v)
{
    return _mm512_cvtepi32_ps(v);
}
static inline v16q v16q_load(const uint8_t *p)
{
    return _mm512_loadu_si512((const void *)p);
}
static inline void v16q_store(uint8_t *p, v16q q)
{
    _mm512_storeu_si512((void *)p, q);
}
static inline v16q v16q_or(v16q a, v16q b)
{
    return _mm512_or_si512(a, b);
}
static inline v16q v16q_field(v16q q, int from, int to, int width)
{
    v16q moved = from > to ? _mm512_srli_epi16(q, (unsigned)(from - to))
                           : _mm512_slli_epi16(q, (unsigned)(to - from));
    return _mm512_and_si512(moved, _mm512_set1_epi8((char)(((1 << width) - 1) << to)));
}
static inline v16q v16q_lo(v16q q)
{
    return _mm512_and_si512(q, _mm512_set1_epi8(15));
}
static inline v16q v16q_hi(v16q q)
{
    return _mm512_and_si512(_mm512_srli_epi16(q, 4), _mm512_set1_epi8(15));
}
static inline v16i v16i_dot_u4(v16i acc, v16q w, const int8_t *x)
{
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(v16_load_i32(x)));
}
static inline v16i v16i_dot_u7(v16i acc, v16q w, const int8_t *x)
{
    return v16i_dot_u4(acc, w, x);
}
static inline v16i v16i_add_u5(v16i s, v16q w, const int8_t *x)
{
    return v16i_dot_u4(s, w, x);
}
static inline v16i v16i_sum_u5(v16i s)
{
    return s;
}
static inline v16q v16q_load_s8(const uint8_t *p)
{
    return v16q_load(p);
}
static inline v16i v16i_start_s8(int32_t neg128)
{
    return v16i_set1(neg128);
}
static inline v16i v16i_dot_s8(v16i acc, v16q w, const int8_t *x)
{
    return v16i_dot_u4(acc, w, x);
}
static inline v16 v16q_byte(v16q q, int b)
{
    return _mm512_cvtepi32_ps(
        _mm512_and_si512(_mm512_srli_epi32(q, (unsigned)(8 * b)), _mm512_set1_epi32(255)));
}

#elif defined(__AVX2__)

enum { V16_ROWS = 2 };

typedef struct {
    __m256 a, b; /* lanes 0-7, 8-15 */
} v16;
typedef struct {
    __m256i a, b;
} v16i;
typedef v16i v16q;

static inline v16 v16_set1(float x)
{
    return (v16){ _mm256_set1_ps(x), _mm256_set1_ps(x) };
}
static inline v16 v16_load(const float *p)
{
    return (v16){ _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) };
}
static inline void v16_store(float *p, v16 v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
static inline v16 v16_fma(v16 x, v16 y, v16 z)
{
    return (v16){ _mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b) };
}
static inline v16 v16_mul(v16 x, v16 y)
{
    return (v16){ _mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b) };
}
static inline v16 v16_add(v16 x, v16 y)
{
    return (v16){ _mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b) };
}
static inline v16 v16_min(v16 x, v16 y)
{
    return (v16){ _mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b) };
}
static inline __m128i v16_half(const void *p)
{
    return _mm_loadu_si128(p);
}
static inline v16 v16_f16(const uint16_t *p)
{
    return (v16){ _mm256_cvtph_ps(v16_half(p)), _mm256_cvtph_ps(v16_half(p + 8)) };
}
static inline __m256 v16_wide(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline v16 v16_bf16(const uint16_t *p)
{
    return (v16){ v16_wide(v16_half(p)), v16_wide(v16_half(p + 8)) };
}
static inline v16i v16i_set1(int32_t x)
{
    return (v16i){ _mm256_set1_epi32(x), _mm256_set1_epi32(x) };
}
static inline v16 v16i_float(v16i v)
{
    return (v16){ _mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b) };
}
static inline v16q v16q_load(const uint8_t *p)
{
    return (v16q){ _mm256_loadu_si256((const void *)p),
                   _mm256_loadu_si256((const void *)(p + 32)) };
}
static inline void v16q_store(uint8_t *p, v16q q)
{
    _mm256_storeu_si256((void *)p, q.a);
    _mm256_storeu_si256((void *)(p + 32), q.b);
}
static inline v16q v16q_or(v16q a, v16q b)
{
    return (v16q){ _mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b) };
}
static inline __m256i v16_field(__m256i q, int from, int to, int width)
{
    __m256i moved = from > to ? _mm256_srli_epi16(q, from - to) : _mm256_slli_epi16(q, to - from);
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)(((1 << width) - 1) << to)));
}
static inline v16q v16q_field(v16q q, int from, int to, int width)
{
    return (v16q){ v16_field(q.a, from, to, width), v16_field(q.b, from, to, width) };
}
static inline v16q v16q_lo(v16q q)
{
    __m256i m = _mm256_set1_epi8(15);
    return (v16q){ _mm256_and_si256(q.a, m), _mm256_and_si256(q.b, m) };
}
static inline v16q v16q_hi(v16q q)
{
    return v16q_lo((v16q){ _mm256_srli_epi16(q.a, 4), _mm256_srli_epi16(q.b, 4) });
}
static inline __m256i v16_pairs(__m256i w, __m256i x)
{
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
}
static inline v16i v16i_dot_u4(v16i acc, v16q w, const int8_t *x4)
{
    __m256i x = _mm256_set1_epi32(v16_load_i32(x4));
    return (v16i){ _mm256_add_epi32(acc.a, v16_pairs(w.a, x)),
                   _mm256_add_epi32(acc.b, v16_pairs(w.b, x)) };
}
/* 127 * 127 * 2 is the most that a pair of products comes to, and it fits 16 bits. */
static inline v16i v16i_dot_u7(v16i acc, v16q w, const int8_t *x4)
{
    return v16i_dot_u4(acc, w, x4);
}
/* Sums stay in 16 bits for eight products, of which each pair is at most 31 * 127 * 2: half the operations of dot_u7. */
static inline v16i v16i_add_u5(v16i s, v16q w, const int8_t *x4)
{
    __m256i x = _mm256_set1_epi32(v16_load_i32(x4));
    return (v16i){ _mm256_add_epi16(s.a, _mm256_maddubs_epi16(w.a, x)),
                   _mm256_add_epi16(s.b, _mm256_maddubs_epi16(w.b, x)) };
}
static inline v16i v16i_sum_u5(v16i s)
{
    __m256i one = _mm256_set1_epi16(1);
    return (v16i){ _mm256_madd_epi16(s.a, one), _mm256_madd_epi16(s.b, one) };
}
static inline v16q v16q_load_s8(const uint8_t *p)
{
    v16q q = v16q_load(p);
    __m256i top = _mm256_set1_epi8(-128);
    return (v16q){ _mm256_xor_si256(q.a, top), _mm256_xor_si256(q.b, top) };
}
static inline v16i v16i_start_s8(int32_t neg128)
{
    (void)neg128;
    return v16i_set1(0);
}
/* VPMADDUBSW saturates at 16 bits, which 255 * 127 * 2 passes: so the weight's sign moves to the input, and
 * 128 * 127 * 2 stays below. */
static inline v16i v16i_dot_s8(v16i acc, v16q w, const int8_t *x4)
{
    __m256i x = _mm256_set1_epi32(v16_load_i32(x4));
    __m256i a = v16_pairs(_mm256_abs_epi8(w.a), _mm256_sign_epi8(x, w.a));
    __m256i b = v16_pairs(_mm256_abs_epi8(w.b), _mm256_sign_epi8(x, w.b));
    return (v16i){ _mm256_add_epi32(acc.a, a), _mm256_add_epi32(acc.b, b) };
}
static inline v16 v16q_byte(v16q q, int b)
{
    __m256i m = _mm256_set1_epi32(255);
    return (v16){ _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(q.a, 8 * b), m)),
                  _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(q.b, 8 * b), m)) };
}

#endif

#endif
