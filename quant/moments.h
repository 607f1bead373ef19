/* Second moments of a matrix's inputs, H = mean of x x^T over calibration tokens, made ready for error feedback.
 *
 * Sources: GPTQ (arXiv 2210.17323, section 3), LDLQ (QuIP, arXiv 2307.13304, section 3.1).
 */
#ifndef WRING_QUANT_MOMENTS_H
#define WRING_QUANT_MOMENTS_H

#include "kernels/backend.h"

struct moments {
    int cols;
    enum cpu_isa isa; /* for whoever computes with them */
    float *h;         /* [cols][cols] symmetric, damped */
    /* [cols][cols] upper triangle, zeros below it: inverse(h) = u^T u; what error feedback reads. Its rows and columns are
     * inputs in the order in which feedback takes them. */
    float *u;
    int *order;    /* [cols] that order; NULL: as they stand */
    float damping; /* what was added to the diagonal at first */
};

/* Sums up: h += x^T x of n rows, the upper triangle only; what lies below it means nothing. A row whose square length is
 * above `cap` (0: none) counts with that length: massive activations would make h singular. Spreads over par. */
void moments_add(float *h, const float *x, int n, int cols, float cap, enum cpu_isa isa,
                 struct par *par);
/* Takes h[cols][cols] (upper triangle, sums over n_tokens rows): divides, mirrors, rotates when asked (quant/rotate.h), adds
 * damp * mean of the diagonal to it, and factors. A direction that never occurs (a zero on the diagonal) gets the mean.
 * h is copied; without any token it counts as the identity. This and moments_add use the BLAS of quant/openblas.h when there is
 * one; their bits depend on whether, never on the threads of par. ERR_NOMEM; ERR_INVALID: not positive definite even with
 * ten times the damping, which is tried first. */
int moments_open(struct moments *m, const float *h, int64_t n_tokens, int cols, bool rotated,
                 float damp, enum cpu_isa isa, struct par *par, struct err *e) WARN_UNUSED;
/* Makes u anew for another order: inputs with the largest diagonal of h first (GPTQ's act-order), so that their errors can still
 * be made good by all others. Blocks of 128, 64 and 32 neighbours stay together, ordered by the sums of their diagonals: a
 * codec can find the scales of a group when its first input's turn comes. Equal ones go as they stand. For codecs that
 * are ordered. The errors of moments_open; m is then good for closing only. */
int moments_reorder(struct moments *m, struct par *par, struct err *e) WARN_UNUSED;
void moments_close(struct moments *m);

#endif
