/* str() and repr() of values.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "server/text/jinja.h"
#include "server/text/jinja_ast.h"

void jinja_float_repr(double f, char out[JINJA_FLOAT_CHARS])
{
    if (isnan(f) || isinf(f)) {
        snprintf(out, JINJA_FLOAT_CHARS, "%s", isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    char sci[JINJA_FLOAT_CHARS];
    int digits = 0;
    do
        snprintf(sci, sizeof sci, "%.*e", digits, f);
    while (strtod(sci, NULL) != f && ++digits < 17);
    long exp = strtol(strchr(sci, 'e') + 1, NULL, 10);
    if (exp >= -4 && exp < 16) {
        long decimals = digits - exp;
        snprintf(out, JINJA_FLOAT_CHARS, "%.*f", (int)(decimals < 1 ? 1 : decimals), f);
    } else {
        snprintf(out, JINJA_FLOAT_CHARS, "%.*se%c%02ld", (int)(strchr(sci, 'e') - sci), sci,
                 exp < 0 ? '-' : '+', labs(exp));
    }
}

bool jinja_any_user(const struct jinja_run *r, struct jinja_value v, int depth)
{
    if (v.kind == JINJA_STR)
        return jinja_str_user(v.s);
    if (depth > JINJA_MAX_DEPTH)
        return true;
    if (jinja_is_list(v))
        for (size_t i = 0; i < v.l->n; i++)
            if (jinja_any_user(r, v.l->v[i], depth + 1))
                return true;
    if (v.kind == JINJA_DICT || v.kind == JINJA_NAMESPACE)
        for (size_t i = 0; i < v.d->n; i++)
            if (jinja_any_user(r, v.d->v[i].key, depth + 1) ||
                jinja_any_user(r, v.d->v[i].value, depth + 1))
                return true;
    return false;
}

static bool printable(int32_t cp)
{
    if (cp < 0x7f)
        return cp >= 0x20;
    utf8proc_category_t c = utf8proc_category(cp);
    return c != UTF8PROC_CATEGORY_CN && c < UTF8PROC_CATEGORY_ZS;
}

static int repr_str(struct jinja_run *r, struct jinja_sb *b, const struct jinja_str *s)
{
    bool single = memchr(s->p, '\'', s->n) != NULL, dbl = memchr(s->p, '"', s->n) != NULL;
    char quote = single && !dbl ? '"' : '\'';
    TRY(jinja_charge(r, s->n / 16));
    TRY(jinja_sb_add(r, b, &quote, 1, false));
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        char esc[16];
        size_t k = jinja_cp(s->p + i, s->n - i, &cp);
        bool user = s->mask ? s->mask[i] : s->user;
        if (cp == quote || cp == '\\')
            snprintf(esc, sizeof esc, "\\%c", (char)cp);
        else if (cp == '\n' || cp == '\r' || cp == '\t')
            snprintf(esc, sizeof esc, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
        else if (!printable(cp))
            snprintf(esc, sizeof esc,
                     cp < 0x100     ? "\\x%02x"
                     : cp < 0x10000 ? "\\u%04x"
                                    : "\\U%08x",
                     (unsigned)cp);
        else
            esc[0] = 0;
        TRY(esc[0] ? jinja_sb_add(r, b, esc, strlen(esc), user) : jinja_sb_cut(r, b, s, i, k));
        i += k;
    }
    return jinja_sb_add(r, b, &quote, 1, false);
}

static int repr_any(struct jinja_run *r, struct jinja_sb *b, struct jinja_value v);

static int repr_items(struct jinja_run *r, struct jinja_sb *b, const struct jinja_list *l,
                      const char *open, const char *close)
{
    TRY(jinja_sb_adds(r, b, open));
    for (size_t i = 0; i < l->n; i++) {
        if (i)
            TRY(jinja_sb_adds(r, b, ", "));
        TRY(repr_any(r, b, l->v[i]));
    }
    return jinja_sb_adds(r, b, close);
}

static int repr_dict(struct jinja_run *r, struct jinja_sb *b, const struct jinja_dict *d)
{
    TRY(jinja_sb_adds(r, b, "{"));
    for (size_t i = 0; i < d->n; i++) {
        if (i)
            TRY(jinja_sb_adds(r, b, ", "));
        TRY(repr_any(r, b, d->v[i].key));
        TRY(jinja_sb_adds(r, b, ": "));
        TRY(repr_any(r, b, d->v[i].value));
    }
    return jinja_sb_adds(r, b, "}");
}

static int repr_range(struct jinja_run *r, struct jinja_sb *b, const int64_t v[3])
{
    char text[80];
    if (v[2] == 1)
        snprintf(text, sizeof text, "range(%" PRId64 ", %" PRId64 ")", v[0], v[1]);
    else
        snprintf(text, sizeof text, "range(%" PRId64 ", %" PRId64 ", %" PRId64 ")", v[0], v[1],
                 v[2]);
    return jinja_sb_adds(r, b, text);
}

static int repr_any(struct jinja_run *r, struct jinja_sb *b, struct jinja_value v)
{
    char text[80];
    int rc;
    TRY(jinja_enter(r));
    TRY(jinja_charge(r, 1));
    switch (v.kind) {
    case JINJA_NONE: rc = jinja_sb_adds(r, b, "None"); break;
    case JINJA_BOOL: rc = jinja_sb_adds(r, b, v.b ? "True" : "False"); break;
    case JINJA_INT:
        snprintf(text, sizeof text, "%" PRId64, v.i);
        rc = jinja_sb_adds(r, b, text);
        break;
    case JINJA_FLOAT:
        jinja_float_repr(v.f, text);
        rc = jinja_sb_adds(r, b, text);
        break;
    case JINJA_STR: rc = repr_str(r, b, v.s); break;
    case JINJA_LIST: rc = repr_items(r, b, v.l, "[", "]"); break;
    case JINJA_TUPLE: rc = repr_items(r, b, v.l, "(", v.l->n == 1 ? ",)" : ")"); break;
    case JINJA_RANGE: rc = repr_range(r, b, v.l->range); break;
    case JINJA_VIEW:
        rc = jinja_sb_adds(r, b, v.l->type);
        rc = rc ? rc : repr_items(r, b, v.l, "([", "])");
        break;
    case JINJA_DICT: rc = repr_dict(r, b, v.d); break;
    case JINJA_NAMESPACE:
        rc = jinja_sb_adds(r, b, "<Namespace ");
        rc = rc ? rc : repr_dict(r, b, v.d);
        rc = rc ? rc : jinja_sb_adds(r, b, ">");
        break;
    case JINJA_UNDEF: rc = jinja_sb_adds(r, b, "Undefined"); break;
    case JINJA_MISSING:
    case JINJA_ITER:
    case JINJA_FUNC:
    case JINJA_LOOP:
    case JINJA_SLICE:
    default:
        if (v.kind == JINJA_FUNC && v.fn->macro)
            snprintf(text, sizeof text, "<Macro '%.48s'>", v.fn->macro->name);
        else
            snprintf(text, sizeof text, "<%s>", jinja_type_name(v));
        rc = jinja_sb_adds(r, b, text);
    }
    jinja_leave(r);
    return rc;
}

int jinja_repr(struct jinja_run *r, struct jinja_value v, struct jinja_value *out)
{
    struct jinja_sb b = { 0 };
    TRY(repr_any(r, &b, v));
    if (v.kind != JINJA_STR && jinja_any_user(r, v, 0)) {
        /* one run for a whole printed object: its brackets are no tokens to recognise */
        b.mask = NULL;
        b.user = true;
    }
    return jinja_sb_done(r, &b, out);
}

int jinja_to_str(struct jinja_run *r, struct jinja_value v, struct jinja_value *out)
{
    if (v.kind == JINJA_STR) {
        *out = v;
        return 0;
    }
    if (v.kind == JINJA_UNDEF)
        return jinja_str_new(r, "", 0, false, out);
    return jinja_repr(r, v, out);
}

int jinja_sb_value(struct jinja_run *r, struct jinja_sb *b, struct jinja_value v)
{
    struct jinja_value s;
    TRY(jinja_to_str(r, v, &s));
    return jinja_sb_str(r, b, s.s);
}
