/* Lines of codes, 16 lanes of 4 bytes, as vectors: what decoding a trellis needs beyond quant/vec16.h. All of it is plain
 * AVX2, or AVX-512 F and BW.
 *
 *  lines_and, _xor, _or, _add     byte by byte; lines_andnot(a, b) = ~a & b
 *  lines_right(a, n), _left       all bits of 16-bit pieces: what crosses a byte has to be masked
 *  lines_bytes(x)                 64 times the same byte
 *  lines_table(p), lines_look     a table of 16 bytes; look: by index bytes below 128, of which 4 bits count
 *  lines_turn(a)                  lanes 1 ... 15, then lane 0
 *  lines_part(p, n)               n < 16 lanes from p, then the first of them again; what comes then is 0
 */
#ifndef WRING_QUANT_TRELLIS_LINES_H
#define WRING_QUANT_TRELLIS_LINES_H

#include "quant/vec16.h"

#if defined(__AVX512VNNI__)

static inline v16q lines_and(v16q a, v16q b)
{
    return _mm512_and_si512(a, b);
}
static inline v16q lines_xor(v16q a, v16q b)
{
    return _mm512_xor_si512(a, b);
}
static inline v16q lines_or(v16q a, v16q b)
{
    return _mm512_or_si512(a, b);
}
static inline v16q lines_andnot(v16q a, v16q b)
{
    return _mm512_andnot_si512(a, b);
}
static inline v16q lines_add(v16q a, v16q b)
{
    return _mm512_add_epi8(a, b);
}
static inline v16q lines_right(v16q a, int n)
{
    return _mm512_srli_epi16(a, (unsigned)n);
}
static inline v16q lines_left(v16q a, int n)
{
    return _mm512_slli_epi16(a, (unsigned)n);
}
static inline v16q lines_bytes(int x)
{
    return _mm512_set1_epi8((char)x);
}
static inline v16q lines_table(const uint8_t *p)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)p));
}
static inline v16q lines_look(v16q table, v16q index)
{
    return _mm512_shuffle_epi8(table, index);
}
static inline v16q lines_turn(v16q a)
{
    return _mm512_alignr_epi32(a, a, 1);
}
static inline v16q lines_part(const uint8_t *p, int n)
{
    __m512i a = _mm512_maskz_loadu_epi32((__mmask16)((1 << n) - 1), (const void *)p);
    return _mm512_mask_set1_epi32(a, (__mmask16)(1 << n), v16_load_i32(p));
}
static inline void lines_store(uint8_t *p, v16q a)
{
    _mm512_storeu_si512((void *)p, a);
}

#elif defined(__AVX2__)

static inline v16q lines_and(v16q a, v16q b)
{
    return (v16q){ _mm256_and_si256(a.a, b.a), _mm256_and_si256(a.b, b.b) };
}
static inline v16q lines_xor(v16q a, v16q b)
{
    return (v16q){ _mm256_xor_si256(a.a, b.a), _mm256_xor_si256(a.b, b.b) };
}
static inline v16q lines_or(v16q a, v16q b)
{
    return (v16q){ _mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b) };
}
static inline v16q lines_andnot(v16q a, v16q b)
{
    return (v16q){ _mm256_andnot_si256(a.a, b.a), _mm256_andnot_si256(a.b, b.b) };
}
static inline v16q lines_add(v16q a, v16q b)
{
    return (v16q){ _mm256_add_epi8(a.a, b.a), _mm256_add_epi8(a.b, b.b) };
}
static inline v16q lines_right(v16q a, int n)
{
    return (v16q){ _mm256_srli_epi16(a.a, n), _mm256_srli_epi16(a.b, n) };
}
static inline v16q lines_left(v16q a, int n)
{
    return (v16q){ _mm256_slli_epi16(a.a, n), _mm256_slli_epi16(a.b, n) };
}
static inline v16q lines_bytes(int x)
{
    __m256i v = _mm256_set1_epi8((char)x);
    return (v16q){ v, v };
}
static inline v16q lines_table(const uint8_t *p)
{
    __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p));
    return (v16q){ v, v };
}
static inline v16q lines_look(v16q table, v16q index)
{
    return (v16q){ _mm256_shuffle_epi8(table.a, index.a), _mm256_shuffle_epi8(table.b, index.b) };
}
static inline v16q lines_turn(v16q a)
{
    __m256i ab = _mm256_permute2x128_si256(a.a, a.b, 0x21);
    __m256i ba = _mm256_permute2x128_si256(a.b, a.a, 0x21);
    return (v16q){ _mm256_alignr_epi8(ab, a.a, 4), _mm256_alignr_epi8(ba, a.b, 4) };
}
static inline __m256i lines_half(const uint8_t *p, __m256i lane, int n, __m256i first)
{
    __m256i a =
        _mm256_maskload_epi32((const void *)p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
    return _mm256_blendv_epi8(a, first, _mm256_cmpeq_epi32(_mm256_set1_epi32(n), lane));
}
static inline v16q lines_part(const uint8_t *p, int n)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i first = _mm256_set1_epi32(v16_load_i32(p));
    return (v16q){ lines_half(p, lane, n, first), lines_half(p + 32, lane, n - 8, first) };
}
static inline void lines_store(uint8_t *p, v16q a)
{
    _mm256_storeu_si256((void *)p, a.a);
    _mm256_storeu_si256((void *)(p + 32), a.b);
}

#endif

#endif
