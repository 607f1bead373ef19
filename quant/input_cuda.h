/* Preparing inputs on the GPU, for input.c. Built only with WRING_CUDA. */
#ifndef WRING_QUANT_INPUT_CUDA_H
#define WRING_QUANT_INPUT_CUDA_H

#include "quant/codec.h"

/* Makes in->prep[kind], PREP_BF16 or PREP_BF16X3, in in->ws. */
void input_prepare_cuda(struct input *in, struct be *be, enum prep kind);
size_t input_cuda_bytes(int n,
                        int cols); /* of both, so that matrices of both kinds can read one input */

#endif
