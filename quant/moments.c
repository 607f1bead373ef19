#include "quant/moments.h"

#include <stdlib.h>

#include "quant/gram.h"
#include "quant/inverse.h"
#include "quant/openblas.h"
#include "quant/rotate.h"
#include "server/base/mem.h"

/* ---- sums -------------------------------------------------------------------------------------------------------- */

static float square_length(const float *x, int cols)
{
    double sum = 0;
    for (int i = 0; i < cols; i++)
        sum += (double)x[i] * (double)x[i];
    return (float)sum;
}

/* Rows over the cap are rare: each is a product of its own, those between them go together. */
void moments_add(float *h, const float *x, int n, int cols, float cap, enum cpu_isa isa,
                 struct par *par)
{
    struct openblas library;
    const struct openblas *blas = openblas_open(&library) ? &library : NULL;
    int first = 0;
    for (int r = 0; r < n && cap > 0; r++) {
        const float *row = x + (size_t)r * (size_t)cols;
        float square = square_length(row, cols);
        if (!(square > cap))
            continue;
        gram_add(h, x + (size_t)first * (size_t)cols, r - first, cols, 1, blas, isa, par);
        gram_add(h, row, 1, cols, cap / square, blas, isa, par);
        first = r + 1;
    }
    gram_add(h, x + (size_t)first * (size_t)cols, n - first, cols, 1, blas, isa, par);
}

/* ---- ready for feedback ------------------------------------------------------------------------------------------ */

static size_t bytes_of(int cols)
{
    return (size_t)cols * (size_t)cols * sizeof(float);
}

/* to = both triangles of h / n_tokens */
static void divide(float *to, const float *h, int64_t n_tokens, int cols)
{
    float scale = n_tokens > 0 ? (float)(1 / (double)n_tokens) : 0;
    for (int i = 0; i < cols; i++)
        for (int j = i; j < cols; j++)
            to[(size_t)i * (size_t)cols + (size_t)j] = to[(size_t)j * (size_t)cols + (size_t)i] =
                h[(size_t)i * (size_t)cols + (size_t)j] * scale;
}

/* Mean of the diagonal; inputs that were never seen get it, all of them 1 if none was. */
static float fill_diagonal(float *h, int cols)
{
    double sum = 0;
    for (int i = 0; i < cols; i++)
        sum += (double)h[(size_t)i * (size_t)(cols + 1)];
    float mean = sum != 0 ? (float)(sum / cols) : 1;
    for (int i = 0; i < cols; i++)
        if (h[(size_t)i * (size_t)(cols + 1)] == 0)
            h[(size_t)i * (size_t)(cols + 1)] = mean;
    return mean;
}

static void add_to_diagonal(float *h, int cols, float x)
{
    for (int i = 0; i < cols; i++)
        h[(size_t)i * (size_t)(cols + 1)] += x;
}

/* Once more with ten times the damping when rounding has made h indefinite. */
static int factor(struct moments *m, float damping, struct par *par, struct err *e)
{
    struct openblas library;
    const struct openblas *blas = openblas_open(&library) ? &library : NULL;
    m->damping = damping;
    add_to_diagonal(m->h, m->cols, damping);
    int rc = inverse_factor(m->u, m->h, m->cols, blas, m->isa, par, e);
    if (rc != ERR_INVALID)
        return rc;
    add_to_diagonal(m->h, m->cols, 9 * damping);
    return inverse_factor(m->u, m->h, m->cols, blas, m->isa, par, e);
}

int moments_open(struct moments *m, const float *h, int64_t n_tokens, int cols, bool rotated,
                 float damp, enum cpu_isa isa, struct par *par, struct err *e)
{
    *m = (struct moments){ .cols = cols, .isa = isa };
    m->h = mem_map(bytes_of(cols));
    m->u = mem_map(bytes_of(cols));
    if (m->h == NULL || m->u == NULL) {
        moments_close(m);
        return err_set(e, ERR_NOMEM, "no memory for the moments of %d inputs (%zu bytes)", cols,
                       2 * bytes_of(cols));
    }
    divide(m->h, h, n_tokens, cols);
    if (rotated)
        rotate_moments(isa, par, m->h, cols);
    int rc = factor(m, damp * fill_diagonal(m->h, cols), par, e);
    if (rc < 0)
        moments_close(m);
    return rc;
}

/* ---- the order of feedback --------------------------------------------------------------------------------------- */

enum { LEVELS = 4 };
static const int width_of[LEVELS] = { 128, 64, 32, 1 };

struct place {
    int input;
    float size[LEVELS]; /* mean squares of the inputs of its block, at every width */
};

/* By the widest blocks first; those of a block stay together. */
static int by_size(const void *a, const void *b)
{
    const struct place *x = a;
    const struct place *y = b;
    for (int l = 0; l < LEVELS; l++) {
        if (x->size[l] != y->size[l])
            return x->size[l] > y->size[l] ? -1 : 1;
        if (x->input / width_of[l] != y->input / width_of[l])
            return x->input - y->input;
    }
    return 0;
}

static void sort(const struct moments *m, struct place *place)
{
    for (int i = 0; i < m->cols; i++)
        place[i].input = i;
    for (int l = 0; l < LEVELS; l++)
        for (int first = 0; first < m->cols; first += width_of[l]) {
            int end = first + width_of[l] < m->cols ? first + width_of[l] : m->cols;
            double sum = 0;
            for (int i = first; i < end; i++)
                sum += (double)m->h[(size_t)i * (size_t)(m->cols + 1)];
            for (int i = first; i < end; i++)
                place[i].size[l] = (float)sum;
        }
    qsort(place, (size_t)m->cols, sizeof *place, by_size);
}

/* Rows and columns of h in the order of m. */
static void gather(const struct moments *m, float *to)
{
    size_t cols = (size_t)m->cols;
    for (size_t i = 0; i < cols; i++) {
        const float *row = m->h + (size_t)m->order[i] * cols;
        for (size_t j = 0; j < cols; j++)
            to[i * cols + j] = row[m->order[j]];
    }
}

static int factor_ordered(struct moments *m, float *h, struct par *par, struct err *e)
{
    struct openblas library;
    const struct openblas *blas = openblas_open(&library) ? &library : NULL;
    gather(m, h);
    int rc = inverse_factor(m->u, h, m->cols, blas, m->isa, par, e);
    if (rc != ERR_INVALID)
        return rc;
    add_to_diagonal(m->h, m->cols,
                    9 * m->damping); /* rounding falls another way in another order */
    gather(m, h);
    return inverse_factor(m->u, h, m->cols, blas, m->isa, par, e);
}

int moments_reorder(struct moments *m, struct par *par, struct err *e)
{
    size_t cols = (size_t)m->cols;
    struct place *place = mem_alloc(cols * sizeof *place);
    float *h = mem_map(bytes_of(m->cols));
    int rc;
    m->order = mem_alloc(cols * sizeof *m->order);
    if (place == NULL || h == NULL || m->order == NULL) {
        rc = err_set(e, ERR_NOMEM, "no memory to sort %d inputs", m->cols);
    } else {
        sort(m, place);
        for (size_t i = 0; i < cols; i++)
            m->order[i] = place[i].input;
        rc = factor_ordered(m, h, par, e);
    }
    if (h != NULL)
        mem_unmap(h, bytes_of(m->cols));
    mem_free(place);
    return rc;
}

void moments_close(struct moments *m)
{
    mem_free(m->order);
    if (m->h != NULL)
        mem_unmap(m->h, bytes_of(m->cols));
    if (m->u != NULL)
        mem_unmap(m->u, bytes_of(m->cols));
    *m = (struct moments){ 0 };
}
