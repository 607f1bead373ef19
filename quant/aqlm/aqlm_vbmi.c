/* The aqlm product with int8 inputs for processors that look up bytes in four registers: codebooks of 256 entries of eight bytes.
 * Others are as with AVX-512. The sums are those of aqlm_ref.c.
 *
 * Byte t of 64 rows' entries is two look-ups in 128 bytes each and a choice by the code's top bit. So an input of the group is
 * unpacked for all rows of a tile before the next one, its bytes of both codebooks staying in eight registers, and then four
 * inputs are put side by side by unpacking bytes and words, for which codes are looked up in an order that has each panel's
 * rows come out together. Beside loads of entries (AVX-512) 2x8 g8 has 1.6 times the speed with one row, 1.4 times with
 * eight and 1.1 times with 512 (Zen 5).
 */
#include "quant/aqlm/aqlm.h"
#include "quant/tiledot_kernel.h"

enum {
    GROUP = 8,                    /* inputs of a code */
    GROUPS = TILE_COLS / GROUP,   /* of a tile */
    PARTS = 2,                    /* of a tile's rows */
    PANELS = TILE_PANELS / PARTS, /* of a part */
    ROWS = PANELS * CODEC_PANEL,  /* of a part: as many as a register has bytes */
    AHEAD = 256, /* bytes of a panel's codes between what is unpacked and what is fetched */
};

/* A tile's codes: byte 16 q + 4 k + r is that of row 4 q + r of panel k. */
struct codes {
    _Alignas(64) uint8_t at[GROUPS][PARTS][2][ROWS]; /* [codebook] */
};

/* Bytes of a tile, by its inputs and, in the order of the codes, its rows. */
struct bytes {
    _Alignas(64) uint8_t at[TILE_COLS][PARTS][ROWS];
};

/* The codes of a part's panels, `stride` bytes apart; those behind the last, n - 1, are its own once more. */
ROWDOT_INLINE void gather(const uint8_t *code, size_t stride, int n, uint8_t *out)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m128i panel[PANELS];
#pragma GCC unroll 4
    for (int k = 0; k < PANELS; k++)
        panel[k] = _mm_loadu_si128((const void *)(code + stride * (size_t)tiledot_least(k, n - 1)));
    v16q all = _mm512_castsi128_si512(panel[0]);
    all = _mm512_inserti32x4(all, panel[1], 1);
    all = _mm512_inserti32x4(all, panel[2], 2);
    all = _mm512_inserti32x4(all, panel[3], 3);
    v16q_store(out, _mm512_permutexvar_epi32(order, all));
}

/* Byte by byte the numbers of a table of 256. */
ROWDOT_INLINE v16q look(const v16q *table, v16q code)
{
    v16q low = _mm512_permutex2var_epi8(table[0], code, table[1]);
    v16q high = _mm512_permutex2var_epi8(table[2], code, table[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), low, high);
}

/* Input t of every group. */
ROWDOT_INLINE void look_all(const uint8_t *column, int books, int t, const struct codes *c,
                            struct bytes *b)
{
    v16q table[2][4];
#pragma GCC unroll 2
    for (int m = 0; m < books; m++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            table[m][i] = v16q_load(column + (m * GROUP + t) * 256 + 64 * i);
#pragma GCC unroll 1
    for (int j = 0; j < GROUPS; j++)
#pragma GCC unroll 2
        for (int h = 0; h < PARTS; h++) {
            v16q sum = look(table[0], v16q_load(c->at[j][h][0]));
            if (books == 2)
                sum = _mm512_add_epi8(sum, look(table[1], v16q_load(c->at[j][h][1])));
            v16q_store(b->at[j * GROUP + t][h], sum);
        }
}

/* Four inputs of a part to the lines of its panels. */
ROWDOT_INLINE void lines(const struct bytes *b, int k, int part, uint8_t (*row)[4])
{
    v16q a = v16q_load(b->at[k][part]);
    v16q c = v16q_load(b->at[k + 1][part]);
    v16q d = v16q_load(b->at[k + 2][part]);
    v16q e = v16q_load(b->at[k + 3][part]);
    v16q two[2][2] = { { _mm512_unpacklo_epi8(a, c), _mm512_unpacklo_epi8(d, e) },
                       { _mm512_unpackhi_epi8(a, c), _mm512_unpackhi_epi8(d, e) } };
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        v16q_store(row[2 * i * CODEC_PANEL], _mm512_unpacklo_epi16(two[i][0], two[i][1]));
        v16q_store(row[(2 * i + 1) * CODEC_PANEL], _mm512_unpackhi_epi16(two[i][0], two[i][1]));
    }
}

ROWDOT_INLINE void gather_all(const struct weight *w, int books, int panel, int g, struct codes *c)
{
    size_t cell = (size_t)books * CODEC_PANEL;
    size_t stride = (size_t)(w->cols / GROUP) * cell;
    int last = weight_panels(w) - 1;
    for (int h = 0; h < PARTS; h++, panel += PANELS) {
        int first = tiledot_least(panel, last);
        const uint8_t *code =
            (const uint8_t *)w->plane[0] + (size_t)first * stride + (size_t)(g * GROUPS) * cell;
        int n = tiledot_least(last + 1 - first, PANELS);
        for (int k = 0; k < n; k++)
            for (size_t i = 0; i < GROUPS * cell; i += 64)
                v16_prefetch(code + (size_t)k * stride + AHEAD + i);
        for (int j = 0; j < GROUPS; j++)
            for (int m = 0; m < books; m++)
                gather(code + (size_t)(j * books + m) * CODEC_PANEL, stride, n, c->at[j][h][m]);
    }
}

ROWDOT_INLINE void fill_books(const struct weight *w, int books, int unit, int g, struct tile *tile)
{
    struct codes c;
    struct bytes b;
    gather_all(w, books, unit * TILE_PANELS, g, &c);
#pragma GCC unroll 1
    for (int t = 0; t < GROUP; t++)
        look_all(aqlm_transposed(w), books, t, &c, &b);
#pragma GCC unroll 1
    for (int k = 0; k < TILE_COLS; k += 4)
#pragma GCC unroll 2
        for (int h = 0; h < PARTS; h++)
            lines(&b, k, h, tile->code[k / 4] + h * ROWS);
}

static void fill(const struct weight *w, int unit, int g, struct tile *tile)
{
    int panel = unit * TILE_PANELS;
    int n = tiledot_least(TILE_PANELS, weight_panels(w) - panel);
    v16 step = v16_set1(aqlm_head(w)->step);
    for (int i = 0; i < n; i++)
        v16_store(tile->scale[0] + i * CODEC_PANEL,
                  v16_mul(step, v16_f16(aqlm_scales(w) + (panel + i) * CODEC_PANEL)));
    if (aqlm_shape(w->variant).books == 2)
        fill_books(w, 2, unit, g, tile);
    else
        fill_books(w, 1, unit, g, tile);
}

TILEDOT_MUL_I8(mul_transposed, fill, TILE_GROUP, 128, false, tile_no_scale)

static void mul_i8(const struct weight *w, const struct input *in, const float *bias, float *y,
                   size_t ldy, int p0, int p1)
{
    if (aqlm_has_transposed(aqlm_shape(w->variant)))
        mul_transposed(w, in, bias, y, ldy, p0, p1);
    else
        aqlm_avx512.mul[PREP_I8](w, in, bias, y, ldy, p0, p1);
}

const struct codec_cpu aqlm_vbmi = { .mul = { [PREP_I8] = mul_i8 } };
