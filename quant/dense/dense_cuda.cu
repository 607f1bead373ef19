/* dense on the GPU. The format is in dense.c, the products in kernels/cuda/matmul.cuh.
 *
 * A lane takes rows 2g and 2g+1 of its inputs, one word each (two for f32); two words become the pairs of inputs of two
 * rows by two byte permutations. bf16 weights are multiplied as they are, f16 as two and f32 as three bf16 numbers whose
 * sum they are, so that no precision is lost with inputs of three parts.
 *
 * Of bf16 a lane loads inputs 4i + q, so that a warp's load lies in one line of 128 bytes instead of four, and the lanes of a
 * quad exchange them for their own, 4q ... 4q+3: 128256 x 4096 went from 3362 to 4181 GB/s on an H200. Where words are split
 * into parts, instructions are what bounds, and the exchange costs 4 to 12 %.
 *
 * Bytes moved: 2 or 4 a weight. A group of a bf16 panel, 1024 bytes, costs a warp 68 instructions, counted for sm_90 and
 * up to 8 rows of x in one part, 24 of them the exchange and 8 decoding; an H200's memory allows 220 for everything: 18.6 bytes
 * a clock and multiprocessor, 4 instructions.
 */
#include "quant/mul_cuda.cuh"

extern "C" {
#include "quant/dense/dense.h"
}

namespace
{

/* Lane q of a quad has w[i] = (i, q) of a square of 4 x 4 and gets w[i] = (q, i). */
__device__ __forceinline__ void turn_square(uint32_t w[4])
{
#pragma unroll
    for (int by = 2; by > 0; by /= 2) {
        bool upper = cu_lane() & by;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & by)
                continue;
            uint32_t away = upper ? w[i] : w[i + by];
            uint32_t back = __shfl_xor_sync(CU_ALL, away, by);
            w[i] = upper ? back : w[i];
            w[i + by] = upper ? w[i + by] : back;
        }
    }
}

/* The two rows of one input: what is loaded, and how two inputs become words of fragments (i: of row 2g, i + 1: of row
 * 2g + 1). */
template <int VARIANT> struct element;

template <> struct element<DENSE_BF16> {
    enum { PARTS = 1, RING = 3, TURNED = 1 }; /* TURNED: lanes of a quad load each other's inputs */
    typedef uint32_t rows;

    static __device__ __forceinline__ rows zero()
    {
        return 0;
    }
    static __device__ __forceinline__ void pair(rows k, rows l, uint32_t a[PARTS][4], int i)
    {
        a[0][i] = __byte_perm(k, l, 0x5410);
        a[0][i + 1] = __byte_perm(k, l, 0x7632);
    }
    static __device__ __forceinline__ float one(const void *plane, size_t at)
    {
        return cu_bf16_low(((const uint16_t *)plane)[at]);
    }
};

template <> struct element<DENSE_F16> {
    enum { PARTS = 2, RING = 2, TURNED = 0 };
    typedef uint32_t rows;

    static __device__ __forceinline__ rows zero()
    {
        return 0;
    }
    static __device__ __forceinline__ void pair(rows k, rows l, uint32_t a[PARTS][4], int i)
    {
        matmul_split<PARTS>(cu_f16_low(k), cu_f16_low(l), a, i);
        matmul_split<PARTS>(cu_f16_high(k), cu_f16_high(l), a, i + 1);
    }
    static __device__ __forceinline__ float one(const void *plane, size_t at)
    {
        return cu_f16_low(((const uint16_t *)plane)[at]);
    }
};

template <> struct element<DENSE_F32> {
    enum { PARTS = 3, RING = 1, TURNED = 0 };
    typedef float2 rows;

    static __device__ __forceinline__ rows zero()
    {
        return make_float2(0, 0);
    }
    static __device__ __forceinline__ void pair(rows k, rows l, uint32_t a[PARTS][4], int i)
    {
        matmul_split<PARTS>(k.x, l.x, a, i);
        matmul_split<PARTS>(k.y, l.y, a, i + 1);
    }
    static __device__ __forceinline__ float one(const void *plane, size_t at)
    {
        return ((const float *)plane)[at];
    }
};

template <int VARIANT> struct decode : matmul_whole {
    typedef element<VARIANT> el;
    enum { PARTS = el::PARTS, RING = el::RING, SUMS = 0, WIDEST = el::PARTS == 1 ? 128 : 64 };
    enum { APART = el::TURNED ? 1 : 4 }; /* inputs, from lane to lane of a quad */

    struct raw {
        typename el::rows w[8]; /* inputs 4q ... 4q+3, 16+4q ...; TURNED: 4i + q */
    };

    struct walk {
        const typename el::rows *w; /* of input 4q; TURNED: q */
        int left;                   /* inputs from the group's first on */
    };

    static __device__ __forceinline__ walk start(const cu_matmul &m, int panel, int group)
    {
        int row = cu_lane() / 4, quad = cu_lane() % 4;
        size_t k = (size_t)panel * (size_t)m.cols + (size_t)(group * MATMUL_GROUP + quad * APART);
        walk w = { (const typename el::rows *)m.plane[0] + k * (CODEC_PANEL / 2) + row,
                   m.cols - group * MATMUL_GROUP };
        return w;
    }

    static __device__ __forceinline__ void go(walk &w, int groups)
    {
        w.w += groups * MATMUL_GROUP * (CODEC_PANEL / 2);
        w.left -= groups * MATMUL_GROUP;
    }

    static __device__ __forceinline__ raw load(const walk &w, int ahead)
    {
        raw r;
        int left = w.left - ahead * MATMUL_GROUP;
        bool whole = left >= MATMUL_GROUP;
        left -= cu_lane() % 4 * APART;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            r.w[i] = el::zero();
            int k = el::TURNED ? 4 * i : i / 4 * MATMUL_STEP + i % 4;
            if (whole || k < left)
                r.w[i] = matmul_load(w.w + (ahead * MATMUL_GROUP + k) * (CODEC_PANEL / 2));
        }
        return r;
    }

    static __device__ __forceinline__ void fragment(const raw &r, int step, uint32_t a[PARTS][4])
    {
        typename el::rows w[4] = { r.w[4 * step], r.w[4 * step + 1], r.w[4 * step + 2],
                                   r.w[4 * step + 3] };
        if constexpr (el::TURNED)
            turn_square(w);
        el::pair(w[0], w[2], a, 0);
        el::pair(w[1], w[3], a, 2);
    }

    static __device__ __forceinline__ void four(const cu_matmul &m, int row, int k, float v[4])
    {
        size_t panel = (size_t)(row / CODEC_PANEL);
        for (int i = 0; i < 4; i++) {
            size_t at = (panel * (size_t)m.cols + (size_t)(k + i)) * CODEC_PANEL;
            v[i] = k + i < m.cols ? el::one(m.plane[0], at + (size_t)(row % CODEC_PANEL)) : 0;
        }
    }
};

} // namespace

const struct codec_cuda dense_cuda = { cu_rows_of<decode, DENSE_F32, DENSE_F16, DENSE_BF16>,
                                       cu_mul_of<decode, DENSE_F32, DENSE_F16, DENSE_BF16> };
