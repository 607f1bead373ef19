/* Errors are values: a code for the program, a sentence for the human.
 *
 * A function that can fail returns int: 0, or a negative ERR_* code. Where a caller can do something with the
 * reason, the last parameter is a struct err *, which may be NULL and is written only on failure. The sentence says
 * what was wrong, where, and what would be right; it never holds a prompt or a completion.
 * Thread: everything here works on the caller's storage; there is no shared state.
 */
#ifndef WRING_BASE_ERR_H
#define WRING_BASE_ERR_H

#include <stdarg.h>

/* name, short text. The text is what err_name() returns and what logs show as err=... */
#define ERR_MAP(X)                                                                                 \
    X(ERR_NOMEM, "out_of_memory")                                                                  \
    X(ERR_IO, "io")                                                                                \
    X(ERR_NOTFOUND, "not_found")                                                                   \
    X(ERR_FORMAT, "bad_format")                                                                    \
    X(ERR_UNSUPPORTED, "unsupported")                                                              \
    X(ERR_INVALID, "invalid_argument")                                                             \
    X(ERR_LIMIT, "limit_exceeded")                                                                 \
    X(ERR_BUSY, "busy")                                                                            \
    X(ERR_CANCELLED, "cancelled")                                                                  \
    X(ERR_HASH, "hash_mismatch")                                                                   \
    X(ERR_DEVICE, "device")

enum err_code {
    ERR_OK = 0,
    ERR_FIRST_ = -100,
#define ERR_ENUM_(name, text) name,
    ERR_MAP(ERR_ENUM_)
#undef ERR_ENUM_
};

struct err {
    int code;       /* ERR_* of the failure, 0 before one */
    char text[508]; /* one sentence, NUL-terminated, cut at the end when too long */
};

#define WARN_UNUSED __attribute__((warn_unused_result))

/* Short name of a code, "ok" for 0, "unknown" for anything else. Static storage. */
const char *err_name(int code);

/* Writes code and sentence into e (if not NULL) and returns code, so that `return err_set(e, ERR_IO, ...)` works. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int err_vset(struct err *e, int code, const char *fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));

/* Puts "where: " in front of the sentence already in e; for callers that know the file or the tensor. Returns e->code; e may be NULL
 * (then ERR_INVALID is returned: pass the code on yourself). */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* err_set with ": strerror(errno)" appended. */
int err_errno(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Early return where nothing is held. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        int try_rc_ = (call);                                                                      \
        if (try_rc_ < 0)                                                                           \
            return try_rc_;                                                                        \
    } while (0)

/* Our own bugs only: prints file, line and expression and aborts. Input, files and devices never reach it. */
#define ASSERT(x) ((x) ? (void)0 : err_bug(__FILE__, __LINE__, #x))
void err_bug(const char *file, int line, const char *what) __attribute__((noreturn));

#endif
