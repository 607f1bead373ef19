/* Operations on rows of activations: RMSNorm with the residual, sums, rows that go on, SwiGLU.
 *
 * All of them are bound by memory: a few FLOP a float. In decode the rows lie in L2 and what counts is the launch, some
 * microseconds; in prefill the bytes count. Bytes moved, for n rows of dim floats:
 *
 *      rmsnorm  4 * n * dim * 3   x is read twice, the second time from L1 or L2, and y written; + 8 a float with `add`
 *      add      4 * n * dim * 3
 *      gather   4 * n * dim * 2
 *      swiglu   4 * n * dim * 3
 *
 * Threads read neighbouring floats, so that a warp moves 128 bytes at a time and any dim will do. The sum of squares
 * has one order fixed by dim: a thread adds every n_threads-th element, a warp adds its lanes as a tree, then the
 * warps.
 */
#include "kernels/cuda/state.cuh"

enum { ROW_THREADS = 1024, FLAT_THREADS = 256 };

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

/* A block a row. An element is read back by the thread that wrote it. */
static __global__ void __launch_bounds__(ROW_THREADS)
    rmsnorm_rows(float *y, float *x, const float *add, const float *w, int dim, float eps)
{
    size_t at = (size_t)blockIdx.x * (size_t)dim;
    float sum = 0;
    for (int i = (int)threadIdx.x; i < dim; i += (int)blockDim.x) {
        float v = x[at + i];
        if (add != NULL) {
            v += add[at + i];
            x[at + i] = v;
        }
        sum = fmaf(v, v, sum);
    }
    float s = 1.0f / sqrtf(block_sum(sum) / (float)dim + eps);
    for (int i = (int)threadIdx.x; i < dim; i += (int)blockDim.x)
        y[at + i] = x[at + i] * s * w[i];
}

static void cuda_rmsnorm(struct be *be, float *y, float *x, const float *add, const float *w, int n,
                         int dim, float eps)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || n == 0)
        return;
    unsigned threads = min(cu_div_up((size_t)dim, CU_WARP) * CU_WARP, (unsigned)ROW_THREADS);
    CU_LAUNCH(s->stream, dim3((unsigned)n), dim3(threads), 0, rmsnorm_rows, y, x, add, w, dim, eps);
    CU_LAUNCHED(s);
}

/* ---- element by element ------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ size_t flat_index()
{
    return (size_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
}

static __global__ void __launch_bounds__(FLAT_THREADS) add_flat(float *x, const float *y, size_t n)
{
    size_t i = flat_index();
    if (i < n)
        x[i] += y[i];
}

static __global__ void __launch_bounds__(FLAT_THREADS)
    swiglu_flat(float *y, const float *gate, const float *up, size_t n)
{
    size_t i = flat_index();
    if (i < n)
        y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static __global__ void __launch_bounds__(FLAT_THREADS)
    gather_flat(float *y, const float *x, const int32_t *row, size_t n, int dim)
{
    size_t i = flat_index();
    if (i >= n)
        return;
    int32_t from = row[i / (size_t)dim];
    y[i] = from < 0 ? 0 : x[(size_t)from * (size_t)dim + i % (size_t)dim];
}

template <class... P, class... A>
static void launch_flat(struct be *be, size_t n, void (*kernel)(P...), A... a)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || n == 0)
        return;
    CU_LAUNCH(s->stream, dim3(cu_div_up(n, FLAT_THREADS)), dim3(FLAT_THREADS), 0, kernel, a...);
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
