/* tr(E H E^T) / tr(W H W^T) with E what pressing changed in W: the part of the energy of W's outputs that is lost on the
 * calibration text. H is the raw sum, in the space of the inputs as they are: a rotation of them changes neither trace.
 *
 * QUANTIZE_ROWS rows stand for all: a matrix takes 2 * QUANTIZE_ROWS * cols^2 multiply-adds, and twice as many rows change
 * the ratio by a few percent of itself. Traces are sums over blocks of rows in a fixed order, whatever the number of threads. */
#include "server/base/mem.h"
#include "server/model/arch.h"
#include "server/quantize/quantize.h"

enum { BLOCK = 8 };

struct trace {
    double lost, all;
};

struct loss {
    const struct quantize *q;
    struct pressed *p;
    const struct sums *sums;
    struct trace *block; /* of every block of every matrix */
    float *scratch;      /* [threads][3][BLOCK][cols]: rows of E, of W, scratch */
    size_t step;
};

static int n_samples(const struct pressed *p)
{
    return p->w.rows < QUANTIZE_ROWS ? p->w.rows : QUANTIZE_ROWS;
}

/* sum of x^T H x over n rows, h the upper triangle; y[n][cols]: scratch. Running along the rows of h reads it once for
 * all rows of x. */
static double quadratic(const float *h, const float *x, float *y, int n, int cols)
{
    double sum = 0;
    for (int i = 0; i < n * cols; i++)
        y[i] = 0;
    for (int i = 0; i < cols; i++) {
        const float *row = h + (size_t)i * (size_t)cols;
        for (int r = 0; r < n; r++) {
            float *to = y + (size_t)r * (size_t)cols;
            float v = x[(size_t)r * (size_t)cols + (size_t)i];
            sum += (double)v * ((double)row[i] * (double)v + 2 * (double)to[i]);
            for (int j = i + 1; j < cols; j++)
                to[j] += v * row[j];
        }
    }
    return sum;
}

static double squares(const float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

/* The traces of rows [first, last) of the sample. */
static struct trace measure(const struct loss *l, const struct pressed *p, int first, int last,
                            float *scratch)
{
    int cols = p->w.cols;
    size_t size = (size_t)BLOCK * (size_t)cols;
    float *w = scratch + size;
    for (int i = first; i < last; i++) {
        int row = (int)((int64_t)i * p->w.rows / n_samples(p));
        float *lost = scratch + (size_t)(i - first) * (size_t)cols;
        float *all = w + (size_t)(i - first) * (size_t)cols;
        weight_row(&p->w, row, lost);
        quantize_row(l->q, p, row, all);
        for (int j = 0; j < cols; j++)
            lost[j] -= all[j];
    }
    int n = last - first;
    if (l->sums == NULL)
        return (struct trace){ squares(scratch, n * cols), squares(w, n * cols) };
    const float *h = l->sums->h[p->slot->reads];
    return (struct trace){ quadratic(h, scratch, w + size, n, cols),
                           quadratic(h, w, w + size, n, cols) };
}

static void measure_blocks(void *arg, int first, int last, int i_thread)
{
    struct loss *l = arg;
    float *scratch = l->scratch + (size_t)i_thread * l->step;
    int i = 0;
    for (int b = first; b < last; b++) {
        while (b >= l->p[i].end)
            i++;
        const struct pressed *p = &l->p[i];
        int row = (b - (i > 0 ? p[-1].end : 0)) * BLOCK;
        int end = row + BLOCK < n_samples(p) ? row + BLOCK : n_samples(p);
        l->block[b] = measure(l, p, row, end, scratch);
    }
}

static void add_up(struct loss *l, int n)
{
    for (int i = 0, b = 0; i < n; i++) {
        struct trace t = { 0 };
        for (; b < l->p[i].end; b++) {
            t.lost += l->block[b].lost;
            t.all += l->block[b].all;
        }
        l->p[i].error = t.all == 0 ? 0 : t.lost / t.all;
        l->p[i].energy = t.all / n_samples(&l->p[i]);
    }
}

int quantize_loss(const struct quantize *q, struct pressed *p, int n, const struct sums *s,
                  struct err *e)
{
    struct par *par = q->session.be->par;
    struct loss l = { .q = q, .p = p, .sums = s };
    int blocks = 0;
    for (int i = 0; i < n; i++) {
        size_t floats = 3 * (size_t)BLOCK * (size_t)p[i].w.cols;
        l.step = floats > l.step ? floats : l.step;
        p[i].end = blocks += (n_samples(&p[i]) + BLOCK - 1) / BLOCK;
    }
    l.block = mem_zalloc((size_t)blocks, sizeof *l.block);
    l.scratch = mem_zalloc((size_t)par_threads(par) * l.step, sizeof(float));
    if (l.block != NULL && l.scratch != NULL) {
        par_for(par, blocks, 1, measure_blocks, &l);
        add_up(&l, n);
    }
    bool ok = l.block != NULL && l.scratch != NULL;
    mem_free(l.scratch);
    mem_free(l.block);
    return ok ? 0 : err_set(e, ERR_NOMEM, "no memory to measure what was lost");
}
