#include "server/base/log.h"

#include <pthread.h>
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

/* One at a time: a pipe takes whole what is short, but long ones in parts. */
static void put_record(const char *line, size_t n)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    put(line, n);
    pthread_mutex_unlock(&lock);
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

/* A byte of a JSON string as 1 to 6 of them. */
static size_t escape(char *out, unsigned char c)
{
    if (c < 0x20)
        return (size_t)snprintf(out, 7, "\\u%04x", c);
    size_t n = 0;
    if (c == '"' || c == '\\')
        out[n++] = '\\';
    out[n++] = (char)c;
    return n;
}

/* Appends s with JSON escapes; stops when full, which *cut then says. */
static size_t add_json(char *out, size_t at, size_t size, const char *s, size_t n, bool *cut)
{
    size_t i = 0;
    for (; i < n && at + 8 < size; i++)
        at += escape(out + at, (unsigned char)s[i]);
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

/* The record up to its pairs, which may be cut; returns its length, at least 4 bytes short of size. */
static size_t begin_record(char *line, size_t size, enum log_level level, const char *event,
                           const char *pairs)
{
    static const char *const name[] = { "error", "warn", "info", "debug" };
    uint64_t ns = clock_wall_ns();
    time_t s = (time_t)(ns / 1000000000u);
    struct tm tm;
    gmtime_r(&s, &tm);
    char when[40];
    size_t w = strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(when + w, sizeof when - w, ".%03uZ", (unsigned)(ns / 1000000u % 1000u));

    if (config.json) {
        size_t n = (size_t)snprintf(line, size, "{\"ts\":\"%s\",\"level\":\"%s\",\"event\":\"%s\"",
                                    when, name[level], event);
        return pairs_to_json(line, n, size - 4, pairs);
    }
    int k = snprintf(line, size - 3, "ts=%s level=%s event=%s%s%s", when, name[level], event,
                     pairs[0] != 0 ? " " : "", pairs);
    return k < 0 ? 0 : (size_t)k < size - 3 ? (size_t)k : size - 4;
}

void log_line(enum log_level level, const char *event, const char *fmt, ...)
{
    char pairs[2048];
    char line[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(pairs, sizeof pairs, fmt, ap);
    va_end(ap);
    size_t n = begin_record(line, sizeof line, level, event, pairs);
    if (config.json)
        line[n++] = '}';
    line[n++] = '\n';
    put_record(line, n);
}

static void add_escaped(struct buf *b, const char *s, size_t n)
{
    for (size_t i = 0; i < n && buf_reserve(b, 7) == 0; i++)
        b->len += escape(b->data + b->len, (unsigned char)s[i]);
}

void log_whole(enum log_level level, const char *event, const char *key, const struct buf *text,
               const char *fmt, ...)
{
    char pairs[512];
    char line[2048];
    struct buf b;
    if (!log_on(level))
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(pairs, sizeof pairs, fmt, ap);
    va_end(ap);
    size_t n = begin_record(line, sizeof line, level, event, pairs);
    buf_init(&b, sizeof line + strlen(key) + 6 * text->len + 16);
    buf_add(&b, line, n);
    buf_addf(&b, config.json ? ",\"%s\":\"" : " %s=\"", key);
    add_escaped(&b, text->data, text->len);
    buf_adds(&b, config.json ? "\"}\n" : "\"\n");
    if (b.bad == 0)
        put_record(b.data, b.len);
    else /* no memory for all of it */
        log_line(level, event, "%s %s=%s", pairs, key, LOG_STR(buf_str(text)));
    buf_free(&b);
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
