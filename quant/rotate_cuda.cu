/* Rotations on the GPU. What R is, and the order of its sums, which gives the CPU's bits, is in rotate.h.
 *
 * Butterflies of a span of a row stay in shared memory, three levels at a time in registers, so that 4096 numbers take four
 * barriers instead of twelve; an element of padding after 32 keeps the eight of a thread on different banks at the first
 * levels. Levels that are wider than a span, which takes more than 4096 columns to a power of two, and C pass over memory
 * once more each. Operations are never fused.
 *
 * Bytes moved: 8 a number and pass, mostly in L2: one pass for a power of two up to 4096, two for m times one.
 */
#include "kernels/cuda/state.cuh"

extern "C" {
#include "quant/rotate.h"
#include "quant/rotate_cuda.h"
}

namespace
{

enum { THREADS = 256, SPAN = 4096, SPAN_LEAST = 1024, HALF = ROTATE_MIX / 2 };

__device__ __forceinline__ int padded(int i)
{
    return i + i / CU_WARP;
}

__device__ __forceinline__ float flipped(float x, int cols, int i)
{
    return rotate_signs(cols, i / 64) >> i % 64 & 1 ? -x : x;
}

/* LEVELS levels of butterflies, from stride h on, over the n numbers of a span. */
template <int LEVELS> __device__ __forceinline__ void butterflies(float *span, int h, int n)
{
    enum { POINTS = 1 << LEVELS };
    for (int t = (int)threadIdx.x; t < n / POINTS; t += THREADS) {
        int low = t & (h - 1);
        int first = (t - low) * POINTS + low;
        float v[POINTS];
#pragma unroll
        for (int j = 0; j < POINTS; j++)
            v[j] = span[padded(first + j * h)];
#pragma unroll
        for (int level = 1; level < POINTS; level *= 2)
#pragma unroll
            for (int j = 0; j < POINTS; j++) {
                if (j & level)
                    continue;
                float a = v[j], b = v[j + level];
                v[j] = __fadd_rn(a, b);
                v[j + level] = __fsub_rn(a, b);
            }
#pragma unroll
        for (int j = 0; j < POINTS; j++)
            span[padded(first + j * h)] = v[j];
    }
    __syncthreads();
}

/* All levels below p, a block for each row and span; signs are changed before. */
__global__ void __launch_bounds__(THREADS)
    spans(const float *x, float *y, int cols, int length, int p, bool signs, float scale)
{
    CU_SHARED(float, span, SPAN + SPAN / CU_WARP);
    cu_start_next();
    cu_wait_prior();
    int start = (int)blockIdx.x * length;
    int n = min(length, cols - start);
    size_t at = (size_t)blockIdx.y * (size_t)cols + (size_t)start;
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        span[padded(i)] = signs ? flipped(x[at + i], cols, start + i) : x[at + i];
    __syncthreads();
    int h = 1;
    for (; h <= p / 8; h *= 8)
        butterflies<3>(span, h, n);
    if (h == p / 4)
        butterflies<2>(span, h, n);
    else if (h == p / 2)
        butterflies<1>(span, h, n);
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        y[at + i] = __fmul_rn(span[padded(i)], scale);
}

/* One level of stride h, a thread for each pair of a row. */
__global__ void __launch_bounds__(THREADS) level(float *y, int cols, int h, float scale)
{
    cu_start_next();
    cu_wait_prior();
    int t = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (t >= cols / 2)
        return;
    float *pair = y + (size_t)blockIdx.y * (size_t)cols + (size_t)(t / h) * 2 * (size_t)h + t % h;
    float a = pair[0], b = pair[h];
    pair[0] = __fmul_rn(__fadd_rn(a, b), scale);
    pair[h] = __fmul_rn(__fsub_rn(a, b), scale);
}

/* C, a block for each row and 32 places within the power of two; a warp takes some outputs of each place. */
__global__ void __launch_bounds__(THREADS)
    mix(const __grid_constant__ struct rotate_factors f, float *y)
{
    CU_SHARED(float, even, HALF *CU_WARP); /* [b - 1][place]: x[b] + x[m - b] */
    CU_SHARED(float, odd, HALF *CU_WARP);  /* x[b] - x[m - b] */
    cu_start_next();
    cu_wait_prior();
    int place = (int)blockIdx.x * CU_WARP + cu_lane();
    bool there = place < f.p;
    float *x = y + (size_t)blockIdx.y * (size_t)f.cols + place;
    float first = there ? __fmul_rn(f.cosine[0], x[0]) : 0;
    for (int b = 1 + cu_warp(); b <= f.m / 2 && there; b += THREADS / CU_WARP) {
        float low = x[b * f.p], high = x[(f.m - b) * f.p];
        even[(b - 1) * CU_WARP + cu_lane()] = __fadd_rn(low, high);
        odd[(b - 1) * CU_WARP + cu_lane()] = __fsub_rn(low, high);
    }
    __syncthreads();
    for (int a = cu_warp(); a <= f.m / 2 && there; a += THREADS / CU_WARP) {
        float p = first, q = 0;
        for (int b = 1, k = a; b <= f.m / 2; b++, k += k + a < f.m ? a : a - f.m) {
            p = __fadd_rn(p, __fmul_rn(f.cosine[k], even[(b - 1) * CU_WARP + cu_lane()]));
            q = __fadd_rn(q, __fmul_rn(f.sine[k], odd[(b - 1) * CU_WARP + cu_lane()]));
        }
        x[a * f.p] = __fmul_rn(__fadd_rn(p, q), f.scale);
        if (a > 0)
            x[(f.m - a) * f.p] = __fmul_rn(__fsub_rn(p, q), f.scale);
    }
}

__global__ void __launch_bounds__(THREADS) flip(float *y, int cols)
{
    cu_start_next();
    cu_wait_prior();
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    float *x = y + (size_t)blockIdx.y * (size_t)cols;
    if (i < cols)
        x[i] = flipped(x[i], cols, i);
}

/* Numbers that a block holds: whole powers of two, or a part of one. */
int span_of(const struct rotate_factors &f)
{
    int p = f.p < SPAN ? f.p : SPAN;
    int n = p;
    while (n < SPAN_LEAST && n < f.cols)
        n += p;
    return n;
}

} // namespace

void rotate_rows_cuda(struct be *be, const float *x, float *y, int n, int cols, bool back)
{
    struct cu_state *s = cu_of(be);
    struct rotate_factors f;
    if (!cu_ok(s) || n == 0)
        return;
    rotate_factors(&f, cols);
    int length = span_of(f);
    int p = f.p < SPAN ? f.p : SPAN;
    CU_CHAIN(s, dim3(cu_div_up((size_t)cols, length), (unsigned)n), THREADS, 0, spans, x, y, cols,
             length, p, !back, f.mix || p < f.p ? 1 : f.scale);
    for (int h = p; h < f.p; h *= 2)
        CU_CHAIN(s, dim3(cu_div_up((size_t)cols / 2, THREADS), (unsigned)n), THREADS, 0, level, y,
                 cols, h, f.mix || 2 * h < f.p ? 1 : f.scale);
    if (f.mix)
        CU_CHAIN(s, dim3(cu_div_up((size_t)f.p, CU_WARP), (unsigned)n), THREADS, 0, mix, f, y);
    if (back)
        CU_CHAIN(s, dim3(cu_div_up((size_t)cols, THREADS), (unsigned)n), THREADS, 0, flip, y, cols);
    CU_LAUNCHED(s);
}
