/* Second moments: the sums against double precision, the triangle by what it promises, inverse(h) = u^T u; a BLAS, where
 * there is one, and our own blocks against each other; and that neither rows nor threads change a bit.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/gram.h"
#include "quant/inverse.h"
#include "quant/moments.h"
#include "quant/openblas.h"
#include "quant/rotate.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

enum { COLS = 300, TOKENS = 360 };

/* Widths around the edges of blocks and strips. */
static const int width[] = { 1, 5, 96, 97, 192, COLS };
enum { WIDTHS = sizeof width / sizeof *width };

static float x[TOKENS * COLS], h[COLS * COLS], u[COLS * COLS], other[COLS * COLS];

static void fill(int cols)
{
    rnd_seed(3);
    for (int t = 0; t < TOKENS; t++) {
        float common = rnd_normal();
        for (int j = 0; j < cols; j++)
            x[t * cols + j] = rnd_normal() * (float)(1 + j % 5) + common;
    }
}

static double sum_of(int cols, int n, float cap, int i, int j)
{
    double sum = 0;
    for (int t = 0; t < n; t++) {
        double square = 0;
        for (int k = 0; k < cols; k++)
            square += (double)x[t * cols + k] * (double)x[t * cols + k];
        double part = cap > 0 && square > (double)cap ? (double)cap / square : 1;
        sum += part * (double)x[t * cols + i] * (double)x[t * cols + j];
    }
    return sum;
}

static void check_sums(int cols, int n, float cap)
{
    for (int i = 0; i < cols; i += 1 + i / 7)
        for (int j = i; j < cols; j += 1 + j / 9) {
            double want = sum_of(cols, n, cap, i, j);
            if (!(fabs((double)h[i * cols + j] - want) < 1e-2))
                fail_msg("%d columns, %d rows, cap %g: h[%d][%d] is %g, not %g", cols, n,
                         (double)cap, i, j, (double)h[i * cols + j], want);
        }
}

static void sums_up(void **state)
{
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int w = 0; level[isa] != NULL && w < WIDTHS; w++) {
            int cols = width[w];
            fill(cols);
            memset(h, 0, sizeof h);
            moments_add(h, x, 0, cols, 0, (enum cpu_isa)isa, level[isa]->par);
            assert_true(h[0] == 0);
            moments_add(h, x, 100, cols, 0, (enum cpu_isa)isa, level[isa]->par);
            moments_add(h, x + 100 * cols, TOKENS - 100, cols, 0, (enum cpu_isa)isa,
                        level[isa]->par);
            check_sums(cols, TOKENS, 0);
        }
}

/* A row of a thousand times the others' length counts as the longest of them. */
static void caps_massive_rows(void **state)
{
    static const int massive[] = { 0, 50, 51, TOKENS - 1 };
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N && level[isa] != NULL; isa++)
        for (int i = 0; i < 4; i++) {
            fill(97);
            for (int k = 0; k <= i; k++)
                for (int j = 0; j < 97; j++)
                    x[massive[k] * 97 + j] *= 1000;
            memset(h, 0, sizeof h);
            moments_add(h, x, TOKENS, 97, 3000, (enum cpu_isa)isa, level[isa]->par);
            check_sums(97, TOKENS, 3000);
        }
}

/* All of a symmetric, damped h. */
static void make_h(int cols)
{
    fill(cols);
    memset(h, 0, sizeof h);
    gram_add(h, x, TOKENS, cols, 1.0f / TOKENS, NULL, CPU_REF, level[CPU_REF]->par);
    for (int i = 0; i < cols; i++) {
        h[i * cols + i] += 0.05f;
        for (int j = 0; j < i; j++)
            h[i * cols + j] = h[j * cols + i];
    }
}

/* u h u^T is 1: what inverse(h) = u^T u says, without an inverse. */
static void check_triangle(const float *of, const float *tri, int cols)
{
    static double uh[COLS * COLS];
    for (int i = 0; i < cols; i++)
        for (int j = 0; j < cols; j++) {
            double sum = 0;
            for (int k = i; k < cols; k++)
                sum += (double)tri[i * cols + k] * (double)of[k * cols + j];
            uh[i * cols + j] = sum;
            assert_true(j >= i || tri[i * cols + j] == 0);
        }
    for (int i = 0; i < cols; i++) {
        assert_true(tri[i * cols + i] > 0);
        for (int j = 0; j <= i; j++) {
            double sum = 0;
            for (int k = j; k < cols; k++)
                sum += uh[i * cols + k] * (double)tri[j * cols + k];
            if (!(fabs(sum - (i == j)) < 1e-4))
                fail_msg("%d columns: (u h u^T)[%d][%d] is %g", cols, i, j, sum);
        }
    }
}

static void factors_the_inverse(void **state)
{
    struct err e;
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int w = 0; level[isa] != NULL && w < WIDTHS; w++) {
            make_h(width[w]);
            assert_int_equal(
                inverse_factor(u, h, width[w], NULL, (enum cpu_isa)isa, level[isa]->par, &e), 0);
            check_triangle(h, u, width[w]);
        }
}

static void threads_change_nothing(void **state)
{
    struct err e;
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int n = 1; level[isa] != NULL && n < 3; n++) {
            struct par *par;
            assert_int_equal(par_open(&par, n, &e), 0);
            make_h(COLS);
            assert_int_equal(
                inverse_factor(u, h, COLS, NULL, (enum cpu_isa)isa, level[isa]->par, &e), 0);
            assert_int_equal(inverse_factor(other, h, COLS, NULL, (enum cpu_isa)isa, par, &e), 0);
            assert_memory_equal(u, other, sizeof u);
            memset(u, 0, sizeof u);
            memset(other, 0, sizeof other);
            gram_add(u, x, TOKENS, COLS, 1, NULL, (enum cpu_isa)isa, level[isa]->par);
            gram_add(other, x, TOKENS, COLS, 1, NULL, (enum cpu_isa)isa, par);
            assert_memory_equal(u, other, sizeof u);
            par_close(par);
        }
}

static double distance(int cols)
{
    double sum = 0, size = 0;
    for (int i = 0; i < cols; i++)
        for (int j = i; j < cols; j++) {
            double d = (double)u[i * cols + j] - (double)other[i * cols + j];
            sum += d * d;
            size += (double)u[i * cols + j] * (double)u[i * cols + j];
        }
    return sqrt(sum / size);
}

static void a_blas_agrees(void **state)
{
    struct err e;
    struct openblas b;
    (void)state;
    if (!openblas_open(&b))
        skip();
    struct be *be = level[cpu_isa_best()];
    for (int w = 0; w < WIDTHS; w++) {
        int cols = width[w];
        make_h(cols);
        assert_int_equal(inverse_factor(u, h, cols, NULL, be->isa, be->par, &e), 0);
        assert_int_equal(inverse_factor(other, h, cols, &b, be->isa, be->par, &e), 0);
        check_triangle(h, other, cols);
        assert_true(distance(cols) < 1e-5);
        memcpy(u, h, sizeof h);
        memcpy(other, h, sizeof h);
        gram_add(u, x, TOKENS, cols, 0.5f, NULL, be->isa, be->par);
        gram_add(other, x, TOKENS, cols, 0.5f, &b, be->isa, be->par);
        assert_true(distance(cols) < 1e-6);
    }
    h[0] = -1;
    assert_int_equal(inverse_factor(other, h, COLS, &b, be->isa, be->par, &e), ERR_INVALID);
}

/* Sums of 10 tokens of 40 inputs have rank 10, and input 7 is never seen. */
static void damps_and_fills(void **state)
{
    enum { N = 40 };
    struct err e;
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int rotated = 0; level[isa] != NULL && rotated < 2; rotated++) {
            struct moments m;
            double mean = 0;
            fill(N);
            for (int t = 0; t < TOKENS; t++)
                x[t * N + 7] = 0;
            memset(h, 0, sizeof h);
            moments_add(h, x, 10, N, 0, (enum cpu_isa)isa, level[isa]->par);
            assert_int_equal(
                moments_open(&m, h, 10, N, rotated, 0.02f, (enum cpu_isa)isa, level[isa]->par, &e),
                0);
            if (rotated)
                rotate_rows(CPU_REF, x, x, 10, N);
            for (int i = 0; i < N; i++)
                mean += sum_of(N, 10, 0, i, i) / 10 / N;
            for (int i = 0; i < N; i++)
                for (int j = 0; j < N; j++) {
                    double want = sum_of(N, 10, 0, i, j) / 10 + (i == j ? 0.02 * mean : 0);
                    want += i == j && i == 7 && !rotated ? mean : 0;
                    assert_true(fabs((double)m.h[i * N + j] - want) < 1e-4);
                }
            check_triangle(m.h, m.u, N);
            assert_true(m.cols == N && (int)m.isa == isa);
            moments_close(&m);
            assert_null(m.h);
        }
}

/* Of a block that is half there, 300 = 2 * 128 + 44, and of whole ones. */
static double block(const struct moments *m, int input, int wide)
{
    double sum = 0;
    int first = input / wide * wide;
    for (int i = first; i < first + wide && i < m->cols; i++)
        sum += (double)m->h[(size_t)i * (size_t)(m->cols + 1)];
    return sum;
}

/* Every input once, blocks of every width in one piece, the larger ones first within the next wider one. */
static void check_order(const struct moments *m)
{
    static const int wide[] = { 128, 64, 32, 1 };
    bool seen[COLS] = { false };
    for (int i = 0; i < m->cols; i++) {
        int at = m->order[i];
        assert_true(at >= 0 && at < m->cols && !seen[at]);
        seen[at] = true;
        for (int l = 0; i > 0 && l < 4; l++) {
            int before = m->order[i - 1];
            if (before / wide[l] == at / wide[l])
                continue;
            assert_true(block(m, before, wide[l]) > block(m, at, wide[l]) * (1 - 1e-6));
            for (int k = at / wide[l] * wide[l]; k < at; k++)
                assert_false(seen[k]); /* the block begins here */
            break;
        }
    }
}

static void reorders(void **state)
{
    struct moments m;
    struct err e;
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N && level[isa] != NULL; isa++) {
        make_h(COLS);
        for (int i = 0; i < COLS; i++) /* sums of blocks that differ */
            h[i * COLS + i] += (float)(i * 37 % 101);
        assert_int_equal(
            moments_open(&m, h, 1, COLS, false, 0.01f, (enum cpu_isa)isa, level[isa]->par, &e), 0);
        assert_null(m.order);
        assert_int_equal(moments_reorder(&m, level[isa]->par, &e), 0);
        check_order(&m);
        for (int i = 0; i < COLS; i++)
            for (int j = 0; j < COLS; j++)
                other[i * COLS + j] = m.h[m.order[i] * COLS + m.order[j]];
        check_triangle(other, m.u, COLS);
        moments_close(&m);
    }
    make_h(16);
    for (uint64_t i = 1; i <= 3; i++) {
        assert_int_equal(moments_open(&m, h, 1, 16, false, 0, CPU_REF, level[0]->par, &e), 0);
        mem_fail_at(i);
        assert_int_equal(moments_reorder(&m, level[0]->par, &e), ERR_NOMEM);
        mem_fail_at(0);
        moments_close(&m);
    }
}

/* An expert that no token went to is pressed as if its inputs were white. */
static void no_token_is_the_identity(void **state)
{
    struct moments m;
    struct err e;
    struct be *be = level[CPU_REF];
    (void)state;
    memset(h, 0, sizeof h);
    assert_int_equal(moments_open(&m, h, 0, 8, true, 0, CPU_REF, be->par, &e), 0);
    for (int i = 0; i < 64; i++)
        assert_true(m.h[i] == (i % 9 == 0) && m.u[i] == (i % 9 == 0));
    moments_close(&m);
}

static void refuses_what_is_no_matrix_of_moments(void **state)
{
    struct moments m;
    struct err e;
    struct be *be = level[CPU_REF];
    (void)state;
    memset(h, 0, sizeof h);
    h[0] = h[3] = 1;
    h[1] = 1.05f; /* eigenvalues 2.05 and -0.05: 0.01 is too little, ten times as much is not */
    assert_int_equal(moments_open(&m, h, 1, 2, false, 0.01f, CPU_REF, be->par, &e), 0);
    assert_true(fabsf(m.h[0] - 1.1f) < 1e-6f);
    moments_close(&m);
    h[1] = 1.2f;
    assert_int_equal(moments_open(&m, h, 1, 2, false, 0.01f, CPU_REF, be->par, &e), ERR_INVALID);
    assert_null(m.h);
    h[0] = NAN;
    assert_int_equal(moments_open(&m, h, 1, 2, false, 0.01f, CPU_REF, be->par, &e), ERR_INVALID);
}

static void says_when_memory_is_out(void **state)
{
    struct moments m;
    struct err e;
    struct be *be = level[CPU_REF];
    (void)state;
    make_h(16);
    for (uint64_t i = 1; i <= 2; i++) {
        mem_fail_at(i);
        assert_int_equal(moments_open(&m, h, 1, 16, false, 0, CPU_REF, be->par, &e), ERR_NOMEM);
        assert_null(m.h);
    }
    mem_fail_at(1);
    assert_int_equal(inverse_factor(u, h, 16, NULL, CPU_REF, be->par, &e), ERR_NOMEM);
    mem_fail_at(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_up),
        cmocka_unit_test(caps_massive_rows),
        cmocka_unit_test(factors_the_inverse),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(a_blas_agrees),
        cmocka_unit_test(damps_and_fills),
        cmocka_unit_test(reorders),
        cmocka_unit_test(no_token_is_the_identity),
        cmocka_unit_test(refuses_what_is_no_matrix_of_moments),
        cmocka_unit_test(says_when_memory_is_out),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
