/* Expressions to values: a walk over the tree, one step a node, depth bounded by JINJA_MAX_DEPTH.
 */
#include <math.h>
#include <string.h>

#include "server/text/jinja_exec.h"

static int eval_name(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                     struct jinja_value *out)
{
    for (; s; s = s->parent)
        for (size_t i = s->n; i-- > 0;)
            if (s->v[i].name == n->name) {
                *out = s->v[i].value;
                return 0;
            }
    const struct jinja_builtin *b = jinja_global(n->name);
    if (b)
        return jinja_func_new(r, b, JINJA_NIL, out);
    *out = jinja_undef(n->name);
    return 0;
}

static int eval_list(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value l, v;
    TRY(jinja_list_new(r, n->kind == N_TUPLE ? JINJA_TUPLE : JINJA_LIST, 0, &l));
    for (const struct jinja_node *i = n->a; i; i = i->next) {
        TRY(jinja_eval(r, s, i, &v));
        TRY(jinja_list_add(r, l.l, v));
    }
    *out = l;
    return 0;
}

static int eval_dict(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value d, k, v;
    TRY(jinja_dict_new(r, 0, &d));
    for (const struct jinja_node *i = n->a; i; i = i->next) {
        TRY(jinja_eval(r, s, i->a, &k));
        TRY(jinja_eval(r, s, i->b, &v));
        TRY(jinja_dict_set(r, d.d, k, v));
    }
    *out = d;
    return 0;
}

static int slice_bound(struct jinja_run *r, struct jinja_value v, int64_t n, int64_t dflt,
                       int64_t low, int64_t high, int64_t *out)
{
    if (v.kind == JINJA_NONE) {
        *out = dflt;
        return 0;
    }
    if (v.kind != JINJA_INT && v.kind != JINJA_BOOL)
        return jinja_fail(r, "slice indices must be integers or None");
    int64_t i = jinja_as_int(v);
    if (i < 0)
        i += n;
    *out = i < low ? low : i > high ? high : i;
    return 0;
}

static int slice_of(struct jinja_run *r, struct jinja_value v, const struct jinja_list *sl,
                    struct jinja_value *out)
{
    struct jinja_list *src;
    int64_t from = 0, to = 0, step = 1;
    if (sl->v[2].kind != JINJA_NONE)
        TRY(slice_bound(r, sl->v[2], 0, 1, -INT64_MAX, INT64_MAX, &step));
    if (!step)
        return jinja_fail(r, "slice step cannot be zero");
    int64_t n = v.kind == JINJA_STR ? (int64_t)jinja_str_len(v.s) : (int64_t)v.l->n;
    int64_t low = step > 0 ? 0 : -1, high = step > 0 ? n : n - 1;
    TRY(slice_bound(r, sl->v[0], n, step > 0 ? 0 : n - 1, low, high, &from));
    TRY(slice_bound(r, sl->v[1], n, step > 0 ? n : -1, low, high, &to));
    if (v.kind == JINJA_STR && step == 1) {
        TRY(jinja_charge(r, v.s->n / 64));
        size_t a = jinja_str_at(v.s, (size_t)from);
        size_t b = to > from ? jinja_str_at(v.s, (size_t)to) : a;
        return jinja_str_cut(r, v.s, a, b - a, out);
    }
    struct jinja_value l;
    struct jinja_sb text = { 0 };
    TRY(jinja_iter(r, v, &src));
    TRY(jinja_list_new(r, v.kind == JINJA_STR ? JINJA_LIST : v.kind, 0, &l));
    if (v.kind == JINJA_RANGE) { /* for printing; unsigned, as the ends may lie outside of int64 */
        uint64_t start = (uint64_t)v.l->range[0], by = (uint64_t)v.l->range[2];
        l.l->range[0] = (int64_t)(start + (uint64_t)from * by);
        l.l->range[1] = (int64_t)(start + (uint64_t)to * by);
        l.l->range[2] = (int64_t)(by * (uint64_t)step);
    }
    for (int64_t i = from; step > 0 ? i < to : i > to;) {
        TRY(jinja_charge(r, 1));
        if (v.kind == JINJA_STR)
            TRY(jinja_sb_str(r, &text, src->v[i].s));
        else
            TRY(jinja_list_add(r, l.l, src->v[i]));
        if (step > 0 ? step >= to - i : step <= to - i)
            break;
        i += step;
    }
    if (v.kind == JINJA_STR)
        return jinja_sb_done(r, &text, out);
    *out = l;
    return 0;
}

static int attr_of(struct jinja_run *r, struct jinja_value v, const struct jinja_str *name,
                   struct jinja_value *out)
{
    const struct jinja_builtin *m = jinja_method(v, name->p, name->n);
    if (!m)
        return 0;
    if (!m->fn) /* would change the object: the sandbox hides it */
        *out = jinja_undef(m->name);
    else if (!m->sig) /* a property */
        TRY(m->fn(r, &(struct jinja_func){ .self = v }, NULL, out));
    else
        TRY(jinja_func_new(r, m, v, out));
    return 1;
}

static int undef_attr(struct jinja_run *r, const struct jinja_str *name, struct jinja_value *out)
{
    char *copy = jinja_alloc(r, name->n + 1);
    if (!copy)
        return jinja_alloc_code(r);
    memcpy(copy, name->p, name->n);
    *out = jinja_undef(copy);
    return 0;
}

int jinja_getattr(struct jinja_run *r, struct jinja_value v, struct jinja_value name,
                  struct jinja_value *out)
{
    if (v.kind == JINJA_UNDEF)
        return jinja_fail_undef(r, v);
    int rc = attr_of(r, v, name.s, out);
    if (!rc && (v.kind == JINJA_DICT || v.kind == JINJA_NAMESPACE))
        rc = jinja_dict_get(r, v.d, name, out);
    if (rc)
        return rc < 0 ? rc : 0;
    return undef_attr(r, name.s, out);
}

int jinja_getitem(struct jinja_run *r, struct jinja_value v, struct jinja_value key,
                  struct jinja_value *out)
{
    if (v.kind == JINJA_UNDEF)
        return jinja_fail_undef(r, v);
    bool sequence = v.kind == JINJA_LIST || v.kind == JINJA_TUPLE || v.kind == JINJA_RANGE;
    if (key.kind == JINJA_SLICE && (sequence || v.kind == JINJA_STR))
        return slice_of(r, v, key.l, out);
    if ((key.kind == JINJA_INT || key.kind == JINJA_BOOL) && (sequence || v.kind == JINJA_STR)) {
        size_t n;
        TRY(jinja_len(r, v, &n));
        int64_t i = jinja_as_int(key);
        i += i < 0 ? (int64_t)n : 0;
        if (i < 0 || i >= (int64_t)n) {
            *out = jinja_undef("index out of range");
        } else if (sequence) {
            *out = v.l->v[i];
        } else {
            size_t at = jinja_str_at(v.s, (size_t)i);
            int32_t cp;
            return jinja_str_cut(r, v.s, at, jinja_cp(v.s->p + at, v.s->n - at, &cp), out);
        }
        return 0;
    }
    if (key.kind == JINJA_SLICE)
        return jinja_fail(r, "'%s' object cannot be sliced", jinja_type_name(v));
    int rc = 0;
    if ((v.kind == JINJA_DICT || (v.kind == JINJA_NAMESPACE && key.kind == JINJA_STR)) &&
        key.kind != JINJA_LIST && key.kind != JINJA_DICT)
        rc = jinja_dict_get(r, v.d, key, out);
    if (!rc && key.kind == JINJA_STR)
        rc = attr_of(r, v, key.s, out);
    if (rc)
        return rc < 0 ? rc : 0;
    if (key.kind == JINJA_STR)
        return undef_attr(r, key.s, out);
    *out = jinja_undef("item");
    return 0;
}

static int eval_slice(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                      struct jinja_value *out)
{
    const struct jinja_node *part[3] = { n->a, n->b, n->c };
    struct jinja_value l, v;
    TRY(jinja_list_new(r, JINJA_SLICE, 3, &l));
    for (int i = 0; i < 3; i++) {
        v = JINJA_NIL;
        if (part[i])
            TRY(jinja_eval(r, s, part[i], &v));
        TRY(jinja_list_add(r, l.l, v));
    }
    *out = l;
    return 0;
}

static int compare_one(struct jinja_run *r, enum jinja_op op, struct jinja_value a,
                       struct jinja_value b, bool *out)
{
    int rc;
    if (op == OP_IN || op == OP_NOTIN) {
        TRY(jinja_contains(r, b, a, out));
        *out ^= op == OP_NOTIN;
        return 0;
    }
    if (op == OP_EQ || op == OP_NE) {
        rc = jinja_eq(r, a, b);
        *out = (rc > 0) ^ (op == OP_NE);
        return rc < 0 ? rc : 0;
    }
    TRY(jinja_cmp(r, a, b, &rc));
    *out = op == OP_LT ? rc < 0 : op == OP_LE ? rc <= 0 : op == OP_GT ? rc > 0 : rc >= 0;
    return 0;
}

static int eval_compare(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                        struct jinja_value *out)
{
    struct jinja_value a, b;
    bool ok = true;
    TRY(jinja_eval(r, s, n->a, &a));
    for (const struct jinja_node *i = n->b; i && ok; i = i->next, a = b) {
        TRY(jinja_eval(r, s, i->a, &b));
        TRY(compare_one(r, i->op, a, b, &ok));
    }
    *out = jinja_bool(ok);
    return 0;
}

static int eval_concat(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                       struct jinja_value *out)
{
    struct jinja_sb b = { 0 };
    for (const struct jinja_node *i = n->a; i; i = i->next) {
        struct jinja_value v;
        TRY(jinja_eval(r, s, i, &v));
        TRY(jinja_sb_value(r, &b, v));
    }
    return jinja_sb_done(r, &b, out);
}

static int eval_filter(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                       struct jinja_value *out)
{
    struct jinja_value v = r->block;
    struct jinja_args a = { 0 };
    if (n->a)
        TRY(jinja_eval(r, s, n->a, &v));
    if (!n->builtin)
        return jinja_fail(r, "unsupported %s '%s'", n->kind == N_FILTER ? "filter" : "test",
                          n->name);
    TRY(jinja_eval_args(r, s, n->b, &v, NULL, &a));
    return jinja_call_builtin(r, n->builtin, NULL, &a, out);
}

static int eval_call(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value fn;
    struct jinja_args a = { 0 };
    TRY(jinja_eval(r, s, n->a, &fn));
    TRY(jinja_eval_args(r, s, n->b, NULL, NULL, &a));
    return jinja_call(r, fn, &a, out);
}

static int eval_sign(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value v;
    TRY(jinja_eval(r, s, n->a, &v));
    if (!jinja_is_num(v))
        return jinja_fail(r, "bad operand type for unary sign: '%s'", jinja_type_name(v));
    if (v.kind == JINJA_FLOAT)
        *out = jinja_float(n->kind == N_NEG ? -v.f : v.f);
    else if (n->kind == N_NEG && jinja_as_int(v) == INT64_MIN)
        return jinja_fail(r, "integer overflow");
    else
        *out = jinja_int(n->kind == N_NEG ? -jinja_as_int(v) : jinja_as_int(v));
    return 0;
}

static int eval_logic(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                      struct jinja_value *out)
{
    struct jinja_value v;
    TRY(jinja_eval(r, s, n->a, &v));
    if (n->kind == N_COND) {
        const struct jinja_node *way = jinja_truth(v) ? n->b : n->c;
        if (way)
            return jinja_eval(r, s, way, out);
        *out = jinja_undef("the inline if-expression without else");
    } else if (n->kind == N_NOT) {
        *out = jinja_bool(!jinja_truth(v));
    } else if (jinja_truth(v) == (n->kind == N_AND)) {
        return jinja_eval(r, s, n->b, out);
    } else {
        *out = v;
    }
    return 0;
}

static int eval_pair(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                     struct jinja_value *out)
{
    struct jinja_value a, b = n->value;
    TRY(jinja_eval(r, s, n->a, &a));
    if (n->kind == N_GETATTR)
        return jinja_getattr(r, a, b, out);
    TRY(jinja_eval(r, s, n->b, &b));
    return n->kind == N_GETITEM ? jinja_getitem(r, a, b, out)
                                : jinja_binary(r, (int)n->op, a, b, out);
}

typedef int eval_fn(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                    struct jinja_value *out);
static eval_fn *const eval_of[] = {
    [N_NAME] = eval_name,   [N_LIST] = eval_list,     [N_TUPLE] = eval_list,
    [N_DICT] = eval_dict,   [N_GETATTR] = eval_pair,  [N_GETITEM] = eval_pair,
    [N_SLICE] = eval_slice, [N_CALL] = eval_call,     [N_FILTER] = eval_filter,
    [N_TEST] = eval_filter, [N_NOT] = eval_logic,     [N_NEG] = eval_sign,
    [N_POS] = eval_sign,    [N_AND] = eval_logic,     [N_OR] = eval_logic,
    [N_BINARY] = eval_pair, [N_CONCAT] = eval_concat, [N_COMPARE] = eval_compare,
    [N_COND] = eval_logic,
};

int jinja_eval(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
               struct jinja_value *out)
{
    TRY(jinja_charge(r, 1));
    if (n->kind == N_CONST) {
        *out = n->value;
        return 0;
    }
    TRY(jinja_enter(r));
    struct jinja_value v;
    TRY(eval_of[n->kind](r, s, n, &v));
    *out = v;
    jinja_leave(r);
    return 0;
}
