/* Counted memory. The only place that calls the C allocator.
 *
 * Every block is counted, so that a test can assert that nothing leaked and that a decode step allocated nothing, and
 * every allocation can be made to fail on purpose. All functions are thread-safe (atomics only).
 */
#ifndef WRING_BASE_MEM_H
#define WRING_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "server/base/err.h"

/* NULL when memory is out, when the size is 0 or over PTRDIFF_MAX, or when mem_fail_at() says so. 16-byte aligned. */
void *mem_alloc(size_t bytes) WARN_UNUSED;
/* n * size zeroed bytes; NULL also on overflow of the product. */
void *mem_zalloc(size_t n, size_t size) WARN_UNUSED;
/* p may be NULL. On failure p stays valid. */
void *mem_realloc(void *p, size_t bytes) WARN_UNUSED;
char *mem_strdup(const char *s) WARN_UNUSED;
/* Copies exactly n bytes and adds the NUL: s must hold n bytes. */
char *mem_strndup(const char *s, size_t n) WARN_UNUSED;
/* NULL is accepted. Frees what any of the functions above returned. */
void mem_free(void *p);

/* Large, zeroed, page-aligned memory straight from the system: untouched pages cost nothing, huge pages are asked for.
 * NULL on failure. Free with the same size. Counted in bytes and blocks too. */
void *mem_map(size_t bytes) WARN_UNUSED;
void mem_unmap(void *p, size_t bytes);

struct mem_stats {
    uint64_t calls;  /* allocations ever made (alloc, zalloc, realloc, strdup, map) */
    uint64_t blocks; /* live blocks */
    uint64_t bytes;  /* live bytes, as asked for */
    uint64_t peak;   /* highest value of bytes */
};
void mem_stats(struct mem_stats *out);

/* Fault injection for tests: the n-th allocation from now fails (1 = the next one), once. 0 turns it off. */
void mem_fail_at(uint64_t n);

/* An arena: many small blocks with one end. Grows by chunks up to a ceiling; arena_alloc gives zeroed memory, 16-byte
 * aligned, or NULL past the ceiling or out of memory. Not thread-safe: one owner. */
struct arena {
    struct arena_chunk *chunk; /* newest first */
    size_t used_total, max_total;
};
void arena_init(struct arena *a, size_t max_total);
void *arena_alloc(struct arena *a, size_t bytes) WARN_UNUSED;
/* Like mem_strndup. */
char *arena_strndup(struct arena *a, const char *s, size_t n) WARN_UNUSED;
void arena_clear(struct arena *a); /* gives everything back; ready again */

#endif
