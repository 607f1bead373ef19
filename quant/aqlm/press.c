/* The aqlm encoder: codes, codebooks and scales for a whole matrix, knowing the second moments H of its inputs. After AQLM
 * (arXiv 2401.06118, section 3), with other means for each step:
 *
 *   start     residual k-means
 *   codes     group after group with error feedback (quant/feedback.h), all pairs of entries tried, in the metric of the group
 *             that feedback leaves; AQLM takes turns over codebooks, which leaves 15 % more error on Gaussian weights
 *   scales    of each row, fitted to its codes (feedback_refit)
 *   books     all entries at once, fitted to the codes in the metric of H (learn.c)
 *   again     codes, scales, books; in the end each group's codes once more, all others being what they are
 *
 * Of Gaussian weights 2x8 leaves .0912 of the variance (4096 x 1024). With inputs that lean on each other (512 x 512) it is .0405
 * after the start, .0381 after two rounds of codes and books, .0357 after eight; then .0337 and .0329 after one and two rounds in
 * which each group is coded once more.
 *
 * Codebooks are learned from some rows, evenly spread; then all rows get codes, and the codebooks are fitted to all of them.
 */
#include "quant/aqlm/press.h"

#include <math.h>
#include <string.h>

#include "kernels/dense.h"
#include "quant/feedback.h"
#include "server/base/mem.h"

enum { SAMPLE = 1024, FEEDS = 6, IMPROVES = 3 };

/* ---- units ------------------------------------------------------------------------------------------------------- */

void aqlm_unit_sum(const struct aqlm_press *p, const float *book, int unit, float *to)
{
    size_t n = (size_t)aqlm_unit_rows(p, unit), g = (size_t)p->shape.group;
    const float *scale = p->rows.scale + (ptrdiff_t)unit * AQLM_UNIT;
    for (int j = 0; j < p->cols / p->shape.group; j++, to += g * n) {
        const uint16_t *code = aqlm_unit_code(p, unit, j);
        memset(to, 0, g * n * sizeof *to);
        for (int m = 0; m < p->shape.books; m++)
            for (size_t r = 0; r < n; r++, code++) {
                const float *c = book + (((size_t)m << p->shape.bits) + *code) * g;
                for (size_t t = 0; t < g; t++)
                    to[t * n + r] += c[t];
            }
        for (size_t t = 0; t < g; t++)
            for (size_t r = 0; r < n; r++)
                to[t * n + r] *= scale[r];
    }
}

void aqlm_weigh(const struct aqlm_press *p, const float *x, int n, float *to)
{
    size_t cols = (size_t)p->cols;
    struct dense_product t = { .c = to, .a = p->m->h, .b = x, .m = p->cols, .n = n, .k = p->cols };
    t.scale = 1;
    t.a_row = 1;
    t.a_col = cols;
    t.b_row = t.c_row = (size_t)n;
    t.b_col = 1;
    dense_product(p->m->isa, &t);
}

/* What is done to a unit, at a thread's desk. */
typedef int unit_fn(struct aqlm_press *p, struct aqlm_desk *d, int unit, struct err *e);

struct task {
    struct aqlm_press *p;
    unit_fn *fn;
    atomic_bool failed;
    struct err err; /* of the one that failed first */
};

static void some_units(void *arg, int first, int last, int i_thread)
{
    struct task *t = arg;
    struct err e;
    for (int u = first; u < last && !atomic_load(&t->failed); u++)
        if (t->fn(t->p, &t->p->desk[i_thread], u, &e) < 0 && !atomic_exchange(&t->failed, true))
            t->err = e;
}

static int for_units(struct aqlm_press *p, unit_fn *fn, struct err *e)
{
    struct task t = { .p = p, .fn = fn };
    par_for(p->par, p->rows.units, 1, some_units, &t);
    return t.failed ? err_set(e, t.err.code, "%s", t.err.text) : 0;
}

/* ---- codes ------------------------------------------------------------------------------------------------------- */

struct group {
    struct aqlm_press *p;
    struct aqlm_desk *d;
    int unit;
};

/* Codes of group j; q: the sums of their entries. */
static void search_group(const struct group *a, int j, const float *d, const float *u, bool go_on,
                         float *q)
{
    const struct aqlm_press *p = a->p;
    aqlm_search_set(&a->d->search, p->book, d);
    aqlm_search_run(&a->d->search, u, aqlm_unit_rows(p, a->unit), go_on,
                    aqlm_unit_code(p, a->unit, j), q);
}

/* Rows times 1 / scale, or times scale. */
static void scale_rows(const struct group *a, const float *x, bool over, float *to)
{
    int n = aqlm_unit_rows(a->p, a->unit);
    const float *scale = a->p->rows.scale + (ptrdiff_t)a->unit * AQLM_UNIT;
    for (int t = 0; t < a->p->shape.group; t++)
        for (int r = 0; r < n; r++, x++, to++)
            *to = over ? (scale[r] > 0 ? *x / scale[r] : 0) : *x * scale[r];
}

/* to[g][n] = d[g][g] x[g][n], d symmetric */
static void small_product(const struct aqlm_press *p, const float *d, size_t d_row, const float *x,
                          int n, float *to, bool add)
{
    struct dense_product t = { .c = to, .a = d, .b = x, .n = n, .scale = 1, .add = add };
    t.m = t.k = p->shape.group;
    t.a_row = d_row;
    t.a_col = t.b_col = 1;
    t.b_row = t.c_row = (size_t)n;
    dense_product(p->m->isa, &t);
}

/* A feedback_fn. */
static void next_group(void *arg, int j0, int b, int n, const float *x, const float *metric,
                       float *q)
{
    const struct group *a = arg;
    float d[AQLM_GROUP_MAX * AQLM_GROUP_MAX];
    float y[AQLM_GROUP_MAX * AQLM_UNIT], u[AQLM_GROUP_MAX * AQLM_UNIT];
    enum cpu_isa isa = a->p->m->isa;
    dense_nt(isa, d, metric, metric, b, b, b, 1);
    scale_rows(a, x, true, y);
    small_product(a->p, d, (size_t)b, y, n, u, false);
    search_group(a, j0 / b, d, u, false, q);
    scale_rows(a, q, false, q);
}

/* All codes of a unit, then its scales. */
static int feed_unit(struct aqlm_press *p, struct aqlm_desk *d, int unit, struct err *e)
{
    int n = aqlm_unit_rows(p, unit);
    const float *w = aqlm_unit_w(p, unit);
    float *scale = p->rows.scale + (ptrdiff_t)unit * AQLM_UNIT;
    struct group a = { p, d, unit };
    float factor[AQLM_UNIT];
    memcpy(d->x, w, (size_t)p->cols * (size_t)n * sizeof *w);
    TRY(feedback_run(p->m, d->x, d->y, n, p->shape.group, next_group, &a, e));
    TRY(feedback_refit(p->m, w, d->y, n, factor, e));
    for (int r = 0; r < n; r++)
        scale[r] *= factor[r];
    return 0;
}

/* x -= H[.., j g ..] lost: what is left when group j has changed by it */
static void pass_on(const struct aqlm_press *p, int j, const float *lost, int n, float *x)
{
    struct dense_product t = { .c = x, .b = lost, .m = p->cols, .n = n, .k = p->shape.group };
    t.a = p->m->h + (size_t)j * (size_t)p->shape.group * (size_t)p->cols;
    t.scale = -1;
    t.add = true;
    t.a_row = t.b_col = 1;
    t.a_col = (size_t)p->cols;
    t.b_row = t.c_row = (size_t)n;
    dense_product(p->m->isa, &t);
}

/* Each group's codes once more, with all others as they are: the loss is a quadratic form in the group, with H's block as its
 * metric, and what the others want of it in y = H (W - W^). */
static int improve_unit(struct aqlm_press *p, struct aqlm_desk *d, int unit, struct err *e)
{
    int n = aqlm_unit_rows(p, unit), g = p->shape.group;
    size_t size = (size_t)p->cols * (size_t)n, part = (size_t)g * (size_t)n;
    const float *w = aqlm_unit_w(p, unit);
    float *scale = p->rows.scale + (ptrdiff_t)unit * AQLM_UNIT;
    struct group a = { p, d, unit };
    float h[AQLM_GROUP_MAX * AQLM_GROUP_MAX], factor[AQLM_UNIT];
    float u[AQLM_GROUP_MAX * AQLM_UNIT], q[AQLM_GROUP_MAX * AQLM_UNIT];
    aqlm_unit_sum(p, p->book, unit, d->x);
    for (size_t i = 0; i < size; i++)
        d->z[i] = w[i] - d->x[i];
    aqlm_weigh(p, d->z, n, d->y);
    for (int j = 0; j < p->cols / g; j++) {
        float *was = d->x + (size_t)j * part;
        for (int t = 0; t < g; t++)
            memcpy(h + (ptrdiff_t)t * g,
                   p->m->h + (size_t)(j * g + t) * (size_t)p->cols + (size_t)(j * g),
                   (size_t)g * sizeof *h);
        memcpy(q, d->y + (size_t)j * part, part * sizeof *q);
        small_product(p, h, (size_t)g, was, n, q, true);
        scale_rows(&a, q, true, u);
        search_group(&a, j, h, u, true, q);
        scale_rows(&a, q, false, q);
        for (size_t i = 0; i < part; i++) {
            float moved = q[i] - was[i];
            was[i] = q[i];
            q[i] = moved;
        }
        pass_on(p, j, q, n, d->y);
    }
    TRY(feedback_refit(p->m, w, d->x, n, factor, e));
    for (int r = 0; r < n; r++)
        scale[r] *= factor[r];
    return 0;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static void close_rows(struct aqlm_rows *r)
{
    mem_free(r->w);
    mem_free(r->scale);
    mem_free(r->code);
    mem_free(r->sum);
    *r = (struct aqlm_rows){ 0 };
}

/* Root mean square; 0 for a row with numbers that are none, which is pressed as zeros. */
static float first_scale(const float *x, int cols)
{
    double sum = 0;
    for (int k = 0; k < cols; k++)
        sum += (double)x[k] * (double)x[k];
    return isfinite(sum) ? (float)sqrt(sum / cols) : 0;
}

/* n of the `all` rows of src, evenly spread. */
static int open_rows(struct aqlm_press *p, const float *src, int all, int n, struct err *e)
{
    struct aqlm_rows *r = &p->rows;
    size_t cols = (size_t)p->cols, groups = (size_t)(p->cols / p->shape.group);
    *r = (struct aqlm_rows){ .n = n, .units = (n + AQLM_UNIT - 1) / AQLM_UNIT };
    r->w = mem_zalloc((size_t)n * cols, sizeof *r->w);
    r->scale = mem_zalloc((size_t)n, sizeof *r->scale);
    r->code = mem_zalloc((size_t)n * groups * (size_t)p->shape.books, sizeof *r->code);
    r->sum = mem_zalloc((size_t)r->units * aqlm_numbers(p->shape), sizeof *r->sum);
    if (r->w == NULL || r->scale == NULL || r->code == NULL || r->sum == NULL) {
        close_rows(r);
        return err_set(e, ERR_NOMEM, "no memory to press %d rows of %d weights", n, p->cols);
    }
    for (int i = 0; i < n; i++) {
        const float *row = src + (size_t)((int64_t)i * all / n) * cols;
        int unit = i / AQLM_UNIT;
        float *to = aqlm_unit_w(p, unit) + i % AQLM_UNIT;
        r->scale[i] = first_scale(row, p->cols);
        for (size_t k = 0; k < cols && r->scale[i] > 0; k++)
            to[k * (size_t)aqlm_unit_rows(p, unit)] = row[k];
    }
    return 0;
}

/* ---- the matrix -------------------------------------------------------------------------------------------------- */

static void close_press(struct aqlm_press *p)
{
    close_rows(&p->rows);
    for (int i = 0; p->desk != NULL && i < par_threads(p->par); i++) {
        aqlm_search_close(&p->desk[i].search);
        mem_free(p->desk[i].x);
    }
    mem_free(p->desk);
    mem_free(p->book);
}

static int open_press(struct aqlm_press *p, struct err *e)
{
    int threads = par_threads(p->par);
    size_t size = (size_t)p->cols * AQLM_UNIT;
    p->book = mem_zalloc(aqlm_numbers(p->shape), sizeof *p->book);
    p->desk = mem_zalloc((size_t)threads, sizeof *p->desk);
    bool ok = p->book != NULL && p->desk != NULL;
    for (int i = 0; ok && i < threads; i++) {
        struct aqlm_desk *d = &p->desk[i];
        d->x = mem_zalloc(3 * size, sizeof *d->x);
        ok = d->x != NULL && aqlm_search_open(&d->search, p->shape, p->m->isa, e) == 0;
        d->y = ok ? d->x + size : NULL;
        d->z = ok ? d->y + size : NULL;
    }
    return ok ? 0 : err_set(e, ERR_NOMEM, "no memory to press %d columns", p->cols);
}

/* As f16 keeps it. */
static uint16_t to_half(float x)
{
    enum { F16_MAX = 65504 };
    return f32_to_f16(fminf(fmaxf(x, -F16_MAX), F16_MAX));
}

/* Files keep codes signed, of any number of bits: the upper half wraps around. */
static void store_code(struct weight *w, struct aqlm_shape s, int row, int j, int m, unsigned code)
{
    unsigned wrapped = code >= 1u << (s.bits - 1) ? code - (1u << s.bits) : code;
    size_t at = (size_t)(aqlm_codes(w, s, row / CODEC_PANEL, j, m) - (uint8_t *)w->plane[0]) +
                (size_t)(row % CODEC_PANEL * aqlm_code_bytes(s));
    uint16_t both = (uint16_t)wrapped;
    memcpy((uint8_t *)w->plane[0] + at, &both, (size_t)aqlm_code_bytes(s));
}

/* To the planes of w. */
static int store(const struct aqlm_press *p, struct weight *w, struct err *e)
{
    size_t numbers = aqlm_numbers(p->shape);
    uint16_t *half = mem_zalloc(numbers, sizeof *half);
    if (half == NULL)
        return err_set(e, ERR_NOMEM, "no memory for codebooks of %zu numbers", numbers);
    for (size_t i = 0; i < numbers; i++)
        half[i] = to_half(p->book[i]);
    aqlm_set_books(w, half);
    mem_free(half);
    for (int u = 0; u < p->rows.units; u++)
        for (int j = 0; j < p->cols / p->shape.group; j++) {
            const uint16_t *code = aqlm_unit_code(p, u, j);
            for (int m = 0; m < p->shape.books; m++)
                for (int r = 0; r < aqlm_unit_rows(p, u); r++)
                    store_code(w, p->shape, u * AQLM_UNIT + r, j, m, *code++);
        }
    for (int r = 0; r < w->rows; r++)
        ((uint16_t *)w->plane[2])[r] = to_half(p->rows.scale[r]);
    return 0;
}

/* ---- the matrix -------------------------------------------------------------------------------------------------- */

/* The work, in passes over all rows: what has been done of it. */
struct passes {
    const struct press_watch *watch;
    double done, all;
};

static int pass(struct passes *t, double n, struct err *e)
{
    t->done += n;
    if (t->watch == NULL || t->watch->go_on(t->watch->arg, t->done / t->all))
        return 0;
    return err_set(e, ERR_CANCELLED, "stopped");
}

/* Codes, scales and codebooks of the rows at hand: a pass each. */
static int go_over(struct aqlm_press *p, unit_fn *fn, struct err *e)
{
    TRY(for_units(p, fn, e));
    return aqlm_learn_books(p, e);
}

static int press_rows(struct aqlm_press *p, const float *src, int all, struct passes *t,
                      struct err *e)
{
    int n = all < SAMPLE ? all : SAMPLE;
    double part = (double)n / all;
    t->all = FEEDS * part + (n < all) + IMPROVES;
    TRY(open_rows(p, src, all, n, e));
    TRY(aqlm_learn_start(p, e));
    for (int i = 0; i < FEEDS; i++) {
        TRY(go_over(p, feed_unit, e));
        TRY(pass(t, part, e));
    }
    if (n < all) {
        close_rows(&p->rows);
        TRY(open_rows(p, src, all, all, e));
        TRY(go_over(p, feed_unit, e));
        TRY(pass(t, 1, e));
    }
    for (int i = 0; i < IMPROVES; i++) {
        TRY(go_over(p, improve_unit, e));
        TRY(pass(t, 1, e));
    }
    return 0;
}

/* Inputs of which nothing is known count all the same. */
static int open_equal(struct moments *m, int cols, struct par *par, struct err *e)
{
    float *h = mem_zalloc((size_t)cols * (size_t)cols, sizeof *h);
    if (h == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the moments of %d inputs", cols);
    int rc = moments_open(m, h, 0, cols, false, 0, cpu_isa_best(), par, e);
    mem_free(h);
    return rc;
}

int aqlm_press_all(struct weight *w, const float *src, const struct moments *m, struct par *par,
                   const struct press_watch *watch, struct err *e)
{
    struct moments equal = { 0 };
    struct passes t = { .watch = watch };
    if (m == NULL)
        TRY(open_equal(&equal, w->cols, par, e));
    struct aqlm_press p = { .m = m != NULL ? m : &equal, .par = par, .cols = w->cols };
    p.shape = aqlm_shape(w->variant);
    int rc = open_press(&p, e);
    if (rc == 0)
        rc = press_rows(&p, src, w->rows, &t, e);
    if (rc == 0)
        rc = store(&p, w, e);
    close_press(&p);
    moments_close(&equal);
    return rc;
}
