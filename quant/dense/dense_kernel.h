/* The dense product, once for every ISA and element type: acc = fma(w, x, acc), inputs in rising order. Eight rows are
 * eight independent chains; with one row the chain's latency still passes 16 weights in four cycles, more than
 * memory delivers. */
#include "quant/dense/dense.h"
#include "quant/rowdot.h"

ROWDOT_INLINE v16 dense_load(const void *p, size_t at, int variant)
{
    if (variant == DENSE_F32)
        return v16_load((const float *)p + at);
    return variant == DENSE_F16 ? v16_f16((const uint16_t *)p + at)
                                : v16_bf16((const uint16_t *)p + at);
}

ROWDOT_INLINE void dense_panel(const struct weight *w, const struct input *in, int r0, int panel,
                               v16 *acc, int rows, int variant)
{
    size_t cols = (size_t)w->cols;
    size_t at = (size_t)panel * cols * CODEC_PANEL;
    const float *x = in->x + (size_t)r0 * cols;
    for (size_t k = 0; k < cols; k++) {
        v16 v = dense_load(w->plane[0], at + k * CODEC_PANEL, variant);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            acc[r] = v16_fma(v, v16_set1(x[(size_t)r * cols + k]), acc[r]);
    }
}

ROWDOT_INLINE void dense_block(const struct weight *w, const struct input *in, int r0, int panel,
                               v16 *acc, int rows)
{
    if (w->variant == DENSE_F32)
        dense_panel(w, in, r0, panel, acc, rows, DENSE_F32);
    else if (w->variant == DENSE_F16)
        dense_panel(w, in, r0, panel, acc, rows, DENSE_F16);
    else
        dense_panel(w, in, r0, panel, acc, rows, DENSE_BF16);
}

ROWDOT_MUL(dense_mul, dense_block)

const struct codec_cpu DENSE_TABLE = { .mul = { [PREP_F32] = dense_mul } };
