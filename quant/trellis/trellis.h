/* The trellis codec's own: its tables, shapes of its planes, and its kernels per ISA. The format is in trellis.c. */
#ifndef WRING_QUANT_TRELLIS_TRELLIS_H
#define WRING_QUANT_TRELLIS_TRELLIS_H

#include "quant/tiledot.h"

enum {
    TRELLIS_UNIT = TILE_ROWS, /* rows of a stream */
    TRELLIS_ZERO = 64,        /* the code of the weight 0 */
    TRELLIS_LEAST = 2,        /* bits, which are the variant too */
    TRELLIS_MOST = 4
};

/* code = s[n0 ^ q[n1] ^ r[n2]] + m[n2], below 128. */
struct trellis_table {
    float step; /* of a code, in standard deviations of normally distributed weights */
    uint8_t q[16], r[16];
    uint8_t s[16], m[16];
};
extern const struct trellis_table trellis_table[TRELLIS_MOST - TRELLIS_LEAST + 1]; /* table.c */

static inline const struct trellis_table *trellis_table_of(const struct weight *w)
{
    return &trellis_table[w->variant - TRELLIS_LEAST];
}
/* The code of a window, n0 in its low bits. */
CODEC_CONSTEXPR CODEC_INLINE int trellis_value(const struct trellis_table *t, int window)
{
    int n2 = window >> 8;
    return t->s[(window & 15) ^ t->q[window >> 4 & 15] ^ t->r[n2]] + t->m[n2];
}
/* Positions of a stream that a lane (a byte of the codes) holds. */
static inline int trellis_fields(int bits)
{
    return bits == 4 ? 2 : 4;
}
/* Lines that a quad's lanes are dealt out to. */
static inline int trellis_lines(int bits)
{
    return bits == 4 ? 4 : 2;
}
/* The row of a stream's position, in a unit of so many rows; and back. */
static inline int trellis_row(int bits, int rows, int position)
{
    int lane = position / trellis_fields(bits);
    int width = rows / (trellis_fields(bits) * trellis_lines(bits));
    int line = position % trellis_fields(bits) * trellis_lines(bits) + lane % trellis_lines(bits);
    return line * width + lane / trellis_lines(bits);
}
static inline int trellis_position(int bits, int rows, int row)
{
    int width = rows / (trellis_fields(bits) * trellis_lines(bits));
    int line = row / width;
    int lane = row % width * trellis_lines(bits) + line % trellis_lines(bits);
    return lane * trellis_fields(bits) + line / trellis_lines(bits);
}
/* Rows of a unit: 128, in the last one what is left, whole panels. */
static inline int trellis_rows(const struct weight *w, int unit)
{
    int left = w->rows - unit * TRELLIS_UNIT;
    return left < TRELLIS_UNIT ? (left + CODEC_PANEL - 1) / CODEC_PANEL * CODEC_PANEL
                               : TRELLIS_UNIT;
}
/* Bytes of four columns of a unit. */
static inline size_t trellis_quad(int bits, int rows)
{
    return (size_t)(rows * bits / 2);
}
/* The quad of columns 4i ... 4i + 3. */
static inline uint8_t *trellis_codes(const struct weight *w, int unit, int i)
{
    size_t before = (size_t)unit * trellis_quad(w->variant, TRELLIS_UNIT) * (size_t)(w->cols / 4);
    return (uint8_t *)w->plane[0] + before +
           (size_t)i * trellis_quad(w->variant, trellis_rows(w, unit));
}
/* The scales of a panel. */
static inline const uint16_t *trellis_scales(const struct weight *w, int panel)
{
    return (const uint16_t *)w->plane[1] + panel * CODEC_PANEL;
}
/* One code, symbol by symbol: the definition. */
int trellis_code(const struct weight *w, int unit, int row, int col);

extern const struct codec codec_trellis;
extern const struct codec_cpu trellis_ref, trellis_avx2, trellis_avx512;
extern const struct codec_cuda trellis_cuda;
/* What their products are made of, for tests. */
extern tile_fn *const trellis_fill_ref, *const trellis_fill_avx2, *const trellis_fill_avx512;

#endif
