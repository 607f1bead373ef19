/* planes: 1 to 8 bits in bit planes, with an f16 scale and minimum for every group of 32, 64 or 128 inputs of a row.
 *
 *   w = code * scale + minimum              "planes2" ... "planes7": groups of 64; "planes3g32", "planes3g128": of others
 *   w = (code - 128) * scale + middle       "planes8"
 *   w = +-scale                             "planes1": no minimum
 *
 * Bits a weight (exact where rows are a multiple of 16):
 *
 *   bits        1      2     3     4     5     6     7     8
 *   groups 32   1.5    3     4     5     6     7     8     9
 *          64   1.25   2.5   3.5   4.5   5.5   6.5   7.5   8.5
 *         128   1.125  2.25  3.25  4.25  5.25  6.25  7.25  8.25
 *
 * A code of b bits is cut as b is written in binary, into planes of 8, 4, 2 and 1 bits, so one kernel unpacks every width,
 * which may then differ from matrix to matrix: 3 is a plane of 2 bits below one of 1, 7 is 4, 2 and 1. In a plane of 2 bits
 * each byte has the bits of four lines of a tile (quant/tiledot.h), in one of 1 bit of eight: a line is a shift, a mask
 * and an or of whole registers for each plane.
 *
 *   units of 128 rows (8 panels of 16; fewer in the last), so that a product reads one stream
 *   plane 0, codes     [unit][group of 32 inputs][panel], there for each plane of W bits, the widest first, W * 64 bytes:
 *                      register i = 0 .. W - 1, byte r * 4 + b: from bit W * j on, j = 0 .. 8 / W - 1, the bits of
 *                      w[16p + r][32g + 4 (8 / W * i + j) + b]
 *                      the bits of wider planes are the lower ones of a code
 *   plane 1, numbers   f16 [unit][group][panel][16 scales, then 16 minima]
 *
 * Encoding normally distributed weights in groups of 64 costs, relative to their norm, 59 % with 1 bit, 32 % with 2, 16.7 %
 * with 3, 8.3 % with 4, 0.5 % with 8 (tests/unit/test_planes.c). Where inputs are correlated, press()
 * (GPTQ, arXiv 2210.17323) spends the same bits better: a group's scale and minimum are found when its first column's
 * turn comes, from columns as they are then, weighted by what an error of each will cost. Those of the next stretch of
 * error feedback have not been told of this one's errors yet: waiting for that gains nothing.
 *
 * Columns go in the order of moments_reorder, so that groups stay together. On stories15M in groups of 32 that has KL 0.714
 * with 2 bits, 0.127 with 3 and 0.0287 with 4, as they stand 0.743, 0.133 and 0.0298. Free act-order, for which all scales must
 * be found beforehand ("static groups"), has 0.786 and 0.139.
 */
#include <math.h>
#include <string.h>

#include "quant/feedback.h"
#include "quant/planes/planes.h"
#include "server/base/mem.h"

static const char *const form[PLANES_BITS + 1][PLANES_WIDTHS] = {
    [1] = { "planes1g32", "planes1", "planes1g128" },
    [2] = { "planes2g32", "planes2", "planes2g128" },
    [3] = { "planes3g32", "planes3", "planes3g128" },
    [4] = { "planes4g32", "planes4", "planes4g128" },
    [5] = { "planes5g32", "planes5", "planes5g128" },
    [6] = { "planes6g32", "planes6", "planes6g128" },
    [7] = { "planes7g32", "planes7", "planes7g128" },
    [8] = { "planes8g32", "planes8", "planes8g128" },
};
enum { WIDTH_DEFAULT = 1 }; /* groups of 64 */

/* The variant that a word names: a form, or the default's with its group spelled out. -1: none. */
static int variant_of(const char *word)
{
    for (int bits = 1; bits <= PLANES_BITS; bits++) {
        for (int i = 0; i < PLANES_WIDTHS; i++)
            if (strcmp(word, form[bits][i]) == 0)
                return planes_variant(bits, i);
        size_t n = strlen(form[bits][WIDTH_DEFAULT]);
        if (strncmp(word, form[bits][WIDTH_DEFAULT], n) == 0 && strcmp(word + n, "g64") == 0)
            return planes_variant(bits, WIDTH_DEFAULT);
    }
    return -1;
}

static bool knows_planes(const char *word)
{
    return variant_of(word) >= 0;
}

/* Groups as wide as asked for, or the widest below that fit. */
static int fits_planes(const char *name, enum dtype from, int rows, int cols, int *variant)
{
    (void)from;
    (void)rows;
    int v = name != NULL ? variant_of(name) : -1;
    if (v < 0 || cols % INPUT_GROUP != 0)
        return 0;
    while (cols % (INPUT_GROUP << v % 4) != 0)
        v--;
    *variant = v;
    return 1;
}

static const char *form_planes(const struct weight *w)
{
    return form[planes_bits(w)][w->variant % 4];
}

static void size_planes(const struct weight *w, size_t bytes[CODEC_PLANES])
{
    size_t panels = (size_t)weight_panels(w);
    int bits = planes_bits(w);
    bytes[0] = panels * (size_t)(w->cols / INPUT_GROUP) * (size_t)planes_codes(bits);
    bytes[1] = panels * (size_t)(w->cols / planes_group(w)) * (size_t)planes_numbers(bits) *
               sizeof(uint16_t);
}

/* ---- one row ----------------------------------------------------------------------------------------------------- */

static uint8_t *codes_of(const struct weight *w, int row, int g)
{
    return planes_codes_at(w, row / TILE_ROWS, g) +
           (size_t)(row % TILE_ROWS / CODEC_PANEL * planes_codes(planes_bits(w))) +
           row % CODEC_PANEL * 4;
}

static uint16_t *numbers_of(const struct weight *w, int row, int k)
{
    return planes_numbers_at(w, row / TILE_ROWS, k) +
           row % TILE_ROWS / CODEC_PANEL * planes_numbers(planes_bits(w)) + row % CODEC_PANEL;
}

/* 32 codes to or from the planes of a row's group; p is what codes_of gives. */
static void put_codes(uint8_t *p, const uint8_t *code, int bits)
{
    int at = 0;
    for (int width = 8; width > 0; width /= 2) {
        if ((bits & width) == 0)
            continue;
        int lines = 8 / width;
        int mask = (1 << width) - 1;
        for (int k = 0; k < INPUT_GROUP; k++) {
            uint8_t *to = &p[k / 4 / lines * 64 + k % 4];
            int shift = k / 4 % lines * width;
            *to = (uint8_t)((*to & ~(mask << shift)) | (code[k] >> at & mask) << shift);
        }
        at += width;
        p += 64 * width;
    }
}

static void get_codes(const uint8_t *p, uint8_t *code, int bits)
{
    int at = 0;
    memset(code, 0, INPUT_GROUP);
    for (int width = 8; width > 0; width /= 2) {
        if ((bits & width) == 0)
            continue;
        int lines = 8 / width;
        for (int k = 0; k < INPUT_GROUP; k++) {
            int part = p[k / 4 / lines * 64 + k % 4] >> k / 4 % lines * width;
            code[k] = (uint8_t)(code[k] | (part & ((1 << width) - 1)) << at);
        }
        at += width;
        p += 64 * width;
    }
}

static void put_fit(const struct weight *w, int row, int k, struct planes_fit f)
{
    uint16_t *number = numbers_of(w, row, k);
    if (planes_bits(w) == 1) {
        number[0] = f32_to_f16(-f.m);
        return;
    }
    number[0] = f32_to_f16(f.d);
    number[CODEC_PANEL] = f32_to_f16(f.m);
}

static struct planes_fit get_fit(const struct weight *w, int row, int k)
{
    const uint16_t *number = numbers_of(w, row, k);
    float d = f16_to_f32(number[0]);
    if (planes_bits(w) == 1)
        return (struct planes_fit){ 2 * d, -d };
    return (struct planes_fit){ d, f16_to_f32(number[CODEC_PANEL]) };
}

static float value_of(int code, struct planes_fit f, int bits)
{
    return fmaf((float)(code - planes_middle(bits)), f.d, f.m);
}

static void decode_planes(const struct weight *w, int row, float *dst)
{
    int bits = planes_bits(w);
    for (int k = 0; k < w->cols; k += INPUT_GROUP) {
        uint8_t code[INPUT_GROUP];
        struct planes_fit f = get_fit(w, row, k);
        get_codes(codes_of(w, row, k / INPUT_GROUP), code, bits);
        for (int i = 0; i < INPUT_GROUP; i++)
            dst[k + i] = value_of(code[i], f, bits);
    }
}

static void rescale_planes(struct weight *w, int row, float factor)
{
    for (int k = 0; k < w->cols; k += planes_group(w)) {
        uint16_t *number = numbers_of(w, row, k);
        number[0] = f16_scale(number[0], factor);
        if (planes_bits(w) > 1)
            number[CODEC_PANEL] = f16_scale(number[CODEC_PANEL], factor);
    }
}

/* ---- encode ------------------------------------------------------------------------------------------------------ */

static void encode_planes(struct weight *w, int row0, int n, const float *src)
{
    int bits = planes_bits(w);
    int group = planes_group(w);
    float one[PLANES_GROUP];
    for (int k = 0; k < PLANES_GROUP; k++)
        one[k] = 1;
    for (int row = row0; row < row0 + n; row++, src += w->cols)
        for (int k = 0; k < w->cols; k += group) {
            uint8_t code[PLANES_GROUP];
            struct planes_fit f = planes_fit(src + k, one, group, bits);
            put_fit(w, row, k, f);
            for (int i = 0; i < group; i++)
                code[i] = (uint8_t)planes_code(src[k + i], f, bits);
            for (int i = 0; i < group; i += INPUT_GROUP)
                put_codes(codes_of(w, row, (k + i) / INPUT_GROUP), code + i, bits);
        }
}

/* ---- press ------------------------------------------------------------------------------------------------------- */

/* n rows on their way through the columns. */
struct press {
    struct weight *w;
    int row0;
    const struct moments *m;
    const float *x;         /* [cols][n]: columns as updated so far, in the order of m */
    struct planes_fit *fit; /* [n], of the group at hand */
    uint8_t *code;          /* [32][n], of the 32 inputs at hand, as they stand */
};

/* The input that is column j. */
static int input_at(const struct press *p, int j)
{
    return p->m->order != NULL ? p->m->order[j] : j;
}

/* Scales and minima of all rows for the group that begins with column j. An error in column k costs (error / u_kk)^2. */
static void fit_rows(struct press *p, int j, int n)
{
    int group = planes_group(p->w);
    int first = input_at(p, j) / group * group;
    size_t cols = (size_t)p->w->cols;
    float weight[PLANES_GROUP];
    int at[PLANES_GROUP]; /* where in the group column j + k belongs */
    for (int k = 0; k < group; k++) {
        float u = p->m->u[(size_t)(j + k) * cols + (size_t)(j + k)];
        at[k] = input_at(p, j + k) - first;
        weight[at[k]] = 1 / (u * u);
    }
    for (int r = 0; r < n; r++) {
        float x[PLANES_GROUP];
        for (int k = 0; k < group; k++)
            x[at[k]] = p->x[(size_t)(j + k) * (size_t)n + (size_t)r];
        p->fit[r] = planes_fit(x, weight, group, planes_bits(p->w));
        put_fit(p->w, p->row0 + r, first, p->fit[r]);
    }
}

/* The codes of 32 inputs, of which j is one. */
static void put_rows(const struct press *p, int j, int n)
{
    for (int r = 0; r < n; r++) {
        uint8_t code[INPUT_GROUP];
        for (int k = 0; k < INPUT_GROUP; k++)
            code[k] = p->code[(size_t)k * (size_t)n + (size_t)r];
        put_codes(codes_of(p->w, p->row0 + r, j / INPUT_GROUP), code, planes_bits(p->w));
    }
}

static void press_column(void *arg, int j, int b, int n, const float *x, const float *metric,
                         float *q)
{
    struct press *p = arg;
    int bits = planes_bits(p->w);
    int input = input_at(p, j);
    uint8_t *code = p->code + (size_t)(input % INPUT_GROUP) * (size_t)n;
    (void)b;
    (void)metric;
    if (j % planes_group(p->w) == 0)
        fit_rows(p, j, n);
    for (int r = 0; r < n; r++) {
        code[r] = (uint8_t)planes_code(x[r], p->fit[r], bits);
        q[r] = value_of(code[r], p->fit[r], bits);
    }
    if (j % INPUT_GROUP == INPUT_GROUP - 1)
        put_rows(p, input, n);
}

/* x[cols][n] = the columns of src[n][cols], in the order of m; scratch is as large. */
static void turn(const struct press *p, const float *src, float *x, float *scratch, int n)
{
    size_t rows = (size_t)n;
    feedback_turn(src, scratch, n, p->w->cols);
    for (int j = 0; j < p->w->cols; j++)
        memcpy(x + (size_t)j * rows, scratch + (size_t)input_at(p, j) * rows, rows * sizeof *x);
}

static int press_planes(struct weight *w, int row0, int n, const float *src,
                        const struct moments *m, struct err *e)
{
    size_t rows = (size_t)n;
    size_t cols = (size_t)w->cols;
    struct press p = { .w = w, .row0 = row0, .m = m };
    float *x = mem_alloc(cols * rows * sizeof *x);
    float *q = mem_alloc(cols * rows * sizeof *q);
    p.fit = mem_alloc(rows * sizeof *p.fit);
    p.code = mem_alloc(INPUT_GROUP * rows);
    int rc = 0;
    if (x == NULL || q == NULL || p.fit == NULL || p.code == NULL) {
        rc = err_set(e, ERR_NOMEM, "no memory to press %d x %d weights", n, w->cols);
    } else {
        p.x = x;
        turn(&p, src, x, q, n);
        rc = feedback_run(m, x, q, n, 1, press_column, &p, e);
    }
    mem_free(p.code);
    mem_free(p.fit);
    mem_free(q);
    mem_free(x);
    return rc;
}

/* ---- moves ------------------------------------------------------------------------------------------------------- */

static int count_moves(const struct weight *w)
{
    return w->cols;
}

/* A code's best move is to the neighbour down the slope. */
static void find_moves(const struct weight *w, int row, const float *grad, const float *curve,
                       float *room, struct codec_move *out)
{
    int bits = planes_bits(w);
    (void)room;
    for (int k = 0; k < w->cols; k += INPUT_GROUP) {
        uint8_t code[INPUT_GROUP];
        struct planes_fit f = get_fit(w, row, k);
        get_codes(codes_of(w, row, k / INPUT_GROUP), code, bits);
        for (int i = 0; i < INPUT_GROUP; i++) {
            int to = code[i] + ((grad[k + i] > 0) == (f.d > 0) ? -1 : 1);
            bool there = to >= 0 && to < 1 << bits;
            float d = f.d * (float)(to - code[i]);
            float gain = there ? -d * (grad[k + i] + .5f * d * curve[k + i]) : 0;
            out[k + i] = (struct codec_move){ gain, k + i, to };
        }
    }
}

static int make_move(struct weight *w, int row, int at, int to)
{
    int bits = planes_bits(w);
    uint8_t code[INPUT_GROUP];
    uint8_t *p = codes_of(w, row, at / INPUT_GROUP);
    get_codes(p, code, bits);
    int was = code[at % INPUT_GROUP];
    code[at % INPUT_GROUP] = (uint8_t)to;
    put_codes(p, code, bits);
    return was;
}

static const struct codec_moves planes_moves = { count_moves, find_moves, make_move };

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

const struct codec codec_planes = {
    .name = "planes",
    .step = TILE_PANELS,
    .knows = knows_planes,
    .fits = fits_planes,
    .size = size_planes,
    .encode = encode_planes,
    .press = press_planes,
    .ordered = true,
    .plane_name = { "codes", "numbers" },
    .decode = decode_planes,
    .rescale = rescale_planes,
    .moves = &planes_moves,
    .form = form_planes,
    .cpu = { &planes_ref, &planes_avx2, &planes_avx512, NULL },
    .cuda = CODEC_CUDA(planes_cuda),
};
