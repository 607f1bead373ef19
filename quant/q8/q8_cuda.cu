/* q8 on the GPU. The format is in q8.c, the products in kernels/cuda/matmul.cuh.
 *
 * A lane takes two rows' four codes of a quad in one load of 8 bytes; a warp's load is 256 bytes in a row. Codes become
 * bf16 integers, exactly, two at a time by a mask and a multiplication: the bits of a byte, read as bf16, are code * 2^-133,
 * since the numbers below the smallest normal one go on evenly up to twice its size. That times 2^127, less 2, is
 * (code - 128) / 64. The scale, times 64, comes after the group's sum: acc = fma(sum, 64 * scale, acc).
 *
 * Bytes moved: 8.5 bits a weight. A group of a panel, 544 bytes, costs a warp 36 instructions, counted for sm_90 and up to
 * 8 rows of x in one part, 20 of them decoding; an H200's memory allows 117 for everything: 18.6 bytes a clock and
 * multiprocessor, 4 instructions.
 */
#include "quant/mul_cuda.cuh"

extern "C" {
#include "quant/q8/q8.h"
}

namespace
{

struct decode : matmul_bare {
    enum { PARTS = 1, RING = 4, SUMS = 0 };

    struct raw {
        uint2 code[2]; /* of 16 inputs: row 2g, row 2g + 1 */
        uint32_t scale;
    };

    struct walk {
        const uint2 *code;
        const uint32_t *scale;
    };

    static __device__ __forceinline__ walk start(const cu_matmul &m, int panel, int group)
    {
        size_t cell = (size_t)panel * (size_t)m.groups + (size_t)group;
        int row = cu_lane() / 4, quad = cu_lane() % 4;
        walk w = { (const uint2 *)m.plane[0] + cell * (Q8_CODES / 8) + (quad * 8 + row),
                   (const uint32_t *)m.plane[1] + cell * (CODEC_PANEL / 2) + row };
        return w;
    }

    static __device__ __forceinline__ void go(walk &w, int groups)
    {
        w.code += groups * (Q8_CODES / 8);
        w.scale += groups * (CODEC_PANEL / 2);
    }

    static __device__ __forceinline__ raw load(const walk &w, int ahead)
    {
        raw r;
        const uint2 *code = w.code + ahead * (Q8_CODES / 8);
        r.code[0] = matmul_load(code);
        r.code[1] = matmul_load(code + Q8_CODES / 16);
        r.scale = matmul_load(w.scale + ahead * (CODEC_PANEL / 2));
        return r;
    }

    /* (code - 128) / 64 of bytes 0 and 2. */
    static __device__ __forceinline__ uint32_t pair(uint32_t four)
    {
        return cu_fma_bf16x2(four & 0x00ff00ffu, 0x7f007f00u, 0xc000c000u); /* 2^127, -2 */
    }

    static __device__ __forceinline__ void fragment(const raw &r, int step, uint32_t a[PARTS][4])
    {
        a[0][0] = pair(r.code[step].x);
        a[0][1] = pair(r.code[step].y);
        a[0][2] = pair(r.code[step].x >> 8);
        a[0][3] = pair(r.code[step].y >> 8);
    }

    static __device__ __forceinline__ void finish(const raw &r, const float part[4],
                                                  const float sum[2], float acc[4])
    {
        matmul_scale<false>(r.scale, 0, 64, part, sum, acc);
    }

    static __device__ __forceinline__ void four(const cu_matmul &m, int row, int k, float v[4])
    {
        size_t cell = (size_t)(row / CODEC_PANEL) * (size_t)m.groups + (size_t)(k / INPUT_GROUP);
        int r = row % CODEC_PANEL;
        uint32_t code =
            ((const uint32_t *)
                 m.plane[0])[cell * (Q8_CODES / 4) + (size_t)(k % INPUT_GROUP / 4 * 16 + r)];
        float d = cu_f16_low(((const uint16_t *)m.plane[1])[cell * CODEC_PANEL + (size_t)r]);
        for (int i = 0; i < 4; i++)
            v[i] = (float)((int)(code >> 8 * i & 255) - 128) * d;
    }
};

} // namespace

const struct codec_cuda q8_cuda = { cu_rows<decode>, cu_mul<decode> };
