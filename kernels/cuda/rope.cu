/* Rotary positions and the way into the cache, of keys and values and of the queries that are kept.
 *
 * A warp takes one head of one row: its sum of squares when the head is normalised, its rotation, and for keys and
 * values the rounding and the place in the cache. rope, kv_append and rope_append are made of the same two device
 * functions, so that the fused op has the bits of the three.
 *
 * Where a token lies, its page and its slot, comes from its sequence on the device: cu_step.row_seq names the
 * sequence of each row, and a row without one (-1: added to fill a recorded pass) writes nothing.
 *
 * Bytes moved, for n rows: rope_table 8 * half; rope 8 * n_heads * head_dim (read and written, the tables come from
 * L1); kv_append reads 8 and writes 2 * the size of an element for each of n_kv_heads * head_dim; rope_append the sum
 * of these without the write and the read of rotated keys. A lane writes 2 bytes of a word where the other half
 * belongs to another dim or token; L2 puts them together. query_keep reads 4 and writes the size of an element, once or
 * twice, for each of n_heads * head_dim of the rows that are kept; the others cost 16 bytes each. All are bound by
 * memory, in decode by the launch.
 */
#include "kernels/cuda/state.cuh"

enum { ROPE_THREADS = 128, ROPE_WARPS = ROPE_THREADS / CU_WARP };

/* ---- tables ------------------------------------------------------------------------------------------------------ */

static __global__ void __launch_bounds__(ROPE_THREADS)
    table_rows(float *cos, float *sin, const int32_t *pos, const float *inv_freq, float mscale,
               int n, int half)
{
    size_t i = (size_t)blockIdx.x * ROPE_THREADS + threadIdx.x;
    if (i >= (size_t)n * (size_t)half)
        return;
    float angle = (float)pos[i / (size_t)half] * inv_freq[i % (size_t)half];
    cos[i] = cosf(angle) * mscale;
    sin[i] = sinf(angle) * mscale;
}

static void cuda_rope_table(struct be *be, float *cos, float *sin, const int32_t *pos,
                            const float *inv_freq, float mscale, int n, int half)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || n * half == 0)
        return;
    CU_LAUNCH(s->stream, dim3(cu_div_up((size_t)n * (size_t)half, ROPE_THREADS)),
              dim3(ROPE_THREADS), 0, table_rows, cos, sin, pos, inv_freq, mscale, n, half);
    CU_LAUNCHED(s);
}

/* ---- one head of one row, by a warp ------------------------------------------------------------------------------ */

struct rotation {
    const float *cos, *sin; /* [n][half] */
    const float *norm;      /* [head_dim] or NULL */
    float eps;
    int head_dim, half;
    bool half_split;
};

/* Normalises and rotates x and gives each element to put(i, value), each by one lane after all lanes have read what
 * they need of the others': put may write x. */
template <class F>
static __device__ __forceinline__ void rotate_head(const struct rotation &t, const float *x,
                                                   int row, F put)
{
    float s = 1;
    if (t.norm != NULL) {
        float sum = 0;
        for (int i = cu_lane(); i < t.head_dim; i += CU_WARP)
            sum = fmaf(x[i], x[i], sum);
        s = 1.0f / sqrtf(cu_warp_sum(sum) / (float)t.head_dim + t.eps);
    }
    const float *cos = t.cos + (size_t)row * (size_t)t.half;
    const float *sin = t.sin + (size_t)row * (size_t)t.half;
    for (int i = cu_lane(); i < t.half; i += CU_WARP) {
        int at = t.half_split ? i : 2 * i, to = t.half_split ? i + t.half : 2 * i + 1;
        float a = x[at], b = x[to];
        if (t.norm != NULL) {
            a = a * s * t.norm[at];
            b = b * s * t.norm[to];
        }
        put(at, fmaf(a, cos[i], -(b * sin[i])));
        put(to, fmaf(a, sin[i], b * cos[i]));
    }
    for (int i = 2 * t.half + cu_lane(); i < t.head_dim; i += CU_WARP)
        put(i, t.norm != NULL ? x[i] * s * t.norm[i] : x[i]);
}

/* Where the cache takes a token of a KV head; pool NULL: nowhere. */
struct slot_place {
    char *keys, *values;
    int slot;
    bool last; /* of its sequence's rows */
};

static __device__ __forceinline__ struct slot_place place_of(const struct be_kv &kv,
                                                             const int32_t *row_seq, int row,
                                                             int head)
{
    struct slot_place p = { NULL, NULL, 0, false };
    if (row_seq[row] < 0)
        return p;
    const struct be_seq *q = &kv.seqs[row_seq[row]];
    int at = q->pos0 + row - q->row0 - q->kv.wide_pos0;
    size_t block = (size_t)q->kv.wide[at / KV_PAGE] * (size_t)kv.n_kv_heads + (size_t)head;
    size_t half = (size_t)KV_PAGE * (size_t)kv.head_dim * (kv.type == KV_F32 ? 4 : 2);
    p.keys = (char *)kv.pool + block * half * 2;
    p.values = p.keys + half;
    p.slot = at % KV_PAGE;
    p.last = row - q->row0 == q->n_rows - 1;
    return p;
}

/* As half_within_f16(). */
static __device__ __forceinline__ float within_f16(float x)
{
    return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
}

static __device__ __forceinline__ void element_put(enum kv_type type, char *p, size_t i, float x)
{
    if (type == KV_F32)
        ((float *)p)[i] = x;
    else
        ((uint16_t *)p)[i] =
            (uint16_t)(type == KV_F16 ? cu_pack_f16(within_f16(x), 0) : cu_pack_bf16(x, 0));
}

static __device__ __forceinline__ void key_put(enum kv_type type, const struct slot_place &p, int i,
                                               float x)
{
    element_put(type, p.keys, (size_t)((i / 2 * KV_PAGE + p.slot) * 2 + i % 2), x);
}

/* The partner of a last even slot becomes 0: attention multiplies it by 0. */
static __device__ __forceinline__ void value_append(const struct be_kv &kv,
                                                    const struct slot_place &p, const float *v)
{
    for (int i = cu_lane(); i < kv.head_dim; i += CU_WARP) {
        size_t at = (size_t)((p.slot / 2 * kv.head_dim + i) * 2 + p.slot % 2);
        element_put(kv.type, p.values, at, v[i]);
        if (p.last && p.slot % 2 == 0)
            element_put(kv.type, p.values, at + 1, 0);
    }
}

/* ---- the ops ----------------------------------------------------------------------------------------------------- */

/* Which head of which row this warp has, of n_heads a row. */
static __device__ __forceinline__ int warp_index()
{
    return (int)blockIdx.x * ROPE_WARPS + cu_warp();
}

static __global__ void __launch_bounds__(ROPE_THREADS)
    rope_heads(struct rotation t, float *x, int n, int n_heads)
{
    int i = warp_index();
    if (i >= n * n_heads)
        return;
    float *head = x + (size_t)i * (size_t)t.head_dim;
    rotate_head(t, head, i / n_heads, [=](int at, float v) { head[at] = v; });
}

static __global__ void __launch_bounds__(ROPE_THREADS)
    append_heads(struct be_kv kv, const int32_t *row_seq, const float *k, const float *v, int n)
{
    int i = warp_index();
    if (i >= n * kv.n_kv_heads)
        return;
    struct slot_place p = place_of(kv, row_seq, i / kv.n_kv_heads, i % kv.n_kv_heads);
    if (p.keys == NULL)
        return;
    size_t at = (size_t)i * (size_t)kv.head_dim;
    for (int d = cu_lane(); d < kv.head_dim; d += CU_WARP)
        key_put(kv.type, p, d, k[at + (size_t)d]);
    value_append(kv, p, v + at);
}

/* Heads of a row: the query heads, then the KV heads. */
static __global__ void __launch_bounds__(ROPE_THREADS)
    rope_append_heads(struct be_rope_append r, struct be_kv kv, const int32_t *row_seq)
{
    cu_start_next();
    cu_wait_prior();
    int n_heads = r.n_heads + kv.n_kv_heads, row = warp_index() / n_heads;
    int head = warp_index() % n_heads;
    if (row >= r.n)
        return;
    struct rotation t = { r.cos, r.sin, r.q_norm, r.eps, kv.head_dim, r.half, r.half_split };
    if (head < r.n_heads) {
        float *q = r.q + ((size_t)row * (size_t)r.n_heads + (size_t)head) * (size_t)kv.head_dim;
        rotate_head(t, q, row, [=](int at, float x) { q[at] = x; });
        return;
    }
    head -= r.n_heads;
    struct slot_place p = place_of(kv, row_seq, row, head);
    if (p.keys == NULL)
        return;
    size_t at = ((size_t)row * (size_t)kv.n_kv_heads + (size_t)head) * (size_t)kv.head_dim;
    t.norm = r.k_norm;
    rotate_head(t, r.k + at, row, [=](int i, float x) { key_put(kv.type, p, i, x); });
    value_append(kv, p, r.v + at);
}

static __device__ __forceinline__ void pair_put(enum kv_type type, void *p, size_t i, float2 x)
{
    if (type == KV_F32)
        ((float2 *)p)[i] = x;
    else
        ((uint32_t *)p)[i] =
            type == KV_F16 ? cu_pack_f16(within_f16(x.x), within_f16(x.y)) : cu_pack_bf16(x.x, x.y);
}

/* Two dims a lane. lse_at: where the log-sum-exps begin in a record. */
static __global__ void __launch_bounds__(ROPE_THREADS)
    keep_heads(const struct be_keep *keep, const float *q, const float *lse, enum kv_type type,
               size_t lse_at, int n, int n_heads, int head_dim)
{
    int i = warp_index(), row = i / n_heads, head = i % n_heads, pairs = head_dim / 2;
    if (row >= n)
        return;
    const float2 *from = (const float2 *)q + (size_t)i * (size_t)pairs;
    char *record[2] = { (char *)keep[row].sample, (char *)keep[row].window };
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (record[k] == NULL)
            continue;
        for (int at = cu_lane(); at < pairs; at += CU_WARP)
            pair_put(type, record[k], (size_t)(head * pairs + at), from[at]);
        if (cu_lane() == 0)
            ((float *)(record[k] + lse_at))[head] = lse[i];
    }
}

static void cuda_query_keep(struct be *be, const struct be_keep *keep, const float *q,
                            const float *lse, enum kv_type type, int n, int n_heads, int head_dim)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || n == 0)
        return;
    CU_LAUNCH(s->stream, dim3(cu_div_up((size_t)n * (size_t)n_heads, ROPE_WARPS)),
              dim3(ROPE_THREADS), 0, keep_heads, keep, q, lse, type,
              kv_record_lse(type, n_heads, head_dim), n, n_heads, head_dim);
    CU_LAUNCHED(s);
}

static void cuda_rope(struct be *be, float *x, const float *cos, const float *sin,
                      const float *norm, float eps, int n, int n_heads, int head_dim, int half,
                      bool half_split)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || n == 0)
        return;
    struct rotation t = { cos, sin, norm, eps, head_dim, half, half_split };
    CU_LAUNCH(s->stream, dim3(cu_div_up((size_t)n * (size_t)n_heads, ROPE_WARPS)),
              dim3(ROPE_THREADS), 0, rope_heads, t, x, n, n_heads);
    CU_LAUNCHED(s);
}

static void cuda_kv_append(struct be *be, const struct be_kv *kv, const float *k, const float *v)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || s->step.n_rows == 0)
        return;
    CU_LAUNCH(s->stream,
              dim3(cu_div_up((size_t)s->step.n_rows * (size_t)kv->n_kv_heads, ROPE_WARPS)),
              dim3(ROPE_THREADS), 0, append_heads, *kv, s->step.row_seq, k, v, s->step.n_rows);
    CU_LAUNCHED(s);
}

static void cuda_rope_append(struct be *be, const struct be_rope_append *r, const struct be_kv *kv)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s) || r->n == 0)
        return;
    size_t heads = (size_t)r->n * (size_t)(r->n_heads + kv->n_kv_heads);
    CU_CHAIN(s, dim3(cu_div_up(heads, ROPE_WARPS)), dim3(ROPE_THREADS), 0, rope_append_heads, *r,
             *kv, s->step.row_seq);
    CU_LAUNCHED(s);
}

void cu_ops_rope(struct be_ops *ops)
{
    ops->rope_table = cuda_rope_table;
    ops->rope = cuda_rope;
    ops->rope_append = cuda_rope_append;
    ops->kv_append = cuda_kv_append;
    ops->query_keep = cuda_query_keep;
}
