/* The planes codec's own: shapes of its planes, the fit of a group, and its kernels per ISA. The format is in planes.c.
 */
#ifndef WRING_QUANT_PLANES_PLANES_H
#define WRING_QUANT_PLANES_PLANES_H

#include "quant/tiledot.h"

enum { PLANES_BITS = 8, PLANES_WIDTHS = 3, PLANES_GROUP = 128 }; /* the most of each */

/* variant: bits * 4 + log2(group / 32) */
static inline int planes_variant(int bits, int width)
{
    return bits * 4 + width;
}
static inline int planes_bits(const struct weight *w)
{
    return w->variant / 4;
}
/* Inputs that share a scale: 32, 64 or 128. */
static inline int planes_group(const struct weight *w)
{
    return INPUT_GROUP << w->variant % 4;
}
/* Panels of a unit: fewer in the last one. */
static inline int planes_height(const struct weight *w, int unit)
{
    int left = weight_panels(w) - unit * TILE_PANELS;
    return left < TILE_PANELS ? left : TILE_PANELS;
}
/* f16 numbers of a panel's group: scales, then minima, which 1 bit does without. */
static inline int planes_numbers(int bits)
{
    return bits == 1 ? CODEC_PANEL : 2 * CODEC_PANEL;
}
/* Bytes of a panel's 32 inputs. */
static inline int planes_codes(int bits)
{
    return CODEC_PANEL * INPUT_GROUP / 8 * bits;
}

/* The first cell, which is a panel by some columns, of columns k of a unit: `wide` columns to a cell. */
static inline size_t planes_cell(const struct weight *w, int unit, int k, int wide)
{
    return (size_t)unit * TILE_PANELS * (size_t)(w->cols / wide) +
           (size_t)(k / wide) * (size_t)planes_height(w, unit);
}
/* Codes of the first panel of a unit in tile g; the other panels lie behind it. */
static inline uint8_t *planes_codes_at(const struct weight *w, int unit, int g)
{
    return (uint8_t *)w->plane[0] + planes_cell(w, unit, g * INPUT_GROUP, INPUT_GROUP) *
                                        (size_t)planes_codes(planes_bits(w));
}
/* Numbers of the first panel of a unit for column k. */
static inline uint16_t *planes_numbers_at(const struct weight *w, int unit, int k)
{
    return (uint16_t *)w->plane[1] +
           planes_cell(w, unit, k, planes_group(w)) * (size_t)planes_numbers(planes_bits(w));
}

/* What a code means: w = (code - planes_middle) * d + m. */
struct planes_fit {
    float d, m; /* f16 numbers */
};
static inline int planes_middle(int bits)
{
    return bits == 8 ? 128 : 0;
}
/* The scale and minimum of n numbers (a multiple of 8 up to PLANES_GROUP) with a small sum of weight[k] * error^2. weights
 * are positive. */
struct planes_fit planes_fit(const float *x, const float *weight, int n, int bits);
/* The nearest code; NaN gives some code. */
int planes_code(float x, struct planes_fit f, int bits);

extern const struct codec codec_planes;
extern const struct codec_cpu planes_ref, planes_avx2, planes_avx512;
extern const struct codec_cuda planes_cuda;

#endif
