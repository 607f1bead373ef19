/* y = W x for many rows of x: blocks of 128 rows of W by 32 or 64 rows of x. Where a GPU has CU_WGMMA inputs of one part are
 * gemm_wide.cuh's.
 *
 * Each of the 8 warps decodes one panel, straight into fragments, and uses them for all columns of the block; the tile of
 * x that they share goes through shared memory, chunk by chunk: the next one is copied asynchronously, and a warp's words of
 * W are on their way, while this one is multiplied. Rows of the tile are padded by 32 bytes, so that the 8-byte loads of a
 * fragment meet no bank twice.
 *
 * With few tiles the blocks of a tile share the ranges of the inputs, write each range's sum and leave the adding to a
 * second kernel: same order, same bits as when one block walks all of them.
 *
 * Limits, by count, not yet measured: a product of 16 x 8 x 16 takes a multiprocessor of sm_80 2 clocks and the tensor
 * cores of sm_90 at most 1; its fragment of x is 256 bytes, 2 clocks of shared memory. So sm_90 reaches half of its peak
 * at best; warps of two panels would halve the loads, at twice the registers.
 *
 * Bytes moved: W n / 64 times and x rows / 128 times, from L2; y once; with shared ranges y 2 * ranges times.
 */
#ifndef WRING_KERNELS_CUDA_GEMM_CUH
#define WRING_KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/matmul.cuh"

enum { GEMM_WARPS = 8, GEMM_SUM_THREADS = 256 };

/* The shape of a block's tile of x, and copying it. */
template <int XPARTS, int TILES> struct gemm_tile {
    enum {
        COLUMNS = TILES * MATMUL_COLUMNS,
        GROUPS = XPARTS == 1 ? 4 : 1, /* of a chunk */
        INPUTS = GROUPS * MATMUL_GROUP,
        PITCH = INPUTS + 16,              /* elements */
        STAGE = XPARTS * COLUMNS * PITCH, /* elements */
        PIECES = XPARTS * COLUMNS * INPUTS / 8
    };

    /* Starts copying the chunk from group `group` on, if that is before `end`. */
    static __device__ __forceinline__ void copy(const cu_matmul &m, uint16_t *stage, int group,
                                                int end)
    {
        if (group >= end)
            return;
        for (int e = (int)threadIdx.x; e < PIECES; e += GEMM_WARPS * CU_WARP) {
            int piece = e % (INPUTS / 8);
            int line = e / (INPUTS / 8); /* part, column */
            int column = (int)blockIdx.x * COLUMNS + line % COLUMNS;
            int k = group * MATMUL_GROUP + piece * 8;
            bool there = column < m.n && k < m.pitch;
            size_t row = (size_t)(line / COLUMNS) * (size_t)m.n + (size_t)column;
            const uint16_t *from = there ? m.x + row * (size_t)m.pitch + k : m.x;
            cu_copy16(stage + line * PITCH + piece * 8, from, there ? 16 : 0);
        }
        cu_copy_commit();
    }

    /* Group g of the chunk, tile t. */
    static __device__ __forceinline__ void fragment(const uint16_t *stage, int g, int t,
                                                    matmul_x<XPARTS> &x)
    {
        const uint16_t *p = stage + (t * MATMUL_COLUMNS + cu_lane() / 4) * PITCH +
                            g * MATMUL_GROUP + cu_lane() % 4 * 4;
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int j = 0; j < XPARTS; j++) {
                uint2 two = *(const uint2 *)(p + j * COLUMNS * PITCH + step * MATMUL_STEP);
                x.b[step][j][0] = two.x;
                x.b[step][j][1] = two.y;
            }
    }
};

/* What a warp has summed: of the range under way and of those before it. */
template <int TILES> struct gemm_sums {
    float acc[TILES][4], total[TILES][4];
    int panel, tile0; /* whose */

    /* Ends a range: its sum goes to total, or to memory. */
    __device__ __forceinline__ void end_range(const cu_matmul &m, int range)
    {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (m.range_sum == nullptr)
                    total[t][i] += acc[t][i];
                else
                    store(m, m.range_sum + (size_t)range * (size_t)m.n * (size_t)m.rows, t, i,
                          acc[t][i]);
                acc[t][i] = 0;
            }
    }

    __device__ __forceinline__ void store(const cu_matmul &m, float *y, int t, int i, float v)
    {
        int row = matmul_row(panel, cu_lane(), i);
        int column = matmul_column(tile0 + t, cu_lane(), i);
        if (row < m.rows && column < m.n)
            y[(size_t)column * (size_t)m.rows + row] = v;
    }

    __device__ __forceinline__ void end(const cu_matmul &m)
    {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = matmul_row(panel, cu_lane(), i);
                float bias = m.bias != nullptr && row < m.rows ? m.bias[row] : 0;
                store(m, m.y, t, i, m.bias != nullptr ? total[t][i] + bias : total[t][i]);
            }
    }
};

template <class F, int XPARTS, int TILES>
static __global__ void __launch_bounds__(GEMM_WARPS *CU_WARP, 1) gemm(const cu_matmul m)
{
    using tile = gemm_tile<XPARTS, TILES>;
    CU_SHARED(uint16_t, stages, 2 * tile::STAGE);
    F::open();
    gemm_sums<TILES> sums = {};
    sums.panel = (int)blockIdx.y * GEMM_WARPS + cu_warp();
    sums.tile0 = (int)blockIdx.x * TILES;
    int panel = min(sums.panel, m.panels - 1);
    int range = (int)blockIdx.z * m.block_ranges;
    int first = range * m.range_groups;
    int end = min(first + m.block_ranges * m.range_groups, m.groups);
    int left = min(m.range_groups, end - first); /* groups of the range */
    typename F::walk walk = F::start(m, panel, first);
    typename F::raw next[tile::GROUPS] = {};
#pragma unroll
    for (int g = 0; g < tile::GROUPS; g++)
        if (first + g < end)
            next[g] = F::load(walk, g);
    uint16_t *stage = stages, *other = stages + tile::STAGE;
    tile::copy(m, stage, first, end);
    for (int g0 = first; g0 < end; g0 += tile::GROUPS) {
        cu_copy_wait<0>();
        __syncthreads();
        tile::copy(m, other, g0 + tile::GROUPS, end);
#pragma unroll
        for (int g = 0; g < tile::GROUPS; g++) {
            if (g0 + g >= end)
                break;
            typename F::raw r = next[g];
            if (g0 + g + tile::GROUPS < end)
                next[g] = F::load(walk, g + tile::GROUPS);
            matmul_w<F> w(r);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                matmul_x<XPARTS> x;
                tile::fragment(stage, g, t, x);
                matmul_sums<F>(m, sums.tile0 + t, g0 + g, x.sum);
                matmul_group<F, XPARTS>(r, w, x, sums.acc[t]);
            }
            if (--left == 0) {
                sums.end_range(m, range++);
                left = min(m.range_groups, end - (g0 + g + 1));
            }
        }
        F::go(walk, tile::GROUPS);
        uint16_t *last = stage;
        stage = other;
        other = last;
    }
    if (m.range_sum == nullptr)
        sums.end(m);
}

/* y from the sums of the ranges. */
static __global__ void __launch_bounds__(GEMM_SUM_THREADS) gemm_add_ranges(const cu_matmul m)
{
    size_t all = (size_t)m.n * (size_t)m.rows;
    size_t i = (size_t)blockIdx.x * GEMM_SUM_THREADS + threadIdx.x;
    if (i >= all)
        return;
    float total = 0;
    for (int r = 0; r < m.ranges; r++)
        total += m.range_sum[(size_t)r * all + i];
    m.y[i] = m.bias != nullptr ? total + m.bias[i % (size_t)m.rows] : total;
}

/* Cuts the work of `tiles` blocks so that n_sm multiprocessors are kept busy: blocks of a tile share the ranges when scratch,
 * of scratch_bytes, has room for their sums. Returns how many blocks a tile has. */
static inline unsigned gemm_share(cu_matmul *m, unsigned tiles, float *scratch,
                                  size_t scratch_bytes, int n_sm)
{
    size_t all = (size_t)m->n * (size_t)m->rows;
    int share = (int)((unsigned)n_sm / tiles);
    share = share < m->ranges ? share : m->ranges;
    if (share < 2 || (size_t)m->ranges * all * sizeof(float) > scratch_bytes)
        share = 1;
    m->block_ranges = (m->ranges + share - 1) / share;
    m->range_sum = m->block_ranges < m->ranges ? scratch : nullptr;
    return (unsigned)((m->ranges + m->block_ranges - 1) / m->block_ranges);
}

static inline void gemm_add_launch(cudaStream_t s, const cu_matmul &m)
{
    size_t all = (size_t)m.n * (size_t)m.rows;
    CU_LAUNCH(s, (unsigned)((all + GEMM_SUM_THREADS - 1) / GEMM_SUM_THREADS), GEMM_SUM_THREADS, 0,
              gemm_add_ranges, m);
}

template <class F, int XPARTS, int TILES>
static inline void gemm_launch(cudaStream_t s, cu_matmul m, float *scratch, size_t scratch_bytes,
                               int n_sm)
{
    unsigned across = (unsigned)((m.n + TILES * MATMUL_COLUMNS - 1) / (TILES * MATMUL_COLUMNS));
    unsigned down = (unsigned)((m.panels + GEMM_WARPS - 1) / GEMM_WARPS);
    unsigned shares = gemm_share(&m, across * down, scratch, scratch_bytes, n_sm);
    CU_LAUNCH(s, dim3(across, down, shares), GEMM_WARPS * CU_WARP, 0, (gemm<F, XPARTS, TILES>), m);
    if (m.range_sum != nullptr)
        gemm_add_launch(s, m);
}

#endif
