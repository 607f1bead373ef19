#include <immintrin.h>
#include <math.h>

#include "quant/input.h"

enum { INFINITY_BITS = 0x7f800000 };

/* Magnitudes compare like their bits, and those of NaN are above all others. */
void input_i8_avx512(const float *x, int groups, char *records, int width, int r)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (int g = 0; g < groups; g++, x += INPUT_GROUP, records += width * INPUT_RECORD) {
        struct input_cell c = input_cell(records, width, r);
        __m512 a = _mm512_loadu_ps(x);
        __m512 b = _mm512_loadu_ps(x + 16);
        __m512i top = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), magnitude),
                                       _mm512_and_si512(_mm512_castps_si512(b), magnitude));
        int bits = _mm512_reduce_max_epi32(top);
        float max = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
        float inv = bits > 0 ? 127.0f / max : 0;
        float scale = max / 127.0f;
        if (bits >= INFINITY_BITS || !(inv < INFINITY)) {
            scale = bits >= INFINITY_BITS ? NAN : 0;
            inv = 0;
            a = b = _mm512_setzero_ps();
        }
        __m512 by = _mm512_set1_ps(inv);
        __m128i lo = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(a, by)));
        __m128i hi = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(b, by)));
        _mm_storeu_si128((__m128i *)c.q, lo);
        _mm_storeu_si128((__m128i *)(c.q + 16), hi);
        __m128i sums = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), lo);
        sums = _mm_dpbusd_epi32(sums, _mm_set1_epi8(1), hi);
        sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
        sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1));
        int total = _mm_cvtsi128_si32(sums);
        *c.scale = scale;
        *c.sum = scale * (float)total;
        *c.neg8 = -8 * total;
        *c.neg128 = -128 * total;
    }
}
