/* The promise that a row's bits depend on that row alone, where it is hardest to keep: attention. A prompt in one go, in
 * chunks, token by token through kv_append, and each row asked about by itself over the finished cache, give the same bits.
 * (The ops on rows and the products are asked the same where they are checked.) */
#include <string.h>

#include "tests/ops/check.h"
#include "tests/tools/levels.h"
#include "tests/tools/world.h"

/* What a device holds of a world: twice the rows, because a step may add some behind any part of them. */
struct device {
    struct be_attend ask; /* of all rows */
    float *k, *v;         /* of the sequence that is built up */
};

static void bring(struct check *c, const struct world *w, const void *pool, struct device *d)
{
    struct be *be = c->be;
    size_t n = world_floats(w), kv = (size_t)w->s.len[0] * (size_t)(w->s.n_kv * w->s.dim);
    float *q = check_room(c, be, 2 * n * sizeof *q);
    float *lse = check_room(c, be, 2 * n / (size_t)w->s.dim * sizeof *lse);
    d->ask = world_ask(w, check_room(c, be, 2 * n * sizeof(float)), lse);
    d->ask.kv.pool = check_put(c, be, pool, w->pool_bytes);
    if (w->kv.beta != NULL)
        d->ask.kv.beta = check_put(c, be, w->beta, w->beta_bytes);
    be->ops->upload(be, q, w->q, n * sizeof *q);
    d->ask.q = q;
    d->k = check_room(c, be, 2 * kv * sizeof(float));
    d->v = check_room(c, be, 2 * kv * sizeof(float));
    if (w->s.from[0] == 0) {
        be->ops->upload(be, d->k, w->k[0], kv * sizeof(float));
        be->ops->upload(be, d->v, w->v[0], kv * sizeof(float));
    }
}

/* One step over some sequences whose rows stand from row `first` on in q and out; k and v, from their row `kv_row` on, are
 * appended when append. */
static void step(struct check *c, const struct world *w, const struct device *d,
                 const struct be_seq *seqs, int n_seqs, int first, bool append, int kv_row)
{
    struct be *be = c->be;
    struct be_step s = check_step(c, seqs, n_seqs, w->s.n_kv);
    s.narrow_type = w->s.narrow_type;
    size_t at = (size_t)first * (size_t)(w->n_heads * w->s.dim);
    size_t kv_at = (size_t)kv_row * (size_t)(w->s.n_kv * w->s.dim);
    struct be_attend a = d->ask;
    a.q += at;
    a.out += at;
    a.lse += first * w->n_heads;
    check_begin(c, be, &s);
    a.kv.seqs = s.seqs;
    a.kv.n_seqs = s.n_seqs;
    if (append)
        be->ops->kv_append(be, &a.kv, d->k + kv_at, d->v + kv_at);
    be->ops->attend(be, &a);
    be->ops->step_end(be);
}

/* What attention leaves of n rows, from row `at` on. */
struct answer {
    float *out, *lse;
};

static struct answer get_rows(struct check *c, const struct world *w, const struct device *d,
                              int at, int n)
{
    size_t heads = (size_t)w->n_heads, dim = (size_t)w->s.dim, bytes = sizeof(float);
    size_t from = (size_t)at * heads, count = (size_t)n * heads;
    struct answer a = { check_host(c, count * dim * bytes), check_host(c, count * bytes) };
    check_get(c, c->be, a.out, d->ask.out + from * dim, count * dim * bytes);
    check_get(c, c->be, a.lse, d->ask.lse + from, count * bytes);
    return a;
}

static void check_rows_same(struct check *c, const struct world *w, const char *what,
                            struct answer got, struct answer want, int at, int n)
{
    size_t heads = (size_t)w->n_heads, dim = (size_t)w->s.dim, bytes = sizeof(float);
    size_t from = (size_t)at * heads, count = (size_t)n * heads;
    check_same(c, CHECK_COMPANY, what, got.out, want.out + from * dim, count * dim * bytes);
    check_same(c, CHECK_COMPANY, what, got.lse, want.lse + from, count * bytes);
}

/* Every `stride`-th row of every sequence. */
static void rows_alone(struct check *c, const struct world *w, const struct device *d,
                       struct answer want, int stride)
{
    for (int i = 0; i < w->s.n_seqs; i++)
        for (int r = w->s.rows[i] - 1; r >= 0; r -= stride) {
            struct be_seq one = w->seqs[i];
            int at = one.row0 + r;
            one.row0 = 0;
            one.pos0 += r;
            one.n_rows = 1;
            step(c, w, d, &one, 1, at, false, 0);
            check_rows_same(c, w, "a row alone", get_rows(c, w, d, at, 1), want, at, 1);
        }
}

/* Sequence 0 built up in a cache of its own, as a server would. */
static void in_chunks(struct check *c, const struct world *w, struct answer want, int max_chunk)
{
    struct device d;
    char *pool = check_host(c, w->pool_bytes);
    memset(pool, 0xff, w->pool_bytes);
    bring(c, w, pool, &d);
    for (int at = 0; at < w->s.len[0];) {
        int n = max_chunk < 3 ? max_chunk : 1 + (int)(rnd_bits() % (uint32_t)max_chunk);
        n = n < w->s.len[0] - at ? n : w->s.len[0] - at;
        struct be_seq q = { .n_rows = n, .pos0 = at, .kv = w->seqs[0].kv };
        step(c, w, &d, &q, 1, at, true, at);
        at += n;
    }
    check_rows_same(c, w, max_chunk == 1 ? "token by token" : "in chunks",
                    get_rows(c, w, &d, 0, w->s.rows[0]), want, 0, w->s.rows[0]);
}

static void check_world(struct check *c, const struct world_shape *s, enum kv_type type, int stride)
{
    static struct world w;
    struct device d;
    world_open(&w, c->ref, s, type);
    check_case(c, "attend in company, %s, %d x %d heads of %d, window %d, %d rows",
               kv_type_name(type), s->n_kv, s->group, s->dim, s->window, w.n_rows);
    bring(c, &w, w.kv.pool, &d);
    step(c, &w, &d, w.seqs, s->n_seqs, 0, false, 0);
    struct answer want = get_rows(c, &w, &d, 0, w.n_rows);
    rows_alone(c, &w, &d, want, stride);
    if (s->rows[0] == s->len[0]) {
        in_chunks(c, &w, want, 100);
        in_chunks(c, &w, want, 2);
        if (s->len[0] <= 300)
            in_chunks(c, &w, want, 1);
    }
    check_close(c, CHECK_COMPANY);
    world_close(&w);
}

void check_company(struct check *c)
{
    /* Whole prompts (rows = len), short and long, beside decoding sequences. */
    static const struct world_shape small[] = {
        { 1, 3, 64, 0, 3, { 100, 33, 530 }, { 100, 0, 1 }, { 0 }, { 0 }, KV_NARROW_SAME },
        { 1, 2, 32, 0, 2, { 600, 530 }, { 90, 2 }, { 0 }, { 0, 70 }, KV_NARROW_SAME },
        { 2, 2, 32, 0, 2, { 90, 530 }, { 90, 2 }, { 0 }, { 0, 70 }, KV_NARROW_Q8 },
    };
    static const struct world_shape full[] = {
        { 3, 3, 64, 0, 4, { 600, 70, 1100, 33 }, { 600, 70, 1, 1 }, { 0 }, { 0 }, KV_NARROW_SAME },
        { 1, 8, 48, 100, 3, { 300, 1100, 1 }, { 300, 2, 1 }, { 0 }, { 0 }, KV_NARROW_SAME },
        { 2,
          1,
          128,
          0,
          3,
          { 530, 1100, 90 },
          { 530, 1, 2 },
          { 0, 0, 64 },
          { 0, 0, 333 },
          KV_NARROW_SAME },
        { 2, 4, 128, 0, 3, { 200, 1100, 600 }, { 200, 3, 64 }, { 0 }, { 0 }, KV_NARROW_SAME },
    };
    for (int type = 0; type < KV_TYPE_N; type++)
        for (int i = 0; i < (c->small ? COUNT(small) : COUNT(full)); i++)
            check_world(c, c->small ? &small[i] : &full[i], type, c->small ? 37 : 7);
}
