/* Products and the solver of kernels/cuda/dense.cuh against plain loops in double precision, in every order of threads. */
#include "kernels/cuda/dense.cuh"
#include "tests/simt/test_simt.h"

static std::vector<float> matrix(random_numbers *r, size_t n)
{
    std::vector<float> x(n);
    for (float &v : x)
        v = r->small();
    return x;
}

static void check_near(float got, double want, double tolerance)
{
    if (!(fabs((double)got - want) <= tolerance))
        fail_msg("%g, not %g", (double)got, want);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(DENSE_THREADS) product_kernel(struct dense_product t)
{
    CU_SHARED(struct dense_room, room, 1);
    product_tiles(t, room);
}

/* a and b stored either way; what is added is the result's own place; a border that must stay. */
static void check_product(int m, int n, int k, bool a_turned, bool b_turned, bool upper)
{
    random_numbers r;
    size_t pitch = (size_t)n + 3;
    std::vector<float> a = matrix(&r, (size_t)(m * k)), b = matrix(&r, (size_t)(k * n));
    std::vector<float> c = matrix(&r, (size_t)m * pitch), first;
    for (uint64_t seed = 0; seed < 3; seed++) {
        simt_seed(seed);
        struct dense_product t = {};
        float *on_a = device_array(a), *on_b = device_array(b), *on_c = device_array(c);
        t.a = on_a;
        t.b = on_b;
        t.c = on_c;
        t.add = on_c;
        t.m = m;
        t.n = n;
        t.k = k;
        t.c_row = t.add_row = pitch;
        t.a_row = a_turned ? 1 : (size_t)k;
        t.a_col = a_turned ? (size_t)m : 1;
        t.b_row = b_turned ? 1 : (size_t)n;
        t.b_col = b_turned ? (size_t)k : 1;
        t.scale = -0.5f;
        t.upper = upper;
        CU_LAUNCH(nullptr, dim3(1), dim3(DENSE_THREADS), 0, product_kernel, t);
        std::vector<float> got = device_take(on_c, c.size());
        expect_success(cudaFree(on_a));
        expect_success(cudaFree(on_b));
        for (size_t at = 0; at < got.size(); at++) {
            size_t i = at / pitch, j = at % pitch;
            double want = (double)c[at];
            for (size_t p = 0; p < (size_t)k && j < (size_t)n; p++)
                want -= 0.5 * (double)a[i * t.a_row + p * t.a_col] *
                        (double)b[p * t.b_row + j * t.b_col];
            if (!upper || j >= i)
                check_near(got[at], want, 1e-5);
        }
        first = seed == 0 ? got : first;
        assert_memory_equal(got.data(), first.data(), got.size() * sizeof(float));
    }
}

static void test_product(void **)
{
    check_product(1, 1, 1, false, false, false);
    check_product(64, 64, 16, false, true, false);
    check_product(65, 130, 17, true, false, false);
    check_product(5, 63, 100, true, true, false);
    check_product(130, 130, 33, true, false, true);
    check_product(3, 7, 0, false, false, false);
}

/* ---- systems ----------------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(DENSE_THREADS)
    solve_kernel(float *a, int n, int m, int *solved)
{
    CU_SHARED(struct solve_room, room, 1);
    bool ok = dense_solve(a, n, m, room);
    if (threadIdx.x == 0)
        *solved = ok;
}

/* x^T x + diagonal, and b beside it. */
static std::vector<float> system_of(int n, int m, float diagonal)
{
    random_numbers r;
    size_t rows = (size_t)n, row = (size_t)(n + m);
    std::vector<float> x = matrix(&r, rows * rows), a(rows * row);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < row; j++) {
            double sum = i == j ? (double)diagonal : 0;
            for (size_t p = 0; p < rows && j < rows; p++)
                sum += (double)x[p * rows + i] * (double)x[p * rows + j];
            a[i * row + j] = j < rows ? (float)sum : r.small();
        }
    return a;
}

/* What lies below the diagonal is never read. */
static std::vector<float> upper_of(std::vector<float> a, int n, int m)
{
    for (size_t i = 0; i < (size_t)n; i++)
        for (size_t j = 0; j < i; j++)
            a[i * (size_t)(n + m) + j] = NAN;
    return a;
}

static int solve(std::vector<float> *a, int n, int m)
{
    float *on_a = device_array(upper_of(*a, n, m));
    int *solved = device_array<int>(1);
    CU_LAUNCH(nullptr, dim3(1), dim3(DENSE_THREADS), 0, solve_kernel, on_a, n, m, solved);
    *a = device_take(on_a, a->size());
    return device_take(solved, 1)[0];
}

static void check_solve(int n, int m)
{
    const std::vector<float> a = system_of(n, m, 1);
    std::vector<float> first;
    size_t rows = (size_t)n, row = (size_t)(n + m);
    for (uint64_t seed = 0; seed < 3; seed++) {
        simt_seed(seed);
        std::vector<float> x = a;
        assert_int_equal(solve(&x, n, m), 1);
        for (size_t i = 0; i < rows; i++)
            for (size_t j = rows; j < row; j++) {
                double sum = 0;
                for (size_t p = 0; p < rows; p++)
                    sum += (double)a[i * row + p] * (double)x[p * row + j];
                check_near((float)sum, (double)a[i * row + j], 1e-4);
            }
        for (size_t i = 0; i < rows * row; i++)
            x[i] = i % row < rows ? 0 : x[i];
        first = seed == 0 ? x : first;
        assert_memory_equal(x.data(), first.data(), x.size() * sizeof(float));
    }
}

static void test_solve(void **)
{
    check_solve(1, 1);
    check_solve(31, 2);
    check_solve(32, 6);
    check_solve(33, 70);
    check_solve(97, 300);
    check_solve(130, 16);
}

/* A pivot that is not positive, in the first block and in a later one, and one that is no number. */
static void test_not_definite(void **)
{
    for (size_t at : { (size_t)0, (size_t)5, (size_t)40 }) {
        for (float bad : { -1e6f, NAN }) {
            std::vector<float> a = system_of(45, 3, 1);
            a[at * 48 + at] = bad;
            assert_int_equal(solve(&a, 45, 3), 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SIMT_TEST(test_product),
        SIMT_TEST(test_solve),
        SIMT_TEST(test_not_definite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
