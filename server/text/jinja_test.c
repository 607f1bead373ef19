/* Tests: `x is name(args)`.
 */
#include <string.h>
#include <utf8proc.h>

#include "server/text/jinja.h"
#include "server/text/jinja_ast.h"

#define TEST(fn_name)                                                                              \
    static int fn_name(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,         \
                       struct jinja_value *out)

/* A test of the value alone: cond sees it as v. */
#define KIND_TEST(fn_name, cond)                                                                   \
    TEST(fn_name)                                                                                  \
    {                                                                                              \
        (void)r, (void)self;                                                                       \
        struct jinja_value v = a->v[0];                                                            \
        *out = jinja_bool(cond);                                                                   \
        return 0;                                                                                  \
    }

KIND_TEST(is_defined, v.kind != JINJA_UNDEF)
KIND_TEST(is_undefined, v.kind == JINJA_UNDEF)
KIND_TEST(is_none, v.kind == JINJA_NONE)
KIND_TEST(is_string, v.kind == JINJA_STR)
KIND_TEST(is_mapping, v.kind == JINJA_DICT)
KIND_TEST(is_number, jinja_is_num(v))
KIND_TEST(is_integer, v.kind == JINJA_INT)
KIND_TEST(is_float, v.kind == JINJA_FLOAT)
KIND_TEST(is_boolean, v.kind == JINJA_BOOL)
KIND_TEST(is_true, v.kind == JINJA_BOOL && v.b)
KIND_TEST(is_false, v.kind == JINJA_BOOL && !v.b)
KIND_TEST(is_callable, v.kind == JINJA_FUNC || v.kind == JINJA_LOOP || v.kind == JINJA_UNDEF)
KIND_TEST(is_iterable, jinja_is_list(v) || v.kind == JINJA_STR || v.kind == JINJA_DICT ||
                           v.kind == JINJA_UNDEF || v.kind == JINJA_LOOP)
KIND_TEST(is_sequence, (jinja_is_list(v) && v.kind < JINJA_VIEW) || v.kind == JINJA_STR ||
                           v.kind == JINJA_DICT || v.kind == JINJA_UNDEF)
KIND_TEST(is_escaped, ((void)v, false))

static int eq_test(struct jinja_run *r, struct jinja_args *a, bool want, struct jinja_value *out)
{
    int eq = jinja_eq(r, a->v[0], a->v[1]);
    *out = jinja_bool((eq > 0) == want);
    return eq < 0 ? eq : 0;
}

TEST(is_eq)
{
    (void)self;
    return eq_test(r, a, true, out);
}

TEST(is_ne)
{
    (void)self;
    return eq_test(r, a, false, out);
}

#define ORDER_TEST(fn_name, cond)                                                                  \
    TEST(fn_name)                                                                                  \
    {                                                                                              \
        (void)self;                                                                                \
        int c;                                                                                     \
        TRY(jinja_cmp(r, a->v[0], a->v[1], &c));                                                   \
        *out = jinja_bool(cond);                                                                   \
        return 0;                                                                                  \
    }

ORDER_TEST(is_lt, c < 0)
ORDER_TEST(is_le, c <= 0)
ORDER_TEST(is_gt, c > 0)
ORDER_TEST(is_ge, c >= 0)

TEST(is_in)
{
    (void)self;
    bool in;
    TRY(jinja_contains(r, a->v[1], a->v[0], &in));
    *out = jinja_bool(in);
    return 0;
}

TEST(is_sameas)
{
    (void)self;
    struct jinja_value x = a->v[0], y = a->v[1];
    bool scalar = x.kind <= JINJA_STR;
    int same = x.kind != y.kind ? 0 : scalar ? jinja_eq(r, x, y) : x.l == y.l;
    *out = jinja_bool(same > 0);
    return same < 0 ? same : 0;
}

/* Whether a text has cased letters, all of them of the category. */
static bool all_case(const struct jinja_str *s, bool upper)
{
    bool any = false;
    for (size_t i = 0; i < s->n;) {
        int32_t cp;
        i += jinja_cp(s->p + i, s->n - i, &cp);
        utf8proc_category_t c = utf8proc_category(cp);
        if (c != UTF8PROC_CATEGORY_LU && c != UTF8PROC_CATEGORY_LL && c != UTF8PROC_CATEGORY_LT)
            continue;
        if (c != (upper ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL))
            return false;
        any = true;
    }
    return any;
}

static int case_test(struct jinja_run *r, struct jinja_args *a, bool upper, struct jinja_value *out)
{
    struct jinja_value s;
    TRY(jinja_to_str(r, a->v[0], &s));
    TRY(jinja_charge(r, s.s->n / 16));
    *out = jinja_bool(all_case(s.s, upper));
    return 0;
}

TEST(is_lower)
{
    (void)self;
    return case_test(r, a, false, out);
}

TEST(is_upper)
{
    (void)self;
    return case_test(r, a, true, out);
}

static int modulo(struct jinja_run *r, struct jinja_value v, struct jinja_value by, int64_t want,
                  struct jinja_value *out)
{
    struct jinja_value m;
    TRY(jinja_binary(r, OP_MOD, v, by, &m));
    int eq = jinja_eq(r, m, jinja_int(want));
    *out = jinja_bool(eq > 0);
    return eq < 0 ? eq : 0;
}

TEST(is_odd)
{
    (void)self;
    return modulo(r, a->v[0], jinja_int(2), 1, out);
}

TEST(is_even)
{
    (void)self;
    return modulo(r, a->v[0], jinja_int(2), 0, out);
}

TEST(is_divisibleby)
{
    (void)self;
    return modulo(r, a->v[0], a->v[1], 0, out);
}

static int named(struct jinja_run *r, struct jinja_args *a,
                 const struct jinja_builtin *(*find)(const char *), struct jinja_value *out)
{
    char name[64] = "";
    if (a->v[0].kind == JINJA_STR && a->v[0].s->n < sizeof name)
        memcpy(name, a->v[0].s->p, a->v[0].s->n);
    (void)r;
    *out = jinja_bool(find(name) != NULL);
    return 0;
}

TEST(is_filter)
{
    (void)self;
    return named(r, a, jinja_filter, out);
}

TEST(is_test)
{
    (void)self;
    return named(r, a, jinja_test, out);
}

static const struct jinja_builtin table[] = {
    { "defined", is_defined, "value" },
    { "undefined", is_undefined, "value" },
    { "none", is_none, "value" },
    { "string", is_string, "value" },
    { "mapping", is_mapping, "value" },
    { "iterable", is_iterable, "value" },
    { "sequence", is_sequence, "value" },
    { "number", is_number, "value" },
    { "integer", is_integer, "value" },
    { "float", is_float, "value" },
    { "boolean", is_boolean, "value" },
    { "true", is_true, "value" },
    { "false", is_false, "value" },
    { "callable", is_callable, "value" },
    { "escaped", is_escaped, "value" },
    { "eq", is_eq, "a b" },
    { "equalto", is_eq, "a b" },
    { "==", is_eq, "a b" },
    { "ne", is_ne, "a b" },
    { "!=", is_ne, "a b" },
    { "lt", is_lt, "a b" },
    { "lessthan", is_lt, "a b" },
    { "<", is_lt, "a b" },
    { "le", is_le, "a b" },
    { "<=", is_le, "a b" },
    { "gt", is_gt, "a b" },
    { "greaterthan", is_gt, "a b" },
    { ">", is_gt, "a b" },
    { "ge", is_ge, "a b" },
    { ">=", is_ge, "a b" },
    { "in", is_in, "value seq" },
    { "sameas", is_sameas, "value other" },
    { "lower", is_lower, "value" },
    { "upper", is_upper, "value" },
    { "odd", is_odd, "value" },
    { "even", is_even, "value" },
    { "divisibleby", is_divisibleby, "value num" },
    { "filter", is_filter, "value" },
    { "test", is_test, "value" },
};

const struct jinja_builtin *jinja_find(const struct jinja_builtin *t, size_t n, const char *name,
                                       size_t len)
{
    for (size_t i = 0; i < n; i++)
        if (strncmp(t[i].name, name, len) == 0 && t[i].name[len] == 0)
            return &t[i];
    return NULL;
}

const struct jinja_builtin *jinja_test(const char *name)
{
    return jinja_find(table, sizeof table / sizeof table[0], name, strlen(name));
}
