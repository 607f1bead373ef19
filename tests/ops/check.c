/* Memory of cases, steps, comparing: what every check uses. See check.h. */
#include "tests/ops/check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "tests/tools/levels.h"

enum { GUARD = 256, CHUNK = 1 << 16 };

/* ---- a case ------------------------------------------------------------------------------------------------------ */

void check_case(struct check *c, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(c->now, sizeof c->now, fmt, ap);
    va_end(ap);
}

void *check_host(struct check *c, size_t bytes)
{
    void *p = arena_alloc(&c->arena, bytes + 1);
    ASSERT(p != NULL);
    return p;
}

float *check_floats(struct check *c, size_t n, float scale)
{
    float *p = check_host(c, n * sizeof *p);
    rnd_fill(p, n, scale);
    return p;
}

static void set_all(struct be *be, char *p, size_t bytes)
{
    static char ones[CHUNK];
    memset(ones, 0xff, sizeof ones);
    for (size_t i = 0; i < bytes; i += CHUNK)
        be->ops->upload(be, p + i, ones, bytes - i < CHUNK ? bytes - i : CHUNK);
}

void *check_room(struct check *c, struct be *be, size_t bytes)
{
    void *p = be->ops->alloc(be, bytes + GUARD);
    ASSERT(p != NULL && c->n_blocks < CHECK_BLOCKS);
    c->block[c->n_blocks++] = (struct check_block){ be, p, bytes };
    set_all(be, p, bytes + GUARD);
    return p;
}

void *check_put(struct check *c, struct be *be, const void *src, size_t bytes)
{
    void *p = check_room(c, be, bytes);
    if (bytes > 0)
        be->ops->upload(be, p, src, bytes);
    return p;
}

void check_get(struct check *c, struct be *be, void *dst, const void *src, size_t bytes)
{
    if (bytes > 0)
        be->ops->download(be, dst, src, bytes);
    if (be == c->be)
        c->hash = XXH3_64bits_withSeed(dst, bytes, c->hash);
}

void check_close(struct check *c, enum check_id id)
{
    for (int i = 0; i < c->n_blocks; i++) {
        struct check_block *b = &c->block[i];
        unsigned char guard[GUARD];
        int bad = 0;
        b->be->ops->download(b->be, guard, (char *)b->p + b->bytes, GUARD);
        for (int j = 0; j < GUARD; j++)
            bad += guard[j] != 0xff;
        check_that(c, id, bad == 0, "%d bytes behind a block of %zu were written", bad, b->bytes);
        b->be->ops->free(b->be, b->p, b->bytes + GUARD);
    }
    c->n_blocks = 0;
    arena_clear(&c->arena);
    c->now[0] = 0;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

int check_padded(int n)
{
    int up = 1;
    while (up < n)
        up *= 2;
    return up;
}

struct be_step check_step(struct check *c, const struct be_seq *seqs, int n_seqs, int n_kv_heads)
{
    int n = 0;
    for (int i = 0; i < n_seqs; i++)
        n += seqs[i].n_rows;
    int32_t *token = check_host(c, (size_t)n * sizeof *token);
    int32_t *pos = check_host(c, (size_t)n * sizeof *pos);
    int32_t *row = check_host(c, (size_t)n * sizeof *row);
    for (int i = 0; i < n_seqs; i++)
        for (int r = 0; r < seqs[i].n_rows; r++)
            pos[seqs[i].row0 + r] = seqs[i].pos0 + r;
    for (int r = 0; r < n; r++)
        row[r] = r;
    return (struct be_step){ .n_rows = n,
                             .n_seqs = n_seqs,
                             .n_out = n,
                             .n_layers = 1,
                             .n_kv_heads = n_kv_heads,
                             .token = token,
                             .pos = pos,
                             .out_row = row,
                             .seqs = seqs };
}

struct be_step check_plain_step(struct check *c, int n_rows, const int32_t *pos)
{
    struct be_seq *seq = check_host(c, sizeof *seq);
    int32_t *pages = check_host(c, (size_t)(n_rows / KV_PAGE + 1) * sizeof *pages);
    *seq = (struct be_seq){ .n_rows = n_rows, .kv = { .wide = pages } };
    struct be_step s = check_step(c, seq, 1, 1);
    if (pos != NULL)
        s.pos = pos;
    return s;
}

void check_begin(struct check *c, struct be *be, struct be_step *s)
{
    int n_rows = s->n_rows, n_seqs = s->n_seqs, n_out = s->n_out;
    const void *owner = (const void *)(0x1000 + c->n_steps++); /* a name, never followed */
    bool replayed = be->ops->step_begin(be, s, owner);
    check_that(c, CHECK_STEP, !replayed, "a new pass was replayed");
    check_that(c, CHECK_STEP,
               s->n_rows >= n_rows && s->n_rows <= check_padded(n_rows) && s->n_seqs >= n_seqs &&
                   s->n_seqs <= check_padded(n_seqs) && s->n_out >= n_out &&
                   s->n_out <= check_padded(n_out),
               "%d rows, %d sequences, %d outputs became %d, %d, %d", n_rows, n_seqs, n_out,
               s->n_rows, s->n_seqs, s->n_out);
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

static void fail(struct check *c, enum check_id id, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void fail(struct check *c, enum check_id id, const char *fmt, ...)
{
    struct check_result *r = &c->result[id];
    char text[120];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (r->n_bad++ == 0)
        (void)snprintf(r->first, sizeof r->first, "%s: %s", c->now, text);
}

static bool same_float(float a, float b)
{
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

/* Of one element; infinite when one is finite and the other is not, or when bits are asked for and differ. Results below
 * 1e-37 may be flushed to zero. */
static double error_of(float got, float want, double scale, bool bits)
{
    if (same_float(got, want))
        return 0;
    if (bits || !isfinite(got) || !isfinite(want))
        return INFINITY;
    double d = fabs((double)got - (double)want);
    double unit = scale > 0 ? scale : fabs((double)want);
    return d <= 1e-37 ? 0 : d / unit;
}

void check_near(struct check *c, enum check_id id, const float *got, const float *want, size_t n,
                double scale)
{
    struct check_result *r = &c->result[id];
    double tol = check_rules[id].tol[c->kind];
    for (size_t i = 0; i < n; i++) {
        double e = error_of(got[i], want[i], scale, tol == 0);
        if (!(e <= r->worst))
            r->worst = e;
        if (!(e <= tol))
            fail(c, id, "element %zu of %zu is %.9g, not %.9g", i, n, (double)got[i],
                 (double)want[i]);
    }
    r->n_compared += (long)n;
}

void check_same(struct check *c, enum check_id id, const char *what, const void *got,
                const void *want, size_t bytes)
{
    const unsigned char *a = got, *b = want;
    size_t at = 0;
    c->result[id].n_compared += (long)bytes;
    if (memcmp(a, b, bytes) == 0)
        return;
    while (a[at] == b[at])
        at++;
    float x = 0, y = 0;
    at -= at % sizeof x;
    size_t n = bytes - at < sizeof x ? bytes - at : sizeof x;
    memcpy(&x, a + at, n);
    memcpy(&y, b + at, n);
    fail(c, id, "%s: not the same bits from byte %zu on (%.9g, not %.9g)", what, at, (double)x,
         (double)y);
}

void check_canonical(enum kv_type type, void *p, size_t bytes)
{
    char *at = p;
    for (size_t i = 0; i < bytes; i += kv_elem_bytes(type)) {
        uint16_t h;
        uint32_t u;
        memcpy(&h, at + i, sizeof h);
        if (type == KV_F32) {
            memcpy(&u, at + i, sizeof u);
            u = (u & 0x7fffffff) > 0x7f800000 ? 0x7fffffff : u;
            memcpy(at + i, &u, sizeof u);
            continue;
        }
        h = (h & 0x7fff) > (type == KV_F16 ? 0x7c00 : 0x7f80) ? 0x7fff : h;
        memcpy(at + i, &h, sizeof h);
    }
}

void check_error(struct check *c, enum check_id id, const char *what, double error)
{
    struct check_result *r = &c->result[id];
    r->n_compared++;
    if (!(error <= r->worst))
        r->worst = error;
    if (!(error <= check_rules[id].tol[c->kind]))
        fail(c, id, "%s is off by %.3g", what, error);
}

void check_that(struct check *c, enum check_id id, bool ok, const char *fmt, ...)
{
    c->result[id].n_compared++;
    if (ok)
        return;
    char text[120];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fail(c, id, "%s", text);
}
