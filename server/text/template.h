/* Chat templates: messages in, prompt text and its segments out.
 *
 * A template is the Jinja source that ships with a model. It is rendered as Python's jinja2 does in the settings chat
 * templates are written for (trim_blocks, lstrip_blocks, loop controls, an immutable sandbox, `tojson` that does not
 * escape HTML, `raise_exception`, `strftime_now`, `{% generation %}`), byte for byte.
 *
 * Marks: every string (and key) that came from messages, tools or kwargs is the user's and stays so through filters,
 * slices, concatenation and formatting; what the template wrote itself, and bos_token and eos_token, is the template's.
 * The standard roles (system, developer, user, assistant, tool) count as the template's. Text made of a whole object
 * (tojson, a printed list) is the user's when any string in it is.
 *
 * Thread: a compiled template is immutable; any number of threads may render with it at once.
 */
#ifndef WRING_TEXT_TEMPLATE_H
#define WRING_TEXT_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/base/buf.h"
#include "server/base/err.h"
#include "server/text/segment.h"

struct tmpl;

/* Compiles src (UTF-8, copied). ERR_FORMAT for a syntax error, ERR_UNSUPPORTED for a tag, filter or test this engine
 * does not have; the sentence names line and column. */
int tmpl_open(struct tmpl **out, const char *src, size_t n, struct err *e) WARN_UNUSED;
void tmpl_close(struct tmpl *t); /* NULL is accepted */

/* All borrowed for the call only. */
struct tmpl_input {
    const json_t *messages; /* array of objects */
    const json_t *tools;    /* array, or NULL: None in the template */
    const json_t *kwargs; /* object of further variables, or NULL; may not set messages or tools */
    bool add_generation_prompt;
    const char *bos_token, *eos_token; /* NULL: not defined in the template */
    int64_t now_unix;                  /* what strftime_now() prints, as local time */
};

/* Bounds of one rendering; 0 in a field, or a NULL pointer, means the default. */
struct tmpl_limits {
    uint64_t
        steps; /* evaluated nodes, long string work counted in proportion; default 10 million */
    size_t output_bytes; /* default 16 MiB */
    size_t memory_bytes; /* default 256 MiB, nothing of it kept after the call */
};

struct tmpl_output {
    struct buf text;          /* UTF-8 */
    struct text_segment *seg; /* cover text */
    int n_seg;
};

/* Renders. out is overwritten on success (free it with tmpl_output_free) and empty after a failure.
 * ERR_INVALID: the template refused the input (raise_exception) or failed on it; ERR_LIMIT; ERR_NOMEM. */
int tmpl_render(const struct tmpl *t, const struct tmpl_input *in, const struct tmpl_limits *lim,
                struct tmpl_output *out, struct err *e) WARN_UNUSED;
void tmpl_output_free(struct tmpl_output *out); /* a zeroed one is accepted */

#endif
