/* planes on the GPU. The format is in planes.c, the products in kernels/cuda/matmul.cuh.
 *
 * A lane's four inputs are one line of a panel's 32, 4 * step + quad: in a plane of 8 bits a register of its own, in a narrower
 * one a field of a register that several lanes read. Where a code is one plane the field stays where it is: a mask and a power
 * of two, which depend on the lane alone, make bf16 numbers of it, two at a time (q8_cuda.cu says why that is exact). Where it
 * is cut into several planes, these are turned until their fields lie side by side and are joined four codes at a time. The
 * scale, times 64, comes after the group's sum: acc = fma(sum, 64 * scale, acc), then acc = fma(minimum, sum of x, acc). 1 bit
 * has no minimum: its numbers are one half less, its scale doubled.
 *
 * Bytes moved: those of the format; in groups of 64 and 128 scales and minima come 2 and 4 times, from L2. To decode a
 * panel's 32 inputs costs a warp 20 instructions where a code is one plane, 32 where it is two, 40 with three (counted); 288
 * bytes, as 4 bits are, allow 62 for everything on an H200 (q4_cuda.cu), 160, as 2 bits are, 34.
 */
#include "quant/mul_cuda.cuh"

extern "C" {
#include "quant/planes/planes.h"
}

namespace
{

enum { REGISTER = CODEC_PANEL * 4 }; /* bytes: a line of 8 bits, two of 4, ... */

template <int BITS> struct decode : matmul_bare {
    enum {
        PARTS = 1,
        SUMS = BITS > 1,
        ALONE = (BITS & (BITS - 1)) == 0,               /* a code is one plane */
        CODES = REGISTER * BITS,                        /* bytes of a panel's 32 inputs */
        NUMBERS = (BITS > 1 ? 2 : 1) * CODEC_PANEL * 2, /* bytes of a panel's group */
        /* registers that a lane reads: two of a plane, but the only one of 1 bit */
        REGISTERS = ((BITS >> 3 & 1) + (BITS >> 2 & 1) + (BITS >> 1 & 1)) * 2 + (BITS & 1),
        RING = BITS == 1 ? 3 : 6 / REGISTERS
    };

    struct raw {
        uint2 code[REGISTERS]; /* row 2g, row 2g + 1 */
        uint32_t scale, minimum;
    };

    struct walk {
        const char *code, *number;
        int height;       /* panels of the unit: cells from a group to the next */
        int group, widen; /* group >> widen: that of the numbers */
    };

    /* The panel's first group. */
    static __device__ __forceinline__ walk panel_of(const cu_matmul &m, int panel)
    {
        int unit = panel / TILE_PANELS, within = panel % TILE_PANELS;
        walk w;
        w.height = min((int)TILE_PANELS, m.panels - unit * TILE_PANELS);
        w.widen = m.variant % 4;
        w.group = 0;
        size_t before = (size_t)unit * TILE_PANELS;
        w.code = (const char *)m.plane[0] + (before * (size_t)m.groups + (size_t)within) * CODES;
        w.number = (const char *)m.plane[1] +
                   (before * (size_t)(m.groups >> w.widen) + (size_t)within) * NUMBERS;
        return w;
    }

    static __device__ __forceinline__ walk start(const cu_matmul &m, int panel, int group)
    {
        walk w = panel_of(m, panel);
        int row = cu_lane() / 4;
        w.group = group;
        w.code += (size_t)group * (size_t)(w.height * CODES) + row * sizeof(uint2);
        w.number += row * sizeof(uint32_t);
        return w;
    }

    static __device__ __forceinline__ void go(walk &w, int groups)
    {
        w.code += groups * w.height * CODES;
        w.group += groups;
    }

    /* Of a plane of `width` bits, the register of the lane's line, and where in its bytes the line is. */
    static __device__ __forceinline__ int place(int width, int step)
    {
        return (4 * step + cu_lane() % 4) / (8 / width);
    }
    static __device__ __forceinline__ int shift(int width, int step)
    {
        return (4 * step + cu_lane() % 4) % (8 / width) * width;
    }

    static __device__ __forceinline__ raw load(const walk &w, int ahead)
    {
        raw r;
        const char *code = w.code + ahead * w.height * CODES;
        const char *number = w.number + ((w.group + ahead) >> w.widen) * w.height * NUMBERS;
        int n = 0;
#pragma unroll
        for (int width = 8; width > 0; width /= 2) {
            if ((BITS & width) == 0)
                continue;
#pragma unroll
            for (int step = 0; step < (width == 1 ? 1 : 2); step++)
                r.code[n++] = matmul_load((const uint2 *)(code + place(width, step) * REGISTER));
            code += width * REGISTER;
        }
        r.scale = matmul_load((const uint32_t *)number);
        r.minimum = BITS > 1 ? matmul_load((const uint32_t *)number + CODEC_PANEL / 2) : 0;
        return r;
    }

    /* A row's line, a code in the low bits of each byte; of one plane, as it lies there. Bits above are others'. */
    static __device__ __forceinline__ uint32_t line(const raw &r, int step, int row)
    {
        uint32_t codes = 0;
        int n = 0, at = 0;
#pragma unroll
        for (int width = 8; width > 0; width /= 2) {
            if ((BITS & width) == 0)
                continue;
            uint2 two = r.code[n + (width == 1 ? 0 : step)];
            uint32_t part = row == 0 ? two.x : two.y;
            uint32_t below = 0x01010101u * ((1u << at) - 1);
            if (!ALONE)
                part = __funnelshift_r(part, part, (unsigned)(shift(width, step) - at));
            codes = (codes & below) | (part & ~below);
            n += 2;
            at += width;
        }
        return codes;
    }

    /* Codes / 64 of bytes 0 and 2, `at` bits up in them; 8 bits less the 128 of the format, 1 bit less a half. */
    static __device__ __forceinline__ uint32_t pair(uint32_t codes, int at)
    {
        const uint32_t less = BITS == 8 ? 0xc000c000u : BITS == 1 ? 0xbc00bc00u : 0;
        uint32_t mask = 0x00010001u * ((1u << BITS) - 1) << at;
        return cu_fma_bf16x2(codes & mask, 0x7f007f00u - 0x00800080u * (unsigned)at,
                             less); /* 2^(127 - at) */
    }

    static __device__ __forceinline__ void fragment(const raw &r, int step, uint32_t a[PARTS][4])
    {
        int at = ALONE ? shift(BITS, step) : 0;
#pragma unroll
        for (int row = 0; row < 2; row++) {
            uint32_t codes = line(r, step, row);
            a[0][row] = pair(codes, at);
            a[0][row + 2] = pair(codes >> 8, at);
        }
    }

    static __device__ __forceinline__ void finish(const raw &r, const float part[4],
                                                  const float sum[2], float acc[4])
    {
        matmul_scale<(BITS > 1)>(r.scale, r.minimum, BITS == 1 ? 128 : 64, part, sum, acc);
    }

    static __device__ __forceinline__ void four(const cu_matmul &m, int row, int k, float v[4])
    {
        walk w = panel_of(m, row / CODEC_PANEL);
        int group = k / INPUT_GROUP, r = row % CODEC_PANEL, j = k % INPUT_GROUP / 4;
        const char *code = w.code + (size_t)group * (size_t)(w.height * CODES) + r * 4;
        uint32_t codes = 0;
        int at = 0;
#pragma unroll
        for (int width = 8; width > 0; width /= 2) {
            if ((BITS & width) == 0)
                continue;
            uint32_t part = *(const uint32_t *)(code + j / (8 / width) * REGISTER);
            part = part >> j % (8 / width) * width & 0x01010101u * ((1u << width) - 1);
            codes |= part << at;
            at += width;
            code += width * REGISTER;
        }
        const uint16_t *number =
            (const uint16_t *)(w.number + (group >> w.widen) * w.height * NUMBERS) + r;
        float d = cu_f16_low(number[0]);
        float least = BITS == 1 ? -d : cu_f16_low(number[CODEC_PANEL]);
        for (int i = 0; i < 4; i++)
            v[i] = fmaf((float)((int)(codes >> 8 * i & 255) - (BITS == 8 ? 128 : 0)),
                        BITS == 1 ? 2 * d : d, least);
    }
};

void rows(struct be *be, const struct weight *w, const int32_t *id, int n, float *x)
{
    static void (*const of[PLANES_BITS])(struct be *, const struct weight *, const int32_t *, int,
                                         float *) = {
        cu_rows<decode<1>>, cu_rows<decode<2>>, cu_rows<decode<3>>, cu_rows<decode<4>>,
        cu_rows<decode<5>>, cu_rows<decode<6>>, cu_rows<decode<7>>, cu_rows<decode<8>>,
    };
    of[planes_bits(w) - 1](be, w, id, n, x);
}

void mul(struct be *be, const struct input *in, const struct matmul *to, int n_to)
{
    static void (*const of[PLANES_BITS])(struct be *, const struct input *, const struct matmul *,
                                         int) = {
        cu_mul<decode<1>>, cu_mul<decode<2>>, cu_mul<decode<3>>, cu_mul<decode<4>>,
        cu_mul<decode<5>>, cu_mul<decode<6>>, cu_mul<decode<7>>, cu_mul<decode<8>>,
    };
    of[planes_bits(to[0].w) - 1](be, in, to, n_to);
}

} // namespace

const struct codec_cuda planes_cuda = { rows, mul };
