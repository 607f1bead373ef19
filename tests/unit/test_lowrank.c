/* lowrank: the factors against what they promise, sums that are pressed and multiplied, at every level the same bits. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "quant/lowrank/lowrank.h"
#include "quant/moments.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

enum { ROWS = 150, COLS = 192, RANK = 16, N = 70, TOKENS = 400 };

static const char *const word[] = { "lowrank16+planes2", "lowrank16+trellis2", "lowrank32+pvq3" };
enum { WORDS = sizeof word / sizeof word[0] };

static float src[ROWS * COLS], scratch[ROWS * COLS], back[COLS], x[TOKENS * COLS];
static float a[RANK * ROWS], b[RANK * COLS], ya[N * ROWS], yb[N * ROWS], h[COLS * COLS];
static _Alignas(64) char ws[N * COLS * 24];

static struct weight make(struct be *be, const char *form, bool int8)
{
    struct weight w;
    struct err e = { 0 };
    assert_int_equal(weight_open(&w, be, form, int8, DT_F32, ROWS, COLS, &e), 0);
    return w;
}

/* Three strong directions in a matrix of noise. */
static void fill(void)
{
    float u[3][ROWS], v[3][COLS];
    rnd_seed(5);
    rnd_fill_normal(u[0], sizeof u / sizeof(float), 1);
    rnd_fill_normal(v[0], sizeof v / sizeof(float), 0.2f);
    rnd_fill_normal(src, ROWS * COLS, 0.02f);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++)
            for (int k = 0; k < 3; k++)
                src[i * COLS + j] += u[k][i] * v[k][j];
}

static void make_moments(struct moments *m, bool rotated)
{
    struct err e;
    rnd_seed(6);
    for (int t = 0; t < TOKENS; t++) {
        float common = rnd_normal();
        for (int j = 0; j < COLS; j++)
            x[t * COLS + j] = rnd_normal() * (j % 7 == 3 ? 4.0f : 0.5f) + common;
    }
    memset(h, 0, sizeof h);
    moments_add(h, x, TOKENS, COLS, 0, CPU_REF, level[0]->par);
    assert_int_equal(moments_open(m, h, TOKENS, COLS, rotated, 0.01f, CPU_REF, level[0]->par, &e),
                     0);
}

/* |src - a^T b|^2 */
static double left(void)
{
    double sum = 0;
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++) {
            double v = (double)src[i * COLS + j];
            for (int k = 0; k < RANK; k++)
                v -= (double)a[k * ROWS + i] * (double)b[k * COLS + j];
            sum += v * v;
        }
    return sum;
}

/* ---- the fit ----------------------------------------------------------------------------------------------------- */

static void check_orthonormal(void)
{
    for (int i = 0; i < RANK; i++)
        for (int k = 0; k < RANK; k++) {
            double sum = 0;
            for (int r = 0; r < ROWS; r++)
                sum += (double)a[i * ROWS + r] * (double)a[k * ROWS + r];
            assert_true(fabs(sum - (i == k)) < 1e-5);
        }
}

/* The three directions, and of the noise more than its part: 16 of 150 hold 29 % of it. */
static void fits_what_is_strong(void **state)
{
    (void)state;
    double noise = 0.02 * 0.02 * ROWS * COLS;
    for (int isa = 0; isa < CPU_ISA_N && level[isa] != NULL; isa++) {
        fill();
        lowrank_fit((enum cpu_isa)isa, src, ROWS, COLS, RANK, a, b);
        print_message("left: %.3f of the noise\n", left() / noise);
        assert_true(left() < 0.8 * noise);
        check_orthonormal();
        for (int i = 0; i < ROWS; i++) /* rank 1, then 0 */
            for (int j = 0; j < COLS; j++)
                src[i * COLS + j] = (float)(i + 1) * (float)(j % 5 - 2);
        lowrank_fit((enum cpu_isa)isa, src, ROWS, COLS, RANK, a, b);
        assert_true(left() < 1); /* of 4e8 */
        memset(src, 0, sizeof src);
        lowrank_fit((enum cpu_isa)isa, src, ROWS, COLS, RANK, a, b);
        assert_true(left() == 0);
    }
}

/* ---- weights ----------------------------------------------------------------------------------------------------- */

static void counts_its_bits(void **state)
{
    (void)state;
    struct weight w, form;
    struct err e;
    for (int i = 0; i < WORDS; i++) {
        w = make(level[0], word[i], true);
        assert_string_equal(weight_form(&w), word[i]);
        assert_int_equal(weight_open_form(&form, level[0], word[i], true, ROWS, COLS, &e), 0);
        struct weight q = make(level[0], strchr(word[i], '+') + 1, true);
        int rank = i == 2 ? 32 : 16;
        assert_int_equal(weight_bytes(&w), weight_bytes(&q) + (size_t)rank * 2 * (160 + COLS));
        assert_int_equal(weight_bytes(&form), weight_bytes(&w));
        assert_int_equal(weight_coder(&w)->rotated, i > 0);
        struct weight stage;
        assert_int_equal(weight_stage_open(&stage, &w, 16, &e), ERR_UNSUPPORTED);
        weight_stage_close(&stage);
        weight_close(&q, level[0]);
        weight_close(&form, level[0]);
        weight_close(&w, level[0]);
    }
    static const char *const bad[] = { "lowrank8+planes2", "lowrank16+q4", "lowrank16",
                                       "lowrank16+lowrank16+planes2", "lowrank16+" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(weight_open(&w, level[0], bad[i], true, DT_F32, ROWS, COLS, &e),
                         ERR_INVALID);
    assert_int_equal(weight_open_form(&w, level[0], "lowrank64+planes2", true, 48, COLS, &e),
                     ERR_UNSUPPORTED);
}

static void press(struct weight *w, const struct moments *m)
{
    struct err e;
    int step = codec_step(w->codec);
    assert_int_equal(weight_plan(w, src, NULL, scratch, CPU_REF, &e), 0);
    for (int r = 0; r < ROWS; r += step)
        assert_int_equal(
            weight_press(w, r, ROWS - r < step ? ROWS - r : step, src + r * COLS, scratch, m, &e),
            0);
}

static double lost(const struct weight *w)
{
    double sum = 0;
    for (int r = 0; r < ROWS; r++) {
        weight_row(w, r, back);
        for (int t = 0; t < 64; t++) {
            double d = 0;
            for (int k = 0; k < COLS; k++)
                d += (double)(back[k] - src[r * COLS + k]) * (double)x[t * COLS + k];
            sum += d * d;
        }
    }
    return sum;
}

/* What is strong is kept in the factors, and the rest has less to lose. */
static void presses_the_rest(void **state)
{
    (void)state;
    struct err e;
    fill();
    for (int i = 0; i < WORDS; i++) {
        struct weight w = make(level[0], word[i], true);
        struct weight q = make(level[0], strchr(word[i], '+') + 1, true);
        struct moments m;
        make_moments(&m, i > 0);
        press(&w, &m);
        press(&q, &m);
        double with = lost(&w), without = lost(&q);
        print_message("%s: %.4f of the error without factors\n", word[i], with / without);
        assert_true(with < 0.1 * without);
        press(&w, NULL);
        assert_true(lost(&w) < 0.5 * without);
        mem_fail_at(1);
        assert_int_equal(weight_plan(&w, src, NULL, scratch, CPU_REF, &e), ERR_NOMEM);
        for (uint64_t fail = 1; fail <= 2; fail++) {
            mem_fail_at(fail);
            assert_int_equal(weight_press(&w, 0, ROWS, src, scratch, &m, &e), ERR_NOMEM);
        }
        mem_fail_at(0);
        moments_close(&m);
        weight_close(&q, level[0]);
        weight_close(&w, level[0]);
    }
}

/* The sum of squares of what factors alone leave, each row times its share. */
static double left_of(const struct weight *w, const float *share)
{
    double sum = 0;
    for (int r = 0; r < ROWS; r++) {
        weight_row(w, r, back);
        for (int k = 0; k < COLS; k++) {
            double d = (double)(back[k] - src[r * COLS + k]) * (double)share[r];
            sum += d * d;
        }
    }
    return sum;
}

/* Factors leave the least of what counts: of rows that count more, less, at the cost of the others. */
static void weighs_rows(void **state)
{
    (void)state;
    struct err e;
    float share[ROWS], alike[ROWS];
    fill();
    for (int r = 0; r < ROWS; r++) {
        share[r] = r % 4 == 0 ? 3.0f : 0.3f;
        alike[r] = 1;
    }
    double left[2][2];
    for (int i = 0; i < 2; i++) {
        struct weight w = make(level[0], word[0], true); /* no codes yet: zeros */
        assert_int_equal(weight_plan(&w, src, i == 1 ? share : NULL, scratch, CPU_REF, &e), 0);
        left[i][0] = left_of(&w, alike);
        left[i][1] = left_of(&w, share);
        weight_close(&w, level[0]);
    }
    print_message("rows alike: %.4f of the plain optimum; weighed: %.4f\n", left[1][0] / left[0][0],
                  left[1][1] / left[0][1]);
    assert_true(left[1][0] > 1.001 * left[0][0]);
    assert_true(left[1][1] < 0.9 * left[0][1]);
}

/* Both parts of a row are multiplied by a number, and no other row. */
static void rescales(void **state)
{
    enum { ROW = 5 };
    (void)state;
    fill();
    for (int i = 0; i < WORDS; i++) {
        struct weight w = make(level[0], word[i], true);
        press(&w, NULL);
        for (int r = 0; r < ROWS; r++)
            weight_row(&w, r, scratch + (size_t)r * COLS);
        weight_rescale(&w, ROW, 2);
        for (int r = 0; r < ROWS; r++) {
            weight_row(&w, r, back);
            for (int k = 0; k < COLS; k++) {
                float want = (r == ROW ? 2 : 1) * scratch[(size_t)r * COLS + (size_t)k];
                assert_true(fabsf(back[k] - want) <= 1e-5f * fabsf(want) + 1e-6f);
            }
        }
        weight_close(&w, level[0]);
    }
}

static void multiply(struct be *be, const struct weight *w, const float *in, int n, float *y)
{
    struct input input;
    assert_true(input_ws_bytes(be, n, COLS) <= sizeof ws);
    input_set(&input, in, n, COLS, ws);
    weight_matmul(be, &input, &(struct matmul){ w, src, y }, 1); /* a bias, any */
}

static void check_rows(const struct weight *w, double tol)
{
    for (int r = 0; r < ROWS; r++) {
        weight_row(w, r, back);
        for (int t = 0; t < N; t++) {
            double want = (double)src[r], size = 0;
            for (int k = 0; k < COLS; k++) {
                want += (double)back[k] * (double)x[t * COLS + k];
                size += (double)(back[k] * back[k]);
            }
            assert_true(fabs(want - (double)ya[t * ROWS + r]) < tol * sqrt(size * COLS));
        }
    }
}

/* Products are those of what decode gives, for one row as for many, at every level. */
static void multiplies(void **state)
{
    (void)state;
    fill();
    for (int i = 0; i < 2 * WORDS; i++)
        for (int isa = 0; isa < CPU_ISA_N; isa++) {
            if (level[isa] == NULL)
                continue;
            struct weight w = make(level[isa], word[i / 2], i % 2 == 0);
            press(&w, NULL);
            rnd_seed(9);
            rnd_fill_normal(x, N * COLS, 1);
            multiply(level[isa], &w, x, N, isa == 0 ? ya : yb);
            if (isa == 0)
                check_rows(&w, i % 2 == 0 ? 0.03 : 1e-4);
            else
                assert_memory_equal(ya, yb, sizeof ya);
            for (int t = 0; t < N; t += 23) {
                multiply(level[isa], &w, x + t * COLS, 1, yb);
                assert_memory_equal(yb, ya + t * ROWS, ROWS * sizeof *yb);
            }
            weight_close(&w, level[isa]);
        }
}

/* Sums of all kinds and a matrix that is none share an input. */
static void multiplies_together(void **state)
{
    (void)state;
    static float y[WORDS + 1][N * ROWS];
    struct weight w[WORDS + 1];
    struct matmul m[WORDS + 1];
    struct be *be = level[0];
    struct input input;
    fill();
    rnd_fill_normal(x, N * COLS, 1);
    for (int i = 0; i <= WORDS; i++) {
        w[i] = make(be, i < WORDS ? word[i] : "q8", true);
        press(&w[i], NULL);
        m[i] = (struct matmul){ &w[i], src, y[i] };
    }
    input_set(&input, x, N, COLS, ws);
    weight_matmul(be, &input, m, WORDS + 1);
    for (int i = 0; i <= WORDS; i++) {
        multiply(be, &w[i], x, N, ya);
        assert_memory_equal(ya, y[i], sizeof ya);
        weight_close(&w[i], be);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fits_what_is_strong),
        cmocka_unit_test(counts_its_bits),
        cmocka_unit_test(presses_the_rest),
        cmocka_unit_test(weighs_rows),
        cmocka_unit_test(rescales),
        cmocka_unit_test(multiplies),
        cmocka_unit_test(multiplies_together),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
