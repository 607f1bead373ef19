#include "quant/input.h"

#include <math.h>
#include <string.h>

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

size_t input_ws_bytes(int n, int cols)
{
    size_t cells = (size_t)n * (size_t)cols;
    size_t groups = (size_t)n * (size_t)((cols + INPUT_GROUP - 1) / INPUT_GROUP);
    return align64(sizeof(struct input_i8)) + align64(cells) + 3 * align64(groups * sizeof(float)) +
           64;
}

void input_set(struct input *in, const float *x, int n, int cols, void *ws)
{
    *in = (struct input){ .n = n, .cols = cols, .x = x, .ws = ws };
}

static void *take(struct input *in, size_t bytes)
{
    void *p = in->ws + in->ws_used;
    in->ws_used += align64(bytes);
    return p;
}

/* NaN and infinities make a scale that carries them on: every product with the group is then NaN. */
static void group_i8(const float *x, int8_t *q, float *scale, float *sum, int32_t *isum)
{
    float max = 0;
    for (int i = 0; i < INPUT_GROUP; i++) {
        float a = fabsf(x[i]);
        max = a > max || a != a ? a : max;
    }
    float inv = max > 0 ? 127.0f / max : 0;
    int32_t total = 0;
    if (!(max < INFINITY) || !(inv < INFINITY)) {
        memset(q, 0, INPUT_GROUP);
        *scale = max < INFINITY ? 0 : NAN;
        *sum = *scale;
        *isum = 0;
        return;
    }
    for (int i = 0; i < INPUT_GROUP; i++) {
        int v = (int)rintf(x[i] * inv);
        q[i] = (int8_t)v;
        total += v;
    }
    *scale = max / 127.0f;
    *isum = total;
    *sum = *scale * (float)total;
}

static void rows_i8(void *arg, int first, int last, int i_thread)
{
    const struct input *in = arg;
    const struct input_i8 *p = in->prep[PREP_I8];
    (void)i_thread;
    int groups = in->cols / INPUT_GROUP;
    for (int r = first; r < last; r++) {
        const float *x = in->x + (size_t)r * (size_t)in->cols;
        int8_t *q = p->q + (size_t)r * (size_t)in->cols;
        size_t at = (size_t)r * (size_t)groups;
        for (int g = 0; g < groups; g++)
            group_i8(x + g * INPUT_GROUP, q + g * INPUT_GROUP, p->scale + at + g, p->sum + at + g,
                     p->isum + at + g);
    }
}

void input_prepare(struct input *in, struct be *be, enum prep kind)
{
    if (kind != PREP_I8 || in->prep[kind] != NULL)
        return;
    size_t cells = (size_t)in->n * (size_t)in->cols;
    size_t groups = (size_t)in->n * (size_t)(in->cols / INPUT_GROUP);
    struct input_i8 *p = take(in, sizeof *p);
    p->q = take(in, cells);
    p->scale = take(in, groups * sizeof(float));
    p->sum = take(in, groups * sizeof(float));
    p->isum = take(in, groups * sizeof(float));
    in->prep[kind] = p;
    if (cells > 16384)
        par_for(be->par, in->n, 0, rows_i8, in);
    else
        rows_i8(in, 0, in->n, 0);
}
