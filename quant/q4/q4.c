/* q4: 4 bits in groups of 32 inputs with an f16 scale, and in the variant "q4m" an f16 minimum.
 *
 *   q4   w = (code - 8) * scale         4.5 bits a weight     GGUF's Q4_0 has the same numbers: taken without loss
 *   q4m  w = code * scale + minimum     5.0 bits a weight     GGUF's Q4_1 likewise
 *
 *   plane 0, codes    panel p (16 rows), group g (32 inputs), line j = 0..3, row r of the panel, byte b = 0..3
 *                     byte ((p * groups + g) * 4 + j) * 64 + r * 4 + b
 *                       low nibble:  w[16p + r][32g + 4j + b]         high nibble:  w[16p + r][32g + 16 + 4j + b]
 *   plane 1, numbers  f16 (p * groups + g) * 16 + r scales; in q4m the 16 minima behind each 16 scales
 *
 * One 64-byte line becomes two operands of a four-element dot product for sixteen outputs, by a mask and a shift. The
 * plain variant's -8 is the sum's start, -8 * sum(x); the minimum is one more fused multiply-add a group. Encoding normally
 * distributed weights costs 7.1 % of their norm (q4m), inputs rounded to int8 (an option) 0.5 % of the product's
 * (tests/ops/test_codec.c measures both).
 */
#include <float.h>
#include <string.h>

#include "quant/q4/q4.h"

static int fits_q4(const char *name, enum dtype from, int rows, int cols, int *variant)
{
    (void)rows;
    *variant = from == DT_Q4_0 ? Q4_PLAIN : Q4_MIN;
    if (cols % INPUT_GROUP != 0)
        return 0;
    bool same = from == DT_Q4_0 || from == DT_Q4_1;
    if (name == NULL)
        return same ? 2 : 0;
    if (strcmp(name, "q4m") == 0 && from != DT_Q4_0)
        return 1;
    return strcmp(name, "q4") == 0 ? same ? 2 : 1 : 0;
}

static size_t cell_of(const struct weight *w, int row, int g)
{
    return (size_t)(row / CODEC_PANEL) * (size_t)q4_groups(w) + (size_t)g;
}

static uint16_t *numbers_of(const struct weight *w, int row, int g)
{
    return (uint16_t *)w->plane[1] + cell_of(w, row, g) * (size_t)q4_numbers(w->variant) +
           row % CODEC_PANEL;
}

/* The four bytes of each line that belong to a row start here; lines are 64 bytes apart. */
static uint8_t *codes_of(const struct weight *w, int row, int g)
{
    return (uint8_t *)w->plane[0] + cell_of(w, row, g) * Q4_CODES + (row % CODEC_PANEL) * 4;
}

static void size_q4(const struct weight *w, size_t bytes[CODEC_PLANES])
{
    size_t cells = (size_t)weight_panels(w) * (size_t)q4_groups(w);
    bytes[0] = cells * Q4_CODES;
    bytes[1] = cells * (size_t)q4_numbers(w->variant) * sizeof(uint16_t);
}

/* ---- encode ------------------------------------------------------------------------------------------------------ */

struct fit {
    float d, m; /* w ~ code * d + m */
    float err;
};

/* 0 ... 15 by the bits, whose order is that of the numbers from 0 on: unlike comparisons of floats this becomes vector
 * code. Anything goes in, NaN included. */
static float clamp(float q)
{
    union {
        float f;
        int32_t bits;
    } u = { q }, top = { 15 };
    u.bits &= ~(u.bits >> 31);
    u.bits = u.bits < top.bits ? u.bits : top.bits;
    return u.f;
}

static void codes_for(const float *x, float d, float m, float *code)
{
    float inv = d > 0 ? 1 / d : 0;
    for (int k = 0; k < INPUT_GROUP; k++)
        code[k] = (float)(int)(clamp((x[k] - m) * inv) + 0.5f);
}

enum { SUMS = 4 }; /* partial sums, side by side in a register */

static float fit_error(const float *x, const float *code, float d, float m)
{
    float err[SUMS] = { 0 };
    for (int k = 0; k < INPUT_GROUP; k += SUMS)
        for (int i = 0; i < SUMS; i++) {
            float e = code[k + i] * d + m - x[k + i];
            err[i] += e * e;
        }
    return (err[0] + err[1]) + (err[2] + err[3]);
}

/* Least squares for scale and minimum with these codes. */
static void refit(const float *x, const float *code, float *d, float *m)
{
    float part[4][SUMS] = { { 0 } };
    for (int k = 0; k < INPUT_GROUP; k += SUMS)
        for (int i = 0; i < SUMS; i++) {
            float q = code[k + i];
            part[0][i] += q;
            part[1][i] += q * q;
            part[2][i] += x[k + i];
            part[3][i] += q * x[k + i];
        }
    float s[4];
    for (int j = 0; j < 4; j++)
        s[j] = (part[j][0] + part[j][1]) + (part[j][2] + part[j][3]);
    float det = INPUT_GROUP * s[1] - s[0] * s[0];
    if (det <= 0)
        return;
    *d = (INPUT_GROUP * s[3] - s[0] * s[2]) / det;
    *m = (s[2] - *d * s[0]) / INPUT_GROUP;
}

/* The best of two ranges, all of it or 90 %, each improved twice by least squares; judged after rounding to f16. Five
 * ranges gain 1 % of the error at three times the time (16 ns a weight, one thread). */
static struct fit fit_group(const float *x)
{
    float lo = x[0];
    float hi = x[0];
    for (int k = 1; k < INPUT_GROUP; k++) {
        lo = x[k] < lo ? x[k] : lo;
        hi = x[k] > hi ? x[k] : hi;
    }
    struct fit best = { 0, 0, FLT_MAX };
    for (int i = 0; i < 2; i++) {
        float shrink = i == 0 ? 0 : 0.05f * (hi - lo);
        float m = lo + shrink;
        float d = (hi - lo - 2 * shrink) / 15;
        for (int step = 0; step < 3; step++) {
            float code[INPUT_GROUP];
            float rd = f16_to_f32(f32_to_f16(d));
            float rm = f16_to_f32(f32_to_f16(m));
            codes_for(x, rd, rm, code);
            float err = fit_error(x, code, rd, rm);
            if (err < best.err)
                best = (struct fit){ rd, rm, err };
            refit(x, code, &d, &m);
        }
    }
    return best;
}

static void encode_q4(struct weight *w, int row0, int n, const float *src)
{
    for (int i = 0; i < n; i++)
        for (int g = 0; g < q4_groups(w); g++) {
            const float *x = src + (size_t)i * (size_t)w->cols + (size_t)g * INPUT_GROUP;
            struct fit f = fit_group(x);
            uint16_t *number = numbers_of(w, row0 + i, g);
            uint8_t *p = codes_of(w, row0 + i, g);
            number[0] = f32_to_f16(f.d);
            number[CODEC_PANEL] = f32_to_f16(f.m);
            float code[INPUT_GROUP];
            codes_for(x, f.d, f.m, code);
            for (int k = 0; k < INPUT_GROUP / 2; k++)
                p[(k / 4) * 64 + k % 4] = (uint8_t)((int)code[k] | (int)code[k + 16] << 4);
        }
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

/* A Q4_0 block: f16 scale, 16 bytes whose low nibbles are the first sixteen codes and the high ones the rest; Q4_1 has the
 * f16 minimum behind the scale. */
static bool take_q4(struct weight *w, int row0, int n, enum dtype type, const void *src)
{
    if (type != (w->variant == Q4_MIN ? DT_Q4_1 : DT_Q4_0))
        return false;
    const uint8_t *s = src;
    size_t head = w->variant == Q4_MIN ? 4 : 2;
    for (int i = 0; i < n; i++)
        for (int g = 0; g < q4_groups(w); g++, s += head + 16) {
            uint16_t *number = numbers_of(w, row0 + i, g);
            uint8_t *p = codes_of(w, row0 + i, g);
            memcpy(number, s, 2);
            if (w->variant == Q4_MIN)
                memcpy(number + CODEC_PANEL, s + 2, 2);
            for (int j = 0; j < 4; j++)
                memcpy(p + 64 * j, s + head + 4 * j, 4);
        }
    return true;
}

static void decode_q4(const struct weight *w, int row, float *dst)
{
    for (int g = 0; g < q4_groups(w); g++, dst += INPUT_GROUP) {
        const uint16_t *number = numbers_of(w, row, g);
        const uint8_t *p = codes_of(w, row, g);
        float d = f16_to_f32(number[0]);
        float m = w->variant == Q4_MIN ? f16_to_f32(number[CODEC_PANEL]) : -8 * d;
        for (int k = 0; k < INPUT_GROUP / 2; k++) {
            int both = p[(k / 4) * 64 + k % 4];
            dst[k] = (float)(both & 15) * d + m;
            dst[k + 16] = (float)(both >> 4) * d + m;
        }
    }
}

static void rescale_q4(struct weight *w, int row, float factor)
{
    for (int g = 0; g < q4_groups(w); g++) {
        uint16_t *number = numbers_of(w, row, g);
        number[0] = f16_scale(number[0], factor);
        if (w->variant == Q4_MIN)
            number[CODEC_PANEL] = f16_scale(number[CODEC_PANEL], factor);
    }
}

static bool knows_q4(const char *word)
{
    return strcmp(word, "q4") == 0 || strcmp(word, "q4m") == 0;
}

static const char *form_q4(const struct weight *w)
{
    return w->variant == Q4_MIN ? "q4m" : "q4";
}

const struct codec codec_q4 = {
    .name = "q4",
    .knows = knows_q4,
    .fits = fits_q4,
    .size = size_q4,
    .encode = encode_q4,
    .take = take_q4,
    .plane_name = { "codes", "numbers" },
    .decode = decode_q4,
    .rescale = rescale_q4,
    .form = form_q4,
    .cpu = { &q4_ref, &q4_avx2, &q4_avx512, NULL },
    .cuda = CODEC_CUDA(q4_cuda),
};
