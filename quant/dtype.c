#include "quant/dtype.h"

#include <string.h>

#include "quant/dtype_block.h"
#include "server/base/err.h"

static const struct {
    const char *name;
    uint32_t gguf;
    int block, bytes;
} info[DTYPE_N] = {
#define DTYPE_ROW_(name, text, id, block, bytes) { text, id, block, bytes },
    DTYPE_MAP(DTYPE_ROW_)
#undef DTYPE_ROW_
};

const char *dtype_name(enum dtype t)
{
    return info[t].name;
}

int dtype_block(enum dtype t)
{
    return info[t].block;
}

int dtype_block_bytes(enum dtype t)
{
    return info[t].bytes;
}

int dtype_from_gguf(uint32_t id)
{
    for (int i = 0; i < DTYPE_N; i++)
        if (info[i].gguf == id && id != DTYPE_NOT_GGUF)
            return i;
    return ERR_UNSUPPORTED;
}

size_t dtype_row_bytes(enum dtype t, int64_t cols)
{
    return (size_t)(cols / info[t].block) * (size_t)info[t].bytes;
}

/* ---- halves ------------------------------------------------------------------------------------------------------ */

union word {
    uint32_t u;
    float f;
};

/* IEEE 754 binary16: subnormals are multiples of 2^-24. */
float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exp = h >> 10 & 31;
    uint32_t frac = h & 1023;
    if (exp == 0) {
        union word x = { .f = (float)frac * 0x1p-24f };
        x.u |= sign;
        return x.f;
    }
    uint32_t wide = exp == 31 ? 255 : exp + 112;
    return (union word){ sign | wide << 23 | frac << 13 }.f;
}

uint16_t f32_to_f16(float f)
{
    union word x = { .f = f };
    uint32_t sign = x.u >> 16 & 0x8000;
    uint32_t abs = x.u & 0x7fffffff;
    if (abs > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (abs >> 13 & 0x3ff));
    if (abs >= 0x477ff000) /* 65520 and up round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (abs < 0x38800000) { /* below 2^-14: let the adder round to multiples of 2^-24 */
        union word y = { .u = abs };
        y.f += 0.5f;
        return (uint16_t)(sign | (y.u - 0x3f000000));
    }
    uint32_t odd = abs >> 13 & 1;
    return (uint16_t)(sign | ((abs - 0x38000000 + 0xfff + odd) >> 13));
}

uint16_t f16_scale(uint16_t h, float factor)
{
    enum { LARGEST = 0x7bff }; /* 65504 */
    uint16_t scaled = f32_to_f16(f16_to_f32(h) * factor);
    return (scaled & 0x7fff) == 0x7c00 ? (uint16_t)((scaled & 0x8000) | LARGEST) : scaled;
}

uint16_t f32_to_bf16(float f)
{
    union word x = { .f = f };
    if ((x.u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(x.u >> 16 | 0x40);
    return (uint16_t)((x.u + 0x7fff + (x.u >> 16 & 1)) >> 16);
}

/* ---- blocks of 32 ------------------------------------------------------------------------------------------------ */

static uint16_t half_bits(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

float dtype_half(const uint8_t *p)
{
    return f16_to_f32(half_bits(p));
}

static void copy_f32(const uint8_t *s, float *d)
{
    memcpy(d, s, sizeof *d);
}

static void copy_f16(const uint8_t *s, float *d)
{
    *d = dtype_half(s);
}

static void copy_bf16(const uint8_t *s, float *d)
{
    *d = bf16_to_f32(half_bits(s));
}

/* f16 scale, then 16 bytes: low nibbles are elements 0-15, high nibbles 16-31; value (q - 8) * d. */
static void block_q4_0(const uint8_t *s, float *y)
{
    float d = dtype_half(s);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)((s[2 + i] & 15) - 8) * d;
        y[i + 16] = (float)((s[2 + i] >> 4) - 8) * d;
    }
}

/* f16 scale, f16 minimum, nibbles as above; value q * d + m. */
static void block_q4_1(const uint8_t *s, float *y)
{
    float d = dtype_half(s);
    float m = dtype_half(s + 2);
    for (int i = 0; i < 16; i++) {
        y[i] = (float)(s[4 + i] & 15) * d + m;
        y[i + 16] = (float)(s[4 + i] >> 4) * d + m;
    }
}

static uint32_t bits32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* f16 scale, 32 fifth bits, nibbles; value (q - 16) * d. */
static void block_q5_0(const uint8_t *s, float *y)
{
    float d = dtype_half(s);
    uint32_t high = bits32(s + 2);
    for (int i = 0; i < 16; i++) {
        int lo = (s[6 + i] & 15) | (int)(high >> i & 1) << 4;
        int hi = s[6 + i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        y[i] = (float)(lo - 16) * d;
        y[i + 16] = (float)(hi - 16) * d;
    }
}

/* f16 scale, f16 minimum, 32 fifth bits, nibbles; value q * d + m. */
static void block_q5_1(const uint8_t *s, float *y)
{
    float d = dtype_half(s);
    float m = dtype_half(s + 2);
    uint32_t high = bits32(s + 4);
    for (int i = 0; i < 16; i++) {
        int lo = (s[8 + i] & 15) | (int)(high >> i & 1) << 4;
        int hi = s[8 + i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        y[i] = (float)lo * d + m;
        y[i + 16] = (float)hi * d + m;
    }
}

/* f16 scale, 32 int8. */
static void block_q8_0(const uint8_t *s, float *y)
{
    float d = dtype_half(s);
    for (int i = 0; i < 32; i++)
        y[i] = (float)(int8_t)s[2 + i] * d;
}

static void copy_u8(const uint8_t *s, float *y)
{
    *y = *s;
}

static void copy_i8(const uint8_t *s, float *y)
{
    *y = (int8_t)*s;
}

static void copy_i16(const uint8_t *s, float *y)
{
    *y = (int16_t)half_bits(s);
}

typedef void block_fn(const uint8_t *s, float *y);

static block_fn *const decoder[DTYPE_N] = {
    [DT_F32] = copy_f32,    [DT_F16] = copy_f16,          [DT_BF16] = copy_bf16,
    [DT_Q4_0] = block_q4_0, [DT_Q4_1] = block_q4_1,       [DT_Q5_0] = block_q5_0,
    [DT_Q5_1] = block_q5_1, [DT_Q8_0] = block_q8_0,       [DT_Q2_K] = block_q2_k,
    [DT_Q3_K] = block_q3_k, [DT_Q4_K] = block_q4_k,       [DT_Q5_K] = block_q5_k,
    [DT_Q6_K] = block_q6_k, [DT_IQ2_XXS] = block_iq2_xxs, [DT_U8] = copy_u8,
    [DT_I8] = copy_i8,      [DT_I16] = copy_i16,
};

void dtype_decode(enum dtype t, const void *src, float *dst, size_t n)
{
    const uint8_t *s = src;
    size_t block = (size_t)info[t].block;
    if (t == DT_F32) {
        memcpy(dst, src, n * sizeof *dst);
        return;
    }
    for (size_t i = 0; i < n; i += block, s += info[t].bytes)
        decoder[t](s, dst + i);
}
