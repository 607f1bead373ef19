/* What the files of `checkops --bench` share. See check_bench.c. */
#ifndef WRING_TESTS_OPS_CHECK_BENCH_H
#define WRING_TESTS_OPS_CHECK_BENCH_H

#include "kernels/backend.h"
#include "kernels/cpu/bound.h"
#include "server/base/table.h"

enum { REGIONS = 4 };

/* The model whose shapes are measured. */
struct shape {
    int dim, kv, ffn, vocab, heads, kv_heads, head_dim;
    int rows[5], n_rows; /* of the ops on rows and of the products */
    int depth[3], n_depths;
    size_t region; /* bytes of each array of activations, and of those that flush */
};
struct speed;
struct bench {
    struct be *be;
    const struct shape *s;
    double gbs, gops[BOUND_DOT_N];
    float *region[REGIONS], *flush[2];
    struct table *table;
    bool json;
    uintptr_t n_measured;
    const struct speed *now; /* what is being measured */
};

/* One thing to measure. call() runs it once, on copy `i`; step is what step_begin made of `step`. */
struct speed {
    const char *op, *form;
    char shape[40];
    void (*call)(struct bench *b, const struct speed *t, int i, const struct be_step *step);
    struct be_step step; /* n_rows 0: outside of a step */
    int n, dim;          /* rows, and numbers of each */
    int copies;
    double bytes, ops; /* of one call */
    enum bound_dot peak;
    const void *more, *owner;
};

/* Runs t until its median is known, and adds a row. */
void bench_measure(struct bench *b, struct speed *t);

struct caches {
    enum kv_type type;
    char *pool;
    size_t bytes; /* of one copy */
};

/* c->pool: random numbers of the cache's type, below 1, one mebibyte of them again and again. */
bool bench_caches(struct bench *b, struct caches *c, size_t bytes);

void bench_probes(struct bench *b); /* check_bench_probe.c */

#endif
