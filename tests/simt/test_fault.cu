/* Faults planted in kernels, each caught: as an error with a sentence that says where, or as a result that is wrong or
 * changes with the seed. Each kernel has a sound twin or a sound way to be launched, which passes.
 */
#include <string.h>

#include <string>

#include "tests/simt/test_simt.h"

/* Lines of this file that a report should name; a kernel of the host can write them down. */
static int lines[2];

/* The launch before has failed with `code`, for good, and the report has all the words in it. */
static void expect_fault(cudaError_t code, std::vector<std::string> words)
{
    void *p;
    assert_int_equal(cudaDeviceSynchronize(), code);
    for (const std::string &w : words)
        if (!strstr(simt_report(), w.c_str()))
            fail_msg("no \"%s\" in \"%s\"", w.c_str(), simt_report());
    assert_int_equal(cudaGetLastError(), code);
    assert_int_equal(cudaGetLastError(), code); /* stays */
    assert_int_equal(cudaMalloc(&p, 16), code);
    assert_string_equal(cudaGetErrorString(code), simt_report());
    simt_reset();
    assert_string_equal(simt_report(), "");
}

static std::string place(int line)
{
    return "tests/simt/test_fault.cu:" + std::to_string(line);
}

/* Stores where ASan would end the process first. */
__attribute__((noinline, no_sanitize("address"))) static void store_wildly(int *p, int v)
{
    *(volatile int *)p = v;
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static __global__ void write_shared(int at)
{
    CU_SHARED(int, first, 8);
    lines[0] = __LINE__ + 1;
    CU_SHARED(int, second, 8);
    first[0] = second[0] = 0;
    store_wildly(second + at, 1);
}

static void test_write_outside_of_a_shared_array(void **)
{
    CU_LAUNCH(nullptr, 3, 32, 0, write_shared, 7);
    finish();
    CU_LAUNCH(nullptr, 3, 32, 0, write_shared, 8);
    expect_fault(cudaErrorIllegalAddress,
                 { "write_shared", "behind the shared array second of 32 bytes", place(lines[0]),
                   "block (0, 0, 0)" });
    CU_LAUNCH(nullptr, 3, 32, 0, write_shared, -1);
    expect_fault(cudaErrorIllegalAddress, { "before the shared array second" });
}

static __global__ void write_dynamic(int at)
{
    CU_DYNAMIC(int, room);
    store_wildly(room + at, 1);
}

static void test_write_outside_of_dynamic_shared_memory(void **)
{
    CU_LAUNCH(nullptr, 1, 32, 64, write_dynamic, 15);
    finish();
    CU_LAUNCH(nullptr, 1, 32, 64, write_dynamic, 16);
    expect_fault(cudaErrorIllegalAddress, { "behind the shared array room of 64 bytes" });
}

static __global__ void write_device(int *p, int at)
{
    store_wildly(p + at, 1);
}

static void test_write_outside_of_device_memory(void **)
{
    for (int at : { -1, 10 }) {
        int *p = device_array<int>(10);
        CU_LAUNCH(nullptr, 1, 1, 0, write_device, p, 9);
        finish();
        CU_LAUNCH(nullptr, 1, 1, 0, write_device, p, at);
        expect_fault(cudaErrorIllegalAddress, { "write_device", at < 0 ? "before" : "behind",
                                                "device allocation of 40 bytes" });
        assert_int_equal(cudaFree(p), cudaErrorInvalidValue); /* its guards are still broken */
        (void)cudaGetLastError();
    }
}

/* Sums shared memory, of which only `n` numbers have been written. */
static __global__ void sum_shared(float *out, int n)
{
    CU_SHARED(float, tile, 64);
    int i = (int)threadIdx.x;
    if (i < n)
        tile[i] = 1;
    __syncthreads();
    float sum = 0;
    for (int j = 0; j < 64; j++)
        sum += tile[j];
    out[i] = sum;
}

static float shared_sum(uint64_t seed, int n)
{
    simt_seed(seed);
    float *out = device_array<float>(64);
    CU_LAUNCH(nullptr, 2, 64, 0, sum_shared, out, n);
    return device_take(out, 64)[5];
}

static void test_read_of_what_nobody_wrote(void **)
{
    bool differs = false;
    float one = shared_sum(1, 63);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        assert_true(shared_sum(seed, 64) == 64);
        differs = shared_sum(seed, 63) != one || differs;
    }
    assert_true(differs);
    float natural = shared_sum(0, 63);
    assert_true(natural != natural);
}

static __global__ void load_vector(const int *p, uint4 *out)
{
    out[0] = __ldg((const uint4 *)(const void *)p);
}

static void test_misaligned_vector(void **)
{
    int *p = device_array<int>(8);
    uint4 *out = device_array<uint4>(1);
    CU_LAUNCH(nullptr, 1, 1, 0, load_vector, p + 4, out);
    finish();
    CU_LAUNCH(nullptr, 1, 1, 0, load_vector, p + 1, out);
    expect_fault(cudaErrorMisalignedAddress, { "load_vector", "__ldg", "test_fault.cu:" });
    expect_success(cudaFree(p));
    expect_success(cudaFree(out));
}

static __global__ void copy_from(const char *p, int bytes)
{
    CU_SHARED(char, tile, 16);
    cu_copy16(tile, p, bytes);
    cu_copy_commit();
    cu_copy_wait<0>();
}

static void test_bad_copies(void **)
{
    char *p = device_array<char>(40), host[16] = {};
    CU_LAUNCH(nullptr, 1, 1, 0, copy_from, p + 32, 8);
    finish();
    CU_LAUNCH(nullptr, 1, 1, 0, copy_from, p + 8, 16);
    expect_fault(cudaErrorMisalignedAddress, { "cu_copy16 from" });
    CU_LAUNCH(nullptr, 1, 1, 0, copy_from, p + 32, 9);
    expect_fault(cudaErrorIllegalAddress, { "9 bytes", "not in one allocation" });
    CU_LAUNCH(nullptr, 1, 1, 0, copy_from, (const char *)((uintptr_t)host & ~(uintptr_t)15), 16);
    expect_fault(cudaErrorIllegalAddress, { "not in one allocation" });
    expect_success(cudaFree(p));
}

static __global__ void load_matrix(int from)
{
    CU_SHARED(uint16_t, tile, 256);
    uint32_t r[4];
    tile[threadIdx.x] = 0;
    cu_ldmatrix_x4(r, tile + cu_lane() * 8 + from);
}

static void test_bad_ldmatrix(void **)
{
    CU_LAUNCH(nullptr, 1, 32, 0, load_matrix, 0);
    finish();
    CU_LAUNCH(nullptr, 1, 32, 0, load_matrix, 1);
    expect_fault(cudaErrorMisalignedAddress, { "cu_ldmatrix_x4" });
    CU_LAUNCH(nullptr, 1, 32, 0, load_matrix, 8);
    expect_fault(cudaErrorIllegalAddress, { "cu_ldmatrix_x4", "not in one shared array" });
}

static __global__ void too_much_shared(int *out)
{
    CU_SHARED(int, tile, 12 << 10);
    CU_SHARED(int, last, 1);
    *out = tile[0] = last[0] = 1;
}

static void test_too_much_shared_memory(void **)
{
    int *out = device_array<int>(1);
    CU_LAUNCH(nullptr, 1, 1, 0, too_much_shared, out);
    expect_fault(cudaErrorInvalidConfiguration, { "shared array last", "at most 49152" });
    expect_success(cudaFree(out));
}

/* ---- races ----------------------------------------------------------------------------------------------------- */

/* Reverses 128 numbers through shared memory; without its barrier, or with one of a warp only, it is a race. */
static __global__ void reverse(int *out, int barrier)
{
    CU_SHARED(int, tile, 128);
    int i = (int)threadIdx.x;
    tile[i] = i;
    if (barrier == 2)
        __syncthreads();
    else if (barrier == 1)
        __syncwarp();
    out[i] = tile[127 - i];
}

static bool reverse_right(uint64_t seed, int barrier)
{
    simt_seed(seed);
    int *out = device_array<int>(128);
    CU_LAUNCH(nullptr, 1, 128, 0, reverse, out, barrier);
    std::vector<int> got = device_take(out, 128);
    bool right = true;
    for (int i = 0; i < 128; i++)
        right = right && got[(size_t)i] == 127 - i;
    return right;
}

static void test_missing_barrier(void **)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        assert_true(reverse_right(seed, 2));
        assert_false(reverse_right(seed, 1));
        assert_false(reverse_right(seed, 0));
    }
}

/* Each lane takes the number of the next one and then writes its own. That all have read before one writes is what the
 * second __syncwarp is for; in the natural order it is not missed. */
static __global__ void take_next(int *out, bool sound)
{
    CU_SHARED(int, slot, 33);
    int i = (int)threadIdx.x;
    slot[i] = i;
    slot[32] = 32;
    __syncwarp();
    int next = slot[i + 1];
    if (sound)
        __syncwarp();
    slot[i] = 100 + next;
    __syncwarp();
    out[i] = slot[i];
}

static bool take_right(uint64_t seed, bool sound)
{
    simt_seed(seed);
    int *out = device_array<int>(32);
    CU_LAUNCH(nullptr, 1, 32, 0, take_next, out, sound);
    std::vector<int> got = device_take(out, 32);
    bool right = true;
    for (int i = 0; i < 32; i++)
        right = right && got[(size_t)i] == 100 + i + 1;
    return right;
}

static void test_missing_warp_barrier(void **)
{
    assert_true(take_right(0, false));
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        assert_true(take_right(seed, true));
        assert_true(seed == 0 || !take_right(seed, false));
    }
}

/* Blocks that count on the order of blocks: each adds to what the one before it left. */
static __global__ void chain(int *p)
{
    p[blockIdx.x + 1] = p[blockIdx.x] + 1;
}

static void test_order_of_blocks(void **)
{
    bool wrong = false;
    for (uint64_t seed = 1; seed < SEEDS; seed++) {
        simt_seed(seed);
        int *p = device_array(std::vector<int>(101, 0));
        CU_LAUNCH(nullptr, 100, 1, 0, chain, p);
        wrong = device_take(p, 101)[100] != 100 || wrong;
    }
    assert_true(wrong);
}

/* The fragments of an identity and of a matrix of numbers; `swapped` exchanges a[1] and a[2]. */
static __global__ void multiply_identity(float *out, bool swapped)
{
    int g = cu_lane() / 4, q = cu_lane() % 4;
    uint32_t one = cu_pack_bf16(g == 2 * q, g == 2 * q + 1);
    uint32_t a[4] = { one, 0, 0, one }, b[2] = { cu_pack_bf16(1, 2), cu_pack_bf16(3, 4) };
    if (swapped) {
        a[1] = one;
        a[3] = 0;
    }
    float d[4] = {};
    cu_mma_bf16(d, a, b);
    out[cu_lane()] = d[2];
}

static void test_wrong_fragment(void **)
{
    for (int swapped = 0; swapped < 2; swapped++) {
        float *out = device_array<float>(32);
        CU_LAUNCH(nullptr, 1, 32, 0, multiply_identity, out, swapped);
        std::vector<float> got = device_take(out, 32);
        /* Row g + 8 of I B is row g + 8 of B, whose elements are 3 and 4 in turn. */
        for (int lane = 0; lane < 32; lane++)
            assert_true((got[(size_t)lane] == (lane / 4 % 2 ? 4 : 3)) == !swapped);
    }
}

/* ---- threads that wait in vain --------------------------------------------------------------------------------- */

static __global__ void stop_early(int n)
{
    if ((int)threadIdx.x < n)
        lines[0] = __LINE__, __syncthreads();
}

static void test_barrier_not_reached_by_all(void **)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        simt_seed(seed);
        CU_LAUNCH(nullptr, 2, 64, 0, stop_early, 64);
        finish();
        CU_LAUNCH(nullptr, 2, 64, 0, stop_early, 40);
        expect_fault(cudaErrorLaunchFailure,
                     { "kernel stop_early", "block (", "thread (0, 0, 0)", place(lines[0]),
                       "__syncthreads waits forever for thread (40, 0, 0), which has ended" });
    }
}

static __global__ void two_barriers(unsigned n)
{
    if (threadIdx.x < n)
        lines[0] = __LINE__, __syncthreads();
    else
        lines[1] = __LINE__, __syncthreads();
}

static void test_divergent_barrier(void **)
{
    CU_LAUNCH(nullptr, 1, 64, 0, two_barriers, 64u);
    CU_LAUNCH(nullptr, 1, 64, 0, two_barriers, 0u);
    finish();
    CU_LAUNCH(nullptr, 1, 64, 0, two_barriers, 32u);
    expect_fault(cudaErrorLaunchFailure,
                 { "kernel two_barriers, block (0, 0, 0), thread (32, 0, 0), ", place(lines[1]),
                   "while others wait at __syncthreads, ", place(lines[0]) });
}

static __global__ void vote_of_some(int kind, int *out)
{
    int i = (int)threadIdx.x;
    if (kind == 0 && i != 5) /* lane 5 does not come */
        out[i] = __any_sync(CU_ALL, 1);
    if (kind == 1) /* masks differ */
        out[i] = __any_sync(i < 16 ? CU_ALL : 0xffff0001u, 1);
    if (kind == 2) /* lane 31 is not in the mask that it names */
        out[i] = __any_sync(0x7fffffffu, 1);
    if (kind == 3) /* reads from a lane outside of the mask */
        out[i] = i < 16 ? __shfl_down_sync(0xffffu, i, 8) : 0;
    if (kind == 4 && i < 16)
        __syncwarp();
    else if (kind == 4)
        out[i] = __shfl_sync(CU_ALL, i, 0);
    if (kind == 5)
        out[i] = __any_sync(CU_ALL, 1);
}

static void test_warp_that_is_not_complete(void **)
{
    int *out = device_array<int>(32);
    CU_LAUNCH(nullptr, 1, 32, 0, vote_of_some, 5, out);
    finish();
    const std::vector<std::string> words[] = {
        { "vote_of_some", "__any_sync waits forever for thread (5, 0, 0), which has ended" },
        { "__any_sync with mask 0xffff0001, while lane 0 is at __any_sync with mask 0xffffffff" },
        { "does not name the calling lane 31" },
        { "__shfl_down_sync: lane 8 reads from lane 16, which is not in the mask 0x0000ffff" },
        { "__shfl_sync with mask 0xffffffff, while lane 0 is at __syncwarp" },
    };
    for (int kind = 0; kind < 5; kind++) {
        CU_LAUNCH(nullptr, 1, 32, 0, vote_of_some, kind, out);
        expect_fault(cudaErrorLaunchFailure, words[kind]);
    }
    CU_LAUNCH(nullptr, 1, 20, 0, vote_of_some, 5, out); /* a block of 20 threads has no lane 20 */
    expect_fault(cudaErrorLaunchFailure, { "lane 20, which is no thread of the block" });
    expect_success(cudaFree(out));
}

static __global__ void trap_in(unsigned block)
{
    if (blockIdx.x == block && threadIdx.x == 3)
        __trap();
    __syncthreads();
}

static void test_trap(void **)
{
    CU_LAUNCH(nullptr, 4, 32, 0, trap_in, 4u);
    finish();
    CU_LAUNCH(nullptr, 4, 32, 0, trap_in, 2u);
    expect_fault(cudaErrorLaunchFailure, { "block (2, 0, 0), thread (3, 0, 0)", "__trap" });
}

static __global__ void wait_for_some(int *p, bool sound)
{
    cu_start_next();
    if (sound || threadIdx.x != 5)
        cu_wait_prior();
    if (threadIdx.x == 0)
        ++*p;
}

static void test_chained_kernel_that_does_not_wait(void **)
{
    struct {
        cudaStream_t stream;
        bool overlaps;
    } s = { nullptr, true };
    int *p = device_array(std::vector<int>{ 0 });
    CU_CHAIN(&s, 2, 32, 0, wait_for_some, p, true);
    assert_int_equal(device_values(p, 1)[0], 2);
    CU_CHAIN(&s, 2, 32, 0, wait_for_some, p, false);
    expect_fault(cudaErrorLaunchFailure, { "wait_for_some", "thread (5, 0, 0)", "cu_wait_prior" });
    device_take(p, 1);
}

/* Ones times ones: 16 in each place of d. */
enum misuse { SOUND, NO_WAIT, WRITTEN_EARLY, UNALIGNED, OTHER_TILES };
static __global__ void warpgroup(enum misuse how, float *d)
{
    CU_DYNAMIC(unsigned char, room);
    uint16_t *tile = (uint16_t *)(room + (1024 - cu_shared_address(room) % 1024) % 1024);
    const uint32_t one = cu_pack_bf16(1, 1), a[4] = { one, one, one, one };
    float out[4][4];
    for (int i = (int)threadIdx.x; i < 40 * 32; i += (int)blockDim.x)
        ((uint32_t *)tile)[i] = one;
    __syncthreads();
    cu_tile x = cu_tile_of(tile + (how == UNALIGNED ? 64 : 0));
    int row = how == OTHER_TILES && cu_lane() == 7 ? 8 : 0;
    lines[0] = __LINE__ + 1;
    cu_wgmma_bf16<32, false>(out, a, cu_tile_at(x, row, 0));
    cu_wgmma_commit();
    __syncthreads();
    if (how == WRITTEN_EARLY && threadIdx.x == 9)
        tile[5 * 64 + (0 ^ 5) * 8] = 0; /* k = 0 */
    __syncthreads();
    if (how != NO_WAIT)
        cu_wgmma_wait<0>(out);
    for (int i = 0; i < 16; i++)
        d[threadIdx.x * 16 + i] = out[i / 4][i % 4];
}

static void test_warpgroup_misused(void **)
{
    enum { SHARED = 1024 + 40 * 128, N = 128 * 16 };
    float *d = device_array<float>(N);
    CU_LAUNCH(nullptr, 1, 128, SHARED, warpgroup, SOUND, d);
    for (float x : device_values(d, N))
        assert_true(x == 16);
    CU_LAUNCH(nullptr, 1, 128, SHARED, warpgroup, NO_WAIT, d);
    for (float x : device_values(d, N))
        assert_true(x != x);
    CU_LAUNCH(nullptr, 1, 128, SHARED, warpgroup, WRITTEN_EARLY, d);
    expect_fault(cudaErrorLaunchFailure, { "warpgroup", "a tile was written to" });
    CU_LAUNCH(nullptr, 1, 128, SHARED, warpgroup, UNALIGNED, d);
    expect_fault(cudaErrorMisalignedAddress, { "warpgroup", "cu_tile_of" });
    CU_LAUNCH(nullptr, 1, 128, SHARED, warpgroup, OTHER_TILES, d);
    expect_fault(cudaErrorLaunchFailure,
                 { "cu_wgmma_bf16", "lane 7 asks for another product", place(lines[0]) });
    device_take(d, N);
}

/* ---- a device that goes away ----------------------------------------------------------------------------------- */

static __global__ void increment(int *p)
{
    ++*p;
}

static void test_lost_device(void **)
{
    int *p = device_array(std::vector<int>{ 0 }), host = -1;
    simt_lose_device_after(3);
    for (int i = 0; i < 5; i++)
        CU_LAUNCH(nullptr, 1, 1, 0, increment, p);
    expect_success(cudaGetLastError()); /* nothing has run yet */
    assert_int_equal(cudaMemcpy(&host, p, sizeof host, cudaMemcpyDeviceToHost),
                     cudaErrorECCUncorrectable);
    assert_int_equal(host, -1);
    assert_int_equal(cudaStreamSynchronize(nullptr), cudaErrorECCUncorrectable);
    expect_fault(cudaErrorECCUncorrectable, { "increment", "lost" });
    assert_int_equal(device_take(p, 1)[0], 2);
}

int main()
{
    const struct CMUnitTest tests[] = {
        SIMT_TEST(test_write_outside_of_a_shared_array),
        SIMT_TEST(test_write_outside_of_dynamic_shared_memory),
        SIMT_TEST(test_write_outside_of_device_memory),
        SIMT_TEST(test_read_of_what_nobody_wrote),
        SIMT_TEST(test_misaligned_vector),
        SIMT_TEST(test_bad_copies),
        SIMT_TEST(test_bad_ldmatrix),
        SIMT_TEST(test_too_much_shared_memory),
        SIMT_TEST(test_missing_barrier),
        SIMT_TEST(test_missing_warp_barrier),
        SIMT_TEST(test_order_of_blocks),
        SIMT_TEST(test_wrong_fragment),
        SIMT_TEST(test_barrier_not_reached_by_all),
        SIMT_TEST(test_divergent_barrier),
        SIMT_TEST(test_warp_that_is_not_complete),
        SIMT_TEST(test_warpgroup_misused),
        SIMT_TEST(test_trap),
        SIMT_TEST(test_chained_kernel_that_does_not_wait),
        SIMT_TEST(test_lost_device),
    };
    return cmocka_run_group_tests_name("faults", tests, nullptr, nullptr);
}
