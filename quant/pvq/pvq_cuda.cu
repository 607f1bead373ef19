/* pvq on the GPU. The format is in pvq.c and pyramid.h, the products in kernels/cuda/matmul.cuh; the input is rotated.
 *
 * A lane has four elements of the points of two rows, and finds them as pyramid.h says: two searches for its quarter, one
 * for its pairs, in tables of counts instead of the CPU's tables of points; the four lanes of a quad add up the norm. Weights
 * are f32 numbers, as three bf16 each, since the scale changes with every 16 inputs.
 *
 * Bytes moved: those of the format. Bound by far by searching: some 500 instructions for a lane's four weights (estimated).
 */
#include "quant/mul_cuda.cuh"

extern "C" {
#include "quant/pvq/pvq.h"
}

namespace
{

/* V(2^level, k), and where the points of P(2^level, k) whose first half has i pulses begin. */
struct counts {
    uint64_t count[PYRAMID_LEVELS][PYRAMID_K + 1];
    uint64_t base[PYRAMID_LEVELS][PYRAMID_K + 1][PYRAMID_K + 2];
};

constexpr counts make_counts()
{
    counts c = {};
    for (int k = 0; k <= PYRAMID_K; k++)
        c.count[1][k] = k == 0 ? 1 : 4 * (uint64_t)k;
    for (int level = 2; level < PYRAMID_LEVELS; level++)
        for (int k = 0; k <= PYRAMID_K; k++) {
            for (int i = 0; i <= k; i++)
                c.base[level][k][i + 1] =
                    c.base[level][k][i] + c.count[level - 1][i] * c.count[level - 1][k - i];
            c.count[level][k] = c.base[level][k][k + 1];
        }
    return c;
}

__device__ const counts points = make_counts();

__device__ const struct pvq_form forms[PVQ_FORMS] = {
#include "quant/pvq/forms.inc"
};

/* Number i of P(2^level, k) becomes that of its first or second half, k the half's pulses. */
__device__ __forceinline__ void descend(int level, bool second, int &k, uint64_t &i)
{
    const uint64_t *base = points.base[level][k];
    int a = 0, end = k + 1; /* base[a] <= i < base[end] */
    while (end - a > 1) {
        int middle = (a + end) / 2;
        if (base[middle] <= i)
            a = middle;
        else
            end = middle;
    }
    uint64_t count = points.count[level - 1][k - a];
    uint64_t first = (i - base[a]) / count;
    i = second ? i - base[a] - first * count : first;
    k = second ? k - a : a;
}

/* Elements 4 quarter ... of a point, as they are; the sum of their squares. */
__device__ __forceinline__ int quarter_of(int k, uint64_t number, int quarter, int y[4])
{
    descend(4, quarter >= 2, k, number);
    descend(3, quarter % 2 != 0, k, number);
    int norm2 = 0;
    for (int half = 0; half < 2; half++) {
        int pulses = k;
        uint64_t i = number;
        uint8_t pair[2];
        descend(2, half != 0, pulses, i);
        pyramid_pair(pulses, (uint32_t)i, pair);
        for (int j = 0; j < 2; j++) {
            y[2 * half + j] = pair[j] - PYRAMID_ZERO;
            norm2 += y[2 * half + j] * y[2 * half + j];
        }
    }
    return norm2;
}

template <int FORM> struct decode : matmul_whole {
    enum {
        PARTS = 3,
        RING = 1,
        SUMS = 0,
        BYTES = FORM == PVQ2   ? 4
                : FORM == PVQ3 ? 6
                               : 8, /* of a group, as in forms.inc */
        CELL = CODEC_PANEL * BYTES
    };

    struct raw {
        uint64_t code[2][2]; /* of 16 inputs: row 2g, row 2g + 1 */
        uint32_t scale;
    };

    struct walk {
        const uint8_t *cell;
        uint32_t scale;
    };

    static __device__ __forceinline__ const uint8_t *cell_of(const cu_matmul &m, int panel,
                                                             int group)
    {
        size_t cell = (size_t)panel * (size_t)(m.cols / PYRAMID_N) + (size_t)group;
        return (const uint8_t *)m.plane[0] + cell * CELL;
    }

    static __device__ __forceinline__ walk start(const cu_matmul &m, int panel, int group)
    {
        walk w = { cell_of(m, panel, 2 * group), __ldg((const uint32_t *)m.plane[1] +
                                                       panel * (CODEC_PANEL / 2) + cu_lane() / 4) };
        return w;
    }

    static __device__ __forceinline__ void go(walk &w, int groups)
    {
        w.cell += groups * 2 * CELL;
    }

    static __device__ __forceinline__ raw load(const walk &w, int ahead)
    {
        raw r;
        for (int i = 0; i < 4; i++)
            r.code[i / 2][i % 2] =
                pvq_code(w.cell + (2 * ahead + i / 2) * CELL, cu_lane() / 4 * 2 + i % 2, BYTES);
        r.scale = w.scale;
        return r;
    }

    /* The gain; the code becomes the point's number. A code that no point has is the last one's. */
    static __device__ __forceinline__ float gain_of(uint64_t &code)
    {
        uint64_t v = points.count[PYRAMID_LEVELS - 1][forms[FORM].k];
        uint64_t last = (uint64_t)forms[FORM].levels * v - 1;
        code = code < last ? code : last;
        uint64_t level = code / v;
        code -= level * v;
        return forms[FORM].gain[level];
    }

    /* The lane's four weights of a group, the quad together. */
    static __device__ float4 weights(uint64_t code, float row_scale)
    {
        int y[4];
        float gain = gain_of(code);
        int norm2 = quarter_of(forms[FORM].k, code, cu_lane() % 4, y);
        norm2 += __shfl_xor_sync(CU_ALL, norm2, 1);
        norm2 += __shfl_xor_sync(CU_ALL, norm2, 2);
        float scale = pvq_scale(gain, row_scale, norm2);
        return make_float4((float)y[0] * scale, (float)y[1] * scale, (float)y[2] * scale,
                           (float)y[3] * scale);
    }

    static __device__ __forceinline__ void fragment(const raw &r, int step, uint32_t a[PARTS][4])
    {
        for (int row = 0; row < 2; row++) {
            float4 four = weights(r.code[step][row], cu_f16_low(r.scale >> 16 * row));
            matmul_split<PARTS>(four.x, four.z, a, row);
            matmul_split<PARTS>(four.y, four.w, a, row + 2);
        }
    }

    static __device__ __forceinline__ void four(const cu_matmul &m, int row, int k, float v[4])
    {
        uint64_t code =
            pvq_code(cell_of(m, row / CODEC_PANEL, k / PYRAMID_N), row % CODEC_PANEL, BYTES);
        float gain = gain_of(code);
        int norm2 = 0, wanted[4] = { 0, 0, 0, 0 };
        for (int quarter = 0; quarter < 4; quarter++) {
            int y[4];
            norm2 += quarter_of(forms[FORM].k, code, quarter, y);
            for (int i = 0; i < 4; i++)
                wanted[i] = quarter == k % PYRAMID_N / 4 ? y[i] : wanted[i];
        }
        float scale = pvq_scale(gain, cu_f16_low(__ldg((const uint16_t *)m.plane[1] + row)), norm2);
        for (int i = 0; i < 4; i++)
            v[i] = (float)wanted[i] * scale;
    }
};

} // namespace

const struct codec_cuda pvq_cuda = { cu_rows_of<decode, PVQ2, PVQ3, PVQ4>,
                                     cu_mul_of<decode, PVQ2, PVQ3, PVQ4> };
