/* Memory, and the ops that work on each row by itself: rmsnorm, add, gather, swiglu. */
#include <math.h>
#include <string.h>

#include "tests/ops/check.h"
#include "tests/tools/levels.h"

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void check_block_of(struct check *c, size_t bytes)
{
    const struct be_ops *ops = c->be->ops;
    check_case(c, "%zu bytes", bytes);
    char *p = ops->alloc(c->be, bytes);
    check_that(c, CHECK_MEMORY, p != NULL && (uintptr_t)p % 64 == 0, "alloc gave %p", (void *)p);
    if (p == NULL)
        return;
    unsigned char *a = check_host(c, bytes), *b = check_host(c, bytes);
    memset(b, 1, bytes);
    check_get(c, c->be, b, p, bytes);
    check_same(c, CHECK_MEMORY, "a new block", b, a, bytes); /* zeros */
    for (size_t i = 0; i < bytes; i++)
        a[i] = (unsigned char)rnd_bits();
    memcpy(b, a, bytes);
    ops->upload(c->be, p, b, bytes);
    memset(b, 0, bytes); /* the source is the caller's again */
    check_get(c, c->be, b, p, bytes);
    check_same(c, CHECK_MEMORY, "what was uploaded", b, a, bytes);
    if (bytes > 40) { /* a part, at odd places */
        a[17] ^= 0xff;
        a[18] ^= 0xff;
        a[19] ^= 0xff;
        ops->upload(c->be, p + 17, a + 17, 3);
        memset(b, 0, bytes);
        check_get(c, c->be, b + 13, p + 13, bytes - 13);
        check_same(c, CHECK_MEMORY, "a part", b + 13, a + 13, bytes - 13);
    }
    ops->free(c->be, p, bytes);
    check_close(c, CHECK_MEMORY);
}

void check_memory(struct check *c)
{
    static const size_t sizes[] = { 1, 63, 4096, 9 << 20 };
    for (int i = 0; i < COUNT(sizes); i++)
        check_block_of(c, sizes[i]);
    c->be->ops->free(c->be, NULL, 1);
    size_t left = 1, total = 0;
    c->be->ops->memory(c->be, &left, &total);
    check_that(c, CHECK_MEMORY, left <= total && (total > 0 || c->be->host),
               "%zu of %zu bytes are free", left, total);
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static struct rows part_of(const struct rows *t, int row, int n)
{
    struct rows p = *t;
    size_t at = (size_t)row * (size_t)t->dim;
    p.x += at;
    p.y += p.y != NULL ? at : 0;
    p.n = n;
    p.row0 += row;
    return p;
}

void check_each_row(struct check *c, enum check_id id, rows_fn *fn, const struct rows *t,
                    double scale)
{
    size_t n = (size_t)t->n * (size_t)t->dim, dim = (size_t)t->dim;
    float *want = check_host(c, n * sizeof *want), *got = check_host(c, n * sizeof *got);
    float *other = check_host(c, n * sizeof *other);
    fn(c, c->ref, t, want);
    fn(c, c->be, t, got);
    check_near(c, id, got, want, n, scale);
    for (int i = 0; i < 3 && t->n > 1; i++) {
        int r = (t->n - 1) * i / 2;
        struct rows one = part_of(t, r, 1);
        fn(c, c->be, &one, other);
        check_same(c, id, "a row alone", other, got + (size_t)r * dim, dim * sizeof *got);
    }
    if (t->n < 3)
        return;
    struct rows bad = *t;
    int at = t->n / 2;
    bad.x = check_host(c, n * sizeof *bad.x);
    memcpy(bad.x, t->x, n * sizeof *bad.x);
    bad.x[(size_t)at * dim] = NAN;
    bad.x[(size_t)at * dim + dim - 1] = INFINITY;
    fn(c, c->be, &bad, other);
    size_t above = (size_t)at * dim, below = above + dim;
    check_same(c, id, "rows before NaN", other, got, above * sizeof *got);
    check_same(c, id, "rows behind NaN", other + below, got + below, (n - below) * sizeof *got);
    fn(c, c->ref, &bad, want);
    check_near(c, id, other, want, n, scale);
}

static const float EPS = 0.01f; /* large enough to be missed */

static void norm(struct check *c, struct be *be, const struct rows *t, float *out)
{
    size_t bytes = (size_t)t->n * (size_t)t->dim * sizeof(float);
    float *x = check_put(c, be, t->x, bytes), *y = check_room(c, be, bytes);
    float *w = check_put(c, be, t->w, (size_t)t->dim * sizeof(float));
    be->ops->rmsnorm(be, y, x, NULL, w, t->n, t->dim, EPS);
    check_get(c, be, out, y, bytes);
}

static void norm_in_place(struct check *c, struct be *be, const struct rows *t, float *out)
{
    size_t bytes = (size_t)t->n * (size_t)t->dim * sizeof(float);
    float *x = check_put(c, be, t->x, bytes);
    float *w = check_put(c, be, t->w, (size_t)t->dim * sizeof(float));
    be->ops->rmsnorm(be, x, x, NULL, w, t->n, t->dim, EPS);
    check_get(c, be, out, x, bytes);
}

/* The residual that is written back must be the sum to the bit; it is asked of the device only. */
static void norm_add(struct check *c, struct be *be, const struct rows *t, float *out)
{
    size_t n = (size_t)t->n * (size_t)t->dim, bytes = n * sizeof(float);
    float *x = check_put(c, be, t->x, bytes), *add = check_put(c, be, t->y, bytes);
    float *y = check_room(c, be, bytes), *sum = check_host(c, bytes);
    float *w = check_put(c, be, t->w, (size_t)t->dim * sizeof(float));
    be->ops->rmsnorm(be, y, x, add, w, t->n, t->dim, EPS);
    check_get(c, be, sum, x, bytes);
    check_get(c, be, out, y, bytes);
    long wrong = 0;
    for (size_t i = 0; i < n; i++) {
        float s = t->x[i] + t->y[i];
        wrong += memcmp(&s, &sum[i], sizeof s) != 0 && !(isnan(s) && isnan(sum[i]));
    }
    check_that(c, CHECK_RMSNORM, wrong == 0, "%ld residuals are not x + add", wrong);
}

static void add(struct check *c, struct be *be, const struct rows *t, float *out)
{
    size_t bytes = (size_t)t->n * (size_t)t->dim * sizeof(float);
    float *x = check_put(c, be, t->x, bytes), *y = check_put(c, be, t->y, bytes);
    be->ops->add(be, x, y, t->n, t->dim);
    check_get(c, be, out, x, bytes);
}

static void swiglu(struct check *c, struct be *be, const struct rows *t, float *out)
{
    size_t bytes = (size_t)t->n * (size_t)t->dim * sizeof(float);
    float *gate = check_put(c, be, t->x, bytes), *up = check_put(c, be, t->y, bytes);
    be->ops->swiglu(be, gate, gate, up, t->n, t->dim);
    check_get(c, be, out, gate, bytes);
}

static void swiglu_apart(struct check *c, struct be *be, const struct rows *t, float *out)
{
    size_t bytes = (size_t)t->n * (size_t)t->dim * sizeof(float);
    float *gate = check_put(c, be, t->x, bytes), *up = check_put(c, be, t->y, bytes);
    float *y = check_room(c, be, bytes);
    be->ops->swiglu(be, y, gate, up, t->n, t->dim);
    check_get(c, be, out, y, bytes);
}

/* Some rows, or none: rows wanted rise, and need not be all. */
static void check_gather(struct check *c, int n, int dim, bool any)
{
    int32_t row[64];
    int n_out = 0;
    for (int r = n > 2; any && r < n && n_out < 64; r += 1 + r % 3)
        row[n_out++] = r;
    struct be_step s = check_plain_step(c, n, NULL);
    s.out_row = row;
    s.n_out = n_out;
    size_t bytes = (size_t)dim * sizeof(float);
    float *x = check_floats(c, (size_t)n * (size_t)dim, 1),
          *got = check_host(c, (size_t)n_out * bytes);
    x[0] = NAN;
    float *dx = check_put(c, c->be, x, (size_t)n * bytes);
    float *dy = check_room(c, c->be, (size_t)check_padded(n_out) * bytes);
    check_begin(c, c->be, &s);
    c->be->ops->gather(c->be, dy, dx, s.out_row, s.n_out, dim);
    c->be->ops->step_end(c->be);
    check_get(c, c->be, got, dy, (size_t)n_out * bytes);
    for (int r = 0; r < n_out; r++)
        check_same(c, CHECK_GATHER, "a row", got + (size_t)r * (size_t)dim,
                   x + (size_t)row[r] * (size_t)dim, bytes);
}

/* Gates where exp overflows, underflows or is not finite. */
static void set_edges(float *x, int n)
{
    static const float edge[] = { 0,    -0.0f, 1e-30f,  -1e-30f,   88,       -88, 89,    -89,
                                  -104, 200,   -200.0f, -INFINITY, INFINITY, NAN, 1e30f, -1e30f };
    for (int i = 0; i < n && i < COUNT(edge); i++)
        x[i] = edge[i];
}

static void check_shape(struct check *c, int n, int dim)
{
    size_t size = (size_t)n * (size_t)dim;
    struct rows t = { .n = n, .dim = dim };
    static const struct {
        enum check_id id;
        rows_fn *fn;
        const char *name;
        float scale;
    } op[] = {
        { CHECK_RMSNORM, norm, "norm", 3 },
        { CHECK_RMSNORM, norm_in_place, "norm in place", 3 },
        { CHECK_RMSNORM, norm_add, "norm of a sum", 3 },
        { CHECK_ADD, add, "add", 1 },
        { CHECK_SWIGLU, swiglu, "swiglu in place", 20 },
        { CHECK_SWIGLU, swiglu_apart, "swiglu", 20 },
    };
    for (int i = 0; i < COUNT(op); i++) {
        check_case(c, "%s, %d rows of %d", op[i].name, n, dim);
        t.x = check_floats(c, size, op[i].scale);
        t.y = check_floats(c, size, 2);
        t.w = check_floats(c, (size_t)dim, 2);
        if (op[i].id == CHECK_SWIGLU)
            set_edges(t.x, (int)size);
        check_each_row(c, op[i].id, op[i].fn, &t, 0);
        check_close(c, op[i].id);
    }
    check_case(c, "gather, %d rows of %d", n, dim);
    check_gather(c, n, dim, true);
    check_gather(c, n, dim, false);
    check_close(c, CHECK_GATHER);
}

void check_rows(struct check *c)
{
    static const int dims[] = { 1, 17, 64, 100, 576, 2, 8, 15, 16, 31, 48, 63, 1000, 4096, 8192 };
    static const int counts[] = { 1, 5, 2, 60 };
    int n_dims = c->small ? 5 : COUNT(dims), n_counts = c->small ? 2 : COUNT(counts);
    for (int d = 0; d < n_dims; d++)
        for (int i = 0; i < n_counts; i++)
            check_shape(c, counts[i], dims[d]);
}
