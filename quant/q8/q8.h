/* The q8 codec's own: shapes of its planes, and its kernels per ISA. The format is in q8.c. */
#ifndef WRING_QUANT_Q8_Q8_H
#define WRING_QUANT_Q8_Q8_H

#include "quant/input.h"

enum { Q8_CODES = CODEC_PANEL * INPUT_GROUP }; /* bytes of a panel's group */

static inline int q8_groups(const struct weight *w)
{
    return w->cols / INPUT_GROUP;
}
extern const struct codec codec_q8;
extern const struct codec_cpu q8_ref, q8_avx2, q8_avx512;
extern const struct codec_cuda q8_cuda; /* q8_cuda.cu */

#endif
