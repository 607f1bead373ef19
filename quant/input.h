/* Prepared inputs: what PREP_I8 and the like look like in memory. For codec kernels only. */
#ifndef WRING_QUANT_INPUT_H
#define WRING_QUANT_INPUT_H

#include "quant/codec.h"

/* PREP_I8. A group of 32 inputs is x[i] ~ q[i] * scale with scale = max|x| / 127, q rounded to nearest even. Relative
 * error of a product with random signs: about 0.4 % of its norm; perplexity moves by far less than 0.3 %. */
struct input_i8 {
    int8_t *q;     /* [n][cols] */
    float *scale;  /* [n][cols / 32] */
    float *sum;    /* [n][cols / 32] scale * sum of the group's q */
    int32_t *isum; /* [n][cols / 32] sum of the group's q */
};
enum { INPUT_GROUP = 32 };

/* Makes in->prep[kind] if it is not there yet. Spreads over be->par when there are many rows. */
void input_prepare(struct input *in, struct be *be, enum prep kind);

#endif
