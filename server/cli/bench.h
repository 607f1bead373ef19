/* wring bench --kv, which bench.c hands over to. */
#ifndef WRING_SERVER_CLI_BENCH_H
#define WRING_SERVER_CLI_BENCH_H

#include "server/cli/eval_kv.h"

/* What is to be measured, as the options say: before a model is loaded. g is the caller's to close, on success. ERR_INVALID. */
int bench_kv_read(struct kv_grid *g, const struct config *c, struct err *e) WARN_UNUSED;
/* Measures and prints; returns the exit code. */
int bench_kv(const struct model *m, const struct config *c, const struct kv_grid *g);

/* Fills token[n] with ids that repeat from run to run. */
void bench_tokens(int32_t *token, int n, int vocab);
double bench_median(double *v, int n); /* sorts v */

#endif
