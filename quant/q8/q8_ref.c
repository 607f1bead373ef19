/* The q8 product in plain C, the definition: groups in rising order, the first half of a group before the second: acc = fma(sum of
 * the half, w_scale * x_scale, acc).
 * With f32 inputs acc = fma(w, x, acc), inputs in rising order, one sum for the even inputs and one for the odd
 * ones, added at the end; w = fma(code, scale, -128 * scale). */
#include <math.h>

#include "quant/q8/q8.h"

static float group_i8(float acc, const uint8_t *code, float d, char *rec, int width, int r)
{
    for (int h = 0; h < 2; h++) {
        struct input_cell x = input_cell(rec, width, r, h);
        int32_t s = *x.neg128;
        for (int k = 0; k < INPUT_HALF; k++)
            s += code[(4 * h + k / 4) * 64 + k % 4] * x.q[k];
        acc = fmaf((float)s, d * *x.scale, acc);
    }
    return acc;
}

static void group_f32(float *acc, const uint8_t *code, float d, const float *x)
{
    for (int k = 0; k < INPUT_GROUP; k++) {
        int c = code[k / 4 * 64 + k % 4];
        acc[k % 2] = fmaf(fmaf((float)c, d, d * -128), x[k], acc[k % 2]);
    }
}

static float dot(const struct weight *w, const struct input *in, int row, int r, enum prep prep)
{
    int groups = q8_groups(w);
    int l = row % CODEC_PANEL;
    int width = input_width(in, r / INPUT_BLOCK);
    float acc[2] = { 0, 0 };
    for (int g = 0; g < groups; g++) {
        size_t cell = (size_t)(row / CODEC_PANEL) * (size_t)groups + (size_t)g;
        const uint8_t *code = (const uint8_t *)w->plane[0] + cell * Q8_CODES + l * 4;
        float d = f16_to_f32(((const uint16_t *)w->plane[1])[cell * CODEC_PANEL + (size_t)l]);
        if (prep == PREP_I8) {
            char *rec = input_records(in, r / INPUT_BLOCK) + (size_t)(g * width) * INPUT_RECORD;
            acc[0] = group_i8(acc[0], code, d, rec, width, r % INPUT_BLOCK);
        } else {
            group_f32(acc, code, d, in->x + (size_t)r * (size_t)w->cols + (size_t)g * INPUT_GROUP);
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

const struct codec_cpu q8_ref = { .mul = { [PREP_F32] = mul_f32, [PREP_I8] = mul_i8 } };
