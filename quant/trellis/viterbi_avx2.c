/* A step of the Viterbi algorithm, sixteen states to a register.
 *
 * A state's predecessors lie side by side, 2^bits of them. They are dealt out first, so that register i of `from` holds
 * predecessors of sixteen states that follow each other; then each pair of symbols looks its costs up, a byte shuffle for the
 * low and one for the high bytes, adds and takes the minimum. The symbol is in the low bits of a cost, so the minimum brings it
 * along.
 */
#include <immintrin.h>

#include "quant/trellis/viterbi.h"

#define STEP_INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };

static inline __m256i load(const uint16_t *p)
{
    return _mm256_load_si256((const void *)p);
}

/* ---- predecessors ------------------------------------------------------------------------------------------------ */

/* Numbers 0 ... 63 of `in`: those with i % 4 == 0, 1, 2, 3 to registers `apart` from each other. */
STEP_INLINE void deal4(const uint16_t *in, uint16_t *out, int apart)
{
    const __m256i pairs = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i a = _mm256_shuffle_epi8(load(in), pairs);
    __m256i b = _mm256_shuffle_epi8(load(in + LANES), pairs);
    __m256i c = _mm256_shuffle_epi8(load(in + 2 * LANES), pairs);
    __m256i d = _mm256_shuffle_epi8(load(in + 3 * LANES), pairs);
    __m256i ab = _mm256_unpacklo_epi32(a, b);
    __m256i cd = _mm256_unpacklo_epi32(c, d);
    __m256i ab_hi = _mm256_unpackhi_epi32(a, b);
    __m256i cd_hi = _mm256_unpackhi_epi32(c, d);
    __m256i r[4] = { _mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd),
                     _mm256_unpacklo_epi64(ab_hi, cd_hi), _mm256_unpackhi_epi64(ab_hi, cd_hi) };
    for (int i = 0; i < 4; i++)
        _mm256_store_si256((void *)(out + (size_t)i * (size_t)apart),
                           _mm256_permutevar8x32_epi32(r[i], order));
}

STEP_INLINE void deal(const uint16_t *in, uint16_t *out, int states)
{
    for (int i = 0; i < states / 64; i++)
        deal4(in + 64 * i, out + LANES * i, states / 4);
}

/* Which symbol register i of `from` belongs to. */
STEP_INLINE int symbol_of(int bits, int i)
{
    return bits == 2 ? i / 16 : bits == 3 ? i / 8 | (i & 1) << 2 : i;
}

/* Which register of `from` has the predecessors by `symbol` of the states 16 block ... 16 block + 15. */
STEP_INLINE int from_of(int bits, int block, int symbol)
{
    if (bits == 2)
        return symbol * 16 + block % 16;
    return bits == 3 ? (symbol & 3) * 8 + (symbol >> 2) + (block >> 2 & 3) * 2 : symbol;
}

STEP_INLINE void predecessors(int bits, const uint16_t *in, uint16_t least, uint16_t *from)
{
    int states = 1 << (12 - bits);
    _Alignas(32) uint16_t half[256];
    if (bits == 4) {
        deal(in, half, states);
        in = half;
    }
    deal(in, from, states);
    __m256i symbols = _mm256_set1_epi16((short)((1 << bits) - 1));
    __m256i low = _mm256_andnot_si256(symbols, _mm256_set1_epi16((short)least));
    for (int i = 0; i < states / LANES; i++) {
        __m256i *p = (__m256i *)(from + LANES * i);
        __m256i cost = _mm256_subs_epu16(_mm256_andnot_si256(symbols, *p), low);
        *p = _mm256_or_si256(cost, _mm256_set1_epi16((short)symbol_of(bits, i)));
    }
}

/* ---- costs ------------------------------------------------------------------------------------------------------- */

/* Costs of sixteen values: the low bytes of all, then the high ones. */
STEP_INLINE __m256i costs(const struct viterbi *v, struct viterbi_target to, const float *value,
                          int bits)
{
    __m256i half[2];
    for (int i = 0; i < 2; i++) {
        __m256 d = _mm256_sub_ps(_mm256_set1_ps(to.x), _mm256_loadu_ps(value + 8 * i));
        __m256 e = _mm256_sub_ps(_mm256_mul_ps(d, d), _mm256_set1_ps(to.least));
        half[i] = _mm256_cvttps_epi32(_mm256_min_ps(e, _mm256_set1_ps(v->far)));
    }
    __m256i all = _mm256_permute4x64_epi64(_mm256_packus_epi32(half[0], half[1]), 0xd8);
    all = _mm256_and_si256(all, _mm256_set1_epi16((short)-(1 << bits)));
    __m256i lo = _mm256_and_si256(all, _mm256_set1_epi16(255));
    __m256i hi = _mm256_srli_epi16(all, 8);
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(lo, hi), 0xd8);
}

/* The table of a block's step: with 2 bits all are the same, as value[n2] is. */
STEP_INLINE int table_of(int bits, int block, int symbol)
{
    return bits == 2 ? 0 : viterbi_window(bits, block * LANES, symbol) >> 8;
}

STEP_INLINE uint16_t step(const struct viterbi *v, struct viterbi_target to, uint16_t least,
                          const uint16_t *in, uint16_t *out, int bits)
{
    _Alignas(32) uint16_t from[VITERBI_STATES];
    _Alignas(32) uint8_t cost[16][2][16];
    predecessors(bits, in, least, from);
    for (int i = 0; i < (bits == 2 ? 1 : 16); i++)
        _mm256_store_si256((void *)cost[i], costs(v, to, v->value[i], bits));
    const uint8_t *index = v->index;
    __m256i best = _mm256_set1_epi16(-1);
    for (int block = 0; block < (1 << (12 - bits)) / LANES; block++) {
        __m256i low = _mm256_set1_epi16(-1);
        for (int u = 0; u < 1 << bits; u += 2, index += 32) {
            uint8_t(*table)[16] = cost[table_of(bits, block, u)];
            __m256i i = _mm256_load_si256((const void *)index);
            __m256i lo = _mm256_shuffle_epi8(
                _mm256_broadcastsi128_si256(_mm_load_si128((const void *)table[0])), i);
            __m256i hi = _mm256_shuffle_epi8(
                _mm256_broadcastsi128_si256(_mm_load_si128((const void *)table[1])), i);
            const uint16_t *even = from + LANES * from_of(bits, block, u);
            const uint16_t *odd = from + LANES * from_of(bits, block, u + 1);
            __m256i a = _mm256_adds_epu16(_mm256_unpacklo_epi8(lo, hi), load(even));
            __m256i b = _mm256_adds_epu16(_mm256_unpackhi_epi8(lo, hi), load(odd));
            low = _mm256_min_epu16(low, _mm256_min_epu16(a, b));
        }
        best = _mm256_min_epu16(best, low);
        _mm256_store_si256((void *)(out + LANES * block), low);
    }
    __m128i all = _mm_min_epu16(_mm256_castsi256_si128(best), _mm256_extracti128_si256(best, 1));
    return (uint16_t)_mm_extract_epi16(_mm_minpos_epu16(all), 0);
}

uint16_t viterbi_step_2_avx2(const struct viterbi *v, struct viterbi_target to, uint16_t least,
                             const uint16_t *in, uint16_t *out)
{
    return step(v, to, least, in, out, 2);
}
uint16_t viterbi_step_3_avx2(const struct viterbi *v, struct viterbi_target to, uint16_t least,
                             const uint16_t *in, uint16_t *out)
{
    return step(v, to, least, in, out, 3);
}
uint16_t viterbi_step_4_avx2(const struct viterbi *v, struct viterbi_target to, uint16_t least,
                             const uint16_t *in, uint16_t *out)
{
    return step(v, to, least, in, out, 4);
}
