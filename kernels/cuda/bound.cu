/* What this GPU can do at best, measured: the numbers that a speed is put next to.
 *
 * Copying: a kernel in which each thread moves 64 bytes by four loads and then four stores of 16, between buffers of
 * sixteen times the L2 cache, so that all of it goes through device memory. Bytes moved: each buffer once, counted as
 * 2 * size; a decode step only reads, which is never slower. Products: bf16 by cuBLASLt with f32 sums, 8192 x 8192 x 8192
 * where the GPU is large, 2 operations a multiply-add; without cuBLAS there is no bound. Both on random bits: zeros let the
 * chip run at a higher clock than data does. The median of PASSES counts, each pass REPEAT launches long so that
 * the host's part (some microseconds) does not show. About 0.2 s on an H200.
 */
#include "kernels/cuda/state.cuh"

extern "C" {
#include "kernels/cuda/blas.h"
#include "server/base/clock.h"
}

enum { PASSES = 9, REPEAT = 8, SLOW_NS = 20000000 };
enum { THREADS = 256, PIECES = 4, BLOCK_BYTES = THREADS * PIECES * 16 };

/* p[i] = a random number of the bits in `keep`, with the bits in `set`. */
static __global__ void __launch_bounds__(THREADS)
    fill_random(uint32_t *p, uint32_t keep, uint32_t set, uint32_t seed)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    uint32_t h = (uint32_t)i * 0x9e3779b1u + seed;
    h = (h ^ h >> 16) * 0x85ebca6bu; /* the finalizer of MurmurHash3 */
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    p[i] = ((h ^ h >> 16) & keep) | set;
}

static __global__ void __launch_bounds__(THREADS) copy_pieces(uint4 *dst, const uint4 *src)
{
    size_t at = (size_t)blockIdx.x * (THREADS * PIECES) + threadIdx.x;
    uint4 v[PIECES];
    for (int i = 0; i < PIECES; i++)
        v[i] = src[at + i * THREADS];
    for (int i = 0; i < PIECES; i++)
        dst[at + i * THREADS] = v[i];
}

struct product {
    struct cu_blas *blas;
    int side;
};

/* One launch of what is measured, from a to b. */
typedef bool work_fn(struct cu_state *s, const void *arg, void *a, void *b);

static bool copy(struct cu_state *s, const void *arg, void *a, void *b)
{
    size_t bytes = *(const size_t *)arg;
    CU_LAUNCH(s->stream, (unsigned)(bytes / BLOCK_BYTES), THREADS, 0, copy_pieces, (uint4 *)b,
              (const uint4 *)a);
    return CU_LAUNCHED(s);
}

/* a holds both factors, side * side elements each. */
static bool multiply(struct cu_state *s, const void *arg, void *a, void *b)
{
    const struct product *p = (const struct product *)arg;
    const uint16_t *x = (const uint16_t *)a;
    (void)s;
    return blas_matmul(p->blas, x, x + (size_t)p->side * p->side, NULL, (float *)b, p->side,
                       p->side, p->side, p->side);
}

/* Nanoseconds of one of n launches; 0 when it failed. */
static double pass(struct cu_state *s, int n, work_fn *work, const void *arg, void *a, void *b)
{
    bool ok = CU_CHECK(s, cudaStreamSynchronize(s->stream));
    uint64_t from = clock_ns();
    for (int i = 0; ok && i < n; i++)
        ok = work(s, arg, a, b);
    ok = ok && CU_CHECK(s, cudaStreamSynchronize(s->stream));
    return ok ? (double)(clock_ns() - from + 1) / n : 0;
}

/* The first launch loads code and picks algorithms. One that is slow by itself needs no repetition. */
static double measure(struct cu_state *s, work_fn *work, const void *arg, void *a, void *b)
{
    double ns[PASSES];
    if (pass(s, 1, work, arg, a, b) <= 0)
        return 0;
    double once = pass(s, 1, work, arg, a, b);
    if (once <= 0 || once > SLOW_NS)
        return once;
    for (int i = 0; i < PASSES; i++) {
        double t = pass(s, REPEAT, work, arg, a, b);
        if (t <= 0)
            return 0;
        int at = i;
        for (; at > 0 && t < ns[at - 1]; at--)
            ns[at] = ns[at - 1];
        ns[at] = t;
    }
    return ns[PASSES / 2];
}

/* Measures with buffers of these sizes (multiples of 1 KiB), a filled with random numbers. */
static double measure_with(struct be *be, work_fn *work, const void *arg, size_t a_bytes,
                           size_t b_bytes, uint32_t keep, uint32_t set)
{
    struct cu_state *s = cu_of(be);
    void *a = be->ops->alloc(be, a_bytes);
    void *b = be->ops->alloc(be, b_bytes);
    double ns = 0;
    if (a != NULL && b != NULL) {
        CU_LAUNCH(s->stream, (unsigned)(a_bytes / (THREADS * 4)), THREADS, 0, fill_random,
                  (uint32_t *)a, keep, set, 1u);
        if (CU_LAUNCHED(s))
            ns = measure(s, work, arg, a, b);
    }
    be->ops->free(be, b, b_bytes);
    be->ops->free(be, a, a_bytes);
    return ns;
}

static double copy_bound(struct be *be)
{
    size_t bytes = cu_of(be)->l2_bytes * 16 / BLOCK_BYTES * BLOCK_BYTES;
    bytes = bytes < BLOCK_BYTES ? (size_t)BLOCK_BYTES : bytes;
    double ns = measure_with(be, copy, &bytes, bytes, bytes, 0xffffffffu, 0);
    return ns > 0 ? 2 * (double)bytes / ns : 0;
}

/* Elements are +-0.5 to +-1: sign and mantissa are random, the exponent is fixed. */
static double dot_bound(struct be *be)
{
    struct cu_state *s = cu_of(be);
    struct err why;
    struct product p = { s->blas, s->n_sm * 64 < 8192 ? s->n_sm * 64 : 8192 };
    if (s->blas == NULL && blas_open(&p.blas, s, &why) < 0)
        return 0;
    size_t n = (size_t)p.side * p.side;
    double ns = measure_with(be, multiply, &p, 2 * n * sizeof(uint16_t), n * sizeof(float),
                             0x807f807fu, 0x3f003f00u);
    if (s->blas == NULL)
        blas_close(p.blas);
    return ns > 0 ? 2 * (double)n * p.side / ns : 0;
}

static void cuda_bounds(struct be *be, double *copy_gbs, double *dot_gops)
{
    *copy_gbs = cu_ok(cu_of(be)) ? copy_bound(be) : 0;
    *dot_gops = cu_ok(cu_of(be)) ? dot_bound(be) : 0;
}

void cu_ops_bound(struct be_ops *ops)
{
    ops->bounds = cuda_bounds;
}
