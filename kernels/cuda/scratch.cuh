/* Pieces of cu_state.partial, which is free between steps: what an op outside of a step works in. */
#ifndef WRING_KERNELS_CUDA_SCRATCH_CUH
#define WRING_KERNELS_CUDA_SCRATCH_CUH

#include "kernels/cuda/state.cuh"

enum { SCRATCH_ALIGN = 16 };

struct scratch {
    struct be *be;
    size_t used; /* may pass CU_PARTIAL_BYTES: then nothing is there */
};

static inline void *scratch_take(struct scratch *c, size_t bytes)
{
    size_t at = (c->used + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
    c->used = at + bytes;
    return (char *)cu_of(c->be)->partial + at;
}

static inline size_t scratch_left(const struct scratch *c)
{
    size_t at = (c->used + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
    return at < CU_PARTIAL_BYTES ? CU_PARTIAL_BYTES - at : 0;
}

/* A copy of n elements of a host array; what comes behind the end of the scratch is only counted. NULL stays NULL. */
template <class E> static const E *scratch_table(struct scratch *c, const E *src, size_t n)
{
    if (src == NULL || n == 0)
        return NULL;
    void *at = scratch_take(c, n * sizeof *src);
    if (c->used <= CU_PARTIAL_BYTES)
        c->be->ops->upload(c->be, at, src, n * sizeof *src);
    return (const E *)at;
}

#endif
