/* trellis: 2, 3 or 4 bits a weight and one f16 scale a row, for rotated inputs (quant/rotate.h).
 *
 * A weight's value depends on the bits of its neighbours too: it is read from a window of 12 bits of which only 2 to 4 are its
 * own, so a weight chooses from many values at the price of few bits (trellis-coded quantisation, QTIP, arXiv 2406.11235). A
 * window is three nibbles n0, n1, n2, and two look-ups in tables of 16 entries and two more for the sum make the weight:
 *
 *      code = S[n0 ^ Q[n1] ^ R[n2]] + M[n2]      0 <= code < 128      weight = (code - 64) * scale of the row
 *
 * M is zero at 2 bits. 16 bytes are what every processor's byte shuffle looks up, and the value has less error than that of
 * one table of 256 entries for a window of 8 bits (.0742 instead of .0787 of the variance at 2 bits; no code is below .0625).
 *
 * A stream is one column, one input, over the rows of a unit: 128 rows, in the last unit what is left, whole panels. It is
 * circular: windows of the last positions run on into the first. So units and columns stand alone, and feedback from column
 * to column stays exact (quant/feedback.h). A circle costs the more the shorter it is: at 2 bits .0740 of the variance with 128
 * rows, .0765 with 64, .0875 with 32, .1325 with 16. Position p has a symbol u[p] of the weight's own bits; its window is
 *
 *      2 bits   n0 = u[p] u[p+1]    n1 = u[p+2] u[p+3]    n2 = u[p+4] u[p+5]               the first one lowest
 *      3 bits   n0 = a[p] a[p+1]    n1 = a[p+2] a[p+3]    n2 = b[p] b[p+1] b[p+2] b[p+3]   u = a + 4 b, a of 2 bits
 *      4 bits   n0 = u[p]           n1 = u[p+1]           n2 = u[p+2]
 *
 * A lane is F symbols that follow each other, F = 4, at 4 bits 2: a byte (at 3 bits of their a). Lanes are dealt out to G = 2
 * lines in turn, at 4 bits to 4: lane i is place i / G of line i % G. So the lane that follows is at the same place of the next
 * line, and only behind the last line are lanes turned by one. With W = rows / (F G) places a line (16 in a full unit), the
 * symbol f of place l of line j belongs to row (f G + j) W + l of the unit.
 *
 *   plane 0, codes    unit after unit, in it columns by four, a quad: rows * bits / 2 bytes
 *                       byte (j W + l) * 4 + c        column c of the quad, the lane's F symbols, the first one lowest
 *                       byte (2 W + l) * 4 + c        at 3 bits: four b of place l, line 0, in the high nibble of line 1
 *   plane 1, scales   f16 of each row, whole panels
 *
 *      a full quad, 2 bits:   [ line 0: 16 lanes x 4 columns ][ line 1 ]           lines of 64 bytes
 *                     3 bits: [ line 0 ][ line 1 ][ b of both ]
 *                     4 bits: [ line 0 ][ line 1 ][ line 2 ][ line 3 ]
 *
 * Field f of a line gives sixteen rows that follow each other, four columns each: a line of quant/tiledot.h.
 */
#include <math.h>
#include <string.h>

#include "quant/feedback.h"
#include "quant/rotate.h"
#include "quant/trellis/trellis.h"
#include "quant/trellis/viterbi.h"
#include "server/base/mem.h"

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

static int bits_of(const char *word)
{
    static const char *const words[] = { "trellis2", "trellis3", "trellis4" };
    for (int i = 0; i < 3 && word != NULL; i++)
        if (strcmp(word, words[i]) == 0)
            return TRELLIS_LEAST + i;
    return 0;
}

static bool knows_trellis(const char *word)
{
    return bits_of(word) != 0;
}

static int fits_trellis(const char *name, enum dtype from, int rows, int cols, int *variant)
{
    (void)from;
    (void)rows;
    *variant = bits_of(name);
    return *variant != 0 && cols % INPUT_GROUP == 0 ? 1 : 0;
}

static const char *form_trellis(const struct weight *w)
{
    return w->variant == 2 ? "trellis2" : w->variant == 3 ? "trellis3" : "trellis4";
}

static void size_trellis(const struct weight *w, size_t bytes[CODEC_PLANES])
{
    size_t panels = (size_t)weight_panels(w);
    bytes[0] = panels * trellis_quad(w->variant, CODEC_PANEL) * (size_t)(w->cols / 4);
    bytes[1] = panels * CODEC_PANEL * sizeof(uint16_t);
}

/* ---- one stream -------------------------------------------------------------------------------------------------- */

static void put_symbols(struct weight *w, int unit, int col, const uint8_t *symbol)
{
    int bits = w->variant;
    int rows = trellis_rows(w, unit);
    int lanes = rows / trellis_fields(bits);
    uint8_t *p = trellis_codes(w, unit, col / 4) + col % 4;
    for (int i = 0; i < (bits == 3 ? lanes + lanes / 2 : lanes); i++)
        p[i * 4] = 0;
    for (int row = 0; row < rows; row++) {
        int u = symbol[trellis_position(bits, rows, row)];
        int lane = row % lanes;
        int f = row / lanes;
        p[lane * 4] |= (uint8_t)(bits == 4 ? u << 4 * f : (u & 3) << 2 * f);
        if (bits == 3)
            p[(lanes + lane % (lanes / 2)) * 4] |=
                (uint8_t)(u >> 2 << (lane / (lanes / 2) * 4 + f));
    }
}

static void open_search(struct viterbi *v, const struct trellis_table *t, int bits,
                        enum cpu_isa isa)
{
    float value[256];
    for (int i = 0; i < 256; i++)
        value[i] = (float)(t->s[i % 16] + t->m[i / 16] - TRELLIS_ZERO);
    viterbi_open(v, bits, t->q, t->r, value, isa);
}

/* Codes of column col of a unit nearest to x / scale; x: of its first n rows, apart from each other; the rows after them are
 * zeros. q, when not NULL: what the rows become. */
static void press_column(struct weight *w, struct viterbi *v, int unit, int col, const float *x,
                         size_t apart, int n, const float *scale, float *q)
{
    const struct trellis_table *t = trellis_table_of(w);
    int bits = w->variant;
    int rows = trellis_rows(w, unit);
    float stream[TRELLIS_UNIT];
    uint8_t symbol[TRELLIS_UNIT];
    for (int row = 0; row < rows; row++)
        stream[trellis_position(bits, rows, row)] =
            row < n && scale[row] > 0 ? x[(size_t)row * apart] / scale[row] : 0;
    viterbi_run(v, stream, rows, symbol);
    put_symbols(w, unit, col, symbol);
    for (int row = 0; row < n && q != NULL; row++) {
        int position = trellis_position(bits, rows, row);
        int code = trellis_value(t, viterbi_window_at(bits, symbol, rows, position));
        q[row] = (float)(code - TRELLIS_ZERO) * scale[row];
    }
}

/* ---- encode ------------------------------------------------------------------------------------------------------ */

static float root_mean_square(const float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return (float)sqrt(sum / n);
}

/* As f16 keeps it, finite and not a number that is none: what the codes are then made for. */
static float to_scale(struct weight *w, int row, float scale)
{
    uint16_t half = f32_to_f16(scale < 65504 ? scale : scale >= 65504 ? 65504 : 0);
    ((uint16_t *)w->plane[1])[row] = half;
    return f16_to_f32(half);
}

static void first_scales(struct weight *w, int row0, int n, const float *src, float *scale)
{
    float step = trellis_table_of(w)->step;
    for (int i = 0; i < n; i++)
        scale[i] = to_scale(w, row0 + i,
                            step * root_mean_square(src + (size_t)i * (size_t)w->cols, w->cols));
}

/* The search lives on the stack, some 280 KB: encoding cannot fail. */
static void encode_trellis(struct weight *w, int row0, int n, const float *src)
{
    struct viterbi v;
    float scale[TRELLIS_UNIT];
    open_search(&v, trellis_table_of(w), w->variant, cpu_isa_best());
    for (int at = 0; at < n; at += TRELLIS_UNIT) {
        const float *x = src + (size_t)at * (size_t)w->cols;
        int some = n - at < TRELLIS_UNIT ? n - at : TRELLIS_UNIT;
        first_scales(w, row0 + at, some, x, scale);
        for (int col = 0; col < w->cols; col++)
            press_column(w, &v, (row0 + at) / TRELLIS_UNIT, col, x + col, (size_t)w->cols, some,
                         scale, NULL);
    }
}

/* ---- press ------------------------------------------------------------------------------------------------------- */

struct press {
    struct weight *w;
    int row0;
    float *scale; /* [n] */
    struct viterbi *v;
};

static void next_column(void *arg, int j0, int b, int n, const float *x, const float *metric,
                        float *q)
{
    struct press *p = arg;
    (void)b;
    (void)metric;
    for (int at = 0; at < n; at += TRELLIS_UNIT) {
        int some = n - at < TRELLIS_UNIT ? n - at : TRELLIS_UNIT;
        press_column(p->w, p->v, (p->row0 + at) / TRELLIS_UNIT, j0, x + at, 1, some, p->scale + at,
                     q + at);
    }
}

/* Column after column with feedback, then the scales that suit the codes best. room: x, w and q, [cols][n] each. */
static int press_rows(struct press *p, int n, const float *src, const struct moments *m,
                      float *room, struct err *e)
{
    size_t size = (size_t)n * (size_t)p->w->cols;
    float *x = room;
    float *w = room + size;
    float *q = room + 2 * size;
    float *factor = x;
    first_scales(p->w, p->row0, n, src, p->scale);
    feedback_turn(src, x, n, p->w->cols);
    memcpy(w, x, size * sizeof *w);
    TRY(feedback_run(m, x, q, n, 1, next_column, p, e));
    TRY(feedback_refit(m, w, q, n, factor, e));
    for (int i = 0; i < n; i++)
        to_scale(p->w, p->row0 + i, p->scale[i] * factor[i]);
    return 0;
}

static int press_trellis(struct weight *w, int row0, int n, const float *src,
                         const struct moments *m, struct err *e)
{
    size_t size = (size_t)n * (size_t)w->cols;
    float *room = mem_alloc((3 * size + (size_t)n) * sizeof *room);
    struct viterbi *v = mem_map(sizeof *v);
    int rc = 0;
    if (room == NULL || v == NULL) {
        rc = err_set(e, ERR_NOMEM, "no memory to press %d rows of %d", n, w->cols);
    } else {
        struct press p = { w, row0, room + 3 * size, v };
        open_search(v, trellis_table_of(w), w->variant, m->isa);
        rc = press_rows(&p, n, src, m, room, e);
    }
    if (v != NULL)
        mem_unmap(v, sizeof *v);
    mem_free(room);
    return rc;
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static void decode_trellis(const struct weight *w, int row, float *dst)
{
    float scale = f16_to_f32(((const uint16_t *)w->plane[1])[row]);
    for (int col = 0; col < w->cols; col++)
        dst[col] =
            (float)(trellis_code(w, row / TRELLIS_UNIT, row % TRELLIS_UNIT, col) - TRELLIS_ZERO) *
            scale;
    rotate_back(CPU_REF, dst, dst, 1, w->cols);
}

static void rescale_trellis(struct weight *w, int row, float factor)
{
    uint16_t *scale = (uint16_t *)w->plane[1] + row;
    *scale = f16_scale(*scale, factor);
}

const struct codec codec_trellis = {
    .name = "trellis",
    .step = TRELLIS_UNIT / CODEC_PANEL,
    .rotated = true,
    .knows = knows_trellis,
    .fits = fits_trellis,
    .size = size_trellis,
    .encode = encode_trellis,
    .press = press_trellis,
    .plane_name = { "codes", "scales" },
    .decode = decode_trellis,
    .rescale = rescale_trellis,
    .form = form_trellis,
    .cpu = { &trellis_ref, &trellis_avx2, &trellis_avx512, NULL },
    .cuda = CODEC_CUDA(trellis_cuda),
};
