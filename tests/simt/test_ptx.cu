/* The twins of kernels/cuda/ptx.cuh against direct formulas and plain triple loops. */
#include <string.h>

#include "tests/simt/test_simt.h"

/* ---- conversions, which need no device ------------------------------------------------------------------------- */

static float f16_value(unsigned bits)
{
    int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
    float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                 : exponent == 0 ? ldexpf((float)fraction, -24)
                                 : ldexpf((float)(1024 + fraction), exponent - 25);
    return bits & 0x8000 ? -size : size;
}

static float bf16_value(unsigned bits)
{
    return __uint_as_float(bits << 16);
}

/* The nearest of all 16-bit numbers to x, the even one of two; by search among the positive ones. */
static unsigned nearest(float (*value)(unsigned), unsigned infinite, double x)
{
    double size = fabs(x);
    unsigned low = 0, high = infinite; /* value(low) <= size < value(high) */
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        *(value(middle) <= size ? &low : &high) = middle;
    }
    /* Beyond the largest number comes the power of two that infinity stands for. */
    double above =
        high == infinite ? 2 * (double)value(low) - (double)value(low - 1) : (double)value(high);
    double down = size - (double)value(low), up = above - size;
    unsigned bits = down < up || (down == up && low % 2 == 0) ? low : high;
    return bits | (signbit(x) ? 0x8000 : 0);
}

static void test_f16(void **)
{
    for (unsigned h = 0; h < 0x10000; h++) {
        float want = f16_value(h), got = cu_f16_low(h | 0xabcd0000u), high = cu_f16_high(h << 16);
        assert_true(want == want ? got == want && high == want : got != got && high != high);
        if (want == want)
            assert_int_equal(cu_pack_f16(want, want), h << 16 | h);
    }
    assert_int_equal(cu_pack_f16(NAN, -NAN), 0x7fff7fff);
    assert_int_equal(cu_pack_f16(65519.99f, 65520.0f), 0x7c007bff);
    assert_int_equal(cu_pack_f16(0x1p-25f, 0x1.8p-25f),
                     0x00010000); /* half of the smallest: to even */
    random_numbers r;
    for (int i = 0; i < 200000; i++) {
        float x = ldexpf((float)(int)r.bits(), -(int)(r.bits() % 60) - 10);
        unsigned want =
            fabsf(x) >= 65520 ? (x < 0 ? 0xfc00 : 0x7c00) : nearest(f16_value, 0x7c00, (double)x);
        assert_int_equal(cu_pack_f16(x, 0), want);
    }
}

static void test_bf16(void **)
{
    assert_int_equal(cu_pack_bf16(1.0f, -2.0f), 0xc0003f80);
    assert_int_equal(cu_pack_bf16(NAN, -NAN), 0x7fff7fff);
    assert_int_equal(cu_pack_bf16(INFINITY, -INFINITY), 0xff807f80);
    assert_int_equal(cu_pack_bf16(3.4e38f, -0.0f), 0x80007f80); /* overflows */
    random_numbers r;
    for (int i = 0; i < 200000; i++) {
        uint32_t bits = r.bits();
        float x =
            __uint_as_float(i % 2 ? bits : bits & 0xffff8000u); /* every other one near a tie */
        if (fabsf(x) < 3e38f)
            assert_int_equal(cu_pack_bf16(0, x) >> 16, nearest(bf16_value, 0x7f80, (double)x));
    }
}

/* A tie that only the far smaller addend decides, and random numbers whose sums a double holds exactly. */
static void test_fma_rounds_once(void **)
{
    uint32_t b = cu_pack_bf16(1.0625f, 1.0625f); /* its square is a tie: 1.125 + 2^-8 */
    assert_int_equal(cu_fma_bf16x2(b, b, cu_pack_bf16(0x1p-60f, -0x1p-60f)),
                     cu_pack_bf16(1.1328125f, 1.125f));
    assert_int_equal(cu_fma_bf16x2(b, b, 0) & 0xffff, cu_pack_bf16(1.125f, 0));
    assert_int_equal(cu_fma_bf16x2(cu_pack_bf16(INFINITY, 2), cu_pack_bf16(0, 3), 0),
                     cu_pack_bf16(0, 6) | 0x7fff);
    random_numbers r;
    for (int i = 0; i < 100000; i++) {
        float v[3];
        for (float &x : v)
            x = ldexpf((float)(int)(r.bits() % 511 - 255), (int)(r.bits() % 20) - 10);
        uint32_t x[3];
        for (int j = 0; j < 3; j++) {
            x[j] = cu_pack_bf16(0, v[j]);
            v[j] = cu_bf16_high(x[j]);
        }
        double exact = (double)v[0] * (double)v[1] + (double)v[2];
        uint32_t got = cu_fma_bf16x2(x[0], x[1], x[2]) >> 16;
        assert_true(bf16_value(got) == bf16_value(nearest(bf16_value, 0x7f80, exact)));
    }
}

/* ---- tensor cores ---------------------------------------------------------------------------------------------- */

/* One warp, with fragments read as kernels/cuda/cu.cuh says; d is 16 x 8. */
template <bool F16> static __global__ void mma_16bit(const uint16_t *a, const uint16_t *b, float *d)
{
    int g = cu_lane() / 4, q = cu_lane() % 4;
    auto pair = [](uint16_t low, uint16_t high) { return (uint32_t)high << 16 | low; };
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; i++) {
        const uint16_t *p = a + (g + i % 2 * 8) * 16 + 2 * q + i / 2 * 8;
        fa[i] = pair(p[0], p[1]);
    }
    for (int i = 0; i < 2; i++) {
        const uint16_t *p = b + (2 * q + i * 8) * 8 + g;
        fb[i] = pair(p[0], p[8]);
    }
    float *out = d + g * 8 + 2 * q;
    float sum[4] = { out[0], out[1], out[64], out[65] };
    F16 ? cu_mma_f16(sum, fa, fb) : cu_mma_bf16(sum, fa, fb);
    out[0] = sum[0];
    out[1] = sum[1];
    out[64] = sum[2];
    out[65] = sum[3];
}

template <bool F16> static void check_mma(uint64_t seed)
{
    random_numbers r;
    std::vector<uint16_t> a(16 * 16), b(16 * 8);
    std::vector<float> d(16 * 8), fa, fb;
    simt_seed(seed);
    auto encode = [](float x) { return (uint16_t)(F16 ? cu_pack_f16(x, 0) : cu_pack_bf16(x, 0)); };
    for (uint16_t &x : a) {
        fa.push_back(r.small());
        x = encode(fa.back());
    }
    for (uint16_t &x : b) {
        fb.push_back(r.small());
        x = encode(fb.back());
    }
    for (float &x : d)
        x = r.small();
    uint16_t *da = device_array(a), *db = device_array(b);
    float *dd = device_array(d);
    CU_LAUNCH(nullptr, 1, 32, 0, mma_16bit<F16>, da, db, dd);
    std::vector<float> got = device_take(dd, 16 * 8);
    for (size_t i = 0; i < 16; i++)
        for (size_t j = 0; j < 8; j++) {
            float sum = d[i * 8 + j]; /* all sums are exact: steps of 2^-14, below 2^5 */
            for (size_t k = 0; k < 16; k++)
                sum += fa[i * 16 + k] * fb[k * 8 + j];
            assert_true(got[i * 8 + j] == sum);
        }
    expect_success(cudaFree(da));
    expect_success(cudaFree(db));
}

static void test_mma_16bit(void **)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        check_mma<false>(seed);
        check_mma<true>(seed);
    }
}

static __global__ void mma_8bit(const int8_t *a, const int8_t *b, int32_t *d)
{
    int g = cu_lane() / 4, q = cu_lane() % 4;
    uint32_t fa[4] = {}, fb[2] = {};
    for (int i = 0; i < 4; i++)
        memcpy(&fa[i], a + (g + i % 2 * 8) * 32 + 4 * q + i / 2 * 16, 4);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            fb[i] |= (uint32_t)(uint8_t)b[(4 * q + 16 * i + j) * 8 + g] << 8 * j;
    int32_t *out = d + g * 8 + 2 * q;
    int32_t sum[4] = { out[0], out[1], out[64], out[65] };
    cu_mma_s8(sum, fa, fb);
    out[0] = sum[0];
    out[1] = sum[1];
    out[64] = sum[2];
    out[65] = sum[3];
}

static void test_mma_8bit(void **)
{
    random_numbers r;
    std::vector<int8_t> a(16 * 32), b(32 * 8);
    std::vector<int32_t> d(16 * 8);
    for (int8_t &x : a)
        x = (int8_t)r.bits();
    for (int8_t &x : b)
        x = (int8_t)r.bits();
    for (int32_t &x : d)
        x = (int32_t)r.bits() / 2;
    int8_t *da = device_array(a), *db = device_array(b);
    int32_t *dd = device_array(d);
    CU_LAUNCH(nullptr, 1, 32, 0, mma_8bit, da, db, dd);
    std::vector<int32_t> got = device_take(dd, 16 * 8);
    for (size_t i = 0; i < 16; i++)
        for (size_t j = 0; j < 8; j++) {
            int32_t sum = d[i * 8 + j];
            for (size_t k = 0; k < 32; k++)
                sum += a[i * 32 + k] * b[k * 8 + j];
            assert_int_equal(got[i * 8 + j], sum);
        }
    expect_success(cudaFree(da));
    expect_success(cudaFree(db));
}

/* ---- warpgroups -------------------------------------------------------------------------------------------------- */

enum { WG_K = 64, WG_COLUMNS = 96 };

/* d[64][96] += A[64][64] B, of B[64][96] the columns from 32 on by one product, the others by another. */
static __global__ void warpgroup(const uint16_t *a, const uint16_t *b, float *d)
{
    CU_DYNAMIC(unsigned char, room);
    uint16_t *tile = (uint16_t *)(room + (1024 - cu_shared_address(room) % 1024) % 1024);
    int t = (int)threadIdx.x, g = cu_lane() / 4, q = cu_lane() % 4;
    for (int i = t; i < WG_COLUMNS * WG_K; i += (int)blockDim.x) {
        int n = i / WG_K, k = i % WG_K;
        tile[n * WG_K + (k / 8 ^ n % 8) * 8 + k % 8] = b[k * WG_COLUMNS + n];
    }
    cu_wgmma_visible();
    __syncthreads();
    float few[4][4], many[8][4];
    uint32_t fa[WG_K / 16][4];
    cu_tile x = cu_tile_of(tile);
    cu_wgmma_begin();
    for (int step = 0; step < WG_K / 16; step++) {
        for (int i = 0; i < 4; i++)
            memcpy(&fa[step][i],
                   a + (cu_warp() * 16 + g + i % 2 * 8) * WG_K + step * 16 + 2 * q + i / 2 * 8, 4);
        if (step == 0) {
            cu_wgmma_bf16<32, false>(few, fa[step], cu_tile_at(x, 0, 16 * step));
            cu_wgmma_bf16<64, false>(many, fa[step], cu_tile_at(x, 32, 16 * step));
        } else {
            cu_wgmma_bf16<32, true>(few, fa[step], cu_tile_at(x, 0, 16 * step));
            cu_wgmma_bf16<64, true>(many, fa[step], cu_tile_at(x, 32, 16 * step));
        }
    }
    cu_wgmma_commit();
    cu_wgmma_wait<0>(few);
    cu_wgmma_wait<0>(many);
    for (int c = 0; c < WG_COLUMNS / 8; c++)
        for (int i = 0; i < 4; i++) {
            int row = cu_warp() * 16 + g + i / 2 * 8;
            d[row * WG_COLUMNS + c * 8 + 2 * q + i % 2] += c < 4 ? few[c][i] : many[c - 4][i];
        }
}

static void test_warpgroup(void **)
{
    random_numbers r;
    std::vector<float> fa(64 * WG_K), fb(WG_K * WG_COLUMNS), d(64 * WG_COLUMNS);
    std::vector<uint16_t> a, b;
    for (float &x : fa) {
        x = r.small();
        a.push_back((uint16_t)cu_pack_bf16(x, 0));
    }
    for (float &x : fb) {
        x = r.small();
        b.push_back((uint16_t)cu_pack_bf16(x, 0));
    }
    for (float &x : d)
        x = r.small();
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        simt_seed(seed);
        uint16_t *da = device_array(a), *db = device_array(b);
        float *dd = device_array(d);
        CU_LAUNCH(nullptr, 1, 128, 1024 + WG_COLUMNS * WG_K * 2, warpgroup, da, db, dd);
        std::vector<float> got = device_take(dd, d.size());
        for (size_t i = 0; i < 64; i++)
            for (size_t j = 0; j < WG_COLUMNS; j++) {
                float sum = d[i * WG_COLUMNS + j]; /* all sums are exact */
                for (size_t k = 0; k < WG_K; k++)
                    sum += fa[i * WG_K + k] * fb[k * WG_COLUMNS + j];
                assert_true(got[i * WG_COLUMNS + j] == sum);
            }
        expect_success(cudaFree(da));
        expect_success(cudaFree(db));
    }
}

/* ---- ldmatrix -------------------------------------------------------------------------------------------------- */

/* A 16 x 16 matrix of numbers as four tiles: upper left, lower left, upper right, lower right. */
static __global__ void load_tiles(const uint16_t *in, uint32_t *plain, uint32_t *transposed)
{
    CU_SHARED(uint16_t, tile, 16 * 16);
    int lane = cu_lane();
    for (int i = lane; i < 256; i += CU_WARP)
        tile[i] = in[i];
    __syncthreads();
    const uint16_t *row = tile + (lane % 8 + lane / 8 % 2 * 8) * 16 + lane / 16 * 8;
    cu_ldmatrix_x4(plain + lane * 4, row);
    cu_ldmatrix_x4_trans(transposed + lane * 4, row);
}

static void test_ldmatrix(void **)
{
    std::vector<uint16_t> in(256);
    for (size_t i = 0; i < 256; i++)
        in[i] = (uint16_t)(i * 251);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        simt_seed(seed);
        uint16_t *from = device_array(in);
        uint32_t *plain = device_array<uint32_t>(128), *turned = device_array<uint32_t>(128);
        CU_LAUNCH(nullptr, 1, 32, 0, load_tiles, from, plain, turned);
        std::vector<uint32_t> p = device_take(plain, 128), t = device_take(turned, 128);
        for (size_t lane = 0; lane < 32; lane++)
            for (size_t i = 0; i < 4; i++) {
                const uint16_t *tile = &in[i % 2 * 8 * 16 + i / 2 * 8];
                size_t g = lane / 4, q = lane % 4;
                assert_int_equal(p[lane * 4 + i] & 0xffff, tile[g * 16 + 2 * q]);
                assert_int_equal(p[lane * 4 + i] >> 16, tile[g * 16 + 2 * q + 1]);
                assert_int_equal(t[lane * 4 + i] & 0xffff, tile[2 * q * 16 + g]);
                assert_int_equal(t[lane * 4 + i] >> 16, tile[(2 * q + 1) * 16 + g]);
            }
        expect_success(cudaFree(from));
    }
}

/* ---- asynchronous copies --------------------------------------------------------------------------------------- */

/* Each thread copies three groups of 16 bytes; `seen` is what it finds before and after each wait. */
static __global__ void copy_groups(const int *in, int *seen, int *out)
{
    CU_SHARED(int, stage, 3 * 64 * 4);
    int t = (int)threadIdx.x, *mine = stage + t * 4;
    for (int g = 0; g < 3; g++) {
        mine[g * 256] = 5; /* what was there is gone when the copy starts */
        cu_copy16(mine + g * 256, in + g * 256 + t * 4, 16);
        cu_copy_commit();
    }
    int *row = seen + t * 6;
    row[0] = mine[0];
    cu_copy_wait<2>();
    row[1] = mine[0];
    row[2] = mine[256];
    cu_copy_wait<0>();
    row[3] = mine[256];
    row[4] = mine[512];
    cu_copy16(mine, in + t * 4, t % 17);
    cu_copy_wait<0>();
    row[5] = mine[0]; /* was not committed: has not come */
    cu_copy_commit();
    cu_copy_wait<0>();
    __syncthreads();
    for (int i = t; i < 256; i += (int)blockDim.x)
        out[i] = stage[i];
}

static void test_copies(void **)
{
    std::vector<int> in(3 * 256);
    for (size_t i = 0; i < in.size(); i++)
        in[i] = (int)(0x01010101 * (i % 127 + 1));
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        simt_seed(seed);
        int *from = device_array(in), *seen = device_array<int>(64 * 6),
            *out = device_array<int>(256);
        CU_LAUNCH(nullptr, 1, 64, 0, copy_groups, from, seen, out);
        std::vector<int> s = device_take(seen, 64 * 6), o = device_take(out, 256);
        for (size_t t = 0; t < 64; t++) {
            const int *row = &s[t * 6];
            assert_true(row[0] != 5 && row[0] != in[t * 4]);
            assert_int_equal(row[1], in[t * 4]);
            assert_int_not_equal(row[2], in[256 + t * 4]);
            assert_int_equal(row[3], in[256 + t * 4]);
            assert_int_equal(row[4], in[512 + t * 4]);
            assert_int_not_equal(row[5], in[t * 4]);
            char want[16] = {};
            memcpy(want, &in[t * 4], t % 17);
            assert_memory_equal(&o[t * 4], want, 16);
        }
        expect_success(cudaFree(from));
    }
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_fma_rounds_once),
        SIMT_TEST(test_mma_16bit),
        SIMT_TEST(test_mma_8bit),
        SIMT_TEST(test_warpgroup),
        SIMT_TEST(test_ldmatrix),
        SIMT_TEST(test_copies),
    };
    return cmocka_run_group_tests_name("ptx", tests, nullptr, nullptr);
}
