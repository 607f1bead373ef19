/* The device as a whole: errors, properties, settings. */
#include "tests/simt/machine.hh"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace simt
{

device machine;

static void report_write(device *d, const char *format, va_list list)
{
    vsnprintf(d->report, sizeof d->report, format, list);
}

void device_report(device *d, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    report_write(d, format, list);
    va_end(list);
}

void device_fail(device *d, cudaError_t code, const char *format, ...)
{
    if (d->failed != cudaSuccess)
        return;
    va_list list;
    va_start(list, format);
    report_write(d, format, list);
    va_end(list);
    d->failed = code;
}

/* ---- errors ---------------------------------------------------------------------------------------------------- */

struct error_text {
    cudaError_t code;
    const char *name, *text;
};

#define ERROR(name, text)                                                                          \
    {                                                                                              \
        name, #name, text                                                                          \
    }
static const error_text errors[] = {
    ERROR(cudaSuccess, "no error"),
    ERROR(cudaErrorInvalidValue, "invalid argument"),
    ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ERROR(cudaErrorInitializationError, "initialization error"),
    ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR(cudaErrorInsufficientDriver,
          "CUDA driver version is insufficient for CUDA runtime version"),
    ERROR(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable"),
    ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR(cudaErrorNoKernelImageForDevice,
          "no kernel image is available for execution on the device"),
    ERROR(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ERROR(cudaErrorNotReady, "device not ready"),
    ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    ERROR(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    ERROR(cudaErrorIllegalInstruction, "an illegal instruction was encountered"),
    ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR(cudaErrorNotSupported, "operation not supported"),
    ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR(cudaErrorStreamCaptureInvalidated,
          "operation failed due to a previous error during capture"),
    ERROR(cudaErrorStreamCaptureUnmatched, "capture was not initiated in this stream"),
    ERROR(cudaErrorStreamCaptureImplicit,
          "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(cudaErrorStreamCaptureWrongThread,
          "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR(cudaErrorUnknown, "unknown error"),
};
#undef ERROR

static const error_text *error_find(cudaError_t e)
{
    static const error_text none = { cudaErrorUnknown, "unrecognized error code",
                                     "unrecognized error code" };
    for (const error_text &t : errors)
        if (t.code == e)
            return &t;
    return &none;
}

} // namespace simt

using namespace simt;

const char *cudaGetErrorString(cudaError_t e)
{
    std::lock_guard<std::mutex> guard(machine.lock);
    if (e != cudaSuccess && e == machine.failed)
        return machine.report;
    return error_find(e)->text;
}

const char *cudaGetErrorName(cudaError_t e)
{
    return error_find(e)->name;
}

cudaError_t cudaGetLastError()
{
    std::lock_guard<std::mutex> guard(machine.lock);
    cudaError_t e = machine.failed != cudaSuccess ? machine.failed : machine.last;
    machine.last = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError()
{
    std::lock_guard<std::mutex> guard(machine.lock);
    return machine.failed != cudaSuccess ? machine.failed : machine.last;
}

/* ---- properties ------------------------------------------------------------------------------------------------ */

static cudaError_t device_known(const device *d, int number)
{
    return d->devices == 0                      ? cudaErrorNoDevice
           : number < 0 || number >= d->devices ? cudaErrorInvalidDevice
                                                : cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    return device_call([=](device *d) {
        *n = d->devices;
        return d->devices > 0 ? cudaSuccess : cudaErrorNoDevice;
    });
}

static thread_local int current_device = 0;

int simt::device_current()
{
    return current_device;
}

cudaError_t cudaSetDevice(int number)
{
    return device_call([=](device *d) {
        cudaError_t e = device_known(d, number);
        if (e == cudaSuccess)
            current_device = number;
        return e;
    });
}

cudaError_t cudaGetDevice(int *number)
{
    return device_call([=](device *d) {
        *number = current_device;
        return device_known(d, current_device);
    });
}

enum { L2_BYTES = 50 << 20, THREADS_PER_PROCESSOR = 2048, SHARED_PER_PROCESSOR = 228 << 10 };

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int number)
{
    return device_call([=](device *d) {
        cudaError_t e = device_known(d, number);
        if (e != cudaSuccess)
            return e;
        switch (which) {
        case cudaDevAttrMaxThreadsPerBlock: *value = MAX_THREADS; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)SHARED_PLAIN; break;
        case cudaDevAttrWarpSize: *value = LANES; break;
        case cudaDevAttrMultiProcessorCount: *value = d->processors; break;
        case cudaDevAttrL2CacheSize: *value = L2_BYTES; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = THREADS_PER_PROCESSOR; break;
        case cudaDevAttrComputeCapabilityMajor: *value = d->major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = d->minor; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_PER_PROCESSOR; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)SHARED_MOST; break;
        default: return cudaErrorInvalidValue;
        }
        return cudaSuccess;
    });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *kernel)
{
    return device_call([=](device *d) {
        if (!a || !kernel)
            return cudaErrorInvalidValue;
        a->ptxVersion = a->binaryVersion = 10 * d->major + d->minor;
        a->maxThreadsPerBlock = a->ptxVersion == 90 ? MAX_THREADS : LANES;
        return d->loads ? cudaSuccess : cudaErrorNoKernelImageForDevice;
    });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int number)
{
    return device_call([=](device *d) {
        cudaError_t e = device_known(d, number);
        if (e != cudaSuccess)
            return e;
        *p = cudaDeviceProp{};
        snprintf(p->name, sizeof p->name, "simulated device");
        p->totalGlobalMem = d->total_bytes;
        p->sharedMemPerBlock = SHARED_PLAIN;
        p->regsPerBlock = 65536;
        p->warpSize = LANES;
        p->maxThreadsPerBlock = MAX_THREADS;
        p->major = d->major;
        p->minor = d->minor;
        p->multiProcessorCount = d->processors;
        p->l2CacheSize = L2_BYTES;
        p->maxThreadsPerMultiProcessor = THREADS_PER_PROCESSOR;
        p->sharedMemPerMultiprocessor = SHARED_PER_PROCESSOR;
        p->sharedMemPerBlockOptin = SHARED_MOST;
        p->memoryBusWidth = 5120;
        return cudaSuccess;
    });
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    return cudaDriverGetVersion(version);
}

/* ---- settings -------------------------------------------------------------------------------------------------- */

/* f(device) under the lock. */
template <class F> static void device_set(F f)
{
    std::lock_guard<std::mutex> guard(machine.lock);
    f(&machine);
}

void simt_seed(uint64_t seed)
{
    device_set([=](device *d) {
        d->seed = seed;
        d->random = mix(seed) | 1;
    });
}

const char *simt_report(void)
{
    return machine.report;
}

void simt_reset(void)
{
    device_set([](device *d) {
        stream_forget_all(d);
        for (CUstream_st *s : d->streams)
            s->capture.reset();
        d->failed = d->last = cudaSuccess;
        d->report[0] = 0;
        d->lose_after = d->fail_malloc = 0;
    });
}

void simt_lose_device_after(uint64_t n)
{
    device_set([=](device *d) { d->lose_after = n; });
}

void simt_fail_malloc_at(uint64_t n)
{
    device_set([=](device *d) { d->fail_malloc = n; });
}

void simt_set_devices(int n)
{
    device_set([=](device *d) { d->devices = n; });
}

void simt_set_memory(size_t bytes)
{
    device_set([=](device *d) { d->total_bytes = bytes; });
}

void simt_set_processors(int n)
{
    device_set([=](device *d) { d->processors = n; });
}

void simt_set_capability(int major, int minor)
{
    device_set([=](device *d) {
        d->major = major;
        d->minor = minor;
    });
}

void simt_set_loads(int whether)
{
    device_set([=](device *d) { d->loads = whether != 0; });
}

void simt_stats(struct simt_stats *s)
{
    device_set([=](device *d) {
        *s = d->stats;
        s->device_allocations = d->memory.all.size();
        s->device_bytes = d->memory.bytes;
        s->pinned_allocations = d->pinned.all.size();
        s->queued = d->legacy.queue.size();
        for (const CUstream_st *other : d->streams)
            s->queued += other->queue.size();
    });
}
