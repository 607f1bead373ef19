#include "quant/rotate.h"

#include <math.h>
#include <string.h>

#include "quant/codec.h"

#ifdef WRING_CUDA
#    include "quant/rotate_cuda.h"
#endif

enum { ALONE = 16384 }; /* numbers that one thread rotates sooner than several start */

void rotate_factors(struct rotate_factors *f, int cols)
{
    int p = cols & -cols;
    *f = (struct rotate_factors){ .cols = cols, .m = cols / p, .p = p };
    f->scale = (float)(1 / sqrt(p));
    f->mix = f->m > 1 && f->m <= ROTATE_MIX;
    if (!f->mix)
        return;
    /* Round the circle in m steps: two calls of the library instead of 2 m, and still exact to about m 2^-53. */
    double turn = 2 * 3.14159265358979323846 / f->m, step_x = cos(turn), step_y = sin(turn);
    double x = 1, y = 0, scale = 1 / sqrt(f->m);
    for (int i = 0; i < f->m; i++) {
        double next = x * step_x - y * step_y;
        f->cosine[i] = (float)(x * scale);
        f->sine[i] = (float)(y * scale);
        y = x * step_y + y * step_x;
        x = next;
    }
}

/* ---- the definition ---------------------------------------------------------------------------------------------- */

static void flip(float *x, int cols)
{
    uint64_t signs = 0;
    for (int i = 0; i < cols; i++) {
        signs = i % 64 == 0 ? rotate_signs(cols, i / 64) : signs >> 1;
        x[i] = signs & 1 ? -x[i] : x[i];
    }
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

/* x = (C (x) I) x * scale */
static void mix(const struct rotate_factors *f, float *x)
{
    float even[ROTATE_MIX / 2], odd[ROTATE_MIX / 2]; /* [b]: x[b] + x[m - b], x[b] - x[m - b] */
    int m = f->m;
    for (int i = 0; i < f->p; i++) {
        float first = f->cosine[0] * x[i];
        for (int b = 1; b <= m / 2; b++) {
            even[b] = x[b * f->p + i] + x[(m - b) * f->p + i];
            odd[b] = x[b * f->p + i] - x[(m - b) * f->p + i];
        }
        for (int a = 0; a <= m / 2; a++) {
            float p = first, q = 0;
            for (int b = 1, k = a; b <= m / 2; b++, k += k + a < m ? a : a - m) {
                p += f->cosine[k] * even[b];
                q += f->sine[k] * odd[b];
            }
            x[a * f->p + i] = (p + q) * f->scale;
            if (a > 0)
                x[(m - a) * f->p + i] = (p - q) * f->scale;
        }
    }
}

static void rotate_row_ref(const struct rotate_factors *f, const float *x, float *y, bool signs)
{
    if (x != y)
        memcpy(y, x, (size_t)f->cols * sizeof *y);
    if (signs)
        flip(y, f->cols);
    for (int b = 0; b < f->m; b++)
        butterflies(y + b * f->p, f->p);
    if (f->mix) {
        mix(f, y);
        return;
    }
    for (int i = 0; i < f->cols; i++)
        y[i] *= f->scale;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static rotate_row_fn *row_fn(enum cpu_isa isa, const struct rotate_factors *f)
{
    static rotate_row_fn *const list[CPU_ISA_N] = { rotate_row_ref, rotate_row_avx2,
                                                    rotate_row_avx512, rotate_row_avx512 };
    return f->p >= 16 ? list[isa] : rotate_row_ref;
}

void rotate_rows(enum cpu_isa isa, const float *x, float *y, int n, int cols)
{
    struct rotate_factors f;
    rotate_factors(&f, cols);
    rotate_row_fn *row = row_fn(isa, &f);
    for (size_t r = 0, at = 0; r < (size_t)n; r++, at += (size_t)cols)
        row(&f, x + at, y + at, true);
}

void rotate_back(enum cpu_isa isa, const float *x, float *y, int n, int cols)
{
    struct rotate_factors f;
    rotate_factors(&f, cols);
    rotate_row_fn *row = row_fn(isa, &f);
    for (size_t r = 0, at = 0; r < (size_t)n; r++, at += (size_t)cols) {
        row(&f, x + at, y + at, false);
        flip(y + at, cols);
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

/* ---- moments ----------------------------------------------------------------------------------------------------- */

enum { TILE = 32 }; /* two tiles of h stay in the first-level cache while they change places */

/* h[i][j] and h[j][i] change places, for the rows i of a tile and all j > i; or, with `copy`, the second becomes the first. */
static void mirror_rows(const struct rotation *r, int i0, bool copy)
{
    size_t cols = (size_t)r->cols;
    int end = i0 + TILE < r->cols ? i0 + TILE : r->cols;
    for (int j0 = i0; j0 < r->cols; j0 += TILE)
        for (int i = i0; i < end; i++)
            for (int j = j0 > i ? j0 : i + 1; j < r->cols && j < j0 + TILE; j++) {
                float *a = r->y + (size_t)i * cols + j, *b = r->y + (size_t)j * cols + i;
                float was = *b;
                *b = *a;
                *a = copy ? *a : was;
            }
}

static void turn_tiles(void *arg, int first, int last, int i_thread)
{
    (void)i_thread;
    for (int i = first; i < last; i++)
        mirror_rows(arg, i * TILE, false);
}

static void copy_tiles(void *arg, int first, int last, int i_thread)
{
    (void)i_thread;
    for (int i = first; i < last; i++)
        mirror_rows(arg, i * TILE, true);
}

/* Rows, then what were columns; the second time rounding leaves two triangles that differ a little. */
void rotate_moments(enum cpu_isa isa, struct par *par, float *h, int cols)
{
    struct rotation r = { isa, h, h, cols };
    int tiles = (cols + TILE - 1) / TILE;
    par_for(par, cols, 16, some_rows, &r);
    par_for(par, tiles, 1, turn_tiles, &r);
    par_for(par, cols, 16, some_rows, &r);
    par_for(par, tiles, 1, copy_tiles, &r);
}

/* ---- inputs ------------------------------------------------------------------------------------------------------ */

void rotate_input(struct be *be, struct input *in, struct input *rotated)
{
    size_t bytes = (size_t)in->n * (size_t)in->cols * sizeof(float);
    size_t skip = (64 - ((uintptr_t)in->ws + in->ws_used) % 64) % 64;
    struct rotation r = { be->isa, in->x, (float *)(void *)(in->ws + in->ws_used + skip),
                          in->cols };
    in->ws_used += skip + bytes;
    input_set(rotated, r.y, in->n, in->cols, in->ws + in->ws_used);
#ifdef WRING_CUDA
    if (!be->host) {
        rotate_rows_cuda(be, in->x, r.y, in->n, in->cols, false);
        return;
    }
#endif
    if ((size_t)in->n * (size_t)in->cols > ALONE)
        par_for(be->par, in->n, 0, some_rows, &r);
    else
        some_rows(&r, 0, in->n, 0);
}

void rotate_device_back(struct be *be, float *x, int n, int cols)
{
#ifdef WRING_CUDA
    rotate_rows_cuda(be, x, x, n, cols, true);
#else
    (void)be;
    (void)x;
    (void)n;
    (void)cols;
#endif
}
