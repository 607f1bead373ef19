/* 16-bit floats, one element at a time: the definition of rounding for the KV cache. Nearest even; NaN stays NaN. */
#ifndef WRING_KERNELS_HALF_H
#define WRING_KERNELS_HALF_H

#include <stdint.h>

static inline uint32_t half_bits(float f)
{
    union {
        float f;
        uint32_t u;
    } x = { .f = f };
    return x.u;
}

static inline float half_float(uint32_t u)
{
    union {
        uint32_t u;
        float f;
    } x = { .u = u };
    return x.f;
}

static inline float half_from_bf16(uint16_t b)
{
    return half_float((uint32_t)b << 16);
}

static inline uint16_t half_to_bf16(float f)
{
    uint32_t u = half_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float half_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) /* infinity, NaN */
        return half_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400) /* the exponent's bias goes from 15 to 127 */
        return half_float(sign | ((rest << 13) + (112u << 23)));
    float f = (float)rest * 0x1p-24f;
    return sign ? -f : f;
}

static inline uint16_t half_to_f16(float f)
{
    uint32_t u = half_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x1ff));
    if (a >= 0x477ff000) /* 65520 and up */
        return (uint16_t)(sign | 0x7c00);
    if (a <
        0x38800000) /* subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits */
        return (uint16_t)(sign | (half_bits(half_float(a) + 0.5f) - half_bits(0.5f)));
    a += 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | (a - (112u << 23)) >> 13);
}

#endif
