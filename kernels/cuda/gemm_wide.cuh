/* y = W x for more rows of x than gemv.cuh takes, in one part, where a warpgroup multiplies together (CU_WGMMA): with the
 * bits of gemm.cuh, which other GPUs have and inputs in three parts.
 *
 * Each warp decodes one panel, straight into fragments; the four warps of a warpgroup so have 64 rows of W, and 2 or 3
 * warpgroups share a tile of up to 128 rows of x. That lies in shared memory in stages of 128 inputs, which are copied
 * two ahead. x is read there by the tensor cores themselves, once for 64 rows of W instead of once for 16, which is what
 * gemm.cuh is short of; its inputs must lie as shared memory has them (INPUT_HALVES, quant/input_cuda.cuh).
 *
 * A group of 32 inputs still begins at zero and is added to its range's sum with its scale: while one warpgroup does that, and
 * decodes, the tensor cores have products of the others. What has been summed of the ranges before lies in shared memory, so
 * that three warpgroups have registers enough.
 *
 * Bytes moved: W n / 128 times and x rows / 192 times, from L2; y once; with shared ranges y 2 * ranges times.
 */
#ifndef WRING_KERNELS_CUDA_GEMM_WIDE_CUH
#define WRING_KERNELS_CUDA_GEMM_WIDE_CUH

#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/state.cuh"

enum { WIDE_ALIGN = 1024, WIDE_TILE = 64, WIDE_INPUTS = MATMUL_STAGE * MATMUL_GROUP };

template <int COLUMNS> struct wide_shape {
    enum {
        WARPGROUPS = COLUMNS == 128 ? 3 : 2,
        WARPS = WARPGROUPS * 4,
        THREADS = WARPS * CU_WARP,
        PIECE = COLUMNS == 128 ? 64 : 32, /* columns of a product */
        PIECES = COLUMNS / PIECE,
        TILES = PIECE / MATMUL_COLUMNS,
        AHEAD = 2, /* stages */
        STAGES = 3,
        TILE = COLUMNS * WIDE_TILE, /* elements */
        STAGE = WIDE_INPUTS / WIDE_TILE * TILE,
        SUMS = MATMUL_STAGE * COLUMNS, /* floats, of a stage */
        TOTALS = COLUMNS / 2 * THREADS /* floats */
    };
    static size_t shared_bytes()
    {
        return WIDE_ALIGN + (size_t)STAGES * STAGE * sizeof(uint16_t) +
               (size_t)(STAGES * SUMS + TOTALS) * sizeof(float);
    }
};

/* Starts copying the sums of the groups from `group` on. */
template <int COLUMNS>
static __device__ __forceinline__ void wide_copy_sums(const cu_matmul &m, float *sums, int group)
{
    for (int e = (int)threadIdx.x; e < wide_shape<COLUMNS>::SUMS / 4;
         e += wide_shape<COLUMNS>::THREADS) {
        int g = group + e / (COLUMNS / 4);
        int column = (int)blockIdx.x * COLUMNS + e % (COLUMNS / 4) * 4;
        int n = g < m.cols / MATMUL_GROUP ? min(max(m.n - column, 0), 4) : 0;
        const float *from = n > 0 ? m.sum + (size_t)g * (size_t)m.sum_pitch + column : m.sum;
        cu_copy16(sums + e * 4, from, n * (int)sizeof(float));
    }
}

/* A thread's part of copying x: 16 bytes of every 64 inputs, of each ROWS-th row. Rows from n on are the last one, whose products
 * nobody stores. */
template <class F, int COLUMNS> struct wide_copy {
    using shape = wide_shape<COLUMNS>;
    enum { PIECES = WIDE_TILE / 8, ROWS = shape::THREADS / PIECES };
    const uint16_t *from; /* in the first row of x that is its own */
    int rows;             /* of x behind that one */

    __device__ __forceinline__ explicit wide_copy(const cu_matmul &m)
    {
        int column = (int)blockIdx.x * COLUMNS + (int)threadIdx.x / PIECES;
        rows = m.n - 1 - column;
        from = m.x + (size_t)column * (size_t)m.pitch + (int)threadIdx.x % PIECES * 8;
    }

    /* Starts copying the stage from group `group` on, or nothing from `end` on: a group of copies all the same. */
    __device__ __forceinline__ void start(const cu_matmul &m, uint16_t *stage, float *sums,
                                          int group, int end) const
    {
        if (group < end) {
            int row = (int)threadIdx.x / PIECES, k = (int)threadIdx.x % PIECES * 8;
            uint16_t *to = stage + row * WIDE_TILE + (k / 8 ^ row % 8) * 8;
#pragma unroll
            for (int r = 0; r < COLUMNS; r += ROWS) {
                if (r + ROWS > COLUMNS && row >= COLUMNS - r)
                    break;
                ptrdiff_t away = (ptrdiff_t)min(r, rows) * m.pitch + group * MATMUL_GROUP;
#pragma unroll
                for (int i = 0; i < WIDE_INPUTS; i += WIDE_TILE) {
                    bool there = group * MATMUL_GROUP + i + k < m.pitch;
                    cu_copy16(to + i / WIDE_TILE * shape::TILE + r * WIDE_TILE, from + away + i,
                              there ? 16 : 0);
                }
            }
            if (F::SUMS)
                wide_copy_sums<COLUMNS>(m, sums, group);
        }
        cu_copy_commit();
    }
};

/* A warp's work on its panel and the block's columns. */
template <class F, int COLUMNS> struct wide_work {
    using shape = wide_shape<COLUMNS>;
    enum { PIECES = shape::PIECES, PIECE = shape::PIECE, TILES = shape::TILES };
    float acc[PIECES][TILES][4];   /* of the range under way */
    float part[TILES][4];          /* of the product under way */
    uint32_t a[2][2][F::PARTS][4]; /* of an even and an odd group */
    float *total;                  /* shared: [COLUMNS / 2][THREADS], of the ranges before */
    int panel, range, first_range;

    __device__ __forceinline__ void store(const cu_matmul &m, float *y, int p, int t,
                                          const float v[4])
    {
        int row = matmul_row(panel, cu_lane(), 0);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int column = matmul_column((int)blockIdx.x * COLUMNS / MATMUL_COLUMNS + p * TILES + t,
                                       cu_lane(), i);
            float *to = y + (size_t)column * (size_t)m.rows + row;
            if (column >= m.n)
                continue;
            if (m.rows % 2 == 0 && row < m.rows) {
                *(float2 *)to = make_float2(v[i], v[i + 2]);
                continue;
            }
            if (row < m.rows)
                to[0] = v[i];
            if (row + 1 < m.rows)
                to[1] = v[i + 2];
        }
    }

    __device__ __forceinline__ float *total_of(int p, int t, int i)
    {
        return total + ((p * TILES + t) * 4 + i) * shape::THREADS + (int)threadIdx.x;
    }

    /* Ends a range: its sum goes to total, or to memory. */
    __device__ __forceinline__ void end_range(const cu_matmul &m)
    {
        float *sums = m.range_sum + (size_t)range * (size_t)m.n * (size_t)m.rows;
#pragma unroll
        for (int p = 0; p < PIECES; p++)
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                if (m.range_sum != nullptr)
                    store(m, sums, p, t, acc[p][t]);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float before = range == first_range ? 0 : *total_of(p, t, i);
                    if (m.range_sum == nullptr)
                        *total_of(p, t, i) = before + acc[p][t][i];
                    acc[p][t][i] = 0;
                }
            }
        range++;
    }

    /* Fragments of group g. */
    __device__ __forceinline__ void decode(const typename F::raw &r, int g)
    {
        F::fragment(r, 0, a[g % 2][0]);
        F::fragment(r, 1, a[g % 2][1]);
    }

    /* Group g of a stage by piece p of the columns. */
    __device__ __forceinline__ void start(int g, int p, const uint16_t *stage)
    {
        const uint16_t *tile = stage + g * MATMUL_GROUP / WIDE_TILE * shape::TILE;
        cu_tile x = cu_tile_at(cu_tile_of(tile), p * PIECE, g * MATMUL_GROUP % WIDE_TILE);
        cu_wgmma_begin();
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int i = F::PARTS - 1; i >= 0; i--) {
                cu_tile at = cu_tile_at(x, 0, step * MATMUL_STEP);
                if (step == 0 && i == F::PARTS - 1)
                    cu_wgmma_bf16<PIECE, false>(part, a[g % 2][step][i], at);
                else
                    cu_wgmma_bf16<PIECE, true>(part, a[g % 2][step][i], at);
            }
        cu_wgmma_commit();
    }

    /* acc += piece p of a group, whose sums are those. */
    __device__ __forceinline__ void finish(const typename F::raw &r, int p, const float *sums)
    {
        cu_wgmma_wait<0>(part);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            float2 two = make_float2(0, 0);
            if (F::SUMS)
                two = *(const float2 *)(sums + matmul_column(p * TILES + t, cu_lane(), 0));
            float sum[2] = { two.x, two.y };
            F::finish(r, part[t], sum, acc[p][t]);
        }
    }

    /* Group g of a stage, which is decoded; decodes the next one while it is multiplied. */
    __device__ __forceinline__ void step(const typename F::raw &r, const typename F::raw &behind,
                                         int g, const uint16_t *stage, const float *sums)
    {
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            start(g, p, stage);
            if (p == 0)
                decode(behind, g + 1);
            finish(r, p, sums + g * COLUMNS);
        }
    }

    __device__ __forceinline__ void end(const cu_matmul &m)
    {
        int row = matmul_row(panel, cu_lane(), 0);
        float bias[2] = { 0, 0 };
        for (int i = 0; i < 2 && m.bias != nullptr; i++)
            bias[i] = row + i < m.rows ? m.bias[row + i] : 0;
#pragma unroll
        for (int p = 0; p < PIECES; p++)
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                float v[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    v[i] =
                        m.bias != nullptr ? *total_of(p, t, i) + bias[i / 2] : *total_of(p, t, i);
                store(m, m.y, p, t, v);
            }
    }
};

/* Groups of W on their way: fewer where sums take registers. */
template <class F> struct wide_ring {
    enum { N = F::SUMS ? 2 : MATMUL_STAGE };
};

template <class F, int COLUMNS>
static __device__ __forceinline__ void wide_run(const cu_matmul &m, char *room)
{
    using shape = wide_shape<COLUMNS>;
    enum { RING = wide_ring<F>::N };
    uint16_t *stages =
        (uint16_t *)(room + (WIDE_ALIGN - cu_shared_address(room) % WIDE_ALIGN) % WIDE_ALIGN);
    cu_start_next();
    F::open();
    wide_work<F, COLUMNS> work = {};
    float *sums = (float *)(stages + shape::STAGES * shape::STAGE);
    work.total = sums + shape::STAGES * shape::SUMS;
    work.panel = (int)blockIdx.y * shape::WARPS + cu_warp();
    work.range = work.first_range = (int)blockIdx.z * m.block_ranges;
    int first = work.range * m.range_groups;
    int end = min(first + m.block_ranges * m.range_groups, m.groups);
    typename F::walk walk = F::start(m, min(work.panel, m.panels - 1), first);
    typename F::raw next[RING] = {};
#pragma unroll
    for (int g = 0; g < RING; g++)
        if (first + g < end)
            next[g] = F::load(walk, g);
    work.decode(next[0], 0);
    cu_wait_prior();
    wide_copy<F, COLUMNS> copy(m);
    for (int c = 0; c < shape::AHEAD; c++)
        copy.start(m, stages + c * shape::STAGE, sums + c * shape::SUMS, first + c * MATMUL_STAGE,
                   end);
    int now = 0, ahead = shape::AHEAD; /* stages */
    int left = min(m.range_groups, end - first);
    for (int g0 = first; g0 < end; g0 += MATMUL_STAGE) {
        cu_copy_wait<shape::AHEAD - 1>();
        cu_wgmma_visible();
        __syncthreads();
        copy.start(m, stages + ahead * shape::STAGE, sums + ahead * shape::SUMS,
                   g0 + shape::AHEAD * MATMUL_STAGE, end);
#pragma unroll
        for (int g = 0; g < MATMUL_STAGE; g++) {
            if (g0 + g >= end)
                break;
            typename F::raw r = next[g % RING];
            if (g0 + g + RING < end)
                next[g % RING] = F::load(walk, g + RING);
            work.step(r, next[(g + 1) % RING], g, stages + now * shape::STAGE,
                      sums + now * shape::SUMS);
        }
        now = now + 1 < shape::STAGES ? now + 1 : 0;
        ahead = ahead + 1 < shape::STAGES ? ahead + 1 : 0;
        F::go(walk, MATMUL_STAGE);
        left -= MATMUL_STAGE;
        if (left <= 0 || g0 + MATMUL_STAGE >= end) {
            work.end_range(m);
            left = m.range_groups;
        }
    }
    if (m.range_sum == nullptr)
        work.end(m);
}

/* Empty where there is no CU_WGMMA: nobody launches it there. */
template <class F, int COLUMNS>
static __global__ void __launch_bounds__(wide_shape<COLUMNS>::THREADS, 1)
    gemm_wide(const __grid_constant__ cu_matmul m)
{
    CU_DYNAMIC(char, room);
    if constexpr (CU_WGMMA != 0)
        wide_run<F, COLUMNS>(m, room);
}

template <class F, int COLUMNS>
static inline void gemm_wide_launch(struct cu_state *s, cu_matmul m, float *scratch,
                                    size_t scratch_bytes, int n_sm)
{
    using shape = wide_shape<COLUMNS>;
    unsigned across = cu_div_up((size_t)m.n, COLUMNS);
    unsigned down = cu_div_up((size_t)m.panels, shape::WARPS);
    unsigned shares = gemm_share(&m, across * down, scratch, scratch_bytes, n_sm);
    CU_CHECK(s, cudaFuncSetAttribute(gemm_wide<F, COLUMNS>,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     (int)shape::shared_bytes()));
    CU_CHAIN(s, dim3(across, down, shares), shape::THREADS, shape::shared_bytes(),
             (gemm_wide<F, COLUMNS>), m);
    if (m.range_sum != nullptr)
        gemm_add_launch(s->stream, m);
}

#endif
