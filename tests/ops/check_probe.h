/* What the checks of probing and pressing share: a made-up cache with its records, and the definition of one head over it. */
#ifndef WRING_TESTS_OPS_CHECK_PROBE_H
#define WRING_TESTS_OPS_CHECK_PROBE_H

#include "kernels/probe.h"
#include "tests/ops/check.h"

struct probe_shape {
    int n_layers, n_kv, group, dim, half, n_wide, n_tail, n_ref;
    int n_set[BE_PROBE_SETS];
    int narrow; /* slots of head 0, each further head has 5 more; -1: there are none anywhere */
    bool half_split;
    bool copies; /* all layers have the pages and records of the first */
    enum kv_narrow narrow_type;
};

/* A cache, its records and the question, in host memory; pool, beta and records as they will lie on the device. */
struct probe_case {
    struct probe_shape s;
    enum kv_type type;
    struct be_probe p;
    char *pool, *records;
    float *beta, *q; /* q: [layers][records][n_heads][dim], as the records hold them */
    size_t pool_bytes, beta_bytes, record_bytes, n_blocks;
    int32_t *wide, *narrow, *n_narrow, *see;
    int *record_at; /* [layers][records] its place among the records */
    int n_spare;    /* blocks at the end of the pool that nobody has */
};

static inline int probe_pages(int slots)
{
    return (slots + KV_PAGE - 1) / KV_PAGE;
}

int probe_kinds(const struct probe_shape *s); /* layers that have pages of their own */
void probe_case_open(struct check *c, struct probe_case *t, const struct probe_shape *s,
                     enum kv_type type, int n_spare);
/* The question about the first n_layers, its cache and records on the backend under test; `out` is the caller's. */
struct be_probe probe_case_put(struct check *c, const struct probe_case *t, int n_layers);

/* One head, as kernels/probe.h sees it. */
struct probe_head probe_case_head(struct check *c, const struct probe_case *t, int item);
/* Queries of n records from the given one on, of the heads of an item's group; their log-sum-exps; what each sees. */
float *probe_case_queries(struct check *c, const struct probe_case *t, int item, int record, int n);
float *probe_case_lse(const struct probe_case *t, int item, int record);
int32_t *probe_case_seen(struct check *c, const struct probe_case *t, int record, int n);

/* The references of an item: turned, and what they get from its candidates. */
struct probe_rows {
    float *q, *o, *lse;
};
struct probe_rows probe_case_rows(struct check *c, const struct probe_case *t, int item,
                                  const struct probe_head *h);

#endif
