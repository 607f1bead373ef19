/* What the files of the CUDA backend share: its state, its scratch memory, its errors, and who fills which slots.
 *
 * One stream carries everything, in order. Ops only start work; an error of a launch is kept in the state and comes out
 * of sync(), as struct err with the place. After an error nothing more is started.
 * Scratch is sized when the backend opens or a step grows (between steps): ops allocate nothing.
 */
#ifndef WRING_KERNELS_CUDA_STATE_CUH
#define WRING_KERNELS_CUDA_STATE_CUH

#include "kernels/cuda/cu.cuh"

extern "C" {
#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "server/base/mem.h"
}

struct cu_graphs; /* recorded passes: step.cu */
struct cu_blas;   /* blas.h */

/* Partial results of attention spans: contexts of 2M tokens together, one row each of 32 heads of 128. What does not fit
 * is done unsplit, with the same bits. */
#define CU_PARTIAL_BYTES ((size_t)65 << 20)

struct cu_span {
    int32_t seq, i;
};

/* The sequences that attention takes in one launch. A span is ATTEND_SPAN slots, narrow or wide; of layers that differ
 * the one with most spans counts. */
struct cu_seqs {
    int n, max_rows;            /* most rows of a sequence */
    int max_spans, n_spans;     /* of the longest sequence, and of all */
    const struct cu_span *seq;  /* device: [n] the sequences, and where in `span` each begins */
    const struct cu_span *span; /* device: [n_spans] whose, its number there; seq < 0: none */
};

/* The step under way, as the host knows it: for the shapes of launches. Lengths that kernels depend on are read on the
 * device, so that a recorded pass serves later steps. */
struct cu_step {
    int n_rows;
    const int32_t
        *row_seq;          /* device: [n_rows] the sequence of each row; -1: a row without effect */
    struct cu_seqs single; /* sequences of at most one row */
    struct cu_seqs many;   /* of more; no recorded pass has any */
};

struct cu_state {
    struct be_ops ops;
    cudaStream_t stream;
    int device, n_sm; /* index, multiprocessors */
    bool overlaps;    /* a kernel may begin before the one ahead of it ends */
    bool wgmma;       /* its code has CU_WGMMA, and gemm_wide.cuh the bits of gemm.cuh */
    size_t l2_bytes;
    struct err error; /* the first failure; code 0: none */
    struct cu_step step;
    struct cu_graphs *graphs;
    float *partial;       /* device: CU_PARTIAL_BYTES */
    char *pinned;         /* host: staging of copies, CU_PINNED_BYTES */
    size_t pinned_used;   /* of them, that uploads under way may still read */
    struct cu_blas *blas; /* NULL: not asked for, or cuBLAS is not there */
    void *head;           /* head.cu's buffers; NULL until first used */
};
#define CU_PINNED_BYTES ((size_t)8 << 20)

static inline struct cu_state *cu_of(const struct be *be)
{
    return (struct cu_state *)be->state;
}

/* Keeps the first error, with the call and its place. True when all is well. Call cu_ok(s) first thing in every op. */
#define CU_CHECK(s, call) cu_check(s, call, #call, __FILE__, __LINE__)
bool cu_check(struct cu_state *s, cudaError_t rc, const char *call, const char *file, int line);
/* After launches: takes what cudaGetLastError has. */
#define CU_LAUNCHED(s) cu_check(s, cudaGetLastError(), "launch", __FILE__, __LINE__)
static inline bool cu_ok(const struct cu_state *s)
{
    return s->error.code == 0;
}
/* The same, and the calling thread works on the state's GPU: a thread begins on GPU 0, whichever another one has chosen,
 * and may allocate before its first step. */
bool cu_on_device(struct cu_state *s);

static inline unsigned cu_div_up(size_t a, size_t b)
{
    return (unsigned)((a + b - 1) / b);
}

static inline __host__ __device__ int pages_of(int slots)
{
    return (slots + KV_PAGE - 1) / KV_PAGE;
}

/* Each file fills its slots. */
void cu_ops_bound(struct be_ops *ops);  /* bound.cu: bounds */
void cu_ops_step(struct be_ops *ops);   /* step.cu: step_begin, step_end */
void cu_ops_rows(struct be_ops *ops);   /* rows.cu: rmsnorm, add, gather, swiglu */
void cu_ops_rope(struct be_ops *ops);   /* rope.cu: position and cache, but attention */
void cu_ops_attend(struct be_ops *ops); /* attend.cu */
void cu_ops_head(struct be_ops *ops);   /* head.cu */
void cu_ops_probe(struct be_ops *ops);  /* probe.cu */
void cu_ops_press(struct be_ops *ops);  /* press.cu */
void cu_head_close(struct be *be);      /* frees s->head */

bool cu_wide_works(struct cu_state *s); /* wide_check.cu; where the code has CU_WGMMA */
bool cu_graphs_open(struct cu_state *s);
void cu_graphs_close(struct be *be);
void cu_graphs_drop(struct cu_state *s); /* memory they point to went away, or will */

#endif
