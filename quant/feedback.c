/* Error feedback: what a column lost goes at once to the others of its stretch of LAZY columns, and to all later columns
 * in one product when the stretch is done ("lazy batch updates", GPTQ section 3.3).
 */
#include "quant/feedback.h"

#include <string.h>

#include "kernels/dense.h"
#include "server/base/mem.h"

enum { BLOCK_MAX = 32, LAZY = 96 };

struct feedback {
    const struct moments *m;
    float *x; /* [cols][n] */
    int n;
    float *loss;                         /* [LAZY][n], of the stretch that begins at `first` */
    float metric[BLOCK_MAX * BLOCK_MAX]; /* of the block at hand */
    float lost[];                        /* [BLOCK_MAX][n]: x - q */
};

/* Columns [j, end) of x -= u[i0.., j..]^T loss, for the k rows of loss from column i0 on. */
static void pass_on(const struct feedback *f, int i0, int k, const float *loss, int j, int end)
{
    size_t cols = (size_t)f->m->cols, n = (size_t)f->n;
    struct dense_product t = { .m = end - j, .n = f->n, .k = k, .scale = -1, .add = true };
    if (j == end)
        return;
    t.c = f->x + (size_t)j * n;
    t.a = f->m->u + (size_t)i0 * cols + (size_t)j;
    t.b = loss;
    t.a_row = t.b_col = 1;
    t.a_col = cols;
    t.b_row = t.c_row = n;
    dense_product(f->m->isa, &t);
}

/* metric[b][b] = inverse(u[j.., j..]), a column at a time from its diagonal upwards. */
static void invert(const struct moments *m, int j, int b, float *metric)
{
    const float *u = m->u + (size_t)j * (size_t)m->cols + j;
    memset(metric, 0, (size_t)(b * b) * sizeof *metric);
    for (int c = 0; c < b; c++)
        for (int r = c; r >= 0; r--) {
            const float *ur = u + (size_t)r * (size_t)m->cols;
            double sum = r == c;
            for (int k = r + 1; k <= c; k++)
                sum -= (double)ur[k] * (double)metric[k * b + c];
            metric[r * b + c] = (float)(sum / (double)ur[r]);
        }
}

/* loss[b][n] = metric^T (x - q) */
static void measure(struct feedback *f, int b, const float *x, const float *q, float *loss)
{
    size_t n = (size_t)f->n;
    struct dense_product t = { .c = loss, .a = f->metric, .b = f->lost, .m = b, .n = f->n, .k = b };
    for (size_t i = 0; i < (size_t)b * n; i++)
        f->lost[i] = x[i] - q[i];
    t.scale = 1;
    t.a_row = t.b_col = 1;
    t.a_col = (size_t)b;
    t.c_row = t.b_row = n;
    dense_product(f->m->isa, &t);
}

static void quantise(struct feedback *f, int j, int b, float *q, float *loss, feedback_fn *fn,
                     void *arg)
{
    float *x = f->x + (size_t)j * (size_t)f->n;
    if (b > 1) {
        invert(f->m, j, b, f->metric);
        fn(arg, j, b, f->n, x, f->metric, q);
        measure(f, b, x, q, loss);
        return;
    }
    float scale = 1 / f->m->u[(size_t)j * (size_t)f->m->cols + j];
    fn(arg, j, 1, f->n, x, NULL, q);
    for (int i = 0; i < f->n; i++)
        loss[i] = (x[i] - q[i]) * scale;
}

int feedback_run(const struct moments *m, float *x, float *q, int n, int block, feedback_fn *fn,
                 void *arg, struct err *e)
{
    size_t floats = (size_t)(BLOCK_MAX + LAZY) * (size_t)n;
    struct feedback *f = mem_alloc(sizeof *f + floats * sizeof(float));
    if (f == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the losses of %d rows", n);
    f->m = m;
    f->x = x;
    f->n = n;
    f->loss = f->lost + (size_t)BLOCK_MAX * (size_t)n;
    int stretch = LAZY / block * block;
    for (int first = 0; first < m->cols; first += stretch) {
        int end = first + stretch < m->cols ? first + stretch : m->cols;
        for (int j = first; j < end; j += block) {
            float *loss = f->loss + (size_t)(j - first) * (size_t)n;
            quantise(f, j, block, q + (size_t)j * (size_t)n, loss, fn, arg);
            pass_on(f, j, block, loss, j + block, end);
        }
        pass_on(f, first, end - first, f->loss, end, m->cols);
    }
    mem_free(f);
    return 0;
}

/* ---- the best factor of each row --------------------------------------------------------------------------------- */

enum { PART = 64 }; /* columns whose products with H are made together */

static void add_dots(double *sum, const float *x, const float *y, int n)
{
    for (int i = 0; i < n; i++)
        sum[i] += (double)x[i] * (double)y[i];
}

int feedback_refit(const struct moments *m, const float *w, const float *q, int n, float *factor,
                   struct err *e)
{
    size_t rows = (size_t)n;
    struct dense_product t = { .b = q, .n = n, .k = m->cols, .scale = 1, .b_col = 1 };
    double *qw = mem_zalloc(rows, 2 * sizeof(double));
    t.c = mem_alloc(PART * rows * sizeof(float));
    if (qw == NULL || t.c == NULL) {
        mem_free(t.c);
        mem_free(qw);
        return err_set(e, ERR_NOMEM, "no memory to refit %d rows", n);
    }
    double *qq = qw + rows;
    t.a_row = 1;
    t.a_col = (size_t)m->cols;
    t.b_row = t.c_row = rows;
    for (int j = 0; j < m->cols; j += PART) {
        t.m = m->cols - j < PART ? m->cols - j : PART;
        t.a = m->h + j;
        dense_product(m->isa, &t);
        for (int i = 0; i < t.m; i++) {
            size_t at = (size_t)(j + i) * rows;
            add_dots(qw, t.c + (size_t)i * rows, w + at, n);
            add_dots(qq, t.c + (size_t)i * rows, q + at, n);
        }
    }
    for (int i = 0; i < n; i++)
        factor[i] = qq[i] > 0 ? (float)(qw[i] / qq[i]) : 1;
    mem_free(t.c);
    mem_free(qw);
    return 0;
}

void feedback_turn(const float *src, float *dst, int n, int cols)
{
    enum { TILE = 16 };
    for (int r0 = 0; r0 < n; r0 += TILE)
        for (int j = 0; j < cols; j++)
            for (int r = r0; r < n && r < r0 + TILE; r++)
                dst[(size_t)j * (size_t)n + (size_t)r] = src[(size_t)r * (size_t)cols + (size_t)j];
}
