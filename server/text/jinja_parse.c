/* Expressions: recursive descent in jinja2's order of precedence, which is not Python's everywhere (** binds to the left,
 * ~ binds tighter than +). Depth is bounded by JINJA_PARSE_DEPTH.
 */
#include <string.h>

#include "server/text/jinja.h"
#include "server/text/jinja_ast.h"

static bool skip_name(struct jinja_parser *p, const char *name)
{
    bool is = jinja_tok_is(p->t, name);
    p->t += is;
    return is;
}

static int new_node(struct jinja_parser *p, enum jinja_node_kind kind, const struct jinja_token *at,
                    struct jinja_node *a, struct jinja_node *b, struct jinja_node **out)
{
    struct jinja_node *n = jinja_node_new(p, kind, at);
    if (!n)
        return ERR_NOMEM;
    n->a = a;
    n->b = b;
    *out = n;
    return 0;
}

static int const_node(struct jinja_parser *p, const struct jinja_token *at, struct jinja_value v,
                      struct jinja_node **out)
{
    TRY(new_node(p, N_CONST, at, NULL, NULL, out));
    (*out)->value = v;
    return 0;
}

static int set_str(struct jinja_parser *p, struct jinja_node *n, const char *s, size_t len)
{
    struct jinja_str *str = arena_alloc(&p->j->mem, sizeof *str);
    if (!str)
        return jinja_nomem(p);
    *str = (struct jinja_str){ .p = s, .n = len };
    n->value = (struct jinja_value){ .kind = JINJA_STR, .s = str };
    return 0;
}

static int set_name(struct jinja_parser *p, struct jinja_node *n, const struct jinja_token *t)
{
    n->name = jinja_intern(p->j, t->p, t->n);
    return n->name ? 0 : jinja_nomem(p);
}

static int parse_name(struct jinja_parser *p, bool nsref, struct jinja_node **out)
{
    const struct jinja_token *t = p->t++;
    if (jinja_tok_is(t, "true") || jinja_tok_is(t, "True"))
        return const_node(p, t, jinja_bool(true), out);
    if (jinja_tok_is(t, "false") || jinja_tok_is(t, "False"))
        return const_node(p, t, jinja_bool(false), out);
    if (jinja_tok_is(t, "none") || jinja_tok_is(t, "None"))
        return const_node(p, t, JINJA_NIL, out);
    bool ref = nsref && p->t->kind == TOK_DOT;
    TRY(new_node(p, ref ? N_NSREF : N_NAME, t, NULL, NULL, out));
    TRY(set_name(p, *out, t));
    p->varargs |= (*out)->name == p->j->varargs;
    p->kwargs |= (*out)->name == p->j->kwargs;
    p->caller |= (*out)->name == p->j->caller;
    if (ref) {
        p->t++;
        const struct jinja_token *attr = p->t;
        TRY(jinja_expect(p, TOK_NAME));
        TRY(set_str(p, *out, attr->p, attr->n));
    }
    return 0;
}

static int parse_string(struct jinja_parser *p, struct jinja_node **out)
{
    const struct jinja_token *t = p->t;
    size_t n = 0;
    for (; p->t->kind == TOK_STR; p->t++)
        n += p->t->n;
    TRY(const_node(p, t, JINJA_NIL, out));
    char *s = arena_alloc(&p->j->mem, n + 1);
    if (!s)
        return jinja_nomem(p);
    n = 0;
    for (; t < p->t; n += t->n, t++)
        if (t->n)
            memcpy(s + n, t->p, t->n);
    return set_str(p, *out, s, n);
}

/* [a, b] behind its opening bracket. */
static int parse_list(struct jinja_parser *p, struct jinja_node **out)
{
    TRY(new_node(p, N_LIST, p->t++, NULL, NULL, out));
    for (struct jinja_node **tail = &(*out)->a; p->t->kind != TOK_RBRACKET; tail = &(*tail)->next) {
        if ((*out)->a)
            TRY(jinja_expect(p, TOK_COMMA));
        if (p->t->kind == TOK_RBRACKET)
            break;
        TRY(jinja_parse_expr(p, true, tail));
    }
    return jinja_expect(p, TOK_RBRACKET);
}

static int parse_dict(struct jinja_parser *p, struct jinja_node **out)
{
    TRY(new_node(p, N_DICT, p->t++, NULL, NULL, out));
    for (struct jinja_node **tail = &(*out)->a; p->t->kind != TOK_RBRACE; tail = &(*tail)->next) {
        if ((*out)->a)
            TRY(jinja_expect(p, TOK_COMMA));
        if (p->t->kind == TOK_RBRACE)
            break;
        struct jinja_node *pair;
        TRY(new_node(p, N_PAIR, p->t, NULL, NULL, &pair));
        TRY(jinja_parse_expr(p, true, &pair->a));
        TRY(jinja_expect(p, TOK_COLON));
        TRY(jinja_parse_expr(p, true, &pair->b));
        *tail = pair;
    }
    return jinja_expect(p, TOK_RBRACE);
}

static int parse_primary(struct jinja_parser *p, bool nsref, struct jinja_node **out)
{
    const struct jinja_token *t = p->t;
    if (t->kind == TOK_NAME)
        return parse_name(p, nsref, out);
    if (t->kind == TOK_STR)
        return parse_string(p, out);
    if (t->kind == TOK_INT || t->kind == TOK_FLOAT) {
        p->t++;
        return const_node(p, t, t->kind == TOK_INT ? jinja_int(t->i) : jinja_float(t->f), out);
    }
    if (t->kind == TOK_LPAREN) {
        p->t++;
        TRY(jinja_parse_tuple(p, TUPLE_PARENS, NULL, out));
        return jinja_expect(p, TOK_RPAREN);
    }
    if (t->kind == TOK_LBRACKET)
        return parse_list(p, out);
    if (t->kind == TOK_LBRACE)
        return parse_dict(p, out);
    return jinja_syntax(p, t, ERR_FORMAT, "unexpected '%s'", jinja_tok_name(t->kind));
}

static bool tuple_end(const struct jinja_parser *p, const char *end)
{
    return p->t->kind == TOK_VAR_END || p->t->kind == TOK_BLOCK_END || p->t->kind == TOK_RPAREN ||
           (end && jinja_tok_is(p->t, end));
}

int jinja_parse_tuple(struct jinja_parser *p, enum jinja_tuple_mode mode, const char *end,
                      struct jinja_node **out)
{
    const struct jinja_token *begin = p->t;
    struct jinja_node *first = NULL, **tail = &first;
    bool is_tuple = false;
    while (!tuple_end(p, end)) {
        if (mode == TUPLE_TARGET || mode == TUPLE_NSTARGET)
            TRY(parse_primary(p, mode == TUPLE_NSTARGET, tail));
        else
            TRY(jinja_parse_expr(p, mode != TUPLE_NOCOND, tail));
        tail = &(*tail)->next;
        if (p->t->kind != TOK_COMMA)
            break;
        is_tuple = true;
        p->t++;
    }
    if (!is_tuple && first) {
        *out = first;
        return 0;
    }
    if (!is_tuple && mode != TUPLE_PARENS)
        return jinja_syntax(p, p->t, ERR_FORMAT, "expected an expression, found '%s'",
                            jinja_tok_name(p->t->kind));
    return new_node(p, N_TUPLE, begin, first, NULL, out);
}

static int parse_subscribed(struct jinja_parser *p, struct jinja_node **out)
{
    struct jinja_node *part[3] = { 0 };
    const struct jinja_token *begin = p->t;
    if (p->t->kind != TOK_COLON) {
        TRY(jinja_parse_expr(p, true, &part[0]));
        if (p->t->kind != TOK_COLON) {
            *out = part[0];
            return 0;
        }
    }
    for (int i = 1; i < 3 && p->t->kind == TOK_COLON; i++) {
        p->t++;
        if (p->t->kind != TOK_COLON && p->t->kind != TOK_RBRACKET && p->t->kind != TOK_COMMA)
            TRY(jinja_parse_expr(p, true, &part[i]));
    }
    TRY(new_node(p, N_SLICE, begin, part[0], part[1], out));
    (*out)->c = part[2];
    return 0;
}

static int parse_subscript(struct jinja_parser *p, struct jinja_node **node)
{
    const struct jinja_token *t = p->t++;
    struct jinja_node *arg = NULL, **tail = &arg;
    if (t->kind == TOK_DOT) {
        const struct jinja_token *attr = p->t++;
        if (attr->kind == TOK_NAME) {
            TRY(new_node(p, N_GETATTR, attr, *node, NULL, node));
            return set_str(p, *node, attr->p, attr->n);
        }
        if (attr->kind != TOK_INT)
            return jinja_syntax(p, attr, ERR_FORMAT, "expected a name or a number after '.'");
        TRY(const_node(p, attr, jinja_int(attr->i), &arg));
        return new_node(p, N_GETITEM, t, *node, arg, node);
    }
    while (p->t->kind != TOK_RBRACKET) {
        if (arg)
            TRY(jinja_expect(p, TOK_COMMA));
        TRY(parse_subscribed(p, tail));
        tail = &(*tail)->next;
    }
    p->t++;
    if (!arg || arg->next)
        TRY(new_node(p, N_TUPLE, t, arg, NULL, &arg));
    return new_node(p, N_GETITEM, t, *node, arg, node);
}

/* One argument at p->t into *out; *stage says what has been seen: 1 named, 2 *x, 3 **x. */
static int parse_arg(struct jinja_parser *p, int *stage, struct jinja_node **out)
{
    const struct jinja_token *t = p->t;
    int is = t->kind == TOK_MUL                                  ? 2
             : t->kind == TOK_POW                                ? 3
             : t->kind == TOK_NAME && p->t[1].kind == TOK_ASSIGN ? 1
                                                                 : 0;
    if (is == 0 ? *stage > 0 : is == 1 ? *stage == 3 : *stage >= is)
        return jinja_syntax(p, t, ERR_FORMAT, "arguments in a wrong order");
    if (!is)
        return jinja_parse_expr(p, true, out);
    *stage = is > *stage ? is : *stage;
    TRY(new_node(p, is == 1 ? N_KEYWORD : is == 2 ? N_STAR : N_STAR2, t, NULL, NULL, out));
    if (is == 1)
        TRY(set_str(p, *out, t->p, t->n));
    p->t += is == 1 ? 2 : 1;
    return jinja_parse_expr(p, true, &(*out)->a);
}

static int parse_call_args(struct jinja_parser *p, struct jinja_node **args)
{
    TRY(jinja_expect(p, TOK_LPAREN));
    int stage = 0;
    *args = NULL;
    for (struct jinja_node **tail = args; p->t->kind != TOK_RPAREN; tail = &(*tail)->next) {
        if (*args)
            TRY(jinja_expect(p, TOK_COMMA));
        if (p->t->kind == TOK_RPAREN)
            break;
        TRY(parse_arg(p, &stage, tail));
    }
    p->t++;
    return 0;
}

static int parse_call(struct jinja_parser *p, struct jinja_node **node)
{
    struct jinja_node *args;
    const struct jinja_token *t = p->t;
    TRY(parse_call_args(p, &args));
    return new_node(p, N_CALL, t, *node, args, node);
}

static int parse_postfix(struct jinja_parser *p, struct jinja_node **node)
{
    for (;;) {
        if (p->t->kind == TOK_DOT || p->t->kind == TOK_LBRACKET)
            TRY(parse_subscript(p, node));
        else if (p->t->kind == TOK_LPAREN)
            TRY(parse_call(p, node));
        else
            return 0;
    }
}

/* The name behind | or is; and what it means. An unknown one is an error now, unless a condition stands before it. */
static int parse_builtin(struct jinja_parser *p, struct jinja_node *n)
{
    const struct jinja_token *t = p->t;
    TRY(jinja_expect(p, TOK_NAME));
    TRY(set_name(p, n, t));
    n->builtin = n->kind == N_FILTER ? jinja_filter(n->name) : jinja_test(n->name);
    if (p->t->kind == TOK_DOT || (!n->builtin && !p->soft))
        return jinja_syntax(p, t, ERR_UNSUPPORTED, "unsupported %s '%s'",
                            n->kind == N_FILTER ? "filter" : "test", n->name);
    return 0;
}

int jinja_parse_filters(struct jinja_parser *p, struct jinja_node *node, bool start_inline,
                        struct jinja_node **out)
{
    while (start_inline || p->t->kind == TOK_PIPE) {
        p->t += !start_inline;
        start_inline = false;
        TRY(new_node(p, N_FILTER, p->t, node, NULL, &node));
        TRY(parse_builtin(p, node));
        if (p->t->kind == TOK_LPAREN)
            TRY(parse_call_args(p, &node->b));
    }
    *out = node;
    return 0;
}

static int parse_test(struct jinja_parser *p, struct jinja_node **node)
{
    const struct jinja_token *is = p->t++;
    bool negated = skip_name(p, "not");
    TRY(new_node(p, N_TEST, is, *node, NULL, node));
    struct jinja_node *test = *node;
    TRY(parse_builtin(p, test));
    enum jinja_tok k = p->t->kind;
    if (k == TOK_LPAREN) {
        TRY(parse_call_args(p, &test->b));
    } else if ((k == TOK_NAME || k == TOK_STR || k == TOK_INT || k == TOK_FLOAT ||
                k == TOK_LBRACKET || k == TOK_LBRACE) &&
               !jinja_tok_is(p->t, "else") && !jinja_tok_is(p->t, "or") &&
               !jinja_tok_is(p->t, "and")) {
        if (jinja_tok_is(p->t, "is"))
            return jinja_syntax(p, p->t, ERR_FORMAT, "tests cannot be chained with 'is'");
        TRY(parse_primary(p, false, &test->b));
        TRY(parse_postfix(p, &test->b));
    }
    return negated ? new_node(p, N_NOT, is, test, NULL, node) : 0;
}

static int parse_unary(struct jinja_parser *p, bool with_filter, struct jinja_node **out)
{
    const struct jinja_token *t = p->t;
    if (t->kind == TOK_SUB || t->kind == TOK_ADD) {
        p->t++;
        TRY(jinja_deeper(p));
        TRY(parse_unary(p, false, out));
        p->depth--;
        TRY(new_node(p, t->kind == TOK_SUB ? N_NEG : N_POS, t, *out, NULL, out));
    } else {
        TRY(parse_primary(p, false, out));
    }
    TRY(parse_postfix(p, out));
    while (with_filter) {
        if (p->t->kind == TOK_PIPE)
            TRY(jinja_parse_filters(p, *out, false, out));
        else if (jinja_tok_is(p->t, "is"))
            TRY(parse_test(p, out));
        else if (p->t->kind == TOK_LPAREN)
            TRY(parse_call(p, out));
        else
            break;
    }
    return 0;
}

/* Left-associative levels, loosest first; the level behind the last is unary. */
enum level { LEVEL_SUM, LEVEL_CONCAT, LEVEL_PRODUCT, LEVEL_POW, LEVEL_UNARY };

static int op_at(enum level level, enum jinja_tok k)
{
    if (level == LEVEL_SUM)
        return k == TOK_ADD ? OP_ADD : k == TOK_SUB ? OP_SUB : -1;
    if (level == LEVEL_PRODUCT)
        return k == TOK_MUL        ? OP_MUL
               : k == TOK_DIV      ? OP_DIV
               : k == TOK_FLOORDIV ? OP_FLOORDIV
               : k == TOK_MOD      ? OP_MOD
                                   : -1;
    return k == TOK_POW ? OP_POW : -1;
}

static int parse_binary(struct jinja_parser *p, enum level level, struct jinja_node **out)
{
    if (level == LEVEL_UNARY)
        return parse_unary(p, true, out);
    const struct jinja_token *t = p->t;
    TRY(parse_binary(p, level + 1, out));
    if (level == LEVEL_CONCAT) {
        if (p->t->kind != TOK_TILDE)
            return 0;
        TRY(new_node(p, N_CONCAT, t, *out, NULL, out));
        for (struct jinja_node **tail = &(*out)->a->next; p->t->kind == TOK_TILDE;
             tail = &(*tail)->next) {
            p->t++;
            TRY(parse_binary(p, level + 1, tail));
        }
        return 0;
    }
    for (int op; (op = op_at(level, p->t->kind)) >= 0;) {
        struct jinja_node *right;
        p->t++;
        TRY(parse_binary(p, level + 1, &right));
        TRY(new_node(p, N_BINARY, t, *out, right, out));
        (*out)->op = (enum jinja_op)op;
    }
    return 0;
}

static int compare_op(struct jinja_parser *p)
{
    enum jinja_tok k = p->t->kind;
    if (k >= TOK_EQ && k <= TOK_GE) {
        p->t++;
        return OP_EQ + (int)(k - TOK_EQ);
    }
    if (skip_name(p, "in"))
        return OP_IN;
    if (jinja_tok_is(p->t, "not") && jinja_tok_is(p->t + 1, "in")) {
        p->t += 2;
        return OP_NOTIN;
    }
    return -1;
}

static int parse_compare(struct jinja_parser *p, struct jinja_node **out)
{
    const struct jinja_token *t = p->t;
    TRY(parse_binary(p, LEVEL_SUM, out));
    struct jinja_node *compare = NULL, **tail = NULL;
    for (int op; (op = compare_op(p)) >= 0; tail = &(*tail)->next) {
        if (!compare) {
            TRY(new_node(p, N_COMPARE, t, *out, NULL, &compare));
            tail = &compare->b;
            *out = compare;
        }
        TRY(new_node(p, N_OPERAND, p->t, NULL, NULL, tail));
        (*tail)->op = (enum jinja_op)op;
        TRY(parse_binary(p, LEVEL_SUM, &(*tail)->a));
    }
    return 0;
}

static int parse_not(struct jinja_parser *p, struct jinja_node **out)
{
    const struct jinja_token *t = p->t;
    if (!skip_name(p, "not"))
        return parse_compare(p, out);
    TRY(jinja_deeper(p));
    TRY(parse_not(p, out));
    p->depth--;
    return new_node(p, N_NOT, t, *out, NULL, out);
}

static int parse_or(struct jinja_parser *p, bool is_or, struct jinja_node **out)
{
    const struct jinja_token *t = p->t;
    TRY(is_or ? parse_or(p, false, out) : parse_not(p, out));
    while (skip_name(p, is_or ? "or" : "and")) {
        struct jinja_node *right;
        TRY(is_or ? parse_or(p, false, &right) : parse_not(p, &right));
        TRY(new_node(p, is_or ? N_OR : N_AND, t, *out, right, out));
    }
    return 0;
}

int jinja_parse_expr(struct jinja_parser *p, bool cond, struct jinja_node **out)
{
    TRY(jinja_deeper(p));
    const struct jinja_token *t = p->t;
    /* whether a condition follows is known only afterwards, so unknown filters in `x|f if y` are refused */
    TRY(parse_or(p, true, out));
    while (cond && skip_name(p, "if")) {
        struct jinja_node *test, *other = NULL;
        TRY(parse_or(p, true, &test));
        p->soft++;
        if (skip_name(p, "else"))
            TRY(jinja_parse_expr(p, true, &other));
        p->soft--;
        TRY(new_node(p, N_COND, t, test, *out, out));
        (*out)->c = other;
    }
    p->depth--;
    return 0;
}
