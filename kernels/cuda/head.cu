/* The head: from rows of logits to the few numbers that choosing a token needs (kernels/backend.h, slot `head`).
 *
 * A row of 128,256 logits is 513 KB: 20 us over PCIe at 25 GB/s, and sampling from it takes a core 26 us (greedy) to 1.2 ms
 * (nucleus); at 64 streams that is longer than the pass that made them. So the host sends what requests do to their rows
 * (sparse lists), and gets back 2 KiB a row. Three kernels:
 *
 *   adjust   one block a row: bias, then penalties, in place. Each id stands once in a list, so no two threads meet.
 *   chunks   one block for 1024 ids of a row: their largest logit, and the sums of exponentials below that one (a chunk of
 *            its own maximum needs no other pass over the row first); and the largest logit of each group of 64 ids.
 *   finish   two blocks a row. One adds up the chunks in f64, by rising id, and draws. The other lists the largest logits:
 *            the 256th largest maximum of a group is a lower bound for the 256th largest logit, and above it lie some 300
 *            logits where the largest are spread at random (256 of 2,000 groups reach the bound: a Poisson mean of 0.14
 *            a group). They are collected and sorted. Where they are not spread (many equal logits, the large
 *            ones side by side) more than CANDIDATES come, and the bound is bisected until fewer do.
 *
 * A logit's order is that of one 64-bit number, its bits made monotone above its inverted id: all are different, so what
 * is listed does not depend on which thread came first, and ties go to the lower id. Nothing depends on other rows.
 *
 * Bytes moved a row: 4 * vocab for chunks, 256 a group that reaches the bound (80 KiB, from the L2 cache), 16 an entry
 * of the lists; over PCIe 8 an entry and 64 down, 2.1 KiB up.
 */
#include <string.h>

#include "kernels/cuda/state.cuh"

enum {
    CHUNK = 1024, /* ids of a block of `chunks` */
    GROUP = 64,   /* ids that share a maximum: half of what one warp of it has */
    GROUPS = CHUNK / GROUP,
    THREADS = 1024, /* of `adjust` and `finish` */
    WARPS = THREADS / CU_WARP,
    CANDIDATES = 1024, /* sorted by one thread each */
    /* groups that reach the bound: few enough to stop looking for a higher one */
    ENOUGH = BE_HEAD_TOP + BE_HEAD_TOP / 2,
};

/* be_head_row on the device: its lists are parts of two arrays. */
struct row_plan {
    double u;
    float repetition, inv_t; /* inv_t 0: no temperature */
    int bias, n_bias, seen, n_seen;
    int draw, pick;
};

/* An entry of a list: bias adds `by`; a penalty takes it away. */
struct change {
    int32_t id;
    float by;
};

/* What `chunks` tells `finish` of 1024 ids. */
struct chunk {
    float max, sum, warm; /* sums of exp(logit - max); 0 when max is infinite */
    uint32_t key[GROUPS]; /* of the largest logit of each group */
};

/* ---- order ------------------------------------------------------------------------------------------------------- */

/* Bits that rise with the number; 0 for NaN; -0 is 0. */
static __device__ __forceinline__ uint32_t key_of(float x)
{
    uint32_t bits = __float_as_uint(x == 0 ? 0.0f : x);
    return x != x ? 0 : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
#define KEY_FIRST 0x00800000u /* of the smallest number above -inf */

static __device__ __forceinline__ uint64_t rank_of(float x, int id)
{
    return (uint64_t)key_of(x) << 32 | (uint32_t)~id;
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
    head_adjust(float *logits, int vocab, const row_plan *plan, const change *list)
{
    float *x = logits + (size_t)blockIdx.x * vocab;
    const row_plan r = plan[blockIdx.x];
    for (int i = threadIdx.x; i < r.n_bias; i += THREADS) {
        change c = list[r.bias + i];
        x[c.id] += c.by;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < r.n_seen; i += THREADS) {
        change c = list[r.seen + i];
        float y = x[c.id];
        /* rounded after each step, as the CPU does */
        y = y > 0 ? y / r.repetition : __fmul_rn(y, r.repetition);
        x[c.id] = y - c.by;
    }
}

/* ---- chunks ------------------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ float warp_max(float x)
{
    for (int m = CU_WARP / 2; m > 0; m /= 2)
        x = fmaxf(x, __shfl_xor_sync(CU_ALL, x, m));
    return x;
}

static __device__ __forceinline__ bool is_finite(float x)
{
    return fabsf(x) < INFINITY;
}

/* Every lane has four ids: two of each of its warp's two groups. */
static __global__ void __launch_bounds__(CHUNK / 4)
    head_chunks(const float *logits, int vocab, const row_plan *plan, chunk *out)
{
    enum { EACH = 4, SPAN = EACH * CU_WARP, CHUNK_WARPS = CHUNK / SPAN };
    CU_SHARED(float, part, 3 * CHUNK_WARPS);
    int lane = cu_lane(), warp = cu_warp(), first = (int)blockIdx.x * CHUNK + warp * SPAN + lane;
    const float *x = logits + (size_t)blockIdx.y * vocab;
    chunk *to = out + (size_t)blockIdx.y * gridDim.x + blockIdx.x;
    float inv_t = plan[blockIdx.y].inv_t, v[EACH], sum = 0, warm = 0;
    for (int i = 0; i < EACH; i++) {
        int id = first + i * CU_WARP;
        v[i] = id < vocab ? x[id] : -INFINITY;
    }
    float low = warp_max(fmaxf(v[0], v[1])), high = warp_max(fmaxf(v[2], v[3]));
    float max = fmaxf(-INFINITY, fmaxf(low, high)); /* not NaN */
    if (lane == 0) {
        to->key[2 * warp] = key_of(low);
        to->key[2 * warp + 1] = key_of(high);
        part[warp] = max;
    }
    __syncthreads();
    for (int i = 0; i < CHUNK_WARPS; i++)
        max = fmaxf(max, part[i]);
    for (int i = 0; i < EACH && is_finite(max); i++) {
        sum += v[i] == v[i] ? expf(v[i] - max) : 0;
        warm += v[i] == v[i] && inv_t > 0 ? expf((v[i] - max) * inv_t) : 0;
    }
    sum = cu_warp_sum(sum);
    warm = cu_warp_sum(warm);
    if (lane == 0) {
        part[CHUNK_WARPS + warp] = sum;
        part[2 * CHUNK_WARPS + warp] = warm;
    }
    __syncthreads();
    if (threadIdx.x > 0)
        return;
    sum = warm = 0;
    for (int i = 0; i < CHUNK_WARPS; i++) {
        sum += part[CHUNK_WARPS + i];
        warm += part[2 * CHUNK_WARPS + i];
    }
    to->max = max;
    to->sum = sum;
    to->warm = warm;
}

/* ---- sums and the draw ------------------------------------------------------------------------------------------- */

/* A block's largest; every thread gets it. */
static __device__ float block_max(float x, float *part)
{
    x = warp_max(x);
    if (cu_lane() == 0)
        part[cu_warp()] = x;
    __syncthreads();
    return warp_max(part[cu_lane()]);
}

/* Where a draw fell: in which chunk, and how much of it lies before. */
struct place {
    int chunk;
    double rest;
};

/* The chunk up to which the sums exceed u times all of them, or the last one of any weight; -1 when there is none. */
static __device__ place find_chunk(const double *sum, int n, double all, double u)
{
    place p = { -1, 0 };
    double run = 0;
    for (int i = 0; i < n; i++) {
        if (!(sum[i] > 0))
            continue;
        p.chunk = i;
        p.rest = u * all - run;
        run += sum[i];
        if (u * all < run)
            break;
    }
    return p;
}

/* The same within a chunk, a thread for each id: first the warp, then the id. */
static __device__ int draw_within(const float *x, int vocab, float max, float inv_t, place p,
                                  int pick, float *w)
{
    CU_SHARED(float, warp_sum, WARPS);
    int id = p.chunk * CHUNK + (int)threadIdx.x;
    float mine = id < vocab && x[id] == x[id] ? expf((x[id] - max) * inv_t) : 0;
    w[threadIdx.x] = mine;
    mine = cu_warp_sum(mine);
    if (cu_lane() == 0)
        warp_sum[cu_warp()] = mine;
    __syncthreads();
    if (threadIdx.x > 0) /* the rest is one thread's: f64 is slow on most GPUs */
        return pick;
    double before = 0, run = 0;
    int from = 0;
    for (int i = 0; i < WARPS; i++) {
        if (!(warp_sum[i] > 0))
            continue;
        from = i;
        before = run;
        run += (double)warp_sum[i];
        if (p.rest < run)
            break;
    }
    for (int i = from * CU_WARP; i < (from + 1) * CU_WARP; i++) {
        if (!(w[i] > 0))
            continue;
        pick = p.chunk * CHUNK + i;
        before += (double)w[i];
        if (p.rest < before)
            break;
    }
    return pick;
}

static __device__ void finish_sums(const float *x, int vocab, const row_plan &r, const chunk *c,
                                   int n, double *room, be_head_out *out)
{
    CU_SHARED(float, part, WARPS);
    CU_SHARED(float, weight, CHUNK);
    CU_SHARED(place, drawn, 1);
    double *sum = room, *warm = room + n;
    float max = -INFINITY;
    for (int i = threadIdx.x; i < n; i += THREADS)
        max = fmaxf(max, c[i].max);
    max = block_max(max, part);
    for (int i = threadIdx.x; i < n; i += THREADS) {
        bool any = is_finite(max) && is_finite(c[i].max);
        sum[i] = any ? (double)(c[i].sum * expf(c[i].max - max)) : 0;
        warm[i] = any ? (double)(c[i].warm * expf((c[i].max - max) * r.inv_t)) : 0;
    }
    __syncthreads();
    /* two warps go over the chunks side by side */
    double all = 0;
    if (threadIdx.x == 0) {
        for (int i = 0; i < n; i++)
            all += sum[i];
        out->sum = all;
        out->max = max;
    } else if (threadIdx.x == CU_WARP) {
        for (int i = 0; i < n; i++)
            all += warm[i];
        out->warm_sum = all;
        drawn[0] = find_chunk(warm, r.draw ? n : 0, all, r.u);
    }
    __syncthreads();
    int pick = r.pick;
    if (drawn[0].chunk >= 0) /* the same for all threads */
        pick = draw_within(x, vocab, max, r.inv_t, drawn[0], pick, weight);
    if (threadIdx.x == 0) {
        out->pick = pick;
        out->pick_logit = x[pick];
    }
}

/* ---- the largest logits ------------------------------------------------------------------------------------------ */

/* How many groups have a logit of at least this. */
static __device__ int count_groups(const uint32_t *key, int n, uint32_t least)
{
    int count = 0;
    for (int i = 0; i < n; i += THREADS) {
        int k = i + (int)threadIdx.x;
        count += __syncthreads_count(k < n && key[k] >= least);
    }
    return count;
}

/* A bound that BE_HEAD_TOP groups reach and not many more, below `above`; the smallest one when fewer groups do. */
static __device__ uint32_t find_bound(const uint32_t *key, int n, uint32_t above)
{
    uint32_t low = KEY_FIRST;
    while (above > low && above - low > 1) {
        uint32_t mid = low + (above - low) / 2;
        int count = count_groups(key, n, mid);
        if (count < BE_HEAD_TOP)
            above = mid;
        else
            low = mid;
        if (count >= BE_HEAD_TOP && count <= ENOUGH)
            break;
    }
    return low;
}

/* Counts the logits of at least this rank and collects the first CANDIDATES that come. */
static __device__ int collect(const float *x, int vocab, const uint32_t *key, int n, uint64_t least,
                              uint64_t *list, int *count)
{
    enum { EACH = GROUP / CU_WARP };
    int lane = cu_lane();
    __syncthreads();
    if (threadIdx.x == 0)
        *count = 0;
    __syncthreads();
    for (int g = cu_warp(); g < n; g += WARPS) {
        uint64_t rank[EACH];
        if (key[g] < (uint32_t)(least >> 32)) /* the same for all lanes */
            continue;
        for (int i = 0; i < EACH; i++) {
            int id = g * GROUP + i * CU_WARP + lane;
            rank[i] = id < vocab ? rank_of(x[id], id) : 0;
        }
        for (int i = 0; i < EACH; i++) {
            unsigned in = __ballot_sync(CU_ALL, rank[i] >= least);
            int at = 0;
            if (in == 0)
                continue;
            if (lane == 0)
                at = atomicAdd(count, __popc(in));
            at = __shfl_sync(CU_ALL, at, 0) + __popc(in & ((1u << lane) - 1));
            if (rank[i] >= least && at < CANDIDATES)
                list[at] = rank[i];
        }
    }
    __syncthreads();
    return *count;
}

/* Sorts list[size], a power of two, falling (bitonic; Batcher 1968). */
static __device__ void sort_falling(uint64_t *list, int size)
{
    int i = (int)threadIdx.x;
    for (int run = 2; run <= size; run *= 2)
        for (int step = run / 2; step > 0; step /= 2) {
            int k = i ^ step;
            if (k > i && k < size) {
                uint64_t a = list[i], b = list[k];
                if ((a < b) == ((i & run) == 0)) {
                    list[i] = b;
                    list[k] = a;
                }
            }
            __syncthreads();
        }
}

static __device__ void finish_top(const float *x, int vocab, const chunk *c, int n_chunks,
                                  uint32_t *key, be_head_out *out)
{
    CU_SHARED(uint64_t, list, CANDIDATES);
    CU_SHARED(float, part, WARPS);
    CU_SHARED(int, count, 1);
    int n = n_chunks * GROUPS;
    float max = -INFINITY;
    for (int i = threadIdx.x; i < n; i += THREADS)
        key[i] = c[i / GROUPS].key[i % GROUPS];
    for (int i = threadIdx.x; i < n_chunks; i += THREADS)
        max = fmaxf(max, c[i].max);
    uint32_t above = key_of(block_max(max, part)) + 1;
    uint64_t low = (uint64_t)find_bound(key, n, above) << 32, high = (uint64_t)above << 32;
    int have = collect(x, vocab, key, n, low, list, count);
    while (have > CANDIDATES) {
        uint64_t mid = low + (high - low) / 2;
        int some = collect(x, vocab, key, n, mid, list, count);
        if (some < BE_HEAD_TOP) {
            high = mid;
        } else {
            low = mid;
            have = some;
        }
    }
    int size = BE_HEAD_TOP;
    while (size < have)
        size *= 2;
    for (int i = have + (int)threadIdx.x; i < size; i += THREADS)
        list[i] = 0;
    __syncthreads();
    sort_falling(list, size);
    have = have < BE_HEAD_TOP ? have : BE_HEAD_TOP;
    for (int i = threadIdx.x; i < BE_HEAD_TOP; i += THREADS) {
        int id = i < have ? (int)~(uint32_t)list[i] : 0;
        out->id[i] = id;
        out->logit[i] = i < have ? x[id] : 0;
    }
    if (threadIdx.x == 0)
        out->n = have;
}

/* Block (row, 0) sums, block (row, 1) lists. */
static __global__ void __launch_bounds__(THREADS, 1)
    head_finish(const float *logits, int vocab, const row_plan *plan, const chunk *chunks,
                int n_chunks, be_head_out *out)
{
    CU_DYNAMIC(char, room); /* finish_room() bytes */
    const float *x = logits + (size_t)blockIdx.x * vocab;
    const chunk *c = chunks + (size_t)blockIdx.x * n_chunks;
    if (blockIdx.y == 0)
        finish_sums(x, vocab, plan[blockIdx.x], c, n_chunks, (double *)room, out + blockIdx.x);
    else
        finish_top(x, vocab, c, n_chunks, (uint32_t *)room, out + blockIdx.x);
}

/* Two f64 sums a chunk, or the keys of its groups: 16 KiB for 262,144 ids, of 35 KiB that are there unasked. */
static size_t finish_room(int n_chunks)
{
    static_assert(2 * sizeof(double) <= GROUPS * sizeof(uint32_t), "room of the sums");
    return (size_t)n_chunks * GROUPS * sizeof(uint32_t);
}

/* ---- the host's side --------------------------------------------------------------------------------------------- */

/* One device block and its pinned image: plans, lists (down), results (up); chunks are on the device only. */
struct head {
    char *device, *pinned;
    size_t device_room, pinned_room;
};

struct layout {
    size_t lists, results, chunks, end; /* where they begin; plans at 0 */
};

static size_t align_up(size_t n)
{
    return (n + 127) / 128 * 128;
}

static layout lay_out(int n, int n_chunks, const be_head_row *row)
{
    layout l;
    size_t entries = 0;
    for (int i = 0; i < n; i++)
        entries += (size_t)row[i].n_bias + (size_t)row[i].n_seen;
    l.lists = align_up((size_t)n * sizeof(row_plan));
    l.results = align_up(l.lists + entries * sizeof(change));
    l.chunks = align_up(l.results + (size_t)n * sizeof(be_head_out));
    l.end = l.chunks + (size_t)n * (size_t)n_chunks * sizeof(chunk);
    return l;
}

/* Buffers grow with the first large batch and then stay: 750 KiB for 64 rows of 128k logits, and 8 bytes an entry. */
static head *head_room(cu_state *s, const layout *l)
{
    if (s->head == NULL)
        s->head = mem_zalloc(1, sizeof(head));
    head *h = (head *)s->head;
    if (h == NULL) {
        err_set(&s->error, ERR_DEVICE, "no host memory for the head");
        return NULL;
    }
    if (l->end > h->device_room) {
        size_t bytes = l->end + l->end / 2;
        CU_CHECK(s, cudaFree(h->device));
        h->device = NULL;
        h->device_room = 0;
        if (CU_CHECK(s, cudaMalloc((void **)&h->device, bytes)))
            h->device_room = bytes;
    }
    if (l->chunks > h->pinned_room) {
        size_t bytes = l->chunks + l->chunks / 2;
        if (h->pinned != NULL)
            CU_CHECK(s, cudaFreeHost(h->pinned));
        h->pinned = NULL;
        h->pinned_room = 0;
        if (CU_CHECK(s, cudaMallocHost((void **)&h->pinned, bytes)))
            h->pinned_room = bytes;
    }
    return cu_ok(s) ? h : NULL;
}

void cu_head_close(struct be *be)
{
    cu_state *s = cu_of(be);
    head *h = (head *)s->head;
    if (h == NULL)
        return;
    cudaFree(h->device);
    if (h->pinned != NULL)
        cudaFreeHost(h->pinned);
    mem_free(h);
    s->head = NULL;
}

/* Returns the number of entries. */
static int pack_rows(row_plan *plan, change *list, int n, const be_head_row *row)
{
    int at = 0;
    for (int i = 0; i < n; i++) {
        const be_head_row *r = &row[i];
        plan[i] = row_plan();
        plan[i].u = r->u;
        plan[i].repetition = r->repetition;
        plan[i].inv_t = r->temperature > 0 ? 1 / r->temperature : 0;
        plan[i].bias = at;
        plan[i].n_bias = r->n_bias;
        plan[i].seen = at + r->n_bias;
        plan[i].n_seen = r->n_seen;
        plan[i].draw = r->draw;
        plan[i].pick = r->pick;
        for (int k = 0; k < r->n_bias; k++, at++)
            list[at] = change{ r->bias_id[k], r->bias[k] };
        for (int k = 0; k < r->n_seen; k++, at++)
            list[at] = change{
                r->seen_id[k],
                r->count[k] > 0 ? r->presence + r->frequency * (float)r->count[k] : 0,
            };
    }
    return at;
}

static void cuda_head(struct be *be, float *logits, int n, int vocab, const struct be_head_row *row,
                      struct be_head_out *out)
{
    cu_state *s = cu_of(be);
    int n_chunks = (int)cu_div_up((size_t)vocab, CHUNK);
    layout l = lay_out(n, n_chunks, row);
    memset(out, 0, (size_t)n * sizeof *out);
    head *h = cu_ok(s) && n > 0 ? head_room(s, &l) : NULL;
    if (h == NULL)
        return;
    row_plan *plan = (row_plan *)h->device;
    change *list = (change *)(h->device + l.lists);
    chunk *chunks = (chunk *)(h->device + l.chunks);
    be_head_out *result = (be_head_out *)(h->device + l.results);
    int entries = pack_rows((row_plan *)h->pinned, (change *)(h->pinned + l.lists), n, row);
    CU_CHECK(s,
             cudaMemcpyAsync(h->device, h->pinned, l.results, cudaMemcpyHostToDevice, s->stream));
    if (entries > 0)
        CU_LAUNCH(s->stream, n, THREADS, 0, head_adjust, logits, vocab, plan, list);
    CU_LAUNCH(s->stream, dim3(n_chunks, n), CHUNK / 4, 0, head_chunks, logits, vocab, plan, chunks);
    CU_LAUNCH(s->stream, dim3(n, 2), THREADS, finish_room(n_chunks), head_finish, logits, vocab,
              plan, chunks, n_chunks, result);
    if (!CU_LAUNCHED(s))
        return;
    size_t bytes = (size_t)n * sizeof *out;
    CU_CHECK(s, cudaMemcpyAsync(h->pinned + l.results, result, bytes, cudaMemcpyDeviceToHost,
                                s->stream));
    if (CU_CHECK(s, cudaStreamSynchronize(s->stream)))
        memcpy(out, h->pinned + l.results, bytes);
}

void cu_ops_head(struct be_ops *ops)
{
    ops->head = cuda_head;
}
