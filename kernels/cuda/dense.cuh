/* Small dense products in f32 and the solution of symmetric positive definite systems: what kernels/dense.h is to the host.
 *
 * Row-major. A product is cut into tiles of 64 x 64, which blocks of DENSE_THREADS take; a thread has 4 x 4 numbers of one,
 * and both factors come through shared memory, 16 steps of the sum at a time. A system is solved by one block: by columns of
 * 32, of which every thread that has one keeps it in registers, with products of tiles for all the rest. Each sum has one
 * order, fixed by the sizes.
 *
 * Two reads of 16 bytes of shared memory feed 16 multiply-adds of a thread, which is half of what a multiprocessor can add.
 * Tensor cores would take each number as three (cu_split3) and six products for one: no faster for so little work.
 */
#ifndef WRING_KERNELS_CUDA_DENSE_CUH
#define WRING_KERNELS_CUDA_DENSE_CUH

#include "kernels/cuda/cu.cuh"

enum {
    DENSE_THREADS = 256,
    DENSE_TILE = 64,
    DENSE_STEP = 16,
    DENSE_PITCH = DENSE_TILE + 4,
    DENSE_BASE = 32
};

/* ---- products ---------------------------------------------------------------------------------------------------- */

/* c[i][j] = add[i][j] + scale * sum_p a[i][p] b[p][j] for i < m, j < n, p < k. Strides in floats; columns of c and of add,
 * which may be c or NULL, are adjacent. */
struct dense_product {
    float *c;
    const float *a, *b, *add;
    int m, n, k;
    size_t c_row, add_row, a_row, a_col, b_row, b_col;
    float scale;
    bool upper; /* c[i][j] is wanted for j >= i only; others may be written, or not */
};

struct alignas(16) dense_four {
    float x[4];
};

struct dense_room {
    float a[DENSE_STEP][DENSE_PITCH], b[DENSE_STEP][DENSE_PITCH];
};

static inline __host__ __device__ int dense_tiles(int m, int n)
{
    return (m + DENSE_TILE - 1) / DENSE_TILE * ((n + DENSE_TILE - 1) / DENSE_TILE);
}

/* to[p][i] = x[i0 + i][p0 + p] of x[n][k], 0 behind its ends. Threads side by side read what lies side by side. */
static __device__ __forceinline__ void step_load(float (*to)[DENSE_PITCH], const float *x,
                                                 size_t row, size_t col, int i0, int n, int p0,
                                                 int k)
{
    for (int at = (int)threadIdx.x; at < DENSE_STEP * DENSE_TILE; at += DENSE_THREADS) {
        int p = col == 1 ? at % DENSE_STEP : at / DENSE_TILE;
        int i = col == 1 ? at / DENSE_STEP : at % DENSE_TILE;
        bool there = i0 + i < n && p0 + p < k;
        to[p][i] = there ? x[(size_t)(i0 + i) * row + (size_t)(p0 + p) * col] : 0;
    }
}

static __device__ __forceinline__ void step_add(float sum[4][4], const struct dense_room *room,
                                                int y, int x)
{
#pragma unroll
    for (int p = 0; p < DENSE_STEP; p++) {
        struct dense_four a = *(const struct dense_four *)&room->a[p][y];
        struct dense_four b = *(const struct dense_four *)&room->b[p][x];
#pragma unroll
        for (int i = 0; i < 16; i++)
            sum[i / 4][i % 4] = fmaf(a.x[i / 4], b.x[i % 4], sum[i / 4][i % 4]);
    }
}

/* Tile number `tile`, by the whole block. */
static __device__ __forceinline__ void product_tile(const struct dense_product &t, int tile,
                                                    struct dense_room *room)
{
    int across = (t.n + DENSE_TILE - 1) / DENSE_TILE;
    int i0 = tile / across * DENSE_TILE, j0 = tile % across * DENSE_TILE;
    int y = (int)threadIdx.x / 16 * 4, x = (int)threadIdx.x % 16 * 4;
    float sum[4][4] = {};
    if (t.upper && i0 > j0)
        return;
    for (int p0 = 0; p0 < t.k; p0 += DENSE_STEP) {
        __syncthreads();
        step_load(room->a, t.a, t.a_row, t.a_col, i0, t.m, p0, t.k);
        step_load(room->b, t.b, t.b_col, t.b_row, j0, t.n, p0, t.k);
        __syncthreads();
        step_add(sum, room, y, x);
    }
#pragma unroll
    for (int at = 0; at < 16; at++) {
        size_t i = (size_t)(i0 + y + at / 4), j = (size_t)(j0 + x + at % 4);
        if (i < (size_t)t.m && j < (size_t)t.n)
            t.c[i * t.c_row + j] =
                fmaf(t.scale, sum[at / 4][at % 4], t.add != NULL ? t.add[i * t.add_row + j] : 0);
    }
}

static __device__ __forceinline__ void product_tiles(const struct dense_product &t,
                                                     struct dense_room *room)
{
    for (int i = 0; i < dense_tiles(t.m, t.n); i++)
        product_tile(t, i, room);
}

/* ---- a block of the diagonal ------------------------------------------------------------------------------------- */

struct solve_room {
    struct dense_room tile;
    float base[DENSE_BASE][DENSE_BASE + 1];
};

/* The upper triangle of a[n][n], continued as the identity. */
static __device__ __forceinline__ void base_load(struct solve_room *room, const float *a,
                                                 size_t row, int n)
{
    for (int at = (int)threadIdx.x; at < DENSE_BASE * DENSE_BASE; at += DENSE_THREADS) {
        int i = at / DENSE_BASE, j = at % DENSE_BASE;
        room->base[i][j] = j < n && i <= j ? a[(size_t)i * row + (size_t)j] : i == j;
    }
    __syncthreads();
}

/* a = U^T U in place; false, for all threads, when a pivot is not positive. */
static __device__ __forceinline__ bool base_factor(struct solve_room *room)
{
    float(*u)[DENSE_BASE + 1] = room->base;
    for (int i = 0; i < DENSE_BASE; i++) {
        float pivot = u[i][i];
        if (!(pivot > 0))
            return false;
        for (int at = (int)threadIdx.x; at < DENSE_BASE * DENSE_BASE; at += DENSE_THREADS) {
            int r = at / DENSE_BASE, j = at % DENSE_BASE;
            if (r > i && j >= r)
                u[r][j] -= u[i][r] * (u[i][j] / pivot);
        }
        __syncthreads();
    }
    for (int i = cu_warp(); i < DENSE_BASE; i += DENSE_THREADS / CU_WARP) {
        float root = sqrtf(u[i][i]);
        __syncwarp();
        u[i][cu_lane()] /= root;
    }
    __syncthreads();
    return true;
}

static __device__ __forceinline__ void base_store(float *a, size_t row, int n,
                                                  const struct solve_room *room)
{
    for (int at = (int)threadIdx.x; at < DENSE_BASE * DENSE_BASE; at += DENSE_THREADS) {
        int i = at / DENSE_BASE, j = at % DENSE_BASE;
        if (j < n && i <= j)
            a[(size_t)i * row + (size_t)j] = room->base[i][j];
    }
}

/* U^T x = b or, back, U x = b for a column of b[n]. */
template <bool BACK>
static __device__ __forceinline__ void column_solve(const struct solve_room *room, float *b,
                                                    size_t row, int n)
{
    const float(*u)[DENSE_BASE + 1] = room->base;
    float x[DENSE_BASE];
#pragma unroll
    for (int i = 0; i < DENSE_BASE; i++)
        x[i] = i < n ? b[(size_t)i * row] : 0;
#pragma unroll
    for (int k = 0; k < DENSE_BASE; k++) {
        int i = BACK ? DENSE_BASE - 1 - k : k;
#pragma unroll
        for (int j = 0; j < k; j++) {
            int from = BACK ? DENSE_BASE - 1 - j : j;
            x[i] = fmaf(-(BACK ? u[i][from] : u[from][i]), x[from], x[i]);
        }
        x[i] /= u[i][i];
    }
#pragma unroll
    for (int i = 0; i < DENSE_BASE; i++)
        if (i < n)
            b[(size_t)i * row] = x[i];
}

/* The same of b[n][m]. A barrier in the loop, or the compiler reads all of U ahead of it, into registers that are not there. */
template <bool BACK>
static __device__ __forceinline__ void base_solve(const struct solve_room *room, float *b,
                                                  size_t row, int n, int m)
{
    for (int c = (int)threadIdx.x; c - (int)threadIdx.x < m; c += DENSE_THREADS) {
        if (c < m)
            column_solve<BACK>(room, b + c, row, n);
        __syncthreads();
    }
}

/* ---- the solver -------------------------------------------------------------------------------------------------- */

/* a[n][n + m] is a symmetric positive definite matrix, of which the upper triangle is read, and beside it b, which becomes the
 * solution x of a x = b. By one block. False, for all threads, when a pivot is not positive: then x means nothing. */
static __device__ __forceinline__ bool dense_solve(float *a, int n, int m, struct solve_room *room)
{
    const size_t row = (size_t)(n + m);
    struct dense_product t = {};
    t.c_row = t.add_row = row;
    t.scale = -1;
    for (int i = 0; i < n; i += DENSE_BASE) {
        int size = min(DENSE_BASE, n - i), rest = n + m - i - size;
        float *at = a + (size_t)i * row + (size_t)i, *side = at + size;
        base_load(room, at, row, size);
        if (!base_factor(room))
            return false;
        base_store(at, row, size, room);
        base_solve<false>(room, side, row, size, rest);
        t.c = side + (size_t)size * row; /* what is left of a and b, side by side */
        t.add = t.c;
        t.a = t.b = side;
        t.m = rest - m;
        t.n = rest;
        t.k = size;
        t.a_row = t.b_col = 1;
        t.a_col = t.b_row = row;
        t.upper = true;
        product_tiles(t, &room->tile);
        __syncthreads();
    }
    for (int i = (n - 1) / DENSE_BASE * DENSE_BASE; i >= 0; i -= DENSE_BASE) {
        int size = min(DENSE_BASE, n - i);
        base_load(room, a + (size_t)i * row + (size_t)i, row, size);
        base_solve<true>(room, a + (size_t)i * row + (size_t)n, row, size, m);
        t.c = a + n;
        t.add = t.c;
        t.a = a + i;
        t.b = t.c + (size_t)i * row;
        t.m = i;
        t.n = m;
        t.k = size;
        t.a_row = t.b_row = row;
        t.a_col = t.b_col = 1;
        t.upper = false;
        product_tiles(t, &room->tile);
        __syncthreads();
    }
    return true;
}

#endif
