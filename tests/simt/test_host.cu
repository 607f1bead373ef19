/* The host side: memory, streams, events, graphs, what a launch is refused for. */
#include <string.h>

#include <thread>

#include "tests/simt/test_simt.h"

static __global__ void add(int *p, int n, int by)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        p[i] += by;
}

static void launch_add(cudaStream_t s, int *p, int n, int by)
{
    CU_LAUNCH(s, (unsigned)(n + 63) / 64, 64, 0, add, p, n, by);
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static void test_memory_is_finite(void **)
{
    size_t free = 0, total = 0;
    void *p = nullptr, *q = nullptr;
    simt_set_memory((size_t)1 << 30);
    expect_success(cudaMalloc(&p, (size_t)1000 << 20)); /* costs nothing until touched */
    assert_int_equal((uintptr_t)p % 256, 0);
    expect_success(cudaMemGetInfo(&free, &total));
    assert_int_equal(total, (size_t)1 << 30);
    assert_int_equal(free, (size_t)24 << 20);
    assert_int_equal(cudaMalloc(&q, (size_t)25 << 20), cudaErrorMemoryAllocation);
    assert_null(q);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    expect_success(cudaFree(p));
    simt_fail_malloc_at(2);
    expect_success(cudaMalloc(&p, 100));
    assert_int_equal(cudaMalloc(&q, 100), cudaErrorMemoryAllocation);
    expect_success(cudaMalloc(&q, 100));
    expect_success(cudaFree(p));
    expect_success(cudaFree(q));
    expect_success(cudaFree(nullptr));
    simt_set_memory((size_t)8 << 30);
}

static void test_fresh_memory_is_poisoned(void **)
{
    std::vector<uint32_t> seen[3];
    for (uint64_t seed = 0; seed < 3; seed++) {
        simt_seed(seed);
        seen[seed] = device_take(device_array<uint32_t>(5), 5);
    }
    assert_int_equal(seen[0][4], 0xffffffffu);
    assert_true(seen[1] != seen[0] && seen[2] != seen[0] && seen[1] != seen[2]);
}

static void test_bad_pointers_are_refused(void **)
{
    int *p = device_array<int>(8), host[16] = {};
    assert_int_equal(cudaFree(p + 1), cudaErrorInvalidValue);
    assert_non_null(strstr(simt_report(), "no allocation"));
    assert_int_equal(cudaFree(host), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(p, host, 33, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_non_null(strstr(simt_report(), "33 bytes leave"));
    assert_int_equal(cudaMemcpy(host, p + 4, 17, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(host, p, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(host, host + 8, 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemset(p, 0, 33), cudaErrorInvalidValue);
    assert_int_equal(cudaFreeHost(p), cudaErrorInvalidValue);
    expect_success(cudaMemcpy(p, host, 32, cudaMemcpyHostToDevice));
    expect_success(cudaFree(p));
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue); /* twice */
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
}

/* ---- streams --------------------------------------------------------------------------------------------------- */

/* A host that forgets to synchronise does not find what it waits for. */
static void test_work_waits_for_a_synchronisation(void **)
{
    cudaStream_t s;
    int *pinned, *late, *p = device_array<int>(1);
    expect_success(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    expect_success(cudaMallocHost(&pinned, sizeof(int)));
    expect_success(cudaHostAlloc(&late, sizeof(int), cudaHostAllocDefault));
    *pinned = 40;
    *late = 7;
    expect_success(cudaMemcpyAsync(p, pinned, sizeof(int), cudaMemcpyHostToDevice, s));
    launch_add(s, p, 1, 1);
    expect_success(cudaMemcpyAsync(late, p, sizeof(int), cudaMemcpyDeviceToHost, s));
    assert_int_equal(*late, -1); /* poison */
    *pinned = 41;                /* too early: the upload has not happened */
    expect_success(cudaStreamSynchronize(s));
    assert_int_equal(*late, 42);

    /* In place: the upload still has to read what the download will overwrite. */
    expect_success(cudaMemcpyAsync(p, pinned, sizeof(int), cudaMemcpyHostToDevice, s));
    expect_success(cudaMemcpyAsync(pinned, p, sizeof(int), cudaMemcpyDeviceToHost, s));
    expect_success(cudaStreamSynchronize(s));
    assert_int_equal(*pinned, 41);

    /* Pageable memory: at once, behind what was queued. */
    int plain = 0;
    launch_add(s, p, 1, 100);
    expect_success(cudaMemcpyAsync(&plain, p, sizeof(int), cudaMemcpyDeviceToHost, s));
    assert_int_equal(plain, 141);
    launch_add(s, p, 1, 100);
    expect_success(cudaMemcpy(&plain, p, sizeof(int), cudaMemcpyDeviceToHost));
    assert_int_equal(plain, 141); /* the default stream does not wait for a non-blocking one */
    expect_success(cudaFree(p));
    expect_success(cudaFreeHost(pinned));
    expect_success(cudaFreeHost(late));
    expect_success(cudaStreamDestroy(s));
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorInvalidResourceHandle);
}

static void test_streams_and_events_order_work(void **)
{
    cudaStream_t a, b;
    cudaEvent_t begin, end;
    float ms = -1;
    int value = 0, *p = device_array<int>(1);
    expect_success(cudaStreamCreate(&a));
    expect_success(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    expect_success(cudaEventCreate(&begin));
    expect_success(cudaEventCreate(&end));
    expect_success(cudaMemsetAsync(p, 0, sizeof(int), a));
    expect_success(cudaEventRecord(begin, a));
    launch_add(a, p, 1, 1);
    expect_success(cudaEventRecord(end, a));
    launch_add(a, p, 1, 10);
    assert_int_equal(cudaEventElapsedTime(&ms, begin, end), cudaErrorNotReady);
    expect_success(cudaStreamWaitEvent(b, end));
    launch_add(b, p, 1, 100);
    expect_success(cudaMemcpyAsync(&value, p, sizeof(int), cudaMemcpyDeviceToHost, b));
    assert_int_equal(value, 101); /* not behind the event: 10 */
    expect_success(cudaEventSynchronize(end));
    expect_success(cudaEventElapsedTime(&ms, begin, end));
    assert_true(ms >= 0);
    launch_add(nullptr, p, 1, 1000); /* waits for a, which is blocking */
    expect_success(cudaStreamSynchronize(nullptr));
    expect_success(cudaMemcpyAsync(&value, p, sizeof(int), cudaMemcpyDeviceToHost, b));
    assert_int_equal(value, 1111);
    launch_add(a, p, 1, 1);
    launch_add(a, p, 1, 1);
    assert_int_equal(cudaStreamQuery(a), cudaErrorNotReady);
    expect_success(cudaStreamQuery(a));
    expect_success(cudaEventDestroy(begin));
    expect_success(cudaEventDestroy(end));
    expect_success(cudaStreamDestroy(a));
    expect_success(cudaStreamDestroy(b));
    expect_success(cudaFree(p));
}

static void test_another_thread_may_call(void **)
{
    int *p = device_array(std::vector<int>(64, 0));
    for (int round = 0; round < 3; round++) {
        std::thread other([=] {
            launch_add(nullptr, p, 64, 1);
            cudaDeviceSynchronize();
        });
        other.join();
        launch_add(nullptr, p, 64, 1);
    }
    for (int x : device_take(p, 64))
        assert_int_equal(x, 6);
}

/* ---- graphs ---------------------------------------------------------------------------------------------------- */

static void test_a_graph_repeats_what_was_captured(void **)
{
    cudaStream_t s;
    cudaGraph_t g;
    cudaGraphExec_t x;
    cudaStreamCaptureStatus status;
    size_t nodes = 0;
    int *in, *out, *p = device_array<int>(1);
    expect_success(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    expect_success(cudaMallocHost(&in, sizeof(int)));
    expect_success(cudaMallocHost(&out, sizeof(int)));
    expect_success(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    expect_success(cudaMemcpyAsync(p, in, sizeof(int), cudaMemcpyHostToDevice, s));
    launch_add(s, p, 1, 1);
    launch_add(s, p, 1, 2);
    expect_success(cudaMemcpyAsync(out, p, sizeof(int), cudaMemcpyDeviceToHost, s));
    expect_success(cudaStreamIsCapturing(s, &status));
    assert_int_equal(status, cudaStreamCaptureStatusActive);
    expect_success(cudaStreamEndCapture(s, &g));
    expect_success(cudaGraphGetNodes(g, nullptr, &nodes));
    assert_int_equal(nodes, 4);
    expect_success(cudaGraphInstantiate(&x, g, 0));
    expect_success(cudaGraphDestroy(g));
    *out = -5;
    expect_success(cudaStreamSynchronize(s));
    assert_int_equal(*out, -5); /* a capture runs nothing */
    for (int i = 0; i < 3; i++) {
        *in = 10 * i;
        expect_success(cudaGraphLaunch(x, s));
        assert_int_equal(*out, -1);
        expect_success(cudaStreamSynchronize(s));
        assert_int_equal(*out, 10 * i + 3);
    }
    expect_success(cudaGraphExecDestroy(x));
    assert_int_equal(cudaGraphLaunch(x, s), cudaErrorInvalidValue);
    expect_success(cudaStreamDestroy(s));
    expect_success(cudaFreeHost(in));
    expect_success(cudaFreeHost(out));
    expect_success(cudaFree(p));
}

static void test_a_capture_forbids_waiting(void **)
{
    cudaStream_t s;
    cudaGraph_t g;
    int *p = device_array<int>(1), host = 0;
    expect_success(cudaStreamCreate(&s));
    for (int what = 0; what < 5; what++) {
        void *q;
        expect_success(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
        cudaError_t e = what == 0   ? cudaStreamSynchronize(s)
                        : what == 1 ? cudaMalloc(&q, 16)
                        : what == 2 ? cudaMemcpyAsync(&host, p, 4, cudaMemcpyDeviceToHost, s)
                        : what == 3 ? cudaDeviceSynchronize()
                                    : cudaMemsetAsync(p, 0, 4); /* on the default stream */
        assert_int_equal(e, what == 4 ? cudaErrorStreamCaptureImplicit
                                      : cudaErrorStreamCaptureUnsupported);
        assert_int_equal(cudaStreamEndCapture(s, &g), cudaErrorStreamCaptureInvalidated);
        assert_null(g);
    }
    assert_int_equal(cudaStreamEndCapture(s, &g), cudaErrorIllegalState);
    (void)cudaGetLastError();
    launch_add(s, p, 1, 1); /* works again */
    expect_success(cudaGetLastError());
    expect_success(cudaStreamDestroy(s));
    expect_success(cudaFree(p));
}

/* ---- launches and properties ----------------------------------------------------------------------------------- */

static __global__ void touch_dynamic(int *out)
{
    CU_DYNAMIC(int, room);
    room[0] = 1;
    out[0] = room[0];
}

static cudaError_t try_launch(dim3 grid, dim3 block, size_t bytes, const void *kernel, int *out)
{
    simt_launch(
        "touch_dynamic", nullptr, grid, block, bytes, [=] { touch_dynamic(out); }, kernel);
    cudaError_t e = cudaGetLastError();
    return e != cudaSuccess ? e : cudaDeviceSynchronize();
}

static void test_launches_are_refused(void **)
{
    int *out = device_array<int>(1);
    const void *k = (const void *)touch_dynamic;
    assert_int_equal(try_launch(0, 32, 16, k, out), cudaErrorInvalidConfiguration);
    assert_int_equal(try_launch(1, 0, 16, k, out), cudaErrorInvalidConfiguration);
    assert_int_equal(try_launch(1, 1025, 16, k, out), cudaErrorInvalidConfiguration);
    assert_int_equal(try_launch(1, dim3(32, 64), 16, k, out), cudaErrorInvalidConfiguration);
    assert_int_equal(try_launch(dim3(1, 65536), 32, 16, k, out), cudaErrorInvalidConfiguration);
    assert_int_equal(try_launch(1, 1024, 48 << 10, k, out), cudaSuccess);
    assert_int_equal(try_launch(1, 32, (48 << 10) + 1, k, out), cudaErrorInvalidValue);
    assert_non_null(strstr(simt_report(), "touch_dynamic"));
    const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    assert_int_equal(cudaFuncSetAttribute(touch_dynamic, most, (227 << 10) + 1),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    expect_success(cudaFuncSetAttribute(touch_dynamic, most, 227 << 10));
    assert_int_equal(try_launch(1, 32, 227 << 10, k, out), cudaSuccess);
    assert_int_equal(try_launch(1, 32, (227 << 10) + 1, k, out), cudaErrorInvalidValue);
    assert_int_equal(try_launch(1, 32, 227 << 10, (const void *)add, out), cudaErrorInvalidValue);
    expect_success(cudaFree(out));
}

static void test_properties(void **)
{
    int value = 0;
    cudaDeviceProp p;
    simt_set_processors(132);
    simt_set_capability(8, 0);
    expect_success(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0));
    assert_int_equal(value, 132);
    expect_success(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    assert_int_equal(value, 227 << 10);
    expect_success(cudaGetDeviceProperties(&p, 0));
    assert_int_equal(p.major * 10 + p.minor, 80);
    assert_int_equal(cudaSetDevice(1), cudaErrorInvalidDevice);
    simt_set_devices(0);
    assert_int_equal(cudaGetDeviceCount(&value), cudaErrorNoDevice);
    simt_set_devices(1);
    simt_set_processors(8);
    simt_set_capability(9, 0);
    assert_string_equal(cudaGetErrorName(cudaErrorNoDevice), "cudaErrorNoDevice");
    assert_string_equal(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
}

int main()
{
    const struct CMUnitTest tests[] = {
        SIMT_TEST(test_memory_is_finite),
        SIMT_TEST(test_fresh_memory_is_poisoned),
        SIMT_TEST(test_bad_pointers_are_refused),
        SIMT_TEST(test_work_waits_for_a_synchronisation),
        SIMT_TEST(test_streams_and_events_order_work),
        SIMT_TEST(test_another_thread_may_call),
        SIMT_TEST(test_a_graph_repeats_what_was_captured),
        SIMT_TEST(test_a_capture_forbids_waiting),
        SIMT_TEST(test_launches_are_refused),
        SIMT_TEST(test_properties),
    };
    return cmocka_run_group_tests_name("host", tests, nullptr, nullptr);
}
