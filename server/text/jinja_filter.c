/* Filters on single values: text, numbers, defaults. Those on sequences are in jinja_seq.c.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/text/jinja.h"

#define FILTER(fn_name)                                                                            \
    static int fn_name(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,         \
                       struct jinja_value *out)

#define GIVEN(v) ((v).kind != JINJA_MISSING)

/* Replaces an argument by str() of it. */
static int want_str(struct jinja_run *r, struct jinja_value *v)
{
    return jinja_to_str(r, *v, v);
}

FILTER(f_trim)
{
    (void)self;
    TRY(want_str(r, &a->v[0]));
    bool chars = GIVEN(a->v[1]) && a->v[1].kind != JINJA_NONE;
    if (chars)
        TRY(want_str(r, &a->v[1]));
    return jinja_str_strip(r, a->v[0].s, chars ? a->v[1].s : NULL, 3, out);
}

static int recase(struct jinja_run *r, struct jinja_args *a, enum jinja_case how,
                  struct jinja_value *out)
{
    TRY(want_str(r, &a->v[0]));
    return jinja_str_case(r, a->v[0].s, how, out);
}

FILTER(f_upper)
{
    (void)self;
    return recase(r, a, JINJA_UPPER, out);
}

FILTER(f_lower)
{
    (void)self;
    return recase(r, a, JINJA_LOWER, out);
}

FILTER(f_title)
{
    (void)self;
    return recase(r, a, JINJA_WORDS, out);
}

FILTER(f_capitalize)
{
    (void)self;
    return recase(r, a, JINJA_CAPITALIZE, out);
}

FILTER(f_string)
{
    (void)self;
    return jinja_to_str(r, a->v[0], out);
}

FILTER(f_length)
{
    size_t n;
    (void)self;
    TRY(jinja_len(r, a->v[0], &n));
    *out = jinja_int((int64_t)n);
    return 0;
}

FILTER(f_default)
{
    (void)self;
    bool falsy = GIVEN(a->v[2]) && jinja_truth(a->v[2]) && !jinja_truth(a->v[0]);
    if (a->v[0].kind != JINJA_UNDEF && !falsy) {
        *out = a->v[0];
        return 0;
    }
    if (!GIVEN(a->v[1]))
        return jinja_str_new(r, "", 0, false, out);
    *out = a->v[1];
    return 0;
}

FILTER(f_replace)
{
    (void)self;
    int64_t count = -1;
    for (int i = 0; i < 3; i++)
        TRY(want_str(r, &a->v[i]));
    if (GIVEN(a->v[3]) && a->v[3].kind != JINJA_NONE) {
        if (a->v[3].kind != JINJA_INT && a->v[3].kind != JINJA_BOOL)
            return jinja_fail(r, "replace: count must be an integer");
        count = jinja_as_int(a->v[3]);
    }
    return jinja_str_replace(r, a->v[0].s, a->v[1].s, a->v[2].s, count, out);
}

FILTER(f_tojson)
{
    (void)self;
    return jinja_json(r, a, out);
}

/* A number at the start of a terminated text with nothing but space behind; underscores between digits are dropped. */
static bool read_number(struct jinja_value s, char *buf, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < s.s->n; i++) {
        if (s.s->p[i] == '_' && i > 0 && i + 1 < s.s->n)
            continue;
        if (n + 1 >= size || s.s->p[i] == 0)
            return false;
        buf[n++] = s.s->p[i];
    }
    buf[n] = 0;
    return n > 0 && !strpbrk(buf, "xXpP(");
}

static bool to_float(struct jinja_run *r, struct jinja_value v, double *f)
{
    char buf[400], *end;
    if (jinja_is_num(v)) {
        *f = v.kind == JINJA_FLOAT ? v.f : (double)jinja_as_int(v);
        return true;
    }
    if (v.kind != JINJA_STR || jinja_str_strip(r, v.s, NULL, 3, &v) ||
        !read_number(v, buf, sizeof buf))
        return false;
    *f = strtod(buf, &end);
    return end != buf && !*end;
}

FILTER(f_float)
{
    double f = 0;
    (void)self;
    if (a->v[0].kind == JINJA_UNDEF)
        return jinja_fail_undef(r, a->v[0]);
    if (to_float(r, a->v[0], &f))
        *out = jinja_float(f);
    else
        *out = GIVEN(a->v[1]) ? a->v[1] : jinja_float(0);
    return 0;
}

static bool str_to_int(struct jinja_run *r, struct jinja_value v, int base, int64_t *out)
{
    char buf[400], *end, *p = buf;
    if (jinja_str_strip(r, v.s, NULL, 3, &v) || v.s->n + 1 >= sizeof buf)
        return false;
    size_t n = 0;
    for (size_t i = 0; i < v.s->n; i++)
        if (v.s->p[i] != '_' && v.s->p[i])
            buf[n++] = v.s->p[i];
    buf[n] = 0;
    bool neg = *p == '-';
    p += neg || *p == '+';
    static const char marks[] = "bo..x";
    for (int b = 2; b <= 16; b = b == 2 ? 8 : b * 2) /* 0b 0o 0x of the same base */
        if (b == base && p[0] == '0' &&
            (p[1] | 0x20) == (b == 2   ? marks[0]
                              : b == 8 ? marks[1]
                                       : marks[4]))
            p += 2;
    if (!*p || strpbrk(p, "+- xX"))
        return false;
    unsigned long long u = strtoull(p, &end, base);
    if (*end || u > INT64_MAX)
        return false;
    *out = neg ? -(int64_t)u : (int64_t)u;
    return true;
}

FILTER(f_int)
{
    double f;
    int64_t i;
    (void)self;
    int base = GIVEN(a->v[2]) && a->v[2].kind == JINJA_INT && a->v[2].i >= 2 && a->v[2].i <= 36
                   ? (int)a->v[2].i
                   : 10;
    struct jinja_value v = a->v[0];
    if (v.kind == JINJA_UNDEF)
        return jinja_fail_undef(r, v);
    if (v.kind == JINJA_INT || v.kind == JINJA_BOOL)
        *out = jinja_int(jinja_as_int(v));
    else if (v.kind == JINJA_STR && str_to_int(r, v, base, &i))
        *out = jinja_int(i);
    else if (to_float(r, v, &f) && fabs(f) < 9.2e18)
        *out = jinja_int((int64_t)f);
    else
        *out = GIVEN(a->v[1]) ? a->v[1] : jinja_int(0);
    return 0;
}

FILTER(f_abs)
{
    (void)self;
    struct jinja_value v = a->v[0];
    if (!jinja_is_num(v) || (v.kind == JINJA_INT && v.i == INT64_MIN))
        return jinja_fail(r, "bad operand type for abs(): '%s'", jinja_type_name(v));
    if (v.kind == JINJA_FLOAT)
        *out = jinja_float(fabs(v.f));
    else
        *out = jinja_int(jinja_as_int(v) < 0 ? -jinja_as_int(v) : jinja_as_int(v));
    return 0;
}

FILTER(f_round)
{
    (void)self;
    struct jinja_value v = a->v[0];
    bool common = !GIVEN(a->v[2]) || jinja_str_is(a->v[2], "common");
    bool up = GIVEN(a->v[2]) && jinja_str_is(a->v[2], "ceil");
    if (!common && !up && !jinja_str_is(a->v[2], "floor"))
        return jinja_fail(r, "method must be common, ceil or floor");
    if (!jinja_is_num(v) || (GIVEN(a->v[1]) && a->v[1].kind != JINJA_INT))
        return jinja_fail(r, "type %s doesn't define round", jinja_type_name(v));
    int64_t digits = GIVEN(a->v[1]) ? a->v[1].i : 0;
    if (common && v.kind != JINJA_FLOAT && digits >= 0) {
        *out = jinja_int(jinja_as_int(v));
        return 0;
    }
    double f = v.kind == JINJA_FLOAT ? v.f : (double)jinja_as_int(v);
    if (digits > 300 || digits < -300)
        return jinja_fail(r, "round: precision is out of range");
    if (common && digits >= 0 && isfinite(f)) { /* correctly rounded, as Python does it */
        char text[700];
        snprintf(text, sizeof text, "%.*f", (int)digits, f);
        *out = jinja_float(strtod(text, NULL));
        return 0;
    }
    double scale = pow(10, (double)digits), x = f * scale;
    *out = jinja_float((common ? nearbyint(x) : up ? ceil(x) : floor(x)) / scale);
    return 0;
}

FILTER(f_safe)
{
    (void)self;
    return jinja_to_str(r, a->v[0], out);
}

FILTER(f_escape)
{
    static const struct {
        char c;
        const char *text;
    } map[] = {
        { '&', "&amp;" }, { '<', "&lt;" }, { '>', "&gt;" }, { '\'', "&#39;" }, { '"', "&#34;" }
    };
    struct jinja_sb b = { 0 };
    (void)self;
    TRY(want_str(r, &a->v[0]));
    const struct jinja_str *s = a->v[0].s;
    TRY(jinja_charge(r, s->n / 16));
    for (size_t i = 0; i < s->n; i++) {
        size_t k = 0;
        while (k < 5 && map[k].c != s->p[i])
            k++;
        if (k < 5)
            TRY(jinja_sb_add(r, &b, map[k].text, strlen(map[k].text),
                             s->mask ? s->mask[i] : s->user));
        else
            TRY(jinja_sb_cut(r, &b, s, i, 1));
    }
    return jinja_sb_done(r, &b, out);
}

FILTER(f_format)
{
    (void)self;
    struct jinja_value fmt;
    if (!a->n_pos)
        return jinja_fail(r, "format() missing argument 'value'");
    if (a->n_kw && a->n_pos > 1)
        return jinja_fail(r, "can't handle positional and keyword arguments at the same time");
    TRY(jinja_to_str(r, a->pos[0], &fmt));
    struct jinja_args rest = {
        .pos = a->pos + 1, .n_pos = a->n_pos - 1, .kw = a->kw, .n_kw = a->n_kw
    };
    return jinja_percent(r, fmt.s, &rest, false, out);
}

FILTER(f_wordcount)
{
    (void)self;
    TRY(want_str(r, &a->v[0]));
    const struct jinja_str *s = a->v[0].s;
    int64_t n = 0;
    bool in = false;
    TRY(jinja_charge(r, s->n / 16));
    for (size_t i = 0; i < s->n; i++) {
        char c = s->p[i];
        bool word = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                    c == '_' || (c & 0x80);
        n += word && !in;
        in = word;
    }
    *out = jinja_int(n);
    return 0;
}

/* Lines after the first (or all) get the indent; blank ones only when asked for. */
FILTER(f_indent)
{
    (void)self;
    struct jinja_value pad, four;
    struct jinja_sb b = { 0 };
    bool first = GIVEN(a->v[2]) && jinja_truth(a->v[2]);
    bool blank = GIVEN(a->v[3]) && jinja_truth(a->v[3]);
    if (a->v[0].kind != JINJA_STR)
        return jinja_fail(r, "indent takes a string, not %s", jinja_type_name(a->v[0]));
    TRY(jinja_str_new(r, "    ", 4, false, &four));
    pad = four;
    if (GIVEN(a->v[1]) && a->v[1].kind == JINJA_STR) {
        pad = a->v[1];
    } else if (GIVEN(a->v[1])) {
        TRY(jinja_str_cut(r, four.s, 0, 1, &four));
        TRY(jinja_binary(r, 2 /* OP_MUL */, four, a->v[1], &pad));
    }
    const struct jinja_str *s = a->v[0].s;
    for (size_t i = 0, line = 0; i <= s->n; line++) {
        const char *nl = i < s->n ? memchr(s->p + i, '\n', s->n - i) : NULL;
        size_t end = nl ? (size_t)(nl - s->p) : s->n;
        if (line ? blank || end > i : first)
            TRY(jinja_sb_str(r, &b, pad.s));
        TRY(jinja_sb_cut(r, &b, s, i, end - i + (nl != NULL)));
        if (!nl)
            break;
        i = end + 1;
    }
    return jinja_sb_done(r, &b, out);
}

FILTER(f_center)
{
    (void)self;
    TRY(want_str(r, &a->v[0]));
    int64_t width = !GIVEN(a->v[1]) ? 80 : a->v[1].kind == JINJA_INT ? a->v[1].i : 0;
    int64_t lack = width - (int64_t)jinja_str_len(a->v[0].s);
    int64_t left = lack > 0 ? lack / 2 + (lack & width & 1) : 0;
    struct jinja_sb b = { 0 };
    for (int64_t i = 0; i < left; i++)
        TRY(jinja_sb_adds(r, &b, " "));
    TRY(jinja_sb_str(r, &b, a->v[0].s));
    for (int64_t i = left; i < lack; i++)
        TRY(jinja_sb_adds(r, &b, " "));
    return jinja_sb_done(r, &b, out);
}

static const struct jinja_builtin table[] = {
    { "trim", f_trim, "value chars=" },
    { "upper", f_upper, "s" },
    { "lower", f_lower, "s" },
    { "title", f_title, "s" },
    { "capitalize", f_capitalize, "s" },
    { "string", f_string, "object" },
    { "length", f_length, "obj" },
    { "count", f_length, "obj" },
    { "default", f_default, "value default_value= boolean=" },
    { "d", f_default, "value default_value= boolean=" },
    { "replace", f_replace, "s old new count=" },
    { "tojson", f_tojson, "x ensure_ascii= indent= separators= sort_keys=" },
    { "int", f_int, "value default= base=" },
    { "float", f_float, "value default=" },
    { "abs", f_abs, "x" },
    { "round", f_round, "value precision= method=" },
    { "safe", f_safe, "value" },
    { "escape", f_escape, "s" },
    { "e", f_escape, "s" },
    { "forceescape", f_escape, "value" },
    { "format", f_format, "*" },
    { "wordcount", f_wordcount, "s" },
    { "indent", f_indent, "s width= first= blank=" },
    { "center", f_center, "value width=" },
};

const struct jinja_builtin *jinja_filter(const char *name)
{
    const struct jinja_builtin *b =
        jinja_find(table, sizeof table / sizeof table[0], name, strlen(name));
    return b ? b : jinja_seq_filter(name);
}
