/* What rows of logits say: the choice, how far another row is from it, what the tokens that came were worth. */
#ifndef WRING_SERVER_CLI_LOGITS_H
#define WRING_SERVER_CLI_LOGITS_H

#include <stdint.h>

#include "server/base/par.h"

struct peak {
    int best;   /* the first of the largest */
    double lse; /* log of the sum of exp: -log p[i] is lse - x[i] */
};
struct peak logits_peak(const float *x, int n);
/* KL(p || q) = sum_i p_i (log p_i - log q_i) in nats, p and q by their logits and those logits' lse. Equal rows give 0; what
 * rounding takes below 0 is 0. */
double logits_kl(const float *p, const float *q, int n, double lse_p, double lse_q);
/* kl[r] = KL(p || q) of row r of both [n][vocab]; rows spread over par. */
void logits_kls(struct par *par, const float *p, const float *q, int vocab, int n, double *kl);
/* nll[r] = -log p(next[r]) by row r of x [n][vocab], in nats; rows spread over par. */
void logits_nll(struct par *par, const float *x, int vocab, const int32_t *next, int n,
                double *nll);

#endif
