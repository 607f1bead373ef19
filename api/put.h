/* JSON text, written by hand into a struct buf: the hot path writes one event a token.
 *
 * Numbers, strings and raw pieces only; the caller writes braces and commas. Failures are remembered by the buffer
 * (`bad`), so a whole object is written and checked once. Called by any thread on its own buffer.
 */
#ifndef WRING_API_PUT_H
#define WRING_API_PUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/base/buf.h"

/* A string literal's bytes as they are. */
#define PUT_RAW(b, literal) ((void)buf_add((b), "" literal, sizeof(literal) - 1))

/* n bytes as a quoted JSON string. Bytes that are not UTF-8 become U+FFFD, one per maximal bad run as the Unicode
 * standard recommends (§3.9), so the output is valid JSON whatever goes in. */
void api_put_str(struct buf *b, const char *s, size_t n);
void api_put_cstr(struct buf *b, const char *s); /* NULL writes null */
void api_put_int(struct buf *b, int64_t v);
void api_put_bool(struct buf *b, bool v);
/* Shortest of 9 digits that people can read; infinities and NaN, which JSON lacks, become -9999.0 (the value vLLM
 * sends for an impossible token) and null. */
void api_put_num(struct buf *b, double v);
/* A token's text: as api_put_str when it is UTF-8 by itself, otherwise "bytes:\xNN..." (OpenAI's form), so that two
 * half characters never look alike. */
void api_put_token(struct buf *b, const char *s, size_t n);

/* Length of the well-formed UTF-8 sequence at s (1..4), or 0 when there is none within n bytes. */
int api_utf8_len(const unsigned char *s, size_t n);
bool api_utf8_valid(const char *s, size_t n);
/* Code points in n bytes; a stray byte counts as none when it is a continuation byte, as one otherwise. */
size_t api_utf8_count(const char *s, size_t n);

#endif
