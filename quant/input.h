/* Prepared inputs: what PREP_I8 looks like in memory. For codec kernels only.
 *
 * Half a group, 16 inputs, is x[i] ~ q[i] * scale with scale = max|x| / 127, q rounded to nearest even: the error of a product
 * with int8 inputs is 0.5 % of its norm on normally distributed inputs (test_codec measures it). Halves have scales of
 * their own because of the outliers in the input of a feed-forward layer's second matrix.
 *
 * Rows lie in blocks of INPUT_BLOCK; the last block holds the n % INPUT_BLOCK rows that are left, packed as tightly. A block
 * of `width` rows holds, group after group, one record of width * INPUT_RECORD bytes, so that a kernel walks it with one
 * pointer:
 *
 *      int8_t  q[width][32]
 *      float   scale[2][width]    of each half
 *      float   sum[width]         sum of scale * sum of q over the halves
 *      int32_t neg8[2][width]     -8 * sum of the half's q      where sums start for codes stored with 8 added
 *      int32_t neg128[2][width]   -128 * sum of the half's q    ... with 128 added
 *      4 bytes a row unused
 */
#ifndef WRING_QUANT_INPUT_H
#define WRING_QUANT_INPUT_H

#include "quant/codec.h"

enum { INPUT_GROUP = 32, INPUT_BLOCK = 8, INPUT_HALF = 16, INPUT_RECORD = INPUT_GROUP + 32 };

/* Makes in->prep[kind] if it is not there yet. Spreads over be->par when there are many rows. */
void input_prepare(struct input *in, struct be *be, enum prep kind);

static inline int input_width(const struct input *in, int block)
{
    int left = in->n - block * INPUT_BLOCK;
    return left < INPUT_BLOCK ? left : INPUT_BLOCK;
}

static inline char *input_records(const struct input *in, int block)
{
    return (char *)in->prep[PREP_I8] +
           (size_t)block * INPUT_BLOCK * (size_t)(in->cols / INPUT_GROUP) * INPUT_RECORD;
}

/* The parts of one record that belong to half h of row r in it; sum is that of both halves. */
struct input_cell {
    int8_t *q;
    float *scale, *sum;
    int32_t *neg8, *neg128;
};

static inline struct input_cell input_cell(char *record, int width, int r, int h)
{
    float *numbers = (float *)(record + width * INPUT_GROUP) + r;
    int32_t *starts = (int32_t *)(record + width * (INPUT_GROUP + 12)) + r;
    struct input_cell c = { (int8_t *)record + r * INPUT_GROUP + h * INPUT_HALF,
                            numbers + h * width, numbers + 2 * width, starts + h * width,
                            starts + (2 + h) * width };
    return c;
}

/* Rounds one row to its cells, one function for each ISA; all give the same bits. */
typedef void input_i8_fn(const float *x, int groups, char *records, int width, int r);
input_i8_fn input_i8_avx2, input_i8_avx512;

#endif
