/* Ids to text, whole or as they come. */
#include <string.h>

#include "server/text/token_internal.h"

int tok_decode(const struct tokenizer *t, const int32_t *id, int n, bool with_special,
               struct buf *out)
{
    bool first = true;
    for (int i = 0; i < n; i++) {
        int len = 0;
        const char *p = tok_piece(t, id[i], &len);
        bool special = tok_is_special(t, id[i]);
        if (p == NULL || (special && !with_special)) {
            first = first || !t->prefix_first_only;
            continue;
        }
        bool drop = first && !special && t->model == TOK_SPM && t->add_space_prefix && len > 0 &&
                    p[0] == ' ';
        TRY(buf_add(out, p + drop, (size_t)(len - drop)));
        first = special && !t->prefix_first_only;
    }
    return 0;
}

/* ---- as they come ------------------------------------------------------------------------------------------------ */

/* How the bytes s[0, n) begin: > 0 a whole code point of that many bytes, 0 the start of one, < 0 so many bytes that can
 * never be one (RFC 3629; the maximal subpart rule of Unicode, section 3.9). */
static int utf8_start(const unsigned char *s, int n)
{
    unsigned c = s[0];
    if (c < 0x80)
        return 1;
    int len = c >= 0xC2 && c <= 0xDF   ? 2
              : c >= 0xE0 && c <= 0xEF ? 3
              : c >= 0xF0 && c <= 0xF4 ? 4
                                       : 0;
    if (len == 0)
        return -1;
    unsigned lo = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
    unsigned hi = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < len; i++) {
        if (i >= n)
            return 0;
        if (s[i] < lo || s[i] > hi)
            return -i;
        lo = 0x80;
        hi = 0xBF;
    }
    return len;
}

void detok_init(struct detok *d)
{
    *d = (struct detok){ .n_held = 0 };
}

static int push_byte(struct detok *d, char c, struct buf *out)
{
    d->held[d->n_held++] = c;
    while (d->n_held > 0) {
        int k = utf8_start((const unsigned char *)d->held, d->n_held);
        if (k == 0)
            return 0;
        int n = k > 0 ? k : -k;
        TRY(k > 0 ? buf_add(out, d->held, (size_t)n) : buf_adds(out, "\xEF\xBF\xBD"));
        d->n_held -= n;
        memmove(d->held, d->held + n, (size_t)d->n_held);
    }
    return 0;
}

int detok_push(struct detok *d, const struct tokenizer *t, int32_t id, struct buf *out)
{
    int len = 0;
    const char *p = tok_piece(t, id, &len);
    if (p == NULL || tok_is_special(t, id))
        return 0;
    for (int i = 0; i < len; i++)
        TRY(push_byte(d, p[i], out));
    return 0;
}

int detok_flush(struct detok *d, struct buf *out)
{
    if (d->n_held == 0)
        return 0;
    d->n_held = 0;
    return buf_adds(out, "\xEF\xBF\xBD");
}
