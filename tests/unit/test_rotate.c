/* Rotations against their definition as a matrix, in double precision; every level against plain C, bit for bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/codec.h"
#include "quant/rotate.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

enum { COLS = 9216, MOMENTS = 288, TOKENS = 40 };

/* A power of two alone; odd factors up to ROTATE_MIX and beyond; p below, at and above what kernels take at once. */
static const int size[] = { 1,   2,   16,  40,  48,  63,   64,   74,   96,   128,  134,  192,
                            288, 320, 576, 768, 960, 1024, 1536, 2048, 3392, 4096, 4864, COLS };
enum { SIZES = sizeof size / sizeof *size };

static float x[2 * COLS], y[2 * COLS], z[2 * COLS];

static double cas(int m, int a, int b)
{
    double t = 2 * 3.14159265358979323846 * (double)(a * b % m) / m;
    return (cos(t) + sin(t)) / sqrt(m);
}

/* Entry (i, j) of R. */
static double entry(int cols, int i, int j)
{
    int p = cols & -cols, m = cols / p;
    double c = m <= ROTATE_MIX ? cas(m, i / p, j / p) : i / p == j / p;
    int minus = __builtin_popcount((unsigned)(i % p & j % p)) % 2;
    int sign = (int)(rotate_signs(cols, j / 64) >> (j % 64) & 1);
    return (minus ^ sign ? -c : c) / sqrt(p);
}

static void is_the_matrix_it_says(void **state)
{
    (void)state;
    for (int s = 0; s < SIZES; s++) {
        int cols = size[s], step = cols / 50 + 1;
        rnd_fill_normal(x, (size_t)cols, 1);
        rotate_rows(CPU_REF, x, y, 1, cols);
        for (int i = 0; i < cols; i += step) {
            double sum = 0;
            for (int j = 0; j < cols; j++)
                sum += entry(cols, i, j) * (double)x[j];
            if (!(fabs(sum - (double)y[i]) < 3e-6))
                fail_msg("%d columns: y[%d] is %g, not %g", cols, i, (double)y[i], sum);
        }
    }
}

static void is_orthogonal(void **state)
{
    static float unit[MOMENTS * MOMENTS];
    (void)state;
    for (int s = 0; s < SIZES && size[s] <= MOMENTS; s++) {
        int cols = size[s];
        memset(unit, 0, sizeof unit);
        for (int i = 0; i < cols; i++)
            unit[i * cols + i] = 1;
        rotate_rows(CPU_REF, unit, unit, cols, cols);
        for (int i = 0; i < cols; i++)
            for (int j = 0; j < cols; j++) {
                double sum = 0;
                for (int k = 0; k < cols; k++)
                    sum += (double)unit[i * cols + k] * (double)unit[j * cols + k];
                assert_true(fabs(sum - (i == j)) < 1e-6);
            }
    }
}

static void comes_back(void **state)
{
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int s = 0; level[isa] != NULL && s < SIZES; s++) {
            int cols = size[s];
            rnd_fill(x, (size_t)cols, 1);
            rotate_rows((enum cpu_isa)isa, x, y, 1, cols);
            rotate_back((enum cpu_isa)isa, y, y, 1, cols);
            for (int i = 0; i < cols; i++)
                if (!(fabsf(x[i] - y[i]) < 1e-6f))
                    fail_msg("%d columns: x[%d] came back as %g, not %g", cols, i, (double)y[i],
                             (double)x[i]);
        }
}

static void levels_agree(void **state)
{
    (void)state;
    for (int isa = 1; isa < CPU_ISA_N; isa++)
        for (int s = 0; level[isa] != NULL && s < SIZES; s++) {
            int cols = size[s];
            size_t bytes = 2 * (size_t)cols * sizeof *x;
            rnd_fill_normal(x, 2 * (size_t)cols, 3);
            rotate_rows(CPU_REF, x, y, 2, cols);
            rotate_rows((enum cpu_isa)isa, x, z, 2, cols);
            assert_memory_equal(y, z, bytes);
            memcpy(z, x, bytes);
            rotate_rows((enum cpu_isa)isa, z, z, 2, cols);
            assert_memory_equal(y, z, bytes);
            rotate_back(CPU_REF, x, y, 2, cols);
            rotate_back((enum cpu_isa)isa, x, z, 2, cols);
            assert_memory_equal(y, z, bytes);
        }
}

/* A row's signs are as good as random: half of them, and no two widths share theirs. */
static void signs_are_mixed(void **state)
{
    int minus = 0;
    (void)state;
    for (int cols = 64; cols < 8192; cols += 64) {
        minus += __builtin_popcountll(rotate_signs(cols, 0));
        assert_true(rotate_signs(cols, 0) != rotate_signs(cols, 1));
        assert_true(rotate_signs(cols, 0) != rotate_signs(cols + 64, 0));
    }
    assert_in_range(minus, 127 * 32 - 200, 127 * 32 + 200);
}

static void gram(float *h, const float *from, int cols)
{
    for (int i = 0; i < cols; i++)
        for (int j = 0; j < cols; j++) {
            double sum = 0;
            for (int t = 0; t < TOKENS; t++)
                sum += (double)from[t * cols + i] * (double)from[t * cols + j];
            h[i * cols + j] = (float)sum;
        }
}

static void moments_are_those_of_rotated_inputs(void **state)
{
    static float in[TOKENS * MOMENTS], h[MOMENTS * MOMENTS], want[MOMENTS * MOMENTS];
    static const int some[] = { 40, 134, MOMENTS };
    (void)state;
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int s = 0; level[isa] != NULL && s < 3; s++) {
            int cols = some[s];
            rnd_fill_normal(in, (size_t)(TOKENS * cols), 1);
            gram(h, in, cols);
            rotate_rows(CPU_REF, in, in, TOKENS, cols);
            gram(want, in, cols);
            rotate_moments((enum cpu_isa)isa, level[isa]->par, h, cols);
            for (int i = 0; i < cols; i++)
                for (int j = 0; j < cols; j++) {
                    assert_true(fabsf(h[i * cols + j] - want[i * cols + j]) < 1e-4f);
                    assert_true(h[i * cols + j] == h[j * cols + i]);
                }
        }
}

/* Few rows on one thread, many on all; behind what was prepared before. */
static void inputs_rotate(void **state)
{
    enum { N = 70, WIDTH = 576 };
    static float in[N * WIDTH], want[N * WIDTH];
    (void)state;
    rnd_fill_normal(in, N * WIDTH, 1);
    rotate_rows(CPU_REF, in, want, N, WIDTH);
    for (int isa = 0; isa < CPU_ISA_N; isa++)
        for (int n = 1; level[isa] != NULL && n <= N; n += 69) {
            struct input plain, rotated;
            size_t bytes = input_ws_bytes(level[isa], n, WIDTH);
            char *ws = mem_map(bytes);
            assert_non_null(ws);
            input_set(&plain, in, n, WIDTH, ws);
            rotate_input(level[isa], &plain, &rotated);
            assert_memory_equal(rotated.x, want, (size_t)(n * WIDTH) * sizeof *want);
            assert_true(rotated.n == n && rotated.cols == WIDTH);
            assert_true((const char *)(rotated.x + n * WIDTH) <= ws + bytes);
            mem_unmap(ws, bytes);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_the_matrix_it_says),
        cmocka_unit_test(is_orthogonal),
        cmocka_unit_test(comes_back),
        cmocka_unit_test(levels_agree),
        cmocka_unit_test(signs_are_mixed),
        cmocka_unit_test(moments_are_those_of_rotated_inputs),
        cmocka_unit_test(inputs_rotate),
    };
    return cmocka_run_group_tests(tests, levels_open, levels_close);
}
