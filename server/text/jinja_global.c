/* Functions a template can call by name: range, namespace, dict, joiner, cycler, raise_exception, strftime_now.
 */
#include <string.h>
#include <time.h>

#include "server/text/jinja.h"

#define RANGE_MAX 100000 /* as in jinja2's sandbox */

static int int_arg(struct jinja_run *r, struct jinja_value v, int64_t dflt, int64_t *out)
{
    if (v.kind == JINJA_UNDEF)
        return jinja_fail_undef(r, v);
    if (v.kind != JINJA_MISSING && v.kind != JINJA_INT && v.kind != JINJA_BOOL)
        return jinja_fail(r, "'%s' object cannot be interpreted as an integer", jinja_type_name(v));
    *out = v.kind == JINJA_MISSING ? dflt : jinja_as_int(v);
    return 0;
}

static int g_range(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                   struct jinja_value *out)
{
    (void)self;
    bool one = a->v[1].kind == JINJA_MISSING;
    int64_t from = 0, to = 0, step = 1;
    if (!one)
        TRY(int_arg(r, a->v[0], 0, &from));
    TRY(int_arg(r, a->v[one ? 0 : 1], 0, &to));
    TRY(int_arg(r, a->v[2], 1, &step));
    if (!step)
        return jinja_fail(r, "range() arg 3 must not be zero");
    struct jinja_value l;
    TRY(jinja_list_new(r, JINJA_RANGE, 0, &l));
    memcpy(l.l->range, (int64_t[]){ from, to, step }, sizeof l.l->range);
    for (int64_t i = from; step > 0 ? i < to : i > to;) {
        if (l.l->n == RANGE_MAX)
            return err_set(r->e, ERR_LIMIT, "template line %u: range over %d items", r->line,
                           RANGE_MAX);
        TRY(jinja_list_add(r, l.l, jinja_int(i)));
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    *out = l;
    return 0;
}

/* dict(mapping or pairs, name=value...) */
static int g_dict(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                  struct jinja_value *out)
{
    (void)self;
    struct jinja_value d;
    TRY(jinja_dict_new(r, 0, &d));
    if (a->n_pos > 1)
        return jinja_fail(r, "dict expected at most 1 argument, got %zu", a->n_pos);
    if (a->n_pos && a->pos[0].kind == JINJA_DICT) {
        for (size_t i = 0; i < a->pos[0].d->n; i++)
            TRY(jinja_dict_set(r, d.d, a->pos[0].d->v[i].key, a->pos[0].d->v[i].value));
    } else if (a->n_pos) {
        struct jinja_list *l, *pair;
        TRY(jinja_iter(r, a->pos[0], &l));
        for (size_t i = 0; i < l->n; i++) {
            TRY(jinja_iter(r, l->v[i], &pair));
            if (pair->n != 2)
                return jinja_fail(
                    r, "dictionary update sequence element has length %zu; 2 is required", pair->n);
            TRY(jinja_dict_set(r, d.d, pair->v[0], pair->v[1]));
        }
    }
    for (size_t i = 0; i < a->n_kw; i++)
        TRY(jinja_dict_set(r, d.d, a->kw[i].key, a->kw[i].value));
    *out = d;
    return 0;
}

static int g_namespace(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                       struct jinja_value *out)
{
    struct jinja_value d;
    TRY(g_dict(r, self, a, &d));
    for (size_t i = 0; i < d.d->n; i++)
        if (d.d->v[i].key.kind == JINJA_STR && d.d->v[i].key.s->n && d.d->v[i].key.s->p[0] == '_')
            return jinja_fail(r, "a namespace cannot store names that begin with _");
    d.kind = JINJA_NAMESPACE;
    *out = d;
    return 0;
}

/* The object: nothing the first time, then its separator. */
static int joiner_call(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                       struct jinja_value *out)
{
    (void)a;
    if (self->i++)
        *out = self->self;
    else
        TRY(jinja_str_new(r, "", 0, false, out));
    return 0;
}

static const struct jinja_builtin joiner_object = { "joiner", joiner_call, "" };

static int g_joiner(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                    struct jinja_value *out)
{
    (void)self;
    if (a->v[0].kind == JINJA_MISSING)
        TRY(jinja_str_new(r, ", ", 2, false, &a->v[0]));
    return jinja_func_new(r, &joiner_object, a->v[0], out);
}

static int cycler_call(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                       struct jinja_value *out)
{
    (void)self, (void)a, (void)out;
    return jinja_fail(r, "'Cycler' object is not callable");
}

static const struct jinja_builtin cycler_object = { "cycler", cycler_call, "*" };

static int g_cycler(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                    struct jinja_value *out)
{
    (void)self;
    struct jinja_value items;
    if (!a->n_pos)
        return jinja_fail(r, "at least one item has to be provided");
    TRY(jinja_list_new(r, JINJA_TUPLE, a->n_pos, &items));
    for (size_t i = 0; i < a->n_pos; i++)
        TRY(jinja_list_add(r, items.l, a->pos[i]));
    return jinja_func_new(r, &cycler_object, items, out);
}

static int g_raise(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                   struct jinja_value *out)
{
    struct jinja_value s;
    (void)self, (void)out;
    TRY(jinja_to_str(r, a->v[0], &s));
    return jinja_fail(r, "%.*s", (int)(s.s->n < 400 ? s.s->n : 400), s.s->p);
}

static int g_strftime(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                      struct jinja_value *out)
{
    char fmt[256], text[1024];
    struct tm tm;
    time_t t = (time_t)r->now;
    (void)self;
    if (a->v[0].kind != JINJA_STR || a->v[0].s->n >= sizeof fmt)
        return jinja_fail(r, "strftime_now() takes a short string");
    memcpy(fmt, a->v[0].s->p, a->v[0].s->n);
    fmt[a->v[0].s->n] = 0;
    if (!localtime_r(&t, &tm))
        return jinja_fail(r, "strftime_now(): no such time");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t n = strftime(text, sizeof text, fmt, &tm); /* the format is the template's own */
#pragma GCC diagnostic pop
    return jinja_str_new(r, text, n, jinja_str_user(a->v[0].s), out);
}

static const struct jinja_builtin table[] = {
    { "range", g_range, "start stop= step=" },
    { "dict", g_dict, "*" },
    { "namespace", g_namespace, "*" },
    { "joiner", g_joiner, "sep=" },
    { "cycler", g_cycler, "*" },
    { "raise_exception", g_raise, "message" },
    { "strftime_now", g_strftime, "format" },
};

const struct jinja_builtin *jinja_global(const char *name)
{
    return jinja_find(table, sizeof table / sizeof table[0], name, strlen(name));
}
