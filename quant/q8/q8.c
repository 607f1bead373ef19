/* q8: int8 in groups of 32 inputs with one f16 scale: w = (code - 128) * scale, 8.5 bits a weight.
 *
 *   plane 0, codes    panel p (16 rows), group g (32 inputs), quad j (4 inputs), row r of the panel, byte b
 *                     byte ((p * groups + g) * 8 + j) * 64 + r * 4 + b      holds  w[16p + r][32g + 4j + b] + 128
 *   plane 1, scales   f16 (p * groups + g) * 16 + r
 *
 * A 64-byte line is one operand of a four-element dot product for sixteen outputs. Codes are stored with 128 added because
 * that instruction wants one side unsigned; the sum starts at -128 * sum(x), so the correction costs nothing.
 * GGUF's Q8_0 has the same codes and scales: it is taken without loss. Encoding normally distributed weights costs 0.5 %
 * of their norm, inputs rounded to int8 (an option) 0.5 % of the product's (tests/ops/test_codec.c measures both).
 */
#include <math.h>
#include <string.h>

#include "quant/q8/q8.h"

static const float F16_MAX = 65504;

static int fits_q8(const char *name, enum dtype from, int rows, int cols, int *variant)
{
    (void)rows;
    *variant = 0;
    if (cols % INPUT_GROUP != 0)
        return 0;
    if (name == NULL)
        return from == DT_Q8_0 ? 2 : 0;
    return strcmp(name, "q8") == 0 ? from == DT_Q8_0 ? 2 : 1 : 0;
}

static void size_q8(const struct weight *w, size_t bytes[CODEC_PLANES])
{
    size_t cells = (size_t)weight_panels(w) * (size_t)q8_groups(w);
    bytes[0] = cells * Q8_CODES;
    bytes[1] = cells * CODEC_PANEL * sizeof(uint16_t);
}

static size_t cell_of(const struct weight *w, int row, int g)
{
    return (size_t)(row / CODEC_PANEL) * (size_t)q8_groups(w) + (size_t)g;
}

/* Loops over a group that compilers turn into vector code: no rintf, no division, comparisons that send NaN to 0. */
static void encode_group(const float *x, uint8_t *code, uint16_t *scale)
{
    float max = 0;
    for (int k = 0; k < INPUT_GROUP; k++) {
        float a = fabsf(x[k]);
        max = a > max ? a : max;
    }
    *scale = f32_to_f16(max < 127 * F16_MAX ? max / 127.0f : F16_MAX);
    float d = f16_to_f32(*scale);
    float inv = d > 0 ? 1 / d : 0;
    uint8_t all[INPUT_GROUP];
    for (int k = 0; k < INPUT_GROUP; k++) {
        float q = x[k] * inv;
        q = q > -127 ? q : q < 0 ? -127 : 0;
        q = q < 127 ? q : 127;
        all[k] = (uint8_t)(int)(q + 128.5f);
    }
    for (int j = 0; j < INPUT_GROUP / 4; j++)
        memcpy(code + 64 * j, all + 4 * j, 4);
}

static void encode_q8(struct weight *w, int row0, int n, const float *src)
{
    for (int i = 0; i < n; i++) {
        int r = (row0 + i) % CODEC_PANEL;
        for (int g = 0; g < q8_groups(w); g++, src += INPUT_GROUP) {
            size_t cell = cell_of(w, row0 + i, g);
            encode_group(src, (uint8_t *)w->plane[0] + cell * Q8_CODES + r * 4,
                         (uint16_t *)w->plane[1] + cell * CODEC_PANEL + r);
        }
    }
}

/* A Q8_0 block: f16 scale, 32 int8. */
static bool take_q8(struct weight *w, int row0, int n, enum dtype type, const void *src)
{
    enum { BLOCK = 34 };
    if (type != DT_Q8_0)
        return false;
    const uint8_t *s = src;
    for (int i = 0; i < n; i++) {
        int r = (row0 + i) % CODEC_PANEL;
        for (int g = 0; g < q8_groups(w); g++, s += BLOCK) {
            size_t cell = cell_of(w, row0 + i, g);
            uint8_t *p = (uint8_t *)w->plane[0] + cell * Q8_CODES + r * 4;
            memcpy((uint16_t *)w->plane[1] + cell * CODEC_PANEL + r, s, 2);
            for (int j = 0; j < INPUT_GROUP / 4; j++) {
                uint32_t four;
                memcpy(&four, s + 2 + 4 * j, 4);
                four ^= 0x80808080u;
                memcpy(p + (size_t)j * 64, &four, 4);
            }
        }
    }
    return true;
}

static void decode_q8(const struct weight *w, int row, float *dst)
{
    int r = row % CODEC_PANEL;
    for (int g = 0; g < q8_groups(w); g++) {
        size_t cell = cell_of(w, row, g);
        const uint8_t *p = (const uint8_t *)w->plane[0] + cell * Q8_CODES + r * 4;
        float d = f16_to_f32(((const uint16_t *)w->plane[1])[cell * CODEC_PANEL + (size_t)r]);
        for (int k = 0; k < INPUT_GROUP; k++) {
            int code = p[(k / 4) * 64 + k % 4] - 128;
            dst[g * INPUT_GROUP + k] = (float)code * d;
        }
    }
}

static void rescale_q8(struct weight *w, int row, float factor)
{
    for (int g = 0; g < q8_groups(w); g++) {
        uint16_t *scale =
            (uint16_t *)w->plane[1] + cell_of(w, row, g) * CODEC_PANEL + row % CODEC_PANEL;
        *scale = f16_scale(*scale, factor);
    }
}

static bool knows_q8(const char *word)
{
    return strcmp(word, "q8") == 0;
}

static const char *form_q8(const struct weight *w)
{
    (void)w;
    return "q8";
}

const struct codec codec_q8 = {
    .name = "q8",
    .knows = knows_q8,
    .fits = fits_q8,
    .size = size_q8,
    .encode = encode_q8,
    .take = take_q8,
    .plane_name = { "codes", "scales" },
    .decode = decode_q8,
    .rescale = rescale_q8,
    .form = form_q8,
    .cpu = { &q8_ref, &q8_avx2, &q8_avx512, NULL },
    .cuda = CODEC_CUDA(q8_cuda),
};
