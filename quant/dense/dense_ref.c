/* The dense product in plain C, the definition: acc = fma(w, x, acc), inputs in rising order, one sum
 * for the even inputs and one for the odd ones, added at the end. */
#include <math.h>

#include "quant/dense/dense.h"

static float element(const struct weight *w, size_t at)
{
    if (w->variant == DENSE_F32)
        return ((const float *)w->plane[0])[at];
    uint16_t half = ((const uint16_t *)w->plane[0])[at];
    return w->variant == DENSE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

static float dot(const struct weight *w, const float *x, int row)
{
    size_t at =
        (size_t)(row / CODEC_PANEL) * (size_t)w->cols * CODEC_PANEL + (size_t)(row % CODEC_PANEL);
    float acc[2] = { 0, 0 };
    for (int k = 0; k < w->cols; k++, at += CODEC_PANEL)
        acc[k % 2] = fmaf(element(w, at), x[k], acc[k % 2]);
    return acc[0] + acc[1];
}

static void mul_f32(const struct weight *w, const struct input *in, const float *bias, float *y,
                    size_t ldy, int p0, int p1)
{
    int end = p1 * CODEC_PANEL < w->rows ? p1 * CODEC_PANEL : w->rows;
    for (int r = 0; r < in->n; r++)
        for (int row = p0 * CODEC_PANEL; row < end; row++) {
            float v = dot(w, in->x + (size_t)r * (size_t)w->cols, row);
            y[(size_t)r * ldy + (size_t)row] = bias != NULL ? v + bias[row] : v;
        }
}

const struct codec_cpu dense_ref = { .mul = { [PREP_F32] = mul_f32 } };
