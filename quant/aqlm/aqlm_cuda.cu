/* aqlm on the GPU. The format is in aqlm.c, the products in kernels/cuda/matmul.cuh.
 *
 * A lane reads the codes of two rows, four inputs of each codebook's entry, and makes the reference's numbers of them: sums in
 * f32, rounded to f16, times the scale, rounded again. f16 numbers are two bf16 numbers exactly, so that no precision is lost
 * with inputs of three parts. Entries come from L1 where the codebooks fit (2x8g8: 8 KiB a matrix), else from L2 (1x16g8: 1
 * MiB). The shape is that of the variant, read at run time: a kernel for every one of 384 would be too many.
 *
 * Bytes moved: those of the codes, and 8 for four inputs of every entry, from L1 or L2. A load waits for the codes before the
 * entries, with one group on its way: this is bound by latency.
 */
#include "quant/mul_cuda.cuh"

extern "C" {
#include "quant/aqlm/aqlm.h"
}

namespace
{

struct decode : matmul_whole {
    enum { PARTS = 2, RING = 1, SUMS = 0, WIDEST = 64 };

    struct raw {
        uint32_t
            pair[2]
                [4]; /* of a step: f16 numbers of row 2g, inputs (0, 2) and (1, 3), of row 2g + 1 */
    };

    struct walk {
        const cu_matmul *m;
        int panel, group;
    };

    static __device__ __forceinline__ walk start(const cu_matmul &m, int panel, int group)
    {
        walk w = { &m, panel, group };
        return w;
    }

    static __device__ __forceinline__ void go(walk &w, int groups)
    {
        w.group += groups;
    }

    static __device__ __forceinline__ uint32_t to_f16(float v)
    {
        return cu_pack_f16(v, 0) & 0xffff;
    }

    /* Inputs k ... k + 3 of a row, k a multiple of 4, as the bits of f16 numbers. */
    static __device__ __forceinline__ void numbers(const cu_matmul &m, int row, int k,
                                                   uint32_t f16[4])
    {
        struct aqlm_shape s = aqlm_shape(m.variant);
        const uint16_t *entry =
            (const uint16_t *)((const char *)m.plane[1] + sizeof(struct aqlm_head)) + k % s.group;
        size_t cell =
            (size_t)(row / CODEC_PANEL) * (size_t)(m.cols / s.group) + (size_t)(k / s.group);
        const uint8_t *code = (const uint8_t *)m.plane[0] +
                              cell * (size_t)(s.books * CODEC_PANEL * aqlm_code_bytes(s));
        float sum[4] = { 0, 0, 0, 0 };
        for (int book = 0; book < s.books; book++) {
            uint2 four =
                __ldg((const uint2 *)(entry + aqlm_entry(code, s, row % CODEC_PANEL, book) *
                                                  (size_t)s.group));
            sum[0] += cu_f16_low(four.x);
            sum[1] += cu_f16_high(four.x);
            sum[2] += cu_f16_low(four.y);
            sum[3] += cu_f16_high(four.y);
            code += CODEC_PANEL * aqlm_code_bytes(s);
        }
        float scale = cu_f16_low(__ldg((const uint16_t *)m.plane[2] + row));
        for (int i = 0; i < 4; i++)
            f16[i] = to_f16(__fmul_rn(cu_f16_low(to_f16(sum[i])), scale));
    }

    static __device__ __forceinline__ raw load(const walk &w, int ahead)
    {
        raw r;
        int row = w.panel * CODEC_PANEL + cu_lane() / 4 * 2;
        int k = (w.group + ahead) * INPUT_GROUP + cu_lane() % 4 * 4;
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t f16[4];
                numbers(*w.m, row + i, k + step * MATMUL_STEP, f16);
                r.pair[step][2 * i] = f16[0] | f16[2] << 16;
                r.pair[step][2 * i + 1] = f16[1] | f16[3] << 16;
            }
        return r;
    }

    static __device__ __forceinline__ void fragment(const raw &r, int step, uint32_t a[PARTS][4])
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t pair = r.pair[step][i % 2 * 2 + i / 2];
            matmul_split<PARTS>(cu_f16_low(pair), cu_f16_high(pair), a, i);
        }
    }

    static __device__ __forceinline__ void four(const cu_matmul &m, int row, int k, float v[4])
    {
        uint32_t f16[4];
        numbers(m, row, k, f16);
        for (int i = 0; i < 4; i++)
            v[i] = cu_f16_low(f16[i]);
    }
};

} // namespace

const struct codec_cuda aqlm_cuda = { cu_rows<decode>, cu_mul<decode> };
