/* What the CUDA kernels of a codec are made of: products, look-up and unpacking for a decode struct F.
 *
 * F is what kernels/cuda/matmul.cuh asks for, and
 *   four(m, row, k, v[4])     weights k ... k+3 of a row in f32; k < cols is a multiple of 4, inputs behind cols give 0
 *
 * A product takes gemv up to 16 rows of x, there several matrices to a launch, and gemm or gemm_wide beyond; they give the
 * same bits. With cuBLASLt at hand and many rows the matrix is unpacked to bf16, slice by slice, and multiplied there.
 */
#ifndef WRING_QUANT_MUL_CUDA_CUH
#define WRING_QUANT_MUL_CUDA_CUH

#include "kernels/cuda/gemm_wide.cuh"
#include "kernels/cuda/gemv.cuh"
#include "quant/input_cuda.cuh"

extern "C" {
#include "kernels/cuda/blas.h"
}

static inline struct cu_matmul mul_matrix(const struct weight *w)
{
    struct cu_matmul m = {};
    for (int i = 0; i < CODEC_PLANES; i++)
        m.plane[i] = w->plane[i];
    m.variant = w->variant;
    matmul_cut(&m, w->rows, w->cols);
    return m;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

enum { MUL_THREADS = 256, MUL_UNPACK_INPUTS = MUL_THREADS / MATMUL_PANEL * 4 };

/* A block for each row wanted. Bytes moved: cols * 4 written; read, each sector that holds some of the row. */
template <class F>
static __global__ void __launch_bounds__(MUL_THREADS)
    mul_rows(const cu_matmul m, const int32_t *id, float *x)
{
    cu_start_next();
    cu_wait_prior();
    int row = id[blockIdx.x];
    float *to = x + (size_t)blockIdx.x * (size_t)m.cols;
    for (int k = (int)threadIdx.x * 4; k < m.cols; k += MUL_THREADS * 4) {
        float v[4] = { 0, 0, 0, 0 };
        if (row >= 0)
            F::four(m, row, k, v);
        for (int i = 0; i < 4 && k + i < m.cols; i++)
            to[k + i] = v[i];
    }
}

/* Rows row0 ... of W to bf16, [n][pitch], a block for 16 rows and 64 inputs, in the order that x has, and zeros behind cols;
 * pitch is a multiple of 32. Bytes moved: W once, 2 a weight written. */
template <class F>
static __global__ void __launch_bounds__(MUL_THREADS)
    mul_unpack(const cu_matmul m, int row0, int n, uint16_t *to, int pitch, enum input_order order)
{
    int i_row = (int)blockIdx.y * MATMUL_PANEL + (int)threadIdx.x / (MUL_UNPACK_INPUTS / 4);
    int k =
        ((int)blockIdx.x * (MUL_UNPACK_INPUTS / 4) + (int)threadIdx.x % (MUL_UNPACK_INPUTS / 4)) *
        4;
    if (i_row >= n || k >= pitch)
        return;
    float v[4] = { 0, 0, 0, 0 };
    if (k < m.cols)
        F::four(m, row0 + i_row, k, v);
    cu_input_put(to + (size_t)i_row * (size_t)pitch, k, order, cu_pack_bf16(v[0], v[2]),
                 cu_pack_bf16(v[1], v[3]));
}

template <class F>
static void cu_rows(struct be *be, const struct weight *w, const int32_t *id, int n, float *x)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || n == 0)
        return;
    CU_CHAIN(s, (unsigned)n, MUL_THREADS, 0, mul_rows<F>, mul_matrix(w), id, x);
    CU_LAUNCHED(s);
}

template <class F>
static void mul_unpack_launch(struct cu_state *s, const struct weight *w, int row0, int n,
                              uint16_t *to, int pitch, enum input_order order)
{
    CU_LAUNCH(s->stream, dim3(cu_div_up(pitch, MUL_UNPACK_INPUTS), cu_div_up(n, MATMUL_PANEL)),
              MUL_THREADS, 0, mul_unpack<F>, mul_matrix(w), row0, n, to, pitch, order);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

static_assert((int)GEMV_LIST == (int)MATMUL_MAX, "a launch takes what weight_matmul may ask for");
static_assert((int)INPUT_FEW == GEMV_TILES_MAX * MATMUL_COLUMNS, "gemv reads INPUT_QUADS");

/* Many rows of x: whole warpgroups where there are such. Three parts of x take three times the registers and are there for
 * precision: half as many columns do for them. */
template <class F, int XPARTS> static void mul_many(struct cu_state *s, const struct cu_matmul &m)
{
    enum { WIDE = XPARTS == 1 ? 8 : 4 };
    bool halves = cu_input_order(s, XPARTS, m.n) == INPUT_HALVES;
    if (halves && m.n <= 32)
        gemm_wide_launch<F, 32>(s, m, s->partial, CU_PARTIAL_BYTES, s->n_sm);
    else if (halves && m.n <= 64)
        gemm_wide_launch<F, 64>(s, m, s->partial, CU_PARTIAL_BYTES, s->n_sm);
    else if (halves)
        gemm_wide_launch<F, F::WIDEST>(s, m, s->partial, CU_PARTIAL_BYTES, s->n_sm);
    else if (m.n <= 4 * MATMUL_COLUMNS)
        gemm_launch<F, XPARTS, 4>(s->stream, m, s->partial, CU_PARTIAL_BYTES, s->n_sm);
    else
        gemm_launch<F, XPARTS, WIDE>(s->stream, m, s->partial, CU_PARTIAL_BYTES, s->n_sm);
}

/* Few rows of x: as many matrices to a launch as are cut alike. */
template <class F, int XPARTS> static void mul_few(struct cu_state *s, const struct gemv_list &all)
{
    struct gemv_list some = {};
    for (int i = 0; i < all.n; i++) {
        some.m[some.n++] = all.m[i];
        if (i + 1 < all.n && gemv_alike(all.m[i], all.m[i + 1]))
            continue;
        if (XPARTS > 1 || some.m[0].n <= MATMUL_COLUMNS)
            gemv_launch<F, XPARTS, 1>(s, some);
        else
            gemv_launch<F, 1, 2>(s, some);
        some.n = 0;
    }
}

template <class F, int XPARTS>
static void mul_launch(struct cu_state *s, const struct gemv_list &list)
{
    if (list.m[0].n <= (XPARTS == 1 ? GEMV_TILES_MAX : 1) * MATMUL_COLUMNS) {
        mul_few<F, XPARTS>(s, list);
        return;
    }
    for (int i = 0; i < list.n; i++)
        mul_many<F, XPARTS>(s, list.m[i]);
}

/* By cuBLASLt, with x rounded to bf16 (its first part). False when it refused; y may be partly written then. */
template <class F>
static bool mul_blas(struct cu_state *s, const struct weight *w, const struct cu_input &x,
                     const float *bias, float *y)
{
    uint16_t *scratch = blas_scratch(s->blas);
    size_t fit = BLAS_SCRATCH / ((size_t)x.pitch * sizeof(uint16_t));
    int slice = (int)(fit < (size_t)w->rows ? fit / CODEC_PANEL * CODEC_PANEL : (size_t)w->rows);
    bool ok = slice > 0;
    for (int row = 0; row < w->rows && ok; row += slice) {
        int n = w->rows - row < slice ? w->rows - row : slice;
        mul_unpack_launch<F>(s, w, row, n, scratch, x.pitch, cu_input_order(s, x.parts, x.n));
        ok = blas_matmul(s->blas, x.x, scratch, bias != NULL ? bias + row : NULL, y + row, x.n, n,
                         x.pitch, w->rows);
    }
    return ok;
}

template <class F>
static void cu_mul(struct be *be, const struct input *in, const struct matmul *to, int n_to)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || in->n == 0)
        return;
    struct cu_input x = cu_input_of(in, to[0].w->prep);
    bool blas = s->blas != NULL && in->n >= BLAS_ROWS_MIN;
    struct gemv_list list = {};
    for (int i = 0; i < n_to; i++) {
        if (blas && mul_blas<F>(s, to[i].w, x, to[i].bias, to[i].y))
            continue;
        struct cu_matmul m = mul_matrix(to[i].w);
        m.x = x.x;
        m.sum = x.sum;
        m.n = x.n;
        m.pitch = x.pitch;
        m.sum_pitch = x.sum_pitch;
        m.bias = to[i].bias;
        m.y = to[i].y;
        list.m[list.n++] = m;
    }
    if (list.n > 0 && x.parts == 1)
        mul_launch<F, 1>(s, list);
    else if (list.n > 0)
        mul_launch<F, 3>(s, list);
    CU_LAUNCHED(s);
}

/* The same for a codec that has a decode struct F<V> for each of its variants V. */
template <template <int> class F, int... V>
static void cu_rows_of(struct be *be, const struct weight *w, const int32_t *id, int n, float *x)
{
    bool found = ((w->variant == V && (cu_rows<F<V>>(be, w, id, n, x), true)) || ...);
    ASSERT(found);
}

template <template <int> class F, int... V>
static void cu_mul_of(struct be *be, const struct input *in, const struct matmul *to, int n_to)
{
    bool found = ((to[0].w->variant == V && (cu_mul<F<V>>(be, in, to, n_to), true)) || ...);
    ASSERT(found);
}

#endif
