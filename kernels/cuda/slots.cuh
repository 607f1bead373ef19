/* The kernels of a press that know how slots lie in pages (kernels/backend.h): those that are kept come out as f32, and are
 * written to the new pages as probe_write and probe_write_q8 of kernels/probe.h do.
 */
#ifndef WRING_KERNELS_CUDA_SLOTS_CUH
#define WRING_KERNELS_CUDA_SLOTS_CUH

#include "kernels/cuda/press.cuh"

enum { SLOTS_THREADS = 128, SLOTS_WARPS = SLOTS_THREADS / CU_WARP };

/* kv_side_floats */
template <bool Q> static constexpr size_t SIDE_FLOATS = Q ? 3 * KV_PAGE_Q8 : KV_PAGE;

/* ---- out of pages: a warp a slot --------------------------------------------------------------------------------- */

/* Slot `at` of a q8 page. */
static __device__ __forceinline__ void slot_read_q8(const void *pool, const float *side, int block,
                                                    int at, int dim, float *k, float *v)
{
    size_t half = (size_t)KV_PAGE_Q8 * (size_t)dim;
    const int8_t *key = (const int8_t *)pool + (size_t)block * 2 * half, *value = key + half;
    for (int d = cu_lane(); d < dim; d += CU_WARP) {
        k[d] = (float)key[d / 2 * KV_PAGE_Q8 * 2 + at * 2 + d % 2] * side[KV_PAGE_Q8 + at];
        v[d] = (float)value[at / 2 * dim * 2 + d * 2 + at % 2] * side[2 * KV_PAGE_Q8 + at];
    }
}

/* Slot `at` of any other page, two dims a lane. */
template <enum kv_type T>
static __device__ __forceinline__ void slot_read(const void *pool, int block, int at, int dim,
                                                 float *k, float *v)
{
    const word_of<T> *key = (const word_of<T> *)pool + (size_t)block * KV_PAGE * (size_t)dim;
    const word_of<T> *value = key + KV_PAGE / 2 * dim + at / 2 * dim;
    for (int d = cu_lane() * 2; d < dim; d += CU_WARP * 2) {
        float2 a = word_unpack<T>(value[d]), b = word_unpack<T>(value[d + 1]);
        *(float2 *)(k + d) = word_unpack<T>(key[d / 2 * KV_PAGE + at]);
        *(float2 *)(v + d) = at % 2 ? make_float2(a.y, b.y) : make_float2(a.x, b.x);
    }
}

/* The column of slot i: values that change come first. */
static __device__ __forceinline__ int column_of(const struct press_head &h, int i)
{
    int fit = 0;
    if (h.n_fit == 0)
        return i;
    for (int c = cu_lane(); c - cu_lane() < i; c += CU_WARP)
        fit += __popc(__ballot_sync(CU_ALL, c < i && !h.exact[c]));
    return h.exact[i] ? h.n_fit + i - fit : fit;
}

template <bool Q, enum kv_type T>
static __global__ void __launch_bounds__(SLOTS_THREADS) gather_kept(struct press_job j)
{
    const struct press_head h = head_of(j);
    const struct probe_item t = item_of(j.refs);
    int i = (int)blockIdx.x * SLOTS_WARPS + cu_warp();
    if (i >= h.n)
        return;
    int column = column_of(h, i), slot = h.keep[i];
    bool narrow = slot < t.n_narrow;
    slot -= narrow ? 0 : t.n_narrow;
    int block = item_block<Q>(j.refs, t, narrow, slot / KV_PAGE);
    int at = slot % (Q && narrow ? KV_PAGE_Q8 : KV_PAGE);
    const float *side = j.side + (size_t)block * SIDE_FLOATS<Q>;
    float *k = h.k + (size_t)column * (size_t)h.dim, *v = h.v + (size_t)column * (size_t)h.dim;
    if (Q && narrow)
        slot_read_q8(j.pool, side, block, at, h.dim, k, v);
    else
        slot_read<T>(j.pool, block, at, h.dim, k, v);
    if (cu_lane() == 0) {
        h.place[i] = column;
        h.bias[column] = narrow ? side[at] : 0;
        h.factor[column] = 1;
        h.low[column] = j.rounds > 0 ? j.low[h.keep0 + i] : 0;
        h.high[column] = j.rounds > 0 ? j.high[h.keep0 + i] : 0;
    }
}

/* ---- into pages: a block a page ---------------------------------------------------------------------------------- */

/* Elements i and i + 1 of x[n][dim] for slot s; what no slot has is 0. */
static __device__ __forceinline__ float2 kept_pair(const struct press_head &h, const float *x,
                                                   int s, int i)
{
    size_t row = s < h.n ? (size_t)h.place[s] * (size_t)h.dim : 0;
    return s < h.n ? *(const float2 *)(x + row + (size_t)i) : make_float2(0, 0);
}

static __device__ __forceinline__ float kept_one(const struct press_head &h, const float *x, int s,
                                                 int i)
{
    return s < h.n ? x[(size_t)h.place[s] * (size_t)h.dim + (size_t)i] : 0;
}

template <int PAGE>
static __device__ __forceinline__ void write_biases(const struct press_head &h, float *side, int s0)
{
    for (int s = (int)threadIdx.x; s < PAGE; s += SLOTS_THREADS)
        side[s] = s0 + s < h.n ? h.bias[h.place[s0 + s]] : 0;
}

template <enum kv_type T>
static __global__ void __launch_bounds__(SLOTS_THREADS) write_pages(struct press_job j)
{
    const struct press_head h = head_of(j);
    int s0 = (int)blockIdx.x * KV_PAGE, dim = h.dim;
    if (s0 >= h.n)
        return;
    size_t block = (size_t)h.block[blockIdx.x];
    word_of<T> *key = (word_of<T> *)j.pool + block * KV_PAGE * (size_t)dim;
    word_of<T> *value = key + KV_PAGE / 2 * dim;
    for (int at = (int)threadIdx.x; at < KV_PAGE / 2 * dim; at += SLOTS_THREADS) {
        float2 x = kept_pair(h, h.k, s0 + at % KV_PAGE, at / KV_PAGE * 2);
        int s = s0 + at / dim * 2, i = at % dim;
        key[at] = word_pack<T>(x.x, x.y);
        value[at] = word_pack<T>(kept_one(h, h.v, s, i), kept_one(h, h.v, s + 1, i));
    }
    write_biases<KV_PAGE>(h, j.side + block * SIDE_FLOATS<false>, s0);
}

/* The scale of slot s, by a warp: whole numbers compare as sizes do, with NaN above infinity. */
static __device__ __forceinline__ float scale_of(const struct press_head &h, const float *x, int s)
{
    int most = 0;
    for (int i = cu_lane(); i < h.dim; i += CU_WARP)
        most = max(most, __float_as_int(kept_one(h, x, s, i)) & INT32_MAX);
    float size = __int_as_float(__reduce_max_sync(CU_ALL, most));
    if (!(size < INFINITY))
        return NAN;
    return __int_as_float((__float_as_int(size / 127) + 0xff) & ~0xff);
}

/* x / scale, rounded to nearest even; 0 where there is nothing to tell apart, or NaN by its scale. */
static __device__ __forceinline__ int number_of(float x, float scale)
{
    float r = rintf(x / scale);
    return fabsf(r) <= 127 ? (int)r : 0;
}

static __device__ __forceinline__ uint16_t bytes_of(int low, int high)
{
    return (uint16_t)((low & 0xff) | (high & 0xff) << 8);
}

/* The same as q8. */
static __global__ void __launch_bounds__(SLOTS_THREADS) write_pages_q8(struct press_job j)
{
    CU_SHARED(float, scale, 2 * KV_PAGE_Q8);
    const struct press_head h = head_of(j);
    int s0 = (int)blockIdx.x * KV_PAGE_Q8, dim = h.dim;
    if (s0 >= h.n)
        return;
    size_t block = (size_t)h.block[blockIdx.x];
    float *side = j.side + block * SIDE_FLOATS<true>;
    uint16_t *key = (uint16_t *)j.pool + block * KV_PAGE_Q8 * (size_t)dim;
    uint16_t *value = key + KV_PAGE_Q8 / 2 * dim;
    for (int i = cu_warp(); i < 2 * KV_PAGE_Q8; i += SLOTS_WARPS) {
        float of = scale_of(h, i < KV_PAGE_Q8 ? h.k : h.v, s0 + i % KV_PAGE_Q8);
        if (cu_lane() == 0)
            scale[i] = side[KV_PAGE_Q8 + i] = of;
    }
    write_biases<KV_PAGE_Q8>(h, side, s0);
    __syncthreads();
    for (int at = (int)threadIdx.x; at < KV_PAGE_Q8 / 2 * dim; at += SLOTS_THREADS) {
        int t = at % KV_PAGE_Q8, s = at / dim * 2, i = at % dim;
        float2 x = kept_pair(h, h.k, s0 + t, at / KV_PAGE_Q8 * 2);
        float a = kept_one(h, h.v, s0 + s, i), b = kept_one(h, h.v, s0 + s + 1, i);
        key[at] = bytes_of(number_of(x.x, scale[t]), number_of(x.y, scale[t]));
        value[at] =
            bytes_of(number_of(a, scale[KV_PAGE_Q8 + s]), number_of(b, scale[KV_PAGE_Q8 + s + 1]));
    }
}

#endif
