#include "server/base/err.h"

#include <errno.h>
#include <execinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *err_name(int code)
{
    static const char *const text[] = {
#define ERR_TEXT_(name, word) word,
        ERR_MAP(ERR_TEXT_)
#undef ERR_TEXT_
    };
    if (code == ERR_OK)
        return "ok";
    int i = code - ERR_FIRST_ - 1;
    return i >= 0 && i < (int)(sizeof text / sizeof text[0]) ? text[i] : "unknown";
}

int err_vset(struct err *e, int code, const char *fmt, va_list ap)
{
    if (e != NULL) {
        e->code = code;
        vsnprintf(e->text, sizeof e->text, fmt, ap);
    }
    return code;
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(e, code, fmt, ap);
    va_end(ap);
    return code;
}

int err_prefix(struct err *e, const char *fmt, ...)
{
    if (e == NULL)
        return ERR_INVALID;
    char old[sizeof e->text];
    va_list ap;
    memcpy(old, e->text, sizeof old);
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    size_t n = strlen(e->text);
    snprintf(e->text + n, sizeof e->text - n, ": %s", old);
    return e->code;
}

int err_errno(struct err *e, int code, const char *fmt, ...)
{
    char why[128];
    const char *text = strerror_r(errno, why, sizeof why);
    va_list ap;
    va_start(ap, fmt);
    err_vset(e, code, fmt, ap);
    va_end(ap);
    if (e != NULL) {
        size_t n = strlen(e->text);
        snprintf(e->text + n, sizeof e->text - n, ": %s", text);
    }
    return code;
}

void err_bug(const char *file, int line, const char *what)
{
    void *frame[32];
    fprintf(stderr, "wring: bug at %s:%d: %s\n", file, line, what);
    backtrace_symbols_fd(frame, backtrace(frame, 32), STDERR_FILENO);
    abort();
}
