/* A program's and a run's memory, step counter and failures.
 */
#include <stdarg.h>
#include <string.h>

#include "server/text/jinja.h"
#include "server/text/jinja_ast.h"

#define SOURCE_MAX  (4u << 20)
#define PROGRAM_MAX ((size_t)512 << 20)

/* \r\n and \r become \n; one newline at the end goes, as jinja2 does. */
static int normalise(struct jinja *j, const char *src, size_t n, struct err *e)
{
    j->src = arena_alloc(&j->mem, n + 1);
    if (!j->src)
        return err_set(e, ERR_NOMEM, "template: out of memory");
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t k = jinja_cp(src + i, n - i, &cp);
        if (cp == 0xfffd && k == 1)
            return err_set(e, ERR_FORMAT, "template: not UTF-8 at byte %zu", i);
        if (src[i] == '\r') {
            j->src[j->n++] = '\n';
            i += 1 + (i + 1 < n && src[i + 1] == '\n');
            continue;
        }
        memcpy(j->src + j->n, src + i, k);
        j->n += k;
        i += k;
    }
    if (j->n && j->src[j->n - 1] == '\n')
        j->n--;
    return 0;
}

int jinja_open(struct jinja **out, const char *src, size_t n, struct err *e)
{
    if (n > SOURCE_MAX)
        return err_set(e, ERR_LIMIT, "template: %zu bytes, at most %u are accepted", n, SOURCE_MAX);
    struct jinja *j = mem_zalloc(1, sizeof *j);
    if (!j)
        return err_set(e, ERR_NOMEM, "template: out of memory");
    arena_init(&j->mem, PROGRAM_MAX);
    int rc = normalise(j, src, n, e);
    if (!rc)
        rc = jinja_parse(j, e);
    if (rc) {
        jinja_close(j);
        return rc;
    }
    *out = j;
    return 0;
}

void jinja_close(struct jinja *j)
{
    if (!j)
        return;
    arena_clear(&j->mem);
    mem_free(j);
}

void *jinja_alloc(struct jinja_run *r, size_t bytes)
{
    void *p = arena_alloc(&r->mem, bytes ? bytes : 1);
    if (p)
        return p;
    bool full = bytes > r->mem.max_total || r->mem.used_total > r->mem.max_total - bytes;
    err_set(r->e, full ? ERR_LIMIT : ERR_NOMEM,
            full ? "template line %u: rendering takes more than %zu bytes of memory"
                 : "template line %u: out of memory",
            r->line, r->mem.max_total);
    r->alloc_code = full ? ERR_LIMIT : ERR_NOMEM;
    return NULL;
}

int jinja_alloc_code(const struct jinja_run *r)
{
    return r->alloc_code;
}

int jinja_charge(struct jinja_run *r, size_t steps)
{
    if (steps > r->lim.steps - r->steps)
        return err_set(r->e, ERR_LIMIT, "template line %u: rendering takes more than %llu steps",
                       r->line, (unsigned long long)r->lim.steps);
    r->steps += steps;
    return 0;
}

int jinja_enter(struct jinja_run *r)
{
    if (r->depth >= JINJA_MAX_DEPTH)
        return err_set(r->e, ERR_LIMIT, "template line %u: nested too deeply", r->line);
    r->depth++;
    return 0;
}

void jinja_leave(struct jinja_run *r)
{
    r->depth--;
}

int jinja_fail(struct jinja_run *r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    err_vset(r->e, ERR_INVALID, fmt, ap);
    va_end(ap);
    err_prefix(r->e, "template line %u", r->line);
    return ERR_INVALID;
}

int jinja_fail_undef(struct jinja_run *r, struct jinja_value undef)
{
    return jinja_fail(r, "'%.80s' is undefined", undef.name ? undef.name : "value");
}
