/* Jinja source to tokens, with jinja2's whitespace rules: trim_blocks, lstrip_blocks, the signs - and +, raw blocks. The
 * whole source becomes one array, so that the parser can look ahead.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/text/jinja.h"
#include "server/text/jinja_ast.h"

struct lexer {
    struct jinja *j;
    const char *s;
    size_t n, pos;
    size_t line_pos; /* where `line` was counted up to */
    uint32_t line;
    size_t line_start;
    struct jinja_token *tok;
    size_t n_tok, cap;
    struct err *e;
};

static void place(struct lexer *x, size_t pos, uint32_t *line, uint32_t *col)
{
    for (; x->line_pos < pos; x->line_pos++)
        if (x->s[x->line_pos] == '\n') {
            x->line++;
            x->line_start = x->line_pos + 1;
        }
    *line = x->line;
    *col = pos >= x->line_start ? (uint32_t)(pos - x->line_start + 1) : 1;
}

static int bad(struct lexer *x, size_t pos, int code, const char *what)
{
    uint32_t line, col;
    place(x, pos, &line, &col);
    return err_set(x->e, code, "template line %u column %u: %s", line, col, what);
}

static struct jinja_token *push(struct lexer *x, enum jinja_tok kind, size_t pos)
{
    if (x->n_tok == x->cap) {
        size_t cap = x->cap ? 2 * x->cap : 256;
        struct jinja_token *t = arena_alloc(&x->j->mem, cap * sizeof *t);
        if (!t) {
            err_set(x->e, ERR_NOMEM, "template: out of memory");
            return NULL;
        }
        if (x->n_tok)
            memcpy(t, x->tok, x->n_tok * sizeof *t);
        x->tok = t;
        x->cap = cap;
    }
    struct jinja_token *t = &x->tok[x->n_tok++];
    t->kind = kind;
    place(x, pos, &t->line, &t->col);
    return t;
}

static bool at(const struct lexer *x, size_t pos, const char *lit)
{
    size_t k = strlen(lit);
    return x->n - pos >= k && pos <= x->n && memcmp(x->s + pos, lit, k) == 0;
}

static size_t skip_space(const struct lexer *x, size_t pos)
{
    while (pos < x->n) {
        int32_t cp;
        size_t k = jinja_cp(x->s + pos, x->n - pos, &cp);
        if (!jinja_is_space(cp))
            break;
        pos += k;
    }
    return pos;
}

static int push_data(struct lexer *x, size_t from, size_t to)
{
    if (to <= from)
        return 0;
    struct jinja_token *t = push(x, TOK_DATA, from);
    if (!t)
        return ERR_NOMEM;
    t->p = x->s + from;
    t->n = to - from;
    return 0;
}

/* End of the text [from, to) that stands before a tag with this sign, after stripping. */
static size_t strip_before(const struct lexer *x, size_t from, size_t to, char sign, bool is_var)
{
    int32_t cp;
    if (sign == '-') {
        while (to > from) {
            size_t k = jinja_cp_back(x->s + from, to - from, &cp);
            if (!jinja_is_space(cp))
                break;
            to -= k;
        }
        return to;
    }
    if (sign == '+' || is_var)
        return to;
    size_t l = to;
    while (l > from && x->s[l - 1] != '\n')
        l--;
    bool line_starts = l > from || from == 0 || x->s[from - 1] == '\n';
    return line_starts && skip_space(x, l) >= to ? l : to;
}

/* Whether a block or comment ends at pos; then *after is where the text goes on. */
static bool block_end(const struct lexer *x, size_t pos, const char *end, size_t *after)
{
    char signed_end[4] = { '-', end[0], end[1], 0 };
    if (at(x, pos, signed_end)) {
        *after = skip_space(x, pos + 3);
        return true;
    }
    signed_end[0] = '+';
    if (at(x, pos, signed_end)) {
        *after = pos + 3;
        return true;
    }
    if (at(x, pos, end)) {
        *after = pos + 2 + (pos + 2 < x->n && x->s[pos + 2] == '\n');
        return true;
    }
    return false;
}

/* {% raw %} at pos (behind the sign)? Then *after is where its text begins. */
static bool raw_begin(const struct lexer *x, size_t pos, size_t *after)
{
    pos = skip_space(x, pos);
    if (!at(x, pos, "raw"))
        return false;
    pos = skip_space(x, pos + 3);
    if (at(x, pos, "-%}")) {
        *after = skip_space(x, pos + 3);
        return true;
    }
    *after = pos + 2;
    return at(x, pos, "%}");
}

static int lex_raw(struct lexer *x, size_t from)
{
    for (size_t p = from; p + 1 < x->n; p++) {
        if (x->s[p] != '{' || x->s[p + 1] != '%')
            continue;
        size_t q = p + 2, after;
        char sign = q < x->n && (x->s[q] == '-' || x->s[q] == '+') ? x->s[q] : 0;
        q = skip_space(x, q + (sign != 0));
        if (!at(x, q, "endraw"))
            continue;
        q = skip_space(x, q + 6);
        if (!block_end(x, q, "%}", &after))
            continue;
        TRY(push_data(x, from, strip_before(x, from, p, sign, false)));
        x->pos = after;
        return 0;
    }
    return bad(x, from, ERR_FORMAT, "raw block is not closed");
}

static int lex_comment(struct lexer *x, size_t from)
{
    for (size_t p = from; p + 1 < x->n; p++) {
        size_t after;
        if (block_end(x, p, "#}", &after)) {
            x->pos = after;
            return 0;
        }
    }
    return bad(x, from, ERR_FORMAT, "comment is not closed");
}

static int hex(const char *p, size_t n, int32_t *out)
{
    *out = 0;
    for (size_t i = 0; i < n; i++) {
        char c = p[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            return -1;
        *out = (int32_t)((uint32_t)*out << 4 | (uint32_t)d);
    }
    return 0;
}

/* One escape at s[i] (behind the backslash), not past end. Returns the bytes used; 0: keep the backslash; SIZE_MAX: bad. */
static size_t escape(const char *s, size_t i, size_t end, int32_t *cp)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char *f = memchr(from, s[i], sizeof from - 1);
    if (f) {
        *cp = to[f - from];
        return 1;
    }
    size_t k = s[i] == 'x' ? 2 : s[i] == 'u' ? 4 : s[i] == 'U' ? 8 : 0;
    if (k)
        return end - i > k && hex(s + i + 1, k, cp) == 0 && *cp >= 0 && *cp <= 0x10ffff &&
                       !(*cp >= 0xd800 && *cp < 0xe000)
                   ? k + 1
                   : SIZE_MAX;
    for (*cp = 0; k < 3 && i + k < end && s[i + k] >= '0' && s[i + k] <= '7'; k++)
        *cp = *cp * 8 + (s[i + k] - '0');
    if (!k && s[i] == 'N')
        return SIZE_MAX;
    return k;
}

static int lex_string(struct lexer *x)
{
    size_t begin = x->pos, end = begin + 1;
    while (end < x->n && x->s[end] != x->s[begin])
        end += x->s[end] == '\\' ? 2 : 1;
    if (end >= x->n)
        return bad(x, begin, ERR_FORMAT, "string is not closed");
    struct jinja_token *t = push(x, TOK_STR, begin);
    char *out = t ? arena_alloc(&x->j->mem, end - begin) : NULL;
    if (!out)
        return err_set(x->e, ERR_NOMEM, "template: out of memory");
    size_t n = 0;
    for (size_t i = begin + 1; i < end; i++) {
        if (x->s[i] != '\\') {
            out[n++] = x->s[i];
            continue;
        }
        if (x->s[i + 1] == '\n') {
            i++;
            continue;
        }
        int32_t cp;
        size_t k = escape(x->s, i + 1, end, &cp);
        if (k == SIZE_MAX)
            return bad(x, i, ERR_UNSUPPORTED, "unsupported escape in a string");
        if (k)
            n += jinja_cp_put(out + n, cp); /* an escape is never shorter than its character */
        else
            out[n++] = '\\';
        i += k;
    }
    t->p = out;
    t->n = n;
    x->pos = end + 1;
    return 0;
}

/* Digits of the base with _ between them, from p; returns the end. */
static size_t digits(const struct lexer *x, size_t p, int base)
{
    for (bool digit = false; p < x->n; p++) {
        int32_t d;
        bool is = hex(x->s + p, 1, &d) == 0 && d < base;
        if (!is &&
            !(x->s[p] == '_' && digit && p + 1 < x->n && hex(x->s + p + 1, 1, &d) == 0 && d < base))
            break;
        digit = is;
    }
    return p;
}

static int lex_number(struct lexer *x)
{
    size_t begin = x->pos, p;
    char text[64];
    int base = 10;
    if (x->s[begin] == '0' && begin + 2 < x->n) {
        char c = (char)(x->s[begin + 1] | 0x20);
        base = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
    }
    bool is_float = false;
    p = digits(x, begin + (base == 10 ? 0 : 2), base);
    if (base == 10) {
        size_t q = p + 1 < x->n && x->s[p] == '.' ? digits(x, p + 1, 10) : p;
        if (q > p + 1) {
            is_float = true;
            p = q;
        }
        if (p < x->n && (x->s[p] | 0x20) == 'e') {
            q = p + 1 + (p + 1 < x->n && (x->s[p + 1] == '+' || x->s[p + 1] == '-'));
            size_t end = q < x->n ? digits(x, q, 10) : q;
            if (end > q) {
                is_float = true;
                p = end;
            }
        }
    }
    size_t n = 0;
    for (size_t i = begin + (base == 10 ? 0 : 2); i < p && n < sizeof text - 1; i++)
        if (x->s[i] != '_')
            text[n++] = x->s[i];
    text[n] = 0;
    struct jinja_token *t = push(x, is_float ? TOK_FLOAT : TOK_INT, begin);
    if (!t)
        return ERR_NOMEM;
    char *end;
    if (is_float) {
        t->f = strtod(text, &end);
    } else {
        unsigned long long v = strtoull(text, &end, base);
        if (n > 64 - 2 || v > INT64_MAX)
            return bad(x, begin, ERR_UNSUPPORTED, "integer is too large");
        t->i = (int64_t)v;
    }
    x->pos = p;
    return 0;
}

static bool name_char(char c, bool first)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c & 0x80) ||
           (!first && c >= '0' && c <= '9');
}

static const struct {
    char s[3];
    enum jinja_tok kind;
} operators[] = {
    /* two characters first */
    { "**", TOK_POW },   { "//", TOK_FLOORDIV }, { "==", TOK_EQ },      { "!=", TOK_NE },
    { "<=", TOK_LE },    { ">=", TOK_GE },       { "+", TOK_ADD },      { "-", TOK_SUB },
    { "*", TOK_MUL },    { "/", TOK_DIV },       { "%", TOK_MOD },      { "~", TOK_TILDE },
    { "<", TOK_LT },     { ">", TOK_GT },        { "=", TOK_ASSIGN },   { ".", TOK_DOT },
    { ",", TOK_COMMA },  { ":", TOK_COLON },     { "|", TOK_PIPE },     { ";", TOK_SEMI },
    { "(", TOK_LPAREN }, { ")", TOK_RPAREN },    { "[", TOK_LBRACKET }, { "]", TOK_RBRACKET },
    { "{", TOK_LBRACE }, { "}", TOK_RBRACE },
};
#define N_OPERATORS (sizeof operators / sizeof operators[0])

static int lex_operator(struct lexer *x, char *stack, int *depth)
{
    size_t i = 0;
    while (i < N_OPERATORS && !at(x, x->pos, operators[i].s))
        i++;
    if (i == N_OPERATORS)
        return bad(x, x->pos, ERR_FORMAT, "unexpected character");
    enum jinja_tok k = operators[i].kind;
    if (k == TOK_LPAREN || k == TOK_LBRACKET || k == TOK_LBRACE) {
        if (*depth == JINJA_PARSE_DEPTH)
            return bad(x, x->pos, ERR_LIMIT, "brackets are nested too deeply");
        stack[(*depth)++] = (char)(k + 1); /* the closing kind follows the opening one */
    } else if (k == TOK_RPAREN || k == TOK_RBRACKET || k == TOK_RBRACE) {
        if (!*depth || stack[--*depth] != (char)k)
            return bad(x, x->pos, ERR_FORMAT, "closing bracket without its opening one");
    }
    if (!push(x, k, x->pos))
        return ERR_NOMEM;
    x->pos += strlen(operators[i].s);
    return 0;
}

/* Inside {{ }} or {% %}, up to and with the end. */
static int lex_tag(struct lexer *x, bool is_var, size_t begin)
{
    char stack[JINJA_PARSE_DEPTH];
    int depth = 0;
    for (;;) {
        x->pos = skip_space(x, x->pos);
        if (x->pos >= x->n)
            return bad(x, begin, ERR_FORMAT, "tag is not closed");
        size_t here = x->pos, after = here + 2;
        bool end =
            is_var ? at(x, here, "-}}") || at(x, here, "}}") : block_end(x, here, "%}", &after);
        if (end && !depth) {
            if (is_var && x->s[here] == '-')
                after = skip_space(x, here + 3);
            if (!push(x, is_var ? TOK_VAR_END : TOK_BLOCK_END, here))
                return ERR_NOMEM;
            x->pos = after;
            return 0;
        }
        char c = x->s[here];
        if (c == '\'' || c == '"') {
            TRY(lex_string(x));
        } else if (c >= '0' && c <= '9') {
            TRY(lex_number(x));
        } else if (name_char(c, true)) {
            while (x->pos < x->n && name_char(x->s[x->pos], false))
                x->pos++;
            struct jinja_token *t = push(x, TOK_NAME, here);
            if (!t)
                return ERR_NOMEM;
            t->p = x->s + here;
            t->n = x->pos - here;
        } else {
            TRY(lex_operator(x, stack, &depth));
        }
    }
}

int jinja_lex(struct jinja *j, struct jinja_token **toks, size_t *n, struct err *e)
{
    struct lexer x = { .j = j, .s = j->src, .n = j->n, .line = 1, .e = e };
    while (x.pos < x.n) {
        size_t from = x.pos, p = from;
        while (p < x.n &&
               !(x.s[p] == '{' && p + 1 < x.n && strchr("{%#", x.s[p + 1]) && x.s[p + 1]))
            p++;
        if (p >= x.n) {
            TRY(push_data(&x, from, x.n));
            break;
        }
        char kind = x.s[p + 1], sign = 0;
        size_t inner = p + 2, after;
        if (inner < x.n && (x.s[inner] == '-' || x.s[inner] == '+'))
            sign = x.s[inner++];
        TRY(push_data(&x, from, strip_before(&x, from, p, sign, kind == '{')));
        x.pos = inner;
        if (kind == '#') {
            TRY(lex_comment(&x, inner));
        } else if (kind == '%' && raw_begin(&x, inner, &after)) {
            TRY(lex_raw(&x, after));
        } else {
            if (!push(&x, kind == '{' ? TOK_VAR_BEGIN : TOK_BLOCK_BEGIN, p))
                return ERR_NOMEM;
            TRY(lex_tag(&x, kind == '{', p));
        }
    }
    if (!push(&x, TOK_EOF, x.n))
        return ERR_NOMEM;
    *toks = x.tok;
    *n = x.n_tok;
    return 0;
}
