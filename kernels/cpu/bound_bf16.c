/* Peak of AVX512-BF16: VDPBF16PS; the rest is AVX-512's. */
#include <immintrin.h>

#include "kernels/cpu/bound.h"

enum { SUMS = 10 };

static double loop_bf16(long rounds)
{
    __m512 sum[SUMS];
    __m512i x = _mm512_set1_epi16(0x3f80), y = x;
    for (int j = 0; j < SUMS; j++)
        sum[j] = _mm512_setzero_ps();
    for (long i = 0; i < rounds; i++) {
        /* every round could have changed x */
        __asm__ volatile("" : "+v"(x));
#pragma GCC unroll 10
        for (int j = 0; j < SUMS; j++)
            sum[j] = _mm512_dpbf16_ps(sum[j], (__m512bh)x, (__m512bh)y);
    }
    for (int j = 0; j < SUMS; j++)
        __asm__ volatile("" : "+v"(sum[j]));
    return (double)rounds * SUMS * 64;
}

double bound_loop_bf16(enum bound_dot kind, long rounds)
{
    return kind == BOUND_BF16 ? loop_bf16(rounds) : bound_loop_avx512(kind, rounds);
}
