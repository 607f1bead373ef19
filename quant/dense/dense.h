/* The dense codec's own. The format is in dense.c. */
#ifndef WRING_QUANT_DENSE_DENSE_H
#define WRING_QUANT_DENSE_DENSE_H

#include "quant/input.h"

enum { DENSE_F32, DENSE_F16, DENSE_BF16 }; /* variants */

extern const struct codec codec_dense;
extern const struct codec_cpu dense_ref, dense_avx2, dense_avx512;
extern const struct codec_cuda dense_cuda; /* dense_cuda.cu */

#endif
