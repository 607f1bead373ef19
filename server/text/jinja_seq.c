/* Filters on sequences: choosing, ordering, grouping, joining.
 */
#include <string.h>

#include "server/text/jinja.h"
#include "server/text/jinja_ast.h"

#define FILTER(fn_name)                                                                            \
    static int fn_name(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,         \
                       struct jinja_value *out)

#define GIVEN(v) ((v).kind != JINJA_MISSING && (v).kind != JINJA_NONE)

static bool yes(struct jinja_value v)
{
    return v.kind != JINJA_MISSING && jinja_truth(v);
}

/* item.a.b.0; path is "a.b.0", an integer, or absent. dflt replaces what is undefined, if given. */
static int attribute(struct jinja_run *r, struct jinja_value item, struct jinja_value path,
                     struct jinja_value dflt, struct jinja_value *out)
{
    *out = item;
    if (!GIVEN(path))
        return 0;
    if (path.kind != JINJA_STR)
        return jinja_getitem(r, item, path, out);
    for (size_t i = 0; i <= path.s->n;) {
        const char *dot = i < path.s->n ? memchr(path.s->p + i, '.', path.s->n - i) : NULL;
        size_t end = dot ? (size_t)(dot - path.s->p) : path.s->n;
        struct jinja_value key, next;
        TRY(jinja_str_cut(r, path.s, i, end - i, &key));
        if (end > i && end - i < 10 && strspn(key.s->p, "0123456789") >= end - i) {
            int64_t index = 0;
            for (; i < end; i++)
                index = index * 10 + (path.s->p[i] - '0');
            key = jinja_int(index);
        }
        TRY(jinja_getitem(r, *out, key, &next));
        *out = next.kind == JINJA_UNDEF && GIVEN(dflt) ? dflt : next;
        if (!dot)
            break;
        i = end + 1;
    }
    return 0;
}

static const struct jinja_value none_given = { .kind = JINJA_MISSING };

/* The key a value is compared by: its attribute, text in lower case unless case matters. */
static int sort_key(struct jinja_run *r, struct jinja_value item, struct jinja_value path,
                    bool case_sensitive, struct jinja_value *out)
{
    TRY(attribute(r, item, path, none_given, out));
    if (out->kind == JINJA_STR && !case_sensitive)
        TRY(jinja_str_case(r, out->s, JINJA_LOWER, out));
    return 0;
}

FILTER(f_list)
{
    struct jinja_list *l;
    struct jinja_value copy;
    (void)self;
    TRY(jinja_iter(r, a->v[0], &l));
    TRY(jinja_list_new(r, JINJA_LIST, l->n, &copy));
    for (size_t i = 0; i < l->n; i++)
        TRY(jinja_list_add(r, copy.l, l->v[i]));
    *out = copy;
    return 0;
}

static int end_of(struct jinja_run *r, struct jinja_value v, bool last, struct jinja_value *out)
{
    struct jinja_list *l;
    TRY(jinja_iter(r, v, &l));
    *out = l->n ? l->v[last ? l->n - 1 : 0] : jinja_undef("an item of an empty sequence");
    return 0;
}

FILTER(f_first)
{
    (void)self;
    return end_of(r, a->v[0], false, out);
}

FILTER(f_last)
{
    (void)self;
    return end_of(r, a->v[0], true, out);
}

FILTER(f_join)
{
    struct jinja_list *l;
    struct jinja_sb b = { 0 };
    (void)self;
    TRY(jinja_iter(r, a->v[0], &l));
    for (size_t i = 0; i < l->n; i++) {
        struct jinja_value v;
        if (i && a->v[1].kind != JINJA_MISSING)
            TRY(jinja_sb_value(r, &b, a->v[1]));
        TRY(attribute(r, l->v[i], a->v[2], none_given, &v));
        TRY(jinja_charge(r, 1));
        TRY(jinja_sb_value(r, &b, v));
    }
    return jinja_sb_done(r, &b, out);
}

/* Calls filter or test `name` (arguments from i_name on) with v in front. */
static int apply(struct jinja_run *r, const struct jinja_args *a, size_t i_name, bool test,
                 struct jinja_value v, struct jinja_value *out)
{
    char name[32] = "";
    struct jinja_value n = a->pos[i_name];
    if (n.kind == JINJA_STR && n.s->n < sizeof name)
        memcpy(name, n.s->p, n.s->n);
    const struct jinja_builtin *b = test ? jinja_test(name) : jinja_filter(name);
    if (!b)
        return jinja_fail(r, "unsupported %s '%s'", test ? "test" : "filter", name);
    size_t n_rest = a->n_pos - i_name - 1;
    struct jinja_value *pos = jinja_alloc(r, (n_rest + 1) * sizeof *pos);
    if (!pos)
        return jinja_alloc_code(r);
    pos[0] = v;
    if (n_rest)
        memcpy(pos + 1, a->pos + i_name + 1, n_rest * sizeof *pos);
    struct jinja_args inner = { .pos = pos, .n_pos = n_rest + 1, .kw = a->kw, .n_kw = a->n_kw };
    TRY(jinja_enter(r));
    TRY(jinja_call_builtin(r, b, NULL, &inner, out));
    jinja_leave(r);
    return 0;
}

/* select, reject, selectattr, rejectattr. */
static int choose(struct jinja_run *r, const struct jinja_args *a, bool attr, bool want,
                  struct jinja_value *out)
{
    struct jinja_list *l;
    struct jinja_value kept;
    size_t i_test = attr ? 2 : 1;
    if (a->n_pos < i_test)
        return jinja_fail(r, "missing parameter for attribute name");
    TRY(jinja_list_new(r, JINJA_ITER, 0, &kept));
    *out = kept;
    if (!jinja_truth(a->pos[0])) /* whatever it is: nothing to walk over */
        return 0;
    TRY(jinja_iter(r, a->pos[0], &l));
    for (size_t i = 0; i < l->n; i++) {
        struct jinja_value v;
        TRY(jinja_charge(r, 1));
        TRY(attribute(r, l->v[i], attr ? a->pos[1] : none_given, none_given, &v));
        if (a->n_pos > i_test)
            TRY(apply(r, a, i_test, true, v, &v));
        if (jinja_truth(v) == want)
            TRY(jinja_list_add(r, kept.l, l->v[i]));
    }
    return 0;
}

FILTER(f_select)
{
    (void)self;
    return choose(r, a, false, true, out);
}

FILTER(f_reject)
{
    (void)self;
    return choose(r, a, false, false, out);
}

FILTER(f_selectattr)
{
    (void)self;
    return choose(r, a, true, true, out);
}

FILTER(f_rejectattr)
{
    (void)self;
    return choose(r, a, true, false, out);
}

FILTER(f_map)
{
    struct jinja_list *l;
    struct jinja_value mapped, path = none_given, dflt = none_given;
    (void)self;
    for (size_t i = 0; i < a->n_kw && a->n_pos == 1; i++) {
        if (jinja_str_is(a->kw[i].key, "attribute"))
            path = a->kw[i].value;
        else if (jinja_str_is(a->kw[i].key, "default"))
            dflt = a->kw[i].value;
        else
            return jinja_fail(r, "map() got an unexpected keyword argument");
    }
    if (!a->n_pos || (a->n_pos == 1 && !GIVEN(path)))
        return jinja_fail(r, "map requires a filter argument");
    TRY(jinja_list_new(r, JINJA_ITER, 0, &mapped));
    *out = mapped;
    if (!jinja_truth(a->pos[0]))
        return 0;
    TRY(jinja_iter(r, a->pos[0], &l));
    for (size_t i = 0; i < l->n; i++) {
        struct jinja_value v;
        TRY(jinja_charge(r, 1));
        TRY(a->n_pos > 1 ? apply(r, a, 1, false, l->v[i], &v)
                         : attribute(r, l->v[i], path, dflt, &v));
        TRY(jinja_list_add(r, mapped.l, v));
    }
    return 0;
}

/* ---- order ---- */

/* Stable merge sort of pairs by key; reverse keeps equal ones in order too, as sorted() does. */
static int sort_pairs(struct jinja_run *r, struct jinja_pair *v, struct jinja_pair *tmp, size_t n,
                      bool reverse)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t lo = 0; lo < n; lo += 2 * width) {
            size_t mid = lo + width < n ? lo + width : n, hi = mid + width < n ? mid + width : n;
            for (size_t i = lo, j = mid, k = lo; k < hi; k++) {
                int c = 0;
                TRY(jinja_charge(r, 1));
                if (i < mid && j < hi)
                    TRY(jinja_cmp(r, v[i].key, v[j].key, &c));
                bool left = j >= hi || (i < mid && (reverse ? c >= 0 : c <= 0));
                tmp[k] = left ? v[i++] : v[j++];
            }
        }
        memcpy(v, tmp, n * sizeof *v);
    }
    return 0;
}

/* Values of items with their keys, sorted if `order` is not 0 (-1: downwards). attr may be "a,b". */
static int keyed(struct jinja_run *r, const struct jinja_list *l, struct jinja_value attr,
                 bool case_sensitive, int order, struct jinja_pair **out)
{
    struct jinja_pair *v = jinja_alloc(r, (2 * l->n + 1) * sizeof *v);
    if (!v)
        return jinja_alloc_code(r);
    bool many = attr.kind == JINJA_STR && attr.s->n && memchr(attr.s->p, ',', attr.s->n);
    for (size_t i = 0; i < l->n; i++) {
        v[i].value = l->v[i];
        if (!many) {
            TRY(sort_key(r, l->v[i], attr, case_sensitive, &v[i].key));
            continue;
        }
        TRY(jinja_list_new(r, JINJA_TUPLE, 0, &v[i].key));
        for (size_t at = 0; at <= attr.s->n;) {
            const char *comma = at < attr.s->n ? memchr(attr.s->p + at, ',', attr.s->n - at) : NULL;
            size_t end = comma ? (size_t)(comma - attr.s->p) : attr.s->n;
            struct jinja_value path, key;
            TRY(jinja_str_cut(r, attr.s, at, end - at, &path));
            TRY(sort_key(r, l->v[i], path, case_sensitive, &key));
            TRY(jinja_list_add(r, v[i].key.l, key));
            at = end + 1;
        }
    }
    if (order)
        TRY(sort_pairs(r, v, v + l->n, l->n, order < 0));
    *out = v;
    return 0;
}

static int values_of(struct jinja_run *r, const struct jinja_pair *p, size_t n,
                     struct jinja_value *out)
{
    struct jinja_value l;
    TRY(jinja_list_new(r, JINJA_LIST, n, &l));
    for (size_t i = 0; i < n; i++)
        TRY(jinja_list_add(r, l.l, p[i].value));
    *out = l;
    return 0;
}

FILTER(f_sort)
{
    struct jinja_list *l;
    struct jinja_pair *p;
    (void)self;
    TRY(jinja_iter(r, a->v[0], &l));
    TRY(keyed(r, l, a->v[3], yes(a->v[2]), yes(a->v[1]) ? -1 : 1, &p));
    return values_of(r, p, l->n, out);
}

FILTER(f_unique)
{
    struct jinja_list *l;
    struct jinja_pair *p;
    struct jinja_value seen, kept, old;
    (void)self;
    TRY(jinja_iter(r, a->v[0], &l));
    TRY(keyed(r, l, a->v[2], yes(a->v[1]), 0, &p));
    TRY(jinja_dict_new(r, 0, &seen));
    TRY(jinja_list_new(r, JINJA_ITER, 0, &kept));
    for (size_t i = 0; i < l->n; i++) {
        int rc = jinja_dict_get(r, seen.d, p[i].key, &old);
        if (rc < 0)
            return rc;
        if (rc)
            continue;
        TRY(jinja_dict_set(r, seen.d, p[i].key, JINJA_NIL));
        TRY(jinja_list_add(r, kept.l, p[i].value));
    }
    *out = kept;
    return 0;
}

static int extreme(struct jinja_run *r, const struct jinja_args *a, int sign,
                   struct jinja_value *out)
{
    struct jinja_list *l;
    struct jinja_pair *p;
    TRY(jinja_iter(r, a->v[0], &l));
    TRY(keyed(r, l, a->v[2], yes(a->v[1]), 0, &p));
    size_t best = 0;
    for (size_t i = 1; i < l->n; i++) {
        int c;
        TRY(jinja_charge(r, 1));
        TRY(jinja_cmp(r, p[i].key, p[best].key, &c));
        if (c * sign > 0)
            best = i;
    }
    *out = l->n ? p[best].value : jinja_undef("an item of an empty sequence");
    return 0;
}

FILTER(f_min)
{
    (void)self;
    return extreme(r, a, -1, out);
}

FILTER(f_max)
{
    (void)self;
    return extreme(r, a, 1, out);
}

FILTER(f_sum)
{
    struct jinja_list *l;
    struct jinja_value total = GIVEN(a->v[2]) ? a->v[2] : jinja_int(0), v;
    (void)self;
    TRY(jinja_iter(r, a->v[0], &l));
    for (size_t i = 0; i < l->n; i++) {
        TRY(jinja_charge(r, 1));
        TRY(attribute(r, l->v[i], a->v[1], none_given, &v));
        TRY(jinja_binary(r, OP_ADD, total, v, &total));
    }
    *out = total;
    return 0;
}

FILTER(f_reverse)
{
    struct jinja_list *l;
    struct jinja_sb b = { 0 };
    struct jinja_value back;
    (void)self;
    TRY(jinja_iter(r, a->v[0], &l));
    TRY(jinja_list_new(r, JINJA_ITER, l->n, &back));
    for (size_t i = l->n; i-- > 0;) {
        if (a->v[0].kind == JINJA_STR)
            TRY(jinja_sb_str(r, &b, l->v[i].s));
        else
            TRY(jinja_list_add(r, back.l, l->v[i]));
    }
    if (a->v[0].kind == JINJA_STR)
        return jinja_sb_done(r, &b, out);
    *out = back;
    return 0;
}

static int pair_of(struct jinja_run *r, struct jinja_value k, struct jinja_value v,
                   struct jinja_list *to)
{
    struct jinja_value t;
    TRY(jinja_list_new(r, JINJA_TUPLE, 2, &t));
    TRY(jinja_list_add(r, t.l, k));
    TRY(jinja_list_add(r, t.l, v));
    return jinja_list_add(r, to, t);
}

FILTER(f_items)
{
    struct jinja_value l;
    (void)self;
    TRY(jinja_list_new(r, JINJA_ITER, 0, &l));
    if (a->v[0].kind != JINJA_DICT && a->v[0].kind != JINJA_UNDEF)
        return jinja_fail(r, "can only get item pairs from a mapping");
    for (size_t i = 0; a->v[0].kind == JINJA_DICT && i < a->v[0].d->n; i++)
        TRY(pair_of(r, a->v[0].d->v[i].key, a->v[0].d->v[i].value, l.l));
    *out = l;
    return 0;
}

FILTER(f_dictsort)
{
    struct jinja_value l;
    struct jinja_pair *p;
    (void)self;
    bool by_value = GIVEN(a->v[2]) && jinja_str_is(a->v[2], "value");
    if (a->v[0].kind == JINJA_UNDEF)
        return jinja_fail_undef(r, a->v[0]);
    if (a->v[0].kind != JINJA_DICT)
        return jinja_fail(r, "'%s' object has no attribute 'items'", jinja_type_name(a->v[0]));
    TRY(f_items(r, self, a, &l));
    TRY(keyed(r, l.l, jinja_int(by_value), yes(a->v[1]), yes(a->v[3]) ? -1 : 1, &p));
    return values_of(r, p, l.l->n, out);
}

FILTER(f_groupby)
{
    struct jinja_list *l;
    struct jinja_pair *p;
    struct jinja_value groups, members, key, items;
    (void)self;
    TRY(jinja_iter(r, a->v[0], &l));
    TRY(jinja_list_new(r, JINJA_LIST, l->n, &items));
    for (size_t i = 0; i < l->n; i++) { /* (key, item) first, so that a default counts as the key */
        TRY(attribute(r, l->v[i], a->v[1], a->v[2], &key));
        TRY(pair_of(r, key, l->v[i], items.l));
    }
    TRY(keyed(r, items.l, jinja_int(0), yes(a->v[3]), 1, &p));
    TRY(jinja_list_new(r, JINJA_LIST, 0, &groups));
    for (size_t i = 0; i < l->n;) {
        size_t from = i;
        TRY(jinja_list_new(r, JINJA_LIST, 0, &members));
        for (int same = 1; i < l->n; i++) {
            same = jinja_eq(r, p[i].key, p[from].key);
            if (same < 0)
                return same;
            if (!same)
                break;
            TRY(jinja_list_add(r, members.l, p[i].value.l->v[1]));
        }
        TRY(pair_of(r, p[from].value.l->v[0], members, groups.l));
        if (i == from) /* a key that is not equal to itself */
            return jinja_fail(r, "groupby: keys cannot be compared");
    }
    *out = groups;
    return 0;
}

/* batch(n): rows of n; slice(n): n columns, the first ones longer. The rest is filled up. */
static int cut(struct jinja_run *r, const struct jinja_args *a, bool rows, struct jinja_value *out)
{
    struct jinja_list *l;
    struct jinja_value all, row;
    if (a->v[1].kind != JINJA_INT || a->v[1].i < 1 || a->v[1].i > 100000)
        return jinja_fail(r, "batch and slice take a positive number");
    TRY(jinja_iter(r, a->v[0], &l));
    size_t n = (size_t)a->v[1].i, n_rows = rows ? (l->n + n - 1) / n : n;
    TRY(jinja_list_new(r, JINJA_ITER, 0, &all));
    for (size_t i = 0, at = 0; i < n_rows; i++) {
        size_t want = rows ? n : l->n / n + (i < l->n % n), got = 0;
        TRY(jinja_list_new(r, JINJA_LIST, 0, &row));
        for (; got < want && at < l->n; got++)
            TRY(jinja_list_add(r, row.l, l->v[at++]));
        bool fill = rows ? got < want : l->n % n && i >= l->n % n;
        for (; GIVEN(a->v[2]) && fill && (rows ? got < want : got <= want); got++)
            TRY(jinja_list_add(r, row.l, a->v[2]));
        TRY(jinja_list_add(r, all.l, row));
    }
    *out = all;
    return 0;
}

FILTER(f_batch)
{
    (void)self;
    return cut(r, a, true, out);
}

FILTER(f_slice)
{
    (void)self;
    return cut(r, a, false, out);
}

static const struct jinja_builtin table[] = {
    { "list", f_list, "value" },
    { "first", f_first, "seq" },
    { "last", f_last, "seq" },
    { "join", f_join, "value d= attribute=" },
    { "map", f_map, "*" },
    { "select", f_select, "*" },
    { "reject", f_reject, "*" },
    { "selectattr", f_selectattr, "*" },
    { "rejectattr", f_rejectattr, "*" },
    { "sort", f_sort, "value reverse= case_sensitive= attribute=" },
    { "unique", f_unique, "value case_sensitive= attribute=" },
    { "min", f_min, "value case_sensitive= attribute=" },
    { "max", f_max, "value case_sensitive= attribute=" },
    { "sum", f_sum, "iterable attribute= start=" },
    { "reverse", f_reverse, "value" },
    { "items", f_items, "value" },
    { "dictsort", f_dictsort, "value case_sensitive= by= reverse=" },
    { "groupby", f_groupby, "value attribute default= case_sensitive=" },
    { "batch", f_batch, "value linecount fill_with=" },
    { "slice", f_slice, "value slices fill_with=" },
};

const struct jinja_builtin *jinja_seq_filter(const char *name)
{
    return jinja_find(table, sizeof table / sizeof table[0], name, strlen(name));
}
