/* A block carries its size in front, so that bytes can be counted without asking the allocator. */
#include "server/base/mem.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HEADER = 16 }; /* keeps the block 16-byte aligned */

static _Atomic uint64_t n_calls, n_blocks, n_bytes, n_peak, fail_in;

/* Counts a call; true when this one was told to fail. */
static bool injected(void)
{
    atomic_fetch_add_explicit(&n_calls, 1, memory_order_relaxed);
    uint64_t left = atomic_load_explicit(&fail_in, memory_order_relaxed);
    while (left != 0)
        if (atomic_compare_exchange_weak(&fail_in, &left, left - 1))
            return left == 1;
    return false;
}

static void count_in(size_t bytes)
{
    uint64_t now = atomic_fetch_add_explicit(&n_bytes, bytes, memory_order_relaxed) + bytes;
    uint64_t peak = atomic_load_explicit(&n_peak, memory_order_relaxed);
    while (now > peak && !atomic_compare_exchange_weak(&n_peak, &peak, now))
        ;
}

static void count_out(size_t bytes)
{
    atomic_fetch_sub_explicit(&n_bytes, bytes, memory_order_relaxed);
}

static void *finish(char *p, size_t bytes)
{
    if (p == NULL)
        return NULL;
    memcpy(p, &bytes, sizeof bytes);
    atomic_fetch_add_explicit(&n_blocks, 1, memory_order_relaxed);
    count_in(bytes);
    return p + HEADER;
}

static bool bad_size(size_t bytes)
{
    return bytes == 0 || bytes > PTRDIFF_MAX - HEADER;
}

void *mem_alloc(size_t bytes)
{
    return injected() || bad_size(bytes) ? NULL : finish(malloc(bytes + HEADER), bytes);
}

void *mem_zalloc(size_t n, size_t size)
{
    size_t bytes;
    if (injected() || __builtin_mul_overflow(n, size, &bytes) || bad_size(bytes))
        return NULL;
    return finish(calloc(1, bytes + HEADER), bytes);
}

void *mem_realloc(void *p, size_t bytes)
{
    if (p == NULL)
        return mem_alloc(bytes);
    if (injected() || bad_size(bytes))
        return NULL;
    size_t old;
    char *block = (char *)p - HEADER;
    memcpy(&old, block, sizeof old);
    block = realloc(block, bytes + HEADER);
    if (block == NULL)
        return NULL;
    memcpy(block, &bytes, sizeof bytes);
    count_out(old);
    count_in(bytes);
    return block + HEADER;
}

char *mem_strndup(const char *s, size_t n)
{
    char *p = mem_alloc(n + 1);
    if (p == NULL)
        return NULL;
    memcpy(p, s, n);
    p[n] = 0;
    return p;
}

char *mem_strdup(const char *s)
{
    return mem_strndup(s, strlen(s));
}

void mem_free(void *p)
{
    if (p == NULL)
        return;
    size_t bytes;
    char *block = (char *)p - HEADER;
    memcpy(&bytes, block, sizeof bytes);
    atomic_fetch_sub_explicit(&n_blocks, 1, memory_order_relaxed);
    count_out(bytes);
    free(block);
}

void *mem_map(size_t bytes)
{
    if (injected() || bad_size(bytes))
        return NULL;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    /* Fewer TLB misses when megabytes are streamed; where the system has no huge pages nothing is lost. */
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    atomic_fetch_add_explicit(&n_blocks, 1, memory_order_relaxed);
    count_in(bytes);
    return p;
}

void mem_unmap(void *p, size_t bytes)
{
    if (p == NULL)
        return;
    munmap(p, bytes);
    atomic_fetch_sub_explicit(&n_blocks, 1, memory_order_relaxed);
    count_out(bytes);
}

void mem_stats(struct mem_stats *out)
{
    *out = (struct mem_stats){ .calls = atomic_load(&n_calls),
                               .blocks = atomic_load(&n_blocks),
                               .bytes = atomic_load(&n_bytes),
                               .peak = atomic_load(&n_peak) };
}

void mem_fail_at(uint64_t n)
{
    atomic_store(&fail_in, n);
}
