/* Whether gemm_wide.cuh keeps its promise on this GPU: the bits of gemm.cuh.
 *
 * The PTX ISA leaves open in what order a tensor core adds. An H200 gave the same bits for products of a warp and of a
 * warpgroup, chained or not, in 327,680 sums of 4,096 products whose factors spread over up to 2^60; that every GPU, whose batches
 * then stay invariant, does is looked at when it is opened, with the kernels themselves.
 *
 * Bytes moved: x, 23 KB, twice; of each of three products 23 KB back.
 */
#include <string.h>

#include "kernels/cuda/gemm_wide.cuh"

namespace
{

enum { ROWS = 40, COLS = 5 * MATMUL_GROUP, N = 72, THREADS = 128 };

__device__ __forceinline__ uint32_t scatter(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* Two bf16 numbers of either sign between 2^-7 and 2. */
__device__ __forceinline__ uint32_t numbers(uint32_t x)
{
    return (scatter(x) & 0x83ff83ffu) | 0x3c003c00u;
}

/* Weights made up in place, as matmul.cuh wants them of a codec. */
struct made_up : matmul_bare {
    enum { PARTS = 1, RING = 1, SUMS = 1 };

    struct raw {
        uint32_t at;
    };
    struct walk {
        uint32_t at;
    };

    static __device__ __forceinline__ walk start(const cu_matmul &m, int panel, int group)
    {
        return walk{ ((uint32_t)panel * (uint32_t)m.groups + (uint32_t)group) * 1024 +
                     (uint32_t)cu_lane() };
    }
    static __device__ __forceinline__ void go(walk &w, int groups)
    {
        w.at += (uint32_t)groups * 1024;
    }
    static __device__ __forceinline__ raw load(const walk &w, int ahead)
    {
        return raw{ w.at + (uint32_t)ahead * 1024 };
    }
    static __device__ __forceinline__ void fragment(const raw &r, int step, uint32_t a[PARTS][4])
    {
        for (int i = 0; i < 4; i++)
            a[0][i] = numbers(r.at + (uint32_t)(step * 4 + i) * CU_WARP);
    }
    static __device__ __forceinline__ void finish(const raw &, const float part[4],
                                                  const float sum[2], float acc[4])
    {
        for (int i = 0; i < 4; i++)
            acc[i] = fmaf(0.75f, part[i], fmaf(0.125f, sum[i % 2], acc[i]));
    }
};

/* The same numbers in both orders of input_cuda.cuh, and sums that are none. */
__global__ void __launch_bounds__(THREADS) make_x(uint16_t *quads, uint16_t *halves, float *sum)
{
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= N * COLS)
        return;
    int k = i % COLS, row = i / COLS * COLS;
    uint16_t x = (uint16_t)numbers((uint32_t)i);
    quads[row + k / 4 * 4 + k % 2 * 2 + k % 4 / 2] = x;
    halves[row + k / 16 * 16 + k % 2 * 8 + k % 16 / 2] = x;
    if (i < COLS / MATMUL_GROUP * N)
        sum[i] = (float)(i % 13) - 6;
}

/* What the check needs of the GPU's memory, side by side. */
struct rooms {
    uint16_t quads[N * COLS], halves[N * COLS];
    float sum[COLS / MATMUL_GROUP * N], old[N * ROWS], wide[N * ROWS];
};

} // namespace

static_assert(sizeof(struct rooms) < CU_PARTIAL_BYTES && N % 4 == 0 && N > 64, "");

/* n rows of x by both kernels; true when they agree. No blocks share ranges: that wants the memory which x is in. */
template <int TILES, int COLUMNS> static bool agree(struct cu_state *s, struct cu_matmul m, int n)
{
    struct rooms *r = (struct rooms *)s->partial, *host = (struct rooms *)s->pinned;
    m.n = n;
    m.x = r->quads;
    m.y = r->old;
    gemm_launch<made_up, 1, TILES>(s->stream, m, NULL, 0, 1);
    m.x = r->halves;
    m.y = r->wide;
    gemm_wide_launch<made_up, COLUMNS>(s, m, NULL, 0, 1);
    bool ok = CU_LAUNCHED(s) &&
              CU_CHECK(s, cudaMemcpyAsync(host->old, r->old, sizeof r->old + sizeof r->wide,
                                          cudaMemcpyDeviceToHost, s->stream)) &&
              CU_CHECK(s, cudaStreamSynchronize(s->stream));
    return ok && memcmp(host->old, host->wide, (size_t)n * ROWS * sizeof(float)) == 0;
}

bool cu_wide_works(struct cu_state *s)
{
    struct rooms *r = (struct rooms *)s->partial;
    struct cu_matmul m = {};
    cudaGetLastError(); /* of an open before this one that failed */
    matmul_cut(&m, ROWS, COLS);
    m.sum = r->sum;
    m.pitch = COLS;
    m.sum_pitch = N;
    CU_LAUNCH(s->stream, cu_div_up(N * COLS, THREADS), THREADS, 0, make_x, r->quads, r->halves,
              r->sum);
    return agree<4, 32>(s, m, 20) && agree<8, 64>(s, m, 44) && agree<8, 128>(s, m, N);
}
