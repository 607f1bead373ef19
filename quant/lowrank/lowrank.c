/* lowrank: another codec's matrix plus a product of two thin ones in f16.
 *
 *   w = q + a b        "lowrank16+trellis2": a [rows][16], b [16][cols], q what trellis2 made of w - a b
 *
 * Bits a weight beside q's: 16 rank (rows + cols) / (rows * cols), rows of a padded to panels. Where q's codec rotates, b is
 * b R^T, as q's codes are.
 *
 *   planes 0 and 1   q's
 *   plane 2          f16 [panel of rows][rank][16]    a, as quant/dense
 *                    f16 [panel of rank][cols][16]    b
 *
 * a b is found before any row is pressed (plan): lowrank_fit.c. A product makes t = b x first, in f32, for all input rows
 * (weight_matmul), and adds a t to q's sums.
 */
#include "quant/lowrank/lowrank.h"

#include <math.h>
#include <string.h>

#include "quant/dense/dense.h"
#include "quant/rotate.h"
#include "quant/tiledot.h"
#include "server/base/mem.h"

/* ---- words ------------------------------------------------------------------------------------------------------- */

enum { RANKS = 3 };
static const int rank_of[RANKS] = { 16, 32, CODEC_RANK };

/* Every form: what q may be, with each rank. */
/* clang-format off */
#define WORDS(q) { q, { "lowrank16+" q, "lowrank32+" q, "lowrank64+" q } }
/* clang-format on */
static const struct {
    const char *q;
    const char *word[RANKS];
} form[] = {
    WORDS("trellis2"),    WORDS("trellis3"),    WORDS("trellis4"),    WORDS("planes1"),
    WORDS("planes1g32"),  WORDS("planes1g128"), WORDS("planes2"),     WORDS("planes2g32"),
    WORDS("planes2g128"), WORDS("planes3"),     WORDS("planes3g32"),  WORDS("planes3g128"),
    WORDS("planes4"),     WORDS("planes4g32"),  WORDS("planes4g128"), WORDS("pvq2"),
    WORDS("pvq3"),        WORDS("pvq4"),
};
#undef WORDS
enum { FORMS = sizeof form / sizeof form[0] };

/* variant: codec's place in the list, rank's number, variant of q */
static int variant_of(int codec, int rank, int variant)
{
    return codec << 16 | rank << 8 | variant;
}

static bool find(const char *word, int *i_form, int *i_rank)
{
    for (int i = 0; i < FORMS; i++)
        for (int r = 0; r < RANKS; r++)
            if (strcmp(word, form[i].word[r]) == 0) {
                *i_form = i;
                *i_rank = r;
                return true;
            }
    return false;
}

static bool knows_lowrank(const char *word)
{
    int i, r;
    return find(word, &i, &r);
}

static int fits_lowrank(const char *name, enum dtype from, int rows, int cols, int *variant)
{
    int f, r;
    if (name == NULL || !find(name, &f, &r) || rank_of[r] > rows || rank_of[r] > cols)
        return 0;
    for (int i = 0; codec_list[i] != NULL; i++) {
        int v = 0;
        if (codec_list[i] != &codec_lowrank &&
            codec_list[i]->fits(form[f].q, from, rows, cols, &v) > 0) {
            *variant = variant_of(i, r, v);
            return 1;
        }
    }
    return 0;
}

static int rank(const struct weight *w)
{
    return rank_of[w->variant >> 8 & 255];
}

/* The matrix without its factors. */
static struct weight inner(const struct weight *w)
{
    struct weight q = *w;
    q.codec = codec_list[w->variant >> 16];
    q.variant = w->variant & 255;
    q.plane[2] = NULL;
    q.bytes[2] = 0;
    return q;
}

static size_t a_bytes(const struct weight *w)
{
    return (size_t)weight_panels(w) * CODEC_PANEL * (size_t)rank(w) * sizeof(uint16_t);
}

struct weight_sum lowrank_split(const struct weight *w)
{
    struct weight_sum l = { .q = inner(w) };
    l.a = (struct weight){ .codec = &codec_dense, .rows = w->rows, .cols = rank(w) };
    l.b = (struct weight){ .codec = &codec_dense, .rows = rank(w), .cols = w->cols };
    l.a.variant = l.b.variant = DENSE_F16;
    l.a.plane[0] = w->plane[2];
    if (w->plane[2] != NULL)
        l.b.plane[0] = (char *)w->plane[2] + a_bytes(w);
    return l;
}

static const char *form_lowrank(const struct weight *w)
{
    struct weight q = inner(w);
    const char *word = q.codec->form(&q);
    for (int i = 0; i < FORMS; i++)
        if (strcmp(word, form[i].q) == 0)
            return form[i].word[w->variant >> 8 & 255];
    return word;
}

static void size_lowrank(const struct weight *w, size_t bytes[CODEC_PLANES])
{
    struct weight q = inner(w);
    q.codec->size(&q, bytes);
    bytes[2] = a_bytes(w) + (size_t)rank(w) * (size_t)w->cols * sizeof(uint16_t);
}

static enum prep prepare_lowrank(const struct weight *w, enum cpu_isa isa, bool int8_ok)
{
    struct weight q = inner(w);
    if (q.codec->prepare != NULL)
        return q.codec->prepare(&q, isa, int8_ok);
    return int8_ok ? PREP_I8 : PREP_F32;
}

/* ---- encode ------------------------------------------------------------------------------------------------------ */

/* a[rank][rows], turned, and b[rank][cols] to the planes; turned: room for a[rows][rank]. */
static void put_factors(const struct weight *w, const float *a, const float *b, float *turned)
{
    struct weight_sum l = lowrank_split(w);
    size_t rows = (size_t)w->rows, r = (size_t)rank(w);
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < r; k++)
            turned[i * r + k] = a[k * rows + i];
    codec_dense.encode(&l.a, 0, w->rows, turned);
    codec_dense.encode(&l.b, 0, rank(w), b);
}

static int plan_lowrank(struct weight *w, const float *src, const float *share, enum cpu_isa isa,
                        struct err *e)
{
    size_t k = (size_t)rank(w), rows = (size_t)w->rows, cols = (size_t)w->cols;
    float *a = mem_alloc(k * (2 * rows + cols) * sizeof *a);
    if (a == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the factors of %d x %d", w->rows, w->cols);
    float *turned = a + k * rows;
    float *b = turned + k * rows;
    lowrank_fit(isa, src, w->rows, w->cols, rank(w), a, b);
    for (size_t i = 0; share != NULL && i < k * rows; i++)
        a[i] /= share[i % rows];
    put_factors(w, a, b, turned);
    mem_free(a);
    return 0;
}

/* row += sign * (a b)[row] */
static void add_row(const struct weight_sum *l, int row, float sign, float *to)
{
    float a[CODEC_RANK];
    codec_dense.decode(&l->a, row, a);
    const uint16_t *b = l->b.plane[0];
    for (int k = 0; k < l->a.cols; k++) {
        const uint16_t *p =
            b + (size_t)(k / CODEC_PANEL) * (size_t)l->b.cols * CODEC_PANEL + k % CODEC_PANEL;
        float f = sign * a[k];
        for (int j = 0; j < l->b.cols; j++)
            to[j] = fmaf(f, f16_to_f32(p[(size_t)j * CODEC_PANEL]), to[j]);
    }
}

/* What q is to be made of: rows [row0, row0 + n) without a b. */
static float *rest(const struct weight_sum *l, int row0, int n, const float *src)
{
    size_t cols = (size_t)l->q.cols;
    float *x = mem_alloc((size_t)n * cols * sizeof *x);
    if (x == NULL)
        return NULL;
    memcpy(x, src, (size_t)n * cols * sizeof *x);
    for (int i = 0; i < n; i++)
        add_row(l, row0 + i, -1, x + (size_t)i * cols);
    return x;
}

static int press_lowrank(struct weight *w, int row0, int n, const float *src,
                         const struct moments *m, struct err *e)
{
    struct weight_sum l = lowrank_split(w);
    float *x = rest(&l, row0, n, src);
    int rc = 0;
    if (x == NULL)
        return err_set(e, ERR_NOMEM, "no memory to press %d rows of %d", n, w->cols);
    if (m != NULL && l.q.codec->press != NULL)
        rc = l.q.codec->press(&l.q, row0, n, x, m, e);
    else
        l.q.codec->encode(&l.q, row0, n, x);
    mem_free(x);
    return rc;
}

/* Factors that nobody has planned are zeros, as memory is when a weight is opened. */
static void encode_lowrank(struct weight *w, int row0, int n, const float *src)
{
    struct weight q = inner(w);
    q.codec->encode(&q, row0, n, src);
}

static void decode_lowrank(const struct weight *w, int row, float *dst)
{
    struct weight_sum l = lowrank_split(w);
    l.q.codec->decode(&l.q, row, dst);
    if (l.q.codec->rotated)
        rotate_rows(CPU_REF, dst, dst, 1, w->cols);
    add_row(&l, row, 1, dst);
    if (l.q.codec->rotated)
        rotate_back(CPU_REF, dst, dst, 1, w->cols);
}

static void rescale_lowrank(struct weight *w, int row, float factor)
{
    struct weight_sum l = lowrank_split(w);
    l.q.codec->rescale(&l.q, row, factor);
    codec_dense.rescale(&l.a, row, factor);
}

const struct codec codec_lowrank = {
    .name = "lowrank",
    .step = TILE_PANELS,
    .split = lowrank_split,
    .knows = knows_lowrank,
    .fits = fits_lowrank,
    .size = size_lowrank,
    .plan = plan_lowrank,
    .encode = encode_lowrank,
    .press = press_lowrank,
    .plane_name = { "codes", "numbers", "factors" },
    .decode = decode_lowrank,
    .rescale = rescale_lowrank,
    .form = form_lowrank,
    .prepare = prepare_lowrank,
};
