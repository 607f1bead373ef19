/* Probing one KV head: what queries make of its slots, without a matrix of weights ever being there.
 *
 * Host code over a cache in host memory: one head, one thread; callers spread heads over the pool of workers. The plain C
 * level (CPU_REF) is the definition, the others are tested against it (tests/ops). Every sum has one order, fixed by the
 * head's own sizes, so a head gives the same bits whoever is beside it.
 *
 * Two passes (reference: the log-sum-exp trick of FlashAttention-2's backward pass, arXiv 2307.08691 section 3.1.2): the
 * first leaves L_i, the log-sum-exp of row i; the second sums the columns of exp(x_ij - L_i) a tile at a time.
 * x_ij = scale * q_i.k_j + beta_j.
 */
#ifndef WRING_KERNELS_PROBE_H
#define WRING_KERNELS_PROBE_H

#include "kernels/backend.h"

/* One KV head's slots: narrow ones first, then wide ones; slot s >= n_narrow is wide slot s - n_narrow. Of what no slot
 * uses only the value that shares a pair with the last slot's is read: it must be finite, as for attention. */
struct probe_head {
    const void *pool;  /* block 0, host memory */
    const float *beta; /* of narrow slots, as in struct be_kv */
    enum kv_type type;
    enum kv_narrow narrow_type;
    int dim;
    const int32_t *narrow, *wide; /* block ids */
    int n_narrow, n_wide;         /* slots */
    float scale;
};

/* n queries of one head's group, [n][dim], unscaled. */
struct probe_queries {
    const float *q;
    const int32_t
        *see; /* [n] query i sees all narrow slots and wide slots below see[i]; NULL: every slot */
    int n;
};

/* Scratch of one thread for heads of that size; 64-byte aligned. What is in it does not matter. */
size_t probe_scratch_bytes(int dim);

/* o[n][dim] = softmax_j(x_ij) v_j and lse[n] = log sum_j exp(x_ij) (natural log); a query that sees nothing gives 0 and
 * -inf. A query's results are its own, bit for bit, whatever queries are beside it. Levels with a bf16 dot product round q
 * and the weights to bf16 when the cache is bf16, as attention does. Time is saved where neighbours see about as much:
 * give queries by rising see. */
void probe_attend(enum cpu_isa isa, const struct probe_head *h, const struct probe_queries *q,
                  float *o, float *lse, void *scratch);

/* sum[j] += sum_i weight_i p_ij and, where square is not NULL, square[j] += sum_i weight_i p_ij^2, with
 * p_ij = exp(x_ij - lse_i), 0 where i does not see j or lse_i is -inf. Arrays over all n_narrow + n_wide slots. The order
 * of the sum is that of the queries. */
void probe_sums(enum cpu_isa isa, const struct probe_head *h, const struct probe_queries *q,
                const float *lse, const float *weight, float *sum, float *square, void *scratch);

/* k[n][dim], v[n][dim] of the slots named, as f32; either may be NULL. */
void probe_gather(const struct probe_head *h, const int32_t *slot, int n, float *k, float *v);

/* n elements of a cache of that type, side by side, as f32. */
void probe_floats(enum kv_type type, float *to, const void *from, int n);

/* Writes k[n][dim], v[n][dim] into the first n slots of a block (n <= KV_PAGE; host memory), rounded to nearest even, the
 * rest of the block zeroed. */
void probe_write(void *block, enum kv_type type, int dim, const float *k, const float *v, int n);

/* The same as q8: the first n slots of a page (n <= KV_PAGE_Q8) and their scales in the page's side; the rest and the biases
 * are zeroed. A scale is the largest element by size over 127, rounded up to 16 significant bits: then number times scale is
 * exact in f32, and what was read from a page is written to another with the same bits. What is not finite makes its slot
 * NaN. The error of an element is at most half a scale. */
void probe_write_q8(void *block, float *side, int dim, const float *k, const float *v, int n);

#endif
