/* The pvq product in plain C, the definition: quant/tiledot.h says in which order it is summed. */
#include "quant/tiledot_ref.h"

#include "quant/pvq/pvq.h"

static void pvq_row_scales(const struct weight *w, int panel, float *scale)
{
    for (int l = 0; l < CODEC_PANEL; l++)
        scale[l] = f16_to_f32(pvq_scales(w, panel)[l]);
}

#include "quant/pvq/pvq_fill.inc"

const struct codec_cpu pvq_ref = { .mul = { [PREP_F32] = pvq_mul_f32, [PREP_I8] = pvq_mul_i8 } };
