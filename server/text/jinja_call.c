/* Calls: arguments, binding them to the parameters of built-ins and macros; and the arithmetic operators.
 */
#include <math.h>
#include <string.h>

#include "server/text/jinja_exec.h"

int jinja_func_new(struct jinja_run *r, const struct jinja_builtin *b, struct jinja_value self,
                   struct jinja_value *out)
{
    struct jinja_func *f = jinja_alloc(r, sizeof *f);
    if (!f)
        return jinja_alloc_code(r);
    f->b = b;
    f->self = self;
    *out = (struct jinja_value){ .kind = JINJA_FUNC, .fn = f };
    return 0;
}

static int add_star2(struct jinja_run *r, struct jinja_dict *kw, struct jinja_value v)
{
    if (v.kind != JINJA_DICT)
        return jinja_fail(r, "argument after ** must be a mapping, not %s", jinja_type_name(v));
    for (size_t i = 0; i < v.d->n; i++) {
        if (v.d->v[i].key.kind != JINJA_STR)
            return jinja_fail(r, "keywords must be strings");
        TRY(jinja_dict_set(r, kw, v.d->v[i].key, v.d->v[i].value));
    }
    return 0;
}

int jinja_eval_args(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *args,
                    const struct jinja_value *first, const struct jinja_value *caller,
                    struct jinja_args *a)
{
    struct jinja_list pos = { 0 };
    struct jinja_dict kw = { 0 };
    if (first)
        TRY(jinja_list_add(r, &pos, *first));
    for (; args; args = args->next) {
        bool plain = args->kind != N_KEYWORD && args->kind != N_STAR && args->kind != N_STAR2;
        struct jinja_value v;
        TRY(jinja_eval(r, s, plain ? args : args->a, &v));
        if (plain) {
            TRY(jinja_list_add(r, &pos, v));
        } else if (args->kind == N_KEYWORD) {
            TRY(jinja_dict_set(r, &kw, args->value, v));
        } else if (args->kind == N_STAR) {
            struct jinja_list *more;
            TRY(jinja_iter(r, v, &more));
            for (size_t i = 0; i < more->n; i++)
                TRY(jinja_list_add(r, &pos, more->v[i]));
        } else {
            TRY(add_star2(r, &kw, v));
        }
    }
    if (caller) {
        struct jinja_value name;
        TRY(jinja_str_new(r, "caller", 6, false, &name));
        TRY(jinja_dict_set(r, &kw, name, *caller));
    }
    a->pos = pos.v;
    a->n_pos = pos.n;
    a->kw = kw.v;
    a->n_kw = kw.n;
    return 0;
}

static int bind(struct jinja_run *r, const struct jinja_builtin *b, struct jinja_args *a)
{
    size_t n = 0, used = 0;
    for (const char *p = b->sig; *p;) {
        size_t len = strcspn(p, " =");
        bool optional = p[len] == '=';
        struct jinja_value v = { .kind = JINJA_MISSING };
        bool named = false;
        for (size_t i = 0; i < a->n_kw && !named; i++) {
            const struct jinja_str *k = a->kw[i].key.s;
            named = k->n == len && memcmp(k->p, p, len) == 0;
            if (named)
                v = a->kw[i].value;
        }
        used += named;
        if (n < a->n_pos) {
            if (named)
                return jinja_fail(r, "%s() got multiple values for argument '%.*s'", b->name,
                                  (int)len, p);
            v = a->pos[n];
        } else if (!named && !optional) {
            return jinja_fail(r, "%s() missing argument '%.*s'", b->name, (int)len, p);
        }
        a->v[n++] = v;
        p += len + optional;
        p += *p == ' ';
    }
    if (a->n_pos > n || used < a->n_kw)
        return jinja_fail(r, "%s() got %s", b->name,
                          a->n_pos > n ? "too many arguments" : "an unexpected keyword argument");
    return 0;
}

int jinja_call_builtin(struct jinja_run *r, const struct jinja_builtin *b, struct jinja_func *self,
                       struct jinja_args *a, struct jinja_value *out)
{
    if (b->sig[0] != '*')
        TRY(bind(r, b, a));
    return b->fn(r, self, a, out);
}

static bool is_param(const struct jinja_node *m, const struct jinja_str *name)
{
    for (const struct jinja_node *p = m->a; p; p = p->next)
        if (strlen(p->name) == name->n && memcmp(p->name, name->p, name->n) == 0)
            return true;
    return false;
}

/* Named arguments that are no parameters: caller, **kwargs, or an error. */
static int extra_named(struct jinja_run *r, const struct jinja_node *m, struct jinja_scope *s,
                       const struct jinja_args *a)
{
    struct jinja_value kwargs, caller = jinja_undef("caller");
    TRY(jinja_dict_new(r, 0, &kwargs));
    for (size_t i = 0; i < a->n_kw; i++) {
        if (is_param(m, a->kw[i].key.s))
            continue;
        if (m->takes_caller && jinja_str_is(a->kw[i].key, "caller"))
            caller = a->kw[i].value;
        else if (m->takes_kwargs)
            TRY(jinja_dict_set(r, kwargs.d, a->kw[i].key, a->kw[i].value));
        else
            return jinja_fail(r, "macro '%s' takes no such keyword argument", m->name);
    }
    if (m->takes_kwargs)
        TRY(jinja_set(r, s, r->prog->kwargs, kwargs));
    return m->takes_caller ? jinja_set(r, s, r->prog->caller, caller) : 0;
}

static int call_macro(struct jinja_run *r, const struct jinja_func *f, const struct jinja_args *a,
                      struct jinja_value *out)
{
    const struct jinja_node *m = f->macro;
    struct jinja_scope *s = jinja_scope_new(r, f->scope);
    if (!s)
        return jinja_alloc_code(r);
    size_t i = 0;
    TRY(jinja_enter(r));
    for (const struct jinja_node *p = m->a; p; p = p->next, i++) {
        struct jinja_value v = { .kind = JINJA_MISSING };
        if (i < a->n_pos)
            v = a->pos[i];
        for (size_t k = 0; k < a->n_kw; k++) {
            const struct jinja_str *key = a->kw[k].key.s;
            if (key->n != strlen(p->name) || memcmp(key->p, p->name, key->n) != 0)
                continue;
            if (v.kind != JINJA_MISSING)
                return jinja_fail(r, "macro '%s' got two values for '%s'", m->name, p->name);
            v = a->kw[k].value;
        }
        if (v.kind == JINJA_MISSING) {
            v = jinja_undef(p->name);
            if (p->a)
                TRY(jinja_eval(r, s, p->a, &v));
        }
        TRY(jinja_set(r, s, p->name, v));
    }
    TRY(extra_named(r, m, s, a));
    if (a->n_pos > i && !m->takes_varargs)
        return jinja_fail(r, "macro '%s' takes not more than %zu arguments", m->name, i);
    if (m->takes_varargs) {
        struct jinja_value rest;
        TRY(jinja_list_new(r, JINJA_TUPLE, 0, &rest));
        for (; i < a->n_pos; i++)
            TRY(jinja_list_add(r, rest.l, a->pos[i]));
        TRY(jinja_set(r, s, r->prog->varargs, rest));
    }
    TRY(jinja_capture(r, s, m->b, out));
    jinja_leave(r);
    return 0;
}

int jinja_call(struct jinja_run *r, struct jinja_value fn, struct jinja_args *a,
               struct jinja_value *out)
{
    TRY(jinja_charge(r, 1));
    if (fn.kind == JINJA_UNDEF)
        return jinja_fail_undef(r, fn);
    if (fn.kind == JINJA_LOOP) {
        if (a->n_pos != 1 || a->n_kw)
            return jinja_fail(r, "loop() takes one argument");
        return jinja_recurse(r, fn.loop, a->pos[0], out);
    }
    if (fn.kind != JINJA_FUNC)
        return jinja_fail(r, "'%s' object is not callable", jinja_type_name(fn));
    if (fn.fn->b)
        return jinja_call_builtin(r, fn.fn->b, fn.fn, a, out);
    return call_macro(r, fn.fn, a, out);
}

/* ---- operators ---- */

static int repeat(struct jinja_run *r, struct jinja_value v, int64_t n, struct jinja_value *out)
{
    struct jinja_sb b = { 0 };
    struct jinja_value l;
    TRY(jinja_list_new(r, v.kind, 0, &l));
    for (int64_t i = 0; i < n; i++) {
        TRY(jinja_charge(r, 1));
        if (v.kind == JINJA_STR)
            TRY(jinja_sb_str(r, &b, v.s));
        else
            for (size_t k = 0; k < v.l->n; k++)
                TRY(jinja_list_add(r, l.l, v.l->v[k]));
    }
    if (v.kind == JINJA_STR)
        return jinja_sb_done(r, &b, out);
    *out = l;
    return 0;
}

static int add_sequences(struct jinja_run *r, struct jinja_value a, struct jinja_value b,
                         struct jinja_value *out)
{
    if (a.kind == JINJA_STR) {
        struct jinja_sb t = { 0 };
        TRY(jinja_sb_str(r, &t, a.s));
        TRY(jinja_sb_str(r, &t, b.s));
        return jinja_sb_done(r, &t, out);
    }
    struct jinja_value l;
    TRY(jinja_list_new(r, a.kind, a.l->n + b.l->n, &l));
    TRY(jinja_charge(r, (a.l->n + b.l->n) / 16));
    for (size_t i = 0; i < a.l->n + b.l->n; i++)
        TRY(jinja_list_add(r, l.l, i < a.l->n ? a.l->v[i] : b.l->v[i - a.l->n]));
    *out = l;
    return 0;
}

static int64_t floor_div(int64_t a, int64_t b)
{
    int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}

static int int_op(struct jinja_run *r, int op, int64_t a, int64_t b, struct jinja_value *out)
{
    int64_t v = 1;
    bool over = false;
    if ((op == OP_FLOORDIV || op == OP_MOD) && b == 0)
        return jinja_fail(r, "integer division or modulo by zero");
    if (b == -1 && (op == OP_FLOORDIV || op == OP_MOD)) {
        over = op == OP_FLOORDIV && __builtin_sub_overflow(0, a, &v);
        v = op == OP_MOD ? 0 : v;
    } else if (op == OP_ADD) {
        over = __builtin_add_overflow(a, b, &v);
    } else if (op == OP_SUB) {
        over = __builtin_sub_overflow(a, b, &v);
    } else if (op == OP_MUL) {
        over = __builtin_mul_overflow(a, b, &v);
    } else if (op == OP_FLOORDIV) {
        v = floor_div(a, b);
    } else if (op == OP_MOD) {
        v = a - b * floor_div(a, b);
    } else { /* power, b >= 0 */
        for (; b > 0 && !over; b >>= 1) {
            if (b & 1)
                over = __builtin_mul_overflow(v, a, &v);
            if (b > 1)
                over |= __builtin_mul_overflow(a, a, &a);
        }
    }
    if (over)
        return jinja_fail(r, "integer overflow");
    *out = jinja_int(v);
    return 0;
}

static int float_op(struct jinja_run *r, int op, double a, double b, struct jinja_value *out)
{
    if (b == 0 && (op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD))
        return jinja_fail(r, "division by zero");
    double m = op == OP_MOD ? fmod(a, b) : 0;
    if (m != 0 && (m < 0) != (b < 0))
        m += b;
    *out = jinja_float(op == OP_ADD        ? a + b
                       : op == OP_SUB      ? a - b
                       : op == OP_MUL      ? a * b
                       : op == OP_DIV      ? a / b
                       : op == OP_FLOORDIV ? floor(a / b)
                       : op == OP_MOD      ? m
                                           : pow(a, b));
    return 0;
}

int jinja_binary(struct jinja_run *r, int op, struct jinja_value a, struct jinja_value b,
                 struct jinja_value *out)
{
    static const char *const text[] = { "+", "-", "*", "/", "//", "%", "**" };
    if (a.kind == JINJA_UNDEF || b.kind == JINJA_UNDEF)
        return jinja_fail_undef(r, a.kind == JINJA_UNDEF ? a : b);
    if (jinja_is_num(a) && jinja_is_num(b)) {
        bool ints = a.kind != JINJA_FLOAT && b.kind != JINJA_FLOAT;
        if (ints && op != OP_DIV && !(op == OP_POW && jinja_as_int(b) < 0))
            return int_op(r, op, jinja_as_int(a), jinja_as_int(b), out);
        return float_op(r, op, a.kind == JINJA_FLOAT ? a.f : (double)jinja_as_int(a),
                        b.kind == JINJA_FLOAT ? b.f : (double)jinja_as_int(b), out);
    }
    bool seq_a = a.kind == JINJA_STR || a.kind == JINJA_LIST || a.kind == JINJA_TUPLE;
    bool seq_b = b.kind == JINJA_STR || b.kind == JINJA_LIST || b.kind == JINJA_TUPLE;
    if (op == OP_ADD && seq_a && a.kind == b.kind)
        return add_sequences(r, a, b, out);
    if (op == OP_MUL && seq_a && (b.kind == JINJA_INT || b.kind == JINJA_BOOL))
        return repeat(r, a, jinja_as_int(b), out);
    if (op == OP_MUL && seq_b && (a.kind == JINJA_INT || a.kind == JINJA_BOOL))
        return repeat(r, b, jinja_as_int(a), out);
    if (op == OP_MOD && a.kind == JINJA_STR) {
        struct jinja_args args = { .pos = &b, .n_pos = 1 };
        if (b.kind == JINJA_TUPLE) {
            args.pos = b.l->v;
            args.n_pos = b.l->n;
        }
        return jinja_percent(r, a.s, &args, b.kind != JINJA_TUPLE, out);
    }
    return jinja_fail(r, "unsupported operand types for %s: '%s' and '%s'", text[op],
                      jinja_type_name(a), jinja_type_name(b));
}
