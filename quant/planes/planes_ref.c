/* Tiles of planes in plain C, the definition. */
#include "quant/planes/planes.h"
#include "quant/tiledot_ref.h"

/* Byte i of line j: every plane adds its bits above those of the wider ones. */
static uint8_t code_at(const uint8_t *code, int j, int i, int bits)
{
    int c = 0;
    int at = 0;
    for (int width = 8; width > 0; width /= 2) {
        if ((bits & width) == 0)
            continue;
        int lines = 8 / width;
        int byte = code[j / lines * 64 + i];
        c |= (byte >> j % lines * width & ((1 << width) - 1)) << at;
        at += width;
        code += 64 * width;
    }
    return (uint8_t)c;
}

static void fill(const struct weight *w, int unit, int g, struct tile *t)
{
    int bits = planes_bits(w);
    const uint8_t *code = planes_codes_at(w, unit, g);
    const uint16_t *number = planes_numbers_at(w, unit, g * INPUT_GROUP);
    for (int p = 0; p < planes_height(w, unit); p++) {
        int lane = p * CODEC_PANEL;
        for (int j = 0; j < TILE_COLS / 4; j++)
            for (int i = 0; i < 4 * CODEC_PANEL; i++)
                t->code[j][lane + i / 4][i % 4] = code_at(code, j, i, bits);
        for (int l = 0; l < CODEC_PANEL; l++) {
            float d = f16_to_f32(number[l]);
            t->scale[0][lane + l] = bits == 1 ? 2 * d : d;
            t->base[lane + l] = bits == 1 ? -d : f16_to_f32(number[CODEC_PANEL + l]);
        }
        code += planes_codes(bits);
        number += planes_numbers(bits);
    }
}

#include "quant/planes/planes_mul.inc"

const struct codec_cpu planes_ref = { .mul = { [PREP_F32] = tiles_f32, [PREP_I8] = tiles_i8 } };
