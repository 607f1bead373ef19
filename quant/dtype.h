/* Element types of tensors on disk: name, block shape, and the definition of each as a decoder to f32.
 *
 * Source of numbers and layouts: the GGUF specification (ggml type ids, block structures) and, for F32, F16, BF16, the
 * safetensors format. Decoders are plain C, tested against the PyPI package `gguf`.
 */
#ifndef WRING_QUANT_DTYPE_H
#define WRING_QUANT_DTYPE_H

#include <stddef.h>
#include <stdint.h>

#include "server/base/err.h"

enum { DTYPE_NOT_GGUF = 0x7fffffff };

/* X(name, text, GGUF type id, elements a block, bytes a block) */
#define DTYPE_MAP(X)                                                                               \
    X(DT_F32, "F32", 0, 1, 4)                                                                      \
    X(DT_F16, "F16", 1, 1, 2)                                                                      \
    X(DT_Q4_0, "Q4_0", 2, 32, 18)                                                                  \
    X(DT_Q4_1, "Q4_1", 3, 32, 20)                                                                  \
    X(DT_Q5_0, "Q5_0", 6, 32, 22)                                                                  \
    X(DT_Q5_1, "Q5_1", 7, 32, 24)                                                                  \
    X(DT_Q8_0, "Q8_0", 8, 32, 34)                                                                  \
    X(DT_Q2_K, "Q2_K", 10, 256, 84)                                                                \
    X(DT_Q3_K, "Q3_K", 11, 256, 110)                                                               \
    X(DT_Q4_K, "Q4_K", 12, 256, 144)                                                               \
    X(DT_Q5_K, "Q5_K", 13, 256, 176)                                                               \
    X(DT_Q6_K, "Q6_K", 14, 256, 210)                                                               \
    X(DT_IQ2_XXS, "IQ2_XXS", 16, 256, 66)                                                          \
    X(DT_I8, "I8", 24, 1, 1)                                                                       \
    X(DT_I16, "I16", 25, 1, 2)                                                                     \
    X(DT_BF16, "BF16", 30, 1, 2)                                                                   \
    X(DT_U8, "U8", DTYPE_NOT_GGUF, 1, 1)

enum dtype {
#define DTYPE_ENUM_(name, text, id, block, bytes) name,
    DTYPE_MAP(DTYPE_ENUM_)
#undef DTYPE_ENUM_
        DTYPE_N
};

const char *dtype_name(enum dtype t);
int dtype_block(enum dtype t);                      /* elements a block */
int dtype_block_bytes(enum dtype t);                /* bytes a block */
int dtype_from_gguf(uint32_t id);                   /* enum dtype, or ERR_UNSUPPORTED */
size_t dtype_row_bytes(enum dtype t, int64_t cols); /* cols must be a multiple of the block */

/* n elements (a multiple of the block) from src to f32. src needs no alignment. Any bytes are accepted. */
void dtype_decode(enum dtype t, const void *src, float *dst, size_t n);

/* f16 and bf16 conversions, round to nearest even, NaN stays NaN. */
float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);
/* h * factor, the largest f16 number where that is beyond it. */
uint16_t f16_scale(uint16_t h, float factor);
static inline float bf16_to_f32(uint16_t b)
{
    union {
        uint32_t u;
        float f;
    } x = { (uint32_t)b << 16 };
    return x.f;
}
uint16_t f32_to_bf16(float f);

#endif
