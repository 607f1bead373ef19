/* Weights: the planes that a backend holds, rows of them, and products of every form with every preparation of the input.
 *
 * Products are compared with sums in doubles over decode(). The error of a product is taken relative to the root of the
 * sum of (w x)^2, the size that rounding errors of its terms add up to, whatever the width. */
#include <math.h>
#include <string.h>

#include "tests/ops/check.h"
#include "tests/tools/forms.h"
#include "tests/tools/levels.h"

/* A matrix on both backends, and its numbers. */
struct matrix {
    const struct form *form;
    int rows, cols;
    struct weight ref, w;
    float *number; /* [rows][cols], by decode() */
    float *bias;   /* host [rows] */
    float *d_bias;
};

static void open_matrix(struct check *c, struct matrix *m, const struct form *f, bool int8,
                        int rows, int cols)
{
    struct err e = { 0 };
    uint8_t *raw = check_host(c, (size_t)rows * (size_t)cols * 4);
    *m = (struct matrix){ .form = f, .rows = rows, .cols = cols };
    form_blocks(f->from, raw, rows, cols);
    int rc = form_open(&m->ref, c->ref, f, int8, rows, cols, raw, &e);
    if (rc == 0)
        rc = form_open(&m->w, c->be, f, int8, rows, cols, raw, &e);
    check_that(c, CHECK_PLANES, rc == 0, "%s", e.text);
    if (rc < 0)
        return;
    m->number = check_host(c, (size_t)rows * (size_t)cols * sizeof *m->number);
    for (int r = 0; r < rows; r++)
        m->ref.codec->decode(&m->ref, r, m->number + (size_t)r * (size_t)cols);
    m->bias = check_floats(c, (size_t)rows, 1);
    m->d_bias = check_put(c, c->be, m->bias, (size_t)rows * sizeof *m->bias);
    for (int i = 0; i < CODEC_PLANES; i++) {
        check_that(c, CHECK_PLANES, m->w.bytes[i] == m->ref.bytes[i],
                   "plane %d has %zu bytes, not %zu", i, m->w.bytes[i], m->ref.bytes[i]);
        if (m->w.plane[i] == NULL || m->w.bytes[i] != m->ref.bytes[i])
            continue;
        char *got = check_host(c, m->w.bytes[i]);
        check_get(c, c->be, got, m->w.plane[i], m->w.bytes[i]);
        check_same(c, CHECK_PLANES, "a plane", got, m->ref.plane[i], m->w.bytes[i]);
    }
}

static void close_matrix(struct check *c, struct matrix *m)
{
    weight_close(&m->ref, c->ref);
    weight_close(&m->w, c->be);
}

static enum check_id rule_of(const struct matrix *m)
{
    return CHECK_MUL_F32 + (int)m->w.prep;
}

/* Products of n rows of x (host) with n_m matrices that share the input; y[i] is host memory. */
static void multiply(struct check *c, const struct matrix *m, int n_m, const float *x, int n,
                     bool bias, float **y)
{
    struct matmul mul[MATMUL_MAX];
    struct input in;
    int cols = m[0].cols;
    float *dx = check_put(c, c->be, x, (size_t)n * (size_t)cols * sizeof *x);
    void *ws = check_room(c, c->be, input_ws_bytes(c->be, n, cols));
    for (int i = 0; i < n_m; i++)
        mul[i] =
            (struct matmul){ &m[i].w, bias ? m[i].d_bias : NULL,
                             check_room(c, c->be, (size_t)n * (size_t)m[i].rows * sizeof(float)) };
    input_set(&in, dx, n, cols, ws);
    weight_matmul(c->be, &in, mul, n_m);
    for (int i = 0; i < n_m; i++)
        check_get(c, c->be, y[i], mul[i].y, (size_t)n * (size_t)m[i].rows * sizeof(float));
}

static void near_numbers(struct check *c, enum check_id id, const struct matrix *m, const float *x,
                         int n, bool bias, const float *y)
{
    for (int r = 0; r < n; r++)
        for (int row = 0; row < m->rows; row++) {
            const float *w = m->number + (size_t)row * (size_t)m->cols;
            const float *in = x + (size_t)r * (size_t)m->cols;
            double sum = bias ? (double)m->bias[row] : 0, square = 1e-12;
            for (int k = 0; k < m->cols; k++) {
                double term = (double)w[k] * (double)in[k];
                sum += term;
                square += term * term;
            }
            if (bias)
                square += (double)m->bias[row] * (double)m->bias[row];
            check_error(c, id, "a product",
                        fabs((double)y[(size_t)r * (size_t)m->rows + (size_t)row] - sum) /
                            sqrt(square));
        }
}

/* The CPU's levels have the bits of the definition. */
static void same_as_ref(struct check *c, const struct matrix *m, const float *x, int n,
                        const float *y)
{
    if (!c->be->host)
        return;
    float *want = check_host(c, (size_t)n * (size_t)m->rows * sizeof *want);
    void *ws = check_host(c, input_ws_bytes(c->ref, n, m->cols));
    struct input in;
    input_set(&in, x, n, m->cols, ws);
    weight_matmul(c->ref, &in, &(struct matmul){ &m->ref, NULL, want }, 1);
    check_same(c, rule_of(m), "the definition", y, want,
               (size_t)n * (size_t)m->rows * sizeof *want);
}

/* Fewer rows than n_max, from `at` on: the bits they had among all. */
static void fewer_rows(struct check *c, const struct matrix *m, const float *x, const float *all,
                       int n, int at)
{
    size_t size = (size_t)n * (size_t)m->rows;
    float *y = check_host(c, size * sizeof *y);
    multiply(c, m, 1, x + (size_t)at * (size_t)m->cols, n, false, &y);
    check_same(c, rule_of(m), n == 1 ? "one row" : "fewer rows", y,
               all + (size_t)at * (size_t)m->rows, size * sizeof *y);
}

/* What is not finite shows in its own row, in all of it. */
static void not_finite(struct check *c, const struct matrix *m, const float *x, const float *all,
                       int n, float bad)
{
    size_t size = (size_t)n * (size_t)m->cols, row = (size_t)m->rows;
    float *spoiled = check_host(c, size * sizeof *spoiled);
    float *y = check_host(c, (size_t)n * row * sizeof *y);
    int at = n / 2;
    memcpy(spoiled, x, size * sizeof *spoiled);
    spoiled[(size_t)at * (size_t)m->cols + (size_t)m->cols / 2] = bad;
    multiply(c, m, 1, spoiled, n, false, &y);
    for (int r = 0; r < n; r++)
        if (r != at)
            check_same(c, rule_of(m), "a row beside NaN", y + (size_t)r * row,
                       all + (size_t)r * row, row * sizeof *y);
    for (size_t i = 0; i < row && isnan(bad); i++)
        check_that(c, rule_of(m), !isfinite(y[(size_t)at * row + i]), "NaN gives %g",
                   (double)y[(size_t)at * row + i]);
}

static void check_lookup(struct check *c, const struct matrix *m)
{
    int32_t id[] = { m->rows - 1, 0, m->rows / 2, m->rows / 2, m->rows / 3 };
    enum { N = COUNT(id) };
    size_t row = (size_t)m->cols * sizeof(float);
    float *got = check_host(c, N * row), *want = check_host(c, N * row);
    float *dx = check_room(c, c->be, (size_t)check_padded(N) * row);
    struct be_step s = check_plain_step(c, N, NULL);
    s.token = id;
    check_begin(c, c->be, &s);
    weight_rows(&m->w, c->be, s.token, s.n_rows, dx);
    c->be->ops->step_end(c->be);
    check_get(c, c->be, got, dx, N * row);
    for (int r = 0; r < N; r++)
        memcpy((char *)want + (size_t)r * row, m->number + (size_t)id[r] * (size_t)m->cols, row);
    check_near(c, CHECK_WEIGHT_ROWS, got, want, N * (size_t)m->cols, 0);
}

static void check_form(struct check *c, const struct form *f, bool int8, int rows, int cols,
                       int n_max)
{
    static const int fewer[] = { 1, 2, 7, 8, 9, 17, 33, 65, 130 };
    struct matrix m;
    check_case(c, "%s%s, %d x %d, %d rows", f->form, int8 ? " int8" : "", rows, cols, n_max);
    open_matrix(c, &m, f, int8, rows, cols);
    if (m.number != NULL) {
        float *x = check_host(c, (size_t)n_max * (size_t)cols * sizeof *x);
        float *y = check_host(c, (size_t)n_max * (size_t)rows * sizeof *y);
        float *with_bias = check_host(c, (size_t)n_max * (size_t)rows * sizeof *with_bias);
        rnd_fill_normal(x, (size_t)n_max * (size_t)cols, 1);
        multiply(c, &m, 1, x, n_max, false, &y);
        near_numbers(c, rule_of(&m), &m, x, n_max, false, y);
        same_as_ref(c, &m, x, n_max, y);
        int few = n_max < 9 ? n_max : 9;
        multiply(c, &m, 1, x, few, true, &with_bias);
        near_numbers(c, rule_of(&m), &m, x, few, true, with_bias);
        for (int i = 0; i < COUNT(fewer) && fewer[i] < n_max; i++) {
            fewer_rows(c, &m, x, y, fewer[i], n_max - fewer[i]);
            if (!c->small)
                fewer_rows(c, &m, x, y, fewer[i], 0);
        }
        if (n_max >= 3) {
            not_finite(c, &m, x, y, few, NAN);
            not_finite(c, &m, x, y, few, INFINITY);
            not_finite(c, &m, x, y, few, 3e38f);
        }
        check_lookup(c, &m);
    }
    check_close(c, rule_of(&m));
    close_matrix(c, &m);
}

/* Hundreds of rows by cuBLAS: inputs and weights rounded to bf16, and no promise about company. */
static void check_by_blas(struct check *c, const struct form *f, bool int8, int rows, int cols)
{
    enum { N = 300 };
    struct matrix m;
    check_case(c, "%s%s by cublas, %d x %d, %d rows", f->form, int8 ? " int8" : "", rows, cols, N);
    open_matrix(c, &m, f, int8, rows, cols);
    if (m.number != NULL) {
        float *x = check_host(c, N * (size_t)cols * sizeof *x);
        float *y = check_host(c, N * (size_t)rows * sizeof *y);
        rnd_fill_normal(x, N * (size_t)cols, 1);
        multiply(c, &m, 1, x, N, true, &y);
        near_numbers(c, CHECK_MUL_BLAS, &m, x, N, true, y);
    }
    check_close(c, CHECK_MUL_BLAS);
    close_matrix(c, &m);
}

void check_blas(struct check *c)
{
    for (int f = 0; f < FORMS; f++)
        for (int int8 = 0; int8 < 2; int8++)
            check_by_blas(c, &form_list[f], int8, 100, c->small ? 96 : 576);
    for (int f = 0; f < 3; f++)
        check_by_blas(c, &form_list[f], true, 33, 7);
}

/* Matrices of several forms and heights that share an input: the bits of each by itself. */
static void check_many(struct check *c, const int form[MATMUL_MAX], bool int8)
{
    enum { COLS = 64, N = 5 };
    static const int rows[MATMUL_MAX] = { 40, 16, 1, 31 };
    struct matrix m[MATMUL_MAX];
    float *x = check_host(c, N * COLS * sizeof *x), *y[MATMUL_MAX],
          *one = check_host(c, N * 40 * sizeof *one);
    bool ok = true;
    check_case(c, "matrices that share an input%s", int8 ? ", int8" : "");
    rnd_fill_normal(x, N * COLS, 1);
    for (int i = 0; i < MATMUL_MAX; i++) {
        open_matrix(c, &m[i], &form_list[form[i]], int8, rows[i], COLS);
        y[i] = check_host(c, (size_t)(N * rows[i]) * sizeof(float));
        ok = ok && m[i].number != NULL;
    }
    for (int n_m = 2; ok && n_m <= MATMUL_MAX; n_m++) {
        multiply(c, m, n_m, x, N, true, y);
        for (int i = 0; i < n_m; i++) {
            multiply(c, &m[i], 1, x, N, true, &one);
            check_same(c, rule_of(&m[i]), "a matrix by itself", y[i], one,
                       (size_t)(N * rows[i]) * sizeof(float));
        }
    }
    check_close(c, rule_of(&m[0]));
    for (int i = 0; i < MATMUL_MAX; i++)
        close_matrix(c, &m[i]);
}

/* Units of every height, alone and behind full ones, where several panels are kept together; inputs of several groups. */
static void check_units(struct check *c)
{
    static const int more[] = { 160, 250, 256 };
    for (int f = 0; f < FORMS; f++) {
        int step = !c->small ? 1 : f >= FORMS_SINGLE ? 3 : 8;
        for (int panels = 1; panels <= 8; panels += step)
            check_form(c, &form_list[f], panels % 2, panels * CODEC_PANEL - panels % 3, 64, 3);
        for (int i = 0; i < COUNT(more) && !c->small; i++)
            check_form(c, &form_list[f], i % 2, more[i], 128, 3);
    }
    for (int f = 0; f < FORMS_WIDE; f++)
        for (int int8 = 0; int8 < 2; int8++)
            if (!c->small || int8 == f / 2 % 2)
                check_form(c, &form_wide[f], int8, c->small ? 140 : 150, c->small ? 256 : 384,
                           c->small ? 9 : 33);
}

/* Forms that only files bring. Rounding their numbers for int8 inputs costs more than the rule for those allows. */
static void check_published(struct check *c)
{
    for (int f = 0; f < FORMS_PUBLISHED; f++)
        for (int int8 = 0; int8 < (c->be->host ? 1 : 2); int8++) {
            check_form(c, &form_published[f], int8, c->small ? 40 : 100, 288, c->small ? 9 : 130);
            check_form(c, &form_published[f], int8, 17, 32, 9);
        }
}

void check_codec(struct check *c)
{
    /* bf16, q8, q4m, q4; two that rotate, then two that do not */
    static const int mixed[][MATMUL_MAX] = { { 2, 3, 4, 5 }, { 12, 12, 7, 4 } };
    static const int shape[][3] = { { 100, 576, 130 }, { 17, 32, 33 }, { 31, 2048, 9 },
                                    { 1, 64, 9 },      { 16, 96, 17 }, { 300, 1536, 130 } };
    for (int f = 0; f < FORMS; f++)
        for (int int8 = 0; int8 < 2; int8++)
            for (int i = 0; i < (c->small ? 3 : COUNT(shape)); i++)
                check_form(c, &form_list[f], int8, shape[i][0], shape[i][1], shape[i][2]);
    for (int f = 0; f < 3; f++) { /* dense takes any width */
        check_form(c, &form_list[f], f % 2, 33, 7, 9);
        check_form(c, &form_list[f], f % 2, 5, 1, 3);
    }
    if (!c->small)
        for (int f = 0; f < FORMS; f++)
            check_form(c, &form_list[f], f % 2, 64, 128, 700);
    check_units(c);
    check_published(c);
    for (int i = 0; i < 4; i++)
        check_many(c, mixed[i / 2], i % 2);
}
