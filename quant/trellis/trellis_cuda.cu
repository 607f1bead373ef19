/* trellis on the GPU. The format is in trellis.c, the products in kernels/cuda/matmul.cuh; the input is rotated.
 *
 * A block begins with a table of all windows' weights in shared memory, 4096 bf16 numbers. A lane has two rows, which are
 * neighbours on a line of the unit, and four columns: the bytes of the lanes that their windows reach into become a word
 * for each column, of which a shift and a mask cut out both rows' windows. The scale comes after the group's sum: acc =
 * fma(sum, scale, acc).
 *
 * A byte of codes has rows of 2 or 4 panels and of their neighbours' windows, so a panel's warp reads the lines of 4 or 8: up
 * to 8 times the bytes of the format, though not from memory. They come through L1, where a warp's two panels meet, and
 * from L2. The table is a bound: 32 lanes look up at random, which meets a bank 3.4 times on average, so a multiprocessor
 * decodes 9.4 weights a clock at best (counted); a GPU's memory brings it 75 of 2 bits, 37 of 4. An H200 decodes half of that,
 * 1.1e12 weights a second in 128256 x 4096 of 2 bits (measured); what takes the other half is not known.
 */
#include "quant/mul_cuda.cuh"

extern "C" {
#include "quant/trellis/trellis.h"
}

namespace
{

enum { WINDOWS = 4096 };

constexpr struct trellis_table tables[TRELLIS_MOST - TRELLIS_LEAST + 1] = {
#include "quant/trellis/table.inc"
};

/* The weights of all windows as bf16, made by the compiler. */
struct alignas(16) window_table {
    uint16_t number[WINDOWS];
};

constexpr uint16_t bf16_of(int x) /* exact: of at most 8 bits */
{
    uint16_t sign = x < 0 ? 0x8000 : 0;
    int size = x < 0 ? -x : x, exponent = 127;
    if (size == 0)
        return 0;
    for (; size >> 1 >> (exponent - 127) != 0;)
        exponent++;
    return (uint16_t)(sign | exponent << 7 | (size << (134 - exponent) & 127));
}

constexpr window_table windows_of(int bits)
{
    window_table t = {};
    for (int i = 0; i < WINDOWS; i++)
        t.number[i] = bf16_of(trellis_value(&tables[bits - TRELLIS_LEAST], i) - TRELLIS_ZERO);
    return t;
}

__device__ const window_table window_tables[TRELLIS_MOST - TRELLIS_LEAST + 1] = { windows_of(2),
                                                                                  windows_of(3),
                                                                                  windows_of(4) };

template <int BITS> struct decode {
    enum {
        PARTS = 1,
        RING = 1,
        SUMS = 0,
        WIDEST = 64,
        FIELDS = BITS == 4 ? 2 : 4, /* positions of a lane of the format */
        LINES = BITS == 4 ? 4 : 2,  /* that those lanes are dealt out to */
        OWN = BITS == 4 ? 4 : 2,    /* bits that a position's shift grows by */
        UNIT_PANELS = TRELLIS_UNIT / CODEC_PANEL
    };

    /* Four columns of the two rows: words of bytes, one a column. */
    struct quad {
        uint2 own;        /* the rows' lanes */
        uint32_t next[2]; /* the lanes behind them */
        uint32_t more
            [3]; /* 2 bits: the lane two behind that of row 2g + 1; 3 bits: the high bits of three places */
    };

    struct raw {
        quad step[2];
        uint32_t scale;
        int turn; /* 4 * line + field */
    };

    struct walk {
        const char *codes; /* the lane's own */
        uint32_t scale;
        int next[2], more[2]; /* bytes from there on */
        int quad;             /* bytes of a quad */
        int turn;
    };

    /* Rows `row`, which is even, and row + 1 of a panel, in the first quad. */
    static __device__ __forceinline__ walk locate(const cu_matmul &m, int panel, int row)
    {
        int unit = panel / UNIT_PANELS;
        int width =
            min((int)UNIT_PANELS, m.panels - unit * UNIT_PANELS) * CODEC_PANEL / (FIELDS * LINES);
        row += panel % UNIT_PANELS * CODEC_PANEL;
        int line = row / width % LINES, place = row % width, field = row / width / LINES;
        int own = line * width + place;
        int turned = place + 2 < width ? place + 2 : 0;
        walk w;
        w.quad = width * 4 * BITS;
        w.codes = (const char *)m.plane[0] + own * 4 +
                  (size_t)unit * (TRELLIS_UNIT * BITS / 2) * (size_t)(m.cols / 4);
        w.scale =
            __ldg((const uint32_t *)m.plane[1] + (panel * CODEC_PANEL + row % CODEC_PANEL) / 2);
        bool last = line == LINES - 1;
        w.next[0] = ((last ? place + 1 : own + width) - own) * 4;
        w.next[1] = ((last ? turned : own + width + 1) - own) * 4;
        w.more[0] = (2 * width + place - own) * 4;
        w.more[1] = ((BITS == 3 ? 2 * width : line * width) + turned - own) * 4;
        w.turn = line * 4 + field;
        return w;
    }

    static __device__ __forceinline__ walk start(const cu_matmul &m, int panel, int group)
    {
        walk w = locate(m, panel, cu_lane() / 4 * 2);
        w.codes += (size_t)(group * (INPUT_GROUP / 4) + cu_lane() % 4) * (size_t)w.quad;
        return w;
    }

    static __device__ __forceinline__ void go(walk &w, int groups)
    {
        w.codes += groups * (INPUT_GROUP / 4) * w.quad;
    }

    static __device__ __forceinline__ quad load_quad(const walk &w, const char *own)
    {
        quad q;
        q.own = __ldg((const uint2 *)own);
        q.next[0] = __ldg((const uint32_t *)(own + w.next[0]));
        q.next[1] = __ldg((const uint32_t *)(own + w.next[1]));
        uint2 two = BITS == 3 ? __ldg((const uint2 *)(own + w.more[0])) : make_uint2(0, 0);
        q.more[0] = two.x;
        q.more[1] = two.y;
        q.more[2] = BITS < 4 ? __ldg((const uint32_t *)(own + w.more[1])) : 0;
        return q;
    }

    static __device__ __forceinline__ raw load(const walk &w, int ahead)
    {
        const char *own = w.codes + ahead * (INPUT_GROUP / 4) * w.quad;
        raw r;
        r.step[0] = load_quad(w, own);
        r.step[1] = load_quad(w, own + 4 * w.quad);
        r.scale = w.scale;
        r.turn = w.turn;
        return r;
    }

    /* Bytes i of a, b, c and d for i = 0 ... 3: a word for each column. */
    static __device__ __forceinline__ void columns(uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                                                   uint32_t column[4])
    {
        uint32_t low = __byte_perm(a, b, 0x5140), high = __byte_perm(a, b, 0x7362);
        uint32_t low2 = __byte_perm(c, d, 0x5140), high2 = __byte_perm(c, d, 0x7362);
        column[0] = __byte_perm(low, low2, 0x5410);
        column[1] = __byte_perm(low, low2, 0x7632);
        column[2] = __byte_perm(high, high2, 0x5410);
        column[3] = __byte_perm(high, high2, 0x7632);
    }

    /* The windows of both rows and four columns. */
    static __device__ __forceinline__ void windows(const quad &q, int turn, uint32_t window[2][4])
    {
        uint32_t stream[4], high[4];
        int shift = turn % 4 * OWN;
        columns(q.own.x, q.next[0], q.own.y, q.next[1], stream);
        if (BITS == 3)
            columns(q.more[0], q.more[1], q.more[2], 0, high);
#pragma unroll
        for (int c = 0; c < 4; c++)
#pragma unroll
            for (int row = 0; row < 2; row++) {
                uint32_t beyond = BITS == 2 ? q.more[2] >> 8 * c : 0;
                uint32_t bits = __funnelshift_r(stream[c], beyond, (unsigned)(shift + 16 * row));
                window[row][c] = BITS == 3 ? (bits & 255) | (high[c] >> (turn + 8 * row) & 15) << 8
                                           : bits & (WINDOWS - 1);
            }
    }

    static __device__ __forceinline__ uint16_t *table()
    {
        CU_SHARED(uint16_t, number, WINDOWS);
        return number;
    }

    static __device__ __forceinline__ void open()
    {
        enum { PIECES = sizeof(window_table) / sizeof(uint4) };
        const uint4 *from = (const uint4 *)window_tables[BITS - TRELLIS_LEAST].number;
        for (unsigned i = threadIdx.x; i < PIECES; i += blockDim.x)
            ((uint4 *)table())[i] = __ldg(from + i);
        __syncthreads();
    }

    static __device__ __forceinline__ void fragment(const raw &r, int step, uint32_t a[PARTS][4])
    {
        const uint16_t *number = table();
        uint32_t window[2][4];
        windows(r.step[step], r.turn, window);
#pragma unroll
        for (int row = 0; row < 2; row++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                a[0][row + 2 * i] =
                    __byte_perm(number[window[row][i]], number[window[row][i + 2]], 0x5410);
    }

    static __device__ __forceinline__ void finish(const raw &r, const float part[4],
                                                  const float sum[2], float acc[4])
    {
        matmul_scale<false>(r.scale, 0, 1, part, sum, acc);
    }

    static __device__ __forceinline__ void four(const cu_matmul &m, int row, int k, float v[4])
    {
        walk w = locate(m, row / CODEC_PANEL, row % CODEC_PANEL / 2 * 2);
        quad q = load_quad(w, w.codes + (size_t)(k / 4) * (size_t)w.quad);
        float d = cu_f16_low(w.scale >> 16 * (row % 2));
        uint32_t window[2][4];
        windows(q, w.turn, window);
        for (int i = 0; i < 4; i++)
            v[i] = cu_bf16_low(window_tables[BITS - TRELLIS_LEAST]
                                   .number[row % 2 ? window[1][i] : window[0][i]]) *
                   d;
    }
};

} // namespace

const struct codec_cuda trellis_cuda = { cu_rows_of<decode, 2, 3, 4>, cu_mul_of<decode, 2, 3, 4> };
