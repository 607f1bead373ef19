/* What the files of the CPU backend share: its state, its scratch memory, and who fills which slots.
 *
 * cpu_ops_*() overwrite single slots of a table that the level below has filled, so a level holds only what it does
 * better. Sizes of scratch are maxima fixed here: ops allocate nothing.
 */
#ifndef WRING_KERNELS_CPU_CPU_H
#define WRING_KERNELS_CPU_CPU_H

#include "kernels/backend.h"

struct attend_kernel;

enum {
    CPU_ATTEND_ROWS = 48,    /* (token, head) rows that share one walk over the keys of a KV head */
    CPU_ATTEND_UNITS = 4096, /* row blocks planned at once; more are done in waves */
};

struct cpu_state {
    struct be_ops ops;
    const struct attend_kernel *attend[KV_TYPE_N]; /* NULL on the ref level */
    struct attend_unit *units;                     /* [CPU_ATTEND_UNITS] */
    float *partial; /* results of spans that wait for their merge; CPU_PARTIAL_BYTES */
    char *scratch;  /* [threads][CPU_SCRATCH_BYTES] */
    size_t units_bytes, scratch_bytes;
};

/* Enough for spans of a context of 128k with 64 heads of 128; what does not fit is done unsplit, with the same bits. */
#define CPU_PARTIAL_BYTES ((size_t)16 << 20)
/* Per thread: q, the running sums and a converted tile of CPU_ATTEND_ROWS rows of BE_HEAD_DIM_MAX. */
#define CPU_SCRATCH_BYTES ((size_t)1 << 20)

int cpu_open(struct be **out, const struct be_config *c, struct err *e) WARN_UNUSED;

static inline struct cpu_state *cpu_state(const struct be *be)
{
    return be->state;
}

static inline int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Runs fn over [0, n) by the pool, or at once on the caller when `work` (bytes touched, or about as many simple
 * operations) is too small to be worth a barrier. */
void cpu_for(struct be *be, int n, int grain, size_t work, par_fn *fn, void *arg);

void cpu_ops_ref(struct be_ops *ops);
void cpu_ops_head(struct be_ops *ops);
void cpu_ops_avx2(struct be_ops *ops);
void cpu_ops_avx512(struct be_ops *ops);

/* attend.c: the walk over spans for the kernels in state->attend. */
void cpu_attend(struct be *be, const struct be_attend *a);

#endif
