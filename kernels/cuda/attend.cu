/* Attention over the paged cache: which blocks walk which spans, and how spans become rows. The span: attend_span.cuh.
 *
 * A block of four warps serves 16 * MT rows of one sequence and KV head; a row is a query head of a token, row
 * token * group + head, so that all query heads of a KV head share its keys (GQA). MT is 1 where a sequence asks about
 * few rows (decode) and more in prefill, where each key is then read once for up to 64 rows.
 *
 * The slots are cut into spans of ATTEND_SPAN as ref.c cuts them. Either a block walks all spans of its rows and keeps
 * the running total in the output itself, or, where that gives too few blocks for the GPU (decode: as many as sequences
 * times KV heads) or blocks of very unequal lengths, each block does one span, leaves (m, l, o) in cu_state.partial, and
 * attend_merge adds them up in the same order by the same formula: the choice does not change a bit. The shapes of
 * launches come from numbers that the host knows (cu_step) and rounds; which sequences and which of their spans, from
 * lists on the device (cu_seqs); lengths, from be_seq. A block without work returns at once, so that a recorded pass
 * serves later steps.
 *
 * Bytes moved: every key and value that some row sees, once per block of rows (decode: once), q and out once. Split,
 * each span also writes 4 * (head_dim + 2) bytes a row and reads them again: at a group of 4 each 1/128 of its 16-bit
 * keys and values. Roofline: a slot's dim is 4 bytes in a 16-bit cache and 4 FLOP a row. Decode does 4 * group FLOP
 * on 4 bytes, far below the 295 a byte at which an H100 (989 TFLOP/s, 3.35 TB/s) becomes bound by its tensor cores:
 * memory is its bound. 64 rows do 64 FLOP a byte, which comes from L2 when several blocks of rows share it: prefill
 * is bound by L2, shared memory and tensor cores.
 */
#include "kernels/cuda/attend_span.cuh"

/* What a launch is asked. */
struct attend_job {
    const void *pool;
    const float *beta, *q;
    float *out, *lse;
    /* [of.n_spans][of.max_rows][n_heads][head_dim], then as many (m, l); NULL: blocks walk all spans. */
    float *partial;
    const struct be_seq *seqs;
    struct cu_seqs of; /* those of this launch */
    int n_heads, n_kv_heads, dim, window;
    float scale;
    int n_blocks; /* of rows, for of.max_rows */
};

static inline __host__ __device__ size_t partial_count(const struct attend_job *j)
{
    return (size_t)j->of.n_spans * (size_t)j->of.max_rows * (size_t)j->n_heads;
}

/* ---- spans ------------------------------------------------------------------------------------------------------- */

/* The spans of some rows in order: those of narrow slots, then those of wide slots, counted from the one that holds the
 * first wide slot of the sequence. So a span has one number for all rows of a sequence and KV head. */
struct attend_range {
    int n_narrow, narrow_spans, wide0, lo, hi;
};

/* first, last: position + 1 of the first and the last row. */
static __device__ __forceinline__ struct attend_range range_of(const struct attend_job &j,
                                                               const struct be_seq *seq,
                                                               int kv_head, int first, int last)
{
    struct attend_range r;
    r.n_narrow = seq->kv.narrow != NULL ? seq->kv.n_narrow[kv_head] : 0;
    r.narrow_spans = (r.n_narrow + ATTEND_SPAN - 1) / ATTEND_SPAN;
    r.wide0 = seq->kv.wide_pos0 / ATTEND_SPAN;
    r.lo = max(seq->kv.wide_pos0, first - j.window);
    r.hi = last;
    return r;
}

static __device__ __forceinline__ int range_spans(const struct attend_range &r)
{
    return r.narrow_spans + (r.lo < r.hi ? (r.hi - 1) / ATTEND_SPAN - r.wide0 + 1 : 0);
}

static __device__ __forceinline__ struct attend_cut range_cut(const struct attend_range &r, int i)
{
    struct attend_cut c;
    c.narrow = i < r.narrow_spans;
    int from = (c.narrow ? i : r.wide0 + i - r.narrow_spans) * ATTEND_SPAN;
    c.lo = max(from, c.narrow ? 0 : r.lo);
    c.hi = min(from + ATTEND_SPAN, c.narrow ? r.n_narrow : r.hi);
    return c;
}

/* ---- a block of rows --------------------------------------------------------------------------------------------- */

/* Where the block is: its first row of n in this sequence. */
struct attend_place {
    const struct be_seq *seq;
    int kv_head, row0, n;
};

template <enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void rows_open(const struct attend_job &j,
                                                 const struct attend_block<T, MT, NT> &b,
                                                 const struct attend_place &at)
{
    int group = j.n_heads / j.n_kv_heads;
    for (int r = (int)threadIdx.x; r < b.ROWS; r += ATTEND_THREADS) {
        int token = (at.row0 + r) / group, head = at.kv_head * group + (at.row0 + r) % group;
        bool there = at.row0 + r < at.n;
        b.shared->row[r] = there ? (at.seq->row0 + token) * j.n_heads + head : -1;
        b.shared->hi[r] = there ? at.seq->pos0 + token + 1 : 0;
    }
    __syncthreads();
    fragments_open(b, [&](int r, int dim) {
        int row = b.shared->row[r];
        if (row < 0)
            return make_float2(0, 0);
        float2 x = *(const float2 *)(j.q + (size_t)row * (size_t)b.dim + dim);
        return make_float2(x.x * j.scale, x.y * j.scale);
    });
}

/* Looks up the pages of a span, and what each row sees of it. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void span_open(const struct attend_job &j,
                                                 struct attend_block<T, MT, NT> *b,
                                                 const struct attend_place &at,
                                                 const struct attend_cut &c)
{
    const struct kv_view *kv = &at.seq->kv;
    __syncthreads();
    for (int r = (int)threadIdx.x; r < b->ROWS; r += ATTEND_THREADS) {
        int hi = b->shared->hi[r];
        b->shared->seen[r] =
            c.narrow ? make_int2(0, c.hi) : make_int2(max(kv->wide_pos0, hi - j.window), hi);
    }
    if (threadIdx.x < ATTEND_PAGES) {
        int slot = (c.lo / ATTEND_SPAN * ATTEND_PAGES + (int)threadIdx.x) * KV_PAGE, block = -1;
        if (slot + KV_PAGE > c.lo && slot < c.hi)
            block = c.narrow
                        ? kv->narrow[at.kv_head][slot / (Q ? KV_PAGE_Q8 : KV_PAGE)]
                        : kv->wide[(slot - kv->wide_pos0) / KV_PAGE] * j.n_kv_heads + at.kv_head;
        b->shared->block[threadIdx.x] = block;
    }
    b->beta = c.narrow ? j.beta : NULL;
    __syncthreads();
}

/* Split: leaves the span for attend_merge. */
template <enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void span_leave(const struct attend_job &j,
                                                  const struct attend_block<T, MT, NT> &b,
                                                  const struct attend_place &at,
                                                  const struct attend_sum<MT, NT> &sum)
{
    float2 *stats = (float2 *)(j.partial + partial_count(&j) * (size_t)b.dim);
    int span = (int)blockIdx.x / j.n_blocks;
    int heads0 = (span * j.of.max_rows - at.seq->row0) * j.n_heads;
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        int row = b.shared->row[i * 8 + cu_lane() / 4];
        if (row < 0)
            continue;
        size_t slot = (size_t)(heads0 + row);
        sum_each(sum, i / 2, i % 2, b.dim, [&](int dim, float2 x) {
            *(float2 *)(j.partial + slot * (size_t)b.dim + dim) = x;
        });
        if (threadIdx.x < CU_WARP && cu_lane() % 4 == 0)
            stats[slot] = make_float2(sum.m[i / 2][i % 2], sum.l[i / 2][i % 2]);
    }
}

/* Q: narrow pages are q8. */
template <bool Q, enum kv_type T, int MT, int NT>
static __global__ void __launch_bounds__(ATTEND_THREADS, attend_block<T, MT, NT>::RESIDENT)
    attend_rows(struct attend_job j)
{
    typedef struct attend_shared<MT> shared;
    CU_SHARED(shared, room, 1);
    CU_DYNAMIC(attend_fragment<T>, fragments);
    cu_start_next();
    cu_wait_prior();
    struct attend_block<T, MT, NT> b = {
        room, fragments, fragments, (const word_of<T> *)j.pool, NULL, j.dim
    };
    b.p += b.K_STEPS * MT * CU_WARP;
    struct attend_place at;
    bool split = j.partial != NULL;
    int group = j.n_heads / j.n_kv_heads, x = (int)blockIdx.x / j.n_blocks;
    const struct cu_span span = split ? j.of.span[x] : cu_span{ j.of.seq[x].seq, 0 };
    /* Late rows see more: they come first, so that none is left alone at the end. */
    at.row0 = (j.n_blocks - 1 - (int)blockIdx.x % j.n_blocks) * b.ROWS;
    at.kv_head = (int)blockIdx.y;
    if (span.seq < 0)
        return;
    at.seq = &j.seqs[span.seq];
    at.n = at.seq->n_rows * group;
    if (at.row0 >= at.n)
        return;
    int first = at.seq->pos0 + at.row0 / group + 1;
    int last = at.seq->pos0 + (min(at.row0 + b.ROWS, at.n) - 1) / group + 1;
    const struct attend_range range = range_of(j, at.seq, at.kv_head, first, last);
    int n_spans = max(range_spans(range), 1);
    int end = split ? min(n_spans, span.i + 1) : n_spans;
    struct attend_totals<MT> total;
    struct attend_sum<MT, NT> sum;
    sum_clear(&sum);
    totals_clear(&total);
    bool opened = false;
    for (int i = span.i; i < end; i++) {
        struct attend_cut c = range_cut(range, i);
        if (c.lo >= c.hi && (split || i + 1 < n_spans))
            continue;
        if (!opened)
            rows_open(j, b, at);
        opened = true;
        span_open<Q>(j, &b, at, c);
        int2 all = c.narrow ? make_int2(0, c.hi)
                            : make_int2(max(at.seq->kv.wide_pos0, last - j.window), first);
        if (Q && c.narrow)
            span_walk<Q>(b, c, all, &sum);
        else
            span_walk<false>(b, c, all, &sum);
        if (split)
            span_leave(j, b, at, sum);
        else
            span_total(j.out, j.lse, b, sum, &total, i + 1 == n_spans);
    }
}

/* ---- merging ----------------------------------------------------------------------------------------------------- */

enum { MERGE_THREADS = 128 };

/* One block a row of one head: the spans that attend_rows left, in rising order. */
static __global__ void __launch_bounds__(MERGE_THREADS) attend_merge(struct attend_job j)
{
    cu_start_next();
    cu_wait_prior();
    const struct cu_span span0 = j.of.seq[(int)blockIdx.x / j.of.max_rows];
    int token = (int)blockIdx.x % j.of.max_rows, head = (int)blockIdx.y;
    const struct be_seq *seq = &j.seqs[span0.seq];
    if (token >= seq->n_rows)
        return;
    int hi = seq->pos0 + token + 1;
    const struct attend_range range = range_of(j, seq, head / (j.n_heads / j.n_kv_heads), hi, hi);
    const size_t a_span = (size_t)j.of.max_rows * (size_t)j.n_heads;
    const size_t slot0 = (size_t)span0.i * a_span + (size_t)(token * j.n_heads + head);
    const float2 *stats = (const float2 *)(j.partial + partial_count(&j) * (size_t)j.dim);
    size_t row = (size_t)(seq->row0 + token) * (size_t)j.n_heads + (size_t)head;
    int n_spans = range_spans(range);
    for (int dim = (int)threadIdx.x; dim < j.dim; dim += MERGE_THREADS) {
        float m = -INFINITY, l = 0, o = 0;
#pragma unroll 4
        for (int i = 0; i < n_spans; i++) {
            struct attend_cut c = range_cut(range, i);
            if (c.lo >= c.hi)
                continue;
            size_t slot = slot0 + (size_t)i * a_span;
            float2 f = total_add(&m, &l, stats[slot].x, stats[slot].y);
            o = total_mix(o, j.partial[slot * (size_t)j.dim + (size_t)dim], f);
        }
        j.out[row * (size_t)j.dim + (size_t)dim] = l == 0 ? 0 : o / l;
        if (dim == 0 && j.lse != NULL)
            j.lse[row] = total_lse(m, l);
    }
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

template <bool Q, enum kv_type T, int MT, int NT>
static void launch(struct cu_state *s, struct attend_job j)
{
    typedef struct attend_block<T, MT, NT> block;
    int rows = j.of.max_rows * (j.n_heads / j.n_kv_heads);
    j.n_blocks = (int)cu_div_up((size_t)rows, block::ROWS);
    /* Whole sequences are even work where the longest is an eighth of a multiprocessor's share, or less. */
    size_t spans = (size_t)j.of.n_spans * (size_t)j.n_blocks * (size_t)j.n_kv_heads;
    bool even = (size_t)j.of.max_spans * (size_t)s->n_sm * 8 <= spans;
    bool fits = partial_count(&j) * (size_t)(j.dim + 2) * sizeof(float) <= CU_PARTIAL_BYTES;
    j.partial = j.of.max_spans > 1 && !even && fits ? s->partial : NULL;
    dim3 grid((unsigned)(j.n_blocks * (j.partial != NULL ? j.of.n_spans : j.of.n)),
              (unsigned)j.n_kv_heads);
    CU_CHAIN(s, grid, dim3(ATTEND_THREADS), (size_t)block::FRAGMENTS * sizeof(attend_fragment<T>),
             (attend_rows<Q, T, MT, NT>), j);
    if (j.partial != NULL)
        CU_CHAIN(s, dim3((unsigned)(j.of.n * j.of.max_rows), (unsigned)j.n_heads),
                 dim3(MERGE_THREADS), 0, attend_merge, j);
    CU_LAUNCHED(s);
}

/* Many rows: as many as 48 KiB of shared memory and 255 registers carry. */
template <bool Q, enum kv_type T, int NT>
static void attend_some(struct cu_state *s, struct attend_job j, const struct cu_seqs *of)
{
    constexpr int many = T == KV_F32 || NT > 8 ? 1 : NT > 4 ? 2 : 4;
    j.of = *of;
    if (of->max_rows == 0)
        return;
    if (of->max_rows * (j.n_heads / j.n_kv_heads) <= 16)
        launch<Q, T, 1, NT>(s, j);
    else
        launch<Q, T, many, NT>(s, j);
}

/* Decoding sequences beside a prompt's chunk have a launch of their own. */
template <bool Q, enum kv_type T, int NT>
static void attend_all(struct cu_state *s, struct attend_job j)
{
    attend_some<Q, T, NT>(s, j, &s->step.single);
    attend_some<Q, T, NT>(s, j, &s->step.many);
}

template <bool Q, enum kv_type T>
static void attend_type_of(struct cu_state *s, struct attend_job j)
{
    if (j.dim <= 64)
        attend_all<Q, T, 2>(s, j);
    else if (j.dim <= 128)
        attend_all<Q, T, 4>(s, j);
    else if (j.dim <= 256)
        attend_all<Q, T, 8>(s, j);
    else
        attend_all<Q, T, 16>(s, j);
}

static void cuda_attend(struct be *be, const struct be_attend *a)
{
    struct cu_state *s = cu_of(be);
    if (!cu_ok(s))
        return;
    struct attend_job j = {};
    j.pool = a->kv.pool;
    j.beta = a->kv.beta;
    j.q = a->q;
    j.out = a->out;
    j.lse = a->lse;
    j.seqs = a->kv.seqs;
    j.n_heads = a->n_heads;
    j.n_kv_heads = a->kv.n_kv_heads;
    j.dim = a->kv.head_dim;
    j.window = a->window > 0 ? a->window : INT32_MAX;
    j.scale = a->scale * 1.44269504f; /* log2(e) */
    bool q8 = a->kv.narrow_type == KV_NARROW_Q8;
    if (a->kv.type == KV_F16 && q8)
        attend_type_of<true, KV_F16>(s, j);
    else if (a->kv.type == KV_F16)
        attend_type_of<false, KV_F16>(s, j);
    else if (a->kv.type == KV_BF16 && q8)
        attend_type_of<true, KV_BF16>(s, j);
    else if (a->kv.type == KV_BF16)
        attend_type_of<false, KV_BF16>(s, j);
    else
        attend_type_of<false, KV_F32>(s, j);
}

void cu_ops_attend(struct be_ops *ops)
{
    ops->attend = cuda_attend;
}
