/* Peak of AVX-512: FMA for floats, VPDPBUSD for int8. */
#include <immintrin.h>

#include "kernels/cpu/bound.h"

enum { SUMS = 10 };

/* Keeps the compiler from folding the loop: every round could have changed x. */
#define OPAQUE(x) __asm__ volatile("" : "+v"(x))

static double loop_f32(long rounds)
{
    __m512 sum[SUMS], x = _mm512_set1_ps(1.0f), y = _mm512_set1_ps(0.5f);
    for (int j = 0; j < SUMS; j++)
        sum[j] = _mm512_setzero_ps();
    for (long i = 0; i < rounds; i++) {
        OPAQUE(x);
#pragma GCC unroll 10
        for (int j = 0; j < SUMS; j++)
            sum[j] = _mm512_fmadd_ps(x, y, sum[j]);
    }
    for (int j = 0; j < SUMS; j++)
        OPAQUE(sum[j]);
    return (double)rounds * SUMS * 32;
}

static double loop_i8(long rounds)
{
    __m512i sum[SUMS], x = _mm512_set1_epi8(1), y = x;
    for (int j = 0; j < SUMS; j++)
        sum[j] = _mm512_setzero_si512();
    for (long i = 0; i < rounds; i++) {
        OPAQUE(x);
#pragma GCC unroll 10
        for (int j = 0; j < SUMS; j++)
            sum[j] = _mm512_dpbusd_epi32(sum[j], x, y);
    }
    for (int j = 0; j < SUMS; j++)
        OPAQUE(sum[j]);
    return (double)rounds * SUMS * 128;
}

double bound_loop_avx512(enum bound_dot kind, long rounds)
{
    return kind == BOUND_I8 ? loop_i8(rounds) : loop_f32(rounds);
}
