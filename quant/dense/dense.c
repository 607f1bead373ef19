/* dense: the numbers themselves, as f32, f16 or bf16.
 *
 *   plane 0    panel p (16 rows), input k, row r of the panel: element (p * cols + k) * 16 + r is w[16p + r][k]
 *
 *              f32      |w[0][0] w[1][0] ... w[15][0]|w[0][1] ...|      64 bytes an input
 *              f16 bf16 the same                                       32 bytes an input
 *
 * 32 or 16 bits a weight. Numbers of the same type are moved, not converted; others round to nearest even. Products are
 * f32 whatever the type; the rows past the last one of a matrix are zero.
 */
#include <string.h>

#include "quant/dense/dense.h"

static const char *const word[] = { "f32", "f16", "bf16" };
static const enum dtype type_of[] = { DT_F32, DT_F16, DT_BF16 };

static size_t elem_bytes(const struct weight *w)
{
    return w->variant == DENSE_F32 ? 4 : 2;
}

static int fits_dense(const char *name, enum dtype from, int rows, int cols, int *variant)
{
    (void)rows;
    (void)cols;
    for (int v = DENSE_F32; v <= DENSE_BF16; v++) {
        bool same = from == type_of[v];
        if (name == NULL ? same : strcmp(name, word[v]) == 0) {
            *variant = v;
            return same ? 2 : 1;
        }
    }
    return 0;
}

static void size_dense(const struct weight *w, size_t bytes[CODEC_PLANES])
{
    size_t panels = (size_t)weight_panels(w);
    bytes[0] = panels * CODEC_PANEL * (size_t)w->cols * elem_bytes(w);
}

static size_t index_of(const struct weight *w, int row, int k)
{
    return ((size_t)(row / CODEC_PANEL) * (size_t)w->cols + (size_t)k) * CODEC_PANEL +
           (size_t)(row % CODEC_PANEL);
}

static void encode_dense(struct weight *w, int row0, int n, const float *src)
{
    for (int i = 0; i < n; i++) {
        const float *x = src + (size_t)i * (size_t)w->cols;
        for (int k = 0; k < w->cols; k++) {
            size_t at = index_of(w, row0 + i, k);
            if (w->variant == DENSE_F32)
                ((float *)w->plane[0])[at] = x[k];
            else
                ((uint16_t *)w->plane[0])[at] =
                    w->variant == DENSE_F16 ? f32_to_f16(x[k]) : f32_to_bf16(x[k]);
        }
    }
}

/* The same type on disk: bits are moved, never converted. */
static bool take_dense(struct weight *w, int row0, int n, enum dtype type, const void *src)
{
    if (type != type_of[w->variant])
        return false;
    size_t b = elem_bytes(w);
    const char *s = src;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < w->cols; k++, s += b)
            memcpy((char *)w->plane[0] + index_of(w, row0 + i, k) * b, s, b);
    return true;
}

static void decode_dense(const struct weight *w, int row, float *dst)
{
    for (int k = 0; k < w->cols; k++) {
        size_t at = index_of(w, row, k);
        if (w->variant == DENSE_F32)
            dst[k] = ((const float *)w->plane[0])[at];
        else if (w->variant == DENSE_F16)
            dst[k] = f16_to_f32(((const uint16_t *)w->plane[0])[at]);
        else
            dst[k] = bf16_to_f32(((const uint16_t *)w->plane[0])[at]);
    }
}

/* It has no scale: every number is multiplied. */
static void rescale_dense(struct weight *w, int row, float factor)
{
    for (int k = 0; k < w->cols; k++) {
        size_t at = index_of(w, row, k);
        if (w->variant == DENSE_F32)
            ((float *)w->plane[0])[at] *= factor;
        else if (w->variant == DENSE_F16)
            ((uint16_t *)w->plane[0])[at] = f16_scale(((uint16_t *)w->plane[0])[at], factor);
        else
            ((uint16_t *)w->plane[0])[at] =
                f32_to_bf16(bf16_to_f32(((uint16_t *)w->plane[0])[at]) * factor);
    }
}

/* Files keep rows one after another, as everybody does. */
static int parts_dense(const struct weight *w, struct codec_part out[CODEC_PARTS])
{
    out[0] = (struct codec_part){ "weight", type_of[w->variant], 2, { w->rows, w->cols } };
    return 1;
}

/* Where the plane has the byte that rows one after another have at offset; of *n from there, those that lie together. */
static char *in_plane(const struct weight *w, size_t offset, size_t *n)
{
    size_t b = elem_bytes(w);
    size_t i = offset / b;
    size_t at = offset % b;
    *n = *n < b - at ? *n : b - at;
    return (char *)w->plane[0] +
           index_of(w, (int)(i / (size_t)w->cols), (int)(i % (size_t)w->cols)) * b + at;
}

static void put_dense(struct weight *w, int part, size_t offset, size_t n, const void *src)
{
    (void)part;
    const char *s = src;
    for (size_t done = 0, some; done < n; done += some) {
        some = n - done;
        char *p = in_plane(w, offset + done, &some);
        memcpy(p, s + done, some);
    }
}

static void get_dense(const struct weight *w, int part, size_t offset, size_t n, void *dst)
{
    (void)part;
    char *d = dst;
    for (size_t done = 0, some; done < n; done += some) {
        some = n - done;
        const char *p = in_plane(w, offset + done, &some);
        memcpy(d + done, p, some);
    }
}

static bool knows_dense(const char *name)
{
    for (int i = 0; i < (int)(sizeof word / sizeof word[0]); i++)
        if (strcmp(name, word[i]) == 0)
            return true;
    return false;
}

static const char *form_dense(const struct weight *w)
{
    return word[w->variant];
}

static enum prep prepare_dense(const struct weight *w, enum cpu_isa isa, bool int8_ok)
{
    (void)w;
    (void)isa;
    (void)int8_ok;
    return PREP_F32;
}

const struct codec codec_dense = {
    .name = "dense",
    .knows = knows_dense,
    .fits = fits_dense,
    .size = size_dense,
    .encode = encode_dense,
    .take = take_dense,
    .parts = parts_dense,
    .put = put_dense,
    .get = get_dense,
    .decode = decode_dense,
    .rescale = rescale_dense,
    .form = form_dense,
    .prepare = prepare_dense,
    .cpu = { &dense_ref, &dense_avx2, &dense_avx512, NULL },
    .cuda = CODEC_CUDA(dense_cuda),
};
