/* The trellis codec: its layout against a reader of its own, the same bytes and codes at every level, what encoding and pressing
 * cost, products. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "quant/moments.h"
#include "quant/rotate.h"
#include "quant/trellis/trellis.h"
#include "quant/trellis/viterbi.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

enum { ROWS_MAX = 288, COLS_MAX = 576, INPUTS = 20 };

static float src[ROWS_MAX * COLS_MAX], scratch[ROWS_MAX * COLS_MAX], back[COLS_MAX];
static const int rows_list[] = { 1, 17, 48, 64, 80, 96, 112, 128, 130, 288 };
static const int cols_list[] = { 32, 96, 576 };

static void open_weight(struct weight *w, int at, int bits, bool int8, int rows, int cols)
{
    struct err e = { 0 };
    char word[16];
    (void)snprintf(word, sizeof word, "trellis%d", bits);
    assert_int_equal(weight_open(w, level[at], word, int8, DT_F32, rows, cols, &e), 0);
    assert_string_equal(weight_form(w), word);
}

/* Any bytes are a matrix. */
static void fill_random(struct weight *w)
{
    for (size_t i = 0; i < w->bytes[0]; i++)
        ((uint8_t *)w->plane[0])[i] = (uint8_t)rnd_bits();
    for (int i = 0; i < (int)w->bytes[1] / 2; i++)
        ((uint16_t *)w->plane[1])[i] = f32_to_f16(0.001f + 0.0005f * rnd_unit());
}

/* ---- the layout -------------------------------------------------------------------------------------------------- */

/* Bits of one column of a unit in the order of its stream. n: rows of the unit. */
static void read_stream(const uint8_t *quad, int bits, int n, int col, int *a, int *b)
{
    int fields = bits == 4 ? 2 : 4;
    int lanes = n / fields;
    int lines = bits == 4 ? 4 : 2;
    for (int p = 0; p < n; p++) {
        int lane = p / fields;
        int at = lane % lines * (lanes / lines) + lane / lines;
        int width = bits == 4 ? 4 : 2;
        a[p] = quad[at * 4 + col] >> p % fields * width & ((1 << width) - 1);
        int nibble = bits == 3 ? quad[(lanes + lane / 2) * 4 + col] >> lane % 2 * 4 : 0;
        b[p] = nibble >> p % fields & 1;
    }
}

static int read_code(const struct trellis_table *t, int bits, int n, int p, const int *a,
                     const int *b)
{
    int n0 = a[p] | a[(p + 1) % n] << 2;
    int n1 = a[(p + 2) % n] | a[(p + 3) % n] << 2;
    int n2 = a[(p + 4) % n] | a[(p + 5) % n] << 2;
    if (bits == 3)
        n2 = b[p] | b[(p + 1) % n] << 1 | b[(p + 2) % n] << 2 | b[(p + 3) % n] << 3;
    if (bits == 4) {
        n0 = a[p];
        n1 = a[(p + 1) % n];
        n2 = a[(p + 2) % n];
    }
    return t->s[n0 ^ t->q[n1] ^ t->r[n2]] + t->m[n2];
}

static void check_unit(const struct weight *w, int unit, const uint8_t *codes, int n)
{
    static tile_fn *const *fill[CPU_ISA_N] = { &trellis_fill_ref, &trellis_fill_avx2,
                                               &trellis_fill_avx512 };
    int bits = w->variant;
    int row_of_field = n / (bits == 4 ? 2 : 4);
    static struct tile tile[CPU_ISA_N];
    for (int col = 0; col < w->cols; col++) {
        int a[128];
        int b[128];
        read_stream(codes + (size_t)(col / 4 * n * bits / 2), bits, n, col % 4, a, b);
        for (int i = 0; i < CPU_ISA_N && col % 32 == 0; i++)
            if (level[i] != NULL && fill[i] != NULL)
                (*fill[i])(w, unit, col / 32, &tile[i]);
        for (int p = 0; p < n; p++) {
            int fields = bits == 4 ? 2 : 4;
            int lines = bits == 4 ? 4 : 2;
            int lane = p / fields;
            int row =
                p % fields * row_of_field + lane % lines * (row_of_field / lines) + lane / lines;
            int code = read_code(trellis_table_of(w), bits, n, p, a, b);
            assert_in_range(code, 0, 127);
            assert_int_equal(trellis_code(w, unit, row, col), code);
            for (int i = 0; i < CPU_ISA_N; i++)
                if (level[i] != NULL && fill[i] != NULL)
                    assert_int_equal(tile[i].code[col % 32 / 4][row][col % 4], code);
        }
    }
}

static void test_layout(void **state)
{
    (void)state;
    for (int bits = 2; bits <= 4; bits++)
        for (int i = 0; i < 30; i++) {
            int rows = rows_list[i % 10];
            int cols = cols_list[i / 10];
            int padded = (rows + 15) / 16 * 16;
            struct weight w;
            open_weight(&w, 0, bits, true, rows, cols);
            assert_int_equal(w.bytes[0], padded * cols * bits / 8);
            assert_int_equal(w.bytes[1], padded * 2);
            fill_random(&w);
            const uint8_t *codes = w.plane[0];
            for (int row = 0; row < rows; row += 128) {
                int n = padded - row < 128 ? padded - row : 128;
                check_unit(&w, row / 128, codes, n);
                codes += n * cols * bits / 8;
            }
            weight_close(&w, level[0]);
        }
}

/* decode() is the codes times the row's scale, rotated back. */
static void test_decode(void **state)
{
    (void)state;
    for (int bits = 2; bits <= 4; bits++) {
        struct weight w;
        open_weight(&w, 0, bits, true, 130, 96);
        fill_random(&w);
        for (int row = 0; row < 130; row++) {
            w.codec->decode(&w, row, back);
            rotate_rows(CPU_REF, back, back, 1, 96);
            float scale = f16_to_f32(((uint16_t *)w.plane[1])[row]);
            for (int k = 0; k < 96; k++) {
                float want = (float)(trellis_code(&w, row / 128, row % 128, k) - 64) * scale;
                assert_true(fabsf(back[k] - want) < 1e-4f * 64 * scale);
            }
        }
        weight_close(&w, level[0]);
    }
}

/* ---- paths ------------------------------------------------------------------------------------------------------- */

static struct viterbi search[2];

static void open_search(int bits, const struct trellis_table *t, float value[256])
{
    for (int i = 0; i < 256; i++)
        value[i] = (float)(t->s[i % 16] + t->m[i / 16] - TRELLIS_ZERO) * t->step;
    viterbi_open(&search[0], bits, t->q, t->r, value, CPU_REF);
    viterbi_open(&search[1], bits, t->q, t->r, value, cpu_isa_best());
}

static double error_of(int bits, const struct trellis_table *t, const float *value, const float *x,
                       int n, const uint8_t *symbol)
{
    double sum = 0;
    for (int p = 0; p < n; p++) {
        int w = viterbi_window_at(bits, symbol, n, p);
        double d = x[p] - value[w / 256 * 16 + ((w & 15) ^ t->q[w >> 4 & 15] ^ t->r[w >> 8])];
        sum += d * d;
    }
    return sum;
}

/* Every level finds the same path, whatever the numbers are, and no other symbol at any place makes it better: by more, that
 * is, than costs in whole numbers tell apart. */
static void test_paths(void **state)
{
    (void)state;
    static const float odd[] = { NAN, INFINITY, -INFINITY, 3e38f, -1e30f, 12, 0 };
    for (int bits = 2; bits <= 4; bits++) {
        const struct trellis_table *t = &trellis_table[bits - 2];
        float value[256];
        open_search(bits, t, value);
        for (int i = 0; i < 12; i++) {
            int n = i < 4 ? 16 + 16 * i : 128;
            float x[128];
            uint8_t symbol[2][128];
            rnd_fill_normal(x, (size_t)n, 1);
            for (int k = 0; k < 7 && i % 4 == 3; k++)
                x[rnd_bits() % (unsigned)n] = odd[k];
            for (int k = 0; k < 2; k++)
                viterbi_run(&search[k], x, n, symbol[k]);
            assert_memory_equal(symbol[0], symbol[1], (size_t)n);
            if (i % 4 == 3)
                continue;
            double least = error_of(bits, t, value, x, n, symbol[0]);
            for (int p = 6; p + 6 < n; p++)
                for (int u = 0; u < 1 << bits; u++) {
                    memcpy(symbol[1], symbol[0], sizeof symbol[0]);
                    symbol[1][p] = (uint8_t)u;
                    assert_true(error_of(bits, t, value, x, n, symbol[1]) > least - 0.02);
                }
        }
    }
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

static double error_of_rows(const struct weight *w, const float *from)
{
    double err = 0;
    double norm = 0;
    for (int row = 0; row < w->rows; row++) {
        w->codec->decode(w, row, back);
        for (int k = 0; k < w->cols; k++) {
            double d = back[k] - from[row * w->cols + k];
            assert_true(isfinite(back[k]));
            err += d * d;
            norm += (double)from[row * w->cols + k] * from[row * w->cols + k];
        }
    }
    return norm > 0 ? err / norm : err;
}

/* The mean squared error of normally distributed weights: below what the codec is there for, above what is possible. */
static void test_encode(void **state)
{
    (void)state;
    static const double most[] = { 0.0755, 0.0205, 0.0062 };
    static const double bound[] = { 0.0625, 0.0156, 0.0039 };
    enum { R = 256, C = 192 };
    for (int bits = 2; bits <= 4; bits++) {
        struct weight w;
        rnd_fill_normal(src, R * C, 0.03f);
        open_weight(&w, 0, bits, true, R, C);
        weight_fill(&w, 0, R, DT_F32, src, scratch);
        double e = error_of_rows(&w, src);
        print_message("mean squared error of encoding with %d bits: %.4f\n", bits, e);
        assert_true(e < most[bits - 2] && e > bound[bits - 2]);
        weight_close(&w, level[0]);
    }
}

/* Rows from little to no numbers at all, and such as no f16 can scale. */
static void test_hard(void **state)
{
    (void)state;
    static const float hard[] = { 0, 1e-30f, 1e-3f, 6e4f, 1e30f, NAN, -INFINITY };
    enum { R = 7, C = 32 };
    for (int bits = 2; bits <= 4; bits++) {
        struct weight w;
        for (int i = 0; i < R * C; i++)
            src[i] = hard[i / C] * rnd_normal();
        open_weight(&w, 0, bits, true, R, C);
        w.codec->encode(&w, 0, R, src);
        for (int row = 0; row < R; row++) {
            w.codec->decode(&w, row, back);
            for (int k = 0; k < C; k++)
                assert_true(isfinite(back[k]) && (row > 1 || back[k] == 0));
        }
        weight_close(&w, level[0]);
    }
}

/* Units stand alone: pressed one by one, in any order, they give the same bytes. */
static void test_units(void **state)
{
    (void)state;
    enum { R = 300, C = 32 };
    for (int bits = 2; bits <= 4; bits++) {
        struct weight a;
        struct weight b;
        rnd_fill_normal(src, R * C, 0.03f);
        open_weight(&a, 0, bits, true, R, C);
        open_weight(&b, 0, bits, true, R, C);
        weight_fill(&a, 0, R, DT_F32, src, scratch);
        for (int row = 256; row >= 0; row -= 128)
            weight_fill(&b, row, R - row < 128 ? R - row : 128, DT_F32, src + row * C, scratch);
        assert_memory_equal(a.plane[0], b.plane[0], a.bytes[0]);
        assert_memory_equal(a.plane[1], b.plane[1], a.bytes[1]);
        weight_close(&a, level[0]);
        weight_close(&b, level[0]);
    }
}

/* ---- pressing ---------------------------------------------------------------------------------------------------- */

enum { TOKENS = 400, P_ROWS = 144, P_COLS = 96 };
static float sums[P_COLS * P_COLS], sample[TOKENS * P_COLS], h[P_COLS * P_COLS];

/* Inputs that lean on each other by `common`, and their moments, rotated. */
static void make_moments(struct moments *m, float common)
{
    struct err e = { 0 };
    int at = (int)cpu_isa_best() < CPU_ISA_N && level[CPU_AVX2] != NULL ? CPU_AVX2 : CPU_REF;
    for (int t = 0; t < TOKENS; t++) {
        float shared = rnd_normal() * common;
        for (int j = 0; j < P_COLS; j++)
            sample[t * P_COLS + j] = rnd_normal() + (j % 3 == 0 ? shared : -shared);
    }
    memset(sums, 0, sizeof sums);
    moments_add(sums, sample, TOKENS, P_COLS, 0, (enum cpu_isa)at, level[at]->par);
    if (common == 0)
        for (int i = 0; i < P_COLS * P_COLS; i++)
            sums[i] = i % (P_COLS + 1) == 0 ? TOKENS : 0;
    memcpy(h, sums, sizeof h);
    assert_int_equal(
        moments_open(m, sums, TOKENS, P_COLS, true, 0.01f, (enum cpu_isa)at, level[at]->par, &e),
        0);
}

/* |(W - W^) x|^2 over the sample, relative to |W x|^2. */
static double loss(const struct weight *w, const float *from)
{
    double err = 0;
    double norm = 0;
    for (int row = 0; row < w->rows; row++) {
        w->codec->decode(w, row, back);
        for (int t = 0; t < TOKENS; t++) {
            double d = 0;
            double y = 0;
            for (int k = 0; k < P_COLS; k++) {
                d += (double)(from[row * P_COLS + k] - back[k]) * sample[t * P_COLS + k];
                y += (double)from[row * P_COLS + k] * sample[t * P_COLS + k];
            }
            err += d * d;
            norm += y * y;
        }
    }
    return err / norm;
}

static void test_press(void **state)
{
    (void)state;
    struct err e = { 0 };
    struct moments m;
    make_moments(&m, 2);
    for (int bits = 2; bits <= 4; bits++) {
        struct weight w;
        rnd_fill_normal(src, P_ROWS * P_COLS, 0.03f);
        open_weight(&w, 0, bits, true, P_ROWS, P_COLS);
        weight_fill(&w, 0, P_ROWS, DT_F32, src, scratch);
        double plain = loss(&w, src);
        assert_int_equal(weight_press(&w, 0, P_ROWS, src, scratch, &m, &e), 0);
        double pressed = loss(&w, src);
        print_message("loss with %d bits: encoded %.4f, pressed %.4f\n", bits, plain, pressed);
        assert_true(pressed < 0.6 * plain);
        for (uint64_t i = 1; i <= 3; i++) {
            mem_fail_at(i);
            assert_int_equal(weight_press(&w, 0, P_ROWS, src, scratch, &m, &e), ERR_NOMEM);
        }
        mem_fail_at(0);
        weight_close(&w, level[0]);
    }
    moments_close(&m);
}

/* Inputs that know nothing of each other: the codes of encoding, and scales that have only become better. */
static void test_press_alone(void **state)
{
    (void)state;
    struct err e = { 0 };
    struct moments m;
    make_moments(&m, 0);
    for (int bits = 2; bits <= 4; bits++) {
        struct weight a;
        struct weight b;
        rnd_fill_normal(src, P_ROWS * P_COLS, 0.03f);
        open_weight(&a, 0, bits, true, P_ROWS, P_COLS);
        open_weight(&b, 0, bits, true, P_ROWS, P_COLS);
        weight_fill(&a, 0, P_ROWS, DT_F32, src, scratch);
        assert_int_equal(weight_press(&b, 0, P_ROWS, src, scratch, &m, &e), 0);
        int same = 0;
        for (size_t i = 0; i < a.bytes[0]; i++)
            same += ((uint8_t *)a.plane[0])[i] == ((uint8_t *)b.plane[0])[i];
        assert_true(same > 0.9 * (double)a.bytes[0]); /* rotated moments are not quite diagonal */
        assert_true(error_of_rows(&b, src) <= error_of_rows(&a, src));
        weight_close(&a, level[0]);
        weight_close(&b, level[0]);
    }
    moments_close(&m);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

static float x[INPUTS * COLS_MAX], y[CPU_ISA_N][INPUTS * ROWS_MAX], one[ROWS_MAX];
static char ws[INPUTS * COLS_MAX * 64];

static void multiply(struct be *b, const struct weight *w, const float *in, int n, float *out)
{
    struct input input;
    assert_true(input_ws_bytes(b, n, w->cols) <= sizeof ws);
    input_set(&input, in, n, w->cols, ws);
    weight_matmul(b, &input, &(struct matmul){ w, NULL, out }, 1);
}

static void near_decode(const struct weight *w, int n, double tol)
{
    for (int row = 0; row < w->rows; row++) {
        w->codec->decode(w, row, back);
        for (int r = 0; r < n; r++) {
            double sum = 0;
            double norm[2] = { 0 };
            for (int k = 0; k < w->cols; k++) {
                double v = x[r * w->cols + k];
                sum += back[k] * v;
                norm[0] += (double)back[k] * back[k];
                norm[1] += v * v;
            }
            assert_true(fabs(y[0][r * w->rows + row] - sum) <=
                        tol * sqrt(norm[0] * norm[1]) + 1e-6);
        }
    }
}

/* Every level the same bits as plain C, a row alone the same as among others, and close to decode(). */
static void test_products(void **state)
{
    (void)state;
    static const int shape[][3] = { { 1, 32, 3 }, { 17, 96, 20 }, { 130, 96, 9 }, { 288, 192, 1 } };
    for (int i = 0; i < 4 * 6; i++) {
        const int *s = shape[i % 4];
        bool int8 = i / 4 % 2;
        struct weight w;
        open_weight(&w, 0, 2 + i / 8, int8, s[0], s[1]);
        fill_random(&w);
        rnd_fill_normal(x, (size_t)(s[1] * s[2]), 1);
        for (int at = 0; at < CPU_ISA_N; at++) {
            if (level[at] == NULL)
                continue;
            multiply(level[at], &w, x, s[2], y[at]);
            assert_memory_equal(y[at], y[0], (size_t)(s[0] * s[2]) * sizeof(float));
            multiply(level[at], &w, x + (s[2] - 1) * s[1], 1, one);
            assert_memory_equal(one, y[0] + (s[2] - 1) * s[0], (size_t)s[0] * sizeof(float));
        }
        near_decode(&w, s[2], int8 ? 0.02 : 2e-6);
        weight_close(&w, level[0]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),   cmocka_unit_test(test_decode),
        cmocka_unit_test(test_paths),    cmocka_unit_test(test_encode),
        cmocka_unit_test(test_hard),     cmocka_unit_test(test_units),
        cmocka_unit_test(test_press),    cmocka_unit_test(test_press_alone),
        cmocka_unit_test(test_products),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
