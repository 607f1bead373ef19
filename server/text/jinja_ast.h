/* Tokens and tree of a Jinja program. Everything lies in the arena of the program and is immutable once it is built. */
#ifndef WRING_TEXT_JINJA_AST_H
#define WRING_TEXT_JINJA_AST_H

#include "server/base/mem.h"
#include "server/text/jinja_value.h"

enum jinja_tok {
    TOK_EOF,
    TOK_DATA,
    TOK_VAR_BEGIN,
    TOK_VAR_END,
    TOK_BLOCK_BEGIN,
    TOK_BLOCK_END,
    TOK_NAME,
    TOK_STR,
    TOK_INT,
    TOK_FLOAT,
    TOK_ADD,
    TOK_SUB,
    TOK_MUL,
    TOK_DIV,
    TOK_FLOORDIV,
    TOK_MOD,
    TOK_POW,
    TOK_TILDE,
    TOK_EQ,
    TOK_NE,
    TOK_LT,
    TOK_LE,
    TOK_GT,
    TOK_GE,
    TOK_ASSIGN,
    TOK_DOT,
    TOK_COMMA,
    TOK_COLON,
    TOK_PIPE,
    TOK_SEMI,
    TOK_LPAREN,
    TOK_RPAREN,
    TOK_LBRACKET,
    TOK_RBRACKET,
    TOK_LBRACE,
    TOK_RBRACE
};

struct jinja_token {
    enum jinja_tok kind;
    uint32_t line, col; /* from 1; col counts bytes */
    const char *p;      /* DATA, NAME, STR (unescaped): n bytes */
    size_t n;
    int64_t i; /* INT */
    double f;  /* FLOAT */
};

/* Operators of BINARY and COMPARE nodes. */
enum jinja_op {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOTIN
};

/* Behind each kind: what its children a, b, c, d and its other fields hold; [x] is a list linked by next. */
enum jinja_node_kind {
    /* expressions */
    N_CONST,   /* value */
    N_NAME,    /* name */
    N_LIST,    /* [a] */
    N_TUPLE,   /* [a] */
    N_DICT,    /* [a] of N_PAIR */
    N_PAIR,    /* a: b */
    N_GETATTR, /* a.name; value is the name as a string */
    N_GETITEM, /* a[b] */
    N_SLICE,   /* a:b:c, each may be NULL */
    N_CALL,    /* a([b]) */
    N_KEYWORD, /* value=a, in arguments; value is the name as a string */
    N_STAR,    /* *a, in arguments */
    N_STAR2,   /* **a, in arguments */
    N_FILTER,  /* a|name([b]); a NULL: the text of a block; builtin NULL: unknown */
    N_TEST,    /* a is name([b]) */
    N_NOT,     /* a */
    N_NEG,     /* a */
    N_POS,     /* a */
    N_AND,     /* a, b */
    N_OR,      /* a, b */
    N_BINARY,  /* a op b */
    N_CONCAT,  /* [a] joined by ~ */
    N_COMPARE, /* a, [b] of N_OPERAND */
    N_OPERAND, /* op a */
    N_COND,    /* b if a else c; c may be NULL */
    N_NSREF,   /* name.value, as a target */
    /* statements */
    N_DATA,        /* value */
    N_OUTPUT,      /* a */
    N_SET,         /* a = b */
    N_SETBLOCK,    /* a = filter b of [c]; b may be NULL */
    N_FOR,         /* a in b if c: [d], else [e]; flag: recursive */
    N_IF,          /* [a] of N_BRANCH */
    N_BRANCH,      /* if a (NULL: else): [b] */
    N_MACRO,       /* name([a] of N_PARAM): [b]; takes_* */
    N_PARAM,       /* name=a; a may be NULL */
    N_CALLBLOCK,   /* call a with caller b (a N_MACRO) */
    N_FILTERBLOCK, /* filter a of [b] */
    N_WITH,        /* [a] of N_SET: [b] */
    N_SCOPE,       /* [a] in a scope of its own, without effect outside */
    N_BREAK,
    N_CONTINUE
};

struct jinja_node {
    enum jinja_node_kind kind;
    enum jinja_op op;
    uint32_t line, col;
    bool flag, takes_varargs, takes_kwargs, takes_caller;
    const char *name; /* interned: equal names are equal pointers */
    const struct jinja_builtin *builtin;
    struct jinja_value value;
    struct jinja_node *a, *b, *c, *d, *e, *next;
};

struct jinja_name {
    struct jinja_name *next;
    size_t n;
    char s[];
};

#define JINJA_NAME_BUCKETS 128
struct jinja {
    struct arena mem;
    char *src; /* newlines normalised */
    size_t n;
    struct jinja_name *names[JINJA_NAME_BUCKETS];
    const struct jinja_node *body;
    const char *loop, *caller, *varargs, *kwargs; /* interned */
};

/* The lexer (jinja_lex.c). *toks ends with TOK_EOF. */
int jinja_lex(struct jinja *j, struct jinja_token **toks, size_t *n, struct err *e) WARN_UNUSED;

/* The parser: jinja_parse.c has expressions, jinja_stmt.c tags. */
struct jinja_parser {
    struct jinja *j;
    const struct jinja_token *t; /* the current token */
    struct err *e;
    int depth; /* nesting, at most JINJA_PARSE_DEPTH */
    int soft;  /* > 0 inside a condition: unknown filters fail only when reached */
    int loops; /* > 0 inside a loop */
    bool varargs, kwargs, caller; /* names seen in the macro being read */
};
#define JINJA_PARSE_DEPTH 100

int jinja_parse(struct jinja *j, struct err *e) WARN_UNUSED;
/* The pieces that both files need. */
int jinja_parse_body(struct jinja_parser *p, const char *const *ends,
                     struct jinja_node **out) WARN_UNUSED;
int jinja_parse_expr(struct jinja_parser *p, bool cond, struct jinja_node **out) WARN_UNUSED;
enum jinja_tuple_mode { TUPLE_FULL, TUPLE_NOCOND, TUPLE_TARGET, TUPLE_NSTARGET, TUPLE_PARENS };
/* end: a name that ends the tuple, or NULL. */
int jinja_parse_tuple(struct jinja_parser *p, enum jinja_tuple_mode mode, const char *end,
                      struct jinja_node **out) WARN_UNUSED;
/* A chain of filters on node (which may be NULL); inline: the first has no | before it. */
int jinja_parse_filters(struct jinja_parser *p, struct jinja_node *node, bool start_inline,
                        struct jinja_node **out) WARN_UNUSED;
struct jinja_node *jinja_node_new(struct jinja_parser *p, enum jinja_node_kind kind,
                                  const struct jinja_token *at);    /* NULL: e is set */
const char *jinja_intern(struct jinja *j, const char *s, size_t n); /* NULL: no memory */
const char *jinja_interned(const struct jinja *j, const char *s);   /* NULL: not in the program */
bool jinja_tok_is(const struct jinja_token *t, const char *name);
int jinja_expect(struct jinja_parser *p, enum jinja_tok kind) WARN_UNUSED; /* and skip it */
int jinja_syntax(struct jinja_parser *p, const struct jinja_token *at, int code, const char *fmt,
                 ...) __attribute__((format(printf, 4, 5)));
const char *jinja_tok_name(enum jinja_tok kind);
int jinja_nomem(struct jinja_parser *p);
int jinja_deeper(struct jinja_parser *p) WARN_UNUSED; /* pair with p->depth-- */

#endif
