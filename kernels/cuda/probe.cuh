/* The kernels of a probe, and what a launch of them is asked. What they are for and what they cost: probe.cu. */
#ifndef WRING_KERNELS_CUDA_PROBE_CUH
#define WRING_KERNELS_CUDA_PROBE_CUH

#include "kernels/cuda/attend_span.cuh"
#include "kernels/cuda/scratch.cuh"

enum { PROBE_THREADS = 128, PROBE_WARPS = PROBE_THREADS / CU_WARP };

/* The columns of an item, [room] floats each; behind them lse and tail_lse of its rows. */
enum { COLUMN_MEAN = BE_PROBE_SETS, COLUMN_RMS, COLUMN_BETA, COLUMNS };

/* What a launch is asked; all pointers are the device's. */
struct probe_job {
    const void *pool;
    const float *beta;
    const int32_t *wide, *narrow, *n_narrow, *see; /* as in struct be_probe */
    const void *const *record;
    const float *cos, *sin;
    int n_heads, n_kv_heads, group, dim;
    int n_wide, n_tail, wide_pages, narrow_pages;
    int n_records, n_set[BE_PROBE_SETS], n_ref, n_rows; /* n_rows: n_ref * group */
    int half;
    bool half_split;
    float scale; /* with log2(e) */
    size_t lse_at;
    int item0, room;
    float *out; /* [items][item_floats], for the host */
    size_t item_floats;
    float *rows; /* [items][2][n_rows][dim]: q and o of the references */
};

/* ---- an item ----------------------------------------------------------------------------------------------------- */

struct probe_item {
    int layer, head, n_narrow;
    const int32_t *wide, *narrow;
    float *column, *q, *o, *lse, *tail_lse;
};

/* That of this block. */
static __device__ __forceinline__ struct probe_item item_of(const struct probe_job &j)
{
    int i = j.item0 + (int)blockIdx.y;
    size_t dims = (size_t)j.n_rows * (size_t)j.dim;
    struct probe_item t;
    t.layer = i / j.n_kv_heads;
    t.head = i % j.n_kv_heads;
    t.n_narrow = j.n_narrow != NULL ? j.n_narrow[i] : 0;
    t.wide = j.wide + (size_t)t.layer * (size_t)j.wide_pages;
    t.narrow = j.narrow + (size_t)i * (size_t)j.narrow_pages;
    t.column = j.out + (size_t)blockIdx.y * j.item_floats;
    t.q = j.rows + (size_t)blockIdx.y * 2 * dims;
    t.o = t.q + dims;
    t.lse = t.column + (size_t)COLUMNS * (size_t)j.room;
    t.tail_lse = t.lse + j.n_rows;
    return t;
}

/* Page `page` of KV_PAGE slots; two of narrow slots lie in one q8 page (Q). */
template <bool Q>
static __device__ __forceinline__ int item_block(const struct probe_job &j,
                                                 const struct probe_item &t, bool narrow, int page)
{
    return narrow ? t.narrow[Q ? page / 2 : page] : t.wide[page] * j.n_kv_heads + t.head;
}

/* Record i of the item's layer. */
static __device__ __forceinline__ const char *item_record(const struct probe_job &j,
                                                          const struct probe_item &t, int i)
{
    return (const char *)j.record[(size_t)t.layer * (size_t)j.n_records + (size_t)i];
}

/* ---- references: turned on --------------------------------------------------------------------------------------- */

template <enum kv_type T> static __device__ __forceinline__ float element_at(const void *p, int i)
{
    if constexpr (T == KV_F32)
        return ((const float *)p)[i];
    else if constexpr (T == KV_F16)
        return cu_f16_low(((const uint16_t *)p)[i]);
    else
        return cu_bf16_low(((const uint16_t *)p)[i]);
}

/* A warp a row. */
template <enum kv_type T>
static __global__ void __launch_bounds__(PROBE_THREADS) turn_rows(struct probe_job j)
{
    int row = (int)blockIdx.x * PROBE_WARPS + cu_warp(), ref = row / j.group;
    if (row >= j.n_rows)
        return;
    const struct probe_item t = item_of(j);
    const char *record = item_record(j, t, j.n_records - j.n_ref + ref);
    int head = t.head * j.group + row % j.group;
    const char *q = record + (size_t)head * (size_t)j.dim * sizeof(word_of<T>) / 2;
    float *out = t.q + (size_t)row * (size_t)j.dim;
    const float *cos = j.cos + (size_t)ref * (size_t)j.half;
    const float *sin = j.sin + (size_t)ref * (size_t)j.half;
    for (int i = cu_lane(); i < j.half; i += CU_WARP) {
        int at = j.half_split ? i : 2 * i, to = j.half_split ? i + j.half : 2 * i + 1;
        float a = element_at<T>(q, at), b = element_at<T>(q, to);
        out[at] = fmaf(a, cos[i], -(b * sin[i]));
        out[to] = fmaf(a, sin[i], b * cos[i]);
    }
    for (int i = 2 * j.half + cu_lane(); i < j.dim; i += CU_WARP)
        out[i] = element_at<T>(q, i);
}

/* ---- references: attention --------------------------------------------------------------------------------------- */

/* What a block works with. */
template <enum kv_type T, int MT, int NT>
static __device__ __forceinline__ auto block_of(const struct probe_job &j,
                                                struct attend_shared<MT> *shared,
                                                attend_fragment<T> *fragments)
{
    struct attend_block<T, MT, NT> b = {
        shared, fragments, fragments, (const word_of<T> *)j.pool, NULL, j.dim
    };
    b.p += b.K_STEPS * MT * CU_WARP;
    return b;
}

/* Looks up the pages of a span, from page page0 on; every row sees all of its slots. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void span_pages(const struct probe_job &j,
                                                  const struct probe_item &t,
                                                  struct attend_block<T, MT, NT> *b,
                                                  const struct attend_cut &c, int page0)
{
    __syncthreads();
    for (int r = (int)threadIdx.x; r < b->ROWS; r += ATTEND_THREADS)
        b->shared->seen[r] = make_int2(0, c.hi);
    if (threadIdx.x < ATTEND_PAGES) {
        int page = (int)threadIdx.x;
        bool there = c.lo + page * KV_PAGE < c.hi;
        b->shared->block[page] = there ? item_block<Q>(j, t, c.narrow, page0 + page) : -1;
    }
    b->beta = c.narrow ? j.beta : NULL;
    __syncthreads();
}

/* Leaves the log-sum-exp over the tail alone. */
template <enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void tail_rows(const struct probe_job &j,
                                                 const struct probe_item &t,
                                                 struct attend_block<T, MT, NT> *b,
                                                 struct attend_sum<MT, NT> *sum)
{
    const struct attend_cut c = { 0, j.n_tail, false };
    span_pages<false>(j, t, b, c, pages_of(j.n_wide));
    span_walk<false>(*b, c, make_int2(0, c.hi), sum);
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        int row = b->shared->row[i * 8 + cu_lane() / 4];
        if (row >= 0 && threadIdx.x < CU_WARP && cu_lane() % 4 == 0)
            t.tail_lse[row] = total_lse(sum->m[i / 2][i % 2], sum->l[i / 2][i % 2]);
    }
}

template <bool Q, enum kv_type T, int MT, int NT>
static __global__ void __launch_bounds__(ATTEND_THREADS, attend_block<T, MT, NT>::RESIDENT)
    probe_rows(struct probe_job j)
{
    typedef struct attend_shared<MT> shared;
    CU_SHARED(shared, room, 1);
    CU_DYNAMIC(attend_fragment<T>, fragments);
    struct attend_block<T, MT, NT> b = block_of<T, MT, NT>(j, room, fragments);
    const struct probe_item t = item_of(j);
    int row0 = (int)blockIdx.x * b.ROWS;
    for (int r = (int)threadIdx.x; r < b.ROWS; r += ATTEND_THREADS)
        b.shared->row[r] = row0 + r < j.n_rows ? row0 + r : -1;
    fragments_open(b, [&](int r, int dim) {
        float2 x = make_float2(0, 0);
        if (row0 + r < j.n_rows)
            x = *(const float2 *)(t.q + (size_t)(row0 + r) * (size_t)j.dim + dim);
        return make_float2(x.x * j.scale, x.y * j.scale);
    });
    struct attend_totals<MT> total;
    struct attend_sum<MT, NT> sum;
    totals_clear(&total);
    int narrow_spans = (t.n_narrow + ATTEND_SPAN - 1) / ATTEND_SPAN;
    int n_spans = max(narrow_spans + (j.n_wide + ATTEND_SPAN - 1) / ATTEND_SPAN, 1);
    for (int i = 0; i < n_spans; i++) {
        struct attend_cut c;
        c.narrow = i < narrow_spans;
        c.lo = (c.narrow ? i : i - narrow_spans) * ATTEND_SPAN;
        c.hi = min(c.lo + ATTEND_SPAN, c.narrow ? t.n_narrow : j.n_wide);
        span_pages<Q>(j, t, &b, c, c.lo / KV_PAGE);
        if (Q && c.narrow)
            span_walk<Q>(b, c, make_int2(0, c.hi), &sum);
        else
            span_walk<false>(b, c, make_int2(0, c.hi), &sum);
        span_total(t.o, t.lse, b, sum, &total, i + 1 == n_spans);
    }
    tail_rows(j, t, &b, &sum);
}

/* ---- column sums ------------------------------------------------------------------------------------------------- */

/* The queries of a column sum: records [record0, record0 + n_rows / group), or the references. */
struct probe_set {
    bool turned;
    int record0, n_rows;
};

/* Where the rows under way are: their queries and, in log2, minus their log-sum-exp. */
template <int MT> struct column_shared {
    const void *q[16 * MT];
    float less[16 * MT];
    int hi[16 * MT]; /* slots seen, of the kind that the block has; 0: no row */
};

static __device__ __forceinline__ struct probe_set set_of(const struct probe_job &j, int i)
{
    struct probe_set s = { i == BE_PROBE_SETS, 0, j.n_rows };
    for (int k = 0; k < i; k++)
        s.record0 += j.n_set[k];
    if (!s.turned)
        s.n_rows = j.n_set[i] * j.group;
    return s;
}

template <enum kv_type T, int MT>
static __device__ __forceinline__ void column_rows(const struct probe_job &j,
                                                   const struct probe_item &t,
                                                   struct column_shared<MT> *rows,
                                                   const struct probe_set &s, int row0, bool narrow)
{
    for (int r = (int)threadIdx.x; r < 16 * MT; r += ATTEND_THREADS) {
        int row = row0 + r, hi = 0;
        const void *q = NULL;
        float lse = -INFINITY;
        if (row < s.n_rows && s.turned) {
            lse = t.lse[row] + log1pf(expf(t.tail_lse[row] - t.lse[row]));
            q = t.q + (size_t)row * (size_t)j.dim;
            hi = INT32_MAX;
        } else if (row < s.n_rows) {
            int i = s.record0 + row / j.group, head = t.head * j.group + row % j.group;
            const char *record = item_record(j, t, i);
            lse = ((const float *)(record + j.lse_at))[head];
            q = record + (size_t)head * (size_t)j.dim * sizeof(word_of<T>) / 2;
            hi = narrow ? INT32_MAX : j.see[i];
        }
        rows->q[r] = q;
        rows->less[r] = lse * -1.44269504f /* log2(e) */;
        rows->hi[r] = lse == -INFINITY ? 0 : hi;
    }
}

/* The columns of a lane: slots 4q ... 4q+3 of its warp's 16. */
struct column_sum {
    float sum[4], square[4];
};

template <int MT>
static __device__ __forceinline__ void columns_add(const struct column_shared<MT> *rows, int slot,
                                                   const float s[MT][2][4], struct column_sum *c)
{
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        int r = i * 8 + cu_lane() / 4, hi = rows->hi[r];
        float less = rows->less[r];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float p = slot + k < hi ? cu_exp2(s[i / 2][k % 2][i % 2 * 2 + k / 2] + less) : 0;
            c->sum[k] += p;
            c->square[k] = fmaf(p, p, c->square[k]);
        }
    }
}

/* Adds up what the 8 lanes of the same slots have; all of them get the same bits. */
static __device__ __forceinline__ void columns_join(struct column_sum *c)
{
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int m = 4; m < CU_WARP; m *= 2) {
            c->sum[k] += __shfl_xor_sync(CU_ALL, c->sum[k], m);
            c->square[k] += __shfl_xor_sync(CU_ALL, c->square[k], m);
        }
}

/* The rows of one set past the block's slots, tile ... tile + 63. k holds the first steps of their keys, before and after.
 * Q: the slots are of a q8 page. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ struct column_sum column_set(
    const struct probe_job &j, const struct probe_item &t, const struct attend_block<T, MT, NT> &b,
    struct column_shared<MT> *rows, typename attend_block<T, MT, NT>::keys *k,
    const struct probe_set &set, int tile, bool narrow)
{
    struct column_sum c = {};
    int slot = tile + cu_warp() * 16 + cu_lane() % 4 * 4;
    float s[MT][2][4];
#pragma unroll 1
    for (int row0 = 0; row0 < set.n_rows; row0 += b.ROWS) {
        int last = (min(row0 + b.ROWS, set.n_rows) - 1) / j.group;
        if (!set.turned && !narrow && j.see[set.record0 + last] <= tile)
            continue;
        __syncthreads();
        column_rows<T>(j, t, rows, set, row0, narrow);
        __syncthreads();
        fragments_open(b, [&](int r, int dim) {
            const void *q = rows->q[r];
            float2 x = make_float2(0, 0);
            if (q != NULL)
                x = set.turned ? ((const float2 *)q)[dim / 2]
                               : word_unpack<T>(((const word_of<T> *)q)[dim / 2]);
            return make_float2(x.x * j.scale, x.y * j.scale);
        });
        __syncthreads();
        tile_scores<Q>(b, k, tile, s);
        if (b.K_AHEAD < b.K_STEPS)
            keys_load<Q>(b, k, tile, 0);
        if (b.beta != NULL)
            tile_bias<Q>(b, tile, s);
        columns_add<MT>(rows, slot, s, &c);
    }
    columns_join(&c);
    return c;
}

/* The rows of all sets past the block's slots, of which there are n from the lane's head's first on. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void column_sets(const struct probe_job &j,
                                                   const struct probe_item &t,
                                                   const struct attend_block<T, MT, NT> &b,
                                                   struct column_shared<MT> *rows, float *column,
                                                   int tile, int n, bool narrow)
{
    typename attend_block<T, MT, NT>::keys k;
    keys_load<Q>(b, &k, tile, 0);
    int slot = tile + cu_warp() * 16 + cu_lane() % 4 * 4;
#pragma unroll 1
    for (int i = 0; i <= BE_PROBE_SETS; i++) {
        const struct probe_set set = set_of(j, i);
        float weight = set.n_rows > 0 ? 1.0f / (float)set.n_rows : 0;
        struct column_sum c = column_set<Q>(j, t, b, rows, &k, set, tile, narrow);
#pragma unroll
        for (int q = 0; q < 4; q++) {
            if (slot + q >= n || cu_lane() >= 4)
                continue;
            column[(size_t)i * (size_t)j.room + (size_t)(slot + q)] = c.sum[q] * weight;
            if (set.turned)
                column[(size_t)COLUMN_RMS * (size_t)j.room + (size_t)(slot + q)] =
                    sqrtf(c.square[q] * weight);
        }
    }
}

/* Tiles of narrow slots first, then of wide ones, which are seen by fewer rows the later they are. */
template <bool Q, enum kv_type T, int MT, int NT>
static __global__ void __launch_bounds__(ATTEND_THREADS, attend_block<T, MT, NT>::RESIDENT)
    probe_columns(struct probe_job j)
{
    typedef struct attend_shared<MT> shared;
    typedef struct column_shared<MT> rows_shared;
    CU_SHARED(shared, room, 1);
    CU_SHARED(rows_shared, rows, 1);
    CU_DYNAMIC(attend_fragment<T>, fragments);
    struct attend_block<T, MT, NT> b = block_of<T, MT, NT>(j, room, fragments);
    const struct probe_item t = item_of(j);
    int narrow_tiles = (t.n_narrow + ATTEND_TILE - 1) / ATTEND_TILE, x = (int)blockIdx.x;
    bool narrow = x < narrow_tiles;
    int tile = (narrow ? x : x - narrow_tiles) * ATTEND_TILE, n = narrow ? t.n_narrow : j.n_wide;
    if (tile >= n)
        return;
    if (threadIdx.x < ATTEND_TILE / KV_PAGE) {
        int slot = tile + (int)threadIdx.x * KV_PAGE;
        b.shared->block[slot % ATTEND_SPAN / KV_PAGE] =
            slot < n ? item_block<Q>(j, t, narrow, slot / KV_PAGE) : -1;
    }
    b.beta = narrow ? j.beta : NULL;
    __syncthreads();
    float *column = t.column + (narrow ? 0 : t.n_narrow);
    if (Q && narrow)
        column_sets<Q>(j, t, b, rows, column, tile, n, narrow);
    else
        column_sets<false>(j, t, b, rows, column, tile, n, narrow);
    int s = (int)threadIdx.x;
    if (s < ATTEND_TILE && tile + s < n) {
        float beta = 0;
        if (b.beta != NULL)
            beta = side_at<Q>(b, tile, s / KV_PAGE)[Q ? s : s % KV_PAGE];
        column[(size_t)COLUMN_BETA * (size_t)j.room + (size_t)(tile + s)] = beta;
    }
}

/* ---- probe.cu and press.cu --------------------------------------------------------------------------------------- */

/* The job without tables and results; the tables, as far as they fit the scratch. */
struct probe_job cu_probe_job(const struct be_probe *p);
void cu_probe_tables(struct scratch *c, const struct be_probe *p, struct probe_job *j);
/* Starts the kernels for n items. tiles: blocks of slots to sum columns of; 0: only the references' attention. */
void cu_probe_launch(struct cu_state *s, const struct probe_job &j, const struct be_kv *kv,
                     unsigned n, unsigned tiles);
/* Slots of a head that press can keep beside these references, with `used` bytes of the scratch taken by tables. */
int cu_press_most(const struct probe_job &j, size_t used);

#endif
