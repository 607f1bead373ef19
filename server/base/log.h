/* One line a record on stderr, logfmt or JSON: time, level, event, then key=value pairs.
 *
 *   LOG(I, "listening", "addr=%s port=%d", addr, port);
 *
 * The format string holds key=value pairs separated by one space; a value with spaces must be quoted by LOG_STR. No
 * prompt and no completion is ever logged unless the option that says so is on (log_prompts()).
 * Thread-safe: a record is one write(2), or as many as its length takes. The level and format are process-wide settings
 * made before threads start.
 */
#ifndef WRING_BASE_LOG_H
#define WRING_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>

#include "server/base/buf.h"

enum log_level { LOG_E, LOG_W, LOG_I, LOG_D };

#define LOG(level, event, ...)                                                                     \
    do {                                                                                           \
        if (log_on(LOG_##level))                                                                   \
            log_line(LOG_##level, event, "" __VA_ARGS__);                                          \
    } while (0)

struct log_config {
    enum log_level level;
    bool json;
    bool prompts; /* log user text; off unless asked for */
};
void log_setup(const struct log_config *c);
bool log_on(enum log_level level);
bool log_prompts(void);
void log_line(enum log_level level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* A record that ends with all of text, however long, quoted as the value of key: what users write and get. */
void log_whole(enum log_level level, const char *event, const char *key, const struct buf *text,
               const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* Plain text on stderr, no record: for a command's last word to the person at the terminal. */
void log_text(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Quotes and escapes s for a logfmt value into out (always terminated; "..." at the end when cut). Returns out. */
const char *log_quote(char *out, size_t out_size, const char *s);
#define LOG_STR(s) log_quote((char[256]){ 0 }, 256, (s))

#endif
