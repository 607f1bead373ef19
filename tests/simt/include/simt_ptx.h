/* The host twin of kernels/cuda/ptx.cuh: the same functions with the same lanes and the same bits, except that exp2 is
 * as exact as the C library's and that sums of a 16-bit mma are taken in the order of k. C++17; in C there is nothing in
 * it.
 *
 * Copies are asynchronous in earnest: until the copying thread's cu_copy_wait the destination holds poison.
 */
#ifndef WRING_TESTS_SIMT_PTX_H
#define WRING_TESTS_SIMT_PTX_H

#ifdef __cplusplus
#    include <math.h>
#    include <stdint.h>

#    include <simt_device.cuh>
#    include <simt_math.cuh>

/* ---- conversions: round to nearest even; NaN becomes 0x7fff ---------------------------------------------------- */

static inline uint32_t simt_bf16(float x)
{
    uint32_t u = __float_as_uint(x);
    return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

static inline uint32_t cu_pack_bf16(float low, float high)
{
    return simt_bf16(high) << 16 | simt_bf16(low);
}

static inline uint32_t simt_f16(float x)
{
    uint32_t u = __float_as_uint(x), sign = u >> 16 & 0x8000, size = u & 0x7fffffff;
    if (size > 0x7f800000)
        return 0x7fff;
    if (size >= 0x477ff000) /* 65520, from which on it is infinite */
        return sign | 0x7c00;
    if (size < 0x38800000) { /* 2^-14: adding 0.5 rounds to units of 2^-24, the f16's last place */
        float shifted = __uint_as_float(size) + 0.5f;
        return sign | (__float_as_uint(shifted) - 0x3f000000);
    }
    return sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
}

static inline uint32_t cu_pack_f16(float low, float high)
{
    return simt_f16(high) << 16 | simt_f16(low);
}

/* Exact. A multiplication moves the exponent and makes subnormal numbers right at once. */
static inline float cu_f16_low(uint32_t pair)
{
    float size = __uint_as_float((pair & 0x7fff) << 13) * 0x1p112f;
    uint32_t special = (pair & 0x7c00) == 0x7c00 ? 0x7f800000 : 0; /* infinite, or NaN */
    return __uint_as_float(__float_as_uint(size) | special | (pair & 0x8000) << 16);
}

static inline float cu_f16_high(uint32_t pair)
{
    return cu_f16_low(pair >> 16);
}

uint32_t cu_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c);

static inline float cu_exp2(float x)
{
    return exp2f(x);
}

/* ---- kernels that overlap: here one ends before the next begins, but must have waited ---------------------------- */

void cu_wait_prior();
static inline void cu_start_next()
{
}
/* Behind a chained kernel, for each thread: faults when it has not waited. */
void simt_chain_end(const char *file, int line);

/* ---- tensor cores, ldmatrix: see tests/simt/mma.cc ------------------------------------------------------------- */

/* Where one lane's fragments are. */
struct simt_fragments {
    void *d;
    const uint32_t *a, *b;
};

static inline void simt_mma(simt_op op, void *d, const uint32_t *a, const uint32_t *b,
                            const char *file, int line)
{
    simt_fragments f = { d, a, b };
    simt_collect(op, 0xffffffffu, (uint64_t)(uintptr_t)&f, file, line);
}

static inline void cu_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], SIMT_SITE)
{
    simt_mma(SIMT_MMA_BF16, d, a, b, file, line);
}

static inline void cu_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2], SIMT_SITE)
{
    simt_mma(SIMT_MMA_F16, d, a, b, file, line);
}

static inline void cu_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], SIMT_SITE)
{
    simt_mma(SIMT_MMA_S8, d, a, b, file, line);
}

static inline void cu_ldmatrix_x4(uint32_t r[4], const void *row, SIMT_SITE)
{
    simt_mma(SIMT_LDMATRIX, r, (const uint32_t *)row, nullptr, file, line);
}

static inline void cu_ldmatrix_x4_trans(uint32_t r[4], const void *row, SIMT_SITE)
{
    simt_mma(SIMT_LDMATRIX_TRANS, r, (const uint32_t *)row, nullptr, file, line);
}

/* ---- tensor cores of sm_90a: see tests/simt/mma.cc ------------------------------------------------------------------
 * Each warp multiplies by itself. Results come with cu_wgmma_wait, until then d holds poison; a tile that has changed by then
 * is a fault. */

#    define CU_WGMMA 1
typedef uint64_t cu_tile; /* offset in the block's shared memory, in units of 16 bytes */

cu_tile cu_tile_of(const void *shared, SIMT_SITE);

static inline cu_tile cu_tile_at(cu_tile t, int row, int k)
{
    return t + (uint64_t)((row * 128 + k * 2) >> 4);
}

static inline void cu_wgmma_visible()
{
}
static inline void cu_wgmma_begin()
{
}
void cu_wgmma_commit();
void simt_wgmma_wait(int n, const char *file, int line);

template <int N, int TILES> static inline void cu_wgmma_wait(float (&)[TILES][4], SIMT_SITE)
{
    simt_wgmma_wait(N, file, line);
}

/* What one lane brings. */
struct simt_wgmma {
    float *d;
    const uint32_t *a;
    cu_tile b;
    int columns;
    bool add;
};

template <int COLUMNS, bool ADD>
static inline void cu_wgmma_bf16(float (&d)[COLUMNS / 8][4], const uint32_t a[4], cu_tile b,
                                 SIMT_SITE)
{
    simt_wgmma f = { &d[0][0], a, b, COLUMNS, ADD };
    simt_collect(SIMT_WGMMA_BF16, 0xffffffffu, (uint64_t)(uintptr_t)&f, file, line);
}

/* ---- shared memory: see tests/simt/shared.cc ------------------------------------------------------------------- */

uint32_t cu_shared_address(const void *p);

void cu_copy16(void *shared, const void *global, int n, SIMT_SITE);
void cu_copy_commit();
void simt_copy_wait(int n);

template <int N> static inline void cu_copy_wait()
{
    simt_copy_wait(N);
}
#endif

#endif
