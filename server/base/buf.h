/* A growable byte string that is born with its ceiling.
 *
 * Invariants: data is NULL or NUL-terminated at data[len]; len <= max always. After the first failed append (ceiling or
 * memory) the buffer is `bad`: later appends do nothing and return the same code, so a writer can check once at the end.
 * One owner, no locks.
 */
#ifndef WRING_BASE_BUF_H
#define WRING_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

#include "server/base/err.h"

struct buf {
    char *data;
    size_t len, cap, max;
    int bad; /* 0 or the ERR_* of the first failure */
};

void buf_init(struct buf *b, size_t max); /* no allocation */
void buf_free(struct buf *b);             /* releases; b is as after buf_init */
void buf_clear(struct buf *b);            /* len = 0, bad = 0, memory kept */

/* 0, ERR_LIMIT at the ceiling, ERR_NOMEM. All or nothing. */
int buf_add(struct buf *b, const void *p, size_t n);
int buf_addc(struct buf *b, char c);
int buf_adds(struct buf *b, const char *s);
int buf_addf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Room for n more bytes at b->data + b->len, without changing len. */
int buf_reserve(struct buf *b, size_t n);
/* Drops the first n bytes. */
void buf_shift(struct buf *b, size_t n);
const char *buf_str(const struct buf *b); /* "" when empty */
/* Gives the memory away as a NUL-terminated block for mem_free(); b is as after buf_init. NULL when bad. */
char *buf_detach(struct buf *b);

/* Reads a whole file, at most max bytes: ERR_NOTFOUND, ERR_IO, ERR_LIMIT, ERR_NOMEM. */
int buf_read_file(struct buf *b, const char *path, struct err *e) WARN_UNUSED;
/* What buf_read_file() would say of a file that is not there, may not be read or is a folder; before work that takes long. Does not
 * open it: a pipe can be read once. */
int file_check(const char *path, struct err *e) WARN_UNUSED;
/* Writes path atomically: a temporary file beside it, fsync, rename. Nothing is left behind on failure. */
int file_write_atomic(const char *path, const void *p, size_t n, struct err *e) WARN_UNUSED;
/* All n bytes, however many calls it takes; -1 with errno. */
int file_write_all(int fd, const char *p, size_t n) WARN_UNUSED;
/* Whether a folder's entry is what that leaves of the file `name` when it is killed. */
bool file_is_rest(const char *entry, const char *name);

#endif
