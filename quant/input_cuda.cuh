/* Inputs as tensor cores want them, on the GPU: what PREP_BF16 and PREP_BF16X3 look like in memory.
 *
 *   uint16_t x[parts][n][cols32]    parts: 1 or 3 (their sum is the f32 number); cols32: cols rounded up to 32,
 *                                   zeros behind cols; in an order below
 *   float    sum[groups][n4]        of all parts of inputs 32g ... 32g+31; groups: cols / 32, rounded down; n4: n rounded
 *                                   up to 4: a lane wants those of two rows at once, a copy takes those of four
 *
 * One m16n8k16 product covers 16 inputs. The order of k within a product is free as long as both sides agree, and here
 * lane q of a quad holds inputs 4q ... 4q+3: b[0] = (4q, 4q+2), b[1] = (4q+1, 4q+3). A codec's four-input words split into
 * the same pairs with one mask each (0x000f000f). In memory that is
 *   INPUT_QUADS    4i, 4i+2, 4i+1, 4i+3 of every four inputs: a lane's are one load of 8 bytes
 *   INPUT_HALVES   of every 16 inputs the even ones, then the odd ones: what tensor cores read from shared memory
 */
#ifndef WRING_QUANT_INPUT_CUDA_CUH
#define WRING_QUANT_INPUT_CUDA_CUH

#include "kernels/cuda/state.cuh"

extern "C" {
#include "quant/codec.h"
#include "quant/input.h"
}

enum input_order { INPUT_QUADS, INPUT_HALVES };

/* Writes inputs k ... k+3 of a row that begins at `row`, the first and third in `even`, the others in `odd`. */
static __device__ __forceinline__ void cu_input_put(uint16_t *row, int k, enum input_order order,
                                                    uint32_t even, uint32_t odd)
{
    if (order == INPUT_QUADS) {
        *(uint2 *)(row + k) = make_uint2(even, odd);
        return;
    }
    uint16_t *half = row + k / 16 * 16 + k % 16 / 2;
    *(uint32_t *)half = even;
    *(uint32_t *)(half + 8) = odd;
}

/* Rows that gemv.cuh takes; from there on GPUs with CU_WGMMA multiply inputs of one part with it. */
enum { INPUT_FEW = 16 };
static inline enum input_order cu_input_order(const struct cu_state *s, int parts, int n)
{
    return s->wgmma && parts == 1 && n > INPUT_FEW ? INPUT_HALVES : INPUT_QUADS;
}

static inline __host__ __device__ int cu_input_pitch(int cols)
{
    return (cols + INPUT_GROUP - 1) / INPUT_GROUP * INPUT_GROUP;
}
static inline __host__ __device__ int cu_input_parts(enum prep p)
{
    return p == PREP_BF16X3 ? 3 : 1;
}
static inline __host__ __device__ int cu_input_sum_pitch(int n)
{
    return (n + 3) / 4 * 4;
}
static inline size_t cu_input_bytes(enum prep p, int n, int cols)
{
    return (size_t)n * (size_t)cu_input_parts(p) * (size_t)cu_input_pitch(cols) * 2 +
           (size_t)(cols / INPUT_GROUP) * (size_t)cu_input_sum_pitch(n) * 4;
}

/* What a kernel gets of a prepared input. */
struct cu_input {
    const uint16_t *x;
    const float *sum;
    int n, cols, pitch, sum_pitch, parts;
};
static inline struct cu_input cu_input_of(const struct input *in, enum prep p)
{
    int pitch = cu_input_pitch(in->cols), parts = cu_input_parts(p);
    const uint16_t *x = (const uint16_t *)in->prep[p];
    struct cu_input v = { x,     (const float *)(x + (size_t)parts * (size_t)in->n * (size_t)pitch),
                          in->n, in->cols,
                          pitch, cu_input_sum_pitch(in->n),
                          parts };
    return v;
}

#endif
