/* Methods and properties of dicts, lists, loops, cyclers and groups. Those that would change a list or a dict are hidden,
 * as in jinja2's immutable sandbox. The methods of strings are in jinja_method.c.
 */
#include <string.h>

#include "server/text/jinja.h"

#define METHOD(fn_name)                                                                            \
    static int fn_name(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,         \
                       struct jinja_value *out)

METHOD(d_get)
{
    const struct jinja_dict *d = self->self.d;
    int rc = jinja_dict_get(r, d, a->v[0], out);
    if (!rc)
        *out = a->v[1].kind == JINJA_MISSING ? JINJA_NIL : a->v[1];
    return rc < 0 ? rc : 0;
}

static int view(struct jinja_run *r, const struct jinja_dict *d, const char *type,
                struct jinja_value *out)
{
    struct jinja_value l, t;
    TRY(jinja_list_new(r, JINJA_VIEW, d->n, &l));
    l.l->type = type;
    for (size_t i = 0; i < d->n; i++) {
        TRY(jinja_charge(r, 1));
        t = strcmp(type, "dict_keys") == 0 ? d->v[i].key : d->v[i].value;
        if (strcmp(type, "dict_items") == 0) {
            TRY(jinja_list_new(r, JINJA_TUPLE, 2, &t));
            TRY(jinja_list_add(r, t.l, d->v[i].key));
            TRY(jinja_list_add(r, t.l, d->v[i].value));
        }
        TRY(jinja_list_add(r, l.l, t));
    }
    *out = l;
    return 0;
}

METHOD(d_items)
{
    (void)a;
    return view(r, self->self.d, "dict_items", out);
}

METHOD(d_keys)
{
    (void)a;
    return view(r, self->self.d, "dict_keys", out);
}

METHOD(d_values)
{
    (void)a;
    return view(r, self->self.d, "dict_values", out);
}

METHOD(d_copy)
{
    (void)r, (void)a;
    *out = self->self; /* nothing can change it */
    return 0;
}

METHOD(l_index)
{
    const struct jinja_list *l = self->self.l;
    for (size_t i = 0; i < l->n; i++) {
        TRY(jinja_charge(r, 1));
        int eq = jinja_eq(r, l->v[i], a->v[0]);
        if (eq < 0)
            return eq;
        if (eq) {
            *out = jinja_int((int64_t)i);
            return 0;
        }
    }
    return jinja_fail(r, "value is not in list");
}

METHOD(l_count)
{
    const struct jinja_list *l = self->self.l;
    int64_t n = 0;
    for (size_t i = 0; i < l->n; i++) {
        TRY(jinja_charge(r, 1));
        int eq = jinja_eq(r, l->v[i], a->v[0]);
        if (eq < 0)
            return eq;
        n += eq;
    }
    *out = jinja_int(n);
    return 0;
}

/* groupby gives pairs with names. */
METHOD(t_grouper)
{
    (void)r, (void)a;
    *out = self->self.l->v[0];
    return 0;
}

METHOD(t_list)
{
    (void)r, (void)a;
    *out = self->self.l->v[1];
    return 0;
}

#define LOOP_INT(fn_name, expr)                                                                    \
    METHOD(fn_name)                                                                                \
    {                                                                                              \
        (void)r, (void)a;                                                                          \
        const struct jinja_loop *l = self->self.loop;                                              \
        *out = expr;                                                                               \
        return 0;                                                                                  \
    }

LOOP_INT(loop_index, jinja_int((int64_t)l->i + 1))
LOOP_INT(loop_index0, jinja_int((int64_t)l->i))
LOOP_INT(loop_revindex, jinja_int((int64_t)(l->items->n - l->i)))
LOOP_INT(loop_revindex0, jinja_int((int64_t)(l->items->n - l->i) - 1))
LOOP_INT(loop_length, jinja_int((int64_t)l->items->n))
LOOP_INT(loop_first, jinja_bool(l->i == 0))
LOOP_INT(loop_last, jinja_bool(l->i + 1 >= l->items->n))
LOOP_INT(loop_depth, jinja_int(l->depth0 + 1))
LOOP_INT(loop_depth0, jinja_int(l->depth0))
LOOP_INT(loop_previtem, l->i ? l->items->v[l->i - 1] : jinja_undef("previous item"))
LOOP_INT(loop_nextitem, l->i + 1 < l->items->n ? l->items->v[l->i + 1] : jinja_undef("next item"))

METHOD(loop_cycle)
{
    if (!a->n_pos)
        return jinja_fail(r, "no items for cycling given");
    *out = a->pos[self->self.loop->i % a->n_pos];
    return 0;
}

METHOD(loop_changed)
{
    struct jinja_loop *l = self->self.loop;
    struct jinja_value now;
    TRY(jinja_list_new(r, JINJA_TUPLE, 0, &now));
    for (size_t i = 0; i < a->n_pos; i++)
        TRY(jinja_list_add(r, now.l, a->pos[i]));
    int eq = l->changed.kind == JINJA_MISSING ? 0 : jinja_eq(r, l->changed, now);
    l->changed = now;
    *out = jinja_bool(eq == 0);
    return eq < 0 ? eq : 0;
}

METHOD(c_current)
{
    (void)r, (void)a;
    const struct jinja_func *c = self->self.fn;
    *out = c->self.l->v[c->i % c->self.l->n];
    return 0;
}

METHOD(c_next)
{
    TRY(c_current(r, self, a, out));
    self->self.fn->i++;
    return 0;
}

METHOD(c_reset)
{
    (void)r, (void)a;
    self->self.fn->i = 0;
    *out = JINJA_NIL;
    return 0;
}

static const struct jinja_builtin dict_methods[] = {
    { "get", d_get, "key default=" }, { "items", d_items, "" }, { "keys", d_keys, "" },
    { "values", d_values, "" },       { "copy", d_copy, "" },   { "pop", NULL, NULL },
    { "popitem", NULL, NULL },        { "update", NULL, NULL }, { "clear", NULL, NULL },
    { "setdefault", NULL, NULL },
};

static const struct jinja_builtin list_methods[] = {
    { "index", l_index, "value" }, { "count", l_count, "value" }, { "append", NULL, NULL },
    { "extend", NULL, NULL },      { "insert", NULL, NULL },      { "pop", NULL, NULL },
    { "remove", NULL, NULL },      { "clear", NULL, NULL },       { "reverse", NULL, NULL },
    { "sort", NULL, NULL },
};

static const struct jinja_builtin tuple_methods[] = {
    { "index", l_index, "value" },
    { "count", l_count, "value" },
    { "grouper", t_grouper, NULL },
    { "list", t_list, NULL },
};

static const struct jinja_builtin loop_methods[] = {
    { "index", loop_index, NULL },       { "index0", loop_index0, NULL },
    { "revindex", loop_revindex, NULL }, { "revindex0", loop_revindex0, NULL },
    { "length", loop_length, NULL },     { "first", loop_first, NULL },
    { "last", loop_last, NULL },         { "depth", loop_depth, NULL },
    { "depth0", loop_depth0, NULL },     { "previtem", loop_previtem, NULL },
    { "nextitem", loop_nextitem, NULL }, { "cycle", loop_cycle, "*" },
    { "changed", loop_changed, "*" },
};

static const struct jinja_builtin cycler_methods[] = {
    { "next", c_next, "" },
    { "current", c_current, NULL },
    { "reset", c_reset, "" },
};

#define IN(t) jinja_find(t, sizeof t / sizeof t[0], name, n)

const struct jinja_builtin *jinja_method(struct jinja_value v, const char *name, size_t n)
{
    if (v.kind == JINJA_STR)
        return jinja_str_method(name, n);
    if (v.kind == JINJA_DICT)
        return IN(dict_methods);
    if (v.kind == JINJA_LIST)
        return IN(list_methods);
    if (v.kind == JINJA_TUPLE) {
        const struct jinja_builtin *b = IN(tuple_methods);
        return b && !b->sig && v.l->n != 2 ? NULL : b;
    }
    if (v.kind == JINJA_RANGE) {
        const struct jinja_builtin *b = IN(tuple_methods);
        return b && !b->sig ? NULL : b;
    }
    if (v.kind == JINJA_LOOP)
        return IN(loop_methods);
    if (v.kind == JINJA_FUNC && v.fn->b && strcmp(v.fn->b->name, "cycler") == 0 &&
        v.fn->self.kind == JINJA_TUPLE)
        return IN(cycler_methods);
    return NULL;
}
