/* The q8 product, once for every ISA: each file that includes this is compiled with its own flags and exports the table
 * named Q8_TABLE. Order of sums: groups in rising order, acc = fma(sum of the group, w_scale * x_scale, acc). */
#include "quant/q8/q8.h"
#include "quant/rowdot.h"

ROWDOT_INLINE void q8_block_i8(const struct weight *w, const struct input *in, int r0, int panel,
                               v16 *acc, int rows)
{
    const struct input_i8 *x = in->prep[PREP_I8];
    int groups = q8_groups(w);
    size_t cell = (size_t)panel * (size_t)groups;
    const uint8_t *code = (const uint8_t *)w->plane[0] + cell * Q8_CODES;
    const uint16_t *scale = (const uint16_t *)w->plane[1] + cell * CODEC_PANEL;
    const int8_t *q = x->q + (size_t)r0 * (size_t)w->cols;
    size_t at = (size_t)r0 * (size_t)groups;

    for (int g = 0; g < groups; g++, code += Q8_CODES, scale += CODEC_PANEL) {
        v16q c[INPUT_GROUP / 4];
#pragma GCC unroll 8
        for (int j = 0; j < INPUT_GROUP / 4; j++) {
            c[j] = v16q_load(code + 64 * j);
            v16q_prefetch(code + 64 * j + 2048);
        }
        v16 d = v16_f16(scale);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const int8_t *xr = q + (size_t)r * (size_t)w->cols + (size_t)g * INPUT_GROUP;
            size_t i = at + (size_t)r * (size_t)groups + (size_t)g;
            v16i s = v16i_set1(-128 * x->isum[i]);
#pragma GCC unroll 8
            for (int j = 0; j < INPUT_GROUP / 4; j++)
                s = v16i_dp8(s, c[j], load_i32(xr + 4 * j));
            acc[r] = v16_fma(v16i_float(s), v16_mul(d, v16_set1(x->scale[i])), acc[r]);
        }
    }
}

ROWDOT_INLINE void q8_block_f32(const struct weight *w, const struct input *in, int r0, int panel,
                                v16 *acc, int rows)
{
    int groups = q8_groups(w);
    size_t cell = (size_t)panel * (size_t)groups;
    const uint8_t *code = (const uint8_t *)w->plane[0] + cell * Q8_CODES;
    const uint16_t *scale = (const uint16_t *)w->plane[1] + cell * CODEC_PANEL;
    const float *x = in->x + (size_t)r0 * (size_t)w->cols;

    for (int g = 0; g < groups; g++, code += Q8_CODES, scale += CODEC_PANEL) {
        v16 d = v16_f16(scale);
        v16 zero = v16_mul(d, v16_set1(-128));
        for (int k = 0; k < INPUT_GROUP; k++) {
            v16 v = v16_fma(v16q_byte(v16q_load(code + 64 * (k / 4)), k % 4), d, zero);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                acc[r] = v16_fma(
                    v, v16_set1(x[(size_t)r * (size_t)w->cols + (size_t)(g * INPUT_GROUP + k)]),
                    acc[r]);
        }
    }
}

ROWDOT_MUL(q8_mul_i8, q8_block_i8)
ROWDOT_MUL(q8_mul_f32, q8_block_f32)

const struct codec_cpu Q8_TABLE = { .mul = { [PREP_F32] = q8_mul_f32, [PREP_I8] = q8_mul_i8 } };
