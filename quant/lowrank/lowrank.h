/* The lowrank codec's own: its parts as weights, the fit of its factors, and products with them. The format is in lowrank.c. */
#ifndef WRING_QUANT_LOWRANK_LOWRANK_H
#define WRING_QUANT_LOWRANK_LOWRANK_H

#include "quant/codec.h"

/* How w's planes are a sum. */
struct weight_sum lowrank_split(const struct weight *w);

/* Factors of x[rows][cols], a[rank][rows] (turned) and b[rank][cols], with the least |x - a^T b| or nearly so. The rows of a are
 * orthonormal, or zero where x has a lower rank. One thread. */
void lowrank_fit(enum cpu_isa isa, const float *x, int rows, int cols, int rank, float *a,
                 float *b);

/* a b x on its way: what b made of the input. */
struct lowrank_mul {
    struct weight a;
    codec_mul *mul; /* of dense matrices */
    float *t;       /* [n][rank] */
    int n;
};
/* t = b x, [n][rank] at room, 64-byte aligned; spreads over par when there are many rows. Returns where it ends. in: in the
 * space of b. */
char *lowrank_begin(struct lowrank_mul *l, const struct weight_sum *s, const struct input *in,
                    codec_mul *mul, struct par *par, char *room);
/* y[n][rows of a] += a t in panels [p0, p1). Each number is the sum of a row of a with one of t, in the order of dense
 * products, added to what is there: it depends on neither n nor the panels. */
void lowrank_add(const struct lowrank_mul *l, float *y, int p0, int p1);

extern const struct codec codec_lowrank;

#endif
