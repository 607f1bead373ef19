#include <immintrin.h>
#include <math.h>

#include "quant/input.h"

enum { INFINITY_BITS = 0x7f800000 };

/* Magnitudes compare like their bits, and those of NaN are above all others. */
static inline float half_i8(const float *x, struct input_cell c)
{
    __m512 v = _mm512_loadu_ps(x);
    int bits = _mm512_reduce_max_epi32(
        _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)));
    float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
    float inv = bits > 0 ? 127.0f / max : 0;
    float scale = max / 127.0f;
    if (bits >= INFINITY_BITS || !(inv < INFINITY)) {
        scale = bits >= INFINITY_BITS ? NAN : 0;
        inv = 0;
        v = _mm512_setzero_ps();
    }
    __m128i q = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inv))));
    _mm_storeu_si128((__m128i *)c.q, q);
    __m128i sums = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), q);
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1));
    int total = _mm_cvtsi128_si32(sums);
    *c.scale = scale;
    *c.neg8 = -8 * total;
    *c.neg128 = -128 * total;
    return scale * (float)total;
}

void input_i8_avx512(const float *x, int groups, char *records, int width, int r)
{
    for (int g = 0; g < groups; g++, x += INPUT_GROUP, records += width * INPUT_RECORD) {
        struct input_cell c = input_cell(records, width, r, 0);
        float first = half_i8(x, c);
        *c.sum = first + half_i8(x + INPUT_HALF, input_cell(records, width, r, 1));
    }
}
