/* Inputs for tensor cores: f32 rows become one or three rows of bf16. The layout is in input_cuda.cuh.
 *
 * A thread takes four inputs, eight threads of a warp a group of 32, whose sum is a tree of fixed shape over what the parts
 * add up to: four inputs in a thread, ((0 + 2) + (1 + 3)), then the threads, halves first. A row's last threads take the
 * zeros behind cols.
 *
 * Bytes moved: 4 an input read, 2 * parts and 4 / 32 written.
 */
#include "quant/input_cuda.cuh"

extern "C" {
#include "quant/input_cuda.h"
}

namespace
{

enum { THREADS = 256, ALIGN = 256, QUAD = 4 };

size_t align_up(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/* Inputs k ... k+3 of a row; 0 behind cols. */
__device__ __forceinline__ void load_four(const float *row, int k, int cols, float v[QUAD])
{
    if (cols % QUAD == 0 && k < cols) {
        float4 f = *(const float4 *)(row + k);
        v[0] = f.x;
        v[1] = f.y;
        v[2] = f.z;
        v[3] = f.w;
        return;
    }
    for (int i = 0; i < QUAD; i++)
        v[i] = k + i < cols ? row[k + i] : 0;
}

template <int PARTS>
__global__ void __launch_bounds__(THREADS) prepare(const float *x, uint16_t *to, float *sum, int n,
                                                   int cols, int pitch, enum input_order order)
{
    cu_start_next();
    cu_wait_prior();
    int row = (int)blockIdx.y;
    int k = ((int)blockIdx.x * THREADS + (int)threadIdx.x) * QUAD;
    float v[QUAD];
    load_four(x + (size_t)row * (size_t)cols, k, cols, v);
    cu_split s[QUAD];
    float all[QUAD];
    for (int i = 0; i < QUAD; i++) {
        s[i] = cu_split3(v[i]);
        all[i] = PARTS == 1 ? s[i].part[0] : v[i];
    }
    if (k < pitch)
        for (int p = 0; p < PARTS; p++)
            cu_input_put(to + ((size_t)p * (size_t)n + (size_t)row) * (size_t)pitch, k, order,
                         cu_pack_bf16(s[0].part[p], s[2].part[p]),
                         cu_pack_bf16(s[1].part[p], s[3].part[p]));
    float total = (all[0] + all[2]) + (all[1] + all[3]);
    for (int m = INPUT_GROUP / QUAD / 2; m > 0; m /= 2)
        total += __shfl_xor_sync(CU_ALL, total, m);
    int group = k / INPUT_GROUP;
    if (k % INPUT_GROUP == 0 && group < cols / INPUT_GROUP)
        sum[(size_t)group * (size_t)cu_input_sum_pitch(n) + (size_t)row] = total;
}

} // namespace

size_t input_cuda_bytes(int n, int cols)
{
    return ALIGN + align_up(cu_input_bytes(PREP_BF16, n, cols)) +
           align_up(cu_input_bytes(PREP_BF16X3, n, cols));
}

void input_prepare_cuda(struct input *in, struct be *be, enum prep kind)
{
    struct cu_state *s = cu_of(be);
    if (in->ws_used == 0)
        in->ws_used = align_up((uintptr_t)in->ws) - (uintptr_t)in->ws;
    in->prep[kind] = in->ws + in->ws_used;
    in->ws_used += align_up(cu_input_bytes(kind, in->n, in->cols));
    if (!cu_ok(s) || in->n == 0)
        return;
    struct cu_input x = cu_input_of(in, kind);
    uint16_t *to = (uint16_t *)in->prep[kind];
    float *sum = const_cast<float *>(x.sum);
    dim3 grid(cu_div_up((size_t)x.pitch, THREADS * QUAD), (unsigned)in->n);
    enum input_order order = cu_input_order(s, x.parts, in->n);
    if (x.parts == 1)
        CU_CHAIN(s, grid, THREADS, 0, prepare<1>, in->x, to, sum, in->n, in->cols, x.pitch, order);
    else
        CU_CHAIN(s, grid, THREADS, 0, prepare<3>, in->x, to, sum, in->n, in->cols, x.pitch, order);
    CU_LAUNCHED(s);
}
