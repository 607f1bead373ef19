/* Tags: {% set %}, {% for %}, {% if %}, {% macro %} and so on, and the text between them.
 */
#include <string.h>

#include "server/text/jinja.h"
#include "server/text/jinja_ast.h"

static int new_node(struct jinja_parser *p, enum jinja_node_kind kind, const struct jinja_token *at,
                    struct jinja_node **out)
{
    *out = jinja_node_new(p, kind, at);
    return *out ? 0 : ERR_NOMEM;
}

static int new_name(struct jinja_parser *p, enum jinja_node_kind kind, struct jinja_node **out)
{
    const struct jinja_token *t = p->t;
    TRY(jinja_expect(p, TOK_NAME));
    TRY(new_node(p, kind, t, out));
    (*out)->name = jinja_intern(p->j, t->p, t->n);
    return (*out)->name ? 0 : jinja_nomem(p);
}

/* What stands between two tags: `%}`, a body, `{% end`. The end name is left as the current token. */
static int parse_inner(struct jinja_parser *p, const char *const *ends, struct jinja_node **out)
{
    if (p->t->kind == TOK_COLON)
        p->t++;
    TRY(jinja_expect(p, TOK_BLOCK_END));
    TRY(jinja_deeper(p));
    TRY(jinja_parse_body(p, ends, out));
    p->depth--;
    if (p->t->kind == TOK_EOF)
        return jinja_syntax(p, p->t, ERR_FORMAT, "end of template, but '%s' is missing", ends[0]);
    return 0;
}

static int parse_until(struct jinja_parser *p, const char *end, struct jinja_node **out)
{
    const char *const ends[] = { end, NULL };
    TRY(parse_inner(p, ends, out));
    p->t++;
    return 0;
}

static int check_target(struct jinja_parser *p, const struct jinja_node *n, bool top)
{
    if (n->kind == N_NAME || n->kind == N_NSREF)
        return 0;
    if (n->kind != N_TUPLE || (!top && !n->a))
        return err_set(p->e, ERR_FORMAT, "template line %u column %u: cannot assign to this",
                       n->line, n->col);
    for (const struct jinja_node *i = n->a; i; i = i->next)
        TRY(check_target(p, i, false));
    return 0;
}

static int parse_target(struct jinja_parser *p, enum jinja_tuple_mode mode, const char *end,
                        struct jinja_node **out)
{
    TRY(jinja_parse_tuple(p, mode, end, out));
    return check_target(p, *out, true);
}

static int parse_set(struct jinja_parser *p, struct jinja_node **out)
{
    const struct jinja_token *t = p->t++;
    struct jinja_node *target, *expr;
    TRY(parse_target(p, TUPLE_NSTARGET, NULL, &target));
    if (p->t->kind == TOK_ASSIGN) {
        p->t++;
        TRY(jinja_parse_tuple(p, TUPLE_FULL, NULL, &expr));
        TRY(new_node(p, N_SET, t, out));
    } else {
        TRY(jinja_parse_filters(p, NULL, false, &expr));
        TRY(new_node(p, N_SETBLOCK, t, out));
        TRY(parse_until(p, "endset", &(*out)->c));
    }
    (*out)->a = target;
    (*out)->b = expr;
    return 0;
}

static int parse_for(struct jinja_parser *p, struct jinja_node **out)
{
    static const char *const ends[] = { "endfor", "else", NULL };
    TRY(new_node(p, N_FOR, p->t++, out));
    struct jinja_node *n = *out;
    TRY(parse_target(p, TUPLE_TARGET, "in", &n->a));
    if (!jinja_tok_is(p->t, "in"))
        return jinja_syntax(p, p->t, ERR_FORMAT, "expected 'in'");
    p->t++;
    TRY(jinja_parse_tuple(p, TUPLE_NOCOND, "recursive", &n->b));
    if (jinja_tok_is(p->t, "if")) {
        p->t++;
        TRY(jinja_parse_expr(p, true, &n->c));
    }
    if (jinja_tok_is(p->t, "recursive")) {
        p->t++;
        n->flag = true;
    }
    p->loops++;
    TRY(parse_inner(p, ends, &n->d));
    p->loops--;
    bool has_else = jinja_tok_is(p->t, "else");
    p->t++;
    return has_else ? parse_until(p, "endfor", &n->e) : 0;
}

static int parse_if(struct jinja_parser *p, struct jinja_node **out)
{
    static const char *const ends[] = { "endif", "elif", "else", NULL };
    TRY(new_node(p, N_IF, p->t, out));
    p->soft++;
    for (struct jinja_node **tail = &(*out)->a;; tail = &(*tail)->next) {
        bool is_else = jinja_tok_is(p->t, "else");
        TRY(new_node(p, N_BRANCH, p->t++, tail));
        if (is_else) {
            TRY(parse_until(p, "endif", &(*tail)->b));
            break;
        }
        TRY(jinja_parse_tuple(p, TUPLE_NOCOND, NULL, &(*tail)->a));
        TRY(parse_inner(p, ends, &(*tail)->b));
        if (jinja_tok_is(p->t, "endif")) {
            p->t++;
            break;
        }
    }
    p->soft--;
    return 0;
}

static int parse_params(struct jinja_parser *p, struct jinja_node **out)
{
    TRY(jinja_expect(p, TOK_LPAREN));
    bool defaults = false;
    for (struct jinja_node **tail = out; p->t->kind != TOK_RPAREN; tail = &(*tail)->next) {
        if (*out)
            TRY(jinja_expect(p, TOK_COMMA));
        TRY(new_name(p, N_PARAM, tail));
        if (p->t->kind == TOK_ASSIGN) {
            p->t++;
            TRY(jinja_parse_expr(p, true, &(*tail)->a));
            defaults = true;
        } else if (defaults) {
            return jinja_syntax(p, p->t, ERR_FORMAT, "parameter without a default after one with");
        }
    }
    p->t++;
    return 0;
}

/* The body of a macro into n; notices which of varargs, kwargs and caller it uses. A loop outside is not its own. */
static int parse_macro_body(struct jinja_parser *p, const char *end, struct jinja_node *n)
{
    struct jinja_parser outer = *p;
    p->varargs = p->kwargs = p->caller = false;
    p->loops = 0;
    TRY(parse_until(p, end, &n->b));
    n->takes_varargs = p->varargs;
    n->takes_kwargs = p->kwargs;
    n->takes_caller = p->caller;
    p->loops = outer.loops;
    p->varargs |= outer.varargs;
    p->kwargs |= outer.kwargs;
    p->caller |= outer.caller;
    return 0;
}

static int parse_macro(struct jinja_parser *p, struct jinja_node **out)
{
    p->t++;
    TRY(new_name(p, N_MACRO, out));
    TRY(parse_params(p, &(*out)->a));
    return parse_macro_body(p, "endmacro", *out);
}

static int parse_callblock(struct jinja_parser *p, struct jinja_node **out)
{
    TRY(new_node(p, N_CALLBLOCK, p->t++, out));
    struct jinja_node *n = *out;
    TRY(new_node(p, N_MACRO, p->t, &n->b));
    n->b->name = p->j->caller;
    if (p->t->kind == TOK_LPAREN)
        TRY(parse_params(p, &n->b->a));
    TRY(jinja_parse_expr(p, true, &n->a));
    if (n->a->kind != N_CALL)
        return jinja_syntax(p, p->t, ERR_FORMAT, "expected a call");
    return parse_macro_body(p, "endcall", n->b);
}

static int parse_filterblock(struct jinja_parser *p, struct jinja_node **out)
{
    TRY(new_node(p, N_FILTERBLOCK, p->t++, out));
    TRY(jinja_parse_filters(p, NULL, true, &(*out)->a));
    return parse_until(p, "endfilter", &(*out)->b);
}

static int parse_with(struct jinja_parser *p, struct jinja_node **out)
{
    TRY(new_node(p, N_WITH, p->t++, out));
    for (struct jinja_node **tail = &(*out)->a; p->t->kind != TOK_BLOCK_END;
         tail = &(*tail)->next) {
        if ((*out)->a)
            TRY(jinja_expect(p, TOK_COMMA));
        TRY(new_node(p, N_SET, p->t, tail));
        TRY(parse_target(p, TUPLE_TARGET, NULL, &(*tail)->a));
        TRY(jinja_expect(p, TOK_ASSIGN));
        TRY(jinja_parse_expr(p, true, &(*tail)->b));
    }
    return parse_until(p, "endwith", &(*out)->b);
}

static int parse_print(struct jinja_parser *p, struct jinja_node **out)
{
    p->t++;
    for (bool first = true; p->t->kind != TOK_BLOCK_END; out = &(*out)->next, first = false) {
        if (!first)
            TRY(jinja_expect(p, TOK_COMMA));
        TRY(new_node(p, N_OUTPUT, p->t, out));
        TRY(jinja_parse_expr(p, true, &(*out)->a));
    }
    return 0;
}

/* {% generation %}: the tag marks what the assistant wrote; rendered, it is its body. */
static int parse_generation(struct jinja_parser *p, struct jinja_node **out)
{
    TRY(new_node(p, N_SCOPE, p->t++, out));
    int loops = p->loops;
    p->loops = 0;
    TRY(parse_until(p, "endgeneration", &(*out)->a));
    p->loops = loops;
    return 0;
}

static int parse_jump(struct jinja_parser *p, struct jinja_node **out)
{
    if (!p->loops)
        return jinja_syntax(p, p->t, ERR_FORMAT, "break or continue outside of a loop");
    TRY(new_node(p, jinja_tok_is(p->t, "break") ? N_BREAK : N_CONTINUE, p->t, out));
    p->t++;
    return 0;
}

static const struct {
    const char *name;
    int (*parse)(struct jinja_parser *p, struct jinja_node **out);
} tags[] = {
    { "set", parse_set },     { "for", parse_for },        { "if", parse_if },
    { "macro", parse_macro }, { "call", parse_callblock }, { "filter", parse_filterblock },
    { "with", parse_with },   { "print", parse_print },    { "generation", parse_generation },
    { "break", parse_jump },  { "continue", parse_jump },
};

static int parse_tag(struct jinja_parser *p, struct jinja_node **out)
{
    const struct jinja_token *t = p->t;
    if (t->kind != TOK_NAME)
        return jinja_syntax(p, t, ERR_FORMAT, "expected the name of a tag, found '%s'",
                            jinja_tok_name(t->kind));
    for (size_t i = 0; i < sizeof tags / sizeof tags[0]; i++)
        if (jinja_tok_is(t, tags[i].name))
            return tags[i].parse(p, out);
    bool stray = t->n > 2 && (memcmp(t->p, "end", 3) == 0 || memcmp(t->p, "el", 2) == 0);
    return jinja_syntax(p, t, stray ? ERR_FORMAT : ERR_UNSUPPORTED, "%s tag '%.*s'",
                        stray ? "unexpected" : "unsupported", (int)(t->n < 40 ? t->n : 40), t->p);
}

static bool ends_here(const struct jinja_parser *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (jinja_tok_is(p->t, *ends))
            return true;
    return false;
}

int jinja_parse_body(struct jinja_parser *p, const char *const *ends, struct jinja_node **out)
{
    for (struct jinja_node **tail = out;;) {
        const struct jinja_token *t = p->t;
        if (t->kind == TOK_EOF)
            return 0;
        p->t++;
        if (t->kind == TOK_DATA) {
            TRY(new_node(p, N_DATA, t, tail));
            struct jinja_str *s = arena_alloc(&p->j->mem, sizeof *s);
            if (!s)
                return jinja_nomem(p);
            *s = (struct jinja_str){ .p = t->p, .n = t->n };
            (*tail)->value = (struct jinja_value){ .kind = JINJA_STR, .s = s };
        } else if (t->kind == TOK_VAR_BEGIN) {
            TRY(new_node(p, N_OUTPUT, t, tail));
            TRY(jinja_parse_tuple(p, TUPLE_FULL, NULL, &(*tail)->a));
            TRY(jinja_expect(p, TOK_VAR_END));
        } else {
            if (ends_here(p, ends))
                return 0;
            TRY(parse_tag(p, tail));
            TRY(jinja_expect(p, TOK_BLOCK_END));
        }
        while (*tail)
            tail = &(*tail)->next;
    }
}

int jinja_parse(struct jinja *j, struct err *e)
{
    struct jinja_token *toks;
    size_t n;
    TRY(jinja_lex(j, &toks, &n, e));
    struct jinja_parser p = { .j = j, .t = toks, .e = e };
    struct jinja_node *body = NULL;
    j->loop = jinja_intern(j, "loop", 4);
    j->caller = jinja_intern(j, "caller", 6);
    j->varargs = jinja_intern(j, "varargs", 7);
    j->kwargs = jinja_intern(j, "kwargs", 6);
    if (!j->loop || !j->caller || !j->varargs || !j->kwargs)
        return jinja_nomem(&p);
    TRY(jinja_parse_body(&p, NULL, &body));
    j->body = body;
    return 0;
}
