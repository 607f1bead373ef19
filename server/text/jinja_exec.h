/* What the files of the evaluator share: scopes, expressions, statements, macros. */
#ifndef WRING_TEXT_JINJA_EXEC_H
#define WRING_TEXT_JINJA_EXEC_H

#include "server/text/jinja.h"
#include "server/text/jinja_ast.h"

struct jinja_var {
    const char *name; /* interned */
    struct jinja_value value;
};
struct jinja_scope { /* lexical; loops make one an iteration, macros one a call */
    struct jinja_scope *parent;
    struct jinja_var *v;
    size_t n, cap;
};

/* jinja_exec.c */
struct jinja_scope *jinja_scope_new(struct jinja_run *r,
                                    struct jinja_scope *parent); /* NULL: r->e */
int jinja_set(struct jinja_run *r, struct jinja_scope *s, const char *name,
              struct jinja_value v) WARN_UNUSED;
int jinja_assign(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *target,
                 struct jinja_value v) WARN_UNUSED;
/* Output of a body as a string. */
int jinja_capture(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *body,
                  struct jinja_value *out) WARN_UNUSED;
/* loop(items) in a recursive loop. */
int jinja_recurse(struct jinja_run *r, struct jinja_loop *loop, struct jinja_value items,
                  struct jinja_value *out) WARN_UNUSED;

/* jinja_eval.c */
int jinja_eval(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *n,
               struct jinja_value *out) WARN_UNUSED;

/* jinja_call.c: the arguments of a call; a must start out zeroed. */
int jinja_eval_args(struct jinja_run *r, struct jinja_scope *s, const struct jinja_node *args,
                    const struct jinja_value *first, const struct jinja_value *caller,
                    struct jinja_args *a) WARN_UNUSED;

#endif
