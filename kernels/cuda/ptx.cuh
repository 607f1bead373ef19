/* Instructions that CUDA C++ has no words for. Each function has a host twin in tests/simt/include/simt_ptx.h with the same lanes.
 *
 * All need sm_80, except where it is said. Source: PTX ISA 8.x, sections "cvt", "cp.async", "ldmatrix", "mma", "wgmma", "Matrix
 * descriptor". Lanes: kernels/cuda/cu.cuh.
 */
#ifndef WRING_KERNELS_CUDA_PTX_CUH
#define WRING_KERNELS_CUDA_PTX_CUH

#include <stdint.h>

/* ---- conversions: round to nearest even ---------------------------------------------------------------------- */

static __device__ __forceinline__ uint32_t cu_pack_bf16(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

static __device__ __forceinline__ uint32_t cu_pack_f16(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

/* The lower 16 bits as an f16 number. */
static __device__ __forceinline__ float cu_f16_low(uint32_t pair)
{
    float r;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low; }"
        : "=f"(r)
        : "r"(pair));
    return r;
}

static __device__ __forceinline__ float cu_f16_high(uint32_t pair)
{
    float r;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high; }"
        : "=f"(r)
        : "r"(pair));
    return r;
}

/* a * b + c on two bf16 numbers, each rounded once. */
static __device__ __forceinline__ uint32_t cu_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

/* 2^x within 2 ulp; 2^-inf is 0. */
static __device__ __forceinline__ float cu_exp2(float x)
{
    float r;
    asm("ex2.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/* ---- tensor cores: d += a b, a warp together ------------------------------------------------------------------ */

/* d goes in and out apart, so that a sum that begins with zeros takes no instructions for them. */
static __device__ __forceinline__ void cu_mma_bf16(float d[4], const uint32_t a[4],
                                                   const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(d[0]),
                   "f"(d[1]), "f"(d[2]), "f"(d[3]));
}

static __device__ __forceinline__ void cu_mma_f16(float d[4], const uint32_t a[4],
                                                  const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(d[0]),
                   "f"(d[1]), "f"(d[2]), "f"(d[3]));
}

/* m16n8k32, int8: a[0] row g, k 4q ... 4q+3; a[1] row g + 8; a[2], a[3] the same from k 16 on; b[0] k 4q ... 4q+3 of
 * column g, b[1] from k 16 on; d as above, int32, exact. */
static __device__ __forceinline__ void cu_mma_s8(int32_t d[4], const uint32_t a[4],
                                                 const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* ---- tensor cores of sm_90a: a warpgroup (four warps) together, while it goes on ------------------------------- */

/* Whether there are any; where not, the functions do nothing and the host must not launch what calls them. */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#    define CU_WGMMA 1
#else
#    define CU_WGMMA 0
#endif

/* The operand B in shared memory, aligned to 1024 bytes: rows (columns of B) of 64 16-bit k, 128 bytes, 16-byte piece i of
 * row r at piece i ^ r % 8. */
typedef uint64_t cu_tile;

static __device__ __forceinline__ cu_tile cu_tile_of(const void *shared)
{
    const uint64_t swizzle = (uint64_t)1 << 62, next8 = (uint64_t)(1024 >> 4) << 32;
    return swizzle | next8 | (uint64_t)1 << 16 |
           ((uint32_t)__cvta_generic_to_shared(shared) >> 4 & 0x3fff);
}

/* The tile from row `row` (a multiple of 8) and k `k` (a multiple of 16) on. */
static __device__ __forceinline__ cu_tile cu_tile_at(cu_tile t, int row, int k)
{
    return t + (uint64_t)((row * 128 + k * 2) >> 4);
}

/* Behind writes to shared memory that cu_wgmma_* is to read, by each thread that wrote, before the barrier. */
static __device__ __forceinline__ void cu_wgmma_visible()
{
#if CU_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* Before the first cu_wgmma_* behind anything that touched its registers. */
static __device__ __forceinline__ void cu_wgmma_begin()
{
#if CU_WGMMA
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

static __device__ __forceinline__ void cu_wgmma_commit() /* ends a group of products */
{
#if CU_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

#define CU_FOUR(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])

/* d = a b, or += (ADD): each warp has 16 rows of A, a and d[column / 8] as in cu_mma_bf16, and the bits are those of
 * cu_mma_bf16. Until cu_wgmma_wait nobody may touch d, change a's registers or write to the tile. */
template <int COLUMNS, bool ADD>
static __device__ __forceinline__ void cu_wgmma_bf16(float (&d)[COLUMNS / 8][4],
                                                     const uint32_t a[4], cu_tile b)
{
    static_assert(COLUMNS == 32 || COLUMNS == 64, "");
#if CU_WGMMA
    if constexpr (COLUMNS == 32)
        asm volatile("{ .reg .pred add; setp.ne.b32 add, %21, 0;"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "{%16, %17, %18, %19}, %20, add, 1, 1, 0; }"
                     : CU_FOUR(0), CU_FOUR(1), CU_FOUR(2), CU_FOUR(3)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)ADD));
    else
        asm volatile("{ .reg .pred add; setp.ne.b32 add, %37, 0;"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
                     "%31}, {%32, %33, %34, %35}, %36, add, 1, 1, 0; }"
                     : CU_FOUR(0), CU_FOUR(1), CU_FOUR(2), CU_FOUR(3), CU_FOUR(4), CU_FOUR(5),
                       CU_FOUR(6), CU_FOUR(7)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)ADD));
#else
    (void)d, (void)a, (void)b;
#endif
}

/* Waits for all but the N latest groups; d, which they were to give, may be touched from there on. */
template <int N, int TILES>
static __device__ __forceinline__ void cu_wgmma_wait(float (&d)[TILES][4])
{
#if CU_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(N) : "memory");
    for (int i = 0; i < TILES; i++)
        asm volatile("" : CU_FOUR(i) : : "memory");
#else
    (void)d;
#endif
}

#undef CU_FOUR

/* ---- kernels that overlap (CU_CHAIN), from sm_90 on; nothing on older ones -------------------------------------- */

/* Waits until all kernels before this one have ended and what they wrote is visible. */
static __device__ __forceinline__ void cu_wait_prior()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The kernel behind this one may begin as soon as every block has said so. */
static __device__ __forceinline__ void cu_start_next()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* ---- shared memory ------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ uint32_t cu_shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Four 8 x 8 tiles of 16-bit elements; lane l gives the address of row l % 8 of tile l / 8 (16 bytes, aligned to 16);
 * r[i] of lane l is elements 2q, 2q+1 of row g of tile i. */
static __device__ __forceinline__ void cu_ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(cu_shared_address(row))
                 : "memory");
}

/* The same with each tile transposed. */
static __device__ __forceinline__ void cu_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(cu_shared_address(row))
                 : "memory");
}

/* Starts copying 16 bytes from global to shared memory, both aligned to 16; only the first n (0 ... 16) are read, the
 * rest becomes 0. Visible to the copying thread after cu_copy_wait, to others after a barrier behind it. */
static __device__ __forceinline__ void cu_copy16(void *shared, const void *global, int n)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(cu_shared_address(shared)), "l"(global), "r"(n)
                 : "memory");
}

static __device__ __forceinline__ void cu_copy_commit() /* ends a group of copies */
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N>
static __device__ __forceinline__ void cu_copy_wait() /* all but the N latest groups */
{
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

#endif
