/* The vocabulary of every CUDA file here: what a kernel may say.
 *
 * The same source is compiled twice: by nvcc for the GPU, and by the host's C++ compiler against tests/simt, which runs
 * each thread of a block as a fiber and checks what a GPU does not (tests/simt/README.md). Hence the rules:
 *   - shared memory is declared with CU_SHARED and CU_DYNAMIC only;
 *   - kernels are launched with CU_LAUNCH only;
 *   - PTX stands in kernels/cuda/ptx.cuh only, each function with its host twin in tests/simt/include/simt_ptx.h;
 *   - warps are synchronised by what is written (masks are CU_ALL), never by habit;
 *   - no atomics on floats: every sum has an order of its own, so that results repeat.
 *
 * Lanes of a 16-bit mma (m16n8k16, PTX ISA "Matrix Fragments for mma.m16n8k16"), with g = lane / 4 and q = lane % 4:
 *      a[0] rows g,     k 2q 2q+1     a[2] rows g,     k 2q+8 2q+9          A is 16 x 16, row-major
 *      a[1] rows g + 8, k 2q 2q+1     a[3] rows g + 8, k 2q+8 2q+9
 *      b[0] k 2q 2q+1, column g       b[1] k 2q+8 2q+9, column g            B is 16 x 8
 *      d[0] d[1] row g, columns 2q 2q+1       d[2] d[3] row g + 8           D is 16 x 8, f32
 * The lower half of a 32-bit register is the element with the lower k.
 */
#ifndef WRING_KERNELS_CUDA_CU_CUH
#define WRING_KERNELS_CUDA_CU_CUH

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime.h>

/* CU_SHARED(float, tile, 256): `tile` points to 256 floats that the block's threads share.
 * CU_DYNAMIC(char, room): `room` points to the bytes that the launch asked for; once a kernel, 128-byte aligned. */
#ifdef __CUDACC__
#    include "kernels/cuda/ptx.cuh"
#    define CU_SHARED(type, name, count)                                                           \
        __shared__ __align__(16) unsigned char name##_bytes[sizeof(type) * (count)];               \
        type *const name = (type *)name##_bytes
#    define CU_DYNAMIC(type, name)                                                                 \
        extern __shared__ __align__(128) unsigned char cu_dynamic[];                               \
        type *const name = (type *)cu_dynamic
#else
#    include <simt_ptx.h> /* tests/simt/include */
#endif

enum : unsigned { CU_ALL = 0xffffffffu };
enum { CU_WARP = 32 };

/* Starts kernel k (in parentheses when it is a template: commas) on stream s. Errors are the stream's, see cu_check(). */
#define CU_LAUNCH(s, grid, block, shared_bytes, k, ...)                                            \
    cu_launch(#k, s, grid, block, shared_bytes, k, __VA_ARGS__)

/* The same for a kernel that may begin before the one ahead of it ends, so that its launch and what it reads of memory that no
 * kernel writes (weights) hide behind it: it calls cu_wait_prior() before it touches anything else, as all threads do,
 * and cu_start_next() where the next one may come. s: a cu_state. */
#define CU_CHAIN(s, grid, block, shared_bytes, k, ...)                                             \
    cu_chain(#k, (s)->stream, (s)->overlaps, grid, block, shared_bytes, k, __VA_ARGS__)

#ifdef __CUDACC__
template <class... P, class... A>
static inline void cu_launch(const char *name, cudaStream_t s, dim3 grid, dim3 block,
                             size_t shared_bytes, void (*k)(P...), A... a)
{
    (void)name;
    k<<<grid, block, shared_bytes, s>>>(static_cast<P>(a)...);
}

template <class... P, class... A>
static inline void cu_chain(const char *name, cudaStream_t s, bool overlaps, dim3 grid, dim3 block,
                            size_t shared_bytes, void (*k)(P...), A... a)
{
    (void)name;
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = s;
    config.attrs = &overlap;
    config.numAttrs = overlaps ? 1 : 0;
    (void)cudaLaunchKernelEx(&config, k, static_cast<P>(a)...); /* errors: cudaGetLastError */
}
#else
template <class... P, class... A>
static inline void cu_launch(const char *name, cudaStream_t s, dim3 grid, dim3 block,
                             size_t shared_bytes, void (*k)(P...), A... a)
{
    simt_launch(
        name, s, grid, block, shared_bytes, [=]() { k(static_cast<P>(a)...); }, (const void *)k);
}

template <class... P, class... A>
static inline void cu_chain(const char *name, cudaStream_t s, bool overlaps, dim3 grid, dim3 block,
                            size_t shared_bytes, void (*k)(P...), A... a)
{
    (void)overlaps;
    auto body = [=]() {
        k(static_cast<P>(a)...);
        simt_chain_end(__FILE__, __LINE__);
    };
    simt_launch(name, s, grid, block, shared_bytes, body, (const void *)k);
}
#endif

/* ---- small helpers of kernels ------------------------------------------------------------------------------------ */

static __device__ __forceinline__ int cu_lane()
{
    return (int)(threadIdx.x % CU_WARP);
}

static __device__ __forceinline__ int cu_warp()
{
    return (int)(threadIdx.x / CU_WARP);
}

/* Sums over a warp as a tree of fixed shape; every lane gets the same bits. */
static __device__ __forceinline__ float cu_warp_sum(float x)
{
    for (int m = CU_WARP / 2; m > 0; m /= 2)
        x += __shfl_xor_sync(CU_ALL, x, m);
    return x;
}

/* The larger one; NaN when either is. */
static __device__ __forceinline__ float cu_max(float a, float b)
{
    return a != a || a > b ? a : b;
}

static __device__ __forceinline__ float cu_bf16_low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float cu_bf16_high(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

/* x as three bf16 numbers whose sum is x (24 bits), for products that are to be as good as f32. What is not finite
 * stays in the first. */
struct cu_split {
    float part[3];
};
static __device__ __forceinline__ cu_split cu_split3(float x)
{
    cu_split s;
    s.part[0] = cu_bf16_low(cu_pack_bf16(x, 0));
    float rest = x - s.part[0];
    bool finite = fabsf(s.part[0]) < INFINITY;
    s.part[1] = finite ? cu_bf16_low(cu_pack_bf16(rest, 0)) : 0;
    s.part[2] = finite ? cu_bf16_low(cu_pack_bf16(rest - s.part[1], 0)) : 0;
    return s;
}

#endif
