/* Statements: output, assignment, branches, loops, blocks; and the start of a run.
 */
#include <string.h>

#include "server/text/jinja_exec.h"

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE }; /* what a body returns besides errors */

struct jinja_scope *jinja_scope_new(struct jinja_run *r, struct jinja_scope *parent)
{
    struct jinja_scope *s = jinja_alloc(r, sizeof *s);
    if (s)
        s->parent = parent;
    return s;
}

int jinja_set(struct jinja_run *r, struct jinja_scope *s, const char *name, struct jinja_value v)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->v[i].name == name) {
            s->v[i].value = v;
            return 0;
        }
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 4;
        struct jinja_var *p = jinja_alloc(r, cap * sizeof *p);
        if (!p)
            return jinja_alloc_code(r);
        if (s->n)
            memcpy(p, s->v, s->n * sizeof *p);
        s->v = p;
        s->cap = cap;
    }
    s->v[s->n++] = (struct jinja_var){ .name = name, .value = v };
    return 0;
}

static int lookup(const struct jinja_scope *s, const char *name, struct jinja_value *out)
{
    for (; s; s = s->parent)
        for (size_t i = 0; i < s->n; i++)
            if (s->v[i].name == name) {
                *out = s->v[i].value;
                return 1;
            }
    return 0;
}

int jinja_assign(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *target,
                 struct jinja_value v)
{
    if (target->kind == N_NAME)
        return jinja_set(r, s, target->name, v);
    if (target->kind == N_NSREF) {
        struct jinja_value ns;
        if (!lookup(s, target->name, &ns) || ns.kind != JINJA_NAMESPACE)
            return jinja_fail(r, "cannot assign attribute on non-namespace object");
        if (target->value.s->p[0] == '_')
            return jinja_fail(r, "a namespace cannot store names that begin with _");
        return jinja_dict_set(r, ns.d, target->value, v);
    }
    struct jinja_list *l;
    size_t i = 0;
    if (v.kind == JINJA_UNDEF || (!jinja_is_list(v) && v.kind != JINJA_STR && v.kind != JINJA_DICT))
        return jinja_fail(r, "cannot unpack non-iterable %s object", jinja_type_name(v));
    TRY(jinja_iter(r, v, &l));
    for (const struct jinja_node *t = target->a; t; t = t->next, i++) {
        if (i >= l->n)
            return jinja_fail(r, "not enough values to unpack (got %zu)", l->n);
        TRY(jinja_assign(r, s, t, l->v[i]));
    }
    return i < l->n ? jinja_fail(r, "too many values to unpack (expected %zu)", i) : 0;
}

static int run_body(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n);

int jinja_capture(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *body,
                  struct jinja_value *out)
{
    struct jinja_sb text = { 0 }, *outer = r->out;
    uint32_t line = r->line;
    r->out = &text;
    int rc = run_body(r, s, body);
    r->out = outer;
    if (rc < 0)
        return rc;
    r->line = line;
    return jinja_sb_done(r, &text, out);
}

static int filtered(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                    struct jinja_list *items, struct jinja_list **out)
{
    struct jinja_value kept;
    TRY(jinja_list_new(r, JINJA_LIST, 0, &kept));
    for (size_t i = 0; i < items->n; i++) {
        struct jinja_scope *inner = jinja_scope_new(r, s);
        struct jinja_value v;
        if (!inner)
            return jinja_alloc_code(r);
        TRY(jinja_assign(r, inner, n->a, items->v[i]));
        TRY(jinja_eval(r, inner, n->c, &v));
        if (jinja_truth(v))
            TRY(jinja_list_add(r, kept.l, items->v[i]));
    }
    *out = kept.l;
    return 0;
}

static int run_loop(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                    struct jinja_value over, int depth0)
{
    struct jinja_list *items;
    TRY(jinja_iter(r, over, &items));
    if (n->c)
        TRY(filtered(r, s, n, items, &items));
    struct jinja_loop *loop = jinja_alloc(r, sizeof *loop);
    if (!loop)
        return jinja_alloc_code(r);
    *loop = (struct jinja_loop){
        .items = items, .depth0 = depth0, .node = n->flag ? n : NULL, .scope = s
    };
    struct jinja_value self = { .kind = JINJA_LOOP, .loop = loop };
    for (size_t i = 0; i < items->n; i++) {
        struct jinja_scope *inner = jinja_scope_new(r, s);
        if (!inner)
            return jinja_alloc_code(r);
        loop->i = i;
        TRY(jinja_charge(r, 1));
        TRY(jinja_set(r, inner, r->prog->loop, self));
        TRY(jinja_assign(r, inner, n->a, items->v[i]));
        int rc = run_body(r, inner, n->d);
        if (rc < 0)
            return rc;
        if (rc == FLOW_BREAK)
            break;
    }
    if (items->n || !n->e)
        return 0;
    struct jinja_scope *inner = jinja_scope_new(r, s);
    return inner ? run_body(r, inner, n->e) : jinja_alloc_code(r);
}

int jinja_recurse(struct jinja_run *r, struct jinja_loop *loop, struct jinja_value items,
                  struct jinja_value *out)
{
    if (!loop->node)
        return jinja_fail(r, "the loop must have the 'recursive' marker to be called");
    struct jinja_sb text = { 0 }, *outer = r->out;
    r->out = &text;
    int rc = run_loop(r, loop->scope, loop->node, items, loop->depth0 + 1);
    r->out = outer;
    return rc < 0 ? rc : jinja_sb_done(r, &text, out);
}

static int run_for(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    struct jinja_value over;
    TRY(jinja_eval(r, s, n->b, &over));
    int rc = run_loop(r, s, n, over, 0);
    return rc; /* FLOW_* of an else branch belongs to the loop outside */
}

static int run_if(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    for (const struct jinja_node *i = n->a; i; i = i->next) {
        struct jinja_value v = jinja_bool(true);
        if (i->a) {
            r->line = i->line;
            TRY(jinja_eval(r, s, i->a, &v));
        }
        if (jinja_truth(v))
            return run_body(r, s, i->b);
    }
    return 0;
}

static int run_output(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    struct jinja_value v = n->value;
    if (n->kind == N_OUTPUT)
        TRY(jinja_eval(r, s, n->a, &v));
    return jinja_sb_value(r, r->out, v);
}

static int run_set(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    struct jinja_value v;
    TRY(jinja_eval(r, s, n->b, &v));
    return jinja_assign(r, s, n->a, v);
}

/* {% set x %}, {% filter f %} and {% generation %}: a body in a scope of its own, through filters, to where it goes. */
static int run_block(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    const struct jinja_node *filter = n->kind == N_SETBLOCK      ? n->b
                                      : n->kind == N_FILTERBLOCK ? n->a
                                                                 : NULL;
    const struct jinja_node *body = n->kind == N_SETBLOCK      ? n->c
                                    : n->kind == N_FILTERBLOCK ? n->b
                                                               : n->a;
    struct jinja_scope *inner = jinja_scope_new(r, s);
    struct jinja_value v;
    if (!inner)
        return jinja_alloc_code(r);
    TRY(jinja_capture(r, inner, body, &v));
    if (filter) {
        r->block = v;
        TRY(jinja_eval(r, s, filter, &v));
    }
    return n->kind == N_SETBLOCK ? jinja_assign(r, s, n->a, v) : jinja_sb_value(r, r->out, v);
}

static int new_macro(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
                     struct jinja_value *out)
{
    TRY(jinja_func_new(r, NULL, JINJA_NIL, out));
    out->fn->macro = n;
    out->fn->scope = s;
    return 0;
}

static int run_macro(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    struct jinja_value m;
    TRY(new_macro(r, s, n, &m));
    return jinja_set(r, s, n->name, m);
}

static int run_callblock(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    struct jinja_value caller, fn, v;
    struct jinja_args a = { 0 };
    TRY(new_macro(r, s, n->b, &caller));
    TRY(jinja_eval(r, s, n->a->a, &fn));
    TRY(jinja_eval_args(r, s, n->a->b, NULL, &caller, &a));
    TRY(jinja_call(r, fn, &a, &v));
    return jinja_sb_value(r, r->out, v);
}

static int run_with(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    struct jinja_scope *inner = jinja_scope_new(r, s);
    if (!inner)
        return jinja_alloc_code(r);
    for (const struct jinja_node *i = n->a; i; i = i->next) {
        struct jinja_value v;
        TRY(jinja_eval(r, s, i->b, &v));
        TRY(jinja_assign(r, inner, i->a, v));
    }
    return run_body(r, inner, n->b);
}

static int run_one(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    r->line = n->line;
    switch ((int)n->kind) {
    case N_DATA:
    case N_OUTPUT: return run_output(r, s, n);
    case N_SET: return run_set(r, s, n);
    case N_SETBLOCK:
    case N_FILTERBLOCK:
    case N_SCOPE: return run_block(r, s, n);
    case N_FOR: return run_for(r, s, n);
    case N_IF: return run_if(r, s, n);
    case N_MACRO: return run_macro(r, s, n);
    case N_CALLBLOCK: return run_callblock(r, s, n);
    case N_WITH: return run_with(r, s, n);
    case N_BREAK: return FLOW_BREAK;
    default: return FLOW_CONTINUE;
    }
}

static int run_body(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n)
{
    TRY(jinja_enter(r));
    for (; n; n = n->next) {
        TRY(jinja_charge(r, 1));
        int rc = run_one(r, s, n);
        if (rc) {
            jinja_leave(r);
            return rc;
        }
    }
    jinja_leave(r);
    return 0;
}

int jinja_init(struct jinja_run *r, const struct jinja *j, const struct jinja_limits *lim,
               struct err *e)
{
    *r = (struct jinja_run){ .lim = *lim, .e = e, .prog = j };
    arena_init(&r->mem, lim->memory_bytes);
    r->root = jinja_scope_new(r, NULL);
    return r->root ? 0 : jinja_alloc_code(r);
}

void jinja_fini(struct jinja_run *r)
{
    arena_clear(&r->mem);
}

int jinja_define(struct jinja_run *r, const char *name, struct jinja_value v)
{
    const char *known = jinja_interned(r->prog, name);
    return known ? jinja_set(r, r->root, known, v) : 0; /* a name the program never says */
}

int jinja_exec(struct jinja_run *r, struct jinja_sb *out)
{
    *out = (struct jinja_sb){ 0 };
    r->out = out;
    int rc = run_body(r, r->root, r->prog->body);
    return rc < 0 ? rc : 0;
}
