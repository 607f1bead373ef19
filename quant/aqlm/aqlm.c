/* aqlm: rows in groups of 8, 16 or 32 inputs, a group being the sum of one entry out of each of a few codebooks of vectors.
 * Models are published in this form (Egiazarian et al. 2024, "Extreme Compression of Large Language Models via Additive
 * Quantization"); it is read here as it lies in their files, and made by press.c. The form's name has the numbers: aqlm2x8g8 is the sum of 2 entries
 * of 8 bits for every 8 inputs.
 *
 *   w[o][g j + t] = scale[o] * (book[0][code[o][j][0]][t] + book[1][code[o][j][1]][t] + ...)
 *
 *   aqlm1x16g8   2 bits a weight and 1 MiB of codebook a matrix      aqlm1x8g8     1 bit
 *   aqlm2x8g8    2 bits and 8 KiB                                   aqlm8x8g32    2 bits and 128 KiB
 *
 * In files (parts): codes I8 or I16 [rows][cols / g][books], signed by wrap-around; codebooks F16 [books][2^bits][1][g];
 * scales F16 [rows][1][1][1]. Here:
 *
 *   plane 0, codes    panel p (16 rows), group j, codebook m: the codes of the sixteen rows side by side, as in the file
 *                       code ((p * groups + j) * books + m) * 16 + r, of one byte, or two above 8 bits
 *   plane 1, books    struct aqlm_head, the codebooks as in the file, the same once more in integers, and where entries are eight
 *                       bytes found by a byte (2x8g8, 1x8g8) these again, the first bytes of all entries side by side, the
 *                       second ones, ...
 *   plane 2, scales   f16 [rows], rows rounded up to 16
 *
 * Two kinds of numbers. Exact ones (decode, f32 inputs) are the reference dequantiser's bits: aqlm 1.1.7 with torch on a CPU
 * sums in f32 in the order of the codebooks, rounds to f16, multiplies by the scale and rounds to f16 again.
 * Products with int8 inputs take weights in 8 bits: (c - 128) * step * scale, one step a matrix, the smallest that no sum of
 * entries overruns. One codebook, or two, are kept in bytes whose sum is c; entries of more codebooks in 16 bits, 8 of them
 * behind the point, so that many roundings do not add up, and c is the sum's high byte. The first codebook's entries have
 * 128, or 128.5, added. On normally distributed codebooks this costs 1.1 % (1x16), 1.5 % (2x8) and 2.0 % (8x8) of a
 * product's norm, 2x8 in 16 bits 1.1 % at three quarters of the speed; coding weights in two bits has cost 30 % of theirs
 * (tests/unit/test_aqlm.c measures it).
 *
 * Tables of a codebook's products with the input, instead of the weights themselves, were tried for one row of inputs. In whole
 * numbers they give the same bits; with AVX2 they were no faster (tests/bench/results/quant/README.md).
 */
#include <math.h>
#include <string.h>

#include "quant/aqlm/aqlm.h"

/* ---- names ------------------------------------------------------------------------------------------------------- */

enum { GROUPS = 3 }; /* widths of a group */

static const int group_of[GROUPS] = { 8, 16, 32 };

#define WORDS_OF(m, b)                                                                             \
    {                                                                                              \
        "aqlm" #m "x" #b "g8", "aqlm" #m "x" #b "g16", "aqlm" #m "x" #b "g32"                      \
    }
#define WORDS(m)                                                                                   \
    {                                                                                              \
        WORDS_OF(m, 1), WORDS_OF(m, 2), WORDS_OF(m, 3), WORDS_OF(m, 4), WORDS_OF(m, 5),            \
            WORDS_OF(m, 6), WORDS_OF(m, 7), WORDS_OF(m, 8), WORDS_OF(m, 9), WORDS_OF(m, 10),       \
            WORDS_OF(m, 11), WORDS_OF(m, 12), WORDS_OF(m, 13), WORDS_OF(m, 14), WORDS_OF(m, 15),   \
            WORDS_OF(m, 16)                                                                        \
    }
static const char word_of[AQLM_BOOKS_MAX][AQLM_BITS_MAX][GROUPS][12] = {
    WORDS(1), WORDS(2), WORDS(3), WORDS(4), WORDS(5), WORDS(6), WORDS(7), WORDS(8),
};

/* The variant that a word means, or -1. */
static int variant_of(const char *word)
{
    for (int m = 0; m < AQLM_BOOKS_MAX; m++)
        for (int b = 0; b < AQLM_BITS_MAX; b++)
            for (int g = 0; g < GROUPS; g++)
                if (strcmp(word, word_of[m][b][g]) == 0)
                    return aqlm_variant((struct aqlm_shape){ m + 1, b + 1, group_of[g] });
    return -1;
}

static bool knows_aqlm(const char *word)
{
    return variant_of(word) >= 0;
}

static const char *form_aqlm(const struct weight *w)
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    return word_of[s.books - 1][s.bits - 1][s.group / 16];
}

static int fits_aqlm(const char *name, enum dtype from, int rows, int cols, int *variant)
{
    (void)from;
    (void)rows;
    if (name == NULL || cols % TILE_COLS != 0)
        return 0;
    int v = variant_of(name);
    if (v < 0)
        return 0;
    *variant = v;
    return 1;
}

/* ---- planes ------------------------------------------------------------------------------------------------------ */

/* Bytes of a row's codes. */
static size_t row_bytes(const struct weight *w, struct aqlm_shape s)
{
    return (size_t)(w->cols / s.group) * (size_t)s.books * (size_t)aqlm_code_bytes(s);
}

static void size_aqlm(const struct weight *w, size_t bytes[CODEC_PLANES])
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    bytes[0] = (size_t)weight_panels(w) * CODEC_PANEL * row_bytes(w, s);
    size_t number = (size_t)(2 + aqlm_fast_bytes(s) + (aqlm_has_transposed(s) ? 1 : 0));
    bytes[1] = sizeof(struct aqlm_head) + aqlm_numbers(s) * number + AQLM_SLACK;
    bytes[2] = (size_t)weight_panels(w) * CODEC_PANEL * sizeof(uint16_t);
}

/* The largest and the least sum that entries can have, over the inputs of a group. */
static void bounds(const struct weight *w, struct aqlm_shape s, float *lo, float *hi)
{
    const uint16_t *book = aqlm_books(w);
    float low[AQLM_GROUP_MAX] = { 0 };
    float high[AQLM_GROUP_MAX] = { 0 };
    for (int m = 0; m < s.books; m++) {
        float least[AQLM_GROUP_MAX];
        float most[AQLM_GROUP_MAX];
        for (size_t c = 0; c < (size_t)1 << s.bits; c++)
            for (int t = 0; t < s.group; t++) {
                float v = f16_to_f32(*book++);
                v = isfinite(v) ? v : 0;
                least[t] = c == 0 || v < least[t] ? v : least[t];
                most[t] = c == 0 || v > most[t] ? v : most[t];
            }
        for (int t = 0; t < s.group; t++) {
            low[t] += least[t];
            high[t] += most[t];
        }
    }
    *lo = *hi = 0;
    for (int t = 0; t < s.group; t++) {
        *lo = low[t] < *lo ? low[t] : *lo;
        *hi = high[t] > *hi ? high[t] : *hi;
    }
}

/* v rounded; what is no number, or far beyond all sums, becomes one that is. */
static int rounded(float v)
{
    return (int)fminf(fmaxf(rintf(v), -0x1p24f), 0x1p24f);
}

static void make_transposed(struct weight *w, struct aqlm_shape s)
{
    const uint8_t *byte = aqlm_fast(w);
    uint8_t *column = aqlm_transposed(w);
    for (int m = 0; m < s.books; m++)
        for (int c = 0; c < 1 << s.bits; c++)
            for (int t = 0; t < s.group; t++)
                column[((m * s.group + t) << s.bits) + c] = *byte++;
}

/* The integer codebooks, from f16 ones of any bits. Sums are kept modulo the width of their numbers, so that single entries
 * may be larger than it as long as the sums are not: codebooks that cancel each other lose nothing. A step is kept free at either end of the 8 bits where two bytes are added:
 * their roundings may come to one. */
static void make_fast(struct weight *w)
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    struct aqlm_head *head = w->plane[1];
    const uint16_t *book = aqlm_books(w);
    size_t first = aqlm_numbers(s) / (size_t)s.books; /* numbers of the first codebook */
    float lo;
    float hi;
    bounds(w, s, &lo, &hi);
    float slack = s.books == 2 ? 1 : 0;
    head->step = fmaxf(hi / (127 - slack), -lo / (128 - slack));
    float inv = head->step > 0 ? 1 / head->step : 0;
    uint8_t *byte = aqlm_fast(w);
    uint16_t *fine = aqlm_fast(w);
    for (size_t i = 0; i < aqlm_numbers(s); i++) {
        float v = f16_to_f32(book[i]) * inv;
        if (aqlm_fast_bytes(s) == 1)
            byte[i] = (uint8_t)(rounded(v) + (i < first ? 128 : 0));
        else if (i < first)
            fine[i] = (uint16_t)rounded((v + 128.5f) * 256);
        else
            fine[i] = (uint16_t)rounded(v * 256);
    }
    if (aqlm_has_transposed(s))
        make_transposed(w, s);
}

/* ---- parts ------------------------------------------------------------------------------------------------------- */

enum { CODES, BOOKS, SCALES };

static int parts_aqlm(const struct weight *w, struct codec_part out[CODEC_PARTS])
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    out[CODES] = (struct codec_part){
        "codes", s.bits <= 8 ? DT_I8 : DT_I16, 3, { w->rows, w->cols / s.group, s.books }
    };
    out[BOOKS] = (struct codec_part){
        "codebooks", DT_F16, 4, { s.books, (int64_t)1 << s.bits, 1, s.group }
    };
    out[SCALES] = (struct codec_part){ "scales", DT_F16, 4, { w->rows, 1, 1, 1 } };
    return 3;
}

/* Some bytes of one row's codes, in the file and in plane 0, where a row's codes lie sixteen codes apart. */
struct run {
    uint8_t *plane;
    size_t at, n; /* bytes [at, at + n) of the row */
    size_t code;  /* bytes a code */
};

static struct run run_at(const struct weight *w, size_t offset, size_t n)
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    size_t row = offset / row_bytes(w, s);
    size_t code = (size_t)aqlm_code_bytes(s);
    struct run r = { .at = offset % row_bytes(w, s), .code = code };
    r.plane = (uint8_t *)w->plane[0] + row / CODEC_PANEL * CODEC_PANEL * row_bytes(w, s) +
              row % CODEC_PANEL * code;
    r.n = row_bytes(w, s) - r.at < n ? row_bytes(w, s) - r.at : n;
    return r;
}

static uint8_t *byte_of(const struct run *r, size_t at)
{
    return r->plane + at / r->code * r->code * CODEC_PANEL + at % r->code;
}

static void put_codes(struct weight *w, size_t offset, size_t n, const uint8_t *src)
{
    for (size_t end = offset + n; offset < end;) {
        struct run r = run_at(w, offset, end - offset);
        for (size_t i = 0; i < r.n; i++)
            *byte_of(&r, r.at + i) = src[i];
        src += r.n;
        offset += r.n;
    }
}

static void get_codes(const struct weight *w, size_t offset, size_t n, uint8_t *dst)
{
    for (size_t end = offset + n; offset < end;) {
        struct run r = run_at(w, offset, end - offset);
        for (size_t i = 0; i < r.n; i++)
            dst[i] = *byte_of(&r, r.at + i);
        dst += r.n;
        offset += r.n;
    }
}

void aqlm_set_books(struct weight *w, const uint16_t *book)
{
    memcpy(aqlm_books(w), book, aqlm_numbers(aqlm_shape(w->variant)) * sizeof *book);
    make_fast(w);
}

/* The integer codebooks follow every change: codebooks come in one piece, or a few where they have megabytes. */
static void put_aqlm(struct weight *w, int part, size_t offset, size_t n, const void *src)
{
    switch (part) {
    case CODES: put_codes(w, offset, n, src); break;
    case BOOKS:
        memcpy((char *)aqlm_books(w) + offset, src, n);
        make_fast(w);
        break;
    default: memcpy((char *)w->plane[2] + offset, src, n); break;
    }
}

static void get_aqlm(const struct weight *w, int part, size_t offset, size_t n, void *dst)
{
    switch (part) {
    case CODES: get_codes(w, offset, n, dst); break;
    case BOOKS: memcpy(dst, (const char *)aqlm_books(w) + offset, n); break;
    default: memcpy(dst, (const char *)w->plane[2] + offset, n); break;
    }
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

void aqlm_decode_group(const struct weight *w, struct aqlm_shape s, int row, int j, float *out)
{
    const uint16_t *book = aqlm_books(w);
    float scale = f16_to_f32(aqlm_scales(w)[row]);
    float sum[AQLM_GROUP_MAX] = { 0 };
    for (int m = 0; m < s.books; m++) {
        const uint8_t *code = aqlm_codes(w, s, row / CODEC_PANEL, j, m);
        const uint16_t *entry = book + aqlm_entry(code, s, row % CODEC_PANEL, m) * (size_t)s.group;
        for (int t = 0; t < s.group; t++)
            sum[t] += f16_to_f32(entry[t]);
    }
    for (int t = 0; t < s.group; t++) {
        float rounded = f16_to_f32(f32_to_f16(sum[t]));
        out[t] = f16_to_f32(f32_to_f16(rounded * scale));
    }
}

static void decode_aqlm(const struct weight *w, int row, float *dst)
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    for (int j = 0; j < w->cols / s.group; j++)
        aqlm_decode_group(w, s, row, j, dst + (size_t)j * (size_t)s.group);
}

static void rescale_aqlm(struct weight *w, int row, float factor)
{
    uint16_t *scale = (uint16_t *)w->plane[2] + row;
    *scale = f16_scale(*scale, factor);
}

/* More entries, or pairs of them, than can be tried for every group. */
static bool pressable_aqlm(const struct weight *w)
{
    struct aqlm_shape s = aqlm_shape(w->variant);
    return s.bits <= (s.books == 1 ? 12 : 8);
}

const struct codec codec_aqlm = {
    .name = "aqlm",
    .step = TILE_PANELS,
    .head = "f16",
    .knows = knows_aqlm,
    .fits = fits_aqlm,
    .size = size_aqlm,
    .pressable = pressable_aqlm,
    .press_all = aqlm_press_all,
    .parts = parts_aqlm,
    .put = put_aqlm,
    .get = get_aqlm,
    .decode = decode_aqlm,
    .rescale = rescale_aqlm,
    .moves = &aqlm_moves,
    .form = form_aqlm,
    .cpu = { &aqlm_ref, &aqlm_avx2, &aqlm_avx512, &aqlm_vbmi },
    .cuda = CODEC_CUDA(aqlm_cuda),
};
