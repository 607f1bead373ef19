/* The two ways to u: by a BLAS, or in blocks of EDGE rows and columns with the products of kernels/dense.h.
 *
 * The blocks: w by the right-looking Cholesky of LAPACK's potrf, then each strip of columns of inverse(w) by itself, from
 * w x = unit vectors.
 */
#include "quant/inverse.h"

#include <string.h>

#include "kernels/dense.h"
#include "quant/openblas.h"
#include "server/base/mem.h"

enum { EDGE = 96 };

struct triangle {
    float *w; /* [n][n] */
    float *t; /* [n][n], inverse(w) */
    int n;
    enum cpu_isa isa;
    int done; /* rows of w that are final */
};

static int edge_at(int first, int n)
{
    return n - first < EDGE ? n - first : EDGE;
}

/* ---- Cholesky ---------------------------------------------------------------------------------------------------- */

/* Strips of columns right of the block that was factored last. */
static void solve_strips(void *arg, int first, int last, int i_thread)
{
    const struct triangle *f = arg;
    size_t n = (size_t)f->n;
    float *row = f->w + (size_t)(f->done - EDGE) * n;
    (void)i_thread;
    for (int i = first; i < last; i++) {
        int j = f->done + i * EDGE;
        dense_forward(f->isa, row + f->done - EDGE, n, row + j, n, EDGE, edge_at(j, f->n));
    }
}

/* Strips of rows below it: minus what the block's rows have taken. */
static void update_strips(void *arg, int first, int last, int i_thread)
{
    const struct triangle *f = arg;
    size_t n = (size_t)f->n;
    (void)i_thread;
    for (int i = first; i < last; i++) {
        int j = f->done + i * EDGE;
        struct dense_product t = { .k = EDGE, .scale = -1, .add = true, .upper = true };
        t.a = t.b = f->w + (size_t)(f->done - EDGE) * n + j;
        t.c = f->w + (size_t)j * n + j;
        t.m = edge_at(j, f->n);
        t.n = f->n - j;
        t.a_row = t.b_col = 1;
        t.a_col = t.b_row = t.c_row = n;
        dense_product(f->isa, &t);
    }
}

static int factor(struct triangle *f, struct par *par)
{
    size_t n = (size_t)f->n;
    for (f->done = 0; f->done < f->n;) {
        TRY(dense_factor(f->isa, f->w + (size_t)f->done * (n + 1), n, edge_at(f->done, f->n)));
        f->done += EDGE;
        int strips = (f->n - f->done + EDGE - 1) / EDGE;
        if (strips <= 0)
            break;
        par_for(par, strips, 1, solve_strips, f);
        par_for(par, strips, 1, update_strips, f);
    }
    return 0;
}

/* ---- inverse of the triangle ------------------------------------------------------------------------------------- */

/* Strips of columns, the last and longest first. */
static void invert_strips(void *arg, int first, int last, int i_thread)
{
    const struct triangle *f = arg;
    size_t n = (size_t)f->n;
    (void)i_thread;
    for (int i = first; i < last; i++) {
        int j = ((f->n - 1) / EDGE - i) * EDGE, width = edge_at(j, f->n);
        for (int k = j; k < j + width; k++)
            f->t[(size_t)k * (n + 1)] = 1;
        dense_back(f->isa, f->w, n, f->t + j, n, j + width, width);
    }
}

/* ---- both -------------------------------------------------------------------------------------------------------- */

/* to = P from P: rows and columns in reverse order. */
static void reverse(float *to, const float *from, int n)
{
    size_t all = (size_t)n * (size_t)n;
    for (size_t i = 0; i < all; i++)
        to[i] = from[all - 1 - i];
}

/* t = P t^T P for an upper triangle, zeros below it: mirrored at the other diagonal. */
static void mirror(float *t, int n)
{
    for (int i = 0; i < n; i++) {
        memset(t + (size_t)i * (size_t)n, 0, (size_t)i * sizeof *t);
        for (int j = i; j < n - 1 - i; j++) {
            float *a = t + (size_t)i * (size_t)n + j;
            float *b = t + (size_t)(n - 1 - j) * (size_t)n + (n - 1 - i);
            float swapped = *a;
            *a = *b;
            *b = swapped;
        }
    }
}

static int by_blas(const struct openblas *blas, float *u, const float *h, int n)
{
    reverse(u, h, n);
    return openblas_cholesky(blas, u, n) && openblas_invert(blas, u, n) ? 0 : ERR_INVALID;
}

static int by_blocks(float *u, float *w, const float *h, int n, enum cpu_isa isa, struct par *par)
{
    struct triangle f = { .w = w, .t = u, .n = n, .isa = isa };
    reverse(w, h, n);
    memset(u, 0, (size_t)n * (size_t)n * sizeof *u);
    TRY(factor(&f, par));
    par_for(par, (n + EDGE - 1) / EDGE, 1, invert_strips, &f);
    return 0;
}

int inverse_factor(float *u, const float *h, int n, const struct openblas *blas, enum cpu_isa isa,
                   struct par *par, struct err *e)
{
    size_t bytes = (size_t)n * (size_t)n * sizeof *u;
    int rc;
    if (blas != NULL) {
        rc = by_blas(blas, u, h, n);
    } else {
        float *w = mem_map(bytes);
        if (w == NULL)
            return err_set(e, ERR_NOMEM, "no memory to factor %d x %d moments (%zu bytes)", n, n,
                           bytes);
        rc = by_blocks(u, w, h, n, isa, par);
        mem_unmap(w, bytes);
    }
    if (rc < 0)
        return err_set(e, rc,
                       "the second moments of %d inputs are not positive definite: they need more "
                       "tokens or more damping",
                       n);
    mirror(u, n);
    return 0;
}
