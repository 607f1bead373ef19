/* Values of the Jinja engine: Python's, as far as a template can see them.
 *
 * A value is two words, copied freely; what it points to lies in the arena of the run (or of the program, for constants)
 * and is not changed once shared. Strings are UTF-8 with a length and know which of their bytes came from the user.
 * Functions that can fail return 0 or a negative ERR_* and leave the sentence in r->e.
 */
#ifndef WRING_TEXT_JINJA_VALUE_H
#define WRING_TEXT_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/base/err.h"

struct jinja_run;

enum jinja_kind {
    JINJA_MISSING, /* an argument that was not given; never seen by a template */
    JINJA_UNDEF,   /* jinja2.Undefined; name is what was looked up */
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STR,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_RANGE,
    JINJA_VIEW, /* dict.items(), .keys(), .values(): a list that cannot be indexed */
    JINJA_ITER, /* a generator, computed at once; can be walked one time */
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_FUNC, /* function, bound method, macro, cycler, joiner */
    JINJA_LOOP,
    JINJA_SLICE /* a[b:c:d] between evaluation of the index and its use */
};

/* p: n bytes, not terminated. mask: NULL when all bytes have the mark `user`, else one 0/1 for each byte. */
struct jinja_str {
    const char *p;
    const uint8_t *mask;
    size_t n;
    bool user;
};

struct jinja_value {
    enum jinja_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        const char *name; /* UNDEF; terminated, may be NULL */
        const struct jinja_str *s;
        struct jinja_list *l; /* LIST TUPLE RANGE VIEW ITER, SLICE (three items) */
        struct jinja_dict *d; /* DICT NAMESPACE */
        struct jinja_func *fn;
        struct jinja_loop *loop;
    };
};

struct jinja_list {
    struct jinja_value *v;
    size_t n, cap;
    bool spent;       /* ITER: walked already */
    int64_t range[3]; /* RANGE: start, stop, step */
    const char *type; /* VIEW: name for printing */
};

struct jinja_pair {
    struct jinja_value key, value;
};
struct jinja_dict { /* in order of insertion */
    struct jinja_pair *v;
    uint32_t *hash; /* of the keys, n of them */
    size_t n, cap;
};

/* Arguments of a call: positional, then named. v: after binding to a signature, one value a parameter. */
#define JINJA_MAX_PARAMS 6
struct jinja_args {
    const struct jinja_value *pos;
    const struct jinja_pair *kw; /* keys are strings */
    size_t n_pos, n_kw;
    struct jinja_value v[JINJA_MAX_PARAMS];
};

/* A built-in filter, test, function or method. sig: parameter names split by spaces, "=" behind the optional ones; "*"
 * alone: the function looks at pos and kw itself. A method without sig is a property, one without fn is hidden. For filters and tests the first parameter is the value; methods get
 * their object through self. */
typedef int jinja_fn(struct jinja_run *r, struct jinja_func *self, struct jinja_args *a,
                     struct jinja_value *out);
struct jinja_builtin {
    const char *name;
    jinja_fn *fn;
    const char *sig;
};

struct jinja_func {
    const struct jinja_builtin *b; /* NULL: a macro */
    struct jinja_value self;       /* of a method; state of cycler and joiner */
    size_t i;                      /* position of a cycler, calls of a joiner */
    const struct jinja_node *macro;
    struct jinja_scope *scope; /* where the macro was defined */
};

struct jinja_loop {
    const struct jinja_list *items; /* after the filter of the loop */
    size_t i;
    int depth0;
    const struct jinja_node *node; /* NULL unless recursive */
    struct jinja_scope *scope;
    struct jinja_value changed; /* MISSING, or the tuple of the last call */
};

/* A string under construction in the arena of the run. Marks follow what is added. */
struct jinja_sb {
    char *p;
    uint8_t *mask; /* NULL while all bytes have the mark `user` */
    size_t n, cap;
    bool user;
};

#define JINJA_NIL ((struct jinja_value){ .kind = JINJA_NONE })
static inline struct jinja_value jinja_bool(bool b)
{
    return (struct jinja_value){ .kind = JINJA_BOOL, .b = b };
}
static inline struct jinja_value jinja_int(int64_t i)
{
    return (struct jinja_value){ .kind = JINJA_INT, .i = i };
}
static inline struct jinja_value jinja_float(double f)
{
    return (struct jinja_value){ .kind = JINJA_FLOAT, .f = f };
}
static inline struct jinja_value jinja_undef(const char *name)
{
    return (struct jinja_value){ .kind = JINJA_UNDEF, .name = name };
}
static inline bool jinja_is_list(struct jinja_value v)
{
    return v.kind >= JINJA_LIST && v.kind <= JINJA_ITER;
}
static inline bool jinja_is_num(struct jinja_value v)
{
    return v.kind == JINJA_BOOL || v.kind == JINJA_INT || v.kind == JINJA_FLOAT;
}
/* Integer value of BOOL or INT. */
static inline int64_t jinja_as_int(struct jinja_value v)
{
    return v.kind == JINJA_BOOL ? v.b : v.i;
}

/* ---- the run: memory, steps, failures (jinja_run.c) ---- */
void *jinja_alloc(struct jinja_run *r, size_t bytes) WARN_UNUSED; /* NULL: r->e is set */
int jinja_alloc_code(const struct jinja_run *r); /* ERR_LIMIT or ERR_NOMEM after a NULL */
int jinja_charge(struct jinja_run *r, size_t steps) WARN_UNUSED; /* ERR_LIMIT when used up */
int jinja_enter(struct jinja_run *r) WARN_UNUSED;                /* one level deeper */
void jinja_leave(struct jinja_run *r);
/* ERR_INVALID with "line N: ...". */
int jinja_fail(struct jinja_run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int jinja_fail_undef(struct jinja_run *r, struct jinja_value undef);

/* ---- strings (jinja_str.c) ---- */
int jinja_sb_add(struct jinja_run *r, struct jinja_sb *b, const char *p, size_t n,
                 bool user) WARN_UNUSED;
int jinja_sb_adds(struct jinja_run *r, struct jinja_sb *b,
                  const char *s) WARN_UNUSED; /* template */
/* Bytes [at, at + n) of s with their marks. */
int jinja_sb_cut(struct jinja_run *r, struct jinja_sb *b, const struct jinja_str *s, size_t at,
                 size_t n) WARN_UNUSED;
int jinja_sb_str(struct jinja_run *r, struct jinja_sb *b, const struct jinja_str *s) WARN_UNUSED;
int jinja_sb_done(struct jinja_run *r, const struct jinja_sb *b,
                  struct jinja_value *out) WARN_UNUSED;
int jinja_str_new(struct jinja_run *r, const char *p, size_t n, bool user,
                  struct jinja_value *out) WARN_UNUSED; /* copies */
/* Shares the bytes of s. */
int jinja_str_cut(struct jinja_run *r, const struct jinja_str *s, size_t at, size_t n,
                  struct jinja_value *out) WARN_UNUSED;
bool jinja_str_user(const struct jinja_str *s); /* any byte of the user */
bool jinja_str_is(struct jinja_value v, const char *lit);
int jinja_str_cmp(const struct jinja_str *a, const struct jinja_str *b);
/* Position of needle in [from, to), or SIZE_MAX. last: the rightmost one. */
size_t jinja_str_find(const struct jinja_str *s, size_t from, size_t to,
                      const struct jinja_str *needle, bool last);
size_t jinja_str_len(const struct jinja_str *s);            /* code points */
size_t jinja_str_at(const struct jinja_str *s, size_t i);   /* byte offset of code point i, <= n */
size_t jinja_cp(const char *p, size_t n, int32_t *cp);      /* decodes one; bytes used, n > 0 */
size_t jinja_cp_back(const char *p, size_t n, int32_t *cp); /* the one that ends at p + n */
size_t jinja_cp_put(char out[4], int32_t cp);               /* encodes; bytes written */
bool jinja_is_space(int32_t cp);                            /* str.isspace */
/* str.strip: chars NULL means whitespace. sides: 1 left, 2 right, 3 both. */
int jinja_str_strip(struct jinja_run *r, const struct jinja_str *s, const struct jinja_str *chars,
                    int sides, struct jinja_value *out) WARN_UNUSED;
int jinja_str_replace(struct jinja_run *r, const struct jinja_str *s, const struct jinja_str *from,
                      const struct jinja_str *to, int64_t count,
                      struct jinja_value *out) WARN_UNUSED;
/* TITLE is str.title(), WORDS the filter: a word begins after white space or one of -({[<. */
enum jinja_case { JINJA_LOWER, JINJA_UPPER, JINJA_CAPITALIZE, JINJA_TITLE, JINJA_WORDS };
int jinja_str_case(struct jinja_run *r, const struct jinja_str *s, enum jinja_case how,
                   struct jinja_value *out) WARN_UNUSED;

/* ---- containers and conversions (jinja_value.c, jinja_repr.c) ---- */
int jinja_list_new(struct jinja_run *r, enum jinja_kind kind, size_t cap,
                   struct jinja_value *out) WARN_UNUSED;
int jinja_list_add(struct jinja_run *r, struct jinja_list *l, struct jinja_value v) WARN_UNUSED;
int jinja_dict_new(struct jinja_run *r, size_t cap, struct jinja_value *out) WARN_UNUSED;
/* Fails on keys that Python cannot hash. */
int jinja_dict_set(struct jinja_run *r, struct jinja_dict *d, struct jinja_value key,
                   struct jinja_value v) WARN_UNUSED;
/* 1 found, 0 not, negative on failure. */
int jinja_dict_get(struct jinja_run *r, const struct jinja_dict *d, struct jinja_value key,
                   struct jinja_value *out) WARN_UNUSED;
int jinja_dict_gets(struct jinja_run *r, const struct jinja_dict *d, const char *key,
                    struct jinja_value *out) WARN_UNUSED;
/* What a for loop walks over: lists themselves, the keys of a dict, the characters of a string. */
int jinja_iter(struct jinja_run *r, struct jinja_value v, struct jinja_list **out) WARN_UNUSED;
const char *jinja_type_name(struct jinja_value v); /* Python's name of the type */
bool jinja_truth(struct jinja_value v);
/* len(); negative ERR_* when it has none. */
int jinja_len(struct jinja_run *r, struct jinja_value v, size_t *out) WARN_UNUSED;
/* 1 equal, 0 not, negative on failure. */
int jinja_eq(struct jinja_run *r, struct jinja_value a, struct jinja_value b) WARN_UNUSED;
/* Order as sorted() sees it: *out < 0, 0, > 0; fails where Python raises TypeError. */
int jinja_cmp(struct jinja_run *r, struct jinja_value a, struct jinja_value b,
              int *out) WARN_UNUSED;
/* `needle in v` */
int jinja_contains(struct jinja_run *r, struct jinja_value v, struct jinja_value needle,
                   bool *out) WARN_UNUSED;
int jinja_to_str(struct jinja_run *r, struct jinja_value v, struct jinja_value *out) WARN_UNUSED;
int jinja_sb_value(struct jinja_run *r, struct jinja_sb *b,
                   struct jinja_value v) WARN_UNUSED; /* str(v) */
int jinja_repr(struct jinja_run *r, struct jinja_value v, struct jinja_value *out) WARN_UNUSED;
bool jinja_any_user(const struct jinja_run *r, struct jinja_value v, int depth);
#define JINJA_FLOAT_CHARS 40
void jinja_float_repr(double f, char out[JINJA_FLOAT_CHARS]); /* shortest that reads back */

/* ---- access and calls (jinja_eval.c, jinja_call.c) ---- */
int jinja_getattr(struct jinja_run *r, struct jinja_value v, struct jinja_value name,
                  struct jinja_value *out) WARN_UNUSED;
int jinja_getitem(struct jinja_run *r, struct jinja_value v, struct jinja_value key,
                  struct jinja_value *out) WARN_UNUSED;
int jinja_call(struct jinja_run *r, struct jinja_value fn, struct jinja_args *a,
               struct jinja_value *out) WARN_UNUSED;
int jinja_call_builtin(struct jinja_run *r, const struct jinja_builtin *b, struct jinja_func *self,
                       struct jinja_args *a, struct jinja_value *out) WARN_UNUSED;
int jinja_binary(struct jinja_run *r, int op, struct jinja_value a, struct jinja_value b,
                 struct jinja_value *out) WARN_UNUSED; /* op: enum jinja_op */
int jinja_func_new(struct jinja_run *r, const struct jinja_builtin *b, struct jinja_value self,
                   struct jinja_value *out) WARN_UNUSED;

/* ---- the tables ---- */
const struct jinja_builtin *jinja_filter(const char *name);     /* jinja_filter.c, jinja_seq.c */
const struct jinja_builtin *jinja_seq_filter(const char *name); /* jinja_seq.c */
const struct jinja_builtin *jinja_test(const char *name);       /* jinja_test.c */
const struct jinja_builtin *jinja_global(const char *name);     /* jinja_global.c */
const struct jinja_builtin *jinja_str_method(const char *name, size_t n); /* jinja_method.c */
/* jinja_member.c: method of a value, NULL when it has none of that name. */
const struct jinja_builtin *jinja_method(struct jinja_value v, const char *name, size_t n);
const struct jinja_builtin *jinja_find(const struct jinja_builtin *t, size_t n, const char *name,
                                       size_t len);

/* ---- text out of values (jinja_json.c, jinja_format.c) ---- */
int jinja_json(struct jinja_run *r, struct jinja_args *a, struct jinja_value *out) WARN_UNUSED;
/* "fmt" % args; bare: one argument that is no tuple, so it may be a mapping. */
int jinja_percent(struct jinja_run *r, const struct jinja_str *fmt, const struct jinja_args *a,
                  bool bare, struct jinja_value *out) WARN_UNUSED;
/* "fmt".format(...) */
int jinja_format(struct jinja_run *r, const struct jinja_str *fmt, const struct jinja_args *a,
                 struct jinja_value *out) WARN_UNUSED;

#endif
