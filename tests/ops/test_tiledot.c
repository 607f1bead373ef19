/* The tile skeleton by itself: its plain C against sums in double, every level of this machine against its plain C, any
 * range of panels, any number of rows. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "tests/tools/levels.h"
#include "tests/tools/tiles.h"

enum { ROWS = 300, COLS = 7 * TILE_COLS, GROUPS = COLS / TILE_COLS, UNITS = 3, N = 139 };

static const struct tiledot form[TILES_N] = {
#define FORM(name, kind, offset, has_base) { kind, offset, has_base, false },
    TILES(FORM){ TILE_GROUP, 0, true, true }
};
static const struct codec_cpu *const table[CPU_ISA_N] = {
    [CPU_REF] = tiles_ref, [CPU_AVX2] = tiles_avx2, [CPU_AVX512] = tiles_avx512
};

static struct tile tile[UNITS][GROUPS];
static uint16_t scale[UNITS * TILE_ROWS];
static float x[N * COLS], bias[ROWS], ya[N * ROWS], yb[N * ROWS];
static char ws[N * COLS * 4];

/* Codes below 32 or 128, or any; some rows have the largest only, which meet the largest inputs in row 0: what 16 bits just
 * hold. */
static struct weight make(int i, enum prep prep)
{
    int top = form[i].offset == 128 ? 255 : form[i].narrow ? 31 : 127;
    for (int u = 0; u < UNITS * GROUPS; u++) {
        struct tile *t = &tile[u / GROUPS][u % GROUPS];
        uint8_t *code = &t->code[0][0][0];
        for (int j = 0; j < (int)sizeof t->code; j++)
            code[j] =
                j / 4 % TILE_ROWS % 7 < 2 ? (uint8_t)top : (uint8_t)(rnd_bits() & (uint32_t)top);
        rnd_fill(t->scale[0], 2 * TILE_ROWS, 0.02f);
        rnd_fill(t->base, TILE_ROWS, 1);
    }
    for (int j = 0; j < UNITS * TILE_ROWS; j++)
        scale[j] = f32_to_f16(rnd_unit());
    rnd_fill_normal(x, (size_t)N * COLS, 1);
    for (int j = 0; j < COLS; j++) /* codes of 127 all along */
        x[j] = 2;
    rnd_fill(bias, ROWS, 1);
    return (struct weight){ .rows = ROWS, .cols = COLS, .prep = prep, .plane = { tile, scale } };
}

static void multiply(enum cpu_isa isa, int i, const struct weight *w, const float *in, int n,
                     const float *b, float *y, int p0, int p1)
{
    struct input input;
    input_set(&input, in, n, COLS, ws);
    input_prepare(&input, level[CPU_REF], w->prep);
    table[isa][i].mul[w->prep](w, &input, b, y, ROWS, p0, p1);
}

static double weight_at(int i, int row, int k)
{
    const struct tile *t = &tile[row / TILE_ROWS][k / TILE_COLS];
    int l = row % TILE_ROWS;
    double c = t->code[k % TILE_COLS / 4][l][k % 4] - form[i].offset;
    switch (form[i].kind) {
    case TILE_ROW: return c * (double)f16_to_f32(scale[row]);
    case TILE_HALF: return c * (double)t->scale[k % TILE_COLS / INPUT_HALF][l];
    case TILE_GROUP:
    default: return c * (double)t->scale[0][l] + (form[i].has_base ? (double)t->base[l] : 0);
    }
}

static void near_double(int i, int n, double tol)
{
    for (int row = 0; row < ROWS; row++)
        for (int r = 0; r < n; r++) {
            double sum = bias[row];
            double norm_w = 0;
            double norm_x = 0;
            for (int k = 0; k < COLS; k++) {
                double u = weight_at(i, row, k);
                double v = (double)x[r * COLS + k];
                sum += u * v;
                norm_w += u * u;
                norm_x += v * v;
            }
            double error = fabs((double)ya[r * ROWS + row] - sum);
            if (!(error <= tol * sqrt(norm_w * norm_x) + 1e-6))
                fail_msg("form %d: row %d of input %d is off by %g", i, row, r, error);
        }
}

static void test_against_double(void **state)
{
    (void)state;
    for (int i = 0; i < TILES_N; i++)
        for (int int8 = 0; int8 < 2; int8++) {
            struct weight w = make(i, int8 ? PREP_I8 : PREP_F32);
            multiply(CPU_REF, i, &w, x, 5, bias, ya, 0, (ROWS + 15) / CODEC_PANEL);
            near_double(i, 5, int8 ? 0.02 : 2e-6);
        }
}

static void test_levels(void **state)
{
    (void)state;
    static const int rows[] = { 1, 2, 3, 7, 8, 9, 15, 64, 65, N };
    for (int i = 0; i < TILES_N * 2; i++) {
        struct weight w = make(i / 2, i % 2 ? PREP_I8 : PREP_F32);
        for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++)
            for (int isa = CPU_AVX2; isa < CPU_ISA_N; isa++) {
                if (level[isa] == NULL || table[isa] == NULL)
                    continue;
                const float *b = k % 2 ? bias : NULL;
                multiply(CPU_REF, i / 2, &w, x, rows[k], b, ya, 0, (ROWS + 15) / CODEC_PANEL);
                multiply(isa, i / 2, &w, x, rows[k], b, yb, 0, (ROWS + 15) / CODEC_PANEL);
                assert_memory_equal(ya, yb, (size_t)rows[k] * ROWS * sizeof(float));
            }
    }
}

/* A range writes its own rows, wherever it cuts a unit, with the bits that they have in the whole. */
static void test_ranges(void **state)
{
    (void)state;
    enum { PANELS = (ROWS + 15) / CODEC_PANEL, FEW = 3 };
    for (int i = 0; i < TILES_N * CPU_ISA_N; i++) {
        enum cpu_isa isa = i % CPU_ISA_N;
        if (level[isa] == NULL || table[isa] == NULL)
            continue;
        struct weight w = make(i / CPU_ISA_N, PREP_I8);
        multiply(isa, i / CPU_ISA_N, &w, x, FEW, bias, ya, 0, PANELS);
        for (int p0 = 0; p0 < PANELS; p0 += 3)
            for (int p1 = p0 + 1; p1 <= PANELS; p1 += 5) {
                memset(yb, 0x55, sizeof yb);
                multiply(isa, i / CPU_ISA_N, &w, x, FEW, bias, yb, p0, p1);
                for (int j = 0; j < FEW * ROWS; j++) {
                    bool mine = j % ROWS / CODEC_PANEL >= p0 && j % ROWS / CODEC_PANEL < p1;
                    static const uint32_t untouched = 0x55555555;
                    assert_memory_equal(&yb[j], mine ? (const void *)&ya[j] : &untouched,
                                        sizeof yb[j]);
                }
            }
    }
}

/* One row, or some, wherever they stand among many. */
static void test_invariance(void **state)
{
    (void)state;
    enum { PANELS = (ROWS + 15) / CODEC_PANEL };
    for (int i = 0; i < TILES_N * 2; i++) {
        enum cpu_isa isa = cpu_isa_best() > CPU_AVX512 ? CPU_AVX512 : cpu_isa_best();
        struct weight w = make(i / 2, i % 2 ? PREP_I8 : PREP_F32);
        multiply(isa, i / 2, &w, x, N, NULL, ya, 0, PANELS);
        for (int n = 1; n <= 17; n += 2)
            for (int at = 0; at + n <= N; at += 13) {
                multiply(isa, i / 2, &w, x + at * COLS, n, NULL, yb, 0, PANELS);
                assert_memory_equal(yb, ya + at * ROWS, (size_t)n * ROWS * sizeof(float));
            }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_double),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_invariance),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
