/* Device and pinned memory: each allocation is mapped by itself, poisoned, between guard bytes.
 *
 * A mapping costs nothing until it is touched, so that weights of gigabytes can be allocated. Only the first and the last
 * MiB of an allocation over 64 MiB are poisoned; the rest is 0.
 */
#include "tests/simt/machine.hh"

#include <string.h>
#include <sys/mman.h>

#if SIMT_ASAN
#    include <sanitizer/asan_interface.h>
#endif

namespace simt
{

enum : size_t { PAGE = 4096, POISON_WHOLE = 64 << 20, POISON_ENDS = 1 << 20 };

void sanitizer_hide(const void *p, size_t bytes)
{
    (void)p;
    (void)bytes;
#if SIMT_ASAN
    __asan_poison_memory_region(p, bytes);
#endif
}

void sanitizer_show(const void *p, size_t bytes)
{
    (void)p;
    (void)bytes;
#if SIMT_ASAN
    __asan_unpoison_memory_region(p, bytes);
#endif
}

/* Guards are hidden from what ASan watches, so this is not watched. */
__attribute__((no_sanitize("address"))) bool guard_intact(const char *p)
{
    unsigned char differs = 0;
    for (size_t i = 0; i < GUARD; i++)
        differs |= (unsigned char)((unsigned char)p[i] ^ GUARD_BYTE);
    return differs == 0;
}

void memory_poison(const device *d, void *p, size_t bytes)
{
    if (d->seed == 0) {
        memset(p, 0xff, bytes);
        return;
    }
    uint64_t pattern = mix(d->seed);
    char *to = (char *)p;
    size_t done = bytes < sizeof pattern ? bytes : sizeof pattern;
    memcpy(to, &pattern, done);
    while (done < bytes) { /* twice as much each time */
        size_t n = bytes - done < done ? bytes - done : done;
        memcpy(to + done, to, n);
        done += n;
    }
}

const allocation *memory_find(allocations *m, const void *p, size_t bytes)
{
    uintptr_t at = (uintptr_t)p;
    const allocation *a = m->latest;
    if (!a || at < (uintptr_t)a->base || at - (uintptr_t)a->base >= a->size) {
        auto next = m->all.upper_bound(at);
        if (next == m->all.begin())
            return nullptr;
        a = &std::prev(next)->second;
        m->latest = a;
    }
    size_t offset = at - (uintptr_t)a->base;
    return offset < a->size && bytes <= a->size - offset ? a : nullptr;
}

bool memory_fails(device *d)
{
    return d->fail_malloc > 0 && --d->fail_malloc == 0;
}

static cudaError_t memory_take(device *d, allocations *m, void **p, size_t bytes)
{
    if (memory_fails(d))
        return cudaErrorMemoryAllocation;
    if (bytes == 0)
        return cudaSuccess;
    if (bytes > SIZE_MAX / 2)
        return cudaErrorMemoryAllocation;
    allocation a = { nullptr, bytes, nullptr, (bytes + 2 * GUARD + PAGE - 1) / PAGE * PAGE };
    void *room = mmap(nullptr, a.room_size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return cudaErrorMemoryAllocation;
    a.room = (char *)room;
    a.base = a.room + GUARD;
    memset(a.room, GUARD_BYTE, GUARD);
    memset(a.base + bytes, GUARD_BYTE, GUARD);
    size_t ends = bytes > POISON_WHOLE ? POISON_ENDS : bytes;
    memory_poison(d, a.base, ends);
    memory_poison(d, a.base + bytes - ends, ends);
    sanitizer_hide(a.room, GUARD);
    sanitizer_hide(a.base + bytes, a.room_size - GUARD - bytes);
    m->all[(uintptr_t)a.base] = a;
    m->bytes += bytes;
    *p = a.base;
    return cudaSuccess;
}

/* Which guard of a was written to, or null. */
static const char *memory_broken(const allocation *a)
{
    return !guard_intact(a->room)             ? "before"
           : !guard_intact(a->base + a->size) ? "behind"
                                              : nullptr;
}

/* `what` is "device" or "pinned". */
static cudaError_t memory_give(device *d, allocations *m, void *p, const char *what)
{
    auto found = m->all.find((uintptr_t)p);
    if (found == m->all.end()) {
        device_report(d, "%p is freed, but is no allocation of %s memory", p, what);
        return cudaErrorInvalidValue;
    }
    allocation a = found->second;
    const char *side = memory_broken(&a);
    m->all.erase(found);
    m->latest = nullptr;
    m->bytes -= a.size;
    sanitizer_show(a.room, a.room_size);
    munmap(a.room, a.room_size);
    if (!side)
        return cudaSuccess;
    device_report(d, "something wrote %s the %s allocation of %zu bytes at %p", side, what, a.size,
                  p);
    return cudaErrorInvalidValue;
}

void memory_check(device *d, const char *kernel)
{
    for (const auto &i : d->memory.all) {
        const allocation *a = &i.second;
        const char *side = memory_broken(a);
        if (side) {
            device_fail(d, cudaErrorIllegalAddress,
                        "kernel %s: wrote %s the device allocation of %zu bytes at %p", kernel,
                        side, a->size, (void *)a->base);
            return;
        }
    }
}

/* As a GPU's, waits for everything that was queued. */
static cudaError_t memory_free(void *p, bool pinned)
{
    return device_release([=](device *d) {
        if (capture_forbids(d))
            return cudaErrorStreamCaptureUnsupported;
        stream_run_all(d);
        if (!p)
            return cudaSuccess;
        return pinned ? memory_give(d, &d->pinned, p, "pinned")
                      : memory_give(d, &d->memory, p, "device");
    });
}

} // namespace simt

using namespace simt;

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    if (p)
        *p = nullptr;
    return device_call([=](device *d) {
        if (!p)
            return cudaErrorInvalidValue;
        if (capture_forbids(d))
            return cudaErrorStreamCaptureUnsupported;
        if (bytes > d->total_bytes || d->memory.bytes > d->total_bytes - bytes)
            return cudaErrorMemoryAllocation;
        return memory_take(d, &d->memory, p, bytes);
    });
}

cudaError_t cudaFree(void *p)
{
    return memory_free(p, false);
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    if (p)
        *p = nullptr;
    return device_call([=](device *d) {
        if (!p)
            return cudaErrorInvalidValue;
        if (capture_forbids(d))
            return cudaErrorStreamCaptureUnsupported;
        return memory_take(d, &d->pinned, p, bytes);
    });
}

cudaError_t cudaFreeHost(void *p)
{
    return memory_free(p, true);
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    return device_call([=](device *d) {
        *total = d->total_bytes;
        *free =
            d->total_bytes - (d->memory.bytes < d->total_bytes ? d->memory.bytes : d->total_bytes);
        return cudaSuccess;
    });
}
