/* What the parser's files share: messages with a position, nodes, names, tokens by name. */
#include <stdarg.h>
#include <string.h>

#include "server/text/jinja.h"
#include "server/text/jinja_ast.h"

int jinja_syntax(struct jinja_parser *p, const struct jinja_token *at, int code, const char *fmt,
                 ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(p->e, code, fmt, ap);
    va_end(ap);
    err_prefix(p->e, "template line %u column %u", at->line, at->col);
    return code;
}

int jinja_nomem(struct jinja_parser *p)
{
    return err_set(p->e, ERR_NOMEM, "template: out of memory");
}

int jinja_deeper(struct jinja_parser *p)
{
    if (p->depth >= JINJA_PARSE_DEPTH)
        return jinja_syntax(p, p->t, ERR_LIMIT, "nested too deeply");
    p->depth++;
    return 0;
}

struct jinja_node *jinja_node_new(struct jinja_parser *p, enum jinja_node_kind kind,
                                  const struct jinja_token *at)
{
    struct jinja_node *n = arena_alloc(&p->j->mem, sizeof *n);
    if (!n) {
        jinja_nomem(p);
        return NULL;
    }
    n->kind = kind;
    n->line = at->line;
    n->col = at->col;
    return n;
}

static size_t bucket(const char *s, size_t n)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 16777619u;
    return h % JINJA_NAME_BUCKETS;
}

static const char *lookup(const struct jinja *j, const char *s, size_t n)
{
    for (const struct jinja_name *i = j->names[bucket(s, n)]; i; i = i->next)
        if (i->n == n && memcmp(i->s, s, n) == 0)
            return i->s;
    return NULL;
}

const char *jinja_interned(const struct jinja *j, const char *s)
{
    return lookup(j, s, strlen(s));
}

const char *jinja_intern(struct jinja *j, const char *s, size_t n)
{
    const char *known = lookup(j, s, n);
    if (known)
        return known;
    struct jinja_name *i = arena_alloc(&j->mem, sizeof *i + n + 1);
    if (!i)
        return NULL;
    size_t b = bucket(s, n);
    i->n = n;
    memcpy(i->s, s, n);
    i->next = j->names[b];
    j->names[b] = i;
    return i->s;
}

static const char *const tok_names[] = {
    [TOK_EOF] = "end of template",
    [TOK_DATA] = "text",
    [TOK_VAR_BEGIN] = "{{",
    [TOK_VAR_END] = "}}",
    [TOK_BLOCK_BEGIN] = "{%",
    [TOK_BLOCK_END] = "%}",
    [TOK_NAME] = "name",
    [TOK_STR] = "string",
    [TOK_INT] = "integer",
    [TOK_FLOAT] = "float",
    [TOK_ADD] = "+",
    [TOK_SUB] = "-",
    [TOK_MUL] = "*",
    [TOK_DIV] = "/",
    [TOK_FLOORDIV] = "//",
    [TOK_MOD] = "%",
    [TOK_POW] = "**",
    [TOK_TILDE] = "~",
    [TOK_EQ] = "==",
    [TOK_NE] = "!=",
    [TOK_LT] = "<",
    [TOK_LE] = "<=",
    [TOK_GT] = ">",
    [TOK_GE] = ">=",
    [TOK_ASSIGN] = "=",
    [TOK_DOT] = ".",
    [TOK_COMMA] = ",",
    [TOK_COLON] = ":",
    [TOK_PIPE] = "|",
    [TOK_SEMI] = ";",
    [TOK_LPAREN] = "(",
    [TOK_RPAREN] = ")",
    [TOK_LBRACKET] = "[",
    [TOK_RBRACKET] = "]",
    [TOK_LBRACE] = "{",
    [TOK_RBRACE] = "}",
};

const char *jinja_tok_name(enum jinja_tok kind)
{
    return tok_names[kind];
}

bool jinja_tok_is(const struct jinja_token *t, const char *name)
{
    return t->kind == TOK_NAME && t->n == strlen(name) && memcmp(t->p, name, t->n) == 0;
}

int jinja_expect(struct jinja_parser *p, enum jinja_tok kind)
{
    if (p->t->kind != kind)
        return jinja_syntax(p, p->t, ERR_FORMAT, "expected '%s', found '%s'", tok_names[kind],
                            tok_names[p->t->kind]);
    p->t++;
    return 0;
}
