/* The aqlm products in plain C, the definition. Int8 inputs: tiles of quant/tiledot.h whose codes are the integer
 * codebooks' sums of bytes, or the high bytes of their sums of 16 bits. f32 inputs: acc[k % 2] = fma(w, x[k], acc[k % 2])
 * with w of decode() and k rising, the two added. */
#include <math.h>

#include "quant/aqlm/aqlm.h"
#include "quant/tiledot_ref.h"

/* Input t of a group, as a code of a tile. */
static uint8_t tile_code(const struct weight *w, struct aqlm_shape s, int panel, int j, int r,
                         int t)
{
    bool bytes = aqlm_fast_bytes(s) == 1;
    unsigned sum = 0;
    for (int m = 0; m < s.books; m++) {
        const uint8_t *code = aqlm_codes(w, s, panel, j, m);
        size_t at = aqlm_entry(code, s, r, m) * (size_t)s.group + (size_t)t;
        sum += bytes ? ((const uint8_t *)aqlm_fast(w))[at] : ((const uint16_t *)aqlm_fast(w))[at];
    }
    return (uint8_t)(bytes ? sum : sum >> 8);
}

static void fill(const struct weight *w, int unit, int g, struct tile *t)
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    for (int i = 0; i < TILE_ROWS; i++) {
        int panel = unit * TILE_PANELS + i / CODEC_PANEL;
        if (panel * CODEC_PANEL >= w->rows)
            return;
        for (int k = 0; k < TILE_COLS; k++) {
            int col = g * TILE_COLS + k;
            t->code[k / 4][i][k % 4] =
                tile_code(w, s, panel, col / s.group, i % CODEC_PANEL, col % s.group);
        }
        t->scale[0][i] = aqlm_head(w)->step * f16_to_f32(aqlm_scales(w)[unit * TILE_ROWS + i]);
    }
}

TILEDOT_MUL_I8(mul_i8, fill, TILE_GROUP, 128, false, tile_no_scale)

/* ---- f32 inputs -------------------------------------------------------------------------------------------------- */

enum { ROWS = 16 }; /* input rows that share a decoded group */

/* Output `row` of n <= ROWS input rows from `first` on. */
static void dots(const struct weight *w, const struct input *in, int row, int first, int n,
                 float acc[ROWS][2])
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    float v[AQLM_GROUP_MAX];
    for (int j = 0; j < w->cols / s.group; j++) {
        aqlm_decode_group(w, s, row, j, v);
        for (int r = 0; r < n; r++) {
            const float *x = in->x + (size_t)(first + r) * (size_t)w->cols + j * s.group;
            for (int t = 0; t < s.group; t++)
                acc[r][t % 2] = fmaf(v[t], x[t], acc[r][t % 2]);
        }
    }
}

static void mul_f32(const struct weight *w, const struct input *in, const float *bias, float *y,
                    size_t ldy, int p0, int p1)
{
    int end = p1 * CODEC_PANEL < w->rows ? p1 * CODEC_PANEL : w->rows;
    for (int row = p0 * CODEC_PANEL; row < end; row++)
        for (int first = 0; first < in->n; first += ROWS) {
            int n = in->n - first < ROWS ? in->n - first : ROWS;
            float acc[ROWS][2] = { 0 };
            dots(w, in, row, first, n, acc);
            for (int r = 0; r < n; r++) {
                float v = acc[r][0] + acc[r][1];
                y[(size_t)(first + r) * ldy + (size_t)row] = bias != NULL ? v + bias[row] : v;
            }
        }
}

const struct codec_cpu aqlm_ref = { .mul = { [PREP_F32] = mul_f32, [PREP_I8] = mul_i8 } };
