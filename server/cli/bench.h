/* wring bench --kv, which bench.c hands over to. */
#ifndef WRING_SERVER_CLI_BENCH_H
#define WRING_SERVER_CLI_BENCH_H

#include "server/cli/cli.h"

/* Measures and prints; returns the exit code. */
int bench_kv(const struct model *m, const struct config *c);

/* Fills token[n] with ids that repeat from run to run. */
void bench_tokens(int32_t *token, int n, int vocab);
double bench_median(double *v, int n); /* sorts v */

#endif
