/* The aqlm codec: the reference's bits (tests/golden/aqlm/rows, by tests/tools/golden_aqlm.py), parts put in any pieces and got
 * back, products at every level of this machine, what int8 products cost. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/codec.h"
#include "server/base/buf.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

enum { ROWS_MAX = 300, COLS_MAX = 576, N_MAX = 40 };

static const char *const published[] = { "aqlm1x16g8", "aqlm2x8g8",  "aqlm1x16g16", "aqlm1x8g8",
                                         "aqlm8x8g32", "aqlm3x5g16", "aqlm2x12g8" };
enum { FORMS_N = sizeof published / sizeof published[0] };

static float back[COLS_MAX], x[N_MAX * COLS_MAX], bias[ROWS_MAX];
static float ya[N_MAX * ROWS_MAX], yb[N_MAX * ROWS_MAX];
static char ws[N_MAX * COLS_MAX * 4];

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

/* Numbers that tests/tools/golden_aqlm.py makes too. */
static uint32_t hash(uint32_t i)
{
    i *= 0x9e3779b1u;
    i ^= i >> 15;
    i *= 0x85ebca6bu;
    return i ^ i >> 13;
}

static uint16_t half(uint32_t i, float middle, float width)
{
    return f32_to_f16(middle + ((float)(hash(i) & 0xffff) - 32768) * (width / 32768));
}

/* The bytes of a part: codes of any bits, codebooks even in +-0.05, scales in 0.5 ... 1.5. */
static uint8_t *part_bytes(const struct codec_part *p, int part)
{
    size_t bytes = codec_part_bytes(p);
    uint8_t *out = mem_alloc(bytes);
    assert_non_null(out);
    for (size_t i = 0; part == 0 && i < bytes; i++)
        out[i] = (uint8_t)hash((uint32_t)i);
    for (size_t i = 0; part != 0 && i < bytes / 2; i++) {
        uint32_t at = (uint32_t)i + (part == 1 ? 1u << 26 : 1u << 28);
        uint16_t v = part == 1 ? half(at, 0, 0.05f) : half(at, 1, 0.5f);
        memcpy(out + 2 * i, &v, 2);
    }
    return out;
}

static void open_form(struct weight *w, struct be *b, const char *form, bool int8, int rows,
                      int cols)
{
    struct err e = { 0 };
    if (weight_open_form(w, b, form, int8, rows, cols, &e) < 0)
        fail_msg("%s", e.text);
    assert_string_equal(weight_form(w), form);
}

static void make(struct weight *w, struct be *b, const char *form, bool int8, int rows, int cols)
{
    struct codec_part part[CODEC_PARTS];
    open_form(w, b, form, int8, rows, cols);
    assert_int_equal(weight_parts(w, part), 3);
    for (int i = 0; i < 3; i++) {
        uint8_t *bytes = part_bytes(&part[i], i);
        weight_put(w, i, 0, codec_part_bytes(&part[i]), bytes);
        mem_free(bytes);
    }
}

/* ---- the format -------------------------------------------------------------------------------------------------- */

static void gives_the_reference(void **state)
{
    (void)state;
    enum { R = 24, C = 64 };
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_int_equal(buf_read_file(&b, "tests/golden/aqlm/rows", NULL), 0);
    assert_int_equal(b.len, (size_t)FORMS_N * R * C * 2);
    const uint8_t *want = (const uint8_t *)b.data;
    for (int f = 0; f < FORMS_N; f++) {
        struct weight w;
        make(&w, level[0], published[f], false, R, C);
        for (int row = 0; row < R; row++) {
            w.codec->decode(&w, row, back);
            for (int k = 0; k < C; k++, want += 2) {
                uint16_t bits;
                memcpy(&bits, want, 2);
                if (f32_to_f16(back[k]) != bits)
                    fail_msg("%s: row %d input %d is %04x, not %04x", published[f], row, k,
                             f32_to_f16(back[k]), bits);
                assert_true(f16_to_f32(bits) == back[k]);
            }
        }
        weight_close(&w, level[0]);
    }
    buf_free(&b);
}

static void names_its_parts(void **state)
{
    (void)state;
    struct weight w;
    struct codec_part p[CODEC_PARTS];
    open_form(&w, level[0], "aqlm1x9g16", false, 33, 96);
    assert_int_equal(weight_parts(&w, p), 3);
    static const struct codec_part want[] = {
        { "codes", DT_I16, 3, { 33, 6, 1 } },
        { "codebooks", DT_F16, 4, { 1, 512, 1, 16 } },
        { "scales", DT_F16, 4, { 33, 1, 1, 1 } },
    };
    for (int i = 0; i < 3; i++) {
        assert_string_equal(p[i].name, want[i].name);
        assert_int_equal(p[i].type, want[i].type);
        assert_int_equal(p[i].n_dims, want[i].n_dims);
        assert_memory_equal(p[i].dim, want[i].dim, (size_t)want[i].n_dims * sizeof(int64_t));
    }
    weight_close(&w, level[0]);
    open_form(&w, level[0], "aqlm8x8g32", false, 16, 64);
    weight_parts(&w, p);
    assert_int_equal(p[0].type, DT_I8);
    assert_int_equal(p[0].dim[2], 8);
    weight_close(&w, level[0]);
}

/* In pieces of any size and order, then back in others: the same bytes, and the same matrix as when put whole. */
static void takes_any_pieces(void **state)
{
    (void)state;
    enum { R = 37, C = 96 };
    static const char *const form[] = { "aqlm2x8g8", "aqlm1x16g16", "aqlm3x5g16", "aqlm2x12g8" };
    for (int f = 0; f < 4; f++) {
        struct weight whole;
        struct weight w;
        struct codec_part part[CODEC_PARTS];
        make(&whole, level[0], form[f], false, R, C);
        open_form(&w, level[0], form[f], false, R, C);
        weight_parts(&w, part);
        for (int i = 0; i < 3; i++) {
            uint8_t *bytes = part_bytes(&part[i], i);
            size_t n = codec_part_bytes(&part[i]);
            uint8_t *got = mem_zalloc(1, n);
            size_t piece = n / 7 | 1; /* odd: codes of two bytes are cut */
            for (size_t at = n / piece * piece + piece; at >= piece; at -= piece) {
                size_t from = at - piece;
                weight_put(&w, i, from, n - from < piece ? n - from : piece, bytes + from);
            }
            for (size_t at = 0; at < n; at += piece + 2)
                weight_get(&w, i, at, n - at < piece + 2 ? n - at : piece + 2, got + at);
            assert_memory_equal(got, bytes, n);
            mem_free(got);
            mem_free(bytes);
        }
        for (int i = 0; i < CODEC_PLANES; i++)
            assert_memory_equal(w.plane[i], whole.plane[i], w.bytes[i]);
        weight_close(&w, level[0]);
        weight_close(&whole, level[0]);
    }
}

static void refuses(void **state)
{
    (void)state;
    static const char *const bad[] = { "aqlm",       "aqlm9x8g8",  "aqlm2x17g8", "aqlm2x8g4",
                                       "aqlm2x8g8 ", "aqlm2x08g8", "aqlm0x8g8",  "aqlm2x8" };
    struct weight w;
    struct err e = { 0 };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(weight_open_form(&w, level[0], bad[i], true, 16, 64, &e), ERR_UNSUPPORTED);
    assert_int_equal(weight_open_form(&w, level[0], "aqlm2x8g8", true, 16, 40, &e),
                     ERR_UNSUPPORTED);
    assert_non_null(strstr(e.text, "does not fit 16 x 40"));
    /* nothing else becomes it */
    assert_int_equal(weight_open(&w, level[0], "aqlm2x8g8", true, DT_F32, 16, 64, &e),
                     ERR_UNSUPPORTED);
    assert_non_null(strstr(e.text, "nothing is encoded to it"));
    assert_null(w.codec);
    for (uint64_t i = 1; i <= 3; i++) {
        mem_fail_at(i);
        assert_int_equal(weight_open_form(&w, level[0], "aqlm2x8g8", true, 16, 64, &e), ERR_NOMEM);
    }
    mem_fail_at(0);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

static void multiply(struct be *b, const struct weight *w, const float *bi, const float *in, int n,
                     float *y)
{
    struct input input;
    input_set(&input, in, n, w->cols, ws);
    weight_matmul(b, &input, &(struct matmul){ w, bi, y }, 1);
}

static void near_decode(const struct weight *w, int n, double tol)
{
    for (int row = 0; row < w->rows; row++) {
        w->codec->decode(w, row, back);
        for (int r = 0; r < n; r++) {
            double sum = bias[row];
            double norm_w = 0;
            double norm_x = 0;
            for (int k = 0; k < w->cols; k++) {
                double v = x[r * w->cols + k];
                sum += back[k] * v;
                norm_w += (double)back[k] * back[k];
                norm_x += v * v;
            }
            double got = ya[r * w->rows + row];
            if (!(fabs(got - sum) <= tol * sqrt(norm_w * norm_x) + 1e-5))
                fail_msg("%s %d x %d n %d: row %d of input %d is %g, not %g", weight_form(w),
                         w->rows, w->cols, n, row, r, got, sum);
        }
    }
}

static void check_product(const char *form, bool int8, int rows, int cols, int n)
{
    rnd_fill_normal(x, (size_t)(n * cols), 1);
    rnd_fill_normal(bias, (size_t)rows, 1);
    for (int i = 0; i < CPU_ISA_N; i++) {
        if (level[i] == NULL)
            continue;
        struct weight w;
        make(&w, level[i], form, int8, rows, cols);
        multiply(level[i], &w, bias, x, n, i == 0 ? ya : yb);
        if (i == 0)
            near_decode(&w, n, w.prep == PREP_I8 ? 0.02 : 2e-6);
        else if (memcmp(ya, yb, (size_t)(n * rows) * sizeof(float)) != 0)
            fail_msg("%s%s %d x %d n %d: %s differs from ref", form, int8 ? " int8" : "", rows,
                     cols, n, cpu_isa_name(i));
        weight_close(&w, level[i]);
    }
}

static void multiplies(void **state)
{
    (void)state;
    static const int rows[] = { 1, 17, 64, 130, 300 };
    static const int cols[] = { 32, 96, 576 };
    for (int f = 0; f < FORMS_N; f++)
        for (int i = 0; i < 6; i++)
            check_product(published[f], i % 2, rows[(f + i) % 5], cols[(f + i) % 3],
                          i == 0 ? N_MAX : i);
}

/* A row alone, and among others: the same bits. */
static void is_invariant(void **state)
{
    (void)state;
    enum { R = 50, C = 96 };
    struct be *b = level[cpu_isa_best()];
    for (int int8 = 0; int8 < 2; int8++) {
        struct weight w;
        make(&w, b, "aqlm2x8g8", int8, R, C);
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

/* Codebooks of normally distributed numbers: int8 products against exact ones, relative to the norm of the products. */
static double cost_of(const char *form, bool exact_inputs)
{
    enum { R = 130, C = 512, N = 8 };
    struct be *b = level[cpu_isa_best()];
    struct weight w;
    struct codec_part part[CODEC_PARTS];
    make(&w, b, form, true, R, C);
    weight_parts(&w, part);
    size_t n = codec_part_bytes(&part[1]) / 2;
    uint16_t *book = mem_alloc(2 * n);
    for (size_t i = 0; i < n; i++)
        book[i] = f32_to_f16(rnd_normal() * 0.02f);
    weight_put(&w, 1, 0, 2 * n, book);
    mem_free(book);
    rnd_fill_normal(x, N * C, 1);
    for (int i = 0; exact_inputs && i < N * C; i++)
        x[i] = (float)((int)(rnd_bits() % 255) - 127);
    for (int i = 0; exact_inputs && i < N * C; i += 16)
        x[i] = 127; /* the scale of each half of a group is 1 */
    multiply(b, &w, NULL, x, N, ya);
    w.prep = PREP_F32;
    multiply(b, &w, NULL, x, N, yb);
    weight_close(&w, b);
    double err = 0;
    double norm = 0;
    for (int i = 0; i < N * R; i++) {
        err += pow((double)ya[i] - (double)yb[i], 2);
        norm += pow((double)yb[i], 2);
    }
    return sqrt(err / norm);
}

static void costs_little(void **state)
{
    (void)state;
    static const struct {
        const char *form;
        double most;
    } c[] = { { "aqlm1x16g8", 0.015 },
              { "aqlm2x8g8", 0.015 },
              { "aqlm1x8g8", 0.015 },
              { "aqlm1x16g16", 0.015 },
              { "aqlm8x8g32", 0.025 } };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        double weights = cost_of(c[i].form, true);
        double all = cost_of(c[i].form, false);
        print_message("relative error of int8 products: %s %.4f, of its weights %.4f\n", c[i].form,
                      all, weights);
        assert_true(weights < c[i].most && all < c[i].most + 0.003);
    }
}

/* Codebooks with offsets that cancel: single entries are far beyond what sums reach. */
static void keeps_codebooks_that_cancel(void **state)
{
    (void)state;
    static const char *const forms[] = { "aqlm2x8g8", "aqlm3x8g8" };
    for (int f = 0; f < 2; f++) {
        struct weight w;
        make(&w, level[0], forms[f], true, 16, 128);
        struct codec_part part[CODEC_PARTS];
        weight_parts(&w, part);
        size_t bytes = codec_part_bytes(&part[1]);
        uint16_t *book = (uint16_t *)(void *)part_bytes(&part[1], 1);
        size_t each = bytes / 2 / (size_t)part[1].dim[0];
        for (size_t i = 0; i < 2 * each; i++)
            book[i] = f32_to_f16(f16_to_f32(book[i]) + (i < each ? 0.5f : -0.5f));
        weight_put(&w, 1, 0, bytes, book);
        mem_free(book);
        rnd_fill_normal(x, 128, 1);
        memset(bias, 0, 16 * sizeof *bias);
        multiply(level[0], &w, bias, x, 1, ya);
        near_decode(&w, 1, 0.02);
        weight_close(&w, level[0]);
    }
}

/* Whatever the codebooks hold, nothing crashes, and the finite rest stays finite. */
static void survives_any_bits(void **state)
{
    (void)state;
    enum { R = 20, C = 64, N = 3 };
    static const uint16_t bad[] = { 0x7c00, 0xfc00, 0x7e00, 0x7d01, 0x7bff, 0xfbff, 0x0001, 0 };
    for (int f = 0; f < FORMS_N; f++)
        for (int i = 0; i < 8; i++) {
            struct be *b = level[cpu_isa_best()];
            struct weight w;
            struct codec_part part[CODEC_PARTS];
            make(&w, b, published[f], true, R, C);
            weight_parts(&w, part);
            uint8_t *bytes = part_bytes(&part[1], 1);
            memcpy(bytes + 6, &bad[i], 2);
            for (size_t at = 0; i == 7 && at < codec_part_bytes(&part[1]); at++)
                bytes[at] = 0;
            weight_put(&w, 1, 0, codec_part_bytes(&part[1]), bytes);
            rnd_fill_normal(x, N * C, 1);
            multiply(b, &w, NULL, x, N, ya);
            for (int k = 0; k < N * R; k++)
                assert_true(i == 7 ? ya[k] == 0 : isfinite(ya[k]));
            w.prep = PREP_F32;
            multiply(b, &w, NULL, x, N, ya);
            mem_free(bytes);
            weight_close(&w, b);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_reference), cmocka_unit_test(names_its_parts),
        cmocka_unit_test(takes_any_pieces),    cmocka_unit_test(refuses),
        cmocka_unit_test(multiplies),          cmocka_unit_test(is_invariant),
        cmocka_unit_test(costs_little),        cmocka_unit_test(keeps_codebooks_that_cancel),
        cmocka_unit_test(survives_any_bits),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
