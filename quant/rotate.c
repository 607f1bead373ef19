#include "quant/rotate.h"

#include <math.h>
#include <string.h>

#include "quant/codec.h"

enum { ALONE = 16384 }; /* numbers that one thread rotates sooner than several start */

/* The sizes of the two factors. */
struct factors {
    int m, p;            /* cols = m * p */
    bool mix;            /* C is not the identity */
    float c[ROTATE_MIX]; /* cas(2 pi i / m) / sqrt(m) */
    float scale;         /* 1 / sqrt(p) */
};

static void factor(struct factors *f, int cols)
{
    int p = cols & -cols;
    *f = (struct factors){ .m = cols / p, .p = p, .scale = (float)(1 / sqrt(p)) };
    f->mix = f->m > 1 && f->m <= ROTATE_MIX;
    for (int i = 0; f->mix && i < f->m; i++) {
        double a = 2 * 3.14159265358979323846 * i / f->m;
        f->c[i] = (float)((cos(a) + sin(a)) / sqrt(f->m));
    }
}

static uint64_t splitmix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool negative(int cols, int i)
{
    return splitmix(((uint64_t)cols << 32) + (uint64_t)i) & 1;
}

static void flip(float *x, int cols)
{
    for (int i = 0; i < cols; i++)
        if (negative(cols, i))
            x[i] = -x[i];
}

static void butterflies(float *x, int p)
{
    for (int h = 1; h < p; h *= 2)
        for (int i = 0; i < p; i += 2 * h)
            for (int k = i; k < i + h; k++) {
                float a = x[k];
                float b = x[k + h];
                x[k] = a + b;
                x[k + h] = a - b;
            }
}

enum { LANES = 16 }; /* columns of the inner factor that are mixed together */

/* x = (C (x) I) x * scale: each output is a sum over the m blocks of p. */
static void mix(const struct factors *f, float *x)
{
    float old[ROTATE_MIX][LANES];
    for (int i = 0; i < f->p; i += LANES) {
        int n = f->p - i < LANES ? f->p - i : LANES;
        for (int b = 0; b < f->m; b++)
            memcpy(old[b], x + (size_t)b * (size_t)f->p + i, (size_t)n * sizeof *x);
        for (int a = 0; a < f->m; a++)
            for (int k = 0; k < n; k++) {
                float s = 0;
                for (int b = 0; b < f->m; b++)
                    s += f->c[a * b % f->m] * old[b][k];
                x[(size_t)a * (size_t)f->p + (size_t)(i + k)] = s * f->scale;
            }
    }
}

/* x = (C (x) H) x */
static void turn(const struct factors *f, float *x)
{
    int cols = f->m * f->p;
    for (int b = 0; b < f->m; b++)
        butterflies(x + b * f->p, f->p);
    if (f->mix) {
        mix(f, x);
        return;
    }
    for (int i = 0; i < cols; i++)
        x[i] *= f->scale;
}

void rotate_rows(enum cpu_isa isa, const float *x, float *y, int n, int cols)
{
    struct factors f;
    factor(&f, cols);
    (void)isa;
    for (int r = 0; r < n; r++) {
        float *to = y + (size_t)r * (size_t)cols;
        if (to != x + (size_t)r * (size_t)cols)
            memcpy(to, x + (size_t)r * (size_t)cols, (size_t)cols * sizeof *to);
        flip(to, cols);
        turn(&f, to);
    }
}

void rotate_back(enum cpu_isa isa, const float *x, float *y, int n, int cols)
{
    struct factors f;
    factor(&f, cols);
    (void)isa;
    for (int r = 0; r < n; r++) {
        float *to = y + (size_t)r * (size_t)cols;
        if (to != x + (size_t)r * (size_t)cols)
            memcpy(to, x + (size_t)r * (size_t)cols, (size_t)cols * sizeof *to);
        turn(&f, to);
        flip(to, cols);
    }
}

struct rotation {
    enum cpu_isa isa;
    const float *x;
    float *y;
    int cols;
};

static void some_rows(void *arg, int first, int last, int i_thread)
{
    const struct rotation *r = arg;
    size_t at = (size_t)first * (size_t)r->cols;
    (void)i_thread;
    rotate_rows(r->isa, r->x + at, r->y + at, last - first, r->cols);
}

static void turn_over(float *h, int cols)
{
    for (int i = 0; i < cols; i++)
        for (int j = 0; j < i; j++) {
            float t = h[(size_t)i * (size_t)cols + (size_t)j];
            h[(size_t)i * (size_t)cols + (size_t)j] = h[(size_t)j * (size_t)cols + (size_t)i];
            h[(size_t)j * (size_t)cols + (size_t)i] = t;
        }
}

void rotate_moments(enum cpu_isa isa, struct par *par, float *h, int cols)
{
    struct rotation r = { isa, h, h, cols };
    for (int side = 0; side < 2; side++) {
        par_for(par, cols, 16, some_rows, &r);
        turn_over(h, cols);
    }
}

void rotate_input(struct be *be, struct input *in, struct input *rotated)
{
    size_t bytes = (size_t)in->n * (size_t)in->cols * sizeof(float);
    size_t skip = (64 - ((uintptr_t)in->ws + in->ws_used) % 64) % 64;
    struct rotation r = { be->isa, in->x, (float *)(void *)(in->ws + in->ws_used + skip),
                          in->cols };
    in->ws_used += skip + bytes;
    if ((size_t)in->n * (size_t)in->cols > ALONE)
        par_for(be->par, in->n, 0, some_rows, &r);
    else
        some_rows(&r, 0, in->n, 0);
    input_set(rotated, r.y, in->n, in->cols, in->ws + in->ws_used);
}
