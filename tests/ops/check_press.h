/* What the checks of pressing work on: a made-up cache with a choice of its slots, the op's answer, and the host's. */
#ifndef WRING_TESTS_OPS_CHECK_PRESS_H
#define WRING_TESTS_OPS_CHECK_PRESS_H

#include "kvcache/fit.h"
#include "tests/ops/check_probe.h"

struct press_shape {
    struct probe_shape s;
    int keep, more; /* slots of head 0; how many more each further head keeps */
    int exact;      /* of 4 kept slots */
};

/* What is asked of the fit, and what is wrong with its numbers. */
enum fault { FAULT_NONE, FAULT_WEIGHT, FAULT_RIDGE, FAULT_KEY, FAULT_VALUE, FAULT_N };
struct how {
    enum kv_merge merge;
    float lambda;
    enum fault fault;
};

struct press_case {
    struct probe_case t;
    struct how how;
    int items, pages;               /* pages: that a head may fill */
    int32_t *n_keep, *keep, *first; /* first[i]: where keep of item i begins */
    bool *exact;
    float *low, *high, *weight;
};

/* What a run leaves: the pool and its sides, and which blocks were written. */
struct pressed {
    char *pool;
    float *side;
    const int32_t *block; /* [items][pages] */
};

int press_case_rows(const struct press_case *p); /* reference rows of a head */
/* What the cache adds to the logit of one of a head's candidates. */
float press_case_bias(const struct press_case *p, const struct probe_head *h, int candidate);
void press_case_open(struct check *c, struct press_case *p, const struct press_shape *shape,
                     enum kv_type type, const struct how *how);
/* What the op under test leaves for the first n_layers, in spare blocks or in the heads' own. */
struct pressed press_case_run(struct check *c, struct press_case *p, int n_layers, bool in_place);
/* What the host makes of one head, and the pages that it writes. */
struct kv_kept press_case_head(struct check *c, const struct press_case *p, int item);
struct pressed press_case_pages(struct check *c, const struct press_case *p,
                                const struct kv_kept *kept, const int32_t *block);
/* All slots of a head's pages, those behind its own too. */
struct kv_kept press_case_read(struct check *c, const struct press_case *p,
                               const struct pressed *out, const int32_t *block, int pages);

#endif
