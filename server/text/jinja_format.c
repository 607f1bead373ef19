/* Text from a pattern: "..." % args and "...".format(args).
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/text/jinja.h"

#define WIDTH_MAX  4096
#define DIGITS_MAX 100

struct spec {
    char fill[4];
    size_t n_fill;
    char align; /* < > ^ = or 0 */
    char sign;  /* + space or 0 */
    bool alt, comma;
    int width, prec; /* prec -1: not given */
    char type;       /* 0: by the value */
};

static int pad(struct jinja_run *r, struct jinja_sb *b, const struct spec *sp,
               const struct jinja_str *s, char align)
{
    size_t n = jinja_str_len(s), lack = (size_t)sp->width > n ? (size_t)sp->width - n : 0;
    size_t left = align == '>' || align == '=' ? lack : align == '^' ? lack / 2 : 0;
    size_t sign = align == '=' && s->n && strchr("+- ", s->p[0]) ? 1 : 0;
    TRY(jinja_sb_cut(r, b, s, 0, sign));
    for (size_t i = 0; i < left; i++)
        TRY(jinja_sb_add(r, b, sp->fill, sp->n_fill, false));
    TRY(jinja_sb_cut(r, b, s, sign, s->n - sign));
    for (size_t i = left; i < lack; i++)
        TRY(jinja_sb_add(r, b, sp->fill, sp->n_fill, false));
    return 0;
}

static void group(char *text, size_t size)
{
    size_t from = text[0] == '-' || text[0] == '+' || text[0] == ' ';
    size_t digits = strspn(text + from, "0123456789");
    for (size_t at = digits; at > 3; at -= 3) {
        size_t n = strlen(text);
        if (n + 2 > size)
            return;
        memmove(text + from + at - 2, text + from + at - 3, n - (from + at - 3) + 1);
        text[from + at - 3] = ',';
    }
}

static int format_number(struct jinja_run *r, struct jinja_sb *b, const struct spec *sp,
                         struct jinja_value v)
{
    char text[600], *p = text;
    double f = v.kind == JINJA_FLOAT ? v.f : (double)jinja_as_int(v);
    bool neg = v.kind == JINJA_FLOAT ? signbit(f) != 0 : jinja_as_int(v) < 0;
    if (neg || sp->sign)
        *p++ = neg ? '-' : sp->sign;
    size_t room = sizeof text - 2;
    int prec = sp->prec < 0 ? 6 : sp->prec;
    char t = sp->type;
    if (t && strchr("fFeEgG%", t)) {
        double x = fabs(f) * (t == '%' ? 100 : 1);
        if (t == 'e' || t == 'E')
            snprintf(p, room, t == 'e' ? "%.*e" : "%.*E", prec, x);
        else if (t == 'g' || t == 'G')
            snprintf(p, room, t == 'g' ? "%.*g" : "%.*G", prec, x);
        else
            snprintf(p, room, t == '%' ? "%.*f%%" : "%.*f", prec, x);
    } else if (v.kind == JINJA_FLOAT) {
        if (sp->prec >= 0)
            snprintf(p, room, "%.*g", prec, fabs(f));
        else
            jinja_float_repr(fabs(f), p);
    } else {
        uint64_t u = neg ? 0 - (uint64_t)jinja_as_int(v) : (uint64_t)jinja_as_int(v);
        const char *alt = !sp->alt ? "" : t == 'x' ? "0x" : t == 'X' ? "0X" : t == 'o' ? "0o" : "";
        if (t == 'x' || t == 'X')
            snprintf(p, room, t == 'x' ? "%s%" PRIx64 : "%s%" PRIX64, alt, u);
        else if (t == 'o')
            snprintf(p, room, "%s%" PRIo64, alt, u);
        else
            snprintf(p, room, "%" PRIu64, u);
    }
    if (sp->comma)
        group(text, sizeof text);
    struct jinja_str s = { .p = text, .n = strlen(text) };
    return pad(r, b, sp, &s, sp->align ? sp->align : '>');
}

static int format_str(struct jinja_run *r, struct jinja_sb *b, const struct spec *sp,
                      struct jinja_value v, char align)
{
    if (sp->prec >= 0)
        TRY(jinja_str_cut(r, v.s, 0, jinja_str_at(v.s, (size_t)sp->prec), &v));
    return pad(r, b, sp, v.s, align);
}

static int read_int(struct jinja_run *r, const struct jinja_str *s, size_t *i, int max, int *out)
{
    int v = 0;
    for (; *i < s->n && s->p[*i] >= '0' && s->p[*i] <= '9'; ++*i) {
        v = v * 10 + (s->p[*i] - '0');
        if (v > max)
            return jinja_fail(r, "format: width or precision over %d", max);
    }
    *out = v;
    return 0;
}

/* ---- % ---- */

static int percent_arg(struct jinja_run *r, const struct jinja_str *f, size_t *i, bool bare,
                       const struct jinja_args *a, size_t *used, struct jinja_value *out)
{
    const struct jinja_dict *named = bare && a->pos[0].kind == JINJA_DICT ? a->pos[0].d : NULL;
    if (*i >= f->n || f->p[*i] != '(')
        return 0;
    const char *end = memchr(f->p + *i, ')', f->n - *i);
    if (!end || (!named && !a->n_kw))
        return jinja_fail(r, "format requires a mapping");
    struct jinja_str name = { .p = f->p + *i + 1, .n = (size_t)(end - f->p) - *i - 1 };
    struct jinja_value key = { .kind = JINJA_STR, .s = &name };
    *i = (size_t)(end - f->p) + 1;
    *used = a->n_pos;
    int rc = named ? jinja_dict_get(r, named, key, out) : 0;
    for (size_t k = 0; k < a->n_kw && !named && !rc; k++)
        if (jinja_str_cmp(a->kw[k].key.s, &name) == 0) {
            *out = a->kw[k].value;
            rc = 1;
        }
    return rc ? rc : jinja_fail(r, "format: no such key");
}

static int percent_spec(struct jinja_run *r, const struct jinja_str *f, size_t *i, struct spec *sp)
{
    *sp = (struct spec){ .fill = " ", .n_fill = 1, .prec = -1 };
    for (; *i < f->n && f->p[*i] && strchr("-+ #0", f->p[*i]); ++*i) {
        char c = f->p[*i];
        if (c == '-')
            sp->align = '<';
        else if (c == '0')
            sp->fill[0] = '0';
        else if (c == '#')
            sp->alt = true;
        else if (c == '+' || !sp->sign)
            sp->sign = c;
    }
    TRY(read_int(r, f, i, WIDTH_MAX, &sp->width));
    if (*i < f->n && f->p[*i] == '.') {
        ++*i;
        TRY(read_int(r, f, i, DIGITS_MAX, &sp->prec));
    }
    if (*i >= f->n)
        return jinja_fail(r, "incomplete format");
    sp->type = f->p[(*i)++];
    return 0;
}

static int percent_one(struct jinja_run *r, struct jinja_sb *b, struct spec *sp,
                       struct jinja_value v)
{
    if (sp->type == 's' || sp->type == 'r') {
        TRY(sp->type == 's' ? jinja_to_str(r, v, &v) : jinja_repr(r, v, &v));
        sp->fill[0] = ' ';
        return format_str(r, b, sp, v, sp->align ? sp->align : '>');
    }
    if (sp->type == 'c' && v.kind == JINJA_STR && jinja_str_len(v.s) == 1)
        return format_str(r, b, sp, v, sp->align ? sp->align : '>');
    if (!sp->type || !strchr("diufFeEgGxXo", sp->type))
        return jinja_fail(r, "unsupported format character");
    if (!jinja_is_num(v))
        return jinja_fail(r, "%%%c format: a number is required, not %s", sp->type,
                          jinja_type_name(v));
    if (strchr("diu", sp->type)) {
        sp->type = 0;
        sp->prec = -1;
        if (v.kind == JINJA_FLOAT) {
            if (!(fabs(v.f) < 9e18))
                return jinja_fail(r, "integer overflow");
            v = jinja_int((int64_t)v.f);
        }
    } else if (v.kind == JINJA_FLOAT && strchr("xXo", sp->type)) {
        return jinja_fail(r, "%%%c format: an integer is required, not float", sp->type);
    }
    if (!sp->align)
        sp->align = sp->fill[0] == '0' ? '=' : '>';
    else
        sp->fill[0] = ' ';
    return format_number(r, b, sp, v);
}

int jinja_percent(struct jinja_run *r, const struct jinja_str *f, const struct jinja_args *a,
                  bool bare, struct jinja_value *out)
{
    struct jinja_sb b = { 0 };
    size_t used = 0, from = 0;
    for (size_t i = 0; i < f->n;) {
        if (f->p[i] != '%') {
            i++;
            continue;
        }
        TRY(jinja_sb_cut(r, &b, f, from, i - from));
        struct jinja_value v = { .kind = JINJA_MISSING };
        struct spec sp;
        i++;
        int rc = percent_arg(r, f, &i, bare, a, &used, &v);
        if (rc < 0)
            return rc;
        TRY(percent_spec(r, f, &i, &sp));
        from = i;
        if (sp.type == '%') {
            TRY(jinja_sb_cut(r, &b, f, i - 1, 1));
            continue;
        }
        if (v.kind == JINJA_MISSING) {
            if (used >= a->n_pos)
                return jinja_fail(r, "not enough arguments for format string");
            v = a->pos[used++];
        }
        TRY(percent_one(r, &b, &sp, v));
    }
    bool mapping = bare && (a->pos[0].kind == JINJA_DICT || a->pos[0].kind == JINJA_LIST ||
                            a->pos[0].kind == JINJA_RANGE); /* what has [] may stay unused */
    if (used < a->n_pos && !mapping)
        return jinja_fail(r, "not all arguments converted during string formatting");
    TRY(jinja_sb_cut(r, &b, f, from, f->n - from));
    return jinja_sb_done(r, &b, out);
}

/* ---- format ---- */

static int read_spec(struct jinja_run *r, const struct jinja_str *s, struct spec *sp)
{
    size_t i = 0;
    int32_t cp = 0;
    *sp = (struct spec){ .fill = " ", .n_fill = 1, .prec = -1 };
    size_t k = s->n ? jinja_cp(s->p, s->n, &cp) : 0;
    if (k && k < s->n && strchr("<>^=", s->p[k])) {
        memcpy(sp->fill, s->p, k);
        sp->n_fill = k;
        sp->align = s->p[k];
        i = k + 1;
    } else if (s->n && strchr("<>^=", s->p[0])) {
        sp->align = s->p[i++];
    }
    if (i < s->n && strchr("+- ", s->p[i])) {
        sp->sign = s->p[i] == '-' ? 0 : s->p[i];
        i++;
    }
    if (i < s->n && s->p[i] == '#') {
        sp->alt = true;
        i++;
    }
    if (i < s->n && s->p[i] == '0') {
        if (!sp->align) {
            sp->align = '=';
            sp->fill[0] = '0';
        }
        i++;
    }
    TRY(read_int(r, s, &i, WIDTH_MAX, &sp->width));
    if (i < s->n && s->p[i] == ',') {
        sp->comma = true;
        i++;
    }
    if (i < s->n && s->p[i] == '.') {
        i++;
        TRY(read_int(r, s, &i, DIGITS_MAX, &sp->prec));
    }
    if (i < s->n)
        sp->type = s->p[i++];
    return i == s->n ? 0 : jinja_fail(r, "invalid format specifier");
}

static int apply_spec(struct jinja_run *r, struct jinja_sb *b, const struct jinja_str *text,
                      struct jinja_value v)
{
    struct spec sp;
    TRY(read_spec(r, text, &sp));
    bool num = v.kind == JINJA_INT || v.kind == JINJA_FLOAT || (v.kind == JINJA_BOOL && text->n);
    if (num && !(sp.type && strchr("dnfFeEgGxXo%", sp.type)) && sp.type)
        return jinja_fail(r, "unknown format code for an object of type '%s'", jinja_type_name(v));
    if (num) {
        if (v.kind == JINJA_FLOAT && sp.type && strchr("dxXo", sp.type))
            return jinja_fail(r, "unknown format code '%c' for an object of type 'float'", sp.type);
        if (sp.type == 'd' || sp.type == 'n')
            sp.type = 0;
        return format_number(r, b, &sp, v);
    }
    if (sp.type && sp.type != 's')
        return jinja_fail(r, "unknown format code for an object of type '%s'", jinja_type_name(v));
    if (v.kind != JINJA_STR && text->n)
        return jinja_fail(r, "unsupported format string passed to %s", jinja_type_name(v));
    TRY(jinja_to_str(r, v, &v));
    return format_str(r, b, &sp, v, sp.align ? sp.align : '<');
}

static bool all_digits(const struct jinja_str *s)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->p[i] < '0' || s->p[i] > '9')
            return false;
    return s->n > 0 && s->n < 10;
}

static int64_t digits_value(const struct jinja_str *s)
{
    int64_t v = 0;
    for (size_t i = 0; i < s->n; i++)
        v = v * 10 + (s->p[i] - '0');
    return v;
}

/* The value a field names: a position or a name, then .attr and [key]. *next counts the {}; SIZE_MAX after a {0}. */
static int field_value(struct jinja_run *r, const struct jinja_str *f, const struct jinja_args *a,
                       size_t *next, struct jinja_value *out)
{
    size_t end = 0;
    while (end < f->n && f->p[end] != '.' && f->p[end] != '[')
        end++;
    struct jinja_str head = { .p = f->p, .n = end };
    if (!head.n || all_digits(&head)) {
        size_t i = head.n ? (size_t)digits_value(&head) : *next;
        if (head.n ? *next && *next != SIZE_MAX : *next == SIZE_MAX)
            return jinja_fail(r, "format: cannot mix {} and {0}");
        *next = head.n ? SIZE_MAX : *next + 1;
        if (i >= a->n_pos)
            return jinja_fail(r, "format: replacement index %zu out of range", i);
        *out = a->pos[i];
    } else {
        size_t i = 0;
        while (i < a->n_kw && jinja_str_cmp(a->kw[i].key.s, &head) != 0)
            i++;
        if (i == a->n_kw)
            return jinja_fail(r, "format: no such key");
        *out = a->kw[i].value;
    }
    while (end < f->n) {
        bool item = f->p[end] == '[';
        size_t from = ++end;
        while (end < f->n && (item ? f->p[end] != ']' : f->p[end] != '.' && f->p[end] != '['))
            end++;
        struct jinja_str part = { .p = f->p + from, .n = end - from };
        struct jinja_value key = { .kind = JINJA_STR, .s = &part }, v;
        if (item && all_digits(&part))
            key = jinja_int(digits_value(&part));
        TRY(item ? jinja_getitem(r, *out, key, &v) : jinja_getattr(r, *out, key, &v));
        *out = v;
        end += item;
    }
    return 0;
}

static int format_field(struct jinja_run *r, struct jinja_sb *b, const struct jinja_str *f,
                        const struct jinja_args *a, size_t *next)
{
    const char *colon = memchr(f->p, ':', f->n);
    size_t name_n = colon ? (size_t)(colon - f->p) : f->n;
    struct jinja_str spec = { .p = f->p + name_n + (colon != NULL) };
    spec.n = f->n - (size_t)(spec.p - f->p);
    const char *bang = memchr(f->p, '!', name_n);
    char conv = 0;
    if (bang) {
        if (bang + 2 != f->p + name_n || (bang[1] != 'r' && bang[1] != 's'))
            return jinja_fail(r, "format: unsupported conversion");
        conv = bang[1];
        name_n -= 2;
    }
    if (memchr(spec.p, '{', spec.n))
        return jinja_fail(r, "format: nested fields are not supported");
    struct jinja_str name = { .p = f->p, .n = name_n };
    struct jinja_value v;
    TRY(field_value(r, &name, a, next, &v));
    if (conv)
        TRY(conv == 'r' ? jinja_repr(r, v, &v) : jinja_to_str(r, v, &v));
    return apply_spec(r, b, &spec, v);
}

int jinja_format(struct jinja_run *r, const struct jinja_str *f, const struct jinja_args *a,
                 struct jinja_value *out)
{
    struct jinja_sb b = { 0 };
    size_t next = 0;
    for (size_t i = 0; i < f->n;) {
        char c = f->p[i];
        if ((c == '{' || c == '}') && i + 1 < f->n && f->p[i + 1] == c) {
            TRY(jinja_sb_cut(r, &b, f, i, 1));
            i += 2;
        } else if (c == '{') {
            size_t end = i + 1;
            for (int depth = 1; end < f->n; end++) {
                depth += (f->p[end] == '{') - (f->p[end] == '}');
                if (!depth)
                    break;
            }
            if (end >= f->n)
                return jinja_fail(r, "format: '}' is missing");
            struct jinja_str field = { .p = f->p + i + 1, .n = end - i - 1 };
            TRY(format_field(r, &b, &field, a, &next));
            i = end + 1;
        } else if (c == '}') {
            return jinja_fail(r, "format: single '}'");
        } else {
            size_t n = 1;
            while (i + n < f->n && f->p[i + n] != '{' && f->p[i + n] != '}')
                n++;
            TRY(jinja_sb_cut(r, &b, f, i, n));
            i += n;
        }
    }
    return jinja_sb_done(r, &b, out);
}
