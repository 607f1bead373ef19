/* Every codec of the list, every ISA level of this machine, every preparation: products against decode() in double, the
 * same bits at every level and for one row or many, lossless taking, error bounds of encoding. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "quant/codec.h"
#include "server/base/mem.h"
#include "tests/tools/forms.h"
#include "tests/tools/levels.h"

enum { ROWS_MAX = 100, COLS_MAX = 2048, N_MAX = 64 };

static float src[ROWS_MAX * COLS_MAX], back[ROWS_MAX * COLS_MAX];
static float x[N_MAX * COLS_MAX], bias[ROWS_MAX];
static uint8_t raw[ROWS_MAX * COLS_MAX * 4];
static float ya[N_MAX * ROWS_MAX], yb[N_MAX * ROWS_MAX];
static char ws[N_MAX * COLS_MAX * 4];

static void make(struct weight *w, struct be *b, const struct form *f, bool int8, int rows,
                 int cols)
{
    struct err e = { 0 };
    assert_int_equal(form_open(w, b, f, int8, rows, cols, raw, &e), 0);
    assert_string_equal(weight_form(w), f->form);
}

static void multiply(struct be *b, const struct weight *w, const float *bi, const float *in, int n,
                     float *y)
{
    struct input input;
    input_set(&input, in, n, w->cols, ws);
    weight_matmul(b, &input, &(struct matmul){ w, bi, y }, 1);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

static void near_decode(const struct weight *w, int n, double tol, const char *what, int isa)
{
    for (int row = 0; row < w->rows; row++) {
        w->codec->decode(w, row, back);
        for (int r = 0; r < n; r++) {
            double sum = 0;
            double norm_w = 0;
            double norm_x = 0;
            for (int k = 0; k < w->cols; k++) {
                double v = x[r * w->cols + k];
                sum += back[k] * v;
                norm_w += (double)back[k] * back[k];
                norm_x += v * v;
            }
            double want = sum + bias[row];
            double got = ya[r * w->rows + row];
            if (!(fabs(got - want) <= tol * sqrt(norm_w * norm_x) + 1e-5))
                fail_msg("%s %s %dx%d n %d: row %d of input %d is %g, not %g", what,
                         cpu_isa_name(isa), w->rows, w->cols, n, row, r, got, want);
        }
    }
}

static void check_product(const struct form *f, bool int8, int rows, int cols, int n)
{
    form_blocks(f->from, raw, rows, cols);
    rnd_fill_normal(x, n * cols, 1);
    rnd_fill_normal(bias, rows, 1);
    size_t bytes = (size_t)n * (size_t)rows * sizeof(float);
    for (int i = 0; i < CPU_ISA_N; i++) {
        if (level[i] == NULL)
            continue;
        struct weight w;
        make(&w, level[i], f, int8, rows, cols);
        multiply(level[i], &w, bias, x, n, i == 0 ? ya : yb);
        if (i == 0)
            near_decode(&w, n, w.prep == PREP_I8 ? 0.02 : 2e-6, f->form, i);
        else if (memcmp(ya, yb, bytes) != 0)
            fail_msg("%s%s %dx%d n %d: %s differs from ref", f->form, int8 ? " int8" : "", rows,
                     cols, n, cpu_isa_name(i));
        weight_close(&w, level[i]);
    }
}

static void test_products(void **state)
{
    (void)state;
    static const int rows[] = { 1, 15, 16, 17, 100 };
    static const int cols[] = { 32, 64, 96, 576 };
    for (size_t f = 0; f < FORMS; f++)
        for (int int8 = 0; int8 < 2; int8++)
            for (int i = 0; i < 20; i++)
                check_product(&form_list[f], int8, rows[i % 5], cols[i / 5],
                              i == 0 ? 64 : i % 17 + 1);
    check_product(&form_list[0], false, 33, 7, 9); /* dense takes any width */
    check_product(&form_list[2], false, 5, 1, 3);
    check_product(&form_list[3], true, 20, 2048, 64); /* passes in more than one part */
}

/* A row alone, among up to 64, at every place of a block: the same bits. */
static void test_invariance(void **state)
{
    (void)state;
    enum { R = 50, C = 160 };
    for (int i = 0; i < CPU_ISA_N * FORMS * 2; i++) {
        struct be *b = level[i / (FORMS * 2)];
        const struct form *f = &form_list[i / 2 % FORMS];
        if (b == NULL)
            continue;
        struct weight w;
        form_blocks(f->from, raw, R, C);
        make(&w, b, f, i % 2, R, C);
        rnd_fill_normal(x, N_MAX * C, 1);
        multiply(b, &w, NULL, x, N_MAX, ya);
        for (int n = 1; n <= 17; n++)
            for (int at = 0; at + n <= N_MAX; at += n) {
                multiply(b, &w, NULL, x + at * C, n, yb);
                assert_memory_equal(yb, ya + at * R, (size_t)n * R * sizeof(float));
            }
        weight_close(&w, b);
    }
}

/* Several matrices of different codecs and heights as one loop: the same as one by one. */
static void test_many(void **state)
{
    (void)state;
    enum { C = 64, N = 5 };
    struct be *b = level[cpu_isa_best()];
    static const int rows[] = { 40, 16, 1, 31 };
    struct weight w[MATMUL_MAX];
    struct matmul m[MATMUL_MAX];
    static float out[MATMUL_MAX][N * 40];
    for (int i = 0; i < MATMUL_MAX; i++) {
        const struct form *f = &form_list[i + 2];
        form_blocks(f->from, raw, rows[i], C);
        make(&w[i], b, f, true, rows[i], C);
        m[i] = (struct matmul){ &w[i], i % 2 ? bias : NULL, out[i] };
    }
    rnd_fill_normal(bias, 40, 1);
    rnd_fill_normal(x, N * C, 1);
    struct input in;
    input_set(&in, x, N, C, ws + 4); /* scratch need not be aligned */
    weight_matmul(b, &in, m, MATMUL_MAX);
    for (int i = 0; i < MATMUL_MAX; i++) {
        multiply(b, &w[i], m[i].bias, x, N, ya);
        assert_memory_equal(ya, out[i], (size_t)(N * rows[i]) * sizeof(float));
        weight_close(&w[i], b);
    }
}

/* What is not finite in the input shows in its own rows only, and nothing crashes. */
static void test_not_finite(void **state)
{
    (void)state;
    enum { R = 20, C = 64, N = 9 };
    static const float bad[] = { NAN, INFINITY, -INFINITY, 3e38f, 1e-42f };
    for (int i = 0; i < CPU_ISA_N * FORMS * 2; i++) {
        struct be *b = level[i / (FORMS * 2)];
        const struct form *f = &form_list[i / 2 % FORMS];
        if (b == NULL)
            continue;
        struct weight w;
        form_blocks(f->from, raw, R, C);
        make(&w, b, f, i % 2, R, C);
        for (int k = 0; k < 5; k++) {
            memset(x, 0, sizeof(float) * N * C);
            x[4 * C + 40] = bad[k];
            x[4 * C + 41] = bad[k];
            multiply(b, &w, NULL, x, N, ya);
            for (int j = 0; j < N * R; j++) {
                bool poisoned = j / R == 4 && k < 3;
                assert_true(poisoned ? !isfinite(ya[j]) : j / R == 4 || ya[j] == 0);
            }
        }
        weight_close(&w, b);
    }
}

/* ---- formats ----------------------------------------------------------------------------------------------------- */

/* Zeros may differ in sign. */
static void same_values(const float *a, const float *b, int n)
{
    for (int i = 0; i < n; i++)
        if (!(a[i] == b[i]))
            fail_msg("value %d is %g, not %g", i, (double)a[i], (double)b[i]);
}

/* auto keeps what some codec has the same numbers for: decode() gives what the definition of the type gives. */
static void test_lossless(void **state)
{
    (void)state;
    static const struct form same[] = {
        { "auto", DT_F32, "f32" }, { "auto", DT_F16, "f16" }, { "auto", DT_BF16, "bf16" },
        { "auto", DT_Q8_0, "q8" }, { "auto", DT_Q4_0, "q4" }, { "auto", DT_Q4_1, "q4m" },
        { "q8", DT_Q8_0, "q8" },   { "q4", DT_Q4_0, "q4" },   { "q4", DT_Q4_1, "q4m" },
    };
    enum { R = 37, C = 96 };
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        struct weight w;
        form_blocks(same[i].from, raw, R, C);
        if (same[i].from == DT_F16 || same[i].from == DT_BF16) /* finite ones */
            for (int j = 0; j < R * C; j++)
                raw[2 * j + 1] &= 0xbb;
        make(&w, level[0], &same[i], true, R, C);
        dtype_decode(same[i].from, raw, src, R * C);
        for (int row = 0; row < R; row++) {
            w.codec->decode(&w, row, back);
            same_values(back, src + row * C, C);
        }
        static const int32_t id[] = { 36, 0, 17, 17 };
        weight_rows(&w, level[0], id, 4, ya);
        for (int r = 0; r < 4; r++)
            same_values(ya + r * C, src + id[r] * C, C);
        weight_close(&w, level[0]);
    }
}

static double encode_error(const char *word, const char *form, int rows, int cols)
{
    struct form f = { word, DT_F32, form };
    struct weight w;
    memcpy(raw, src, (size_t)(rows * cols) * sizeof(float));
    make(&w, level[0], &f, true, rows, cols);
    double err = 0;
    double norm = 0;
    for (int row = 0; row < rows; row++) {
        w.codec->decode(&w, row, back);
        for (int k = 0; k < cols; k++) {
            double d = back[k] - src[row * cols + k];
            assert_true(isfinite(back[k]));
            err += d * d;
            norm += (double)src[row * cols + k] * src[row * cols + k];
        }
    }
    weight_close(&w, level[0]);
    return norm > 0 ? sqrt(err / norm) : sqrt(err);
}

/* Relative root mean square errors on normally distributed weights, and numbers that are hard to scale. */
static void test_encode(void **state)
{
    (void)state;
    enum { R = 40, C = 256 };
    rnd_fill_normal(src, R * C, 0.03f);
    double q8 = encode_error("q8", "q8", R, C);
    double q4 = encode_error("q4", "q4m", R, C);
    double bf16 = encode_error("bf16", "bf16", R, C);
    double f16 = encode_error("f16", "f16", R, C);
    print_message("relative error of encoding: q8 %.4f q4m %.4f bf16 %.5f f16 %.6f\n", q8, q4, bf16,
                  f16);
    assert_true(q8 < 0.006 && q4 < 0.075 && bf16 < 0.002 && f16 < 0.0003);
    assert_true(encode_error("f32", "f32", R, C) == 0);
    static const float hard[] = { 0, 1e-30f, 6e4f, 1e30f, -3e38f };
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < R * C; j++)
            src[j] = hard[i] * (j % 3 == 0 ? 1 : 0.25f);
        double tol = i == 0 || i == 2 ? 0.1 : 1; /* beyond f16: finite, no more */
        assert_true(encode_error("q8", "q8", R, C) <= tol);
        assert_true(encode_error("q4", "q4m", R, C) <= tol);
    }
}

/* The cost of int8 inputs: relative to the norm of the products. */
static void test_int8_cost(void **state)
{
    (void)state;
    enum { R = 100, C = 576, N = 32 };
    struct be *b = level[cpu_isa_best()];
    for (size_t f = 3; f < FORMS; f++) {
        struct weight w;
        form_blocks(form_list[f].from, raw, R, C);
        rnd_fill_normal(x, N * C, 1);
        make(&w, b, &form_list[f], false, R, C);
        multiply(b, &w, NULL, x, N, ya);
        w.prep = PREP_I8;
        multiply(b, &w, NULL, x, N, yb);
        double err = 0;
        double norm = 0;
        for (int i = 0; i < N * R; i++) {
            double d = yb[i] - ya[i];
            err += d * d;
            norm += (double)ya[i] * ya[i];
        }
        print_message("relative error of int8 inputs: %s %.4f\n", form_list[f].form,
                      sqrt(err / norm));
        assert_true(sqrt(err / norm) < 0.01);
        weight_close(&w, b);
    }
}

/* How far row `row` of w is from factor * want, relative to that; every other row is to have the numbers of `rows`. */
static double rescaled_error(const struct weight *w, int row, float factor, const float *rows)
{
    double err = 0;
    double norm = 0;
    for (int r = 0; r < w->rows; r++) {
        const float *was = rows + (size_t)r * (size_t)w->cols;
        weight_row(w, r, back);
        if (r != row)
            assert_memory_equal(back, was, (size_t)w->cols * sizeof *back);
        for (int k = 0; k < w->cols && r == row; k++) {
            double want = (double)was[k] * (double)factor;
            err += (back[k] - want) * (back[k] - want);
            norm += want * want;
        }
    }
    return sqrt(err / norm);
}

static void check_rescale(const struct form *f)
{
    enum { R = 40, C = 256, ROW = 21 };
    struct weight w;
    form_blocks(f->from, raw, R, C);
    make(&w, level[0], f, false, R, C);
    float *rows = src; /* raw has been read */
    for (int r = 0; r < R; r++)
        weight_row(&w, r, rows + (size_t)r * C);
    weight_rescale(&w, ROW, 2);
    assert_true(rescaled_error(&w, ROW, 2, rows) < 1e-6);
    weight_rescale(&w, ROW, .35f);
    double err = rescaled_error(&w, ROW, .7f, rows);
    if (!(err < .003)) /* bf16 has eight bits */
        fail_msg("%s: %.5f off", f->form, err);
    weight_close(&w, level[0]);
}

/* Multiplying a row by a number touches that row alone, in every form. */
static void test_rescale(void **state)
{
    (void)state;
    for (size_t i = 0; i < FORMS; i++)
        check_rescale(&form_list[i]);
    for (size_t i = 0; i < FORMS_WIDE; i++)
        check_rescale(&form_wide[i]);
    for (size_t i = 0; i < FORMS_PUBLISHED; i++)
        check_rescale(&form_published[i]);
    assert_int_equal(f16_scale(0x7bff, 2), 0x7bff);
    assert_int_equal(f16_scale(0x7bff, -2), 0xfbff);
    assert_int_equal(f16_scale(0x3c00, .5f), 0x3800);
}

static void test_open(void **state)
{
    (void)state;
    struct err e = { 0 };
    struct weight w;
    assert_int_equal(weight_open(&w, level[0], "q5", true, DT_F32, 16, 32, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "q5"));
    assert_non_null(strstr(e.text, codec_names()));
    /* a width that groups do not fit: a wider form */
    assert_int_equal(weight_open(&w, level[0], "q4", true, DT_F32, 16, 33, &e), 0);
    assert_string_equal(weight_form(&w), "f32");
    weight_close(&w, level[0]);
    /* nothing keeps Q6_K as it is: near without loss */
    assert_int_equal(weight_open(&w, level[0], "auto", true, DT_Q6_K, 16, 256, &e), 0);
    assert_string_equal(weight_form(&w), "q8");
    assert_true(weight_bits(&w) == 8.5);
    assert_int_equal((int)weight_bytes(&w), 16 * 256 * 17 / 16);
    weight_close(&w, level[0]);
    weight_close(&w, level[0]);
    for (uint64_t i = 1; i <= 2; i++) {
        mem_fail_at(i);
        assert_int_equal(weight_open(&w, level[0], "q8", true, DT_F32, 16, 256, &e), ERR_NOMEM);
    }
    mem_fail_at(0);
    for (int i = 0; codec_list[i] != NULL; i++) {
        assert_true((codec_list[i]->cpu[CPU_REF] != NULL) != (codec_list[i]->split != NULL));
        assert_non_null(codec_list[i]->rescale);
    }
}

static bool is_form_of(const struct codec *c, const struct form *f)
{
    struct weight w;
    struct err e;
    return weight_set_form(&w, f->form, 16, 256, &e) == 0 && w.codec == c;
}

/* What stands in codec_list is tested, by its forms; one that is made of others is tested beside them. */
static void test_all_there(void **state)
{
    (void)state;
    for (int i = 0; codec_list[i] != NULL; i++) {
        bool there = codec_list[i]->split != NULL;
        for (int f = 0; f < FORMS; f++)
            there |= is_form_of(codec_list[i], &form_list[f]);
        for (int f = 0; f < FORMS_PUBLISHED; f++)
            there |= is_form_of(codec_list[i], &form_published[f]);
        assert_true(there); /* else its words are missing in tests/tools/forms.c */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),       cmocka_unit_test(test_lossless),
        cmocka_unit_test(test_encode),     cmocka_unit_test(test_products),
        cmocka_unit_test(test_invariance), cmocka_unit_test(test_many),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_int8_cost),
        cmocka_unit_test(test_rescale),    cmocka_unit_test(test_all_there),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
