/* Unicode's normal form C, by utf8proc, without memory of its own and in time linear in the text. */
#include <utf8proc.h>

#include "server/text/token_internal.h"

enum {
    ENOUGH = 64, /* code points after which a chunk ends at the next boundary */
    MOST = 512,  /* a flood of combining marks is cut here: sorting them takes quadratic time */
    GROWTH = 4   /* code points that one becomes at most */
};

bool nfc_may_change(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] >= 0xCC) /* U+0300; everything below is in normal form */
            return true;
    return false;
}

/* Whether no later normalisation joins c to what stands before it. */
static bool is_boundary(utf8proc_int32_t c)
{
    const utf8proc_property_t *p = utf8proc_get_property(c);
    return p->combining_class == 0 && p->category != UTF8PROC_CATEGORY_MN &&
           p->category != UTF8PROC_CATEGORY_MC && (c < 0x1160 || c > 0x11FF);
}

static int add_chunk(const char *s, size_t n, struct buf *out)
{
    utf8proc_int32_t tmp[MOST * GROWTH + 1];
    const utf8proc_option_t how = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    utf8proc_ssize_t k = utf8proc_decompose((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, tmp,
                                            MOST * GROWTH, how);
    if (k >= 0 && k <= MOST * GROWTH)
        k = utf8proc_reencode(tmp, k, how);
    else
        k = -1;
    return k >= 0 ? buf_add(out, tmp, (size_t)k) : buf_add(out, s, n);
}

int nfc_add(const char *s, size_t n, struct buf *out)
{
    size_t start = 0;
    size_t at = 0;
    int n_points = 0;
    while (at < n) {
        utf8proc_int32_t c;
        utf8proc_ssize_t len =
            utf8proc_iterate((const utf8proc_uint8_t *)s + at, (utf8proc_ssize_t)(n - at), &c);
        if (n_points >= MOST || len < 1 || (n_points >= ENOUGH && is_boundary(c))) {
            TRY(add_chunk(s + start, at - start, out));
            start = at;
            n_points = 0;
        }
        if (len < 1) { /* not UTF-8: stays */
            TRY(buf_addc(out, s[at++]));
            start = at;
            continue;
        }
        n_points++;
        at += (size_t)len;
    }
    return add_chunk(s + start, n - start, out);
}
