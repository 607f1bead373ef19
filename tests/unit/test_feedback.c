/* Error feedback against its own definition: what a column is when its turn comes is where the columns still to come would
 * be best, given what those before them have become. Solved densely in double precision, without the triangle.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/feedback.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

enum { COLS = 200, ROWS = 40, TOKENS = 300 };

static float sums[COLS * COLS], sample[TOKENS * COLS];
static float w[COLS * ROWS], x[COLS * ROWS], q[COLS * ROWS];

/* Inputs that lean on each other, as those of a model do. */
static void make_moments(struct moments *m, int cols, enum cpu_isa isa)
{
    struct err e;
    rnd_seed(7);
    for (int t = 0; t < TOKENS; t++) {
        float common = rnd_normal();
        for (int j = 0; j < cols; j++)
            sample[t * cols + j] = rnd_normal() * (j % 7 == 3 ? 4.0f : 1.0f) + common;
    }
    memset(sums, 0, sizeof sums);
    moments_add(sums, sample, TOKENS, cols, 0, isa, level[isa]->par);
    assert_int_equal(moments_open(m, sums, TOKENS, cols, false, 0.01f, isa, level[isa]->par, &e),
                     0);
}

struct told {
    int next;    /* the column that must come */
    double loss; /* |(x - q) metric|^2 of all blocks so far */
};

/* To the grid of integers. */
static void nearest(void *arg, int j0, int b, int n, const float *from, const float *metric,
                    float *to)
{
    struct told *t = arg;
    assert_int_equal(j0, t->next);
    assert_true((metric == NULL) == (b == 1));
    t->next += b;
    for (int i = 0; i < b * n; i++)
        to[i] = rintf(from[i]);
    for (int c = 0; b > 1 && c < b; c++)
        for (int r = 0; r < n; r++) {
            double loss = 0;
            for (int k = 0; k < b; k++)
                loss += (double)(from[k * n + r] - to[k * n + r]) * (double)metric[k * b + c];
            t->loss += loss * loss;
        }
}

static double run(const struct moments *m, int n, int block)
{
    struct err e;
    struct told t = { 0 };
    memcpy(x, w, sizeof x);
    assert_int_equal(feedback_run(m, x, q, n, block, nearest, &t, &e), 0);
    assert_int_equal(t.next, m->cols);
    return t.loss;
}

/* s = inverse(a) s for a symmetric positive a[n][n] in rows of COLS. */
static void solve(double a[COLS][COLS], double *s, int n)
{
    for (int p = 0; p < n; p++)
        for (int i = p + 1; i < n; i++) {
            double f = a[i][p] / a[p][p];
            for (int k = p; k < n; k++)
                a[i][k] -= f * a[p][k];
            s[i] -= f * s[p];
        }
    for (int i = n - 1; i >= 0; i--) {
        for (int k = i + 1; k < n; k++)
            s[i] -= a[i][k] * s[k];
        s[i] /= a[i][i];
    }
}

/* Column j of row r, once those before j0 are q: w - inverse(H_later) H_later,before (q - w)_before. */
static double best_later(const struct moments *m, int j0, int j, int r, int n)
{
    static double a[COLS][COLS], s[COLS];
    for (int i = j0; i < m->cols; i++) {
        s[i - j0] = 0;
        for (int k = 0; k < j0; k++)
            s[i - j0] +=
                (double)m->h[i * m->cols + k] * ((double)q[k * n + r] - (double)w[k * n + r]);
        for (int k = j0; k < m->cols; k++)
            a[i - j0][k - j0] = (double)m->h[i * m->cols + k];
    }
    solve(a, s, m->cols - j0);
    return (double)w[j * n + r] - s[j - j0];
}

static void columns_are_best_in_turn(void **state)
{
    static const int shape[][3] = { { 40, 3, 1 }, { 96, 2, 8 }, { 130, 2, 1 }, { 144, 2, 24 } };
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int i = 0; level[isa] != NULL && i < 4; i++) {
            int cols = shape[i][0], n = shape[i][1], block = shape[i][2];
            struct moments m;
            make_moments(&m, cols, (enum cpu_isa)isa);
            rnd_fill_normal(w, (size_t)(cols * n), 2);
            run(&m, n, block);
            for (int j = 0; j < cols; j += j < cols - 12 ? 11 : 1)
                for (int r = 0; r < n; r++) {
                    double want = best_later(&m, j / block * block, j, r, n);
                    if (!(fabs((double)x[j * n + r] - want) < 2e-4))
                        fail_msg("%d columns, block %d: column %d is %g, not %g", cols, block, j,
                                 (double)x[j * n + r], want);
                }
            moments_close(&m);
        }
}

/* tr((W - Q) H (W - Q)^T) */
static double loss_of(const struct moments *m, int n)
{
    double sum = 0;
    for (int i = 0; i < m->cols; i++)
        for (int j = 0; j < m->cols; j++)
            for (int r = 0; r < n; r++)
                sum += (double)m->h[i * m->cols + j] *
                       ((double)w[i * n + r] - (double)q[i * n + r]) *
                       ((double)w[j * n + r] - (double)q[j * n + r]);
    return sum;
}

/* The sum over blocks of |(x - q) inverse(u_block)|^2, by forward substitution: d = l u. */
static double loss_of_blocks(const struct moments *m, int n, int block)
{
    double sum = 0, l[32];
    for (int j = 0; j < m->cols; j += block)
        for (int r = 0; r < n; r++)
            for (int c = 0; c < block; c++) {
                const float *u = m->u + j * m->cols + j + c;
                l[c] = (double)x[(j + c) * n + r] - (double)q[(j + c) * n + r];
                for (int k = 0; k < c; k++)
                    l[c] -= l[k] * (double)u[k * m->cols];
                l[c] /= (double)u[c * m->cols];
                sum += l[c] * l[c];
            }
    return sum;
}

static void losses_add_up(void **state)
{
    static const int block[] = { 1, 2, 8, 24, 32 };
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int i = 0; level[isa] != NULL && i < 5; i++) {
            struct moments m;
            make_moments(&m, 192, (enum cpu_isa)isa);
            rnd_fill_normal(w, sizeof w / sizeof *w, 2);
            double told = run(&m, 17, block[i]), all = loss_of(&m, 17);
            double parts = loss_of_blocks(&m, 17, block[i]);
            if (!(fabs(all - parts) < 1e-4 * all))
                fail_msg("block %d: a loss of %g, but %g in parts", block[i], all, parts);
            if (block[i] > 1 && !(fabs(all - told) < 1e-4 * all))
                fail_msg("block %d: a loss of %g, but %g by the metric", block[i], all, told);
            for (size_t k = 0; k < 192 * 17; k++)
                q[k] = rintf(w[k]);
            assert_true(all < 0.75 * loss_of(&m, 17));
            moments_close(&m);
        }
}

/* A row alone, and among others. */
static void rows_do_not_know_of_each_other(void **state)
{
    static const int some[] = { 1, 2, 16, 33 };
    static float all_x[COLS * ROWS], all_q[COLS * ROWS], all_w[COLS * ROWS];
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int block = 1; level[isa] != NULL && block < 8; block += 4) {
            struct moments m;
            int cols = block == 1 ? 129 : 195;
            make_moments(&m, cols, (enum cpu_isa)isa);
            rnd_fill_normal(w, sizeof w / sizeof *w, 2);
            memcpy(all_w, w, sizeof w);
            run(&m, ROWS, block);
            memcpy(all_x, x, sizeof x);
            memcpy(all_q, q, sizeof q);
            for (int i = 0; i < 4; i++) {
                int n = some[i], r0 = ROWS - n;
                for (int j = 0; j < cols; j++)
                    memcpy(w + j * n, all_w + j * ROWS + r0, (size_t)n * sizeof *w);
                run(&m, n, block);
                for (int j = 0; j < cols; j++) {
                    assert_memory_equal(x + j * n, all_x + j * ROWS + r0, (size_t)n * sizeof *x);
                    assert_memory_equal(q + j * n, all_q + j * ROWS + r0, (size_t)n * sizeof *q);
                }
            }
            moments_close(&m);
        }
}

static void check_factor(const struct moments *m, int n, int r, float factor)
{
    double up = 0, down = 0;
    for (int i = 0; i < m->cols; i++)
        for (int j = 0; j < m->cols; j++) {
            double h = (double)m->h[i * m->cols + j];
            up += (double)q[i * n + r] * h * (double)w[j * n + r];
            down += (double)q[i * n + r] * h * (double)q[j * n + r];
        }
    assert_true(fabs((double)factor - up / down) < 1e-5 * fabs(up / down));
}

static void refit_is_the_nearest_factor(void **state)
{
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N && level[isa] != NULL; isa++) {
        struct moments m;
        struct err e;
        float factor[ROWS], alone;
        make_moments(&m, 129, (enum cpu_isa)isa);
        rnd_fill_normal(w, sizeof w / sizeof *w, 2);
        for (int i = 0; i < 129 * ROWS; i++)
            q[i] = i % ROWS == 5 ? 0 : rintf(w[i] * 0.7f);
        assert_int_equal(feedback_refit(&m, w, q, ROWS, factor, &e), 0);
        assert_true(factor[5] == 1);
        for (int r = 0; r < ROWS; r++)
            if (r != 5)
                check_factor(&m, ROWS, r, factor[r]);
        for (int j = 0; j < 129; j++) {
            w[j] = w[j * ROWS + 7];
            q[j] = q[j * ROWS + 7];
        }
        assert_int_equal(feedback_refit(&m, w, q, 1, &alone, &e), 0);
        assert_true(alone == factor[7]);
        moments_close(&m);
    }
}

static void turns_and_turns_back(void **state)
{
    enum { N = 37, C = 53 };
    static float from[N * C], turned[N * C], back[N * C];
    (void)state;
    rnd_fill(from, N * C, 1);
    feedback_turn(from, turned, N, C);
    for (int r = 0; r < N; r++)
        for (int j = 0; j < C; j++)
            assert_true(turned[j * N + r] == from[r * C + j]);
    feedback_turn(turned, back, C, N);
    assert_memory_equal(back, from, sizeof from);
}

static void says_when_memory_is_out(void **state)
{
    struct moments m;
    struct err e;
    struct told t = { 0 };
    float factor[2];
    (void)state;
    make_moments(&m, 16, CPU_REF);
    mem_fail_at(1);
    assert_int_equal(feedback_run(&m, x, q, 2, 1, nearest, &t, &e), ERR_NOMEM);
    for (uint64_t i = 1; i <= 2; i++) {
        mem_fail_at(i);
        assert_int_equal(feedback_refit(&m, w, q, 2, factor, &e), ERR_NOMEM);
    }
    mem_fail_at(0);
    moments_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_are_best_in_turn),
        cmocka_unit_test(losses_add_up),
        cmocka_unit_test(rows_do_not_know_of_each_other),
        cmocka_unit_test(refit_is_the_nearest_factor),
        cmocka_unit_test(turns_and_turns_back),
        cmocka_unit_test(says_when_memory_is_out),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
