/* Tensor cores and ldmatrix: all lanes' operands are known to the last one to come, which does the work of the warp.
 *
 * The layouts are those of the PTX ISA, sections "Matrix Fragments for mma.m16n8k16", "... for mma.m16n8k32" and
 * "ldmatrix", and of kernels/cuda/cu.cuh. g is lane / 4, q is lane % 4.
 */
#include <simt_ptx.h>

#include "tests/simt/machine.hh"

#include <string.h>

namespace simt
{

static const simt_fragments *fragments(const warp *w, int lane)
{
    return (const simt_fragments *)(uintptr_t)w->request[lane]->value;
}

struct decode_bf16 {
    static float low(uint32_t pair)
    {
        return __uint_as_float(pair << 16);
    }
    static float high(uint32_t pair)
    {
        return __uint_as_float(pair & 0xffff0000u);
    }
};

struct decode_f16 {
    static float low(uint32_t pair)
    {
        return cu_f16_low(pair);
    }
    static float high(uint32_t pair)
    {
        return cu_f16_high(pair);
    }
};

/* D += A B. The innermost loop is one of eight numbers, for the compiler to make a vector of; the order of k is that of the
 * loop. Sanitizers have nothing to ask of it, as bounds are constants and bytes are multiplied as unsigned: without them
 * the mma of a warp takes 9 us under ASan instead of 34, that of bytes 14 instead of 71. */
template <class number, int K>
__attribute__((no_sanitize("address", "undefined"))) static void multiply(
    const number (&__restrict a)[16][K], const number (&__restrict b)[K][8],
    number (&__restrict d)[16][8])
{
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < 8; n++)
                d[row][n] += a[row][k] * b[k][n];
}

/* Each operand is decoded once. */
template <class decode> static void mma_16bit(const warp *w)
{
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < LANES; lane++) {
        const simt_fragments *f = fragments(w, lane);
        const float *sum = (const float *)f->d;
        int g = lane / 4, q = lane % 4;
        for (int i = 0; i < 4; i++) {
            int row = g + (i & 1) * 8, k = 2 * q + (i >> 1) * 8;
            a[row][k] = decode::low(f->a[i]);
            a[row][k + 1] = decode::high(f->a[i]);
            d[g + (i >> 1) * 8][2 * q + (i & 1)] = sum[i];
        }
        for (int i = 0; i < 2; i++) {
            b[2 * q + 8 * i][g] = decode::low(f->b[i]);
            b[2 * q + 8 * i + 1][g] = decode::high(f->b[i]);
        }
    }
    multiply(a, b, d);
    for (int lane = 0; lane < LANES; lane++) {
        float *sum = (float *)fragments(w, lane)->d;
        for (int i = 0; i < 4; i++)
            sum[i] = d[lane / 4 + (i >> 1) * 8][2 * (lane % 4) + (i & 1)];
    }
}

/* The same on bytes; unsigned, because sums wrap. */
static void mma_8bit(const warp *w)
{
    uint32_t a[16][32], b[32][8], d[16][8];
    for (int lane = 0; lane < LANES; lane++) {
        const simt_fragments *f = fragments(w, lane);
        const int32_t *sum = (const int32_t *)f->d;
        int g = lane / 4, q = lane % 4;
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 4; j++)
                a[g + (i & 1) * 8][4 * q + (i >> 1) * 16 + j] =
                    (uint32_t)(int8_t)(f->a[i] >> 8 * j);
            d[g + (i >> 1) * 8][2 * q + (i & 1)] = (uint32_t)sum[i];
        }
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 4; j++)
                b[4 * q + 16 * i + j][g] = (uint32_t)(int8_t)(f->b[i] >> 8 * j);
    }
    multiply(a, b, d);
    for (int lane = 0; lane < LANES; lane++) {
        int32_t *sum = (int32_t *)fragments(w, lane)->d;
        for (int i = 0; i < 4; i++)
            sum[i] = (int32_t)d[lane / 4 + (i >> 1) * 8][2 * (lane % 4) + (i & 1)];
    }
}

/* Lane l names row l % 8 of tile l / 8; lane (g, q) gets elements 2q and 2q + 1 of row g of each tile, or of column g. */
static void ldmatrix(const warp *w, const simt_request *r, bool transposed)
{
    uint16_t tile[4][8][8];
    for (int lane = 0; lane < LANES; lane++) {
        const void *row = fragments(w, lane)->a;
        simt_check_aligned(row, 16, op_name(r->op), r->file, r->line);
        shared_check(row, 16, r);
        memcpy(tile[lane / 8][lane % 8], row, 16);
    }
    for (int lane = 0; lane < LANES; lane++) {
        uint32_t *out = (uint32_t *)fragments(w, lane)->d;
        int g = lane / 4, k = 2 * (lane % 4);
        for (int i = 0; i < 4; i++) {
            uint32_t low = transposed ? tile[i][k][g] : tile[i][g][k];
            uint32_t high = transposed ? tile[i][k + 1][g] : tile[i][g][k + 1];
            out[i] = high << 16 | low;
        }
    }
}

void mma_perform(warp *w, const simt_request *r)
{
    if (r->op == SIMT_MMA_BF16)
        mma_16bit<decode_bf16>(w);
    else if (r->op == SIMT_MMA_F16)
        mma_16bit<decode_f16>(w);
    else if (r->op == SIMT_MMA_S8)
        mma_8bit(w);
    else
        ldmatrix(w, r, r->op == SIMT_LDMATRIX_TRANS);
}

/* ---- warpgroups -------------------------------------------------------------------------------------------------- */

/* 16 k of the rows of a tile: pieces of 16 bytes are swapped by bits 7 to 9 of the address. */
static std::vector<uint16_t> tile_read(const simt_request *r, uint64_t tile, int columns)
{
    const block *on = &machine.block;
    uint64_t from = tile * 16;
    shared_check(on->arena + from / 1024 * 1024, (size_t)columns * 128, r);
    std::vector<uint16_t> b((size_t)columns * 16); /* a fault leaves behind what a frame holds */
    for (uint64_t i = 0; i < (uint64_t)columns * 2; i++) {
        uint64_t at = from + i / 2 * 128 + i % 2 * 16;
        memcpy(&b[i * 8], on->arena + (at ^ (at >> 7 & 7) << 4), 16);
    }
    return b;
}

/* What d will hold by what is under way for it: it is `value` long. */
static async_product *product_of(thread *t, const simt_wgmma *f)
{
    for (async_product &p : t->products)
        if (p.d == f->d)
            return &p;
    size_t n = (size_t)f->columns / 2;
    t->products.push_back(async_product{ f->d, std::vector<float>(f->d, f->d + n), 0 });
    return &t->products.back();
}

static const simt_wgmma *wgmma_of(const warp *w, int lane)
{
    return (const simt_wgmma *)(uintptr_t)w->request[lane]->value;
}

void wgmma_perform(warp *w, const simt_request *r)
{
    block *on = &machine.block;
    thread *first = &on->threads[(w - on->warps) * LANES];
    const simt_wgmma *f = wgmma_of(w, 0);
    for (int lane = 0; lane < LANES; lane++) {
        const simt_wgmma *own = wgmma_of(w, lane);
        if (own->b != f->b || own->columns != f->columns || own->add != f->add)
            simt_fault(cudaErrorLaunchFailure, r->file, r->line,
                       "%s: lane %d asks for another product than lane 0", op_name(r->op), lane);
    }
    std::vector<uint16_t> tile = tile_read(r, f->b, f->columns);
    float a[16][16];
    async_product *out[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        const simt_wgmma *own = wgmma_of(w, lane);
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + (i & 1) * 8, k = 2 * (lane % 4) + (i >> 1) * 8;
            a[row][k] = decode_bf16::low(own->a[i]);
            a[row][k + 1] = decode_bf16::high(own->a[i]);
        }
        out[lane] = product_of(&first[lane], own);
        out[lane]->group = first[lane].product_groups;
    }
    for (int n = 0; n < f->columns; n += 8) {
        float b[16][8], d[16][8] = {};
        for (int k = 0; k < 16; k++)
            for (int i = 0; i < 8; i++)
                b[k][i] = decode_bf16::low(tile[(size_t)((n + i) * 16 + k)]);
        for (int i = 0; i < LANES * 4 && f->add; i++)
            d[i / 16 + (i >> 1 & 1) * 8][2 * (i / 4 % 4) + (i & 1)] =
                out[i / 4]->value[(size_t)(n / 2 + i % 4)];
        multiply(a, b, d);
        for (int i = 0; i < LANES * 4; i++)
            out[i / 4]->value[(size_t)(n / 2 + i % 4)] =
                d[i / 16 + (i >> 1 & 1) * 8][2 * (i / 4 % 4) + (i & 1)];
    }
    for (int lane = 0; lane < LANES; lane++)
        memory_poison(&machine, out[lane]->d, out[lane]->value.size() * sizeof(float));
    first->tiles.push_back(async_tile{ f->b, std::move(tile), first->product_groups });
}

/* a b + c rounded to bf16 once. The product is exact in a double. The sum and each narrowing round to odd, that is to
 * the neighbour with an odd last bit when inexact, which keeps what the last rounding has to know. */
static uint32_t fma_bf16(float a, float b, float c)
{
    double product = (double)a * b, sum = product + c;
    if (!(fabs(sum) < (double)INFINITY) || sum == 0)
        return simt_bf16((float)sum);
    double back = sum - product, error = (product - (sum - back)) + (c - back);
    float near = (float)sum;
    if (!(fabsf(near) < INFINITY))
        return simt_bf16(near);
    double rest = sum - (double)near;
    rest = rest != 0 ? rest : error;
    uint32_t bits = __float_as_uint(near);
    if (rest != 0 && !(bits & 1))
        bits = near == 0                  ? (rest < 0 ? 0x80000001u : 1u)
               : (rest > 0) == (near > 0) ? bits + 1
                                          : bits - 1;
    return simt_bf16(__uint_as_float(bits));
}

} // namespace simt

cu_tile cu_tile_of(const void *shared, const char *file, int line)
{
    uint32_t at = cu_shared_address(shared);
    simt_check_aligned((const void *)(uintptr_t)at, 1024, "cu_tile_of", file, line);
    return at / 16;
}

void cu_wgmma_commit()
{
    simt::machine.block.now->product_groups++;
}

void simt_wgmma_wait(int n, const char *file, int line)
{
    using namespace simt;
    thread *me = machine.block.now;
    simt_request r = { SIMT_WGMMA_BF16, file, line, 0, 0, 0, 0, 0 };
    size_t left = 0;
    for (const async_tile &t : me->tiles)
        if (t.group + (uint64_t)n < me->product_groups &&
            tile_read(&r, t.tile, (int)t.read.size() / 16) != t.read)
            simt_fault(cudaErrorLaunchFailure, file, line,
                       "cu_wgmma_wait: a tile was written to while a product read it");
    for (async_product &p : me->products) {
        if (p.group + (uint64_t)n < me->product_groups)
            memcpy(p.d, p.value.data(), p.value.size() * sizeof(float));
        else
            std::swap(me->products[left++], p);
    }
    me->products.resize(left);
    while (!me->tiles.empty() && me->tiles.front().group + (uint64_t)n < me->product_groups)
        me->tiles.erase(me->tiles.begin());
}

uint32_t cu_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    using simt::decode_bf16;
    using simt::fma_bf16;
    uint32_t low = fma_bf16(decode_bf16::low(a), decode_bf16::low(b), decode_bf16::low(c));
    uint32_t high = fma_bf16(decode_bf16::high(a), decode_bf16::high(b), decode_bf16::high(c));
    return high << 16 | low;
}
