#include <math.h>

#include "server/base/mem.h"
#include "server/cli/quantize_allocate.h"

/* So many numbers know t^2 to half a percent of itself: the standard error of the mean of n squares is sqrt(2 / n). A width
 * that every group of a codec divides. */
enum { ROWS = 64, COLS = 1024 };

/* The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014). */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* In (0, 1]. */
static double uniform(uint64_t key, uint64_t i)
{
    return (double)((mix(key + (i + 1) * 0x9e3779b97f4a7c15u) >> 11) + 1) * 0x1p-53;
}

/* Box and Muller: a pair of them from a pair of uniform numbers. */
void gauss_fill(float *x, int n, uint64_t seed, uint64_t stream)
{
    static const double two_pi = 6.283185307179586;
    uint64_t key = mix(mix(seed + 0x9e3779b97f4a7c15u) ^ stream);
    for (int i = 0; i < n; i += 2) {
        double r = sqrt(-2 * log(uniform(key, (uint64_t)i)));
        double angle = two_pi * uniform(key, (uint64_t)i + 1);
        x[i] = (float)(r * cos(angle));
        if (i + 1 < n)
            x[i + 1] = (float)(r * sin(angle));
    }
}

/* x, scratch: [ROWS][COLS]. */
static int measure(struct weight *w, float *x, float *scratch, double *t2, struct err *e)
{
    double lost = 0, all = 0;
    int step = codec_step(w->codec);
    gauss_fill(x, ROWS * COLS, 0, 0);
    for (int row = 0; row < ROWS; row += step) {
        int n = ROWS - row < step ? ROWS - row : step;
        TRY(weight_press(w, row, n, x + (ptrdiff_t)row * COLS, scratch, NULL, e));
    }
    for (int row = 0; row < ROWS; row++) {
        weight_row(w, row, scratch);
        for (int i = 0; i < COLS; i++) {
            double was = (double)x[row * COLS + i];
            double off = (double)scratch[i] - was;
            lost += off * off;
            all += was * was;
        }
    }
    *t2 = lost / all;
    return 0;
}

int gauss_error(struct be *be, const char *form, double *t2, struct err *e)
{
    struct weight w;
    TRY(weight_open_form(&w, be, form, false, ROWS, COLS, e));
    float *x = mem_alloc(2 * (size_t)ROWS * COLS * sizeof *x);
    int rc = x != NULL ? measure(&w, x, x + (ptrdiff_t)ROWS * COLS, t2, e)
                       : err_set(e, ERR_NOMEM, "no memory to measure the form %s", form);
    mem_free(x);
    weight_close(&w, be);
    return rc;
}
