/* What kernels say without PTX, on the simulated device: positions, warps, barriers, atomics, shared memory, numbers. */
#include <limits.h>
#include <string.h>

#include <algorithm>

#include "tests/simt/test_simt.h"

/* ---- positions and order --------------------------------------------------------------------------------------- */

static __global__ void count_visits(unsigned *visits)
{
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    atomicAdd(&visits[block * blockDim.x * blockDim.y * blockDim.z + thread], 1u);
}

static void test_every_thread_runs_once(void **)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        simt_seed(seed);
        unsigned *visits = device_array(std::vector<unsigned>(3 * 5 * 2 * 8 * 4 * 3, 0));
        CU_LAUNCH(nullptr, dim3(3, 5, 2), dim3(8, 4, 3), 0, count_visits, visits);
        for (unsigned n : device_take(visits, 3 * 5 * 2 * 8 * 4 * 3))
            assert_int_equal(n, 1);
    }
}

static __global__ void log_order(int *log, int *n)
{
    log[atomicAdd(n, 1)] = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    __syncthreads();
    log[atomicAdd(n, 1)] = (int)(blockIdx.x * blockDim.x + threadIdx.x);
}

static std::vector<int> order_of(uint64_t seed, unsigned blocks, unsigned threads)
{
    simt_seed(seed);
    size_t entries = (size_t)blocks * threads * 2;
    int *log = device_array<int>(entries), *n = device_array(std::vector<int>{ 0 });
    CU_LAUNCH(nullptr, blocks, threads, 0, log_order, log, n);
    std::vector<int> order = device_take(log, entries);
    expect_success(cudaFree(n));
    return order;
}

/* Of blocks, of warps, of lanes. */
static void test_order_follows_the_seed(void **)
{
    std::vector<int> natural = order_of(0, 4, 64);
    for (int i = 0; i < 4 * 64 * 2; i++)
        assert_int_equal(natural[(size_t)i], i / 128 * 64 + i % 64);
    for (unsigned blocks = 1; blocks <= 16; blocks *= 16)
        for (unsigned threads = 1; threads <= 32; threads *= 32) {
            if (blocks * threads == 1)
                continue;
            std::vector<int> first = order_of(1, blocks, threads);
            assert_true(order_of(1, blocks, threads) == first);
            assert_false(order_of(0, blocks, threads) == first);
            assert_false(order_of(2, blocks, threads) == first);
        }
    std::vector<int> lanes = order_of(1, 1, 32);
    assert_false(std::equal(lanes.begin(), lanes.begin() + 32, lanes.begin() + 32));
}

/* ---- warps ----------------------------------------------------------------------------------------------------- */

/* Results of all shuffles of lane numbers, for one width. */
template <class T> static __global__ void shuffle_all(T *out, int width, int by)
{
    T mine = (T)threadIdx.x;
    T *row = out + threadIdx.x * 4;
    row[0] = __shfl_sync(CU_ALL, mine, by, width);
    row[1] = __shfl_up_sync(CU_ALL, mine, (unsigned)by, width);
    row[2] = __shfl_down_sync(CU_ALL, mine, (unsigned)by, width);
    row[3] = __shfl_xor_sync(CU_ALL, mine, by, width);
}

template <class T> static void check_shuffles(int width, int by)
{
    T *out = device_array<T>(64 * 4);
    CU_LAUNCH(nullptr, 1, 64, 0, shuffle_all<T>, out, width, by);
    std::vector<T> got = device_take(out, 64 * 4);
    for (int i = 0; i < 64; i++) {
        int low = i / width * width, high = low + width - 1;
        const T *row = &got[(size_t)i * 4];
        assert_true(row[0] == (T)(low + by % width));
        assert_true(row[1] == (T)(i - by < low ? i : i - by));
        assert_true(row[2] == (T)(i + by > high ? i : i + by));
        assert_true(row[3] == (T)((i ^ by) > high ? i : i ^ by));
    }
}

static void test_shuffles(void **)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        simt_seed(seed);
        for (int width = 4; width <= 32; width *= 2)
            for (int by = 0; by < 32; by += 3) {
                check_shuffles<int>(width, by);
                check_shuffles<float>(width, by);
            }
        check_shuffles<unsigned>(32, 7);
        check_shuffles<long long>(16, 5);
    }
}

static __global__ void vote(unsigned *out)
{
    int i = (int)threadIdx.x;
    unsigned *row = out + i * 5;
    row[0] = __ballot_sync(CU_ALL, i % 3 == 0 ? 4 : 0);
    row[1] = (unsigned)__any_sync(CU_ALL, i == 40);
    row[2] = (unsigned)__all_sync(CU_ALL, i >= 32);
    row[3] = __match_any_sync(CU_ALL, i % 4);
    /* The halves of a warp each on their own, in another order of lines. */
    if (i % 32 < 16)
        row[4] = __ballot_sync(0x0000ffffu, i % 2);
    else
        row[4] = __ballot_sync(0xffff0000u, i % 4 == 0);
}

static void test_votes(void **)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        simt_seed(seed);
        unsigned *out = device_array<unsigned>(64 * 5);
        CU_LAUNCH(nullptr, 1, 64, 0, vote, out);
        std::vector<unsigned> got = device_take(out, 64 * 5);
        for (size_t i = 0; i < 64; i++) {
            unsigned thirds = 0;
            for (size_t lane = 0; lane < 32; lane++)
                thirds |= (i / 32 * 32 + lane) % 3 == 0 ? 1u << lane : 0;
            assert_int_equal(got[i * 5], thirds);
            assert_int_equal(got[i * 5 + 1], i >= 32);
            assert_int_equal(got[i * 5 + 2], i >= 32);
            assert_int_equal(got[i * 5 + 3], 0x11111111u << i % 4);
            assert_int_equal(got[i * 5 + 4], i % 32 < 16 ? 0xaaaau : 0x11110000u);
        }
    }
}

static __global__ void reduce_all(const int *in, int *out)
{
    int x = in[threadIdx.x];
    unsigned u = (unsigned)x;
    int sums[] = { __reduce_add_sync(CU_ALL, x),      __reduce_min_sync(CU_ALL, x),
                   __reduce_max_sync(CU_ALL, x),      (int)__reduce_min_sync(CU_ALL, u),
                   (int)__reduce_max_sync(CU_ALL, u), (int)__reduce_or_sync(CU_ALL, u),
                   (int)__reduce_and_sync(CU_ALL, u), (int)__reduce_xor_sync(CU_ALL, u),
                   (int)cu_warp_sum((float)(x % 100)) };
    for (int i = 0; i < 9; i++)
        out[threadIdx.x * 9 + i] = sums[i];
}

static void test_reductions(void **)
{
    random_numbers r;
    std::vector<int> in(32);
    for (int &x : in)
        x = (int)r.bits();
    int want[9] = { 0, INT_MAX, INT_MIN, -1, 0, 0, -1, 0, 0 };
    for (int x : in) {
        want[0] = (int)((unsigned)want[0] + (unsigned)x);
        want[1] = x < want[1] ? x : want[1];
        want[2] = x > want[2] ? x : want[2];
        want[3] = (unsigned)x < (unsigned)want[3] ? x : want[3];
        want[4] = (unsigned)x > (unsigned)want[4] ? x : want[4];
        want[5] |= x;
        want[6] &= x;
        want[7] ^= x;
        want[8] += x % 100;
    }
    int *from = device_array(in), *out = device_array<int>(32 * 9);
    CU_LAUNCH(nullptr, 1, 32, 0, reduce_all, from, out);
    std::vector<int> got = device_take(out, 32 * 9);
    for (size_t i = 0; i < 32 * 9; i++)
        assert_int_equal(got[i], want[i % 9]);
    expect_success(cudaFree(from));
}

/* ---- blocks ---------------------------------------------------------------------------------------------------- */

template <int N> static __global__ void reverse_and_count(int *out)
{
    CU_SHARED(int, tile, N);
    CU_SHARED(int, other, N);
    CU_DYNAMIC(int, room);
    int i = (int)threadIdx.x, block = (int)blockIdx.x * N;
    for (int round = 0; round < 3; round++) {
        tile[i] = i + round;
        other[i] = -i;
        room[i] = 2 * i;
        __syncthreads();
        out[block + i] = tile[N - 1 - i] + other[N - 1 - i] + room[N - 1 - i];
        __syncthreads();
    }
    int n = __syncthreads_count(i % 3 == 0), any = __syncthreads_or(i == 1);
    int all = __syncthreads_and(i < N), none = __syncthreads_and(i == 0);
    if (n != (N + 2) / 3 || !any || !all || none)
        out[block + i] = -1;
}

static void test_barriers_and_shared_memory(void **)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        simt_seed(seed);
        int *out = device_array<int>(5 * 96);
        CU_LAUNCH(nullptr, 5, 96, 96 * sizeof(int), reverse_and_count<96>, out);
        std::vector<int> got = device_take(out, 5 * 96);
        for (int i = 0; i < 5 * 96; i++)
            assert_int_equal(got[(size_t)i], 2 + 2 * (95 - i % 96));
        int *small = device_array<int>(40);
        CU_LAUNCH(nullptr, 1, 40, 40 * sizeof(int), reverse_and_count<40>, small);
        got = device_take(small, 40);
        for (int i = 0; i < 40; i++)
            assert_int_equal(got[(size_t)i], 2 + 2 * (39 - i));
    }
}

static __global__ void shared_addresses(unsigned long long *out)
{
    CU_SHARED(char, odd, 3);
    CU_SHARED(char, next, 5);
    CU_DYNAMIC(char, room);
    out[0] = (unsigned long long)(uintptr_t)odd;
    out[1] = (unsigned long long)(uintptr_t)next;
    out[2] = (unsigned long long)(uintptr_t)room;
}

static void test_shared_alignment(void **)
{
    unsigned long long *out = device_array<unsigned long long>(3);
    CU_LAUNCH(nullptr, 1, 1, 5, shared_addresses, out);
    std::vector<unsigned long long> got = device_take(out, 3);
    assert_int_equal(got[0] % 16, 0);
    assert_int_equal(got[1] % 16, 0);
    assert_int_equal(got[2] % 128, 0);
    assert_int_not_equal(got[0], got[1]);
}

static __global__ void atomics(int *out, unsigned *u, unsigned long long *big)
{
    int i = (int)threadIdx.x;
    atomicAdd(&out[0], i);
    atomicMax(&out[1], i);
    atomicMin(&out[2], -i);
    atomicOr(&u[0], 1u << i % 32);
    atomicExch(&u[1], 7u);
    atomicAdd(&big[0], 1ull << 33);
    int seen = out[3], was;
    do { /* the classic loop */
        was = seen;
        seen = atomicCAS(&out[3], was, was + 2);
    } while (seen != was);
}

static void test_atomics(void **)
{
    int *out = device_array(std::vector<int>(4, 0));
    unsigned *u = device_array(std::vector<unsigned>(2, 0));
    unsigned long long *big = device_array(std::vector<unsigned long long>(1, 0));
    CU_LAUNCH(nullptr, 2, 64, 0, atomics, out, u, big);
    std::vector<int> got = device_take(out, 4);
    assert_int_equal(got[0], 2 * 64 * 63 / 2);
    assert_int_equal(got[1], 63);
    assert_int_equal(got[2], -63);
    assert_int_equal(got[3], 2 * 64 * 2);
    std::vector<unsigned> got_u = device_take(u, 2);
    assert_int_equal(got_u[0], 0xffffffffu);
    assert_int_equal(got_u[1], 7);
    assert_true(device_take(big, 1)[0] == 128ull << 33);
}

/* ---- numbers, which need no device ----------------------------------------------------------------------------- */

static void test_numbers(void **)
{
    assert_int_equal(__byte_perm(0x33221100u, 0x77665544u, 0x7531u), 0x77553311u);
    assert_int_equal(__byte_perm(0x33221100u, 0x77665544u, 0xfdb9u),
                     0x77553311u); /* bits 3 do nothing */
    assert_int_equal(__byte_perm(0x33221100u, 0x77665544u, 0xabcd3210u), 0x33221100u);
    assert_int_equal(__funnelshift_l(0x80000000u, 1u, 1), 3);
    assert_int_equal(__funnelshift_l(0x80000000u, 1u, 32), 1);
    assert_int_equal(__funnelshift_r(2u, 1u, 1), 0x80000001u);
    assert_int_equal(__clz(0), 32);
    assert_int_equal(__clz(1), 31);
    assert_int_equal(__ffs(0), 0);
    assert_int_equal(__ffs(8), 4);
    assert_int_equal(__popc(0xf0f0u), 8);
    assert_int_equal(__brev(1u), 0x80000000u);
    assert_int_equal(__dp4a((int)0xff020304, (int)0x7f0180ff, 5), -127 + 2 - 3 * 128 - 4 + 5);
    assert_int_equal(__dp4a(0xff020304u, 0x7f0180ffu, 5u), 255 * 127 + 2 + 3 * 128 + 4 * 255 + 5);
    assert_int_equal(min(-1, 2), -1);
    assert_int_equal(max(1u, -1), 0xffffffffu); /* as CUDA: unsigned */
    assert_true(max(NAN, 2.0f) == 2.0f && min(2.0f, NAN) == 2.0f);
    assert_int_equal(__float2int_rn(2.5f), 2);
    assert_int_equal(__float2int_rn(3.5f), 4);
    assert_int_equal(__float2int_rn(1e20f), INT_MAX);
    assert_int_equal(__float2int_rn(NAN), 0);
    assert_int_equal(__float_as_uint(1.0f), 0x3f800000);
    assert_true(__uint_as_float(0x40000000) == 2.0f && __int_as_float(0x40000000) == 2.0f);
    assert_true(rsqrtf(4.0f) == 0.5f && __fdividef(1, 4) == 0.25f && __expf(0) == 1);
    assert_true(sizeof(uint4) == 16 && alignof(uint4) == 16 && alignof(float2) == 8);
}

int main()
{
    const struct CMUnitTest tests[] = {
        SIMT_TEST(test_every_thread_runs_once),
        SIMT_TEST(test_order_follows_the_seed),
        SIMT_TEST(test_shuffles),
        SIMT_TEST(test_votes),
        SIMT_TEST(test_reductions),
        SIMT_TEST(test_barriers_and_shared_memory),
        SIMT_TEST(test_shared_alignment),
        SIMT_TEST(test_atomics),
        cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests_name("device", tests, nullptr, nullptr);
}
