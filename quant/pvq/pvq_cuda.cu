/* pvq on the GPU. The format is in pvq.c and pyramid.h, the products in kernels/cuda/matmul.cuh; the input is rotated.
 *
 * A lane puts together one quarter of the patterns of two rows as pyramid.h says: three searches at most for where it lies
 * and two for its pairs, in tables of counts instead of the CPU's tables of patterns. Then the four lanes of a quad add up
 * the norm and hand each other the pairs that lie elsewhere in the point. Weights are f32 numbers, as three bf16 each, since
 * the scale changes with every 16 inputs.
 *
 * Bytes moved: those of the format. Bound by far by searching: some 500 instructions for a lane's four weights (estimated).
 */
#include "quant/mul_cuda.cuh"

extern "C" {
#include "quant/pvq/pvq.h"
}

namespace
{

/* As in struct pyramid. */
struct counts {
    uint64_t patterns[PYRAMID_PAIRS + 1][PYRAMID_K + 1];
    uint64_t base[PYRAMID_PAIRS + 1][PYRAMID_K + 1][PYRAMID_K + 2];
    int places[PYRAMID_PAIRS + 1], place_from[PYRAMID_PAIRS + 1];
    uint8_t place[1 << PYRAMID_PAIRS];
};

constexpr int pairs_of(int mask)
{
    int n = 0;
    for (int i = 0; i < PYRAMID_PAIRS; i++)
        n += mask >> i & 1;
    return n;
}

constexpr counts make_counts()
{
    counts c = {};
    c.patterns[0][0] = 1;
    for (int k = 1; k <= PYRAMID_K; k++)
        c.patterns[1][k] = (uint64_t)k;
    for (int pairs = 2; pairs <= PYRAMID_PAIRS; pairs++)
        for (int k = 0; k <= PYRAMID_K; k++) {
            int first = pairs > 4 ? 4 : pairs > 2 ? 2 : 1;
            for (int a = 0; a <= k; a++)
                c.base[pairs][k][a + 1] =
                    c.base[pairs][k][a] + c.patterns[first][a] * c.patterns[pairs - first][k - a];
            c.patterns[pairs][k] = c.base[pairs][k][k + 1];
        }
    for (int pairs = PYRAMID_PAIRS, n = 0; pairs >= 0; pairs--) {
        c.place_from[pairs] = n;
        for (int mask = 0; mask < 1 << PYRAMID_PAIRS; mask++)
            if (pairs_of(mask) == pairs)
                c.place[n++] = (uint8_t)mask;
        c.places[pairs] = n - c.place_from[pairs];
    }
    return c;
}

__device__ const counts points = make_counts();

__device__ const struct pvq_form forms[PVQ_FORMS] = {
#include "quant/pvq/forms.inc"
};

/* What a code says of its point, and the level's gain. */
struct point {
    int k, pairs;
    uint64_t pattern;
    uint32_t turns;
    uint32_t place; /* a set of pairs */
    float gain;
};

/* A code that no point has is the last one's. */
__device__ __forceinline__ point point_of(const struct pvq_form *f, uint64_t code)
{
    point p = {};
    p.k = f->k;
    uint64_t base = 0, n = 0;
    for (p.pairs = PYRAMID_PAIRS; p.pairs > 0; p.pairs--) {
        n = (points.patterns[p.pairs][p.k] * (uint64_t)(points.places[p.pairs] * f->levels))
            << 2 * p.pairs;
        if (code - base < n)
            break;
        base += n;
    }
    if (p.pairs == 0) {
        p.pairs = 1;
        code = base - 1;
        base -= n;
    }
    uint64_t i = (code - base) >> 2 * p.pairs;
    uint32_t digits = (uint32_t)(points.places[p.pairs] * f->levels);
    p.pattern = i / digits;
    int digit = (int)(i - p.pattern * digits);
    int level = digit / points.places[p.pairs];
    p.place = points.place[points.place_from[p.pairs] + digit - level * points.places[p.pairs]];
    p.turns = (uint32_t)code;
    p.gain = f->gain[level];
    return p;
}

/* Pattern i of some pairs becomes that of their first ones, `first` at most, or of the others. */
__device__ __forceinline__ void descend(int first, bool second, int &pairs, int &k, uint64_t &i)
{
    if (pairs <= first) {
        pairs = second ? 0 : pairs;
        k = second ? 0 : k;
        i = second ? 0 : i;
        return;
    }
    const uint64_t *base = points.base[pairs][k];
    int a = 0, end = k + 1; /* base[a] <= i < base[end] */
    while (end - a > 1) {
        int middle = (a + end) / 2;
        if (base[middle] <= i)
            a = middle;
        else
            end = middle;
    }
    uint64_t count = points.patterns[pairs - first][k - a];
    uint64_t quotient = (i - base[a]) / count;
    i = second ? i - base[a] - quotient * count : quotient;
    k = second ? k - a : a;
    pairs = second ? pairs - first : first;
}

/* The turned pairs 2 quarter and 2 quarter + 1 of a pattern, a byte an element; adds their squares to norm2. */
__device__ __forceinline__ uint32_t quarter_of(const point &p, int quarter, int &norm2)
{
    int pairs = p.pairs, k = p.k;
    uint64_t pattern = p.pattern;
    uint32_t four = 0;
    descend(4, quarter >= 2, pairs, k, pattern);
    descend(2, quarter % 2 != 0, pairs, k, pattern);
    for (int half = 0; half < 2; half++) {
        int one = pairs, pulses = k;
        uint64_t v = pattern;
        int8_t y[2];
        descend(1, half != 0, one, pulses, v);
        pyramid_turn(pulses - (int)v, (int)v, p.turns >> (4 * quarter + 2 * half), y);
        norm2 += y[0] * y[0] + y[1] * y[1];
        four |= ((uint32_t)(uint8_t)y[0] | (uint32_t)(uint8_t)y[1] << 8) << 16 * half;
    }
    return four;
}

/* Which pair of the pattern is pair i of the point; -1: none. */
__device__ __forceinline__ int pair_at(const point &p, int i)
{
    return p.place >> i & 1 ? __popc(p.place & ((1u << i) - 1)) : -1;
}

/* Elements of a pair: half of a quarter's bytes. Products of their own, for cu_split3 subtracts from them, and the compiler could
 * fuse that here and not there. */
__device__ __forceinline__ void elements_of(uint32_t quarter, int pair, float scale, float v[2])
{
    uint32_t two = pair < 0 ? 0 : quarter >> pair % 2 * 16;
    v[0] = __fmul_rn((float)(int8_t)two, scale);
    v[1] = __fmul_rn((float)(int8_t)(two >> 8), scale);
}

template <int FORM> struct decode : matmul_whole {
    enum {
        PARTS = 3,
        RING = 1,
        SUMS = 0,
        WIDEST = 64,
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

    /* The lane's four weights of a group, the quad together. */
    static __device__ float4 weights(uint64_t code, float row_scale)
    {
        point p = point_of(&forms[FORM], code);
        int norm2 = 0;
        uint32_t mine = quarter_of(p, cu_lane() % 4, norm2);
        norm2 += __shfl_xor_sync(CU_ALL, norm2, 1);
        norm2 += __shfl_xor_sync(CU_ALL, norm2, 2);
        float scale = pvq_scale(p.gain, row_scale, norm2);
        float v[4];
        for (int i = 0; i < 2; i++) {
            int pair = pair_at(p, cu_lane() % 4 * 2 + i);
            int from = cu_lane() - cu_lane() % 4 + (pair < 0 ? 0 : pair / 2);
            elements_of(__shfl_sync(CU_ALL, mine, from), pair, scale, v + 2 * i);
        }
        return make_float4(v[0], v[1], v[2], v[3]);
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
        point p = point_of(&forms[FORM], code);
        int norm2 = 0;
        uint32_t quarter[4];
        for (int i = 0; i < 4; i++)
            quarter[i] = quarter_of(p, i, norm2);
        float scale =
            pvq_scale(p.gain, cu_f16_low(__ldg((const uint16_t *)m.plane[1] + row)), norm2);
        for (int i = 0; i < 2; i++) {
            int pair = pair_at(p, k % PYRAMID_N / 2 + i);
            elements_of(quarter[pair < 0 ? 0 : pair / 2], pair, scale, v + 2 * i);
        }
    }
};

} // namespace

const struct codec_cuda pvq_cuda = { cu_rows_of<decode, PVQ2, PVQ3, PVQ4>,
                                     cu_mul_of<decode, PVQ2, PVQ3, PVQ4> };
