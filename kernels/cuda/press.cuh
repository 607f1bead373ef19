/* The kernels of a press, and what a launch of them is asked. What they are for and what they cost: press.cu; of slots:
 * slots.cuh.
 */
#ifndef WRING_KERNELS_CUDA_PRESS_CUH
#define WRING_KERNELS_CUDA_PRESS_CUH

#include "kernels/cuda/dense.cuh"
#include "kernels/cuda/probe.cuh"

enum { PRESS_THREADS = 256, PRESS_WARPS = PRESS_THREADS / CU_WARP, VOTES_THREADS = 1024 };

/* A head of the batch: how many slots it keeps, and of how many values change; where its parts begin in the tables and, in
 * floats, in press_job.room. */
struct press_item {
    int n, n_fit, keep0, block0;
    size_t at;
};

/* What a launch is asked; all pointers are the device's. */
struct press_job {
    struct probe_job refs; /* pages, and the references with what they got: items as there */
    const struct press_item *item;
    const int32_t *keep, *block; /* of the heads of the batch, as in struct be_press */
    const bool *exact;
    const float *low, *high, *weight;
    void *pool;
    float *side;
    float *room;
    int rounds;
    float scale, lambda;
};

/* ---- a head ------------------------------------------------------------------------------------------------------ */

/* Columns are the kept slots, those whose values may change first; place[i] is the column of slot i of the new pages. The system
 * is [size][size + dim] (dense_solve): of the columns whose values change, or, where those are more than rows, of the rows. */
struct press_head {
    int n, n_fit, rows, dim, size;
    int keep0; /* where its slots begin in the tables */
    bool by_rows;
    int32_t *place;
    float *bias, *factor, *low, *high; /* [n] what votes have been multiplied by, and its range */
    float *own;                        /* [n] what a column carries alone */
    float *k, *v;                      /* [n][dim] */
    float *e;                          /* [rows][n] exp(x - top of its row); later the weights p */
    float *scale;                      /* [rows] exp(top - lse) */
    float *carry, *square;             /* [rows] weight / mass under way; sum of p^2 */
    float *system, *delta;             /* delta: [n_fit][dim], by rows only */
    float *solved;                     /* 1: what the system gives may be added */
    const int32_t *keep, *block;
    const bool *exact;
    const float *weight, *q, *lse;
    float *o;
};

static __host__ __device__ __forceinline__ float *press_part(float *base, size_t *used, size_t n)
{
    float *at = base == NULL ? NULL : base + *used;
    *used += (n + 3) / 4 * 4;
    return at;
}

/* Cuts a head's scratch; how many floats that is. */
static __host__ __device__ __forceinline__ size_t press_cut(struct press_head *h, float *base,
                                                            int rows, int dim, int n, int n_fit)
{
    size_t used = 0, r = (size_t)rows, d = (size_t)dim, slots = (size_t)n;
    h->n = n;
    h->n_fit = n_fit;
    h->rows = rows;
    h->dim = dim;
    h->by_rows = rows < n_fit;
    h->size = h->by_rows ? rows : n_fit;
    h->place = (int32_t *)press_part(base, &used, slots);
    h->bias = press_part(base, &used, slots);
    h->factor = press_part(base, &used, slots);
    h->low = press_part(base, &used, slots);
    h->high = press_part(base, &used, slots);
    h->own = press_part(base, &used, slots);
    h->k = press_part(base, &used, slots * d);
    h->v = press_part(base, &used, slots * d);
    h->e = press_part(base, &used, r * slots);
    h->scale = press_part(base, &used, r);
    h->carry = press_part(base, &used, r);
    h->square = press_part(base, &used, r);
    h->system = press_part(base, &used, (size_t)h->size * ((size_t)h->size + d));
    h->delta = press_part(base, &used, h->by_rows ? (size_t)n_fit * d : 0);
    h->solved = press_part(base, &used, 1);
    return used;
}

/* That of this block. */
static __device__ __forceinline__ struct press_head head_of(const struct press_job &j)
{
    const struct press_item item = j.item[blockIdx.y];
    const struct probe_item refs = item_of(j.refs);
    struct press_head h;
    press_cut(&h, j.room + item.at, j.refs.n_rows, j.refs.dim, item.n, item.n_fit);
    h.keep0 = item.keep0;
    h.keep = j.keep + item.keep0;
    h.exact = j.exact + item.keep0;
    h.block = j.block + item.block0;
    h.weight = j.weight + (size_t)blockIdx.y * (size_t)h.rows;
    h.q = refs.q;
    h.o = refs.o;
    h.lse = refs.lse;
    return h;
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

/* Each says what is multiplied for a head. x[rows][n] = scale * q k^T */
struct logits {
    static __device__ __forceinline__ void ask(const struct press_job &j,
                                               const struct press_head &h, struct dense_product *t)
    {
        t->c = h.e;
        t->a = h.q;
        t->b = h.k;
        t->m = h.rows;
        t->n = h.n;
        t->k = h.dim;
        t->c_row = (size_t)h.n;
        t->a_row = t->b_col = (size_t)h.dim;
        t->a_col = t->b_row = 1;
        t->scale = j.scale;
    }
};

/* r[rows][dim] = o - p v: the system's right side, or, by columns, in place. */
struct residual {
    static __device__ __forceinline__ void ask(const struct press_job &, const struct press_head &h,
                                               struct dense_product *t)
    {
        t->c = h.by_rows ? h.system + h.size : h.o;
        t->c_row = (size_t)(h.by_rows ? h.size + h.dim : h.dim);
        t->add = h.o;
        t->a = h.e;
        t->b = h.v;
        t->m = h.n_fit > 0 ? h.rows : 0;
        t->n = h.dim;
        t->k = h.n;
        t->a_row = (size_t)h.n;
        t->add_row = t->b_row = (size_t)h.dim;
        t->a_col = t->b_col = 1;
        t->scale = -1;
    }
};

/* p^T p of the columns whose values change, or p p^T. */
struct gram {
    static __device__ __forceinline__ void ask(const struct press_job &, const struct press_head &h,
                                               struct dense_product *t)
    {
        t->c = h.system;
        t->a = t->b = h.e;
        t->m = t->n = h.size;
        t->k = h.by_rows ? h.n_fit : h.rows;
        t->c_row = (size_t)(h.size + h.dim);
        t->a_row = t->b_col = h.by_rows ? (size_t)h.n : 1;
        t->a_col = t->b_row = h.by_rows ? 1 : (size_t)h.n;
        t->upper = true;
    }
};

/* p^T r: by columns the system's right side; by rows, where r is its solution, what is added to the values. */
template <bool BY_ROWS> struct columns {
    static __device__ __forceinline__ void ask(const struct press_job &, const struct press_head &h,
                                               struct dense_product *t)
    {
        const size_t dim = (size_t)h.dim, both = (size_t)(h.size + h.dim);
        t->c = BY_ROWS ? h.delta : h.system + h.size;
        t->c_row = BY_ROWS ? dim : both;
        t->a = h.e;
        t->b = BY_ROWS ? h.system + h.size : h.o;
        t->b_row = BY_ROWS ? both : dim;
        t->m = h.by_rows == BY_ROWS ? h.n_fit : 0;
        t->n = h.dim;
        t->k = h.rows;
        t->a_col = (size_t)h.n;
        t->a_row = t->b_col = 1;
    }
};

/* A block a tile. */
template <class WHAT>
static __global__ void __launch_bounds__(DENSE_THREADS) multiply(struct press_job j)
{
    CU_SHARED(struct dense_room, room, 1);
    const struct press_head h = head_of(j);
    struct dense_product t = {};
    t.scale = 1;
    WHAT::ask(j, h, &t);
    if ((int)blockIdx.x < dense_tiles(t.m, t.n))
        product_tile(t, (int)blockIdx.x, room);
}

/* ---- rows, a warp each ------------------------------------------------------------------------------------------- */

/* From logits without biases to e and scale. */
static __global__ void __launch_bounds__(PRESS_THREADS) soften_rows(struct press_job j)
{
    const struct press_head h = head_of(j);
    int row = (int)blockIdx.x * PRESS_WARPS + cu_warp();
    if (row >= h.rows)
        return;
    float *x = h.e + (size_t)row * (size_t)h.n, top = -INFINITY;
    for (int c = cu_lane(); c < h.n; c += CU_WARP) {
        x[c] += h.bias[c];
        top = fmaxf(top, x[c]);
    }
    for (int m = CU_WARP / 2; m > 0; m /= 2)
        top = fmaxf(top, __shfl_xor_sync(CU_ALL, top, m));
    for (int c = cu_lane(); c < h.n; c += CU_WARP)
        x[c] = expf(x[c] - top);
    if (cu_lane() == 0)
        h.scale[row] = expf(top - h.lse[row]);
}

/* sum_c factor_c e_c of a row; every lane gets it. */
static __device__ __forceinline__ float row_mass(const struct press_head &h, int row)
{
    const float *e = h.e + (size_t)row * (size_t)h.n;
    float sum = 0;
    for (int c = cu_lane(); c < h.n; c += CU_WARP)
        sum = fmaf(h.factor[c], e[c], sum);
    return cu_warp_sum(sum);
}

/* From e to p = softmax(x + log factor) sqrt(weight), and from o to what p v is to be. */
static __global__ void __launch_bounds__(PRESS_THREADS) weigh_rows(struct press_job j)
{
    const struct press_head h = head_of(j);
    int row = (int)blockIdx.x * PRESS_WARPS + cu_warp();
    if (row >= h.rows)
        return;
    float *p = h.e + (size_t)row * (size_t)h.n, *o = h.o + (size_t)row * (size_t)h.dim;
    float root = sqrtf(h.weight[row]), to_p = root / row_mass(h, row), square = 0;
    for (int c = cu_lane(); c < h.n; c += CU_WARP) {
        p[c] *= h.factor[c] * to_p;
        square = fmaf(p[c], p[c], square);
    }
    for (int d = cu_lane(); d < h.dim; d += CU_WARP)
        o[d] *= root;
    square = cu_warp_sum(square);
    if (cu_lane() == 0)
        h.square[row] = square;
}

/* ---- votes: a block a head --------------------------------------------------------------------------------------- */

/* carry_i = weight_i scale_i / y_i, where y_i is the mass that all columns carry, or, alone, 1. */
static __device__ __forceinline__ void votes_rows(const struct press_head &h, bool alone)
{
    for (int i = cu_warp(); i < h.rows; i += VOTES_THREADS / CU_WARP) {
        float scale = h.scale[i], y = alone ? 1 : row_mass(h, i) * scale;
        if (cu_lane() == 0)
            h.carry[i] = h.weight[i] * scale / (y > 1e-6f ? y : 1e-6f);
    }
    __syncthreads();
}

/* Calls f(c, sum_i carry_i e_ic) once for each column: a warp sums every 32nd row of 32 columns, the first warp the sums. */
template <class F>
static __device__ __forceinline__ void votes_columns(const struct press_head &h, float *room, F f)
{
    for (int c0 = 0; c0 < h.n; c0 += CU_WARP) {
        int c = c0 + cu_lane();
        float sum = 0;
        for (int i = cu_warp(); i < h.rows && c < h.n; i += VOTES_THREADS / CU_WARP)
            sum = fmaf(h.carry[i], h.e[(size_t)i * (size_t)h.n + (size_t)c], sum);
        room[threadIdx.x] = sum;
        __syncthreads();
        if (cu_warp() == 0 && c < h.n) {
            for (int w = 1; w < VOTES_THREADS / CU_WARP; w++)
                sum += room[w * CU_WARP + cu_lane()];
            f(c, sum);
        }
        __syncthreads();
    }
}

static __global__ void __launch_bounds__(VOTES_THREADS) fit_votes(struct press_job j)
{
    CU_SHARED(float, room, VOTES_THREADS);
    const struct press_head h = head_of(j);
    votes_rows(h, true);
    votes_columns(h, room, [&](int c, float sum) { h.own[c] = sum; });
    for (int round = 0; round < j.rounds; round++) {
        votes_rows(h, false);
        votes_columns(h, room, [&](int c, float sum) {
            float w = h.factor[c] * (sum + 1e-4f) / (h.own[c] + 1e-4f);
            h.factor[c] = w < h.low[c] ? h.low[c] : w > h.high[c] ? h.high[c] : w;
        });
    }
    bool ok = true;
    for (int c = (int)threadIdx.x; c < h.n; c += VOTES_THREADS)
        ok = ok && fabsf(h.factor[c]) < INFINITY;
    ok = __syncthreads_and(ok);
    for (int c = (int)threadIdx.x; c < h.n; c += VOTES_THREADS) {
        if (ok)
            h.bias[c] += logf(h.factor[c]);
        else
            h.factor[c] = 1;
    }
}

/* ---- values: a block a head -------------------------------------------------------------------------------------- */

/* The ridge: lambda tr(p p^T) / rows, the same bits for every warp. */
static __device__ __forceinline__ float ridge_of(const struct press_job &j,
                                                 const struct press_head &h)
{
    float trace = 0;
    for (int i = cu_lane(); i < h.rows; i += CU_WARP)
        trace += h.square[i];
    return j.lambda * cu_warp_sum(trace) / (float)h.rows;
}

static __global__ void __launch_bounds__(DENSE_THREADS) solve_values(struct press_job j)
{
    CU_SHARED(struct solve_room, room, 1);
    const struct press_head h = head_of(j);
    if (h.size == 0)
        return;
    float ridge = ridge_of(j, h);
    for (int i = (int)threadIdx.x; i < h.size; i += DENSE_THREADS)
        h.system[(size_t)i * (size_t)(h.size + h.dim + 1)] += ridge;
    __syncthreads();
    bool solved = dense_solve(h.system, h.size, h.dim, room);
    if (threadIdx.x == 0)
        *h.solved = solved;
}

/* Adds what was found, if all values stay what an f16 can hold. */
static __global__ void __launch_bounds__(PRESS_THREADS) add_values(struct press_job j)
{
    const float f16_end = 65504;
    const struct press_head h = head_of(j);
    if (h.n_fit == 0)
        return;
    const float *delta = h.by_rows ? h.delta : h.system + h.size;
    size_t row = (size_t)(h.by_rows ? h.dim : h.size + h.dim);
    bool ok = *h.solved != 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int at = (int)threadIdx.x; ok && at < h.n_fit * h.dim; at += PRESS_THREADS) {
            float sum = h.v[at] + delta[(size_t)(at / h.dim) * row + (size_t)(at % h.dim)];
            if (pass == 1)
                h.v[at] = sum;
            else
                ok = fabsf(sum) < f16_end; /* NaN is not */
        }
        ok = __syncthreads_and(ok);
    }
}

#endif
