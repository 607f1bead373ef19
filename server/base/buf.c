#include "server/base/buf.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "server/base/mem.h"

void buf_init(struct buf *b, size_t max)
{
    size_t most = PTRDIFF_MAX / 4; /* doubling never overflows below it */
    *b = (struct buf){ .max = max < most ? max : most };
}

void buf_free(struct buf *b)
{
    mem_free(b->data);
    buf_init(b, b->max);
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->bad = 0;
    if (b->data != NULL)
        b->data[0] = 0;
}

int buf_reserve(struct buf *b, size_t n)
{
    if (b->bad != 0)
        return b->bad;
    if (n > b->max - b->len)
        return b->bad = ERR_LIMIT;
    size_t want = b->len + n + 1;
    if (want <= b->cap)
        return 0;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < want)
        cap *= 2;
    if (cap > b->max + 1)
        cap = b->max + 1;
    char *p = mem_realloc(b->data, cap);
    if (p == NULL)
        return b->bad = ERR_NOMEM;
    b->data = p;
    b->cap = cap;
    b->data[b->len] = 0;
    return 0;
}

int buf_add(struct buf *b, const void *p, size_t n)
{
    TRY(buf_reserve(b, n));
    if (n > 0)
        memcpy(b->data + b->len, p, n);
    b->len += n;
    b->data[b->len] = 0;
    return 0;
}

int buf_addc(struct buf *b, char c)
{
    return buf_add(b, &c, 1);
}

int buf_adds(struct buf *b, const char *s)
{
    return buf_add(b, s, strlen(s));
}

int buf_addf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    ASSERT(n >= 0);
    TRY(buf_reserve(b, (size_t)n));
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return 0;
}

void buf_shift(struct buf *b, size_t n)
{
    if (n >= b->len) {
        b->len = 0;
        if (b->data != NULL)
            b->data[0] = 0;
        return;
    }
    memmove(b->data, b->data + n, b->len - n + 1);
    b->len -= n;
}

const char *buf_str(const struct buf *b)
{
    return b->data != NULL ? b->data : "";
}

char *buf_detach(struct buf *b)
{
    char *p = NULL;
    if (b->bad == 0 && buf_reserve(b, 0) == 0) {
        p = b->data;
        b->data = NULL;
    }
    buf_free(b);
    return p;
}
