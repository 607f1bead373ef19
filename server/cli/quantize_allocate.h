/* wring quantize --bits, --size: what form of a family each matrix of the layers gets, so that all of them together take no
 * more than that many bits a weight, or the tensors of the folder no more than that many bytes.
 *
 * A family is what the words of its forms begin with: "trellis" of trellis2, trellis3, trellis4. What a choice costs is
 * the linearity theorem of HIGGS (arXiv 2411.17525, theorem 1): errors of the matrices raise the divergence of the
 * outputs by sum over matrices of alpha * t^2, t^2 = |W - W^|^2 / |W|^2. t^2 of a form is measured on Gaussian numbers,
 * alpha of a matrix by a probe: noise of a known t^2 in the place of W's error. The sum is made least by quant/allocate.h.
 *
 * All of it is noted in OUT/quantize.json, below "allocation": "forms" has t^2 by form, "alpha" that of every probed
 * matrix in nats a token, "choice" a word for every matrix. Numbers are rounded to float, which nine digits keep, so a
 * run that goes on computes with what the first one did.
 *
 * quantize_allocate.c chooses, quantize_probe.c measures alpha, quantize_gauss.c makes Gaussian numbers and presses some.
 */
#ifndef WRING_SERVER_CLI_QUANTIZE_ALLOCATE_H
#define WRING_SERVER_CLI_QUANTIZE_ALLOCATE_H

#include "server/cli/quantize.h"

/* Whether --codec is a form, or with a budget a family. ERR_INVALID says what would be right. */
int quantize_check_codec(struct be *be, const struct config *c, struct err *e) WARN_UNUSED;
/* Whether the loaded model fits into the budget, where there is one. ERR_INVALID says the least that would do. */
int quantize_check_budget(struct quantize *q, struct err *e) WARN_UNUSED;
/* Notes a choice for every matrix, where there is a budget and no choice yet. ERR_CANCELLED after a signal: probes of
 * the layers that were done are kept. */
int quantize_allocate(struct quantize *q, struct err *e) WARN_UNUSED;
/* The word that a layer's matrix is to be pressed to. */
const char *quantize_form(const struct quantize *q, const struct slot *s);

/* Sees to it that the n matrices, which stand in the order of their layers, have a number below "alpha". */
int quantize_probe(struct quantize *q, const struct slot *const *s, int n,
                   struct err *e) WARN_UNUSED;

/* x[n] of a normal distribution with mean 0 and variance 1: a function of seed and stream. */
void gauss_fill(float *x, int n, uint64_t seed, uint64_t stream);
/* t^2 of a form: what encoding loses of Gaussian numbers, without feedback. */
int gauss_error(struct be *be, const char *form, double *t2, struct err *e) WARN_UNUSED;

#endif
