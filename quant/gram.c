#include "quant/gram.h"

#include "kernels/dense.h"
#include "quant/openblas.h"

/* Rows of h that one thread sums up at a time, and columns of it, so that they stay in the second-level cache. */
enum { EDGE = 96, SPAN = 480 };

struct gram {
    float *h;
    const float *x;
    int n, cols;
    float scale;
    enum cpu_isa isa;
};

/* Rows i .. i + EDGE of h from their diagonal on. */
static void add_strip(const struct gram *g, int i)
{
    size_t cols = (size_t)g->cols;
    struct dense_product t = { .a = g->x + i, .k = g->n, .scale = g->scale, .add = true };
    t.a_row = t.b_col = 1;
    t.a_col = t.b_row = t.c_row = cols;
    t.m = g->cols - i < EDGE ? g->cols - i : EDGE;
    for (int j = i; j < g->cols; j += SPAN) {
        t.c = g->h + (size_t)i * cols + j;
        t.b = g->x + j;
        t.n = g->cols - j < SPAN ? g->cols - j : SPAN;
        t.upper = j == i;
        dense_product(g->isa, &t);
    }
}

static void some_strips(void *arg, int first, int last, int i_thread)
{
    const struct gram *g = arg;
    (void)i_thread;
    for (int i = first; i < last; i++)
        add_strip(g, i * EDGE);
}

void gram_add(float *h, const float *x, int n, int cols, float scale, const struct openblas *blas,
              enum cpu_isa isa, struct par *par)
{
    struct gram g = { h, x, n, cols, scale, isa };
    if (n == 0)
        return;
    if (blas != NULL)
        openblas_gram(blas, h, x, n, cols, scale);
    else
        par_for(par, (cols + EDGE - 1) / EDGE, 1, some_strips, &g);
}
