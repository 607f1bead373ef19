/* A small world for tests of attention: sequences with their pages, keys and values in a cache, and queries. All of it is
 * host memory, written by the plain C definition; a test for a device uploads what it needs.
 *
 * The cache is filled with NaN first, so that a read of a slot that nobody wrote shows.
 */
#ifndef WRING_TESTS_TOOLS_WORLD_H
#define WRING_TESTS_TOOLS_WORLD_H

#include "kernels/backend.h"

enum { WORLD_SEQS = 9, WORLD_PAGES = 1024, WORLD_HEADS = 8 };

struct world_shape {
    int n_kv, group, dim, window, n_seqs;
    int len[WORLD_SEQS];  /* positions 0 ... len - 1 */
    int rows[WORLD_SEQS]; /* of which the last ones are asked about */
    int from[WORLD_SEQS]; /* wide_pos0 */
    int narrow
        [WORLD_SEQS]; /* slots of head 0, head h has 3 * h more; -1: none in head 0; 0: no table */
    enum kv_narrow narrow_type;
};

struct world {
    struct world_shape s;
    struct be_kv kv; /* pool and beta in host memory */
    struct be_seq seqs[WORLD_SEQS];
    int32_t wide[WORLD_SEQS][WORLD_PAGES], narrow[WORLD_SEQS][WORLD_HEADS][WORLD_PAGES];
    const int32_t *narrow_of[WORLD_SEQS][WORLD_HEADS];
    int32_t n_narrow[WORLD_SEQS][WORLD_HEADS];
    size_t pool_bytes, beta_bytes, n_blocks;
    float *beta;                          /* [n_blocks][kv_side_floats] */
    float *k[WORLD_SEQS], *v[WORLD_SEQS]; /* [len - from][n_kv][dim] */
    float *q, *out, *lse;                 /* [n_rows][n_heads] (q, out: [dim]) */
    int n_rows, n_heads;
};

/* ref: the CPU at level "ref". The world is large: make it static. */
void world_open(struct world *w, struct be *ref, const struct world_shape *s, enum kv_type type);
void world_close(struct world *w);
/* The question about every row of every sequence. lse may be NULL. */
struct be_attend world_ask(const struct world *w, float *out, float *lse);
size_t world_floats(const struct world *w); /* of q and of out */

#endif
