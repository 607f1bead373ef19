/* The q4 product in plain C, the definition: groups in rising order, the first half of a group before the second: acc = fma(sum of
 * the half, w_scale * x_scale, acc), then in q4m acc = fma(minimum, x_scale * sum(x), acc). With f32 inputs acc = fma(w, x, acc), inputs in rising order, one
 * sum for the even inputs and one for the odd ones, added at the end; w = fma(code, scale, minimum). */
#include <math.h>

#include "quant/q4/q4.h"

static int code_at(const uint8_t *code, int l, int k)
{
    int both = code[k % 16 / 4 * 64 + l * 4 + k % 4];
    return k < 16 ? both & 15 : both >> 4;
}

static float group_i8(float acc, const uint8_t *code, const uint16_t *number, int l, char *rec,
                      int width, int r, int variant)
{
    float d = f16_to_f32(number[l]);
    for (int h = 0; h < 2; h++) {
        struct input_cell x = input_cell(rec, width, r, h);
        int32_t s = variant == Q4_MIN ? 0 : *x.neg8;
        for (int k = 0; k < INPUT_HALF; k++)
            s += code_at(code, l, h * INPUT_HALF + k) * x.q[k];
        acc = fmaf((float)s, d * *x.scale, acc);
    }
    if (variant == Q4_MIN)
        acc = fmaf(f16_to_f32(number[CODEC_PANEL + l]), *input_cell(rec, width, r, 0).sum, acc);
    return acc;
}

static void group_f32(float *acc, const uint8_t *code, const uint16_t *number, int l,
                      const float *x, int variant)
{
    float d = f16_to_f32(number[l]);
    float m = variant == Q4_MIN ? f16_to_f32(number[CODEC_PANEL + l]) : d * -8;
    for (int k = 0; k < INPUT_GROUP; k++)
        acc[k % 2] = fmaf(fmaf((float)code_at(code, l, k), d, m), x[k], acc[k % 2]);
}

static float dot(const struct weight *w, const struct input *in, int row, int r, enum prep prep)
{
    int groups = q4_groups(w);
    int l = row % CODEC_PANEL;
    int width = input_width(in, r / INPUT_BLOCK);
    float acc[2] = { 0, 0 };
    for (int g = 0; g < groups; g++) {
        size_t cell = (size_t)(row / CODEC_PANEL) * (size_t)groups + (size_t)g;
        const uint8_t *code = (const uint8_t *)w->plane[0] + cell * Q4_CODES;
        const uint16_t *number =
            (const uint16_t *)w->plane[1] + cell * (size_t)q4_numbers(w->variant);
        if (prep == PREP_I8) {
            char *rec = input_records(in, r / INPUT_BLOCK) + (size_t)(g * width) * INPUT_RECORD;
            acc[0] = group_i8(acc[0], code, number, l, rec, width, r % INPUT_BLOCK, w->variant);
        } else {
            const float *x = in->x + (size_t)r * (size_t)w->cols + (size_t)g * INPUT_GROUP;
            group_f32(acc, code, number, l, x, w->variant);
        }
    }
    return acc[0] + acc[1];
}

static void mul(const struct weight *w, const struct input *in, const float *bias, float *y,
                size_t ldy, int p0, int p1, enum prep prep)
{
    int end = p1 * CODEC_PANEL < w->rows ? p1 * CODEC_PANEL : w->rows;
    for (int r = 0; r < in->n; r++)
        for (int row = p0 * CODEC_PANEL; row < end; row++) {
            float v = dot(w, in, row, r, prep);
            y[(size_t)r * ldy + (size_t)row] = bias != NULL ? v + bias[row] : v;
        }
}

static void mul_f32(const struct weight *w, const struct input *in, const float *bias, float *y,
                    size_t ldy, int p0, int p1)
{
    mul(w, in, bias, y, ldy, p0, p1, PREP_F32);
}

static void mul_i8(const struct weight *w, const struct input *in, const float *bias, float *y,
                   size_t ldy, int p0, int p1)
{
    mul(w, in, bias, y, ldy, p0, p1, PREP_I8);
}

const struct codec_cpu q4_ref = { .mul = { [PREP_F32] = mul_f32, [PREP_I8] = mul_i8 } };
