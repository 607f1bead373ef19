/* The pvq product in plain C, the definition: quant/tiledot.h says in which order it is summed. */
#include "quant/tiledot_ref.h"

#include "quant/pvq/pvq.h"

static void pvq_fill_panel(const struct weight *w, const struct pvq_form *f, int panel, int group,
                           uint8_t *code, float *scale)
{
    const uint8_t *cell = pvq_cell(w, panel, group, f->bytes);
    for (int l = 0; l < CODEC_PANEL; l++) {
        int8_t y[PYRAMID_N];
        int level =
            pyramid_point(pyramid_tables(), f->k, f->levels, pvq_code(cell, l, f->bytes), y);
        for (int i = 0; i < PYRAMID_N; i++)
            code[i / 4 * PVQ_LINE + 4 * l + i % 4] = (uint8_t)(y[i] + PYRAMID_ZERO);
        scale[l] = pvq_scale(f->gain[level], f16_to_f32(pvq_scales(w, panel)[l]), pvq_norm2(y));
    }
}

static void pvq_fill(const struct weight *w, int unit, int g, struct tile *t)
{
    const struct pvq_form *f = &pvq_form[w->variant];
    int panels = weight_panels(w) - unit * TILE_PANELS;
    if (panels < TILE_PANELS)
        memset(t, 0, sizeof *t);
    for (int i = 0; i < panels && i < TILE_PANELS; i++) {
        int r = i * CODEC_PANEL;
        for (int h = 0; h < 2; h++)
            pvq_fill_panel(w, f, unit * TILE_PANELS + i, 2 * g + h, t->code[4 * h][r],
                           t->scale[h] + r);
    }
}

TILEDOT_MUL_F32(pvq_mul_f32, pvq_fill, TILE_HALF, PYRAMID_ZERO, false, tile_no_scale)
TILEDOT_MUL_I8(pvq_mul_i8, pvq_fill, TILE_HALF, PYRAMID_ZERO, false, tile_no_scale)

const struct codec_cpu pvq_ref = { .mul = { [PREP_F32] = pvq_mul_f32, [PREP_I8] = pvq_mul_i8 } };
