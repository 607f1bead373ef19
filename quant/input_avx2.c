#include <immintrin.h>
#include <math.h>

#include "quant/input.h"

enum { INFINITY_BITS = 0x7f800000 };

static inline __m256i magnitude(__m256 x)
{
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

static inline int top_of(__m256 a, __m256 b)
{
    __m256i m = _mm256_max_epi32(magnitude(a), magnitude(b));
    __m128i t = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm_cvtsi128_si32(t);
}

static inline int sum_of(__m128i q)
{
    __m128i t = _mm_madd_epi16(_mm_maddubs_epi16(_mm_set1_epi8(1), q), _mm_set1_epi16(1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm_cvtsi128_si32(t);
}

/* Magnitudes compare like their bits, and those of NaN are above all others. */
static inline float half_i8(const float *x, struct input_cell c)
{
    __m256 a = _mm256_loadu_ps(x);
    __m256 b = _mm256_loadu_ps(x + 8);
    int bits = top_of(a, b);
    float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
    float inv = bits > 0 ? 127.0f / max : 0;
    float scale = max / 127.0f;
    if (bits >= INFINITY_BITS || !(inv < INFINITY)) {
        scale = bits >= INFINITY_BITS ? NAN : 0;
        inv = 0;
        a = b = _mm256_setzero_ps();
    }
    __m256i qa = _mm256_cvtps_epi32(_mm256_mul_ps(a, _mm256_set1_ps(inv)));
    __m256i qb = _mm256_cvtps_epi32(_mm256_mul_ps(b, _mm256_set1_ps(inv)));
    /* packing works on halves of registers: put the quarters back in order */
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(qa, qb), 0xd8);
    __m128i q = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)c.q, q);
    int total = sum_of(q);
    *c.scale = scale;
    *c.neg8 = -8 * total;
    *c.neg128 = -128 * total;
    return scale * (float)total;
}

void input_i8_avx2(const float *x, int groups, char *records, int width, int r)
{
    for (int g = 0; g < groups; g++, x += INPUT_GROUP, records += width * INPUT_RECORD) {
        struct input_cell c = input_cell(records, width, r, 0);
        float first = half_i8(x, c);
        *c.sum = first + half_i8(x + INPUT_HALF, input_cell(records, width, r, 1));
    }
}
