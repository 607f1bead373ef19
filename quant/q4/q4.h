/* The q4 codec's own: shapes of its planes, and its kernels per ISA. The format is in q4.c. */
#ifndef WRING_QUANT_Q4_Q4_H
#define WRING_QUANT_Q4_Q4_H

#include "quant/input.h"

enum { Q4_CODES = CODEC_PANEL * INPUT_GROUP / 2 }; /* bytes of a panel's group */
enum { Q4_PLAIN, Q4_MIN };                         /* variants: code - 8, or code and a minimum */

static inline int q4_groups(const struct weight *w)
{
    return w->cols / INPUT_GROUP;
}
/* f16 numbers of a panel's group: scales, then minima. */
static inline int q4_numbers(int variant)
{
    return variant == Q4_MIN ? 2 * CODEC_PANEL : CODEC_PANEL;
}

extern const struct codec codec_q4;
extern const struct codec_cpu q4_ref, q4_avx2, q4_avx512;
extern const struct codec_cuda q4_cuda; /* q4_cuda.cu */

#endif
