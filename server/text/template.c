/* Chat templates on the Jinja engine: which variables they see, and segments out of marks.
 */
#include <string.h>

#include "server/text/jinja.h"
#include "server/text/template.h"

struct tmpl {
    struct jinja *j;
};

static const struct jinja_limits defaults = {
    .steps = 10000000,
    .output_bytes = (size_t)16 << 20,
    .memory_bytes = (size_t)256 << 20,
};

int tmpl_open(struct tmpl **out, const char *src, size_t n, struct err *e)
{
    struct tmpl *t = mem_zalloc(1, sizeof *t);
    if (!t)
        return err_set(e, ERR_NOMEM, "template: out of memory");
    int rc = jinja_open(&t->j, src, n, e);
    if (rc) {
        mem_free(t);
        return rc;
    }
    *out = t;
    return 0;
}

void tmpl_close(struct tmpl *t)
{
    if (!t)
        return;
    jinja_close(t->j);
    mem_free(t);
}

void tmpl_output_free(struct tmpl_output *out)
{
    buf_free(&out->text);
    mem_free(out->seg);
    out->seg = NULL;
    out->n_seg = 0;
}

static int define_json(struct jinja_run *r, const char *name, const json_t *j)
{
    struct jinja_value v;
    TRY(jinja_from_json(r, j, true, &v));
    return jinja_define(r, name, v);
}

static int define_token(struct jinja_run *r, const char *name, const char *s)
{
    struct jinja_value v;
    if (!s)
        return 0;
    TRY(jinja_str_new(r, s, strlen(s), false, &v));
    return jinja_define(r, name, v);
}

/* The roles every template knows are its own words, not the user's. */
static int own_roles(struct jinja_run *r, struct jinja_value messages)
{
    static const char *const roles[] = { "system", "developer", "user", "assistant", "tool" };
    for (size_t i = 0; messages.kind == JINJA_LIST && i < messages.l->n; i++) {
        struct jinja_value role;
        if (messages.l->v[i].kind != JINJA_DICT)
            continue;
        struct jinja_dict *d = messages.l->v[i].d;
        int rc = jinja_dict_gets(r, d, "role", &role);
        if (rc < 0)
            return rc;
        for (size_t k = 0; rc && k < sizeof roles / sizeof roles[0]; k++) {
            struct jinja_value key;
            if (!jinja_str_is(role, roles[k]))
                continue;
            TRY(jinja_str_new(r, "role", 4, false, &key));
            TRY(jinja_str_new(r, roles[k], strlen(roles[k]), false, &role));
            TRY(jinja_dict_set(r, d, key, role));
        }
    }
    return 0;
}

static int define_all(struct jinja_run *r, const struct tmpl_input *in, struct err *e)
{
    struct jinja_value messages;
    r->now = in->now_unix;
    if (!json_is_array(in->messages))
        return err_set(e, ERR_INVALID, "template: messages must be an array");
    TRY(jinja_from_json(r, in->messages, true, &messages));
    TRY(own_roles(r, messages));
    TRY(jinja_define(r, "messages", messages));
    TRY(define_json(r, "tools", in->tools));
    TRY(jinja_define(r, "documents", JINJA_NIL));
    TRY(jinja_define(r, "add_generation_prompt", jinja_bool(in->add_generation_prompt)));
    TRY(define_token(r, "bos_token", in->bos_token));
    TRY(define_token(r, "eos_token", in->eos_token));
    json_t *kw = (json_t *)(uintptr_t)in->kwargs; /* iterators take no const; nothing is changed */
    for (void *it = kw ? json_object_iter(kw) : NULL; it; it = json_object_iter_next(kw, it)) {
        const char *key = json_object_iter_key(it);
        if (strcmp(key, "messages") == 0 || strcmp(key, "tools") == 0)
            return err_set(e, ERR_INVALID, "template arguments may not set '%s'", key);
        TRY(define_json(r, key, json_object_iter_value(it)));
    }
    return 0;
}

/* Copies text and marks out of the run. */
static int take(const struct jinja_sb *b, struct tmpl_output *out, struct err *e)
{
    int n = 0, i = -1;
    for (size_t k = 0; k < b->n; k++)
        n += k == 0 || (b->mask && b->mask[k] != b->mask[k - 1]);
    struct text_segment *seg = n ? mem_alloc((size_t)n * sizeof *seg) : NULL;
    buf_init(&out->text, b->n + 1);
    if ((n && !seg) || buf_add(&out->text, b->n ? b->p : "", b->n)) {
        mem_free(seg);
        buf_free(&out->text);
        return err_set(e, ERR_NOMEM, "template: out of memory");
    }
    for (size_t k = 0; k < b->n; k++) {
        if (k == 0 || (b->mask && b->mask[k] != b->mask[k - 1]))
            seg[++i] = (struct text_segment){ .start = k, .user = b->mask ? b->mask[k] : b->user };
        seg[i].len++;
    }
    out->seg = seg;
    out->n_seg = n;
    return 0;
}

int tmpl_render(const struct tmpl *t, const struct tmpl_input *in, const struct tmpl_limits *lim,
                struct tmpl_output *out, struct err *e)
{
    struct jinja_limits l = defaults;
    struct jinja_run run;
    struct jinja_sb text;
    if (lim) {
        l.steps = lim->steps ? lim->steps : l.steps;
        l.output_bytes = lim->output_bytes ? lim->output_bytes : l.output_bytes;
        l.memory_bytes = lim->memory_bytes ? lim->memory_bytes : l.memory_bytes;
    }
    *out = (struct tmpl_output){ 0 };
    int rc = jinja_init(&run, t->j, &l, e);
    if (!rc)
        rc = define_all(&run, in, e);
    if (!rc)
        rc = jinja_exec(&run, &text);
    if (!rc)
        rc = take(&text, out, e);
    jinja_fini(&run);
    return rc;
}
