/* Shared memory of a block: an arena in which each CU_SHARED of the kernel, and what the launch asked for, lies between
 * guard bytes; and the asynchronous copies into it.
 */
#include <simt_ptx.h>

#include "tests/simt/machine.hh"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

namespace simt
{

/* Room for 227 KiB in 64 arrays, with guards and alignment. */
enum : size_t { ARENA = 512 << 10, DYNAMIC_ALIGN = 128, STATIC_ALIGN = 16 };

void shared_begin(block *b)
{
    if (!b->arena) {
        void *m = mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (m == MAP_FAILED)
            abort();
        b->arena = (char *)m;
        sanitizer_hide(b->arena, ARENA);
    }
    b->arena_used = 0;
    b->static_bytes = 0;
    b->n_arrays = 0;
}

bool shared_end(device *d)
{
    block *b = &d->block;
    for (int i = 0; i < b->n_arrays; i++) {
        const shared_array *a = &b->arrays[i];
        bool before = guard_intact(a->base - GUARD), behind = guard_intact(a->base + a->size);
        if (!before || !behind) {
            const uint3 &at = simt_at.block;
            device_fail(d, cudaErrorIllegalAddress,
                        "kernel %s, block (%u, %u, %u): wrote %s the shared array %s of %zu bytes, "
                        "%s:%d",
                        d->kernel, at.x, at.y, at.z, before ? "behind" : "before", a->site->name,
                        a->size, a->site->file, a->site->line);
        }
        sanitizer_hide(a->base, a->size);
    }
    return d->failed == cudaSuccess;
}

/* A poisoned array between guards. */
static void *array_make(block *b, const simt_shared_site *site, size_t size, size_t align)
{
    size_t from = (b->arena_used + GUARD + align - 1) / align * align;
    size_t end = from + size + GUARD;
    if (b->n_arrays == block::MAX_ARRAYS || end > ARENA)
        simt_fault(cudaErrorInvalidConfiguration, site->file, site->line,
                   "shared array %s: more than %d arrays", site->name, block::MAX_ARRAYS);
    char *base = b->arena + from;
    sanitizer_show(base - GUARD, size + 2 * GUARD);
    memset(base - GUARD, GUARD_BYTE, GUARD);
    memset(base + size, GUARD_BYTE, GUARD);
    memory_poison(&machine, base, size);
    sanitizer_hide(base - GUARD, GUARD);
    sanitizer_hide(base + size, GUARD);
    b->arrays[b->n_arrays++] = shared_array{ site, base, size };
    b->arena_used = end;
    return base;
}

static void *array_find(const block *b, const simt_shared_site *site)
{
    for (int i = 0; i < b->n_arrays; i++)
        if (b->arrays[i].site == site)
            return b->arrays[i].base;
    return nullptr;
}

static bool shared_holds(const block *b, const void *p, size_t bytes)
{
    uintptr_t at = (uintptr_t)p;
    for (int i = 0; i < b->n_arrays; i++) {
        uintptr_t base = (uintptr_t)b->arrays[i].base, size = b->arrays[i].size;
        if (at >= base && at - base <= size && bytes <= size - (at - base))
            return true;
    }
    return false;
}

void shared_check(const void *p, size_t bytes, const simt_request *at)
{
    if (!shared_holds(&machine.block, p, bytes))
        simt_fault(cudaErrorIllegalAddress, at->file, at->line,
                   "%s: the %zu bytes at %p are not in one shared array", op_name(at->op), bytes,
                   p);
}

} // namespace simt

using namespace simt;

void *simt_shared(const simt_shared_site *site)
{
    block *b = &machine.block;
    void *p = array_find(b, site);
    if (p)
        return p;
    b->static_bytes += (site->size + STATIC_ALIGN - 1) / STATIC_ALIGN * STATIC_ALIGN;
    if (b->static_bytes > SHARED_PLAIN)
        simt_fault(cudaErrorInvalidConfiguration, site->file, site->line,
                   "shared array %s: %zu bytes of CU_SHARED, at most %zu", site->name,
                   b->static_bytes, SHARED_PLAIN);
    if (b->static_bytes + b->dynamic_bytes > b->shared_limit)
        simt_fault(cudaErrorInvalidConfiguration, site->file, site->line,
                   "shared array %s: %zu bytes of CU_SHARED and %zu of CU_DYNAMIC, at most %zu",
                   site->name, b->static_bytes, b->dynamic_bytes, b->shared_limit);
    return array_make(b, site, site->size, STATIC_ALIGN);
}

void *simt_dynamic(const simt_shared_site *site)
{
    block *b = &machine.block;
    void *p = array_find(b, site);
    return p ? p : array_make(b, site, b->dynamic_bytes, DYNAMIC_ALIGN);
}

/* ---- asynchronous copies --------------------------------------------------------------------------------------- */

uint32_t cu_shared_address(const void *p)
{
    return (uint32_t)((const char *)p - machine.block.arena);
}

/* Where a thread may copy from: nothing, device memory, or pinned memory, which the device sees as well. */
static bool source_valid(device *d, const void *p, size_t bytes)
{
    return bytes == 0 || memory_find(&d->memory, p, bytes) || memory_find(&d->pinned, p, bytes);
}

void cu_copy16(void *shared, const void *global, int n, const char *file, int line)
{
    device *d = &machine;
    simt_check_aligned(shared, 16, "cu_copy16 to", file, line);
    simt_check_aligned(global, 16, "cu_copy16 from", file, line);
    if (n < 0 || n > 16)
        simt_fault(cudaErrorIllegalInstruction, file, line, "cu_copy16 of %d bytes", n);
    if (!shared_holds(&d->block, shared, 16))
        simt_fault(cudaErrorIllegalAddress, file, line,
                   "cu_copy16: the 16 bytes at %p are not in one shared array", shared);
    if (!source_valid(d, global, (size_t)n))
        simt_fault(cudaErrorIllegalAddress, file, line,
                   "cu_copy16: the %d bytes at %p are not in one allocation", n, global);
    thread *me = d->block.now;
    memory_poison(d, shared, 16);
    me->copies.push_back(async_copy{ (char *)shared, (const char *)global, n, me->groups });
}

void cu_copy_commit()
{
    machine.block.now->groups++;
}

/* The bytes of all groups but the n latest arrive, as they are at the source now. */
void simt_copy_wait(int n)
{
    thread *me = machine.block.now;
    size_t done = 0;
    for (; done < me->copies.size(); done++) {
        const async_copy *c = &me->copies[done];
        if (c->group + (uint64_t)n >= me->groups)
            break;
        memcpy(c->to, c->from, (size_t)c->bytes);
        memset(c->to + c->bytes, 0, 16 - (size_t)c->bytes);
    }
    me->copies.erase(me->copies.begin(), me->copies.begin() + (ptrdiff_t)done);
}
