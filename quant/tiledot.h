/* The skeleton of products with weights that have to be unpacked first: a tile of up to 128 outputs by 32 inputs is unpacked
 * to bytes once and multiplied with every input row while it is in the first-level cache.
 *
 * A codec says what a tile holds; the sums are the same for all of them. A tile gives codes c, 0 <= c < 128 (c < 256 with
 * an offset of 128), an offset of 0, 64 or 128, and by its kind
 *
 *   TILE_ROW     w = (c - offset) * one f16 scale of the row, applied at the end
 *   TILE_GROUP   w = (c - offset) * scale[0][row] + base[row]      the group's 32 inputs share scale and base
 *   TILE_HALF    w = (c - offset) * scale[half][row]               each half of 16 inputs has a scale
 *
 * Int8 inputs (records of quant/input.h), groups in rising order, the first half of a group before the second:
 *   s = sum(c * x) - offset * sum(x) over the half            in integers
 *   acc = fma(s, d * x_scale, acc)                            d = scale[0 or half][row]; TILE_ROW: acc = fma(s, x_scale, acc)
 *   TILE_GROUP with a base: acc = fma(base, sum of the group's record, acc) after both halves
 * f32 inputs: acc[k % 2] = fma(w, x[k], acc[k % 2]) with k rising, w rounded once: (c - offset) exactly for TILE_ROW, else
 *   (c - offset) * d, or fma(c - offset, d, base) with a base; the sums are added at the end.
 * At the end TILE_ROW multiplies by the row's scale; then the bias is added. One order whatever the number of rows, so
 * products are batch-invariant; plain C (tiledot_ref.h) gives the same bits as the vector
 * kernels (tiledot_kernel.h).
 */
#ifndef WRING_QUANT_TILEDOT_H
#define WRING_QUANT_TILEDOT_H

#include "quant/input.h"

enum { TILE_PANELS = 8, TILE_ROWS = TILE_PANELS * CODEC_PANEL, TILE_COLS = INPUT_GROUP };
enum tile_kind { TILE_ROW, TILE_GROUP, TILE_HALF };

struct tile {
    /* line j of row r: inputs 4j ... 4j + 3; aligned, for loads across cache lines cost 5 to 15 % of a product */
    uint8_t code[TILE_COLS / 4][TILE_ROWS][4] __attribute__((aligned(64)));
    float scale[2][TILE_ROWS];
    float base[TILE_ROWS];
};

/* What a codec says of all its tiles. */
struct tiledot {
    enum tile_kind kind;
    int offset;
    bool has_base; /* of TILE_GROUP */
    bool narrow;   /* codes are below 32, the offset 0: the same sums with fewer operations */
};

/* Fills t with rows [128 unit, 128 unit + 128) and inputs [32 g, 32 g + 32) of w. Rows that w does not have may get any
 * codes below 128 and any finite numbers. */
typedef void tile_fn(const struct weight *w, int unit, int g, struct tile *t);

/* The sixteen f16 scales of a panel's rows; tile_no_scale where kind is not TILE_ROW. */
typedef const uint16_t *tile_scale_fn(const struct weight *w, int panel);
static inline const uint16_t *tile_no_scale(const struct weight *w, int panel)
{
    (void)w;
    (void)panel;
    return NULL;
}

#endif
