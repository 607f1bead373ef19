/* CUDA's numeric functions of one thread: bits, integers, floats. The approximate ones (__expf and the like) are exact
 * here, so a test that compares with them must allow for what the GPU's are documented to lose. */
#ifndef WRING_TESTS_SIMT_MATH_CUH
#define WRING_TESTS_SIMT_MATH_CUH

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <simt_types.cuh>

/* ---- bits ------------------------------------------------------------------------------------------------------ */

static inline unsigned __float_as_uint(float x)
{
    unsigned r;
    memcpy(&r, &x, sizeof r);
    return r;
}

static inline int __float_as_int(float x)
{
    return (int)__float_as_uint(x);
}

static inline float __uint_as_float(unsigned x)
{
    float r;
    memcpy(&r, &x, sizeof r);
    return r;
}

static inline float __int_as_float(int x)
{
    return __uint_as_float((unsigned)x);
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}

static inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}

static inline int __clzll(long long x)
{
    return x == 0 ? 64 : __builtin_clzll((unsigned long long)x);
}

static inline int __ffs(int x) /* 1 for the lowest bit, 0 when there is none */
{
    return __builtin_ffs(x);
}

static inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}

static inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1) << (31 - i);
    return r;
}

/* The upper half of high:low << shift % 32, the lower half of high:low >> shift % 32. */
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)((((uint64_t)high << 32 | low) << (shift & 31)) >> 32);
}

static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}

/* Byte i of the result is byte (selector >> 4 i) & 7 of y:x. The top bit of each selector is not looked at. */
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned from = selector >> 4 * i & 7;
        r |= (unsigned)(bytes >> 8 * from & 0xff) << 8 * i;
    }
    return r;
}

/* ---- integers -------------------------------------------------------------------------------------------------- */

/* c plus the product of four pairs of bytes; wraps. */
static inline int __dp4a(int a, int b, int c)
{
    unsigned sum = (unsigned)c;
    for (int i = 0; i < 4; i++)
        sum += (unsigned)((int8_t)((unsigned)a >> 8 * i) * (int8_t)((unsigned)b >> 8 * i));
    return (int)sum;
}

static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c)
{
    for (int i = 0; i < 4; i++)
        c += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
    return c;
}

static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}

static inline int __mulhi(int a, int b)
{
    return (int)((int64_t)a * b >> 32);
}

/* The overloads that CUDA has, so that mixed signs mean the same here. */
#define SIMT_MIN_MAX(type, left, right)                                                            \
    static inline type min(left a, right b)                                                        \
    {                                                                                              \
        return (type)a < (type)b ? (type)a : (type)b;                                              \
    }                                                                                              \
    static inline type max(left a, right b)                                                        \
    {                                                                                              \
        return (type)a > (type)b ? (type)a : (type)b;                                              \
    }
#define SIMT_MIN_MAX_SIGNS(type)                                                                   \
    SIMT_MIN_MAX(type, type, type)                                                                 \
    SIMT_MIN_MAX(unsigned type, unsigned type, unsigned type)                                      \
    SIMT_MIN_MAX(unsigned type, type, unsigned type)                                               \
    SIMT_MIN_MAX(unsigned type, unsigned type, type)
SIMT_MIN_MAX_SIGNS(int)
SIMT_MIN_MAX_SIGNS(long)
SIMT_MIN_MAX_SIGNS(long long)
#undef SIMT_MIN_MAX
#undef SIMT_MIN_MAX_SIGNS

/* ---- floats ---------------------------------------------------------------------------------------------------- */

static inline float min(float a, float b) /* the number, when one is NaN */
{
    return fminf(a, b);
}

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

static inline double min(double a, double b)
{
    return fmin(a, b);
}

static inline double max(double a, double b)
{
    return fmax(a, b);
}

static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}

static inline float __fadd_rn(float a, float b)
{
    return a + b;
}

static inline float __fsub_rn(float a, float b)
{
    return a - b;
}

/* Never contracted with an addition: the product is a value of its own. */
static inline float __fmul_rn(float a, float b)
{
    float r = a * b;
    __asm__("" : "+x"(r));
    return r;
}

static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}

static inline float __fdividef(float a, float b)
{
    return a / b;
}

static inline float __frcp_rn(float x)
{
    return 1 / x;
}

static inline float __fsqrt_rn(float x)
{
    return sqrtf(x);
}

static inline float __saturatef(float x) /* NaN is 0 */
{
    return x > 0 ? (x < 1 ? x : 1) : 0;
}

/* Rounds to nearest even, saturates; NaN is 0. */
static inline int __float2int_rn(float x)
{
    if (x != x)
        return 0;
    return x >= 2147483648.0f ? INT_MAX : x < -2147483648.0f ? INT_MIN : (int)rintf(x);
}

static inline float __int2float_rn(int x)
{
    return (float)x;
}

static inline float __uint2float_rn(unsigned x)
{
    return (float)x;
}

/* glibc declares these names for itself (rsqrtf from 2.42 on), so the twins have others. */
static inline float simt_rsqrtf(float x)
{
    return (float)(1 / sqrt((double)x));
}

#define rsqrtf(x)    simt_rsqrtf(x)
#define __expf(x)    expf(x)
#define __exp10f(x)  exp10f(x)
#define __logf(x)    logf(x)
#define __log2f(x)   log2f(x)
#define __sinf(x)    sinf(x)
#define __cosf(x)    cosf(x)
#define __powf(x, y) powf(x, y)
#define __tanf(x)    tanf(x)

static inline long long clock64()
{
    return (long long)__builtin_ia32_rdtsc();
}

#endif
