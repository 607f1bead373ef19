/* The pvq codec's own: its forms, its planes, and its kernels per ISA. The format is in pvq.c.
 */
#ifndef WRING_QUANT_PVQ_PVQ_H
#define WRING_QUANT_PVQ_PVQ_H

#include <math.h>

#include "quant/pvq/pyramid.h"
#include "quant/tiledot.h"

enum { PVQ_LEVELS = 14 };
enum { PVQ2, PVQ3, PVQ4, PVQ_FORMS }; /* variants */
enum { PVQ_LINE = TILE_ROWS * 4 };    /* bytes of a line of a tile */

struct pvq_form {
    const char *name;
    int bytes;   /* of a group */
    int k;       /* pulses */
    int levels;  /* of the gain: levels * V(16, k) fits the bytes */
    float scale; /* of a row before it is fitted, in units of the root mean square of its weights */
    float gain[PVQ_LEVELS];
};
extern const struct pvq_form pvq_form[PVQ_FORMS];

static inline int pvq_groups(const struct weight *w)
{
    return w->cols / PYRAMID_N;
}

/* The codes of a panel's group: lower words of sixteen rows, then what they have above 32 bits. */
static inline uint8_t *pvq_cell(const struct weight *w, int panel, int group, int bytes)
{
    size_t cell = (size_t)panel * (size_t)pvq_groups(w) + (size_t)group;
    return (uint8_t *)w->plane[0] + cell * (size_t)(CODEC_PANEL * bytes);
}

static inline uint16_t *pvq_scales(const struct weight *w, int panel)
{
    return (uint16_t *)w->plane[1] + (size_t)panel * CODEC_PANEL;
}

CODEC_INLINE uint64_t pvq_code(const uint8_t *cell, int lane, int bytes)
{
    uint32_t low;
    uint32_t high = 0;
    uint16_t half;
    memcpy(&low, cell + 4 * lane, sizeof low);
    if (bytes == 6) {
        memcpy(&half, cell + 4 * CODEC_PANEL + 2 * lane, sizeof half);
        high = half;
    } else if (bytes == 8) {
        memcpy(&high, cell + 4 * CODEC_PANEL + 4 * lane, sizeof high);
    }
    return (uint64_t)high << 32 | low;
}

/* What an element of y is multiplied with; divided last, so that kernels can take the norms of many rows together. */
CODEC_INLINE float pvq_scale(float gain, float row_scale, int norm2)
{
    return gain * row_scale / sqrtf((float)norm2);
}

static inline int pvq_norm2(const int8_t *y)
{
    int norm2 = 0;
    for (int i = 0; i < PYRAMID_N; i++)
        norm2 += y[i] * y[i];
    return norm2;
}

void pvq_encode(struct weight *w, int row0, int n, const float *src);
int pvq_press(struct weight *w, int row0, int n, const float *src, const struct moments *m,
              struct err *e);

extern const struct codec codec_pvq;
extern const struct codec_cpu pvq_ref, pvq_avx2, pvq_avx512;
extern const struct codec_cuda pvq_cuda;

#endif
