/* Methods of strings.
 */
#include <string.h>
#include <utf8proc.h>

#include "server/text/jinja.h"

#define METHOD(fn_name)                                                                            \
    static int fn_name(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,         \
                       struct jinja_value *out)

#define GIVEN(v) ((v).kind != JINJA_MISSING && (v).kind != JINJA_NONE)

static int need_str(struct jinja_run *r, struct jinja_value v)
{
    return v.kind == JINJA_STR ? 0 : jinja_fail(r, "expected str, not %s", jinja_type_name(v));
}

static int int_or(struct jinja_run *r, struct jinja_value v, int64_t dflt, int64_t *out)
{
    if (v.kind != JINJA_MISSING && v.kind != JINJA_NONE && v.kind != JINJA_INT &&
        v.kind != JINJA_BOOL)
        return jinja_fail(r, "'%s' object cannot be interpreted as an integer", jinja_type_name(v));
    *out = GIVEN(v) ? jinja_as_int(v) : dflt;
    return 0;
}

/* ---- str ---- */

static int strip(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a, int sides,
                 struct jinja_value *out)
{
    if (GIVEN(a->v[0]))
        TRY(need_str(r, a->v[0]));
    return jinja_str_strip(r, self->self.s, GIVEN(a->v[0]) ? a->v[0].s : NULL, sides, out);
}

METHOD(s_strip)
{
    return strip(r, self, a, 3, out);
}

METHOD(s_lstrip)
{
    return strip(r, self, a, 1, out);
}

METHOD(s_rstrip)
{
    return strip(r, self, a, 2, out);
}

static int add_cut(struct jinja_run *r, const struct jinja_str *s, size_t from, size_t to,
                   struct jinja_list *l)
{
    struct jinja_value v;
    TRY(jinja_charge(r, 1));
    TRY(jinja_str_cut(r, s, from, to - from, &v));
    return jinja_list_add(r, l, v);
}

/* split() and rsplit() on white space. rsplit collects from the right; the caller turns the list round. */
static int split_space(struct jinja_run *r, const struct jinja_str *s, int64_t max, bool right,
                       struct jinja_list *l)
{
    size_t lo = 0, hi = s->n;
    int32_t cp;
    struct jinja_value rest;
    for (;;) {
        TRY(jinja_str_cut(r, s, lo, hi - lo, &rest));
        TRY(jinja_str_strip(r, rest.s, NULL, right ? 2 : 1, &rest));
        lo = right ? lo : hi - rest.s->n;
        hi = right ? lo + rest.s->n : hi;
        if (lo == hi)
            return 0;
        if (max-- == 0)
            return jinja_list_add(r, l, rest);
        size_t at = right ? hi : lo;
        while (right ? at > lo : at < hi) {
            size_t k =
                right ? jinja_cp_back(s->p + lo, at - lo, &cp) : jinja_cp(s->p + at, hi - at, &cp);
            if (jinja_is_space(cp))
                break;
            at = right ? at - k : at + k;
        }
        TRY(right ? add_cut(r, s, at, hi, l) : add_cut(r, s, lo, at, l));
        lo = right ? lo : at;
        hi = right ? at : hi;
    }
}

static int split_by(struct jinja_run *r, const struct jinja_str *s, const struct jinja_str *sep,
                    int64_t max, bool right, struct jinja_list *l)
{
    size_t lo = 0, hi = s->n;
    if (!sep->n)
        return jinja_fail(r, "empty separator");
    TRY(jinja_charge(r, s->n / 64));
    while (max-- != 0) {
        size_t at = jinja_str_find(s, lo, hi, sep, right);
        if (at == SIZE_MAX)
            break;
        TRY(right ? add_cut(r, s, at + sep->n, hi, l) : add_cut(r, s, lo, at, l));
        lo = right ? lo : at + sep->n;
        hi = right ? at : hi;
    }
    return add_cut(r, s, lo, hi, l);
}

static int split(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a, bool right,
                 struct jinja_value *out)
{
    struct jinja_value l;
    int64_t max = -1;
    TRY(int_or(r, a->v[1], -1, &max));
    TRY(jinja_list_new(r, JINJA_LIST, 0, &l));
    if (GIVEN(a->v[0])) {
        TRY(need_str(r, a->v[0]));
        TRY(split_by(r, self->self.s, a->v[0].s, max, right, l.l));
    } else {
        TRY(split_space(r, self->self.s, max, right, l.l));
    }
    for (size_t i = 0; right && i < l.l->n / 2; i++) {
        struct jinja_value t = l.l->v[i];
        l.l->v[i] = l.l->v[l.l->n - 1 - i];
        l.l->v[l.l->n - 1 - i] = t;
    }
    *out = l;
    return 0;
}

METHOD(s_split)
{
    return split(r, self, a, false, out);
}

METHOD(s_rsplit)
{
    return split(r, self, a, true, out);
}

static bool line_break(int32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

METHOD(s_splitlines)
{
    const struct jinja_str *s = self->self.s;
    struct jinja_value l;
    bool keep = GIVEN(a->v[0]) && jinja_truth(a->v[0]);
    size_t from = 0;
    TRY(jinja_list_new(r, JINJA_LIST, 0, &l));
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        size_t k = jinja_cp(s->p + i, s->n - i, &cp);
        if (line_break(cp)) {
            k += cp == '\r' && i + 1 < s->n && s->p[i + 1] == '\n';
            TRY(add_cut(r, s, from, keep ? i + k : i, l.l));
            from = i + k;
        }
        i += k;
    }
    if (from < s->n)
        TRY(add_cut(r, s, from, s->n, l.l));
    *out = l;
    return 0;
}

/* The bytes [*from, *to) that start and end (in code points) name. */
static int span(struct jinja_run *r, const struct jinja_str *s, struct jinja_value start,
                struct jinja_value end, size_t *from, size_t *to)
{
    int64_t n = (int64_t)jinja_str_len(s), b = 0, e = 0;
    TRY(jinja_charge(r, s->n / 64));
    TRY(int_or(r, start, 0, &b));
    TRY(int_or(r, end, n, &e));
    b += b < 0 ? n : 0;
    e += e < 0 ? n : 0;
    *to = e < 0 ? 0 : jinja_str_at(s, (size_t)e);
    *from = b < 0 ? 0 : b > n ? SIZE_MAX : jinja_str_at(s, (size_t)b);
    return 0;
}

static int affix(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a, bool suffix,
                 struct jinja_value *out)
{
    const struct jinja_str *s = self->self.s;
    size_t from, to;
    bool tuple = a->v[0].kind == JINJA_TUPLE, hit = false;
    TRY(span(r, s, a->v[1], a->v[2], &from, &to));
    for (size_t i = 0; i < (tuple ? a->v[0].l->n : 1) && !hit; i++) {
        struct jinja_value x = tuple ? a->v[0].l->v[i] : a->v[0];
        TRY(need_str(r, x));
        hit = from <= to && x.s->n <= to - from &&
              memcmp(s->p + (suffix ? to - x.s->n : from), x.s->p, x.s->n) == 0;
    }
    *out = jinja_bool(hit);
    return 0;
}

METHOD(s_startswith)
{
    return affix(r, self, a, false, out);
}

METHOD(s_endswith)
{
    return affix(r, self, a, true, out);
}

static int find(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a, bool last,
                bool must, struct jinja_value *out)
{
    const struct jinja_str *s = self->self.s;
    size_t from, to;
    TRY(need_str(r, a->v[0]));
    TRY(span(r, s, a->v[1], a->v[2], &from, &to));
    size_t at = jinja_str_find(s, from, to, a->v[0].s, last);
    if (at == SIZE_MAX && must)
        return jinja_fail(r, "substring not found");
    struct jinja_str head = { .p = s->p, .n = at == SIZE_MAX ? 0 : at };
    *out = jinja_int(at == SIZE_MAX ? -1 : (int64_t)jinja_str_len(&head));
    return 0;
}

METHOD(s_find)
{
    return find(r, self, a, false, false, out);
}

METHOD(s_rfind)
{
    return find(r, self, a, true, false, out);
}

METHOD(s_index)
{
    return find(r, self, a, false, true, out);
}

METHOD(s_rindex)
{
    return find(r, self, a, true, true, out);
}

METHOD(s_count)
{
    const struct jinja_str *s = self->self.s;
    size_t from, to;
    int64_t n = 0;
    TRY(need_str(r, a->v[0]));
    TRY(span(r, s, a->v[1], a->v[2], &from, &to));
    if (!a->v[0].s->n) {
        *out = jinja_int(from > to ? 0 : (int64_t)jinja_str_len(s) + 1);
        return 0;
    }
    for (; (from = jinja_str_find(s, from, to, a->v[0].s, false)) != SIZE_MAX; n++)
        from += a->v[0].s->n;
    *out = jinja_int(n);
    return 0;
}

METHOD(s_replace)
{
    int64_t count = -1;
    TRY(need_str(r, a->v[0]));
    TRY(need_str(r, a->v[1]));
    TRY(int_or(r, a->v[2], -1, &count));
    return jinja_str_replace(r, self->self.s, a->v[0].s, a->v[1].s, count, out);
}

METHOD(s_upper)
{
    (void)a;
    return jinja_str_case(r, self->self.s, JINJA_UPPER, out);
}

METHOD(s_lower)
{
    (void)a;
    return jinja_str_case(r, self->self.s, JINJA_LOWER, out);
}

METHOD(s_title)
{
    (void)a;
    return jinja_str_case(r, self->self.s, JINJA_TITLE, out);
}

METHOD(s_capitalize)
{
    (void)a;
    return jinja_str_case(r, self->self.s, JINJA_CAPITALIZE, out);
}

METHOD(s_join)
{
    struct jinja_list *l;
    struct jinja_sb b = { 0 };
    TRY(jinja_iter(r, a->v[0], &l));
    for (size_t i = 0; i < l->n; i++) {
        TRY(need_str(r, l->v[i]));
        if (i)
            TRY(jinja_sb_str(r, &b, self->self.s));
        TRY(jinja_charge(r, 1));
        TRY(jinja_sb_str(r, &b, l->v[i].s));
    }
    return jinja_sb_done(r, &b, out);
}

METHOD(s_format)
{
    return jinja_format(r, self->self.s, a, out);
}

METHOD(s_removeprefix)
{
    const struct jinja_str *s = self->self.s;
    TRY(need_str(r, a->v[0]));
    size_t n = a->v[0].s->n;
    bool hit = n <= s->n && memcmp(s->p, a->v[0].s->p, n) == 0;
    return jinja_str_cut(r, s, hit ? n : 0, hit ? s->n - n : s->n, out);
}

METHOD(s_removesuffix)
{
    const struct jinja_str *s = self->self.s;
    TRY(need_str(r, a->v[0]));
    size_t n = a->v[0].s->n;
    bool hit = n <= s->n && memcmp(s->p + s->n - n, a->v[0].s->p, n) == 0;
    return jinja_str_cut(r, s, 0, hit ? s->n - n : s->n, out);
}

static int fill(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a, bool left,
                struct jinja_value *out)
{
    struct jinja_sb b = { 0 };
    int64_t width = 0;
    if (GIVEN(a->v[1]))
        TRY(need_str(r, a->v[1]));
    if (GIVEN(a->v[1]) && jinja_str_len(a->v[1].s) != 1)
        return jinja_fail(r, "The fill character must be exactly one character long");
    TRY(int_or(r, a->v[0], 0, &width));
    int64_t lack = width - (int64_t)jinja_str_len(self->self.s);
    if (!left)
        TRY(jinja_sb_str(r, &b, self->self.s));
    for (; lack > 0; lack--)
        TRY(GIVEN(a->v[1]) ? jinja_sb_str(r, &b, a->v[1].s) : jinja_sb_adds(r, &b, " "));
    if (left)
        TRY(jinja_sb_str(r, &b, self->self.s));
    return jinja_sb_done(r, &b, out);
}

METHOD(s_ljust)
{
    return fill(r, self, a, false, out);
}

METHOD(s_rjust)
{
    return fill(r, self, a, true, out);
}

METHOD(s_zfill)
{
    const struct jinja_str *s = self->self.s;
    struct jinja_sb b = { 0 };
    int64_t width = 0;
    TRY(int_or(r, a->v[0], 0, &width));
    size_t sign = s->n && (s->p[0] == '-' || s->p[0] == '+');
    TRY(jinja_sb_cut(r, &b, s, 0, sign));
    for (int64_t lack = width - (int64_t)jinja_str_len(s); lack > 0; lack--)
        TRY(jinja_sb_adds(r, &b, "0"));
    TRY(jinja_sb_cut(r, &b, s, sign, s->n - sign));
    return jinja_sb_done(r, &b, out);
}

static int partition(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a, bool last,
                     struct jinja_value *out)
{
    const struct jinja_str *s = self->self.s;
    struct jinja_value t;
    TRY(need_str(r, a->v[0]));
    if (!a->v[0].s->n)
        return jinja_fail(r, "empty separator");
    TRY(jinja_charge(r, s->n / 64));
    size_t at = jinja_str_find(s, 0, s->n, a->v[0].s, last), after;
    bool miss = at == SIZE_MAX;
    at = miss ? (last ? 0 : s->n) : at;
    after = miss ? at : at + a->v[0].s->n;
    TRY(jinja_list_new(r, JINJA_TUPLE, 3, &t));
    TRY(add_cut(r, s, 0, at, t.l));
    TRY(add_cut(r, s, at, after, t.l));
    TRY(add_cut(r, s, after, s->n, t.l));
    *out = t;
    return 0;
}

METHOD(s_partition)
{
    return partition(r, self, a, false, out);
}

METHOD(s_rpartition)
{
    return partition(r, self, a, true, out);
}

/* isdigit() and so on: whether all characters (and at least one) are of the class. */
static int classify(const struct jinja_func *self, char class, struct jinja_value *out)
{
    const struct jinja_str *s = self->self.s;
    bool ok = s->n > 0;
    for (size_t i = 0; i < s->n && ok;) {
        int32_t cp;
        i += jinja_cp(s->p + i, s->n - i, &cp);
        utf8proc_category_t c = utf8proc_category(cp);
        bool alpha = c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
        bool digit = c == UTF8PROC_CATEGORY_ND || cp == 0xb2 || cp == 0xb3 || cp == 0xb9;
        ok = class == 'a'   ? alpha
             : class == 'd' ? digit
             : class == 'n'
                 ? alpha || digit || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO
                 : jinja_is_space(cp);
    }
    *out = jinja_bool(ok);
    return 0;
}

METHOD(s_isalpha)
{
    (void)r, (void)a;
    return classify(self, 'a', out);
}

METHOD(s_isdigit)
{
    (void)r, (void)a;
    return classify(self, 'd', out);
}

METHOD(s_isalnum)
{
    (void)r, (void)a;
    return classify(self, 'n', out);
}

METHOD(s_isspace)
{
    (void)r, (void)a;
    return classify(self, 's', out);
}

static int by_test(struct jinja_run *r, struct jinja_func *self, const char *name,
                   struct jinja_value *out)
{
    struct jinja_args one = { .v = { self->self } };
    return jinja_test(name)->fn(r, NULL, &one, out);
}

METHOD(s_islower)
{
    (void)a;
    return by_test(r, self, "lower", out);
}

METHOD(s_isupper)
{
    (void)a;
    return by_test(r, self, "upper", out);
}

static const struct jinja_builtin str_methods[] = {
    { "strip", s_strip, "chars=" },
    { "lstrip", s_lstrip, "chars=" },
    { "rstrip", s_rstrip, "chars=" },
    { "split", s_split, "sep= maxsplit=" },
    { "rsplit", s_rsplit, "sep= maxsplit=" },
    { "splitlines", s_splitlines, "keepends=" },
    { "startswith", s_startswith, "prefix start= end=" },
    { "endswith", s_endswith, "suffix start= end=" },
    { "find", s_find, "sub start= end=" },
    { "rfind", s_rfind, "sub start= end=" },
    { "index", s_index, "sub start= end=" },
    { "rindex", s_rindex, "sub start= end=" },
    { "count", s_count, "sub start= end=" },
    { "replace", s_replace, "old new count=" },
    { "upper", s_upper, "" },
    { "lower", s_lower, "" },
    { "casefold", s_lower, "" },
    { "title", s_title, "" },
    { "capitalize", s_capitalize, "" },
    { "join", s_join, "iterable" },
    { "format", s_format, "*" },
    { "removeprefix", s_removeprefix, "prefix" },
    { "removesuffix", s_removesuffix, "suffix" },
    { "ljust", s_ljust, "width fillchar=" },
    { "rjust", s_rjust, "width fillchar=" },
    { "zfill", s_zfill, "width" },
    { "partition", s_partition, "sep" },
    { "rpartition", s_rpartition, "sep" },
    { "isalpha", s_isalpha, "" },
    { "isdigit", s_isdigit, "" },
    { "isdecimal", s_isdigit, "" },
    { "isnumeric", s_isdigit, "" },
    { "isalnum", s_isalnum, "" },
    { "isspace", s_isspace, "" },
    { "islower", s_islower, "" },
    { "isupper", s_isupper, "" },
};

const struct jinja_builtin *jinja_str_method(const char *name, size_t n)
{
    return jinja_find(str_methods, sizeof str_methods / sizeof str_methods[0], name, n);
}
