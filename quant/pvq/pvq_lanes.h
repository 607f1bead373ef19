/* What the pvq product does with the sixteen rows of a panel side by side: one lane a row (v16, v16i), or four rows of sixteen
 * bytes a register of 512 bits. Two implementations with one meaning, chosen as in quant/vec16.h.
 *
 *   lanes_min(a, b)            of unsigned numbers
 *   lanes_count_less(n, a, b)  n - (a < b ? 1 : 0), of signed numbers
 *   lanes_shift(a, n)          a >> n, lane by lane
 *   lanes_bytes(a)             16 a: where entries of sixteen bytes lie
 *   lanes_look(table, i)       table[i], i < 8; lanes_level(table, i): of sixteen floats
 *   lanes_floor(x)             of x >= 0
 *   lanes_as_floats(bits)      the floats that such bits are
 *   lanes_norm(scale, norm2)   scale / sqrt(norm2)
 *   pvq_points(place, pattern, rows, code)  four lines of codes of a panel's rows, and their norms
 */
#ifndef WRING_QUANT_PVQ_PVQ_LANES_H
#define WRING_QUANT_PVQ_PVQ_LANES_H

#include "quant/pvq/pvq_table.h"
#include "quant/vec16.h"

/* What is known of a panel's inputs before patterns are turned and spread. */
struct pvq_rows {
    uint32_t turns[CODEC_PANEL];                       /* and more above */
    uint32_t pattern[CODEC_PANEL], place[CODEC_PANEL]; /* bytes from the beginning of tables */
    int32_t norm2[CODEC_PANEL];
    uint32_t kind[CODEC_PANEL], digit[CODEC_PANEL]; /* of pvq3 and pvq4, as is what follows */
    uint8_t x[CODEC_PANEL][PYRAMID_N];              /* patterns that are put together */
};

#if defined(__AVX512VNNI__)

static inline v16i lanes_add(v16i a, v16i b)
{
    return _mm512_add_epi32(a, b);
}
static inline v16i lanes_sub(v16i a, v16i b)
{
    return _mm512_sub_epi32(a, b);
}
static inline v16i lanes_mul(v16i a, v16i b)
{
    return _mm512_mullo_epi32(a, b);
}
static inline v16i lanes_min(v16i a, v16i b)
{
    return _mm512_min_epu32(a, b);
}
static inline v16i lanes_count_less(v16i n, v16i a, v16i b)
{
    return _mm512_mask_sub_epi32(n, _mm512_cmplt_epi32_mask(a, b), n, _mm512_set1_epi32(1));
}
static inline v16i lanes_shift(v16i a, v16i n)
{
    return _mm512_srlv_epi32(a, n);
}
static inline v16i lanes_bytes(v16i a)
{
    return _mm512_slli_epi32(a, 4);
}
static inline v16i lanes_look(const void *table, v16i i)
{
    __m256i t = _mm256_loadu_si256(table);
    return _mm512_permutexvar_epi32(i, _mm512_castsi256_si512(t));
}
static inline v16 lanes_level(const float *table, v16i i)
{
    return _mm512_permutexvar_ps(i, v16_load(table));
}
static inline v16i lanes_floor(v16 x)
{
    return _mm512_cvttps_epi32(x);
}
static inline v16 lanes_as_floats(v16i bits)
{
    return _mm512_castsi512_ps(bits);
}
static inline v16 lanes_norm(v16 scale, v16i norm2)
{
    return _mm512_div_ps(scale, _mm512_sqrt_ps(_mm512_cvtepi32_ps(norm2)));
}

/* Entries of rows i, i + 4, i + 8 and i + 12. */
static inline __m512i pvq_four(const uint8_t *table, const uint32_t *at)
{
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(table + at[0])));
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const void *)(table + at[4])), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const void *)(table + at[8])), 2);
    return _mm512_inserti32x4(x, _mm_loadu_si128((const void *)(table + at[12])), 3);
}

/* For rows i, i + 4, i + 8 and i + 12 a bit for each element: is it negative, and where those of a pair differ, it is swapped. */
struct pvq_turns {
    uint64_t sign[4], swap[4];
};

static inline struct pvq_turns pvq_turns(const uint32_t *turns)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i sign = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(turns));
    __m512i pair = _mm512_xor_si512(sign, _mm512_srli_epi32(sign, 1));
    pair = _mm512_and_si512(pair, _mm512_set1_epi32(0x5555));
    pair = _mm512_or_si512(pair, _mm512_slli_epi32(pair, 1));
    struct pvq_turns t;
    _mm256_storeu_si256((void *)t.sign, _mm512_cvtepi32_epi16(sign));
    _mm256_storeu_si256((void *)t.swap, _mm512_cvtepi32_epi16(pair));
    return t;
}

static inline void pvq_points(const uint8_t *place, const uint8_t *pattern, struct pvq_rows *rows,
                              uint8_t *code)
{
    const __m512i other =
        _mm512_broadcast_i32x4(_mm_setr_epi8(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    const __m512i zero = _mm512_setzero_si512();
    struct pvq_turns turns = pvq_turns(rows->turns);
    __m512i y[4], pair[4], line[4];
    __m512i norm2 = zero;
#    pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i x = pvq_four(pattern, rows->pattern + i);
        x = _mm512_mask_shuffle_epi8(x, turns.swap[i], x, other);
        x = _mm512_mask_sub_epi8(x, turns.sign[i], zero, x);
        y[i] = _mm512_shuffle_epi8(x, pvq_four(place, rows->place + i));
    }
#    pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        pair[2 * i] = _mm512_unpacklo_epi32(y[2 * i], y[2 * i + 1]);
        pair[2 * i + 1] = _mm512_unpackhi_epi32(y[2 * i], y[2 * i + 1]);
    }
#    pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        line[2 * i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
        line[2 * i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
    }
#    pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i size = _mm512_abs_epi8(line[i]);
        norm2 = _mm512_dpbusd_epi32(norm2, size, size);
        v16q_store(code + i * PVQ_LINE, _mm512_add_epi8(line[i], _mm512_set1_epi8(PYRAMID_ZERO)));
    }
    v16q_store((uint8_t *)rows->norm2, norm2);
}

#elif defined(__AVX2__)

static inline v16i lanes_add(v16i a, v16i b)
{
    return (v16i){ _mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b) };
}
static inline v16i lanes_sub(v16i a, v16i b)
{
    return (v16i){ _mm256_sub_epi32(a.a, b.a), _mm256_sub_epi32(a.b, b.b) };
}
static inline v16i lanes_mul(v16i a, v16i b)
{
    return (v16i){ _mm256_mullo_epi32(a.a, b.a), _mm256_mullo_epi32(a.b, b.b) };
}
static inline v16i lanes_min(v16i a, v16i b)
{
    return (v16i){ _mm256_min_epu32(a.a, b.a), _mm256_min_epu32(a.b, b.b) };
}
static inline v16i lanes_count_less(v16i n, v16i a, v16i b)
{
    return lanes_add(n, (v16i){ _mm256_cmpgt_epi32(b.a, a.a), _mm256_cmpgt_epi32(b.b, a.b) });
}
static inline v16i lanes_shift(v16i a, v16i n)
{
    return (v16i){ _mm256_srlv_epi32(a.a, n.a), _mm256_srlv_epi32(a.b, n.b) };
}
static inline v16i lanes_bytes(v16i a)
{
    return (v16i){ _mm256_slli_epi32(a.a, 4), _mm256_slli_epi32(a.b, 4) };
}
static inline v16i lanes_look(const void *table, v16i i)
{
    __m256i t = _mm256_loadu_si256(table);
    return (v16i){ _mm256_permutevar8x32_epi32(t, i.a), _mm256_permutevar8x32_epi32(t, i.b) };
}
static inline v16 lanes_as_floats(v16i bits)
{
    return (v16){ _mm256_castsi256_ps(bits.a), _mm256_castsi256_ps(bits.b) };
}
static inline v16 lanes_level(const float *table, v16i i)
{
    v16 low = lanes_as_floats(lanes_look(table, i));
    v16 high = lanes_as_floats(lanes_look(table + 8, i));
    v16 upper = lanes_as_floats((v16i){ _mm256_slli_epi32(i.a, 28), _mm256_slli_epi32(i.b, 28) });
    return (v16){ _mm256_blendv_ps(low.a, high.a, upper.a),
                  _mm256_blendv_ps(low.b, high.b, upper.b) };
}
static inline v16i lanes_floor(v16 x)
{
    return (v16i){ _mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b) };
}
static inline v16 lanes_norm(v16 scale, v16i norm2)
{
    v16 x = v16i_float(norm2);
    return (v16){ _mm256_div_ps(scale.a, _mm256_sqrt_ps(x.a)),
                  _mm256_div_ps(scale.b, _mm256_sqrt_ps(x.b)) };
}

/* Entries of rows i and i + 4. */
static inline __m256i pvq_two(const uint8_t *table, const uint32_t *at)
{
    __m128i low = _mm_loadu_si128((const void *)(table + at[0]));
    __m128i high = _mm_loadu_si128((const void *)(table + at[4]));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

/* Elements of row i and, in the upper half, row i + 4 of eight whose turns are given. Signs are masks of bytes; where those of
 * a pair differ, it is swapped. */
static inline __m256i pvq_spread(const uint8_t *place, const uint8_t *pattern,
                                 const struct pvq_rows *rows, int r, __m256i turns, int i)
{
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    const __m256i other = _mm256_setr_epi8(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14, 1,
                                           0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0, 0x0101010101010101);
    __m256i from = _mm256_add_epi8(byte, _mm256_set1_epi8((char)(i * 4)));
    __m256i sign = _mm256_and_si256(_mm256_shuffle_epi8(turns, from), bit);
    sign = _mm256_cmpeq_epi8(sign, bit);
    __m256i swap = _mm256_xor_si256(sign, _mm256_shuffle_epi8(sign, other));
    __m256i x = pvq_two(pattern, rows->pattern + r + i);
    x = _mm256_blendv_epi8(x, _mm256_shuffle_epi8(x, other), swap);
    x = _mm256_sub_epi8(_mm256_xor_si256(x, sign), sign);
    return _mm256_shuffle_epi8(x, pvq_two(place, rows->place + r + i));
}

/* Eight rows, r the first. */
static inline void pvq_eight(const uint8_t *place, const uint8_t *pattern, struct pvq_rows *rows,
                             int r, uint8_t *code)
{
    __m256i y[4], pair[4], line[4];
    __m256i turns = _mm256_loadu_si256((const void *)(rows->turns + r));
    __m256i norm2 = _mm256_setzero_si256();
#    pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        y[i] = pvq_spread(place, pattern, rows, r, turns, i);
    for (int i = 0; i < 2; i++) {
        pair[2 * i] = _mm256_unpacklo_epi32(y[2 * i], y[2 * i + 1]);
        pair[2 * i + 1] = _mm256_unpackhi_epi32(y[2 * i], y[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        line[2 * i] = _mm256_unpacklo_epi64(pair[i], pair[i + 2]);
        line[2 * i + 1] = _mm256_unpackhi_epi64(pair[i], pair[i + 2]);
    }
    for (int i = 0; i < 4; i++) {
        __m256i size = _mm256_abs_epi8(line[i]);
        norm2 = _mm256_add_epi16(norm2, _mm256_maddubs_epi16(size, size));
        _mm256_storeu_si256((void *)(code + i * PVQ_LINE + 4 * r),
                            _mm256_add_epi8(line[i], _mm256_set1_epi8(PYRAMID_ZERO)));
    }
    norm2 = _mm256_madd_epi16(norm2, _mm256_set1_epi16(1));
    _mm256_storeu_si256((void *)(rows->norm2 + r), norm2);
}

static inline void pvq_points(const uint8_t *place, const uint8_t *pattern, struct pvq_rows *rows,
                              uint8_t *code)
{
    pvq_eight(place, pattern, rows, 0, code);
    pvq_eight(place, pattern, rows, 8, code);
}

#endif

#endif
