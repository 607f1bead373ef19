/* The Jinja engine: source to program, program and variables to text.
 *
 * The language is jinja2's in the environment of chat templates (see template.h). Three stages, one file each: jinja_lex.c
 * cuts the source into tokens, jinja_parse.c (expressions) and jinja_stmt.c (tags) build the tree, jinja_eval.c and
 * jinja_exec.c walk it. Everything a rendering makes lives in the arena of its struct jinja_run and ends with it.
 *
 * Thread: a program is immutable; a run belongs to one thread.
 * Source: the jinja2 3.1 documentation and the behaviour of that release.
 */
#ifndef WRING_TEXT_JINJA_H
#define WRING_TEXT_JINJA_H

#include <jansson.h>
#include <stdint.h>

#include "server/base/err.h"
#include "server/base/mem.h"
#include "server/text/jinja_value.h"

struct jinja; /* a compiled program */
struct jinja_scope;

/* src is UTF-8 and copied. Errors name line and column: ERR_FORMAT, ERR_UNSUPPORTED, ERR_LIMIT, ERR_NOMEM. */
int jinja_open(struct jinja **out, const char *src, size_t n, struct err *e) WARN_UNUSED;
void jinja_close(struct jinja *j);

struct jinja_limits {
    uint64_t steps;
    size_t output_bytes, memory_bytes;
};

struct jinja_run {
    struct arena mem;
    struct jinja_limits lim;
    uint64_t steps;
    int depth;     /* of nested evaluation, at most JINJA_MAX_DEPTH */
    struct err *e; /* may be NULL */
    const struct jinja *prog;
    struct jinja_scope *root;
    struct jinja_sb *out;     /* where output statements write now */
    struct jinja_value block; /* text of the block that a filter chain starts from */
    int alloc_code;           /* ERR_* of the last jinja_alloc that returned NULL */
    uint32_t line;            /* of the statement being executed, for messages */
    int64_t now;              /* Unix seconds, for strftime_now */
};

/* Depth of nested statements and expressions while running; values nest at most as deep. One level costs well under
 * 1 KiB of stack. */
#define JINJA_MAX_DEPTH 400

/* Starts a run (caller's storage). All fields of lim are set. Always end it with jinja_fini. */
int jinja_init(struct jinja_run *r, const struct jinja *j, const struct jinja_limits *lim,
               struct err *e) WARN_UNUSED;
void jinja_fini(struct jinja_run *r);
/* Defines a variable of the template; a later definition of the same name wins. */
int jinja_define(struct jinja_run *r, const char *name, struct jinja_value v) WARN_UNUSED;
/* Runs the program once; the text and its marks are in *out, which lives as long as r. */
int jinja_exec(struct jinja_run *r, struct jinja_sb *out) WARN_UNUSED;

/* Values from JSON; every string and key is marked as the user's if `user`. */
int jinja_from_json(struct jinja_run *r, const json_t *j, bool user,
                    struct jinja_value *out) WARN_UNUSED;

#endif
