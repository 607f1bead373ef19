/* One tile of attention on tensor cores: 16 * MT rows of one KV head against ATTEND_TILE slots.
 *
 * Four warps share a tile. For the scores S = Q K^T each takes 16 of the 64 slots, for the sums O += P V each takes a
 * quarter of the dims; row maxima and the weights P go from one half to the other through shared memory. A row's
 * numbers meet the same instructions in the same order whatever MT is and whatever rows lie beside it, and what a row
 * does not see has weight 0 and leaves m, l and o as they are: that is why decode, prefill and any chunking agree bit
 * for bit.
 *
 * Keys and values go from global memory straight into the registers of the products, since a word of the cache is a
 * pair of elements and which slot is which column, and which pair of slots is which k, is free as long as both sides
 * agree. With g = lane / 4 and q = lane % 4 (cu.cuh):
 *
 *      scores   column g of product e is slot 2g + e of the warp's 16: one load of two words side by side serves two
 *               products, a warp reads 64 bytes in a row
 *      weights  so lane (g, q) ends up with slots 4q ... 4q+3 of rows g and g + 8: its own part of the A operand of P V
 *               when k 2q 2q+1 are slots 4q 4q+1, and k 2q+8 2q+9 are 4q+2 4q+3; no shuffle
 *      values   column g of product e is dim 2g + e: again two words side by side; lane (g, q) ends up with dims
 *               4q ... 4q+3 of every 16
 *
 * Scores carry log2(e), so that a weight is one ex2. m: maximum so far; l: the lane's own part of the sum of weights,
 * added up when the span ends; o: the sum of weighted values, not yet divided.
 *
 * f32 caches use bf16 products on numbers split in three (cu_split3), six products each, smallest first.
 *
 * Slots of q8 pages (Q in templates; a page is a tile) differ in what a word is made of: two words side by side are 4 bytes,
 * loaded as one word and unpacked just before the product. Keys are multiplied as whole numbers, exact in 16 bits, and a
 * slot's scale comes to its logit with the bias; values get their scales when they are unpacked, for a weight times a scale
 * may be too small for f16.
 */
#ifndef WRING_KERNELS_CUDA_ATTEND_CUH
#define WRING_KERNELS_CUDA_ATTEND_CUH

#include "kernels/cuda/state.cuh"

enum {
    ATTEND_WARPS = 4,
    ATTEND_THREADS = ATTEND_WARPS * CU_WARP,
    ATTEND_STEPS = ATTEND_TILE / 16, /* products that a tile's sum takes */
    ATTEND_PAGES = ATTEND_SPAN / KV_PAGE
};

/* ---- words: two elements of the cache ---------------------------------------------------------------------------- */

template <enum kv_type T> struct attend_type {
    typedef uint32_t word;
};
template <> struct attend_type<KV_F32> {
    typedef float2 word;
};
template <enum kv_type T> using word_of = typename attend_type<T>::word;

template <class W> struct alignas(2 * sizeof(W)) word_two {
    W w[2];
};

template <enum kv_type T>
static __device__ __forceinline__ word_of<T> word_pack(float low, float high)
{
    if constexpr (T == KV_F32)
        return make_float2(low, high);
    else if constexpr (T == KV_F16)
        return cu_pack_f16(low, high);
    else
        return cu_pack_bf16(low, high);
}

template <enum kv_type T> static __device__ __forceinline__ float2 word_unpack(word_of<T> w)
{
    if constexpr (T == KV_F32)
        return w;
    else if constexpr (T == KV_F16)
        return make_float2(cu_f16_low(w), cu_f16_high(w));
    else
        return make_float2(cu_bf16_low(w), cu_bf16_high(w));
}

static __device__ __forceinline__ void split_pair(uint32_t part[3], float2 w)
{
    cu_split x = cu_split3(w.x), y = cu_split3(w.y);
    for (int i = 0; i < 3; i++)
        part[i] = cu_pack_bf16(x.part[i], y.part[i]);
}

/* Byte i of four. */
static __device__ __forceinline__ float byte_at(uint32_t four, int i)
{
    return (float)(int8_t)(four >> 8 * i);
}

/* Four q8 numbers as two words, the lower half of each times x, the upper times y. */
template <enum kv_type T>
static __device__ __forceinline__ word_two<word_of<T>> words_q8(uint32_t four, float x, float y)
{
    word_two<word_of<T>> r;
    r.w[0] = word_pack<T>(byte_at(four, 0) * x, byte_at(four, 1) * y);
    r.w[1] = word_pack<T>(byte_at(four, 2) * x, byte_at(four, 3) * y);
    return r;
}

/* d += a b. In f32 each product of 16 has a sum of its own: adding it to d rounds to nearest, which the tensor cores'
 * adder does not. */
template <enum kv_type T>
static __device__ __forceinline__ void word_mma(float d[4], const word_of<T> a[4],
                                                const word_of<T> b[2])
{
    if constexpr (T == KV_F16) {
        cu_mma_f16(d, a, b);
    } else if constexpr (T == KV_BF16) {
        cu_mma_bf16(d, a, b);
    } else {
        uint32_t part[3], x[3][4], y[3][2];
        float sum[4] = { 0, 0, 0, 0 };
#pragma unroll
        for (int i = 0; i < 4; i++) {
            split_pair(part, a[i]);
            x[0][i] = part[0], x[1][i] = part[1], x[2][i] = part[2];
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            split_pair(part, b[i]);
            y[0][i] = part[0], y[1][i] = part[1], y[2][i] = part[2];
        }
        cu_mma_bf16(sum, x[1], y[1]);
        cu_mma_bf16(sum, x[2], y[0]);
        cu_mma_bf16(sum, x[0], y[2]);
        cu_mma_bf16(sum, x[1], y[0]);
        cu_mma_bf16(sum, x[0], y[1]);
        cu_mma_bf16(sum, x[0], y[0]);
#pragma unroll
        for (int i = 0; i < 4; i++)
            d[i] += sum[i];
    }
}

/* What is not finite becomes 0. True when there was something. */
template <enum kv_type T> static __device__ __forceinline__ bool word_clean(word_of<T> *w)
{
    float2 x = word_unpack<T>(*w);
    bool a = fabsf(x.x) < INFINITY, b = fabsf(x.y) < INFINITY;
    if (a && b)
        return false;
    *w = word_pack<T>(a ? x.x : 0, b ? x.y : 0);
    return true;
}

/* ---- what the threads of a block share --------------------------------------------------------------------------- */

template <int MT> struct attend_shared {
    float4 stat[16 * MT];    /* of each row: one number from each warp */
    int2 seen[16 * MT];      /* of each row: slots [x, y) of this span */
    int row[16 * MT];        /* its place in [n_rows][n_heads]; -1: no row */
    int hi[16 * MT];         /* its position + 1; 0: no row */
    int block[ATTEND_PAGES]; /* of this span; -1: nobody sees its slots */
};

template <enum kv_type T> struct alignas(16) attend_fragment {
    word_of<T> w[4]; /* one lane's A operand of a product */
};

static constexpr int ahead_steps(int registers, int registers_a_step, int steps)
{
    int n = registers / registers_a_step;
    return n < 1 ? 1 : n < steps ? n : steps;
}

/* MT: tiles of 16 rows. NT: tiles of 8 dims of a warp; head_dim is at most 32 * NT, what is missing counts as 0. */
template <enum kv_type T, int MT, int NT> struct attend_block {
    typedef word_of<T> word;
    enum {
        ROWS = 16 * MT,
        K_STEPS = 2 * NT, /* products along head_dim */
        /* Registers of keys and values that are loaded ahead, in steps: as many as leave no spills. */
        K_REGISTERS = T == KV_F32 ? 16 : 32,
        V_REGISTERS = T == KV_F32 || MT > 1 ? 16 : 32,
        K_AHEAD = ahead_steps(K_REGISTERS, (int)sizeof(word), K_STEPS),
        V_AHEAD = ahead_steps(V_REGISTERS, (int)sizeof(word) * NT / 2, ATTEND_STEPS),
        /* Blocks on a multiprocessor: 168 registers a thread, or 255. */
        RESIDENT = T == KV_F32 || MT > 1 || NT > 4 ? 2 : 3,
        FRAGMENTS = (K_STEPS + ATTEND_STEPS) * MT * CU_WARP /* of q and of the weights */
    };
    struct keys {
        word_two<word> w[K_AHEAD][2];
    };
    struct values {
        word_two<word> w[V_AHEAD][NT / 2][2];
    };

    struct attend_shared<MT> *shared;
    attend_fragment<T> *q, *p; /* shared: [K_STEPS][MT][lanes], [ATTEND_STEPS][MT][lanes] */
    const word *pool;
    const float *beta; /* sides of narrow pages; NULL in wide spans */
    int dim;
};

/* A softmax-weighted sum in the making: index h of m and l is row g + 8h of a tile of 16. */
template <int MT, int NT> struct attend_sum {
    float m[MT][2], l[MT][2], o[MT][NT][4];
};

template <int MT, int NT>
static __device__ __forceinline__ void sum_clear(struct attend_sum<MT, NT> *sum)
{
#pragma unroll
    for (int t = 0; t < MT; t++) {
        sum->m[t][0] = sum->m[t][1] = -INFINITY;
        sum->l[t][0] = sum->l[t][1] = 0;
#pragma unroll
        for (int i = 0; i < NT * 4; i++)
            sum->o[t][i / 4][i % 4] = 0;
    }
}

/* ---- loads ------------------------------------------------------------------------------------------------------- */

template <class W>
static __device__ __forceinline__ word_two<W> load_two(const W *page, int at, bool there)
{
    word_two<W> zero = {};
    return page != NULL && there ? *(const word_two<W> *)(page + at) : zero;
}

template <class W> static __device__ __forceinline__ W load_one(const W *page, int at, bool there)
{
    return page != NULL && there ? page[at] : W();
}

/* Where the block of a tile's page begins; NULL: nobody sees its slots. The two halves of a q8 page are pages here, both of
 * them in one block. */
template <enum kv_type T, int MT, int NT>
static __device__ __forceinline__ const word_of<T> *page_at(const struct attend_block<T, MT, NT> &b,
                                                            int tile, int page)
{
    int block = b.shared->block[tile % ATTEND_SPAN / KV_PAGE + page];
    return block < 0 ? NULL : b.pool + (size_t)block * KV_PAGE * (size_t)b.dim;
}

/* The side of that block. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ const float *side_at(const struct attend_block<T, MT, NT> &b,
                                                       int tile, int page)
{
    int block = b.shared->block[tile % ATTEND_SPAN / KV_PAGE + page];
    return block < 0 ? NULL : b.beta + (size_t)block * (Q ? 3 * KV_PAGE_Q8 : KV_PAGE);
}

/* The warp's 16 keys, steps [step, step + K_AHEAD). */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void keys_load(const struct attend_block<T, MT, NT> &b,
                                                 typename attend_block<T, MT, NT>::keys *k,
                                                 int tile, int step)
{
    const word_of<T> *page = page_at(b, tile, cu_warp() / 2);
    int slot = (Q ? cu_warp() : cu_warp() % 2) * 16 + cu_lane() / 4 * 2;
#pragma unroll
    for (int i = 0; i < b.K_AHEAD * 2; i++) {
        int pair = (step + i / 2) * 8 + i % 2 * 4 + cu_lane() % 4;
        if constexpr (Q)
            k->w[i / 2][i % 2].w[0] =
                load_one(page, (pair * KV_PAGE_Q8 + slot) / 2, pair < b.dim / 2);
        else
            k->w[i / 2][i % 2] = load_two(page, pair * KV_PAGE + slot, pair < b.dim / 2);
    }
}

/* The first of the lane's two rows of values of step i of a q8 page, in rows of dim / 2 words; keys are KV_PAGE of them. */
static __device__ __forceinline__ int row_q8(int i)
{
    return KV_PAGE + i * 8 + cu_lane() % 4 * 2;
}

/* The first dim of the two that the lane loads of 16-dim group j. */
template <int NT> static __device__ __forceinline__ int value_dim(int j)
{
    return cu_warp() * 8 * NT + j * 16 + cu_lane() / 4 * 2;
}

/* The warp's dims of slots 16 * step on, V_AHEAD steps. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void values_load(const struct attend_block<T, MT, NT> &b,
                                                   typename attend_block<T, MT, NT>::values *v,
                                                   int tile, int step)
{
#pragma unroll
    for (int i = 0; i < b.V_AHEAD; i++) {
        const word_of<T> *page = page_at(b, tile, (step + i) / 2);
        int row = KV_PAGE / 2 + (step + i) % 2 * 8 + cu_lane() % 4 * 2; /* keys are KV_PAGE / 2 */
#pragma unroll
        for (int j = 0; j < NT / 2; j++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int dim = value_dim<NT>(j);
                if constexpr (Q)
                    v->w[i][j][h].w[0] =
                        load_one(page, (row_q8(step + i) + h) * b.dim / 2 + dim / 2, dim < b.dim);
                else
                    v->w[i][j][h] = load_two(page, (row + h) * b.dim + dim, dim < b.dim);
            }
        }
    }
}

/* Four q8 values of each word of a step to values. */
template <enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void values_unpack(const struct attend_block<T, MT, NT> &b,
                                                     word_two<word_of<T>> w[NT / 2][2], int tile,
                                                     int step)
{
    const float *side = side_at<true>(b, tile, step / 2);
    float4 scale = make_float4(0, 0, 0, 0);
    if (side != NULL)
        scale = *(const float4 *)(side + 2 * KV_PAGE_Q8 + step * 16 + cu_lane() % 4 * 4);
#pragma unroll
    for (int j = 0; j < NT / 2; j++) {
        w[j][0] = words_q8<T>(w[j][0].w[0], scale.x, scale.y);
        w[j][1] = words_q8<T>(w[j][1].w[0], scale.z, scale.w);
    }
}

/* ---- scores and weights ------------------------------------------------------------------------------------------ */

/* s[t][e][2h + c]: row g + 8h of tile t, slot 4q + 2c + e of the warp's 16. k holds the first steps. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void tile_scores(const struct attend_block<T, MT, NT> &b,
                                                   typename attend_block<T, MT, NT>::keys *k,
                                                   int tile, float s[MT][2][4])
{
#pragma unroll
    for (int i = 0; i < MT * 8; i++)
        s[i / 8][i / 4 % 2][i % 4] = 0;
#pragma unroll 1
    for (int step = 0; step < b.K_STEPS; step += b.K_AHEAD) {
        if (step > 0)
            keys_load<Q>(b, k, tile, step);
#pragma unroll
        for (int i = 0; i < b.K_AHEAD; i++) {
            word_two<word_of<T>> w[2] = { k->w[i][0], k->w[i][1] };
            if constexpr (Q) {
                w[0] = words_q8<T>(w[0].w[0], 1, 1);
                w[1] = words_q8<T>(w[1].w[0], 1, 1);
            }
#pragma unroll
            for (int t = 0; t < MT; t++) {
                attend_fragment<T> q = b.q[((step + i) * MT + t) * CU_WARP + cu_lane()];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    word_of<T> pair[2] = { w[0].w[e], w[1].w[e] };
                    word_mma<T>(s[t][e], q.w, pair);
                }
            }
        }
    }
}

/* Adds the bias of narrow slots; before that q8 keys get their scales. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void tile_bias(const struct attend_block<T, MT, NT> &b, int tile,
                                                 float s[MT][2][4])
{
    const float *side = side_at<Q>(b, tile, cu_warp() / 2);
    if (side == NULL)
        return;
    int slot = (Q ? cu_warp() : cu_warp() % 2) * 16 + cu_lane() % 4 * 4;
    float4 beta = *(const float4 *)(side + slot), scale = make_float4(1, 1, 1, 1);
    if (Q)
        scale = *(const float4 *)(side + KV_PAGE_Q8 + slot);
    float x[4] = { beta.x, beta.y, beta.z, beta.w };
    float y[4] = { scale.x, scale.y, scale.z, scale.w };
#pragma unroll
    for (int i = 0; i < MT * 8; i++) {
        float *at = &s[i / 8][i / 4 % 2][i % 4];
        int k = i % 2 * 2 + i / 4 % 2;
        *at = fmaf(x[k], 1.44269504f /* log2(e) */, Q ? *at * y[k] : *at);
    }
}

/* -inf where a row does not see a slot. */
template <enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void tile_mask(const struct attend_block<T, MT, NT> &b, int tile,
                                                 float s[MT][2][4])
{
    int slot = tile + cu_warp() * 16 + cu_lane() % 4 * 4;
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        int2 seen = b.shared->seen[i * 8 + cu_lane() / 4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (slot + j < seen.x || slot + j >= seen.y)
                s[i / 2][j % 2][i % 2 * 2 + j / 2] = -INFINITY;
    }
}

/* Raises m to the tile's maximum, scales down l and o, and leaves the weights in shared memory as A operands. A row
 * that has seen nothing yet stays as it is. */
template <enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void tile_weights(const struct attend_block<T, MT, NT> &b,
                                                    struct attend_sum<MT, NT> *sum,
                                                    const float s[MT][2][4])
{
#pragma unroll
    for (int i = 0; i < MT * 2; i++) {
        const float(*x)[4] = s[i / 2];
        int h = i % 2 * 2;
        float m = cu_max(cu_max(x[0][h], x[1][h]), cu_max(x[0][h + 1], x[1][h + 1]));
        m = cu_max(m, __shfl_xor_sync(CU_ALL, m, 1));
        m = cu_max(m, __shfl_xor_sync(CU_ALL, m, 2));
        if (cu_lane() % 4 == 0)
            ((float *)&b.shared->stat[i * 8 + cu_lane() / 4])[cu_warp()] = m;
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < MT; t++) {
        attend_fragment<T> p;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float4 of = b.shared->stat[t * 16 + h * 8 + cu_lane() / 4];
            float m = cu_max(cu_max(cu_max(of.x, of.y), cu_max(of.z, of.w)), sum->m[t][h]);
            float base = m == -INFINITY ? 0 : m, keep = cu_exp2(sum->m[t][h] - base);
            float x[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                x[j] = cu_exp2(s[t][j % 2][h * 2 + j / 2] - base);
            sum->m[t][h] = m;
            sum->l[t][h] = fmaf(sum->l[t][h], keep, (x[0] + x[1]) + (x[2] + x[3]));
#pragma unroll
            for (int n = 0; n < NT * 2; n++)
                sum->o[t][n / 2][h * 2 + n % 2] *= keep;
            p.w[h] = word_pack<T>(x[0], x[1]);
            p.w[h + 2] = word_pack<T>(x[2], x[3]);
        }
        b.p[(cu_warp() * MT + t) * CU_WARP + cu_lane()] = p;
    }
    __syncthreads();
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

/* The values of a slot and of the other one of its pair, in one dim. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ float2 values_at(const struct attend_block<T, MT, NT> &b,
                                                   int tile, int slot, int dim)
{
    const word_of<T> *page = page_at(b, tile, slot / KV_PAGE);
    if constexpr (Q) {
        const float *scale = side_at<Q>(b, tile, slot / KV_PAGE) + 2 * KV_PAGE_Q8 + slot / 2 * 2;
        uint32_t four = page[(KV_PAGE + slot / 2) * b.dim / 2 + dim / 2] >> dim % 2 * 16;
        return make_float2(byte_at(four, 0) * scale[0], byte_at(four, 1) * scale[1]);
    } else {
        return word_unpack<T>(page[(KV_PAGE / 2 + slot % KV_PAGE / 2) * b.dim + dim]);
    }
}

/* Adds infinities and NaN among the tile's values, for the rows that see them. Rare, so slow. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void values_odd(const struct attend_block<T, MT, NT> &b,
                                                  struct attend_sum<MT, NT> *sum, int tile)
{
#pragma unroll 1
    for (int slot = 0; slot < ATTEND_TILE; slot++) {
        if (page_at(b, tile, slot / KV_PAGE) == NULL)
            continue;
        float v[NT * 2]; /* of dims 4q ... 4q+3 of every 16; 0: finite */
#pragma unroll
        for (int n = 0; n < NT * 2; n++) {
            int dim = cu_warp() * 8 * NT + n / 4 * 16 + cu_lane() % 4 * 4 + n % 4;
            float2 pair = make_float2(0, 0);
            if (dim < b.dim)
                pair = values_at<Q>(b, tile, slot, dim);
            v[n] = slot % 2 ? pair.y : pair.x;
            v[n] = fabsf(v[n]) < INFINITY ? 0 : v[n];
        }
        int step = slot / 16, lane = cu_lane() / 4 * 4 + slot % 16 / 4;
#pragma unroll
        for (int i = 0; i < MT * 2; i++) {
            int2 seen = b.shared->seen[i * 8 + cu_lane() / 4];
            if (tile + slot < seen.x || tile + slot >= seen.y)
                continue;
            const attend_fragment<T> *of = &b.p[(step * MT + i / 2) * CU_WARP + lane];
            float2 p = word_unpack<T>(of->w[i % 2 + slot % 4 / 2 * 2]);
#pragma unroll
            for (int n = 0; n < NT * 2; n++)
                if (v[n] != 0)
                    sum->o[i / 2][n / 4 * 2 + n % 2][i % 2 * 2 + n % 4 / 2] +=
                        (slot % 2 ? p.y : p.x) * v[n];
        }
    }
}

/* o += P V. v holds the first steps. careful: some row does not see some slot, whose value may be anything, and 0 times
 * infinity is not 0. So what is not finite is taken out and comes back through values_odd. */
template <bool Q, enum kv_type T, int MT, int NT>
static __device__ __forceinline__ void tile_values(const struct attend_block<T, MT, NT> &b,
                                                   typename attend_block<T, MT, NT>::values *v,
                                                   struct attend_sum<MT, NT> *sum, int tile,
                                                   bool careful)
{
    bool odd = false;
#pragma unroll 1
    for (int step = 0; step < ATTEND_STEPS; step += b.V_AHEAD) {
        if (step > 0)
            values_load<Q>(b, v, tile, step);
#pragma unroll
        for (int i = 0; i < b.V_AHEAD; i++) {
            if constexpr (Q)
                values_unpack(b, v->w[i], tile, step + i);
            if (careful)
#pragma unroll
                for (int j = 0; j < NT * 2; j++)
                    odd |= word_clean<T>(&v->w[i][j / 4][j / 2 % 2].w[j % 2]);
#pragma unroll
            for (int t = 0; t < MT; t++) {
                attend_fragment<T> p = b.p[((step + i) * MT + t) * CU_WARP + cu_lane()];
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    word_of<T> pair[2] = { v->w[i][n / 2][0].w[n % 2], v->w[i][n / 2][1].w[n % 2] };
                    word_mma<T>(sum->o[t][n], p.w, pair);
                }
            }
        }
    }
    if (__any_sync(CU_ALL, odd))
        values_odd<Q>(b, sum, tile);
}

#endif
