/* Peak of AVX2: FMA for floats, VPMADDUBSW + VPMADDWD + VPADDD for int8. */
#include <immintrin.h>

#include "kernels/cpu/bound.h"

enum { SUMS = 10 };

/* Keeps the compiler from folding the loop: every round could have changed x. */
#define OPAQUE(x) __asm__ volatile("" : "+x"(x))

static double loop_f32(long rounds)
{
    __m256 sum[SUMS], x = _mm256_set1_ps(1.0f), y = _mm256_set1_ps(0.5f);
    for (int j = 0; j < SUMS; j++)
        sum[j] = _mm256_setzero_ps();
    for (long i = 0; i < rounds; i++) {
        OPAQUE(x);
#pragma GCC unroll 10
        for (int j = 0; j < SUMS; j++)
            sum[j] = _mm256_fmadd_ps(x, y, sum[j]);
    }
    for (int j = 0; j < SUMS; j++)
        OPAQUE(sum[j]);
    return (double)rounds * SUMS * 16;
}

static double loop_i8(long rounds)
{
    __m256i sum[SUMS], x = _mm256_set1_epi8(1), y = x, one = _mm256_set1_epi16(1);
    for (int j = 0; j < SUMS; j++)
        sum[j] = _mm256_setzero_si256();
    for (long i = 0; i < rounds; i++) {
#pragma GCC unroll 10
        for (int j = 0; j < SUMS; j++) {
            OPAQUE(x);
            __m256i p = _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), one);
            sum[j] = _mm256_add_epi32(sum[j], p);
        }
    }
    for (int j = 0; j < SUMS; j++)
        OPAQUE(sum[j]);
    return (double)rounds * SUMS * 64;
}

double bound_loop_avx2(enum bound_dot kind, long rounds)
{
    return kind == BOUND_I8 ? loop_i8(rounds) : loop_f32(rounds);
}
