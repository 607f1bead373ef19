/* A span of attention: rows of one KV head against slots that lie in ATTEND_PAGES pages, tile by tile, and how spans become
 * a row. Who asks about which slots: attend.cu, probe.cu. The tile: attend.cuh.
 */
#ifndef WRING_KERNELS_CUDA_ATTEND_SPAN_CUH
#define WRING_KERNELS_CUDA_ATTEND_SPAN_CUH

#include "kernels/cuda/attend.cuh"

/* Slots [lo, hi) of the narrow or of the wide ones. */
struct attend_cut {
    int lo, hi;
    bool narrow;
};

/* ---- a span ------------------------------------------------------------------------------------------------------ */

/* q as A operands: element (row, dim) of each 16 x 16. at(row, dim) gives two dims of a row, scaled. */
template <enum kv_type T, int MT, int NT, class F>
static __device__ __forceinline__ void fragments_open(const struct attend_block<T, MT, NT> &b, F at)
{
    for (int i = (int)threadIdx.x; i < b.K_STEPS * MT * CU_WARP; i += ATTEND_THREADS) {
        int lane = i % CU_WARP, t = i / CU_WARP % MT, step = i / CU_WARP / MT;
        attend_fragment<T> f;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int dim = step * 16 + k / 2 * 8 + lane % 4 * 2;
            float2 x = make_float2(0, 0);
            if (dim < b.dim)
                x = at(t * 16 + k % 2 * 8 + lane / 4, dim);
            f.w[k] = word_pack<T>(x.x, x.y);
        }
        b.q[i] = f;
    }
}

/* Slots [c.lo, c.hi), of q8 pages with Q. The next tile's keys are on their way while this one's weights are made, and its values while its
 * scores are. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void span_walk(const struct attend_block<T, MT, NT> &b,
                                                 const struct attend_cut &c, int2 seen_by_all,
                                                 struct attend_sum<MT, NT> *sum)
{
    typename attend_block<T, MT, NT>::keys k;
    typename attend_block<T, MT, NT>::values v;
    float s[MT][2][4];
    sum_clear(sum);
    int tile = c.lo / ATTEND_TILE * ATTEND_TILE;
    if (c.lo < c.hi)
        keys_load<Q>(b, &k, tile, 0);
    for (; tile < c.hi; tile += ATTEND_TILE) {
        bool edge = tile < seen_by_all.x || tile + ATTEND_TILE > seen_by_all.y;
        if (MT == 1)
            values_load<Q>(b, &v, tile, 0);
        tile_scores<Q>(b, &k, tile, s);
        if (MT > 1)
            values_load<Q>(b, &v, tile, 0);
        if (tile + ATTEND_TILE < c.hi)
            keys_load<Q>(b, &k, tile + ATTEND_TILE, 0);
        if (b.beta != NULL)
            tile_bias<Q>(b, tile, s);
        if (edge)
            tile_mask(b, tile, s);
        tile_weights(b, sum, s);
        tile_values<Q>(b, &v, sum, tile, edge || T == KV_F32);
    }
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        float l = sum->l[i / 2][i % 2];
        l += __shfl_xor_sync(CU_ALL, l, 1);
        l += __shfl_xor_sync(CU_ALL, l, 2);
        if (cu_lane() % 4 == 0)
            ((float *)&b.shared->stat[i * 8 + cu_lane() / 4])[cu_warp()] = l;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        float4 l = b.shared->stat[i * 8 + cu_lane() / 4];
        sum->l[i / 2][i % 2] = (l.x + l.y) + (l.z + l.w);
    }
}

/* Calls f(dim, x) for the dims that this lane holds of index h of tile t, two at a time. */
template <int MT, int NT, class F>
static __device__ __forceinline__ void sum_each(const struct attend_sum<MT, NT> &sum, int t, int h,
                                                int n_dims, F f)
{
#pragma unroll
    for (int n = 0; n < NT; n++) {
        int dim = cu_warp() * 8 * NT + n / 2 * 16 + cu_lane() % 4 * 4 + n % 2 * 2;
        if (dim < n_dims)
            f(dim, make_float2(sum.o[t][n / 2 * 2][h * 2 + n % 2],
                               sum.o[t][n / 2 * 2 + 1][h * 2 + n % 2]));
    }
}

/* ---- totals ------------------------------------------------------------------------------------------------------ */

/* The running totals of the rows of a lane. */
template <int MT> struct attend_totals {
    float m[MT][2], l[MT][2];
};

template <int MT>
static __device__ __forceinline__ void totals_clear(struct attend_totals<MT> *total)
{
#pragma unroll
    for (int t = 0; t < MT * 2; t++) {
        total->m[t / 2][t % 2] = -INFINITY;
        total->l[t / 2][t % 2] = 0;
    }
}

/* Adds a span's (bm, bl) to a total (m, l): o becomes total_mix(o, o of the span, what this returns). As softsum_merge
 * of ref.c; fmaf is written out so that no compiler contracts one copy of this and not another. */
static __device__ __forceinline__ float2 total_add(float *m, float *l, float bm, float bl)
{
    float2 f = make_float2(1, 0);
    if (bm == -INFINITY)
        return f;
    if (!(bm <= *m)) {
        f.x = *m == -INFINITY ? 0 : cu_exp2(*m - bm);
        *m = bm;
    }
    f.y = cu_exp2(bm - *m);
    *l = fmaf(bl, f.y, *l * f.x);
    return f;
}

static __device__ __forceinline__ float total_mix(float total, float span, float2 f)
{
    return f.x == 1 && f.y == 0 ? total : fmaf(span, f.y, total * f.x);
}

static __device__ __forceinline__ float total_lse(float m, float l)
{
    return l == 0 ? -INFINITY : fmaf(m, 0.693147181f /* ln(2) */, logf(l));
}

/* Adds the span to the total in out[row][dim], and divides after the last one; lse[row] then, unless it is NULL. */
template <enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void span_total(float *out, float *lse,
                                                  const struct attend_block<T, MT, NT> &b,
                                                  const struct attend_sum<MT, NT> &sum,
                                                  struct attend_totals<MT> *total, bool last)
{
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        int row = b.shared->row[i * 8 + cu_lane() / 4];
        float *m = &total->m[i / 2][i % 2], *l = &total->l[i / 2][i % 2];
        bool empty = *m == -INFINITY;
        float2 f = total_add(m, l, sum.m[i / 2][i % 2], sum.l[i / 2][i % 2]);
        if (row < 0)
            continue;
        sum_each(sum, i / 2, i % 2, b.dim, [&](int dim, float2 x) {
            float2 *at = (float2 *)(out + (size_t)row * (size_t)b.dim + dim);
            float2 old = empty ? make_float2(0, 0) : *at;
            x = make_float2(total_mix(old.x, x.x, f), total_mix(old.y, x.y, f));
            if (last)
                x = *l == 0 ? make_float2(0, 0) : make_float2(x.x / *l, x.y / *l);
            *at = x;
        });
        if (last && lse != NULL && threadIdx.x < CU_WARP && cu_lane() % 4 == 0)
            lse[row] = total_lse(*m, *l);
    }
}

#endif
