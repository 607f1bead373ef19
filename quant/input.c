#include "quant/input.h"

#include <math.h>
#include <string.h>

#ifdef WRING_CUDA
#    include "quant/input_cuda.h"
#endif

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static size_t i8_bytes(int n, int cols)
{
    return (size_t)n * (size_t)((cols + INPUT_GROUP - 1) / INPUT_GROUP) * INPUT_RECORD;
}

size_t input_ws_bytes(const struct be *be, int n, int cols)
{
    size_t bytes = i8_bytes(n, cols);
#ifdef WRING_CUDA
    if (!be->host)
        bytes = input_cuda_bytes(n, cols);
#else
    (void)be;
#endif
    /* As it is, and for codecs that rotate the rotated one and what is made of it. */
    size_t rotated = (size_t)n * (size_t)cols * sizeof(float);
    size_t thin = MATMUL_MAX * CODEC_RANK * (size_t)n * sizeof(float); /* of sums */
    return 2 * align64(bytes) + align64(rotated) + thin + 4 * 64;
}

void input_set(struct input *in, const float *x, int n, int cols, void *ws)
{
    *in = (struct input){ .n = n, .cols = cols, .x = x, .ws = ws };
}

/* NaN and infinities make a scale that carries them on: every product with the half is then NaN. Returns what the half
 * adds to the group's sum. */
static float half_i8(const float *x, struct input_cell c)
{
    float max = 0;
    for (int i = 0; i < INPUT_HALF; i++) {
        float a = fabsf(x[i]);
        max = a > max || a != a ? a : max;
    }
    float inv = max > 0 ? 127.0f / max : 0;
    bool finite = max < INFINITY;
    if (!finite || !(inv < INFINITY)) {
        memset(c.q, 0, INPUT_HALF);
        *c.neg8 = *c.neg128 = 0;
        return *c.scale = finite ? 0 : NAN;
    }
    int32_t total = 0;
    for (int i = 0; i < INPUT_HALF; i++) {
        int v = (int)rintf(x[i] * inv);
        c.q[i] = (int8_t)v;
        total += v;
    }
    *c.scale = max / 127.0f;
    *c.neg8 = -8 * total;
    *c.neg128 = -128 * total;
    return *c.scale * (float)total;
}

static void i8_ref(const float *x, int groups, char *records, int width, int r)
{
    for (int g = 0; g < groups; g++, x += INPUT_GROUP, records += width * INPUT_RECORD) {
        struct input_cell c = input_cell(records, width, r, 0);
        float first = half_i8(x, c);
        *c.sum = first + half_i8(x + INPUT_HALF, input_cell(records, width, r, 1));
    }
}

struct prepare {
    const struct input *in;
    input_i8_fn *row;
};

static void rows_i8(void *arg, int first, int last, int i_thread)
{
    const struct prepare *p = arg;
    (void)i_thread;
    for (int i = first; i < last; i++) {
        int block = i / INPUT_BLOCK;
        p->row(p->in->x + (size_t)i * (size_t)p->in->cols, p->in->cols / INPUT_GROUP,
               input_records(p->in, block), input_width(p->in, block), i % INPUT_BLOCK);
    }
}

void input_prepare(struct input *in, struct be *be, enum prep kind)
{
    if (kind == PREP_F32 || in->prep[kind] != NULL)
        return;
#ifdef WRING_CUDA
    if (!be->host) {
        input_prepare_cuda(in, be, kind);
        return;
    }
#endif
    struct prepare p = { in, i8_ref };
    if (be->isa >= CPU_AVX512)
        p.row = input_i8_avx512;
    else if (be->isa >= CPU_AVX2)
        p.row = input_i8_avx2;
    size_t skip = (64 - ((uintptr_t)in->ws + in->ws_used) % 64) % 64;
    in->prep[kind] = in->ws + in->ws_used + skip;
    in->ws_used += skip + align64(i8_bytes(in->n, in->cols));
    if ((size_t)in->n * (size_t)in->cols > 16384)
        par_for(be->par, in->n, 0, rows_i8, &p);
    else
        rows_i8(&p, 0, in->n, 0);
}
