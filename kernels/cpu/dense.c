/* Dense products: the plain C that defines them, and the Cholesky solver that all levels share.
 *
 * The solver halves its triangle until DENSE_BASE rows are left, so nearly all of its work is products of large blocks,
 * without a block size that would have to be tuned. It works on the upper triangle because there the rows that a step
 * touches are adjacent in memory.
 */
#include "kernels/cpu/dense.h"

#include <math.h>

/* ---- the definition ---------------------------------------------------------------------------------------------- */

static void product_ref(const struct dense_product *t)
{
    for (int i = 0; i < t->m; i++)
        for (int j = t->upper ? i : 0; j < t->n; j++) {
            const float *a = t->a + (size_t)i * t->a_row, *b = t->b + (size_t)j * t->b_col;
            float *c = t->c + (size_t)i * t->c_row + j, sum = 0;
            for (int p = 0; p < t->k; p++)
                sum += a[(size_t)p * t->a_col] * b[(size_t)p * t->b_row];
            *c = (t->add ? *c : 0) + t->scale * sum;
        }
}

static void forward_ref(const float *u, size_t u_row, float *b, size_t b_row, int n, int m)
{
    for (int i = 0; i < n; i++) {
        float *x = b + (size_t)i * b_row;
        for (int j = 0; j < i; j++)
            for (int r = 0; r < m; r++)
                x[r] -= u[(size_t)j * u_row + i] * b[(size_t)j * b_row + r];
        for (int r = 0; r < m; r++)
            x[r] /= u[(size_t)i * u_row + i];
    }
}

static void back_ref(const float *u, size_t u_row, float *b, size_t b_row, int n, int m)
{
    for (int i = n - 1; i >= 0; i--) {
        float *x = b + (size_t)i * b_row;
        for (int j = i + 1; j < n; j++)
            for (int r = 0; r < m; r++)
                x[r] -= u[(size_t)i * u_row + j] * b[(size_t)j * b_row + r];
        for (int r = 0; r < m; r++)
            x[r] /= u[(size_t)i * u_row + i];
    }
}

static void exp_ref(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = expf(x[i]);
}

static const struct dense_kernel kernel_ref = { product_ref, forward_ref, back_ref, exp_ref };

static const struct dense_kernel *kernel_of(enum cpu_isa isa)
{
    static const struct dense_kernel *const list[CPU_ISA_N] = { &kernel_ref, &dense_kernel_avx2,
                                                                &dense_kernel_avx512,
                                                                &dense_kernel_avx512 };
    return list[isa];
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

void dense_nt(enum cpu_isa isa, float *c, const float *a, const float *b, int m, int n, int k,
              float scale)
{
    struct dense_product t = { .c = c, .a = a, .b = b, .m = m, .n = n, .k = k, .scale = scale };
    t.c_row = (size_t)n;
    t.a_row = t.b_col = (size_t)k;
    t.a_col = t.b_row = 1;
    kernel_of(isa)->product(&t);
}

/* c[m][n] += a b[k][n], a's numbers a_row and a_col apart. */
static void add_product(enum cpu_isa isa, float *c, const float *a, size_t a_row, size_t a_col,
                        const float *b, int m, int n, int k)
{
    struct dense_product t = { .c = c, .a = a, .b = b, .m = m, .n = n, .k = k, .scale = 1 };
    t.c_row = t.b_row = (size_t)n;
    t.a_row = a_row;
    t.a_col = a_col;
    t.b_col = 1;
    t.add = true;
    kernel_of(isa)->product(&t);
}

void dense_nn(enum cpu_isa isa, float *c, const float *a, const float *b, int m, int n, int k)
{
    add_product(isa, c, a, (size_t)k, 1, b, m, n, k);
}

void dense_tn(enum cpu_isa isa, float *c, const float *a, const float *b, int m, int n, int k)
{
    add_product(isa, c, a, 1, (size_t)m, b, m, n, k);
}

void dense_gram(enum cpu_isa isa, float *c, const float *a, int rows, int cols, bool of_rows)
{
    int n = of_rows ? rows : cols, k = of_rows ? cols : rows;
    struct dense_product t = { .c = c, .a = a, .b = a, .m = n, .n = n, .k = k, .scale = 1 };
    t.c_row = (size_t)n;
    t.a_row = t.b_col = of_rows ? (size_t)cols : 1;
    t.a_col = t.b_row = of_rows ? 1 : (size_t)cols;
    t.upper = true;
    kernel_of(isa)->product(&t);
}

void dense_product(enum cpu_isa isa, const struct dense_product *t)
{
    kernel_of(isa)->product(t);
}

void dense_exp(enum cpu_isa isa, float *y, const float *x, int n)
{
    kernel_of(isa)->exp(y, x, n);
}

/* ---- Cholesky ---------------------------------------------------------------------------------------------------- */

/* A block of rows and columns of a larger matrix. */
struct block {
    float *at;
    size_t row; /* floats from row to row */
};

static struct block block_at(struct block b, int row, int col)
{
    return (struct block){ b.at + (size_t)row * b.row + col, b.row };
}

/* The same of which nothing is written. */
struct given {
    const float *at;
    size_t row;
};

static struct given given_at(struct given b, int row, int col)
{
    return (struct given){ b.at + (size_t)row * b.row + col, b.row };
}

static struct given given(struct block b)
{
    return (struct given){ b.at, b.row };
}

/* c[m][n] -= a b, where a is stored as its transpose when a_turned. */
static void subtract(const struct dense_kernel *kernel, struct block c, struct given a,
                     bool a_turned, struct block b, int m, int n, int k, bool upper)
{
    struct dense_product t = { .c = c.at, .a = a.at, .b = b.at, .m = m, .n = n, .k = k };
    t.c_row = c.row;
    t.a_row = a_turned ? 1 : a.row;
    t.a_col = a_turned ? a.row : 1;
    t.b_row = b.row;
    t.b_col = 1;
    t.scale = -1;
    t.add = true;
    t.upper = upper;
    kernel->product(&t);
}

/* About half of n, so that whole bases are cut off; n is more than DENSE_BASE. */
static int half_of(int n)
{
    return (n / 2 + DENSE_BASE - 1) / DENSE_BASE * DENSE_BASE;
}

static void solve_forward(const struct dense_kernel *kernel, struct given u, struct block b, int n,
                          int m)
{
    if (n <= DENSE_BASE) {
        kernel->forward(u.at, u.row, b.at, b.row, n, m);
        return;
    }
    int h = half_of(n);
    solve_forward(kernel, u, b, h, m);
    subtract(kernel, block_at(b, h, 0), given_at(u, 0, h), true, b, n - h, m, h, false);
    solve_forward(kernel, given_at(u, h, h), block_at(b, h, 0), n - h, m);
}

static void solve_back(const struct dense_kernel *kernel, struct given u, struct block b, int n,
                       int m)
{
    if (n <= DENSE_BASE) {
        kernel->back(u.at, u.row, b.at, b.row, n, m);
        return;
    }
    int h = half_of(n);
    solve_back(kernel, given_at(u, h, h), block_at(b, h, 0), n - h, m);
    subtract(kernel, b, given_at(u, 0, h), false, block_at(b, h, 0), h, m, n - h, false);
    solve_back(kernel, u, b, h, m);
}

static bool factor_base(struct block a, int n)
{
    for (int i = 0; i < n; i++) {
        float *x = a.at + (size_t)i * a.row;
        if (!(x[i] > 0))
            return false;
        float d = sqrtf(x[i]);
        for (int j = i; j < n; j++)
            x[j] /= d;
        for (int r = i + 1; r < n; r++)
            for (int j = r; j < n; j++)
                a.at[(size_t)r * a.row + j] -= x[r] * x[j];
    }
    return true;
}

static bool factor(const struct dense_kernel *kernel, struct block a, int n)
{
    if (n <= DENSE_BASE)
        return factor_base(a, n);
    int h = half_of(n);
    struct block side = block_at(a, 0, h), rest = block_at(a, h, h);
    if (!factor(kernel, a, h))
        return false;
    solve_forward(kernel, given(a), side, h, n - h);
    subtract(kernel, rest, given(side), true, side, n - h, n - h, h, true);
    return factor(kernel, rest, n - h);
}

int dense_factor(enum cpu_isa isa, float *a, size_t a_row, int n)
{
    return factor(kernel_of(isa), (struct block){ a, a_row }, n) ? 0 : ERR_INVALID;
}

void dense_forward(enum cpu_isa isa, const float *u, size_t u_row, float *b, size_t b_row, int n,
                   int m)
{
    solve_forward(kernel_of(isa), (struct given){ u, u_row }, (struct block){ b, b_row }, n, m);
}

void dense_back(enum cpu_isa isa, const float *u, size_t u_row, float *b, size_t b_row, int n,
                int m)
{
    solve_back(kernel_of(isa), (struct given){ u, u_row }, (struct block){ b, b_row }, n, m);
}

int dense_cholesky(enum cpu_isa isa, float *a, float *b, int n, int m)
{
    TRY(dense_factor(isa, a, (size_t)n, n));
    dense_forward(isa, a, (size_t)n, b, (size_t)m, n, m);
    dense_back(isa, a, (size_t)n, b, (size_t)m, n, m);
    return 0;
}
