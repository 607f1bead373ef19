/* The K types of GGUF: super-blocks of 256 whose groups have scales that are themselves small integers. */
#include "quant/dtype_block.h"

/* 16 bytes of (scale, minimum) nibbles for groups of 16; 64 bytes of 2-bit codes; f16 d, f16 dmin.
 * Codes: each half of 128 elements has 32 bytes; bit pair j of them holds elements 32j .. 32j + 31. */
void block_q2_k(const uint8_t *s, float *y)
{
    float d = dtype_half(s + 80);
    float dmin = dtype_half(s + 82);
    for (int i = 0; i < 256; i++) {
        int pair = i % 128 / 32;
        int code = s[16 + i / 128 * 32 + i % 32] >> (2 * pair) & 3;
        int sc = s[i / 16];
        y[i] = d * (float)(sc & 15) * (float)code - dmin * (float)(sc >> 4);
    }
}

/* 32 bytes of third bits (bit i / 32 of byte i % 32), 64 bytes of 2-bit codes as above, 12 bytes of sixteen 6-bit scales,
 * f16 d. A clear third bit means minus 4; scales have 32 added. */
void block_q3_k(const uint8_t *s, float *y)
{
    const uint8_t *sc = s + 96;
    float d = dtype_half(s + 108);
    float scale[16];
    for (int j = 0; j < 16; j++) {
        int low = j < 8 ? sc[j] & 15 : sc[j - 8] >> 4;
        int high = sc[8 + j % 4] >> (2 * (j / 4)) & 3;
        scale[j] = d * (float)((low | high << 4) - 32);
    }
    for (int i = 0; i < 256; i++) {
        int pair = i % 128 / 32;
        int code = s[32 + i / 128 * 32 + i % 32] >> (2 * pair) & 3;
        int high = s[i % 32] >> (i / 32) & 1;
        y[i] = scale[i / 16] * (float)(code - (high ? 0 : 4));
    }
}

/* Eight 6-bit scales and eight 6-bit minima in 12 bytes: the first four of each whole, the rest in pieces. */
static void scale_min(const uint8_t *p, int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = p[j] & 63;
        *min = p[j + 4] & 63;
    } else {
        *scale = (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
        *min = p[j + 4] >> 4 | p[j] >> 6 << 4;
    }
}

/* f16 d, f16 dmin, 12 bytes of scales, 128 bytes of nibbles: each 32 bytes hold a group of 32 low, the next one high. */
void block_q4_k(const uint8_t *s, float *y)
{
    float d = dtype_half(s);
    float dmin = dtype_half(s + 2);
    for (int j = 0; j < 8; j++) {
        int sc;
        int m;
        scale_min(s + 4, j, &sc, &m);
        const uint8_t *q = s + 16 + j / 2 * 32;
        float a = d * (float)sc;
        float b = dmin * (float)m;
        for (int i = 0; i < 32; i++)
            y[32 * j + i] = a * (float)(q[i] >> (4 * (j % 2)) & 15) - b;
    }
}

/* As Q4_K with 32 bytes of fifth bits between scales and nibbles: bit j of byte i belongs to element 32j + i. */
void block_q5_k(const uint8_t *s, float *y)
{
    float d = dtype_half(s);
    float dmin = dtype_half(s + 2);
    for (int j = 0; j < 8; j++) {
        int sc;
        int m;
        scale_min(s + 4, j, &sc, &m);
        const uint8_t *q = s + 48 + j / 2 * 32;
        float a = d * (float)sc;
        float b = dmin * (float)m;
        for (int i = 0; i < 32; i++) {
            int code = (q[i] >> (4 * (j % 2)) & 15) | (s[16 + i] >> j & 1) << 4;
            y[32 * j + i] = a * (float)code - b;
        }
    }
}

/* 128 bytes of low nibbles, 64 of upper pairs, sixteen int8 scales, f16 d; value (q - 32) * scale * d.
 * In each half of 128: quarter k has its nibbles in bytes 32 (k % 2) + i, low for k < 2, and its pair at bit 2k of byte i. */
void block_q6_k(const uint8_t *s, float *y)
{
    float d = dtype_half(s + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128;
        int k = i % 128 / 32;
        int low = s[64 * half + 32 * (k % 2) + i % 32] >> (k < 2 ? 0 : 4) & 15;
        int high = s[128 + 32 * half + i % 32] >> (2 * k) & 3;
        int scale = s[192 + i / 16] - (s[192 + i / 16] >> 7 << 8); /* as int8 */
        y[i] = d * (float)scale * (float)((low | high << 4) - 32);
    }
}
