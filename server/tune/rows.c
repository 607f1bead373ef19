#include <math.h>

#include "server/tune/tune_internal.h"

/* Columns of a product that one thread makes at a time: a multiple of what kernels/dense.h has in registers, small enough that
 * a matrix of 288 rows has work for several threads. */
enum { COLUMNS = 48, LANES = 16 };

/* ---- products ---------------------------------------------------------------------------------------------------- */

struct product {
    const struct dense_product *p;
    enum cpu_isa isa;
};

static void some_columns(void *arg, int first, int last, int i_thread)
{
    const struct product *w = arg;
    (void)i_thread;
    for (int i = first; i < last; i++) {
        struct dense_product t = *w->p;
        int j = i * COLUMNS;
        t.c += j;
        t.b += (size_t)j * t.b_col;
        t.n = w->p->n - j < COLUMNS ? w->p->n - j : COLUMNS;
        dense_product(w->isa, &t);
    }
}

void tune_product(const struct be *be, const struct dense_product *p)
{
    struct product w = { p, be->isa };
    par_for(be->par, (p->n + COLUMNS - 1) / COLUMNS, 1, some_columns, &w);
}

/* ---- factors ----------------------------------------------------------------------------------------------------- */

/* y[r][i] = y[r][i] * f[i] + b[i] */
struct scale {
    float *y;
    const float *f, *b;
    int dim;
};

static void scale_rows(void *arg, int first, int last, int i_thread)
{
    const struct scale *s = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        float *y = s->y + (size_t)r * (size_t)s->dim;
        for (int i = 0; i < s->dim; i++)
            y[i] *= s->f[i];
        for (int i = 0; i < s->dim && s->b != NULL; i++)
            y[i] += s->b[i];
    }
}

/* Sums over rows: of dy y for the factors of what made y, of dy for those of a bias b behind it (NULL: none). */
struct sums {
    const float *dy, *y, *b;
    double *grad, *bias_grad;
    int n, dim;
};

/* LANES columns, rows in rising order. */
static void sum_lanes(const struct sums *s, int i0)
{
    int width = s->dim - i0 < LANES ? s->dim - i0 : LANES;
    double all[LANES] = { 0 };
    double plain[LANES] = { 0 };
    for (int r = 0; r < s->n; r++) {
        const float *dy = s->dy + (size_t)r * (size_t)s->dim + i0;
        const float *y = s->y + (size_t)r * (size_t)s->dim + i0;
        for (int i = 0; i < width; i++) {
            all[i] += (double)dy[i] * (double)y[i];
            plain[i] += (double)dy[i];
        }
    }
    for (int i = 0; i < width; i++) {
        double of_bias = s->b != NULL ? plain[i] * (double)s->b[i0 + i] : 0;
        s->grad[i0 + i] += all[i] - of_bias;
        if (s->b != NULL)
            s->bias_grad[i0 + i] += of_bias;
    }
}

static void some_sums(void *arg, int first, int last, int i_thread)
{
    const struct sums *s = arg;
    (void)i_thread;
    for (int i = first; i < last; i++)
        sum_lanes(s, i * LANES);
}

static void sum_up(const struct be *be, struct sums s)
{
    par_for(be->par, (s.dim + LANES - 1) / LANES, 0, some_sums, &s);
}

/* ---- a matrix ---------------------------------------------------------------------------------------------------- */

void tune_multiply(const struct tune *t, const struct tune_matrix *m, const float *x, float *y,
                   int n)
{
    size_t rows = (size_t)m->stored->rows;
    size_t cols = (size_t)m->stored->cols;
    struct dense_product p = { .c = y, .a = x, .b = m->w, .m = n, .scale = 1 };
    p.n = m->stored->rows;
    p.k = m->stored->cols;
    p.c_row = rows;
    p.a_row = p.b_col = cols;
    p.a_col = p.b_row = 1;
    tune_product(t->be, &p);
    struct scale s = { y, t->factor + m->at, m->bias, m->stored->rows };
    par_for(t->be->par, n, 0, scale_rows, &s);
}

/* Adds to the information of a matrix's rows. */
static void inform(const struct tune *t, const struct tune_matrix *m, const float *dy,
                   const float *x, int n)
{
    size_t rows = (size_t)m->stored->rows;
    size_t cols = (size_t)m->stored->cols;
    double *info = t->info + m->at;
    for (int i = 0; i < n; i++, dy += rows, x += cols) {
        double squares = 0;
        for (size_t c = 0; c < cols; c++)
            squares += (double)x[c] * (double)x[c];
        for (size_t r = 0; r < rows; r++)
            info[r] += (double)dy[r] * (double)dy[r] * squares;
    }
}

void tune_multiply_back(const struct tune *t, const struct tune_matrix *m, float *dy,
                        const float *x, const float *y, float *dx, bool add, int n, double *grad)
{
    sum_up(t->be,
           (struct sums){ dy, y, m->bias, grad + m->at, grad + m->bias_at, n, m->stored->rows });
    struct scale s = { dy, t->factor + m->at, NULL, m->stored->rows };
    par_for(t->be->par, n, 0, scale_rows, &s);
    if (m->slopes.g != NULL)
        tune_slopes_add(t, m, dy, x, n);
    if (t->info != NULL)
        inform(t, m, dy, x, n);
    struct dense_product p = { .c = dx, .a = dy, .b = m->w, .m = n, .scale = 1, .add = add };
    p.n = m->stored->cols;
    p.k = m->stored->rows;
    p.a_row = (size_t)m->stored->rows;
    p.c_row = p.b_row = (size_t)m->stored->cols;
    p.a_col = p.b_col = 1;
    tune_product(t->be, &p);
}

/* ---- norms ------------------------------------------------------------------------------------------------------- */

struct norm {
    const float *x, *y, *w, *dy, *base;
    float *dx;
    int dim;
    float eps;
};

/* With s = 1 / sqrt(mean(x^2) + eps) and y = x s w: dx = s (w dy - x s mean(dy y)). */
static void norm_rows(void *arg, int first, int last, int i_thread)
{
    const struct norm *t = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)t->dim;
        double squares = 0;
        double dot = 0;
        for (int i = 0; i < t->dim; i++) {
            squares += (double)t->x[at + i] * (double)t->x[at + i];
            dot += (double)t->dy[at + i] * (double)t->y[at + i];
        }
        float s = (float)(1 / sqrt(squares / t->dim + (double)t->eps));
        float mean = (float)(dot / t->dim);
        for (int i = 0; i < t->dim; i++) {
            float d = s * (t->w[i] * t->dy[at + i] - t->x[at + i] * s * mean);
            t->dx[at + i] = (t->base != NULL ? t->base[at + i] : 0) + d;
        }
    }
}

void tune_norm_back(const struct tune *t, const float *x, const float *y, const float *w, int at,
                    const float *dy, const float *base, float *dx, int n, int dim, double *grad)
{
    sum_up(t->be, (struct sums){ dy, y, NULL, grad + at, NULL, n, dim });
    struct norm s = { x, y, w, dy, base, dx, dim, t->m->config.norm_eps };
    par_for(t->be->par, n, 0, norm_rows, &s);
}

/* ---- SwiGLU ------------------------------------------------------------------------------------------------------ */

struct swiglu {
    const float *gate, *up, *dact;
    float *dgate, *dup;
    size_t dim;
};

/* silu(a) = a s with s = 1 / (1 + exp(-a)), and its slope is s (1 + a (1 - s)). */
static void swiglu_rows(void *arg, int first, int last, int i_thread)
{
    const struct swiglu *t = arg;
    (void)i_thread;
    for (size_t i = (size_t)first * t->dim; i < (size_t)last * t->dim; i++) {
        float a = t->gate[i];
        float s = 1 / (1 + expf(-a));
        t->dgate[i] = t->dact[i] * t->up[i] * s * (1 + a * (1 - s));
        t->dup[i] = t->dact[i] * a * s;
    }
}

void tune_swiglu_back(const struct tune *t, const float *gate, const float *up, const float *dact,
                      float *dgate, float *dup, int n)
{
    struct swiglu s = { gate, up, dact, dgate, dup, (size_t)t->m->config.ffn };
    par_for(t->be->par, n, 0, swiglu_rows, &s);
}
