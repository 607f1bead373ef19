/* y = W x for few rows of x (up to 16): every weight is read once, at the speed of memory.
 *
 * A block has a warp for each range of the inputs, times some pairs of panels when the ranges are few; a warp walks its
 * range for two panels and one or two tiles of 8 rows of x. Weights go from memory to registers to fragments; F::RING groups
 * of each panel are always on their way, some 2 to 4 KiB a warp, so that 16 warps keep 32 KiB or more of a multiprocessor's
 * loads in flight (latency times bandwidth is about 800 clocks * 19 bytes = 15 KiB on an H200). x comes through L1, once for
 * two panels, as many groups ahead: with one, each group waited for it, and q8 of 14336 x 4096 took 29 us instead of 21.
 * What a lane needs to find x it works out once a range, and no load asks whether it may: a group of a q4m panel costs 41
 * instructions instead of 59 (counted for sm_90; nvcc 13.0 fetched the thread's number and the matrix anew for each group).
 * The warps' sums meet in shared memory. Launch and the first loads of W hide behind the kernel ahead (CU_CHAIN).
 *
 * Bytes moved: W once; x from L2 once a block, panels / 2 times n * cols * 2 * parts at most; y once.
 */
#ifndef WRING_KERNELS_CUDA_GEMV_CUH
#define WRING_KERNELS_CUDA_GEMV_CUH

#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/state.cuh"

enum { GEMV_LIST = 4 }; /* matrices of a launch */
enum { GEMV_PANELS = 2, GEMV_WARPS = 4, GEMV_WARPS_MAX = 16, GEMV_TILES_MAX = 2 };

/* A lane's way along a tile of 8 rows of x, in global memory. Lanes of rows from n on read the last row, whose products
 * nobody stores: no load has a condition. */
template <class F, int XPARTS> struct gemv_walk {
    const uint16_t *part[XPARTS];
    const float *sum; /* of the lane's two columns */
    int sum_pitch;

    __device__ __forceinline__ void start(const cu_matmul &m, int tile, int group)
    {
        int row = min(tile * MATMUL_COLUMNS + cu_lane() / 4, m.n - 1);
        int column = min(matmul_column(tile, cu_lane(), 0), m.sum_pitch - 2);
        for (int j = 0; j < XPARTS; j++)
            part[j] = m.x + ((size_t)j * (size_t)m.n + (size_t)row) * (size_t)m.pitch +
                      group * MATMUL_GROUP + cu_lane() % 4 * 4;
        sum_pitch = m.sum_pitch;
        sum = m.sum + (size_t)group * (size_t)sum_pitch + column;
    }
    __device__ __forceinline__ void load(int ahead, matmul_x<XPARTS> &x) const
    {
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int j = 0; j < XPARTS; j++) {
                uint2 two = *(const uint2 *)(part[j] + ahead * MATMUL_GROUP + step * MATMUL_STEP);
                x.b[step][j][0] = two.x;
                x.b[step][j][1] = two.y;
            }
        if (F::SUMS) {
            float2 two = *(const float2 *)(sum + ahead * sum_pitch);
            x.sum[0] = two.x;
            x.sum[1] = two.y;
        }
    }
    __device__ __forceinline__ void go(int groups)
    {
        for (int j = 0; j < XPARTS; j++)
            part[j] += groups * MATMUL_GROUP;
        sum += groups * sum_pitch;
    }
};

/* A warp's work on one range of two panels and all tiles: sums so far, and what is on its way from memory. */
template <class F, int XPARTS, int TILES> struct gemv_range {
    enum {
        RING = TILES == 1 && XPARTS == 1 ? F::RING : (F::RING + 1) / 2,
        X_RING = XPARTS == 1 ? RING : 1 /* groups of x on their way: registers */
    };
    float acc[GEMV_PANELS][TILES][4];
    typename F::walk w[GEMV_PANELS];
    typename F::raw ring[RING][GEMV_PANELS];
    gemv_walk<F, XPARTS> x[TILES];
    matmul_x<XPARTS> x_ring[X_RING][TILES];

    /* The group u groups ahead of w and x, with `left` groups from there to the end of the range. MORE: the ring's next
     * round is in the range too. */
    template <bool MORE> __device__ __forceinline__ void group(int u, int left)
    {
#pragma unroll
        for (int p = 0; p < GEMV_PANELS; p++) {
            matmul_w<F> a(ring[u][p]);
#pragma unroll
            for (int t = 0; t < TILES; t++)
                matmul_group<F, XPARTS>(ring[u][p], a, x_ring[u % X_RING][t], acc[p][t]);
            if (MORE || u + RING < left)
                ring[u][p] = F::load(w[p], u + RING);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++)
            if (MORE || u + X_RING < left)
                x[t].load(u + X_RING, x_ring[u % X_RING][t]);
    }

    template <bool MORE> __device__ __forceinline__ void round(int left)
    {
#pragma unroll
        for (int u = 0; u < RING; u++)
            group<MORE>(u, left);
        for (int p = 0; p < GEMV_PANELS; p++)
            F::go(w[p], RING);
        for (int t = 0; t < TILES; t++)
            x[t].go(RING);
    }

    __device__ __forceinline__ void run(const cu_matmul &m, int range, int panel0)
    {
        int first = range * m.range_groups;
        int left = min(m.range_groups, m.groups - first);
#pragma unroll
        for (int p = 0; p < GEMV_PANELS; p++)
            w[p] = F::start(m, min(panel0 + p, m.panels - 1), first);
#pragma unroll
        for (int u = 0; u < RING; u++)
#pragma unroll
            for (int p = 0; p < GEMV_PANELS; p++)
                if (u < left)
                    ring[u][p] = F::load(w[p], u);
#pragma unroll
        for (int t = 0; t < TILES; t++)
            x[t].start(m, t, first);
        cu_wait_prior();
#pragma unroll
        for (int u = 0; u < X_RING; u++)
#pragma unroll
            for (int t = 0; t < TILES; t++)
                if (u < left)
                    x[t].load(u, x_ring[u][t]);
        for (; left >= 2 * RING; left -= RING)
            round<true>(left);
        if (left >= RING) {
            round<false>(left);
            left -= RING;
        }
#pragma unroll
        for (int u = 0; u < RING - 1; u++)
            if (u < left)
                group<false>(u, left);
    }
};

/* y of the block's panels: `slots` pairs of panels, whose ranges' sums are [slot][range][panel][tile][lane][4]. */
template <int TILES>
static __device__ __forceinline__ void gemv_store(const cu_matmul &m, int block, const float *sums,
                                                  int slots)
{
    enum { TILE = CU_WARP * 4, ONE = GEMV_PANELS * TILES * TILE };
    for (int e = (int)threadIdx.x; e < slots * ONE; e += (int)blockDim.x) {
        int slot = e / ONE;
        int at = e % ONE;
        int lane = at % TILE / 4;
        int panel = (block * slots + slot) * GEMV_PANELS + at / (TILES * TILE);
        int row = matmul_row(panel, lane, at % 4);
        int column = matmul_column(at / TILE % TILES, lane, at % 4);
        if (row >= m.rows || column >= m.n)
            continue;
        float total = 0;
        for (int r = 0; r < m.ranges; r++)
            total += sums[(slot * m.ranges + r) * ONE + at];
        m.y[(size_t)column * (size_t)m.rows + row] =
            m.bias != nullptr ? total + m.bias[row] : total;
    }
}

/* Matrices that share x and are cut alike, one after the other: q, k and v of 4096, 1024 and 1024 rows are one launch that
 * fills a GPU, where k alone would be 32 blocks. */
struct gemv_list {
    struct cu_matmul m[GEMV_LIST];
    int end[GEMV_LIST]; /* blocks of all matrices up to this one */
    int n;
};

template <class F, int XPARTS, int TILES>
static __global__ void __launch_bounds__(GEMV_WARPS_MAX *CU_WARP)
    gemv(const __grid_constant__ struct gemv_list list)
{
    CU_DYNAMIC(float, sums);
    cu_start_next();
    F::open();
    int i = 0;
    while ((int)blockIdx.x >= list.end[i])
        i++;
    const cu_matmul &m = list.m[i];
    int block = (int)blockIdx.x - (i > 0 ? list.end[i - 1] : 0);
    int slots = (int)(blockDim.x / CU_WARP) / m.ranges;
    int slot = cu_warp() / m.ranges;
    gemv_range<F, XPARTS, TILES> work = {};
    work.run(m, cu_warp() % m.ranges, (block * slots + slot) * GEMV_PANELS);
    float4 *mine = (float4 *)sums + cu_warp() * GEMV_PANELS * TILES * CU_WARP + cu_lane();
#pragma unroll
    for (int p = 0; p < GEMV_PANELS; p++)
#pragma unroll
        for (int t = 0; t < TILES; t++)
            mine[(p * TILES + t) * CU_WARP] = make_float4(work.acc[p][t][0], work.acc[p][t][1],
                                                          work.acc[p][t][2], work.acc[p][t][3]);
    __syncthreads();
    gemv_store<TILES>(m, block, sums, slots);
}

/* Pairs of panels that a block takes. */
static inline int gemv_slots(const cu_matmul &m)
{
    int pairs = (m.panels + GEMV_PANELS - 1) / GEMV_PANELS;
    int slots = m.ranges < GEMV_WARPS ? GEMV_WARPS / m.ranges : 1;
    return slots < pairs ? slots : pairs;
}

/* Whether b may be in a's list: blocks of one shape. */
static inline bool gemv_alike(const cu_matmul &a, const cu_matmul &b)
{
    return a.ranges == b.ranges && gemv_slots(a) == gemv_slots(b);
}

template <class F, int XPARTS, int TILES>
static inline void gemv_launch(const struct cu_state *s, struct gemv_list list)
{
    int slots = gemv_slots(list.m[0]);
    int warps = slots * list.m[0].ranges;
    int blocks = 0;
    for (int i = 0; i < list.n; i++) {
        int pairs = (list.m[i].panels + GEMV_PANELS - 1) / GEMV_PANELS;
        list.end[i] = blocks += (pairs + slots - 1) / slots;
    }
    CU_CHAIN(s, (unsigned)blocks, (unsigned)(warps * CU_WARP),
             (size_t)(warps * GEMV_PANELS * TILES * CU_WARP) * sizeof(float4),
             (gemv<F, XPARTS, TILES>), list);
}

#endif
