/* The definition of quant/tiledot.h in plain C, made of a codec's tile function: the macros of tiledot_kernel.h, for the file
 * that holds a codec's plain kernels.
 */
#ifndef WRING_QUANT_TILEDOT_REF_H
#define WRING_QUANT_TILEDOT_REF_H

#include <math.h>

#include "quant/tiledot.h"

enum { TILEDOT_REF_ROWS = 16 }; /* input rows that share an unpacked tile */

/* Lane l of a tile with the record of input row r. */
static inline float tiledot_ref_i8(float acc, const struct tile *t, int l, const struct input *in,
                                   int g, int r, struct tiledot how)
{
    int width = input_width(in, r / INPUT_BLOCK);
    char *rec = input_records(in, r / INPUT_BLOCK) + (size_t)(g * width) * INPUT_RECORD;
    for (int h = 0; h < 2; h++) {
        struct input_cell x = input_cell(rec, width, r % INPUT_BLOCK, h);
        int32_t s = 0;
        for (int k = 0; k < INPUT_HALF; k++)
            s += (t->code[4 * h + k / 4][l][k % 4] - how.offset) * x.q[k];
        float d = how.kind == TILE_ROW ? 1 : t->scale[how.kind == TILE_HALF ? h : 0][l];
        acc = fmaf((float)s, d * *x.scale, acc);
    }
    return how.has_base ? fmaf(t->base[l], *input_cell(rec, width, r % INPUT_BLOCK, 0).sum, acc)
                        : acc;
}

/* The same with f32 inputs x[32]; even and odd ones have sums of their own. */
static inline void tiledot_ref_f32(float acc[2], const struct tile *t, int l, const float *x,
                                   struct tiledot how)
{
    for (int k = 0; k < TILE_COLS; k++) {
        float c = (float)(t->code[k / 4][l][k % 4] - how.offset);
        float d =
            how.kind == TILE_ROW ? 1 : t->scale[how.kind == TILE_HALF ? k / INPUT_HALF : 0][l];
        float v = how.has_base ? fmaf(c, d, t->base[l]) : c * d;
        acc[k % 2] = fmaf(v, x[k], acc[k % 2]);
    }
}

/* All groups of rows [r0, r1) with lanes [a, b) of a unit: acc[row][lane] holds even and odd sums. */
static inline void tiledot_ref_unit(const struct weight *w, const struct input *in, tile_fn *fill,
                                    enum prep prep, struct tiledot how, int unit, int a, int b,
                                    int r0, int r1, float acc[][TILE_ROWS][2])
{
    struct tile t;
    for (int g = 0; g < w->cols / TILE_COLS; g++) {
        fill(w, unit, g, &t);
        for (int r = r0; r < r1; r++) {
            const float *x = in->x + (size_t)r * (size_t)w->cols + (size_t)g * TILE_COLS;
            for (int l = a; l < b; l++) {
                float *sum = acc[r - r0][l];
                if (prep == PREP_I8)
                    sum[0] = tiledot_ref_i8(sum[0], &t, l, in, g, r, how);
                else
                    tiledot_ref_f32(sum, &t, l, x, how);
            }
        }
    }
}

/* Some rows with the panels [p0, p1) of one unit. */
static inline void tiledot_ref_rows(const struct weight *w, const struct input *in,
                                    const float *bias, float *y, size_t ldy, int p0, int p1, int r0,
                                    int r1, tile_fn *fill, enum prep prep, tile_scale_fn *row_scale,
                                    struct tiledot how)
{
    float acc[TILEDOT_REF_ROWS][TILE_ROWS][2] = { 0 };
    int unit = p0 / TILE_PANELS;
    int first = unit * TILE_ROWS;
    int end = p1 * CODEC_PANEL < w->rows ? p1 * CODEC_PANEL : w->rows;
    tiledot_ref_unit(w, in, fill, prep, how, unit, p0 * CODEC_PANEL - first, end - first, r0, r1,
                     acc);
    for (int r = r0; r < r1; r++)
        for (int row = p0 * CODEC_PANEL; row < end; row++) {
            const float *sum = acc[r - r0][row - first];
            float v = prep == PREP_I8 ? sum[0] : sum[0] + sum[1];
            if (how.kind == TILE_ROW)
                v *= f16_to_f32(row_scale(w, row / CODEC_PANEL)[row % CODEC_PANEL]);
            y[(size_t)r * ldy + (size_t)row] = bias != NULL ? v + bias[row] : v;
        }
}

#define TILEDOT_MUL_I8(name, fill, kind, offset, has_base, row_scale)                              \
    TILEDOT_MUL(name, fill, PREP_I8, row_scale, kind, offset, has_base, false)
#define TILEDOT_MUL_I8_U5(name, fill, kind, has_base, row_scale)                                   \
    TILEDOT_MUL(name, fill, PREP_I8, row_scale, kind, 0, has_base, true)
#define TILEDOT_MUL_F32(name, fill, kind, offset, has_base, row_scale)                             \
    TILEDOT_MUL(name, fill, PREP_F32, row_scale, kind, offset, has_base, false)

#define TILEDOT_MUL(name, fill, prep, row_scale, ...)                                              \
    static void name(const struct weight *w, const struct input *in, const float *bias, float *y,  \
                     size_t ldy, int p0, int p1)                                                   \
    {                                                                                              \
        const struct tiledot how = { __VA_ARGS__ };                                                \
        for (int r = 0; r < in->n; r += TILEDOT_REF_ROWS) {                                        \
            int r1 = r + TILEDOT_REF_ROWS < in->n ? r + TILEDOT_REF_ROWS : in->n;                  \
            for (int p = p0, next; p < p1; p = next) {                                             \
                next = (p / TILE_PANELS + 1) * TILE_PANELS;                                        \
                next = next < p1 ? next : p1;                                                      \
                tiledot_ref_rows(w, in, bias, y, ldy, p, next, r, r1, fill, prep, row_scale, how); \
            }                                                                                      \
        }                                                                                          \
    }

#endif
