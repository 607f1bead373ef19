/* JSON text writer. See put.h. */
#include "api/put.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int api_utf8_len(const unsigned char *s, size_t n)
{
    if (n == 0)
        return 0;
    if (s[0] < 0x80)
        return 1;
    int len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || (size_t)len > n)
        return 0;
    /* The second byte carries the limits: no overlong form, no surrogate, nothing above U+10FFFF. */
    unsigned char lo = 0x80, hi = 0xbf;
    if (s[0] == 0xe0)
        lo = 0xa0;
    else if (s[0] == 0xed)
        hi = 0x9f;
    else if (s[0] == 0xf0)
        lo = 0x90;
    else if (s[0] == 0xf4)
        hi = 0x8f;
    if (s[1] < lo || s[1] > hi)
        return 0;
    for (int i = 2; i < len; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    return len;
}

bool api_utf8_valid(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    for (size_t i = 0; i < n;) {
        int len = api_utf8_len(p + i, n - i);
        if (len == 0)
            return false;
        i += (size_t)len;
    }
    return true;
}

size_t api_utf8_count(const char *s, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)s[i] & 0xc0) != 0x80;
    return count;
}

/* How many bytes at s, which is not well formed, one U+FFFD stands for: the longest prefix of a sequence that could
 * still have become well formed, at least one. */
static size_t bad_run(const unsigned char *s, size_t n)
{
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 1;
    /* Complete the prefix with the smallest legal tail and see whether that would be well formed. */
    for (size_t keep = n < 3 ? n : 3; keep > 1; keep--) {
        unsigned char t[4] = { 0, 0x80, 0x80, 0x80 };
        memcpy(t, s, keep);
        int len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
        if ((int)keep < len && api_utf8_len(t, (size_t)len) != 0)
            return keep;
    }
    return 1;
}

static void put_escape(struct buf *b, unsigned char c)
{
    switch (c) {
    case '"': PUT_RAW(b, "\\\""); break;
    case '\\': PUT_RAW(b, "\\\\"); break;
    case '\n': PUT_RAW(b, "\\n"); break;
    case '\r': PUT_RAW(b, "\\r"); break;
    case '\t': PUT_RAW(b, "\\t"); break;
    case '\b': PUT_RAW(b, "\\b"); break;
    case '\f': PUT_RAW(b, "\\f"); break;
    default: (void)buf_addf(b, "\\u%04x", c); break;
    }
}

void api_put_str(struct buf *b, const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t from = 0, i = 0;

    (void)buf_addc(b, '"');
    while (i < n) {
        unsigned char c = p[i];
        if (c < 0x80 && c >= 0x20 && c != '"' && c != '\\') {
            i++;
            continue;
        }
        int len = c < 0x80 ? 0 : api_utf8_len(p + i, n - i);
        if (len > 0) {
            i += (size_t)len;
            continue;
        }
        if (i > from)
            (void)buf_add(b, s + from, i - from);
        if (c < 0x80) {
            put_escape(b, c);
            i++;
        } else {
            PUT_RAW(b, "\xef\xbf\xbd");
            i += bad_run(p + i, n - i);
        }
        from = i;
    }
    if (i > from)
        (void)buf_add(b, s + from, i - from);
    (void)buf_addc(b, '"');
}

void api_put_cstr(struct buf *b, const char *s)
{
    if (s)
        api_put_str(b, s, strlen(s));
    else
        PUT_RAW(b, "null");
}

void api_put_int(struct buf *b, int64_t v)
{
    char tmp[24];
    size_t at = sizeof(tmp);
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    do {
        tmp[--at] = (char)('0' + u % 10);
        u /= 10;
    } while (u);
    if (v < 0)
        tmp[--at] = '-';
    (void)buf_add(b, tmp + at, sizeof(tmp) - at);
}

void api_put_bool(struct buf *b, bool v)
{
    if (v)
        PUT_RAW(b, "true");
    else
        PUT_RAW(b, "false");
}

void api_put_num(struct buf *b, double v)
{
    if (isnan(v))
        PUT_RAW(b, "null");
    else if (isinf(v))
        PUT_RAW(b, "-9999.0");
    else
        (void)buf_addf(b, "%.9g", v);
}

void api_put_token(struct buf *b, const char *s, size_t n)
{
    if (api_utf8_valid(s, n)) {
        api_put_str(b, s, n);
        return;
    }
    PUT_RAW(b, "\"bytes:");
    for (size_t i = 0; i < n; i++)
        (void)buf_addf(b, "\\\\x%02x", (unsigned char)s[i]);
    (void)buf_addc(b, '"');
}
