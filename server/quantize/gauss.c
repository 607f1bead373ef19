#include <math.h>

#include "server/base/mem.h"
#include "server/base/mix.h"
#include "server/quantize/allocate.h"

/* So many numbers know t^2 to half a percent of itself: the standard error of the mean of n squares is sqrt(2 / n). A width
 * that every group of a codec divides. */
enum { ROWS = 64, COLS = 1024 };

/* In (0, 1]. */
static double uniform(uint64_t key, uint64_t i)
{
    return (double)((mix64(key + (i + 1) * 0x9e3779b97f4a7c15u) >> 11) + 1) * 0x1p-53;
}

/* Box and Muller: a pair of them from a pair of uniform numbers. */
void gauss_fill(float *x, int n, uint64_t seed, uint64_t stream)
{
    static const double two_pi = 6.283185307179586;
    uint64_t key = mix64(mix64(seed + 0x9e3779b97f4a7c15u) ^ stream);
    for (int i = 0; i < n; i += 2) {
        double r = sqrt(-2 * log(uniform(key, (uint64_t)i)));
        double angle = two_pi * uniform(key, (uint64_t)i + 1);
        x[i] = (float)(r * cos(angle));
        if (i + 1 < n)
            x[i + 1] = (float)(r * sin(angle));
    }
}

double mean_square(const float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum / n;
}

double weight_square(const struct weight *w, float *row)
{
    double sum = 0;
    for (int r = 0; r < w->rows; r++) {
        weight_row(w, r, row);
        sum += mean_square(row, w->cols);
    }
    return sum / w->rows;
}

int rounding_error(struct weight *w, const float *x, float *scratch, double *t2, struct err *e)
{
    double lost = 0, all = 0;
    int rows = w->rows, cols = w->cols, step = codec_step(w->codec);
    for (int row = 0; row < rows; row += step) {
        int n = rows - row < step ? rows - row : step;
        TRY(weight_press(w, row, n, x + (ptrdiff_t)row * cols, scratch, NULL, e));
    }
    for (int row = 0; row < rows; row++) {
        const float *from = x + (ptrdiff_t)row * cols;
        weight_row(w, row, scratch);
        for (int i = 0; i < cols; i++) {
            double was = (double)from[i];
            double off = (double)scratch[i] - was;
            lost += off * off;
            all += was * was;
        }
    }
    *t2 = all > 0 ? lost / all : 0;
    return 0;
}

int gauss_error(struct be *be, const char *form, double *t2, struct err *e)
{
    struct weight w;
    TRY(weight_open_form(&w, be, form, false, ROWS, COLS, e));
    float *x = mem_alloc(2 * (size_t)ROWS * COLS * sizeof *x);
    if (x != NULL)
        gauss_fill(x, ROWS * COLS, 0, 0);
    int rc = x != NULL ? rounding_error(&w, x, x + (ptrdiff_t)ROWS * COLS, t2, e)
                       : err_set(e, ERR_NOMEM, "no memory to measure the form %s", form);
    mem_free(x);
    weight_close(&w, be);
    return rc;
}
