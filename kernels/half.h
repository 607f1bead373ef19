/* 16-bit floats, one element at a time: the definition of rounding for the KV cache. Nearest even; NaN stays NaN. Without
 * branches, so that loops over them become vector code. */
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
    uint32_t u = half_bits(f), near = (u + 0x7fff + (u >> 16 & 1)) >> 16, nan = u >> 16 | 0x40;
    return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? nan : near);
}

static inline float half_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    uint32_t scaled = half_bits(half_float(rest) * 0x1p112f); /* the bias goes from 15 to 127 */
    uint32_t other = rest < 0x7c00u << 13 ? 0 : 0x7f800000;   /* infinity, NaN */
    return half_float(sign | scaled | other);
}

static inline uint16_t half_to_f16(float f)
{
    uint32_t u = half_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    uint32_t rest = (a + 0xfff + (a >> 13 & 1) - (112u << 23)) >> 13;
    /* subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits */
    uint32_t low = half_bits(half_float(a) + 0.5f) - half_bits(0.5f);
    uint32_t subnormal = a < 0x38800000 ? ~0u : 0;
    rest = (low & subnormal) | (rest & ~subnormal);
    rest = a >= 0x477ff000 ? 0x7c00 : rest; /* 65520 and up */
    rest = a > 0x7f800000 ? 0x7e00 | (a >> 13 & 0x1ff) : rest;
    return (uint16_t)(sign | rest);
}

/* What f16 can hold of f: no more than 65504 either way; NaN stays. */
static inline float half_within_f16(float f)
{
    return f > 65504 ? 65504 : f < -65504 ? -65504 : f;
}

#endif
