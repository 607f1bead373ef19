/* Products y[n][rows] = x[n][cols] W^T with pressed weights on tensor cores: what gemv.cuh, gemm.cuh and gemm_wide.cuh share.
 *
 * W is the A operand of m16n8k16, decoded in registers: a panel of 16 rows, 16 inputs. x is B: 8 rows of x, so that up to
 * 8 rows cost what one costs. A codec's pairs of numbers go straight into fragments without a shuffle because two orders
 * are free:
 *   - rows of a panel: row g of the fragment is row 2g of the panel, row g + 8 is row 2g + 1, so that a lane's words lie
 *     side by side;
 *   - inputs within 16: lane q of a quad holds 4q ... 4q+3, as (4q, 4q+2) and (4q+1, 4q+3), on both sides.
 *
 * The order of sums, which gives a row of x the same bits in every kernel here and whatever rows are beside it:
 *   - a group of 32 inputs is summed by the tensor core, from 0, smallest parts first;
 *   - groups are added to a range's sum in f32, in rising order, times their scale: the codec's finish();
 *   - the ranges, cut from W's shape alone, are added in rising order, from 0; then the bias.
 *
 * A codec gives a struct F, what a lane does with its share of a panel's group:
 *   enum PARTS    bf16 numbers that a weight is made of: products are those of all pairs of parts i of W and j of x with
 *                 i + j <= 2 (what is left out is below 2^-26 of the product)
 *   enum RING     groups of a panel that a warp of gemv keeps on their way from memory
 *   enum SUMS     whether finish() wants sums of x
 *   enum WIDEST   rows of x that a block of gemm_wide takes at most, 128 or, where registers are short, 64
 *   open()        what a block prepares in shared memory before its warps start, all its threads together, a barrier last
 *   struct walk   where the lane's words are, so that a loop adds to pointers once for several groups
 *     start(m, panel, group)    go(walk, groups)
 *   struct raw    the lane's words of a group; load(walk, ahead) fetches them, and no byte behind the plane
 *     fragment(raw, step, a[PARTS][4])      of inputs 16 * step ... of the group
 *     finish(raw, part, sum, acc)           acc += scale * part, ... for a D fragment and the sums of its two columns
 * matmul_bare, matmul_whole, matmul_split and matmul_scale are what several of them share.
 */
#ifndef WRING_KERNELS_CUDA_MATMUL_CUH
#define WRING_KERNELS_CUDA_MATMUL_CUH

#include "kernels/cuda/cu.cuh"

enum { MATMUL_PANEL = 16, MATMUL_GROUP = 32, MATMUL_STEP = 16, MATMUL_COLUMNS = 8 };
/* Groups that gemm_wide.cuh takes at once: ranges are made of whole ones. */
enum { MATMUL_STAGE = 4 };

/* The base of an F that prepares nothing. */
struct matmul_bare {
    enum { WIDEST = 128 };
    static __device__ __forceinline__ void open()
    {
    }
};

struct cu_matmul {
    const void *plane[3]; /* of W */
    int variant;          /* its codec's own */
    int rows, cols;
    int panels, groups;       /* rows / 16 and cols / 32, rounded up */
    int range_groups, ranges; /* groups of a range; the last one may be shorter */
    const uint16_t *
        x; /* bf16 [parts][n][pitch], in the order above; pitch is a multiple of 32, zeros behind cols */
    const float *sum;        /* [cols / 32][sum_pitch] of each group and row of x */
    int n, pitch, sum_pitch; /* rows of x; sum_pitch: n rounded up to 4 */
    const float *bias;       /* [rows] or NULL */
    float *y;                /* [n][rows] */
    float *range_sum; /* gemm.cuh: [ranges][n][rows] when blocks share the ranges, else NULL */
    int block_ranges; /* ... and how many a block takes */
};

/* Cuts the inputs into ranges: many where W has few panels, so that gemv.cuh has some 2000 warps, which fill a GPU once
 * and end together, each with a multiple of 128 inputs. Depends on nothing but the shape. */
static inline void matmul_cut(struct cu_matmul *m, int rows, int cols)
{
    m->rows = rows;
    m->cols = cols;
    m->panels = (rows + MATMUL_PANEL - 1) / MATMUL_PANEL;
    m->groups = (cols + MATMUL_GROUP - 1) / MATMUL_GROUP;
    int ranges = m->panels <= 256 ? 16 : m->panels <= 512 ? 8 : m->panels <= 1024 ? 4 : 2;
    m->range_groups = (m->groups + ranges - 1) / ranges;
    m->range_groups = (m->range_groups + MATMUL_STAGE - 1) / MATMUL_STAGE * MATMUL_STAGE;
    m->ranges = (m->groups + m->range_groups - 1) / m->range_groups;
}

/* Weights are read once, or by blocks elsewhere: they stay out of L1, where x is. */
template <class T> static __device__ __forceinline__ T matmul_load(const T *p)
{
    return __ldcg(p);
}

static __device__ __forceinline__ int matmul_row(int panel, int lane, int i) /* of D's d[i] */
{
    return panel * MATMUL_PANEL + lane / 4 * 2 + i / 2;
}

static __device__ __forceinline__ int matmul_column(int tile, int lane, int i)
{
    return tile * MATMUL_COLUMNS + lane % 4 * 2 + i % 2;
}

/* A group of x in fragments, and its sums. */
template <int XPARTS> struct matmul_x {
    uint32_t b[2][XPARTS][2];
    float sum[2];
};

/* low and high as PARTS pairs of bf16, words i of a fragment. */
template <int PARTS>
static __device__ __forceinline__ void matmul_split(float low, float high, uint32_t a[PARTS][4],
                                                    int i)
{
    cu_split l = cu_split3(low), h = cu_split3(high);
#pragma unroll
    for (int p = 0; p < PARTS; p++)
        a[p][i] = cu_pack_bf16(l.part[p], h.part[p]);
}

/* A finish(): rows 2g and 2g + 1 have f16 scales, for numbers that are 1 / unit of what they mean, and minima. */
template <bool MINIMUM>
static __device__ __forceinline__ void matmul_scale(uint32_t scale, uint32_t minimum, float unit,
                                                    const float part[4], const float sum[2],
                                                    float acc[4])
{
    float d[2] = { cu_f16_low(scale) * unit, cu_f16_high(scale) * unit };
    float least[2] = { cu_f16_low(minimum), cu_f16_high(minimum) };
#pragma unroll
    for (int i = 0; i < 4; i++) {
        acc[i] = fmaf(part[i], d[i / 2], acc[i]);
        if (MINIMUM)
            acc[i] = fmaf(least[i / 2], sum[i % 2], acc[i]);
    }
}

/* The base of an F whose numbers are whole weights. */
struct matmul_whole : matmul_bare {
    template <class R>
    static __device__ __forceinline__ void finish(const R &, const float part[4], const float *,
                                                  float acc[4])
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            acc[i] += part[i];
    }
};

/* A panel's group as fragments. */
template <class F> struct matmul_w {
    uint32_t a[2][F::PARTS][4];

    __device__ __forceinline__ explicit matmul_w(const typename F::raw &r)
    {
        F::fragment(r, 0, a[0]);
        F::fragment(r, 1, a[1]);
    }
};

/* Sums of a lane's two columns. */
template <class F>
static __device__ __forceinline__ void matmul_sums(const cu_matmul &m, int tile, int group,
                                                   float sum[2])
{
    int column = matmul_column(tile, cu_lane(), 0);
    float2 two = make_float2(0, 0);
    if (F::SUMS && column < m.n)
        two = *(const float2 *)(m.sum + (size_t)group * (size_t)m.sum_pitch + column);
    sum[0] = two.x;
    sum[1] = two.y;
}

/* acc += one group of one panel times one tile of 8 columns. */
template <class F, int XPARTS>
static __device__ __forceinline__ void matmul_group(const typename F::raw &r, const matmul_w<F> &w,
                                                    const matmul_x<XPARTS> &x, float acc[4])
{
    float part[4] = { 0, 0, 0, 0 };
#pragma unroll
    for (int step = 0; step < 2; step++)
#pragma unroll
        for (int j = XPARTS - 1; j >= 0; j--)
#pragma unroll
            for (int i = F::PARTS - 1; i >= 0; i--)
                if (i + j <= 2)
                    cu_mma_bf16(part, w.a[step][i], x.b[step][j]);
    F::finish(r, part, x.sum, acc);
}

#endif
