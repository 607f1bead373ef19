/* Operations on rows of activations: RMSNorm with the residual, sums, rows that go on, SwiGLU.
 *
 * All of them are bound by memory: a few FLOP a float. In decode the rows lie in L2 and what counts is the launch, some
 * microseconds; in prefill the bytes count. Bytes moved, for n rows of dim floats:
 *
 *      rmsnorm  4 * n * dim * 2   + 8 a float with `add`; weights and what stays of x (4096 floats a row) lie in registers
 *      add      4 * n * dim * 3
 *      gather   4 * n * dim * 2
 *      swiglu   4 * n * dim * 3
 *
 * Threads read neighbouring floats, so that a warp moves 128 bytes at a time and any dim will do, and several such before
 * they use the first. The sum of squares has one order fixed by dim: a thread adds every n_threads-th element, a warp adds
 * its lanes as a tree, then the warps.
 */
#include "kernels/cuda/state.cuh"

enum { ROW_THREADS = 1024, ROW_KEPT = 4, FLAT_THREADS = 256, FLAT_EACH = 4 };

/* ---- RMSNorm ----------------------------------------------------------------------------------------------------- */

static __device__ float block_sum(float x)
{
    CU_SHARED(float, part, CU_WARP);
    int n_warps = (int)blockDim.x / CU_WARP;
    x = cu_warp_sum(x);
    if (cu_lane() == 0)
        part[cu_warp()] = x;
    __syncthreads();
    return cu_warp_sum(cu_lane() < n_warps ? part[cu_lane()] : 0);
}

/* x[i], or with `add` x[i] + add[i], which it becomes. */
static __device__ __forceinline__ float row_take(float *x, const float *add, int i)
{
    float v = x[i];
    if (add != NULL) {
        v += add[i];
        x[i] = v;
    }
    return v;
}

/* A block a row; a thread keeps its first ROW_KEPT elements and their weights, and reads back what is left. */
static __global__ void __launch_bounds__(ROW_THREADS, 1)
    rmsnorm_rows(float *y, float *x, const float *add, const float *w, int dim, float eps)
{
    int step = (int)blockDim.x, first = (int)threadIdx.x;
    size_t at = (size_t)blockIdx.x * (size_t)dim;
    float v[ROW_KEPT], weight[ROW_KEPT], sum = 0;
    x += at;
    add = add != NULL ? add + at : NULL;
    cu_start_next();
#pragma unroll
    for (int k = 0; k < ROW_KEPT; k++)
        weight[k] = first + k * step < dim ? w[first + k * step] : 0;
    cu_wait_prior();
#pragma unroll
    for (int k = 0; k < ROW_KEPT; k++)
        v[k] = first + k * step < dim ? row_take(x, add, first + k * step) : 0;
#pragma unroll
    for (int k = 0; k < ROW_KEPT; k++)
        sum = fmaf(v[k], v[k], sum);
    for (int i = first + ROW_KEPT * step; i < dim; i += step) {
        float more = row_take(x, add, i);
        sum = fmaf(more, more, sum);
    }
    float s = 1.0f / sqrtf(block_sum(sum) / (float)dim + eps);
    y += at;
#pragma unroll
    for (int k = 0; k < ROW_KEPT; k++)
        if (first + k * step < dim)
            y[first + k * step] = v[k] * s * weight[k];
    for (int i = first + ROW_KEPT * step; i < dim; i += step)
        y[i] = x[i] * s * w[i];
}

static void cuda_rmsnorm(struct be *be, float *y, float *x, const float *add, const float *w, int n,
                         int dim, float eps)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || n == 0)
        return;
    unsigned threads = min(cu_div_up((size_t)dim, CU_WARP) * CU_WARP, (unsigned)ROW_THREADS);
    CU_CHAIN(s, dim3((unsigned)n), dim3(threads), 0, rmsnorm_rows, y, x, add, w, dim, eps);
    CU_LAUNCHED(s);
}

/* ---- element by element ------------------------------------------------------------------------------------------ */

/* Calls get(k, i) for each of a thread's elements i < n, then put(k, i): all loads before the first store, which might
 * alias them. */
template <class G, class P> static __device__ __forceinline__ void flat_each(size_t n, G get, P put)
{
    size_t first = (size_t)blockIdx.x * (FLAT_THREADS * FLAT_EACH) + threadIdx.x;
    cu_start_next();
    cu_wait_prior();
#pragma unroll
    for (int k = 0; k < FLAT_EACH; k++)
        if (first + (size_t)k * FLAT_THREADS < n)
            get(k, first + (size_t)k * FLAT_THREADS);
#pragma unroll
    for (int k = 0; k < FLAT_EACH; k++)
        if (first + (size_t)k * FLAT_THREADS < n)
            put(k, first + (size_t)k * FLAT_THREADS);
}

static __global__ void __launch_bounds__(FLAT_THREADS) add_flat(float *x, const float *y, size_t n)
{
    float a[FLAT_EACH];
    flat_each(
        n, [&](int k, size_t i) { a[k] = x[i] + y[i]; }, [&](int k, size_t i) { x[i] = a[k]; });
}

static __global__ void __launch_bounds__(FLAT_THREADS)
    swiglu_flat(float *y, const float *gate, const float *up, size_t n)
{
    float g[FLAT_EACH], u[FLAT_EACH];
    flat_each(
        n,
        [&](int k, size_t i) {
            g[k] = gate[i];
            u[k] = up[i];
        },
        [&](int k, size_t i) { y[i] = g[k] / (1.0f + expf(-g[k])) * u[k]; });
}

static __global__ void __launch_bounds__(FLAT_THREADS)
    gather_flat(float *y, const float *x, const int32_t *row, size_t n, int dim)
{
    float a[FLAT_EACH];
    flat_each(
        n,
        [&](int k, size_t i) {
            int32_t from = row[i / (size_t)dim];
            a[k] = from < 0 ? 0 : x[(size_t)from * (size_t)dim + i % (size_t)dim];
        },
        [&](int k, size_t i) { y[i] = a[k]; });
}

template <class... P, class... A>
static void launch_flat(struct be *be, size_t n, void (*kernel)(P...), A... a)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || n == 0)
        return;
    CU_CHAIN(s, dim3(cu_div_up(n, FLAT_THREADS * FLAT_EACH)), dim3(FLAT_THREADS), 0, kernel, a...);
    CU_LAUNCHED(s);
}

static void cuda_add(struct be *be, float *x, const float *y, int n, int dim)
{
    size_t size = (size_t)n * (size_t)dim;
    launch_flat(be, size, add_flat, x, y, size);
}

static void cuda_gather(struct be *be, float *y, const float *x, const int32_t *row, int n, int dim)
{
    size_t size = (size_t)n * (size_t)dim;
    launch_flat(be, size, gather_flat, y, x, row, size, dim);
}

static void cuda_swiglu(struct be *be, float *y, const float *gate, const float *up, int n, int dim)
{
    size_t size = (size_t)n * (size_t)dim;
    launch_flat(be, size, swiglu_flat, y, gate, up, size);
}

void cu_ops_rows(struct be_ops *ops)
{
    ops->rmsnorm = cuda_rmsnorm;
    ops->add = cuda_add;
    ops->gather = cuda_gather;
    ops->swiglu = cuda_swiglu;
}
