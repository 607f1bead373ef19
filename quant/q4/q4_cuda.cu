/* q4 and q4m on the GPU. The format is in q4.c, the products in kernels/cuda/matmul.cuh.
 *
 * A lane takes two rows' four bytes of a line in one load of 8 bytes; a warp's load is a whole group of a panel. A word is
 * two steps of 16 inputs, its low and its high nibbles. Nibbles become bf16 numbers, exactly, two at a time by a mask and a
 * multiplication: the lower byte of a bf16 number, alone, is its value * 2^-133 (q8_cuda.cu says why), so that times 2^127 a low
 * nibble, and times 2^123 a high one, is code / 64. The scale, times 64, comes after the group's sum: acc = fma(sum,
 * 64 * scale, acc), and in q4m acc = fma(minimum, sum of x, acc).
 *
 * Bytes moved: 4.5 or 5 bits a weight. A group of a panel, 288 bytes (320), costs a warp 35 instructions (q4m 41), counted
 * for sm_90 and up to 8 rows of x in one part, 18 of them decoding; an H200's memory allows 62 (69) for everything: 18.6
 * bytes a clock and multiprocessor, 4 instructions.
 */
#include "quant/mul_cuda.cuh"

extern "C" {
#include "quant/q4/q4.h"
}

namespace
{

template <int VARIANT> struct decode : matmul_bare {
    enum { PARTS = 1, RING = VARIANT == Q4_MIN ? 4 : 5, SUMS = VARIANT == Q4_MIN };

    struct raw {
        uint2 code; /* row 2g, row 2g + 1 */
        uint32_t scale, minimum;
    };

    struct walk {
        const uint2 *code;
        const uint32_t *number;
    };

    enum { NUMBERS = (VARIANT == Q4_MIN ? 2 : 1) * CODEC_PANEL }; /* of a panel's group */

    static __device__ __forceinline__ walk start(const cu_matmul &m, int panel, int group)
    {
        size_t cell = (size_t)panel * (size_t)m.groups + (size_t)group;
        int row = cu_lane() / 4, quad = cu_lane() % 4;
        walk w = { (const uint2 *)m.plane[0] + cell * (Q4_CODES / 8) + (quad * 8 + row),
                   (const uint32_t *)m.plane[1] + cell * (NUMBERS / 2) + row };
        return w;
    }

    static __device__ __forceinline__ void go(walk &w, int groups)
    {
        w.code += groups * (Q4_CODES / 8);
        w.number += groups * (NUMBERS / 2);
    }

    static __device__ __forceinline__ raw load(const walk &w, int ahead)
    {
        raw r;
        const uint32_t *number = w.number + ahead * (NUMBERS / 2);
        r.code = matmul_load(w.code + ahead * (Q4_CODES / 8));
        r.scale = matmul_load(number);
        r.minimum = VARIANT == Q4_MIN ? matmul_load(number + CODEC_PANEL / 2) : 0;
        return r;
    }

    /* code / 64, less the eighth that 8 stands for, of the low (step 0) or high nibbles of bytes 0 and 2. */
    static __device__ __forceinline__ uint32_t pair(uint32_t four, int step)
    {
        uint32_t less = VARIANT == Q4_MIN ? 0 : 0xbe00be00u;                     /* -1/8 */
        return step == 0 ? cu_fma_bf16x2(four & 0x000f000fu, 0x7f007f00u, less)  /* 2^127 */
                         : cu_fma_bf16x2(four & 0x00f000f0u, 0x7d007d00u, less); /* 2^123 */
    }

    static __device__ __forceinline__ void fragment(const raw &r, int step, uint32_t a[PARTS][4])
    {
        a[0][0] = pair(r.code.x, step);
        a[0][1] = pair(r.code.y, step);
        a[0][2] = pair(r.code.x >> 8, step);
        a[0][3] = pair(r.code.y >> 8, step);
    }

    static __device__ __forceinline__ void finish(const raw &r, const float part[4],
                                                  const float sum[2], float acc[4])
    {
        matmul_scale<VARIANT == Q4_MIN>(r.scale, r.minimum, 64, part, sum, acc);
    }

    static __device__ __forceinline__ void four(const cu_matmul &m, int row, int k, float v[4])
    {
        size_t cell = (size_t)(row / CODEC_PANEL) * (size_t)m.groups + (size_t)(k / INPUT_GROUP);
        int r = row % CODEC_PANEL;
        uint32_t code =
            ((const uint32_t *)m.plane[0])[cell * (Q4_CODES / 4) + (size_t)(k % 16 / 4 * 16 + r)];
        code >>= k % INPUT_GROUP / 16 * 4;
        const uint16_t *number = (const uint16_t *)m.plane[1] + cell * NUMBERS + r;
        float d = cu_f16_low(number[0]);
        float least = VARIANT == Q4_MIN ? cu_f16_low(number[CODEC_PANEL]) : -8 * d;
        for (int i = 0; i < 4; i++)
            v[i] = fmaf((float)(code >> 8 * i & 15), d, least);
    }
};

} // namespace

const struct codec_cuda q4_cuda = { cu_rows_of<decode, Q4_PLAIN, Q4_MIN>,
                                    cu_mul_of<decode, Q4_PLAIN, Q4_MIN> };
