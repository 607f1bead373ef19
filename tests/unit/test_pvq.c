/* The pyramid codec: counts and numbers of points against their definitions, errors against what was measured of the
 * method, products of every level against decode, damaged codes, pressing with moments. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/codec.h"
#include "quant/moments.h"
#include "quant/pvq/pvq.h"
#include "server/base/mem.h"
#include "tests/tools/forms.h"
#include "tests/tools/levels.h"

enum { ROWS = 150, COLS = 512, N = 24, TOKENS = 1024 };

static float src[ROWS * COLS], scratch[ROWS * COLS], back[ROWS * COLS];
static float x[TOKENS * COLS], ya[N * ROWS], yb[N * ROWS], sums[COLS * COLS];
static char ws[N * COLS * 8 + 4096];

/* ---- the pyramid ------------------------------------------------------------------------------------------------- */

static uint64_t count(int k)
{
    return pyramid_codes(pyramid_tables(), k, 1);
}

/* Of so many pairs: what is not (0, 0) in any places, each with four turns. */
static uint64_t points_of(int pairs, int k)
{
    uint64_t sum = 0;
    uint64_t places = 1;
    for (int z = 0; z <= pairs; z++) {
        sum += (places * pyramid_tables()->patterns[z][k]) << 2 * z;
        places = places * (uint64_t)(pairs - z) / (uint64_t)(z + 1);
    }
    return sum;
}

/* V(N, K) of Fischer's recurrence, and closed forms of the small ones. */
static void counts_points(void **state)
{
    (void)state;
    static uint64_t v[PYRAMID_N + 1][PYRAMID_K + 1];
    for (int n = 0; n <= PYRAMID_N; n++)
        for (int k = 0; k <= PYRAMID_K; k++)
            v[n][k] = k == 0 ? 1 : n == 0 ? 0 : v[n - 1][k] + v[n][k - 1] + v[n - 1][k - 1];
    for (int pairs = 1; pairs <= PYRAMID_PAIRS; pairs++)
        for (int k = 0; k <= PYRAMID_K; k++)
            assert_true(points_of(pairs, k) == v[2 * pairs][k]);
    for (uint64_t k = 1; k <= PYRAMID_K; k++) {
        assert_true(count((int)k) == v[PYRAMID_N][k]);
        assert_true(points_of(1, (int)k) == 4 * k);
        assert_true(points_of(2, (int)k) == 8 * k * (k * k + 2) / 3);
    }
    static const uint64_t v8[] = { 16, 128, 688, 2816, 9424, 27008, 68464, 157184, 332688 };
    for (int k = 1; k <= 9; k++)
        assert_true(points_of(4, k) == v8[k - 1]);
}

/* The point of code i, whose code must be i: so no two codes share a point. */
static void check_code(int k, int levels, uint64_t i)
{
    int8_t y[PYRAMID_N];
    int sum = 0;
    int l = pyramid_point(pyramid_tables(), k, levels, i, y);
    for (int j = 0; j < PYRAMID_N; j++)
        sum += abs(y[j]);
    assert_int_equal(sum, k);
    assert_true(l >= 0 && l < levels);
    assert_true(pyramid_code(pyramid_tables(), y, k, levels, l) == i);
}

static uint64_t rnd_64(void)
{
    return (uint64_t)rnd_bits() << 42 ^ (uint64_t)rnd_bits() << 21 ^ rnd_bits();
}

static void numbers_points(void **state)
{
    (void)state;
    for (int k = 0; k <= 4; k++)
        for (uint64_t i = 0; i < count(k); i++)
            check_code(k, 1, i);
    for (int k = 5; k <= PYRAMID_K; k++) {
        uint64_t n = count(k);
        for (int i = 0; i < 100; i++) {
            check_code(k, 1, (uint64_t)i);
            check_code(k, 1, n - 1 - (uint64_t)i);
        }
        for (int i = 0; i < 2000; i++)
            check_code(k, 1, rnd_64() % n);
    }
    for (int i = 0; i < PVQ_FORMS; i++) {
        const struct pvq_form *f = &pvq_form[i];
        uint64_t n = pyramid_codes(pyramid_tables(), f->k, f->levels);
        assert_true(n == count(f->k) * (uint64_t)f->levels);
        for (int j = 0; j < 2000; j++) {
            check_code(f->k, f->levels, (uint64_t)j);
            check_code(f->k, f->levels, n - 1 - (uint64_t)j);
            check_code(f->k, f->levels, rnd_64() % n);
        }
    }
}

/* Points whose pulses all lie in one place are at the ends of every search. */
static void numbers_corners(void **state)
{
    (void)state;
    for (int k = 1; k <= PYRAMID_K; k++)
        for (int at = 0; at < PYRAMID_N; at++)
            for (int sign = -1; sign <= 1; sign += 2) {
                int8_t y[PYRAMID_N] = { 0 };
                y[at] = (int8_t)(sign * k);
                uint64_t i = pyramid_code(pyramid_tables(), y, k, 1, 0);
                assert_true(i < count(k));
                check_code(k, 1, i);
            }
}

static double cosine(const float *v, const int8_t *y)
{
    double vy = 0, vv = 0, yy = 0;
    for (int i = 0; i < PYRAMID_N; i++) {
        vy += (double)v[i] * y[i];
        vv += (double)v[i] * (double)v[i];
        yy += (double)y[i] * y[i];
    }
    return vy / sqrt(vv * yy);
}

/* Against all points of P(16, 3). */
static void projects(void **state)
{
    (void)state;
    enum { K = 3, VECTORS = 50 };
    int best = 0;
    for (int i = 0; i < VECTORS; i++) {
        int8_t y[PYRAMID_N];
        rnd_fill_normal(x, PYRAMID_N, 1);
        pyramid_project(x, K, y);
        double got = cosine(x, y);
        double most = 0;
        for (uint64_t p = 0; p < count(K); p++) {
            pyramid_point(pyramid_tables(), K, 1, p, y);
            most = fmax(most, cosine(x, y));
        }
        assert_true(got <= most && got > 0.97 * most);
        best += got == most;
    }
    assert_true(best >= VECTORS * 9 / 10);
}

static void projects_anything(void **state)
{
    (void)state;
    static const float odd[] = { 0, -0.0f, 1e-42f, 1e-30f, 3e38f, INFINITY, -INFINITY, NAN };
    for (int i = 0; i < 500; i++)
        for (int k = 1; k <= PYRAMID_K; k += 8) {
            float v[PYRAMID_N];
            int8_t y[PYRAMID_N];
            int sum = 0;
            for (int j = 0; j < PYRAMID_N; j++)
                v[j] = i < 8 ? odd[i] : rnd_bits() % 4 == 0 ? odd[rnd_bits() % 8] : rnd_normal();
            pyramid_project(v, k, y);
            for (int j = 0; j < PYRAMID_N; j++)
                sum += abs(y[j]);
            assert_int_equal(sum, k);
        }
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

static void open_pvq(struct weight *w, struct be *b, const char *word, bool int8, int rows,
                     int cols)
{
    struct err e;
    assert_int_equal(weight_open(w, b, word, int8, DT_F32, rows, cols, &e), 0);
    assert_string_equal(weight_form(w), word);
}

static void fill(struct weight *w)
{
    weight_fill(w, 0, w->rows, DT_F32, src, scratch);
}

static double error_of(const struct weight *w)
{
    double lost = 0, all = 0;
    for (int r = 0; r < w->rows; r++) {
        w->codec->decode(w, r, back);
        for (int k = 0; k < w->cols; k++) {
            double v = (double)src[r * w->cols + k];
            lost += ((double)back[k] - v) * ((double)back[k] - v);
            all += v * v;
        }
    }
    return lost / all;
}

static const struct {
    const char *word;
    double bits, error;
} good[] = { { "pvq2", 2, 0.1015 }, { "pvq3", 3, 0.0256 }, { "pvq4", 4, 0.0063 } };

static void errs_little(void **state)
{
    (void)state;
    rnd_seed(1);
    rnd_fill_normal(src, ROWS * COLS, 0.03f);
    for (int i = 0; i < 3; i++) {
        struct weight w;
        open_pvq(&w, level[0], good[i].word, true, 144, COLS);
        assert_true(weight_bits(&w) == good[i].bits + 16.0 / COLS);
        fill(&w);
        double error = error_of(&w);
        print_message("%s: error %.4f\n", good[i].word, error);
        assert_true(error < good[i].error);
        weight_close(&w, level[0]);
    }
}

/* The gains are the centroids of their cells for the length of 16 normal numbers. */
static void gains_are_centroids(void **state)
{
    (void)state;
    for (int i = 0; i < PVQ_FORMS; i++) {
        const struct pvq_form *f = &pvq_form[i];
        assert_true((double)f->levels * (double)count(f->k) <= ldexp(1, 8 * f->bytes));
        double lo = 0;
        for (int l = 0; l < f->levels; l++) {
            double hi = l + 1 < f->levels ? (double)(f->gain[l] + f->gain[l + 1]) / 2 : 12;
            double mass = 0, sum = 0;
            for (double r = lo + 5e-5; r < hi; r += 1e-4) {
                double density = pow(r, PYRAMID_N - 1) * exp(-r * r / 2);
                mass += density;
                sum += density * r;
            }
            assert_true(fabs(sum / mass - (double)f->gain[l]) < 1e-3);
            lo = hi;
        }
    }
}

static void takes_any_numbers(void **state)
{
    (void)state;
    static const float hard[] = { 0, 1e-42f, 1e-30f, 6e4f, 1e30f, 3e38f, INFINITY, NAN };
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 3; j++) {
            struct weight w;
            open_pvq(&w, level[0], good[j].word, true, 17, 64);
            for (int k = 0; k < 17 * 64; k++)
                src[k] = k < 64 || i < 6 ? hard[i] * (k % 3 == 0 ? -1 : 0.25f) : rnd_normal();
            fill(&w);
            if (i == 0)
                assert_true(error_of(&w) != 0 && back[0] == 0); /* 0 / 0: nothing lost of nothing */
            for (int r = 0; r < w.rows; r++) {
                w.codec->decode(&w, r, back);
                for (int k = 0; k < 64; k++)
                    assert_true(isfinite(back[k]));
            }
            if (i == 3)
                assert_true(error_of(&w) < 0.2);
            weight_close(&w, level[0]);
        }
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

static void multiply(struct be *b, const struct weight *w, const float *in, int n, float *y)
{
    struct input input;
    input_set(&input, in, n, w->cols, ws);
    weight_matmul(b, &input, &(struct matmul){ w, NULL, y }, 1);
}

static void near_decode(const struct weight *w, int n, double tol)
{
    for (int row = 0; row < w->rows; row++) {
        w->codec->decode(w, row, back);
        for (int r = 0; r < n; r++) {
            double want = 0, ww = 0, xx = 0;
            for (int k = 0; k < w->cols; k++) {
                double v = (double)x[r * w->cols + k];
                want += (double)back[k] * v;
                ww += (double)back[k] * (double)back[k];
                xx += v * v;
            }
            assert_true(fabs((double)ya[r * w->rows + row] - want) <= tol * sqrt(ww * xx));
        }
    }
}

/* damaged: codes are any bytes, so that most of them are past the last point or close to an end. */
static void check_products(int form, bool int8, int rows, int cols, int n, bool damaged)
{
    rnd_fill_normal(src, (size_t)(rows * cols), 0.05f);
    rnd_fill_normal(x, (size_t)(n * cols), 1);
    for (int isa = 0; isa < CPU_ISA_N; isa++) {
        if (level[isa] == NULL)
            continue;
        struct weight w;
        open_pvq(&w, level[isa], good[form].word, int8, rows, cols);
        rnd_seed((uint32_t)(rows + cols));
        fill(&w);
        for (size_t i = 0; damaged && i < w.bytes[0]; i++)
            ((uint8_t *)w.plane[0])[i] = (uint8_t)(rnd_bits() | (i % 3 == 0 ? 240 : 0));
        multiply(level[isa], &w, x, n, isa == 0 ? ya : yb);
        if (isa == 0)
            near_decode(&w, n, int8 ? 0.02 : 2e-6);
        else
            assert_memory_equal(ya, yb, (size_t)(n * rows) * sizeof(float));
        for (int at = 0; at + 5 <= n; at += 5) {
            multiply(level[isa], &w, x + at * cols, 5, yb);
            assert_memory_equal(yb, ya + at * rows, (size_t)(5 * rows) * sizeof(float));
        }
        weight_close(&w, level[isa]);
    }
}

static void multiplies(void **state)
{
    (void)state;
    static const int rows[] = { 1, 15, 17, 128, 150 };
    static const int cols[] = { 32, 96, 160, 512 };
    for (int i = 0; i < 60; i++)
        check_products(i % 3, i / 30, rows[i % 5], cols[i % 4], 1 + i % 12, false);
}

static void reads_damaged_codes(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++)
        check_products(i % 3, i / 3, 50, 96, 7, true);
}

/* Codes next to every bound that tables have: where pairs or the first half's pulses change. */
static int edges(const struct pvq_form *f, uint64_t *code)
{
    const struct pyramid *t = pyramid_tables();
    int n = 0;
    for (int pairs = 1; pairs <= PYRAMID_PAIRS; pairs++) {
        uint64_t digits = (uint64_t)(t->places[pairs] * f->levels);
        for (int a = 0; a <= f->k; a++) {
            uint64_t patterns = pairs > 1 ? t->base[pairs][f->k][a] : 0;
            uint64_t at =
                pyramid_base(t, f->k, f->levels, pairs) + (patterns * digits << 2 * pairs);
            code[n++] = at;
            code[n++] = at - 1;
            code[n++] = at + (rnd_64() & ((1ull << 2 * pairs) - 1));
        }
    }
    return n;
}

static void reads_codes_at_bounds(void **state)
{
    (void)state;
    static uint64_t code[3 * PYRAMID_PAIRS * (PYRAMID_K + 1)];
    for (int form = 0; form < PVQ_FORMS; form++) {
        const struct pvq_form *f = &pvq_form[form];
        int n = edges(f, code);
        int groups = n / CODEC_PANEL / 2 * 2 + 2;
        for (int isa = 0; isa < CPU_ISA_N; isa++) {
            if (level[isa] == NULL)
                continue;
            struct weight w;
            open_pvq(&w, level[isa], f->name, false, CODEC_PANEL, groups * PYRAMID_N);
            for (int i = 0; i < groups * CODEC_PANEL; i++) {
                uint8_t *cell = pvq_cell(&w, 0, i / CODEC_PANEL, f->bytes);
                int lane = i % CODEC_PANEL;
                memcpy(cell + 4 * lane, &code[i % n], 4);
                memcpy(cell + 4 * CODEC_PANEL + (f->bytes - 4) * lane, (char *)&code[i % n] + 4,
                       (size_t)f->bytes - 4);
            }
            for (int l = 0; l < CODEC_PANEL; l++)
                pvq_scales(&w, 0)[l] = f32_to_f16(1 + (float)l / 16);
            rnd_seed(7);
            rnd_fill_normal(x, (size_t)w.cols, 1);
            multiply(level[isa], &w, x, 1, isa == 0 ? ya : yb);
            if (isa == 0)
                near_decode(&w, 1, 2e-6);
            else
                assert_memory_equal(ya, yb, CODEC_PANEL * sizeof(float));
            weight_close(&w, level[isa]);
        }
    }
}

/* ---- pressing ---------------------------------------------------------------------------------------------------- */

/* Inputs that lean on each other. */
static void make_moments(struct moments *m, int cols)
{
    struct err e;
    for (int t = 0; t < TOKENS; t++) {
        float common = 2 * rnd_normal();
        for (int j = 0; j < cols; j++)
            x[t * cols + j] = rnd_normal() * (j % 7 == 3 ? 4.0f : 0.5f) + common;
    }
    memset(sums, 0, sizeof sums);
    moments_add(sums, x, TOKENS, cols, 0, CPU_REF, level[0]->par);
    assert_int_equal(moments_open(m, sums, TOKENS, cols, true, 0.01f, CPU_REF, level[0]->par, &e),
                     0);
}

/* Of the products with the inputs that the moments are of. */
static double product_error(const struct weight *w)
{
    double lost = 0, all = 0;
    for (int r = 0; r < w->rows; r++) {
        w->codec->decode(w, r, back);
        for (int t = 0; t < 64; t++) {
            double d = 0, y = 0;
            for (int k = 0; k < w->cols; k++) {
                double v = (double)x[t * w->cols + k];
                d += (double)(back[k] - src[r * w->cols + k]) * v;
                y += (double)src[r * w->cols + k] * v;
            }
            lost += d * d;
            all += y * y;
        }
    }
    return lost / all;
}

static void presses_with_moments(void **state)
{
    (void)state;
    enum { R = 40, C = 192 };
    struct err e;
    struct moments m;
    rnd_seed(3);
    make_moments(&m, C);
    rnd_fill_normal(src, R * C, 0.05f);
    for (int i = 0; i < 3; i++) {
        struct weight w, part;
        open_pvq(&w, level[0], good[i].word, true, R, C);
        open_pvq(&part, level[0], good[i].word, true, R, C);
        fill(&w);
        double plain = product_error(&w);
        assert_int_equal(weight_press(&w, 0, R, src, scratch, &m, &e), 0);
        double pressed = product_error(&w);
        print_message("%s: product error %.5f, pressed %.5f\n", good[i].word, plain, pressed);
        assert_true(pressed < 0.35 * plain);
        for (int r = 0; r < R; r += CODEC_PANEL) { /* rows do not know of each other */
            int n = R - r < CODEC_PANEL ? R - r : CODEC_PANEL;
            assert_int_equal(weight_press(&part, r, n, src + r * C, scratch, &m, &e), 0);
        }
        for (int p = 0; p < 2; p++)
            assert_memory_equal(w.plane[p], part.plane[p], p == 0 ? w.bytes[0] : R * 2);
        for (uint64_t fail = 1; fail <= 2; fail++) {
            mem_fail_at(fail);
            assert_int_equal(weight_press(&w, 0, R, src, scratch, &m, &e), ERR_NOMEM);
        }
        mem_fail_at(0);
        weight_close(&w, level[0]);
        weight_close(&part, level[0]);
    }
    moments_close(&m);
}

static void opens_by_word(void **state)
{
    (void)state;
    struct err e;
    struct weight w;
    assert_int_equal(weight_open(&w, level[0], "pvq5", true, DT_F32, 16, 32, &e), ERR_INVALID);
    assert_int_equal(weight_open(&w, level[0], "pvq2", true, DT_F32, 16, 48, &e), 0);
    assert_string_equal(weight_form(&w), "f32"); /* groups of 16 come in pairs */
    weight_close(&w, level[0]);
    assert_int_equal(weight_open_form(&w, level[0], "pvq3", true, 20, 64, &e), 0);
    assert_int_equal((int)weight_bytes(&w), 32 * (64 * 3 / 8 + 2));
    weight_close(&w, level[0]);
    assert_int_equal(weight_open_form(&w, level[0], "pvq3", true, 20, 48, &e), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_points),
        cmocka_unit_test(numbers_points),
        cmocka_unit_test(numbers_corners),
        cmocka_unit_test(projects),
        cmocka_unit_test(projects_anything),
        cmocka_unit_test(gains_are_centroids),
        cmocka_unit_test(errs_little),
        cmocka_unit_test(takes_any_numbers),
        cmocka_unit_test(multiplies),
        cmocka_unit_test(reads_damaged_codes),
        cmocka_unit_test(reads_codes_at_bounds),
        cmocka_unit_test(presses_with_moments),
        cmocka_unit_test(opens_by_word),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
