#include <immintrin.h>
#include <math.h>

#include "quant/input.h"

enum { INFINITY_BITS = 0x7f800000 };

static inline __m256i magnitude(__m256 x)
{
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

static inline int top_of(const __m256 *v)
{
    __m256i m = _mm256_max_epi32(_mm256_max_epi32(magnitude(v[0]), magnitude(v[1])),
                                 _mm256_max_epi32(magnitude(v[2]), magnitude(v[3])));
    __m128i t = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm_cvtsi128_si32(t);
}

static inline int sum_of(__m256i q)
{
    __m256i quads =
        _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm_cvtsi128_si32(t);
}

/* Magnitudes compare like their bits, and those of NaN are above all others. */
void input_i8_avx2(const float *x, int groups, char *records, int width, int r)
{
    for (int g = 0; g < groups; g++, x += INPUT_GROUP, records += width * INPUT_RECORD) {
        struct input_cell c = input_cell(records, width, r);
        __m256 v[4];
        for (int i = 0; i < 4; i++)
            v[i] = _mm256_loadu_ps(x + 8 * i);
        int bits = top_of(v);
        float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
        float inv = bits > 0 ? 127.0f / max : 0;
        float scale = max / 127.0f;
        if (bits >= INFINITY_BITS || !(inv < INFINITY)) {
            scale = bits >= INFINITY_BITS ? NAN : 0;
            inv = 0;
            for (int i = 0; i < 4; i++)
                v[i] = _mm256_setzero_ps();
        }
        __m256i q[4];
        for (int i = 0; i < 4; i++)
            q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inv)));
        /* the packing instructions work on halves: put the fours back in order */
        __m256i mixed =
            _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        __m256i all = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)c.q, all);
        int total = sum_of(all);
        *c.scale = scale;
        *c.sum = scale * (float)total;
        *c.neg8 = -8 * total;
        *c.neg128 = -128 * total;
    }
}
