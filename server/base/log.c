#include "server/base/log.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/base/clock.h"

/* Set once before threads start; see the header. */
static struct log_config config = { .level = LOG_I };

void log_setup(const struct log_config *c)
{
    config = *c;
}

bool log_on(enum log_level level)
{
    return level <= config.level;
}

bool log_prompts(void)
{
    return config.prompts;
}

static void put(const char *text, size_t n)
{
    while (n > 0) {
        ssize_t k = write(STDERR_FILENO, text, n);
        if (k <= 0)
            return;
        text += k;
        n -= (size_t)k;
    }
}

void log_text(const char *fmt, ...)
{
    char text[8192];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n > 0)
        put(text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

/* Appends s with JSON escapes; stops when full, which *cut then says. */
static size_t add_json(char *out, size_t at, size_t size, const char *s, size_t n, bool *cut)
{
    size_t i = 0;
    for (; i < n && at + 8 < size; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\') {
            out[at++] = '\\';
            out[at++] = (char)c;
        } else if (c < 0x20) {
            at += (size_t)snprintf(out + at, size - at, "\\u%04x", c);
        } else {
            out[at++] = (char)c;
        }
    }
    *cut = i < n;
    return at;
}

static size_t digits(const char *s, size_t n, size_t at)
{
    while (at < n && s[at] >= '0' && s[at] <= '9')
        at++;
    return at;
}

/* A number by JSON's own grammar, which is stricter than strtod's. */
static bool is_number(const char *s, size_t n)
{
    size_t at = n > 0 && s[0] == '-';
    size_t end = digits(s, n, at);
    if (end == at || (s[at] == '0' && end > at + 1))
        return false;
    at = end;
    if (at < n && s[at] == '.') {
        end = digits(s, n, at + 1);
        if (end == at + 1)
            return false;
        at = end;
    }
    if (at < n && (s[at] == 'e' || s[at] == 'E')) {
        at++;
        at += at < n && (s[at] == '+' || s[at] == '-');
        end = digits(s, n, at);
        if (end == at)
            return false;
        at = end;
    }
    return at == n;
}

/* Length of the value at s: to the next blank, or to the closing quote; -1 when that is missing (a record cut short). */
static ptrdiff_t value_len(const char *s)
{
    if (*s != '"')
        return (ptrdiff_t)strcspn(s, " ");
    size_t n = 1;
    while (s[n] != 0 && s[n] != '"')
        n += s[n] == '\\' && s[n + 1] != 0 ? 2 : 1;
    return s[n] == '"' ? (ptrdiff_t)n + 1 : -1;
}

/* The key=value pairs of a record as members of a JSON object. A quoted value is already a JSON string. */
static size_t pairs_to_json(char *out, size_t at, size_t size, const char *pairs)
{
    while (*pairs != 0) {
        pairs += strspn(pairs, " ");
        size_t key = strcspn(pairs, "= ");
        if (pairs[key] != '=')
            break;
        const char *v = pairs + key + 1;
        ptrdiff_t len = value_len(v);
        size_t n = (size_t)len;
        bool cut;
        if (len < 0 || at + key + (*v == '"' ? n : 0) + 64 > size)
            break;
        at += (size_t)snprintf(out + at, size - at, ",\"%.*s\":", (int)key, pairs);
        if (*v == '"' || (n < 40 && is_number(v, n))) {
            memcpy(out + at, v, n);
            at += n;
        } else {
            out[at++] = '"';
            at = add_json(out, at, size, v, n, &cut);
            out[at++] = '"';
        }
        pairs = v + n;
    }
    return at;
}

void log_line(enum log_level level, const char *event, const char *fmt, ...)
{
    static const char *const name[] = { "error", "warn", "info", "debug" };
    char pairs[2048];
    char line[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(pairs, sizeof pairs, fmt, ap);
    va_end(ap);

    uint64_t ns = clock_wall_ns();
    time_t s = (time_t)(ns / 1000000000u);
    struct tm tm;
    gmtime_r(&s, &tm);
    char when[40];
    size_t w = strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(when + w, sizeof when - w, ".%03uZ", (unsigned)(ns / 1000000u % 1000u));

    size_t n;
    if (config.json) {
        n = (size_t)snprintf(line, sizeof line, "{\"ts\":\"%s\",\"level\":\"%s\",\"event\":\"%s\"",
                             when, name[level], event);
        n = pairs_to_json(line, n, sizeof line - 4, pairs);
        line[n++] = '}';
    } else {
        int k = snprintf(line, sizeof line - 1, "ts=%s level=%s event=%s%s%s", when, name[level],
                         event, pairs[0] != 0 ? " " : "", pairs);
        n = k < 0 ? 0 : (size_t)k < sizeof line - 1 ? (size_t)k : sizeof line - 2;
    }
    line[n++] = '\n';
    put(line, n);
}

const char *log_quote(char *out, size_t out_size, const char *s)
{
    size_t at = 0;
    bool cut;
    size_t size = out_size - 4; /* room for "...", and the last quote */
    out[at++] = '"';
    at = add_json(out, at, size, s, strlen(s), &cut);
    if (cut) {
        /* A cut never leaves half a code point behind. */
        while (at > 1 && ((unsigned char)out[at - 1] & 0xC0) == 0x80)
            at--;
        if (at > 1 && (unsigned char)out[at - 1] >= 0xC0)
            at--;
        memcpy(out + at, "...", 3);
        at += 3;
    }
    out[at++] = '"';
    out[at] = 0;
    return out;
}
