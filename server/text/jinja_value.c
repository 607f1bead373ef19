/* Containers, truth, equality and order, as Python has them.
 */
#include <math.h>
#include <string.h>

#include "server/text/jinja.h"

int jinja_list_new(struct jinja_run *r, enum jinja_kind kind, size_t cap, struct jinja_value *out)
{
    struct jinja_list *l = jinja_alloc(r, sizeof *l);
    if (!l)
        return jinja_alloc_code(r);
    if (cap) {
        l->v = cap <= SIZE_MAX / sizeof *l->v ? jinja_alloc(r, cap * sizeof *l->v) : NULL;
        if (!l->v)
            return jinja_alloc_code(r);
        l->cap = cap;
    }
    *out = (struct jinja_value){ .kind = kind, .l = l };
    return 0;
}

int jinja_list_add(struct jinja_run *r, struct jinja_list *l, struct jinja_value v)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 8;
        struct jinja_value *p = jinja_alloc(r, cap * sizeof *p);
        if (!p)
            return jinja_alloc_code(r);
        if (l->n)
            memcpy(p, l->v, l->n * sizeof *p);
        l->v = p;
        l->cap = cap;
    }
    l->v[l->n++] = v;
    return 0;
}

int jinja_dict_new(struct jinja_run *r, size_t cap, struct jinja_value *out)
{
    struct jinja_dict *d = jinja_alloc(r, sizeof *d);
    if (!d)
        return jinja_alloc_code(r);
    if (cap) {
        d->v = cap <= SIZE_MAX / sizeof *d->v ? jinja_alloc(r, cap * sizeof *d->v) : NULL;
        d->hash = d->v ? jinja_alloc(r, cap * sizeof *d->hash) : NULL;
        if (!d->hash)
            return jinja_alloc_code(r);
        d->cap = cap;
    }
    *out = (struct jinja_value){ .kind = JINJA_DICT, .d = d };
    return 0;
}

static uint32_t mix(uint32_t h, const void *p, size_t n)
{
    const unsigned char *c = p;
    for (size_t i = 0; i < n; i++)
        h = (h ^ c[i]) * 16777619u;
    return h;
}

/* Equal keys have equal hashes: 1, 1.0 and true are the same key. */
static int hash_key(struct jinja_run *r, struct jinja_value k, uint32_t *h)
{
    double f;
    if (k.kind == JINJA_STR) {
        *h = mix(2166136261u, k.s->p, k.s->n);
    } else if (jinja_is_num(k)) {
        f = k.kind == JINJA_FLOAT ? k.f : (double)jinja_as_int(k);
        f += 0.0; /* -0.0 is 0.0 */
        *h = mix(7, &f, sizeof f);
    } else if (k.kind == JINJA_TUPLE) {
        TRY(jinja_enter(r));
        *h = 11;
        for (size_t i = 0; i < k.l->n; i++) {
            uint32_t part;
            TRY(jinja_charge(r, 1));
            TRY(hash_key(r, k.l->v[i], &part));
            *h = mix(*h, &part, sizeof part);
        }
        jinja_leave(r);
    } else if (k.kind == JINJA_LIST || k.kind == JINJA_DICT) {
        return jinja_fail(r, "unhashable type: '%s'", jinja_type_name(k));
    } else {
        *h = (uint32_t)k.kind;
    }
    return 0;
}

static int dict_at(struct jinja_run *r, const struct jinja_dict *d, struct jinja_value key,
                   uint32_t h, size_t *at)
{
    TRY(jinja_charge(r, d->n / 16));
    for (size_t i = 0; i < d->n; i++) {
        if (d->hash[i] != h)
            continue;
        int eq = jinja_eq(r, d->v[i].key, key);
        if (eq < 0)
            return eq;
        if (eq) {
            *at = i;
            return 1;
        }
    }
    return 0;
}

int jinja_dict_set(struct jinja_run *r, struct jinja_dict *d, struct jinja_value key,
                   struct jinja_value v)
{
    uint32_t h;
    size_t at = 0;
    TRY(hash_key(r, key, &h));
    int found = dict_at(r, d, key, h, &at);
    if (found < 0)
        return found;
    if (found) {
        d->v[at].value = v;
        return 0;
    }
    if (d->n == d->cap) {
        struct jinja_value bigger = JINJA_NIL;
        TRY(jinja_dict_new(r, d->cap ? 2 * d->cap : 8, &bigger));
        if (d->n) {
            memcpy(bigger.d->v, d->v, d->n * sizeof *d->v);
            memcpy(bigger.d->hash, d->hash, d->n * sizeof *d->hash);
        }
        bigger.d->n = d->n;
        *d = *bigger.d;
    }
    d->hash[d->n] = h;
    d->v[d->n++] = (struct jinja_pair){ .key = key, .value = v };
    return 0;
}

int jinja_dict_get(struct jinja_run *r, const struct jinja_dict *d, struct jinja_value key,
                   struct jinja_value *out)
{
    uint32_t h;
    size_t at = 0;
    TRY(hash_key(r, key, &h));
    int found = dict_at(r, d, key, h, &at);
    if (found > 0)
        *out = d->v[at].value;
    return found;
}

int jinja_dict_gets(struct jinja_run *r, const struct jinja_dict *d, const char *key,
                    struct jinja_value *out)
{
    struct jinja_str s = { .p = key, .n = strlen(key) };
    return jinja_dict_get(r, d, (struct jinja_value){ .kind = JINJA_STR, .s = &s }, out);
}

int jinja_iter(struct jinja_run *r, struct jinja_value v, struct jinja_list **out)
{
    struct jinja_value l = JINJA_NIL;
    if (jinja_is_list(v)) {
        if (v.kind == JINJA_ITER && v.l->spent) {
            TRY(jinja_list_new(r, JINJA_LIST, 0, &l));
            *out = l.l;
            return 0;
        }
        v.l->spent = v.kind == JINJA_ITER;
        *out = v.l;
        return 0;
    }
    if (v.kind == JINJA_UNDEF) {
        TRY(jinja_list_new(r, JINJA_LIST, 0, &l));
    } else if (v.kind == JINJA_DICT) {
        TRY(jinja_list_new(r, JINJA_LIST, v.d->n, &l));
        for (size_t i = 0; i < v.d->n; i++)
            TRY(jinja_list_add(r, l.l, v.d->v[i].key));
    } else if (v.kind == JINJA_STR) {
        TRY(jinja_list_new(r, JINJA_LIST, jinja_str_len(v.s), &l));
        for (size_t i = 0; i < v.s->n;) {
            int32_t cp;
            struct jinja_value c;
            size_t k = jinja_cp(v.s->p + i, v.s->n - i, &cp);
            TRY(jinja_charge(r, 1));
            TRY(jinja_str_cut(r, v.s, i, k, &c));
            TRY(jinja_list_add(r, l.l, c));
            i += k;
        }
    } else {
        return jinja_fail(r, "'%s' object is not iterable", jinja_type_name(v));
    }
    *out = l.l;
    return 0;
}

const char *jinja_type_name(struct jinja_value v)
{
    static const char *const names[] = {
        [JINJA_MISSING] = "missing", [JINJA_UNDEF] = "Undefined",
        [JINJA_NONE] = "NoneType",   [JINJA_BOOL] = "bool",
        [JINJA_INT] = "int",         [JINJA_FLOAT] = "float",
        [JINJA_STR] = "str",         [JINJA_LIST] = "list",
        [JINJA_TUPLE] = "tuple",     [JINJA_RANGE] = "range",
        [JINJA_VIEW] = "dict_view",  [JINJA_ITER] = "generator",
        [JINJA_DICT] = "dict",       [JINJA_NAMESPACE] = "Namespace",
        [JINJA_FUNC] = "function",   [JINJA_LOOP] = "LoopContext",
        [JINJA_SLICE] = "slice",
    };
    return names[v.kind];
}

bool jinja_truth(struct jinja_value v)
{
    if (v.kind == JINJA_BOOL || v.kind == JINJA_INT)
        return jinja_as_int(v) != 0;
    if (v.kind == JINJA_FLOAT)
        return v.f != 0;
    if (v.kind == JINJA_STR)
        return v.s->n > 0;
    if (v.kind == JINJA_LIST || v.kind == JINJA_TUPLE || v.kind == JINJA_RANGE ||
        v.kind == JINJA_VIEW)
        return v.l->n > 0;
    if (v.kind == JINJA_DICT)
        return v.d->n > 0;
    return v.kind > JINJA_NONE;
}

int jinja_len(struct jinja_run *r, struct jinja_value v, size_t *out)
{
    if (v.kind == JINJA_STR) {
        TRY(jinja_charge(r, v.s->n / 64));
        *out = jinja_str_len(v.s);
    } else if (jinja_is_list(v) && v.kind != JINJA_ITER) {
        *out = v.l->n;
    } else if (v.kind == JINJA_DICT) {
        *out = v.d->n;
    } else if (v.kind == JINJA_UNDEF) {
        *out = 0;
    } else if (v.kind == JINJA_LOOP) {
        *out = v.loop->items->n;
    } else {
        return jinja_fail(r, "object of type '%s' has no len()", jinja_type_name(v));
    }
    return 0;
}

static int list_eq(struct jinja_run *r, const struct jinja_list *a, const struct jinja_list *b)
{
    if (a->n != b->n)
        return 0;
    for (size_t i = 0; i < a->n; i++) {
        int eq = jinja_eq(r, a->v[i], b->v[i]);
        if (eq <= 0)
            return eq;
    }
    return 1;
}

static int dict_eq(struct jinja_run *r, const struct jinja_dict *a, const struct jinja_dict *b)
{
    if (a->n != b->n)
        return 0;
    for (size_t i = 0; i < a->n; i++) {
        struct jinja_value other;
        int rc = jinja_dict_get(r, b, a->v[i].key, &other);
        if (rc > 0)
            rc = jinja_eq(r, a->v[i].value, other);
        if (rc <= 0)
            return rc;
    }
    return 1;
}

int jinja_eq(struct jinja_run *r, struct jinja_value a, struct jinja_value b)
{
    if (jinja_is_num(a) && jinja_is_num(b)) {
        if (a.kind != JINJA_FLOAT && b.kind != JINJA_FLOAT)
            return jinja_as_int(a) == jinja_as_int(b);
        double x = a.kind == JINJA_FLOAT ? a.f : (double)jinja_as_int(a);
        double y = b.kind == JINJA_FLOAT ? b.f : (double)jinja_as_int(b);
        return x == y;
    }
    if (a.kind != b.kind)
        return 0;
    if (a.kind == JINJA_STR)
        return a.s->n == b.s->n && memcmp(a.s->p, b.s->p, a.s->n) == 0;
    if (a.kind == JINJA_NONE || a.kind == JINJA_UNDEF)
        return 1;
    if (a.kind == JINJA_LIST || a.kind == JINJA_TUPLE || a.kind == JINJA_RANGE ||
        a.kind == JINJA_DICT) {
        TRY(jinja_enter(r));
        TRY(jinja_charge(r, a.kind == JINJA_DICT ? a.d->n : a.l->n));
        int eq = a.kind == JINJA_DICT ? dict_eq(r, a.d, b.d) : list_eq(r, a.l, b.l);
        if (eq >= 0)
            jinja_leave(r);
        return eq;
    }
    return a.l == b.l; /* the same object */
}

int jinja_cmp(struct jinja_run *r, struct jinja_value a, struct jinja_value b, int *out)
{
    if (a.kind == JINJA_UNDEF || b.kind == JINJA_UNDEF)
        return jinja_fail_undef(r, a.kind == JINJA_UNDEF ? a : b);
    if (jinja_is_num(a) && jinja_is_num(b)) {
        if (a.kind != JINJA_FLOAT && b.kind != JINJA_FLOAT) {
            *out = (jinja_as_int(a) > jinja_as_int(b)) - (jinja_as_int(a) < jinja_as_int(b));
            return 0;
        }
        double x = a.kind == JINJA_FLOAT ? a.f : (double)jinja_as_int(a);
        double y = b.kind == JINJA_FLOAT ? b.f : (double)jinja_as_int(b);
        *out = (x > y) - (x < y);
        return 0;
    }
    if (a.kind == JINJA_STR && b.kind == JINJA_STR) {
        *out = jinja_str_cmp(a.s, b.s);
        return 0;
    }
    if (a.kind != b.kind || (a.kind != JINJA_LIST && a.kind != JINJA_TUPLE))
        return jinja_fail(r, "'<' not supported between instances of '%s' and '%s'",
                          jinja_type_name(a), jinja_type_name(b));
    TRY(jinja_enter(r));
    size_t n = a.l->n < b.l->n ? a.l->n : b.l->n;
    for (size_t i = 0; i < n; i++) {
        TRY(jinja_charge(r, 1));
        int eq = jinja_eq(r, a.l->v[i], b.l->v[i]);
        if (eq < 0)
            return eq;
        if (!eq) {
            TRY(jinja_cmp(r, a.l->v[i], b.l->v[i], out));
            jinja_leave(r);
            return 0;
        }
    }
    jinja_leave(r);
    *out = (a.l->n > b.l->n) - (a.l->n < b.l->n);
    return 0;
}

int jinja_contains(struct jinja_run *r, struct jinja_value v, struct jinja_value needle, bool *out)
{
    struct jinja_value found;
    if (v.kind == JINJA_DICT) {
        int rc = jinja_dict_get(r, v.d, needle, &found);
        *out = rc > 0;
        return rc < 0 ? rc : 0;
    }
    if (v.kind == JINJA_STR) {
        if (needle.kind != JINJA_STR)
            return jinja_fail(r, "'in <string>' requires string as left operand, not %s",
                              jinja_type_name(needle));
        TRY(jinja_charge(r, v.s->n / 64));
        *out = jinja_str_find(v.s, 0, v.s->n, needle.s, false) != SIZE_MAX;
        return 0;
    }
    struct jinja_list *l;
    TRY(jinja_iter(r, v, &l));
    *out = false;
    for (size_t i = 0; i < l->n && !*out; i++) {
        TRY(jinja_charge(r, 1));
        int eq = jinja_eq(r, l->v[i], needle);
        if (eq < 0)
            return eq;
        *out = eq;
    }
    return 0;
}
