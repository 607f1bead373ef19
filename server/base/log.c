#include "server/base/log.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
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

/* Appends s with JSON escapes; stops when full. */
static size_t add_json(char *out, size_t at, size_t size, const char *s, size_t n)
{
    for (size_t i = 0; i < n && at + 8 < size; i++) {
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
    return at;
}

static bool is_number(const char *s, size_t n)
{
    char text[40];
    char *end;
    if (n == 0 || n >= sizeof text || strspn(s, "0123456789+-.eE") < n)
        return false;
    memcpy(text, s, n);
    text[n] = 0;
    (void)strtod(text, &end);
    return *end == 0 && text[0] != '+' && text[0] != '.' && text[n - 1] != '.';
}

/* Length of the value at s: to the next blank, or to the closing quote. */
static size_t value_len(const char *s)
{
    if (*s != '"')
        return strcspn(s, " ");
    size_t n = 1;
    while (s[n] != 0 && s[n] != '"')
        n += s[n] == '\\' && s[n + 1] != 0 ? 2 : 1;
    return s[n] == '"' ? n + 1 : n;
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
        size_t n = value_len(v);
        if (at + key + 16 > size)
            break;
        at += (size_t)snprintf(out + at, size - at, ",\"%.*s\":", (int)key, pairs);
        if (*v == '"' || is_number(v, n)) {
            if (at + n + 4 > size)
                break;
            memcpy(out + at, v, n);
            at += n;
        } else {
            out[at++] = '"';
            at = add_json(out, at, size, v, n);
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
    size_t len = strlen(s);
    out[at++] = '"';
    at = add_json(out, at, out_size - 4, s, len);
    if (len + 10 > out_size && at + 8 >= out_size - 4)
        for (int i = 0; i < 3; i++)
            out[at++] = '.';
    out[at++] = '"';
    out[at < out_size ? at : out_size - 1] = 0;
    return out;
}
