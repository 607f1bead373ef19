/* Decoders of GGUF's tensor types against the package `gguf` (tests/golden/dtypes); halves by their definition. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "quant/dtype.h"
#include "server/base/buf.h"
#include "server/base/mem.h"

static uint32_t float_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float bits_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* ---- golden values ----------------------------------------------------------------------------------------------- */

static void check_type(enum dtype t)
{
    struct buf b;
    struct err e;
    char path[128];
    uint32_t n;
    buf_init(&b, 1 << 20);
    snprintf(path, sizeof path, "tests/golden/dtypes/%s.bin", dtype_name(t));
    if (buf_read_file(&b, path, &e) < 0)
        fail_msg("%s", e.text);
    memcpy(&n, b.data, sizeof n);
    size_t blocks = dtype_row_bytes(t, n);
    assert_int_equal(b.len, 4 + blocks + n * sizeof(float));
    float *got = mem_alloc(n * sizeof *got);
    float *want = mem_alloc(n * sizeof *want);
    assert_non_null(got);
    assert_non_null(want);
    memcpy(want, b.data + 4 + blocks, n * sizeof *want);
    dtype_decode(t, b.data + 4, got, n); /* at an odd place: no alignment is promised */
    for (uint32_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= 2e-7f * fabsf(want[i])) &&
            float_bits(got[i]) != float_bits(want[i]) && !(isnan(got[i]) && isnan(want[i])))
            fail_msg("%s: value %u is %.9g; %.9g was expected", dtype_name(t), i, (double)got[i],
                     (double)want[i]);
    mem_free(want);
    mem_free(got);
    buf_free(&b);
}

static void decodes_as_gguf_does(void **state)
{
    (void)state;
    for (int t = 0; t < DTYPE_N; t++)
        if (t != DT_F32 && t != DT_U8 && t != DT_I8 && t != DT_I16)
            check_type((enum dtype)t);
    float in[3] = { 1, -2, 3 };
    float out[3];
    dtype_decode(DT_F32, in, out, 3);
    assert_memory_equal(in, out, sizeof in);
}

/* Any bytes are accepted: the sanitizers watch. */
static void decodes_any_bytes(void **state)
{
    (void)state;
    uint8_t block[256];
    float out[256];
    for (int t = 0; t < DTYPE_N; t++)
        for (int fill = 0; fill < 256; fill += 51) {
            memset(block, fill, sizeof block);
            dtype_decode((enum dtype)t, block, out, (size_t)dtype_block((enum dtype)t));
        }
}

/* ---- halves ------------------------------------------------------------------------------------------------------ */

static double f16_value(uint16_t h)
{
    int exp = h >> 10 & 31;
    int frac = h & 1023;
    double v = exp == 0    ? ldexp(frac, -24)
               : exp < 31  ? ldexp(1024 + frac, exp - 25)
               : frac == 0 ? INFINITY
                           : NAN;
    return h & 0x8000 ? -v : v;
}

static void widens_every_half(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i;
        float f = f16_to_f32(h);
        if (isnan(f16_value(h))) {
            assert_true(isnan(f) && isnan(f16_to_f32(f32_to_f16(f))));
        } else {
            assert_true((double)f == f16_value(h) && !signbit(f) == !(h & 0x8000));
            assert_int_equal(f32_to_f16(f), h);
        }
        f = bf16_to_f32(h);
        assert_int_equal(float_bits(f), i << 16);
        if (isnan(f))
            assert_true(isnan(bf16_to_f32(f32_to_bf16(f))));
        else
            assert_int_equal(f32_to_bf16(f), h);
    }
}

/* Between two neighbours: the middle goes to the even one, everything else to the nearer. */
static void rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 0x7c00; i++) {
        uint16_t h = (uint16_t)i;
        uint16_t even = h % 2 == 0 ? h : (uint16_t)(h + 1);
        double above = i == 0x7bff ? 65536 : f16_value((uint16_t)(h + 1));
        float mid = (float)((f16_value(h) + above) / 2); /* exact: 12 bits */
        assert_int_equal(f32_to_f16(mid), even);
        assert_int_equal(f32_to_f16(-mid), even | 0x8000);
        assert_int_equal(f32_to_f16(nextafterf(mid, 0)), h);
        assert_int_equal(f32_to_f16(nextafterf(mid, INFINITY)), h + 1);
    }
    for (uint32_t i = 0; i < 0x7f80; i++) {
        uint16_t even = (uint16_t)(i % 2 == 0 ? i : i + 1);
        assert_int_equal(f32_to_bf16(bits_float(i << 16 | 0x8000)), even);
        assert_int_equal(f32_to_bf16(bits_float(i << 16 | 0x7fff)), i);
        assert_int_equal(f32_to_bf16(bits_float(i << 16 | 0x8001)), i + 1);
        assert_int_equal(f32_to_bf16(bits_float(0x80000000 | i << 16 | 0x8001)), 0x8000 | (i + 1));
    }
    assert_int_equal(f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(f32_to_f16(1e30f), 0x7c00);
    assert_true(isnan(f16_to_f32(f32_to_f16(bits_float(0x7f800001)))));
    assert_true(isnan(bf16_to_f32(f32_to_bf16(bits_float(0x7f800001)))));
}

static void knows_the_types(void **state)
{
    (void)state;
    assert_int_equal(dtype_from_gguf(0), DT_F32);
    assert_int_equal(dtype_from_gguf(16), DT_IQ2_XXS);
    assert_int_equal(dtype_from_gguf(30), DT_BF16);
    assert_int_equal(dtype_from_gguf(4), ERR_UNSUPPORTED);
    assert_int_equal(dtype_from_gguf(UINT32_MAX), ERR_UNSUPPORTED);
    assert_string_equal(dtype_name(DT_Q4_K), "Q4_K");
    assert_int_equal(dtype_row_bytes(DT_Q4_K, 512), 288);
    assert_int_equal(dtype_row_bytes(DT_Q8_0, (int64_t)1 << 40), ((uint64_t)34 << 35));
}

static void takes_integers_as_they_are(void **state)
{
    (void)state;
    const uint8_t bytes[] = { 0, 1, 127, 128, 255, 254 };
    float f[6];
    dtype_decode(DT_U8, bytes, f, 6);
    assert_true(f[0] == 0 && f[2] == 127 && f[3] == 128 && f[4] == 255);
    dtype_decode(DT_I8, bytes, f, 6);
    assert_true(f[0] == 0 && f[2] == 127 && f[3] == -128 && f[4] == -1);
    dtype_decode(DT_I16, bytes, f, 3); /* little-endian */
    assert_true(f[0] == 256 && f[1] == -32641 && f[2] == -257);
    assert_int_equal(dtype_from_gguf(DTYPE_NOT_GGUF), ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_as_gguf_does), cmocka_unit_test(decodes_any_bytes),
        cmocka_unit_test(widens_every_half),    cmocka_unit_test(rounds_to_nearest_even),
        cmocka_unit_test(knows_the_types),      cmocka_unit_test(takes_integers_as_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
