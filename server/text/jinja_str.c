/* Strings: UTF-8 with marks. Every function that makes a string out of another carries the marks along.
 */
#include <string.h>
#include <utf8proc.h>

#include "server/text/jinja.h"

size_t jinja_cp(const char *p, size_t n, int32_t *cp)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)p, (utf8proc_ssize_t)n, &c);
    if (k <= 0) {
        *cp = 0xfffd;
        return 1;
    }
    *cp = c;
    return (size_t)k;
}

size_t jinja_cp_back(const char *p, size_t n, int32_t *cp)
{
    size_t k = 1;
    while (k < 4 && k < n && ((unsigned char)p[n - k] & 0xc0) == 0x80)
        k++;
    return jinja_cp(p + n - k, k, cp) == k ? k : 1;
}

size_t jinja_cp_put(char out[4], int32_t cp)
{
    return (size_t)utf8proc_encode_char(cp, (utf8proc_uint8_t *)out);
}

bool jinja_is_space(int32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

static int sb_room(struct jinja_run *r, struct jinja_sb *b, size_t n)
{
    if (n > r->lim.output_bytes || b->n > r->lim.output_bytes - n)
        return err_set(r->e, ERR_LIMIT, "template line %u: text grows over %zu bytes", r->line,
                       r->lim.output_bytes);
    if (n <= b->cap - b->n)
        return 0;
    size_t cap = b->cap ? b->cap : 64;
    while (cap < b->n + n)
        cap *= 2;
    char *p = jinja_alloc(r, cap);
    uint8_t *mask = p && b->mask ? jinja_alloc(r, cap) : NULL;
    if (!p || (b->mask && !mask))
        return jinja_alloc_code(r);
    if (b->n)
        memcpy(p, b->p, b->n);
    if (mask)
        memcpy(mask, b->mask, b->n);
    b->p = p;
    b->mask = mask;
    b->cap = cap;
    return 0;
}

static int sb_mask(struct jinja_run *r, struct jinja_sb *b)
{
    if (b->mask)
        return 0;
    b->mask = jinja_alloc(r, b->cap);
    if (!b->mask)
        return jinja_alloc_code(r);
    memset(b->mask, b->user, b->n);
    return 0;
}

int jinja_sb_add(struct jinja_run *r, struct jinja_sb *b, const char *p, size_t n, bool user)
{
    if (!n)
        return 0;
    TRY(jinja_charge(r, n / 64));
    TRY(sb_room(r, b, n));
    if (!b->n && !b->mask)
        b->user = user;
    if (b->user != user)
        TRY(sb_mask(r, b));
    memcpy(b->p + b->n, p, n);
    if (b->mask)
        memset(b->mask + b->n, user, n);
    b->n += n;
    return 0;
}

int jinja_sb_adds(struct jinja_run *r, struct jinja_sb *b, const char *s)
{
    return jinja_sb_add(r, b, s, strlen(s), false);
}

int jinja_sb_cut(struct jinja_run *r, struct jinja_sb *b, const struct jinja_str *s, size_t at,
                 size_t n)
{
    if (!s->mask || !n)
        return jinja_sb_add(r, b, s->p + at, n, s->user);
    TRY(jinja_charge(r, n / 64));
    TRY(sb_room(r, b, n));
    TRY(sb_mask(r, b));
    memcpy(b->p + b->n, s->p + at, n);
    memcpy(b->mask + b->n, s->mask + at, n);
    b->n += n;
    return 0;
}

int jinja_sb_str(struct jinja_run *r, struct jinja_sb *b, const struct jinja_str *s)
{
    return jinja_sb_cut(r, b, s, 0, s->n);
}

static int str_make(struct jinja_run *r, struct jinja_str from, struct jinja_value *out)
{
    struct jinja_str *s = jinja_alloc(r, sizeof *s);
    if (!s)
        return jinja_alloc_code(r);
    *s = from;
    *out = (struct jinja_value){ .kind = JINJA_STR, .s = s };
    return 0;
}

int jinja_sb_done(struct jinja_run *r, const struct jinja_sb *b, struct jinja_value *out)
{
    return str_make(
        r, (struct jinja_str){ .p = b->p ? b->p : "", .mask = b->mask, .n = b->n, .user = b->user },
        out);
}

int jinja_str_new(struct jinja_run *r, const char *p, size_t n, bool user, struct jinja_value *out)
{
    TRY(jinja_charge(r, n / 64));
    char *copy = jinja_alloc(r, n);
    if (!copy)
        return jinja_alloc_code(r);
    if (n)
        memcpy(copy, p, n);
    return str_make(r, (struct jinja_str){ .p = copy, .n = n, .user = user }, out);
}

int jinja_str_cut(struct jinja_run *r, const struct jinja_str *s, size_t at, size_t n,
                  struct jinja_value *out)
{
    return str_make(
        r,
        (struct jinja_str){
            .p = s->p + at, .mask = s->mask ? s->mask + at : NULL, .n = n, .user = s->user },
        out);
}

bool jinja_str_user(const struct jinja_str *s)
{
    return s->mask ? memchr(s->mask, 1, s->n) != NULL : s->user;
}

bool jinja_str_is(struct jinja_value v, const char *lit)
{
    return v.kind == JINJA_STR && v.s->n == strlen(lit) && memcmp(v.s->p, lit, v.s->n) == 0;
}

int jinja_str_cmp(const struct jinja_str *a, const struct jinja_str *b)
{
    /* the order of UTF-8 bytes is the order of code points */
    size_t n = a->n < b->n ? a->n : b->n;
    int c = n ? memcmp(a->p, b->p, n) : 0;
    return c ? c : (a->n > b->n) - (a->n < b->n);
}

size_t jinja_str_find(const struct jinja_str *s, size_t from, size_t to,
                      const struct jinja_str *needle, bool last)
{
    if (from > to || needle->n > to - from)
        return SIZE_MAX;
    if (!last) {
        const char *p =
            needle->n ? memmem(s->p + from, to - from, needle->p, needle->n) : s->p + from;
        return p ? (size_t)(p - s->p) : SIZE_MAX;
    }
    for (size_t i = to - needle->n;; i--) {
        if (memcmp(s->p + i, needle->p, needle->n) == 0)
            return i;
        if (i == from)
            return SIZE_MAX;
    }
}

size_t jinja_str_len(const struct jinja_str *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        n += ((unsigned char)s->p[i] & 0xc0) != 0x80;
    return n;
}

size_t jinja_str_at(const struct jinja_str *s, size_t i)
{
    size_t p = 0;
    for (; p < s->n; p++)
        if (((unsigned char)s->p[p] & 0xc0) != 0x80 && i-- == 0)
            break;
    return p;
}

static bool strippable(int32_t cp, const struct jinja_str *chars)
{
    if (!chars)
        return jinja_is_space(cp);
    char buf[4];
    struct jinja_str one = { .p = buf, .n = jinja_cp_put(buf, cp) };
    return jinja_str_find(chars, 0, chars->n, &one, false) != SIZE_MAX;
}

int jinja_str_strip(struct jinja_run *r, const struct jinja_str *s, const struct jinja_str *chars,
                    int sides, struct jinja_value *out)
{
    size_t from = 0, to = s->n;
    int32_t cp;
    while ((sides & 1) && from < to) {
        size_t k = jinja_cp(s->p + from, to - from, &cp);
        if (!strippable(cp, chars))
            break;
        from += k;
    }
    while ((sides & 2) && from < to) {
        size_t k = jinja_cp_back(s->p + from, to - from, &cp);
        if (!strippable(cp, chars))
            break;
        to -= k;
    }
    TRY(jinja_charge(r, s->n / 64));
    return jinja_str_cut(r, s, from, to - from, out);
}

int jinja_str_replace(struct jinja_run *r, const struct jinja_str *s, const struct jinja_str *from,
                      const struct jinja_str *to, int64_t count, struct jinja_value *out)
{
    struct jinja_sb b = { 0 };
    size_t at = 0;
    TRY(jinja_charge(r, s->n / 64));
    while (count != 0 && at <= s->n) {
        size_t hit = jinja_str_find(s, at, s->n, from, false);
        if (hit == SIZE_MAX)
            break;
        TRY(jinja_charge(r, 1));
        TRY(jinja_sb_cut(r, &b, s, at, hit - at));
        TRY(jinja_sb_str(r, &b, to));
        at = hit + from->n;
        count--;
        if (from->n == 0) { /* between all characters */
            int32_t cp;
            if (at == s->n) {
                at++;
                break;
            }
            size_t k = jinja_cp(s->p + at, s->n - at, &cp);
            TRY(jinja_sb_cut(r, &b, s, at, k));
            at += k;
        }
    }
    if (at < s->n)
        TRY(jinja_sb_cut(r, &b, s, at, s->n - at));
    return jinja_sb_done(r, &b, out);
}

static bool is_cased(int32_t cp)
{
    return utf8proc_tolower(cp) != cp || utf8proc_toupper(cp) != cp ||
           utf8proc_category(cp) == UTF8PROC_CATEGORY_LU ||
           utf8proc_category(cp) == UTF8PROC_CATEGORY_LL;
}

int jinja_str_case(struct jinja_run *r, const struct jinja_str *s, enum jinja_case how,
                   struct jinja_value *out)
{
    struct jinja_sb b = { 0 };
    bool in_word = false;
    TRY(jinja_charge(r, s->n / 16));
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        char buf[4];
        size_t k = jinja_cp(s->p + i, s->n - i, &cp);
        bool user = s->mask ? s->mask[i] : s->user;
        bool upper = how == JINJA_UPPER || (how == JINJA_CAPITALIZE && i == 0) ||
                     (how >= JINJA_TITLE && !in_word);
        in_word = how == JINJA_WORDS
                      ? !jinja_is_space(cp) && (cp > 127 || !cp || !strchr("-({[<", (char)cp))
                      : is_cased(cp);
        if (upper && cp == 0xdf) { /* the one common letter whose capital is two */
            TRY(jinja_sb_add(r, &b, how == JINJA_UPPER || how == JINJA_WORDS ? "SS" : "Ss", 2,
                             user));
        } else {
            int32_t c = !upper                                     ? utf8proc_tolower(cp)
                        : how == JINJA_UPPER || how == JINJA_WORDS ? utf8proc_toupper(cp)
                                                                   : utf8proc_totitle(cp);
            TRY(jinja_sb_add(r, &b, buf, jinja_cp_put(buf, c), user));
        }
        i += k;
    }
    return jinja_sb_done(r, &b, out);
}
