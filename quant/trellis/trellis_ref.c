/* The trellis product in plain C, the definition: a code is found symbol by symbol, the sums are those of quant/tiledot.h. */
#include <string.h>

#include "quant/tiledot_ref.h"
#include "quant/trellis/trellis.h"
#include "quant/trellis/viterbi.h"

/* The symbol of a row of a column whose bytes begin at p. */
static int symbol_of(const uint8_t *p, int bits, int rows, int row)
{
    int lanes = rows / trellis_fields(bits);
    int lane = row % lanes;
    int f = row / lanes;
    if (bits == 4)
        return p[lane * 4] >> 4 * f & 15;
    int low = p[lane * 4] >> 2 * f & 3;
    if (bits == 2)
        return low;
    int half = lanes / 2;
    return low | (p[(lanes + lane % half) * 4] >> (lane / half * 4 + f) & 1) << 2;
}

int trellis_code(const struct weight *w, int unit, int row, int col)
{
    int bits = w->variant;
    int rows = trellis_rows(w, unit);
    const uint8_t *p = trellis_codes(w, unit, col / 4) + col % 4;
    int position = trellis_position(bits, rows, row);
    uint8_t symbol[6];
    for (int i = 0; i < 12 / bits; i++)
        symbol[i] =
            (uint8_t)symbol_of(p, bits, rows, trellis_row(bits, rows, (position + i) % rows));
    return trellis_value(trellis_table_of(w), viterbi_window_at(bits, symbol, 6, 0));
}

static void fill(const struct weight *w, int unit, int g, struct tile *t)
{
    memset(t, 0, sizeof *t);
    for (int row = 0; row < trellis_rows(w, unit); row++)
        for (int k = 0; k < TILE_COLS; k++)
            t->code[k / 4][row][k % 4] = (uint8_t)trellis_code(w, unit, row, g * TILE_COLS + k);
}

TILEDOT_MUL_I8(mul_i8, fill, TILE_ROW, TRELLIS_ZERO, false, trellis_scales)
TILEDOT_MUL_F32(mul_f32, fill, TILE_ROW, TRELLIS_ZERO, false, trellis_scales)

const struct codec_cpu trellis_ref = { .mul = { [PREP_F32] = mul_f32, [PREP_I8] = mul_i8 } };
tile_fn *const trellis_fill_ref = fill;
