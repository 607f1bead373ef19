/* Dense products of every level against sums in double precision: sizes around every edge of the kernels, the Cholesky
 * solver by its residual, exp by its error.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/dense.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"
#include "tests/tools/worst.h"

enum { ROOM = 1 << 17, GUARD = 16 };
static const float GUARD_VALUE = 1234.5f;

static float a[ROOM], b[ROOM], c[ROOM], was[ROOM];

/* c[m][n] and what lies behind it. */
static void prepare(int m, int n, int k)
{
    assert_true(m * n + GUARD <= ROOM && m * k <= ROOM && n * k <= ROOM);
    rnd_fill(a, (size_t)(m * k), 1);
    rnd_fill(b, (size_t)(n * k), 1);
    rnd_fill(was, (size_t)(m * n), 1);
    memcpy(c, was, (size_t)(m * n) * sizeof *c);
    for (int i = 0; i < GUARD; i++)
        c[m * n + i] = GUARD_VALUE;
}

struct layout {
    int a_row, a_col, b_row, b_col;
};

/* Sums may be off by some roundings of what was added up; a term left out or taken twice is off by far more. */
static void check(int m, int n, int k, struct layout l, float scale, bool add, bool upper)
{
    for (int i = 0; i < m; i++)
        for (int j = upper ? i : 0; j < n; j++) {
            double sum = 0, size = 1;
            for (int p = 0; p < k; p++) {
                double x =
                    (double)a[i * l.a_row + p * l.a_col] * (double)b[p * l.b_row + j * l.b_col];
                sum += x;
                size += fabs(x);
            }
            sum = sum * (double)scale + (add ? (double)was[i * n + j] : 0);
            if (!(fabs((double)c[i * n + j] - sum) <= 1e-6 * size))
                fail_msg("m %d n %d k %d: c[%d][%d] is %g, not %g", m, n, k, i, j,
                         (double)c[i * n + j], sum);
        }
    for (int i = 0; i < GUARD; i++)
        assert_true(c[m * n + i] == GUARD_VALUE);
}

static void check_size(enum cpu_isa isa, int m, int n, int k)
{
    prepare(m, n, k);
    dense_nt(isa, c, a, b, m, n, k, 0.125f);
    check(m, n, k, (struct layout){ k, 1, 1, k }, 0.125f, false, false);
    prepare(m, n, k);
    dense_nn(isa, c, a, b, m, n, k);
    check(m, n, k, (struct layout){ k, 1, n, 1 }, 1, true, false);
    prepare(m, n, k);
    dense_tn(isa, c, a, b, m, n, k);
    check(m, n, k, (struct layout){ 1, m, n, 1 }, 1, true, false);

    prepare(m, m, k);
    memcpy(b, a, (size_t)(m * k) * sizeof *b);
    dense_gram(isa, c, a, m, k, true);
    check(m, m, k, (struct layout){ k, 1, 1, k }, 1, false, true);
    prepare(m, m, k);
    memcpy(b, a, (size_t)(m * k) * sizeof *b);
    dense_gram(isa, c, a, k, m, false);
    check(m, m, k, (struct layout){ 1, m, m, 1 }, 1, false, true);
}

static void test_products(void **state)
{
    (void)state;
    const int size[] = { 1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 80, 130 }, n = 16;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int i = 0; i < n && level[isa]; i++)
            for (int j = 0; j < n; j++) {
                check_size((enum cpu_isa)isa, size[i], size[j], size[(i + 3 * j) % n]);
                check_size((enum cpu_isa)isa, size[i], size[j], 1 + (7 * i + 31 * j) % 300);
            }
}

/* Rows of a result are those of the product of these rows alone, but for one row alone, and the same bits every time. */
static void test_same_bits(void **state)
{
    (void)state;
    const int m = 37, n = 83, k = 150;
    for (int isa = 0; isa < CPU_ISA_N; isa++) {
        if (!level[isa])
            continue;
        prepare(m, n, k);
        dense_nt((enum cpu_isa)isa, c, a, b, m, n, k, 1);
        dense_nt((enum cpu_isa)isa, was, a + 5 * k, b, 9, n, k, 1);
        assert_memory_equal(c + 5 * n, was, 9 * n * sizeof *c);
        dense_nt((enum cpu_isa)isa, was, a, b, m, n, k, 1);
        assert_memory_equal(c, was, (size_t)(m * n) * sizeof *c);
    }
}

/* ---- Cholesky ---------------------------------------------------------------------------------------------------- */

/* A matrix a = g g^T + ridge with a known solution; its lower triangle is NaN, as nobody may read it. Returns the largest
 * error of x, which is of size 1. */
static double solve_error(enum cpu_isa isa, int n, int m, float ridge)
{
    double *full = calloc((size_t)(n * n), sizeof *full);
    assert_non_null(full);
    rnd_fill(b, (size_t)(n * n), 1);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            for (int p = 0; p < n; p++)
                full[i * n + j] += (double)b[i * n + p] * (double)b[j * n + p] / n;
            a[i * n + j] = j < i ? NAN : (float)full[i * n + j] + (i == j ? ridge : 0);
        }
    rnd_fill(was, (size_t)(n * m), 1);
    for (int i = 0; i < n; i++)
        for (int r = 0; r < m; r++) {
            double sum = 0;
            for (int j = 0; j < n; j++)
                sum += (double)(i <= j ? a[i * n + j] : a[j * n + i]) * (double)was[j * m + r];
            c[i * m + r] = (float)sum;
        }
    c[n * m] = GUARD_VALUE;
    assert_int_equal(dense_cholesky(isa, a, c, n, m), 0);
    assert_true(c[n * m] == GUARD_VALUE);
    double worst = 0;
    for (int i = 0; i < n * m; i++)
        worst = worst_of(worst, fabs((double)c[i] - (double)was[i]));
    free(full);
    return worst;
}

static void test_cholesky(void **state)
{
    (void)state;
    const int size[][2] = { { 1, 1 },   { 2, 5 },   { 15, 16 },  { 16, 17 },
                            { 17, 64 }, { 33, 40 }, { 100, 64 }, { 257, 20 } };
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int i = 0; i < 8 && level[isa]; i++) {
            double worst = solve_error((enum cpu_isa)isa, size[i][0], size[i][1], 0.1f);
            if (!(worst < 1e-4)) /* condition below 50 */
                fail_msg("level %d n %d: off by %g", isa, size[i][0], worst);
        }
}

static void test_not_positive(void **state)
{
    (void)state;
    const int n = 40;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int bad = 0; bad < n && level[isa]; bad += 13)
            for (int kind = 0; kind < 3; kind++) {
                memset(a, 0, sizeof a);
                memset(b, 0, sizeof b);
                for (int i = 0; i < n; i++)
                    a[i * n + i] = 1;
                a[bad * n + bad] = kind == 0 ? 0 : kind == 1 ? -1 : NAN;
                assert_int_equal(dense_cholesky((enum cpu_isa)isa, a, b, n, 2), ERR_INVALID);
            }
}

/* ---- exp --------------------------------------------------------------------------------------------------------- */

static void test_exp(void **state)
{
    (void)state;
    const int n = 20011;
    for (int isa = 0; isa < CPU_ISA_N; isa++) {
        if (!level[isa])
            continue;
        for (int i = 0; i < n; i++)
            a[i] = -110 + 198.7f * (float)i / (float)(n - 1); /* to 88.7: the largest float */
        dense_exp((enum cpu_isa)isa, c, a, n);
        for (int i = 0; i < n; i++) {
            double y = exp((double)a[i]);
            double ulp = y < 0x1p-126 ? 0x1p-149 : ldexp(1, ilogb(y) - 23);
            if (!(fabs((double)c[i] - y) <= 4 * ulp))
                fail_msg("level %d: exp(%.9g) is off by %g ulp", isa, (double)a[i],
                         ((double)c[i] - y) / ulp);
        }
        const float odd[] = { -INFINITY, INFINITY, NAN, 0, -0.0f, -1e30f, 1e30f, -104, 89 };
        memcpy(a, odd, sizeof odd);
        a[9] = GUARD_VALUE;
        dense_exp((enum cpu_isa)isa, a, a, 9);
        const float want[] = { 0, INFINITY, NAN, 1, 1, 0, INFINITY, 0, INFINITY };
        for (int i = 0; i < 9; i++)
            assert_true(isnan(want[i]) ? isnan(a[i]) : a[i] == want[i]);
        assert_true(a[9] == GUARD_VALUE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products), cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_cholesky), cmocka_unit_test(test_not_positive),
        cmocka_unit_test(test_exp),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
