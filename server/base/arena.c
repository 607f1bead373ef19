#include <string.h>

#include "server/base/mem.h"

struct arena_chunk {
    struct arena_chunk *older;
    size_t used, size;
    char pad[8]; /* the data behind it stays 16-byte aligned */
};
_Static_assert(sizeof(struct arena_chunk) % 16 == 0, "arena data must be aligned");

enum { CHUNK = 16384 };

void arena_init(struct arena *a, size_t max_total)
{
    size_t most = PTRDIFF_MAX / 2; /* sums below never overflow */
    *a = (struct arena){ .max_total = max_total < most ? max_total : most };
}

static struct arena_chunk *grow(struct arena *a, size_t bytes)
{
    size_t size = bytes > CHUNK ? bytes : CHUNK;
    struct arena_chunk *c = mem_zalloc(1, sizeof *c + size);
    if (c == NULL)
        return NULL;
    c->size = size;
    c->older = a->chunk;
    a->chunk = c;
    return c;
}

void *arena_alloc(struct arena *a, size_t bytes)
{
    if (bytes == 0 || bytes > a->max_total || a->used_total > a->max_total - bytes)
        return NULL;
    size_t rounded = (bytes + 15) & ~(size_t)15;
    struct arena_chunk *c = a->chunk;
    if (c == NULL || c->size - c->used < rounded)
        c = grow(a, rounded);
    if (c == NULL)
        return NULL;
    void *p = (char *)(c + 1) + c->used;
    c->used += rounded;
    a->used_total += bytes;
    return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    char *p = arena_alloc(a, n + 1);
    if (p != NULL)
        memcpy(p, s, n);
    return p;
}

void arena_clear(struct arena *a)
{
    while (a->chunk != NULL) {
        struct arena_chunk *c = a->chunk;
        a->chunk = c->older;
        mem_free(c);
    }
    a->used_total = 0;
}
