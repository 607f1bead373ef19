/* pvq: groups of 16 inputs as a point of a pyramid, times one of a few gains, times an f16 scale of the row (pyramid vector
 * quantisation, arXiv 2410.16926, after Fischer 1986).
 *
 *   w[i] = y[i] * (gain[level] * scale[row] / |y|)      y in P(16, K): integers whose sizes sum to K
 *
 * Weights are rotated first (quant/rotate.h), which makes them normal enough that nothing is trained: the gains are the
 * Lloyd-Max levels of the length of 16 normal numbers (for rows of D inputs it is sqrt of a Beta(8, (D - 16) / 2) times
 * sqrt(D), whose limit they are; the row's scale is fitted after coding and takes up what differs).
 *
 *   plane 0, codes    panel p (16 rows), group g (16 inputs), row r of the panel: the code of point and level (pyramid.h),
 *                     in two lines: 16 u32, the lower halves, then 16 upper parts of 0, 2 or 4 bytes
 *   plane 1, scales   f16 of each row
 *
 * Groups are whole bytes, so pulses and levels were chosen together, as what fits them best; level and point share one
 * mixed code, so that there may be three levels or seven. Mean squared error on normal weights of variance 1:
 *
 *           K   levels   bits a weight       error    2^(-2 bits)   the level in bits of its own
 *   pvq2   11        3   2 + 16 / inputs     .0999    .0625         .1049, 2 levels
 *   pvq3   24        7   3 + 16 / inputs     .0250    .0156         .0272, 4 levels
 *   pvq4   49       14   4 + 16 / inputs     .0063    .0039         .0070, 8 levels
 *
 * Codes that no point has (a damaged file) are read as the last one. Folders of version 1 numbered the points otherwise and
 * are refused (server/model/hf_forms.c).
 */
#include "quant/pvq/pvq.h"

#include "quant/rotate.h"

const struct pvq_form pvq_form[PVQ_FORMS] = {
#include "quant/pvq/forms.inc"
};

static int form_of(const char *word)
{
    for (int i = 0; i < PVQ_FORMS; i++)
        if (strcmp(word, pvq_form[i].name) == 0)
            return i;
    return -1;
}

static bool knows_pvq(const char *word)
{
    return form_of(word) >= 0;
}

static int fits_pvq(const char *name, enum dtype from, int rows, int cols, int *variant)
{
    (void)from;
    (void)rows;
    int form = name != NULL ? form_of(name) : -1;
    if (form < 0 || cols % INPUT_GROUP != 0)
        return 0;
    *variant = form;
    return 1;
}

static void size_pvq(const struct weight *w, size_t bytes[CODEC_PLANES])
{
    size_t rows = (size_t)weight_panels(w) * CODEC_PANEL;
    bytes[0] = rows * (size_t)pvq_groups(w) * (size_t)pvq_form[w->variant].bytes;
    bytes[1] = rows * sizeof(uint16_t);
}

static void decode_pvq(const struct weight *w, int row, float *dst)
{
    const struct pvq_form *f = &pvq_form[w->variant];
    const struct pyramid *t = pyramid_tables();
    int panel = row / CODEC_PANEL;
    int lane = row % CODEC_PANEL;
    float row_scale = f16_to_f32(pvq_scales(w, panel)[lane]);
    for (int g = 0; g < pvq_groups(w); g++) {
        int8_t y[PYRAMID_N];
        uint64_t code = pvq_code(pvq_cell(w, panel, g, f->bytes), lane, f->bytes);
        int level = pyramid_point(t, f->k, f->levels, code, y);
        float scale = pvq_scale(f->gain[level], row_scale, pvq_norm2(y));
        for (int i = 0; i < PYRAMID_N; i++)
            dst[g * PYRAMID_N + i] = (float)y[i] * scale;
    }
    rotate_back(CPU_REF, dst, dst, 1, w->cols);
}

static void rescale_pvq(struct weight *w, int row, float factor)
{
    uint16_t *scale = pvq_scales(w, row / CODEC_PANEL) + row % CODEC_PANEL;
    *scale = f16_scale(*scale, factor);
}

static const char *form_pvq(const struct weight *w)
{
    return pvq_form[w->variant].name;
}

const struct codec codec_pvq = {
    .name = "pvq",
    .step = TILE_PANELS,
    .rotated = true,
    .knows = knows_pvq,
    .fits = fits_pvq,
    .size = size_pvq,
    .encode = pvq_encode,
    .press = pvq_press,
    .plane_name = { "codes", "scales" },
    .decode = decode_pvq,
    .rescale = rescale_pvq,
    .form = form_pvq,
    .cpu = { &pvq_ref, &pvq_avx2, &pvq_avx512, NULL },
    .cuda = CODEC_CUDA(pvq_cuda),
};
