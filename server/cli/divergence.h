/* How far the next token's distribution is from another one, both as logits. Pure functions of single rows. */
#ifndef WRING_SERVER_CLI_DIVERGENCE_H
#define WRING_SERVER_CLI_DIVERGENCE_H

struct peak {
    int best;   /* the first of the largest */
    double lse; /* log of the sum of the exponentials: logit - lse is a log probability */
};
struct peak peak_of(const float *x, int n);
/* sum_i p_i (log p_i - log q_i) in nats, never negative; p and q as n logits. */
double divergence(const float *p, const float *q, int n, double lse_p, double lse_q);

#endif
