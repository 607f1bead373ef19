/* JSON to values, and the tojson filter: json.dumps with ensure_ascii, indent, separators and sort_keys.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/text/jinja.h"

static int from_object(struct jinja_run *r, const json_t *j, bool user, struct jinja_value *out)
{
    struct jinja_value d, k, v;
    TRY(jinja_dict_new(r, json_object_size(j), &d));
    json_t *obj = (json_t *)(uintptr_t)j; /* iterators take no const; nothing is changed */
    for (void *it = json_object_iter(obj); it; it = json_object_iter_next(obj, it)) {
        const char *key = json_object_iter_key(it);
        TRY(jinja_str_new(r, key, strlen(key), user, &k));
        TRY(jinja_from_json(r, json_object_iter_value(it), user, &v));
        TRY(jinja_dict_set(r, d.d, k, v));
    }
    *out = d;
    return 0;
}

int jinja_from_json(struct jinja_run *r, const json_t *j, bool user, struct jinja_value *out)
{
    struct jinja_value v = JINJA_NIL, item;
    TRY(jinja_enter(r));
    if (json_is_object(j)) {
        TRY(from_object(r, j, user, &v));
    } else if (json_is_array(j)) {
        TRY(jinja_list_new(r, JINJA_LIST, json_array_size(j), &v));
        for (size_t i = 0; i < json_array_size(j); i++) {
            TRY(jinja_from_json(r, json_array_get(j, i), user, &item));
            TRY(jinja_list_add(r, v.l, item));
        }
    } else if (json_is_string(j)) {
        TRY(jinja_str_new(r, json_string_value(j), json_string_length(j), user, &v));
    } else if (json_is_integer(j)) {
        v = jinja_int(json_integer_value(j));
    } else if (json_is_real(j)) {
        v = jinja_float(json_real_value(j));
    } else if (json_is_boolean(j)) {
        v = jinja_bool(json_is_true(j));
    }
    *out = v;
    jinja_leave(r);
    return 0;
}

struct dump {
    struct jinja_sb b;
    bool ascii, sort, pretty;
    struct jinja_value indent, comma, colon; /* strings */
    int level;
};

static int dump_escaped(struct jinja_run *r, struct dump *d, int32_t cp, bool user)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    const char *at = cp && cp < 128 ? strchr(plain, (char)cp) : NULL;
    char esc[16];
    if (at)
        snprintf(esc, sizeof esc, "\\%c", letter[at - plain]);
    else if (cp < 0x10000)
        snprintf(esc, sizeof esc, "\\u%04x", (unsigned)cp);
    else
        snprintf(esc, sizeof esc, "\\u%04x\\u%04x", 0xd7c0u + ((unsigned)cp >> 10),
                 0xdc00u + ((unsigned)cp & 0x3ff));
    return jinja_sb_add(r, &d->b, esc, strlen(esc), user);
}

static int dump_str(struct jinja_run *r, struct dump *d, const struct jinja_str *s)
{
    TRY(jinja_charge(r, s->n / 16));
    TRY(jinja_sb_adds(r, &d->b, "\""));
    size_t done = 0;
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        size_t k = jinja_cp(s->p + i, s->n - i, &cp);
        if (cp < 0x20 || cp == '"' || cp == '\\' || (d->ascii && cp > 0x7e)) {
            TRY(jinja_sb_cut(r, &d->b, s, done, i - done));
            TRY(dump_escaped(r, d, cp, s->mask ? s->mask[i] : s->user));
            done = i + k;
        }
        i += k;
    }
    TRY(jinja_sb_cut(r, &d->b, s, done, s->n - done));
    return jinja_sb_adds(r, &d->b, "\"");
}

static int dump_scalar(struct jinja_run *r, struct dump *d, struct jinja_value v)
{
    char text[JINJA_FLOAT_CHARS];
    if (v.kind == JINJA_STR)
        return dump_str(r, d, v.s);
    if (v.kind == JINJA_INT) {
        snprintf(text, sizeof text, "%" PRId64, v.i);
        return jinja_sb_adds(r, &d->b, text);
    }
    if (v.kind == JINJA_FLOAT) {
        jinja_float_repr(v.f, text);
        return jinja_sb_adds(r, &d->b,
                             isnan(v.f)   ? "NaN"
                             : isinf(v.f) ? (v.f < 0 ? "-Infinity" : "Infinity")
                                          : text);
    }
    if (v.kind != JINJA_NONE && v.kind != JINJA_BOOL)
        return jinja_fail(r, "object of type %s is not JSON serializable", jinja_type_name(v));
    return jinja_sb_adds(r, &d->b, v.kind == JINJA_NONE ? "null" : v.b ? "true" : "false");
}

static int dump_newline(struct jinja_run *r, struct dump *d)
{
    if (!d->pretty)
        return 0;
    TRY(jinja_sb_adds(r, &d->b, "\n"));
    for (int i = 0; i < d->level; i++)
        TRY(jinja_sb_str(r, &d->b, d->indent.s));
    return 0;
}

static int dump_key(struct jinja_run *r, struct dump *d, struct jinja_value k)
{
    if (k.kind != JINJA_STR && k.kind != JINJA_NONE && !jinja_is_num(k))
        return jinja_fail(r, "keys must be str, int, float, bool or None, not %s",
                          jinja_type_name(k));
    if (k.kind != JINJA_STR)
        TRY(jinja_sb_adds(r, &d->b, "\""));
    TRY(dump_scalar(r, d, k));
    if (k.kind != JINJA_STR)
        TRY(jinja_sb_adds(r, &d->b, "\""));
    return jinja_sb_str(r, &d->b, d->colon.s);
}

/* Order of the keys under sort_keys: an insertion sort by jinja_cmp, charged a step a comparison. */
static int sorted_pairs(struct jinja_run *r, const struct jinja_dict *d, struct jinja_pair **out)
{
    struct jinja_pair *v = jinja_alloc(r, d->n * sizeof *v);
    if (!v)
        return jinja_alloc_code(r);
    for (size_t i = 0; i < d->n; i++) {
        size_t at = i;
        for (int c = 1; at > 0; at--) {
            TRY(jinja_charge(r, 1));
            TRY(jinja_cmp(r, v[at - 1].key, d->v[i].key, &c));
            if (c <= 0)
                break;
            v[at] = v[at - 1];
        }
        v[at] = d->v[i];
    }
    *out = v;
    return 0;
}

static int dump_value(struct jinja_run *r, struct dump *d, struct jinja_value v)
{
    bool is_dict = v.kind == JINJA_DICT;
    TRY(jinja_charge(r, 1));
    if (!is_dict && v.kind != JINJA_LIST && v.kind != JINJA_TUPLE)
        return dump_scalar(r, d, v);
    TRY(jinja_enter(r));
    size_t n = is_dict ? v.d->n : v.l->n;
    struct jinja_pair *pairs = is_dict ? v.d->v : NULL;
    if (is_dict && d->sort)
        TRY(sorted_pairs(r, v.d, &pairs));
    TRY(jinja_sb_adds(r, &d->b, is_dict ? "{" : "["));
    d->level++;
    for (size_t i = 0; i < n; i++) {
        if (i)
            TRY(jinja_sb_str(r, &d->b, d->comma.s));
        TRY(dump_newline(r, d));
        if (is_dict)
            TRY(dump_key(r, d, pairs[i].key));
        TRY(dump_value(r, d, is_dict ? pairs[i].value : v.l->v[i]));
    }
    d->level--;
    if (n)
        TRY(dump_newline(r, d));
    jinja_leave(r);
    return jinja_sb_adds(r, &d->b, is_dict ? "}" : "]");
}

static int dump_setup(struct jinja_run *r, const struct jinja_value *v, struct dump *d)
{
    d->ascii = v[1].kind != JINJA_MISSING && jinja_truth(v[1]);
    d->sort = v[4].kind != JINJA_MISSING && jinja_truth(v[4]);
    d->pretty = v[2].kind != JINJA_MISSING && v[2].kind != JINJA_NONE;
    if (d->pretty && v[2].kind == JINJA_STR) {
        d->indent = v[2];
    } else if (d->pretty) {
        struct jinja_value space;
        if (v[2].kind != JINJA_INT && v[2].kind != JINJA_BOOL)
            return jinja_fail(r, "tojson: indent must be a number or a string");
        TRY(jinja_str_new(r, " ", 1, false, &space));
        TRY(jinja_binary(r, 2 /* OP_MUL */, space, v[2], &d->indent));
    }
    if (v[3].kind != JINJA_MISSING && v[3].kind != JINJA_NONE) {
        if ((v[3].kind != JINJA_LIST && v[3].kind != JINJA_TUPLE) || v[3].l->n != 2 ||
            v[3].l->v[0].kind != JINJA_STR || v[3].l->v[1].kind != JINJA_STR)
            return jinja_fail(r, "tojson: separators must be two strings");
        d->comma = v[3].l->v[0];
        d->colon = v[3].l->v[1];
        return 0;
    }
    TRY(jinja_str_new(r, ", ", d->pretty ? 1 : 2, false, &d->comma));
    return jinja_str_new(r, ": ", 2, false, &d->colon);
}

int jinja_json(struct jinja_run *r, struct jinja_args *a, struct jinja_value *out)
{
    struct dump d = { 0 };
    TRY(dump_setup(r, a->v, &d));
    TRY(dump_value(r, &d, a->v[0]));
    if (jinja_any_user(r, a->v[0], 0)) { /* see jinja_repr */
        d.b.mask = NULL;
        d.b.user = true;
    }
    return jinja_sb_done(r, &d.b, out);
}
