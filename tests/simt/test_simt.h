/* What the test programs of this folder share: cmocka, arrays on the device, seeds. C++ only; in C there is nothing in it. */
#ifndef WRING_TESTS_SIMT_TEST_SIMT_H
#define WRING_TESTS_SIMT_TEST_SIMT_H

#ifdef __cplusplus
extern "C" {
#    include <setjmp.h>
#    include <stdarg.h>
#    include <stddef.h>
#    include <stdint.h>

#    include <cmocka.h>
}

#    include <vector>

#    include "kernels/cuda/cu.cuh"
#    include "tests/simt/simt.h"

enum : uint64_t {
    SEEDS = 8
}; /* a test that must not depend on the order runs with seeds 0 ... SEEDS - 1 */

static struct simt_stats stats_before; /* the test that runs */

/* Before each test: a sound device and seed 0. */
static inline int test_begin(void **)
{
    simt_reset();
    simt_seed(0);
    simt_stats(&stats_before);
    return 0;
}

/* Behind each test: nothing is left. */
static inline int test_end(void **)
{
    struct simt_stats s;
    simt_stats(&s);
    simt_reset();
    bool clean = s.device_allocations == stats_before.device_allocations &&
                 s.pinned_allocations == stats_before.pinned_allocations && s.queued == 0;
    if (!clean)
        print_error("%zu device and %zu pinned allocations, %zu works left behind\n",
                    s.device_allocations, s.pinned_allocations, s.queued);
    return !clean;
}

#    define SIMT_TEST(f) cmocka_unit_test_setup_teardown(f, test_begin, test_end)

static inline void expect_success(cudaError_t e)
{
    if (e != cudaSuccess)
        fail_msg("%s: %s", cudaGetErrorName(e), simt_report());
}

/* Runs what was queued; fails when something went wrong. */
static inline void finish()
{
    expect_success(cudaGetLastError());
    expect_success(cudaDeviceSynchronize());
}

template <class T> static inline T *device_array(size_t n)
{
    T *p = nullptr;
    expect_success(cudaMalloc(&p, n * sizeof(T)));
    return p;
}

template <class T> static inline T *device_array(const std::vector<T> &values)
{
    T *p = device_array<T>(values.size());
    expect_success(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

/* The values of an array, once all work is done. */
template <class T> static inline std::vector<T> device_values(const T *p, size_t n)
{
    std::vector<T> values(n);
    finish();
    expect_success(cudaMemcpy(values.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
}

/* The same, and frees it. */
template <class T> static inline std::vector<T> device_take(T *p, size_t n)
{
    std::vector<T> values = device_values(p, n);
    expect_success(cudaFree(p));
    return values;
}

/* Pseudo-random numbers, the same every time. */
struct random_numbers {
    uint64_t state = 1;

    uint32_t bits()
    {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (uint32_t)(state >> 32);
    }
    float small() /* -1 ... 1 in steps that bf16 can hold */
    {
        return (float)((int)(bits() % 257) - 128) / 128;
    }
};
#endif

#endif
