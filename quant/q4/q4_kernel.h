/* The q4 product, once for every ISA: each file that includes this is compiled with its own flags and exports the table
 * named Q4_TABLE. Order of sums: groups in rising order, acc = fma(sum of the group, w_scale * x_scale, acc), then in
 * q4m acc = fma(minimum, x_scale * sum(x), acc). */
#include "quant/q4/q4.h"
#include "quant/rowdot.h"

ROWDOT_INLINE void q4_group_i8(const struct weight *w, const struct input_i8 *x, const v16q *c,
                               const uint16_t *number, const int8_t *q, size_t at, int g, v16 *acc,
                               int rows, int variant)
{
    size_t groups = (size_t)q4_groups(w);
    v16 d = v16_f16(number);
    v16 m = v16_f16(number + (variant == Q4_MIN ? CODEC_PANEL : 0));
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const int8_t *xr = q + (size_t)r * (size_t)w->cols + (size_t)g * INPUT_GROUP;
        size_t i = at + (size_t)r * groups + (size_t)g;
        v16i s = v16i_set1(variant == Q4_MIN ? 0 : -8 * x->isum[i]);
#pragma GCC unroll 8
        for (int j = 0; j < INPUT_GROUP / 4; j++)
            s = v16i_dp4(s, c[j], load_i32(xr + 4 * j));
        acc[r] = v16_fma(v16i_float(s), v16_mul(d, v16_set1(x->scale[i])), acc[r]);
        if (variant == Q4_MIN)
            acc[r] = v16_fma(m, v16_set1(x->sum[i]), acc[r]);
    }
}

ROWDOT_INLINE void q4_panel_i8(const struct weight *w, const struct input *in, int r0, int panel,
                               v16 *acc, int rows, int variant)
{
    const struct input_i8 *x = in->prep[PREP_I8];
    int groups = q4_groups(w);
    size_t cell = (size_t)panel * (size_t)groups;
    const uint8_t *code = (const uint8_t *)w->plane[0] + cell * Q4_CODES;
    const uint16_t *number = (const uint16_t *)w->plane[1] + cell * (size_t)q4_numbers(variant);
    const int8_t *q = x->q + (size_t)r0 * (size_t)w->cols;
    size_t at = (size_t)r0 * (size_t)groups;

    for (int g = 0; g < groups; g++, code += Q4_CODES, number += q4_numbers(variant)) {
        v16q c[INPUT_GROUP / 4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            v16q both = v16q_load(code + 64 * j);
            v16q_prefetch(code + 64 * j + 2048);
            c[j] = v16q_lo(both);
            c[j + 4] = v16q_hi(both);
        }
        q4_group_i8(w, x, c, number, q, at, g, acc, rows, variant);
    }
}

ROWDOT_INLINE void q4_block_i8(const struct weight *w, const struct input *in, int r0, int panel,
                               v16 *acc, int rows)
{
    if (w->variant == Q4_MIN)
        q4_panel_i8(w, in, r0, panel, acc, rows, Q4_MIN);
    else
        q4_panel_i8(w, in, r0, panel, acc, rows, Q4_PLAIN);
}

ROWDOT_INLINE void q4_block_f32(const struct weight *w, const struct input *in, int r0, int panel,
                                v16 *acc, int rows)
{
    int groups = q4_groups(w);
    size_t cell = (size_t)panel * (size_t)groups;
    const uint8_t *code = (const uint8_t *)w->plane[0] + cell * Q4_CODES;
    const uint16_t *number = (const uint16_t *)w->plane[1] + cell * (size_t)q4_numbers(w->variant);
    const float *x = in->x + (size_t)r0 * (size_t)w->cols;

    for (int g = 0; g < groups; g++, code += Q4_CODES, number += q4_numbers(w->variant)) {
        v16 d = v16_f16(number);
        v16 m = w->variant == Q4_MIN ? v16_f16(number + CODEC_PANEL) : v16_mul(d, v16_set1(-8));
        for (int k = 0; k < INPUT_GROUP; k++) {
            v16q both = v16q_load(code + 64 * (k % 16 / 4));
            v16q c = k < 16 ? v16q_lo(both) : v16q_hi(both);
            v16 v = v16_fma(v16q_byte(c, k % 4), d, m);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                acc[r] = v16_fma(
                    v, v16_set1(x[(size_t)r * (size_t)w->cols + (size_t)(g * INPUT_GROUP + k)]),
                    acc[r]);
        }
    }
}

ROWDOT_MUL(q4_mul_i8, q4_block_i8)
ROWDOT_MUL(q4_mul_f32, q4_block_f32)

const struct codec_cpu Q4_TABLE = { .mul = { [PREP_F32] = q4_mul_f32, [PREP_I8] = q4_mul_i8 } };
