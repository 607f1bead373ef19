/* Attention against the definition, over every shape that its cuts know: tiles, spans, pages, heads, windows, narrow pages.
 * The cache is filled with NaN before the keys, so that a read of a slot that nobody wrote shows. */
#include <math.h>
#include <string.h>

#include "tests/ops/check.h"
#include "tests/tools/world.h"

static enum check_id rule_of(enum kv_type type)
{
    return CHECK_ATTEND_F16 + (int)type;
}

/* Asks be the question of the world about these sequences. */
static void attend_on(struct check *c, struct be *be, const struct world *w,
                      const struct be_seq *seqs, int n_seqs, const float *q, float *out, float *lse)
{
    size_t heads = (size_t)w->n_rows * (size_t)w->n_heads, dim = (size_t)w->s.dim;
    size_t room = (size_t)check_padded(w->n_rows) * (size_t)w->n_heads;
    struct be_step s = check_step(c, seqs, n_seqs, w->s.n_kv);
    s.narrow_type = w->s.narrow_type;
    struct be_attend a = world_ask(w, NULL, NULL);
    a.kv.pool = check_put(c, be, w->kv.pool, w->pool_bytes);
    if (w->kv.beta != NULL)
        a.kv.beta = check_put(c, be, w->beta, w->beta_bytes);
    float *dq = check_room(c, be, room * dim * sizeof(float));
    a.out = check_room(c, be, room * dim * sizeof(float));
    a.lse = lse != NULL ? check_room(c, be, room * sizeof(float)) : NULL;
    be->ops->upload(be, dq, q, heads * dim * sizeof(float));
    a.q = dq;
    check_begin(c, be, &s);
    a.kv.seqs = s.seqs;
    a.kv.n_seqs = s.n_seqs;
    be->ops->attend(be, &a);
    be->ops->step_end(be);
    check_get(c, be, out, a.out, heads * dim * sizeof(float));
    if (lse != NULL)
        check_get(c, be, lse, a.lse, heads * sizeof(float));
}

/* The error of a weight shows in the output relative to what the weights leave of the values, which shrinks as contexts
 * grow: the scale of a row is the root mean square of its outputs. */
static void compare(struct check *c, const struct world *w, const float *out, const float *lse)
{
    enum check_id id = rule_of(w->kv.type);
    size_t row = (size_t)(w->n_heads * w->s.dim);
    for (int r = 0; r < w->n_rows; r++) {
        const float *want = w->out + (size_t)r * row;
        double sum = 0;
        for (size_t i = 0; i < row; i++)
            sum += (double)want[i] * (double)want[i];
        check_near(c, id, out + (size_t)r * row, want, row, sqrt(sum / (double)row) + 1e-30);
    }
    if (lse != NULL)
        check_near(c, id, lse, w->lse, (size_t)(w->n_rows * w->n_heads), 1);
}

static void check_shape(struct check *c, const struct world_shape *s, enum kv_type type)
{
    static struct world w;
    world_open(&w, c->ref, s, type);
    check_case(
        c, "attend, %s, %d x %d heads of %d, window %d, %d sequences, %d rows at %d, narrow %d %s",
        kv_type_name(type), s->n_kv, s->group, s->dim, s->window, s->n_seqs, s->rows[0], s->len[0],
        s->narrow[0], kv_narrow_name(s->narrow_type));
    struct be_attend a = world_ask(&w, w.out, w.lse);
    c->ref->ops->attend(c->ref, &a);
    float *out = check_host(c, world_floats(&w) * sizeof *out);
    float *lse = check_host(c, world_floats(&w) * sizeof *lse);
    attend_on(c, c->be, &w, w.seqs, s->n_seqs, w.q, out, lse);
    compare(c, &w, out, lse);
    if (s->rows[0] == 1) {
        attend_on(c, c->be, &w, w.seqs, s->n_seqs, w.q, out, NULL);
        compare(c, &w, out, NULL);
    }
    check_close(c, rule_of(type));
    world_close(&w);
}

static void each_type(struct check *c, const struct world_shape *s)
{
    for (int type = 0; type < KV_TYPE_N; type++)
        if (s->narrow_type == KV_NARROW_SAME || type != KV_F32)
            check_shape(c, s, type);
}

static void check_lengths(struct check *c)
{
    static const int len[] = { 1, 33, 64, 65, 513, 2, 31, 32, 63, 511, 512, 1100 };
    for (int i = 0; i < (c->small ? 5 : COUNT(len)); i++)
        for (int rows = 1; rows <= 4; rows += 3) {
            struct world_shape s = { .n_kv = 2, .group = 3, .dim = 64, .n_seqs = 1 };
            s.len[0] = len[i];
            s.rows[0] = rows < len[i] ? rows : len[i];
            each_type(c, &s);
        }
}

static void check_heads(struct check *c)
{
    static const int dims[] = { 2, 6, 8, 48, 64, 80, 128, 256 };
    static const int groups[] = { 1, 2, 4, 7, 8, 16 };
    for (int d = 0; d < COUNT(dims); d++)
        for (int g = 0; g < COUNT(groups); g++) {
            struct world_shape s = { .n_kv = 2,
                                     .group = groups[g],
                                     .dim = dims[d],
                                     .n_seqs = 2,
                                     .len = { 97, 40 },
                                     .rows = { 5, 1 } };
            if (!c->small)
                each_type(c, &s);
            else if (g == d % COUNT(groups))
                each_type(c, &s);
        }
}

static void check_windows(struct check *c)
{
    static const int windows[] = { 1, 65, 512, 2, 31, 64, 100, 600, 5000 };
    for (int i = 0; i < (c->small ? 3 : COUNT(windows)); i++) {
        struct world_shape s = { .n_kv = 2,
                                 .group = 2,
                                 .dim = 32,
                                 .window = windows[i],
                                 .n_seqs = 2,
                                 .len = { c->small ? 100 : 700, c->small ? 600 : 1100 },
                                 .rows = { c->small ? 8 : 40, 3 },
                                 .from = { 0, 448 } };
        each_type(c, &s);
    }
}

/* Ragged: head h has 3 * h slots more than head 0, which may have none. */
static void check_narrow(struct check *c)
{
    static const int narrow[] = { -1, 1, 64, 513, 31, 32, 63, 65, 511 };
    for (int i = 0; i < (c->small ? 4 : COUNT(narrow)); i++)
        for (int window = 0; window <= (c->small ? 0 : 40); window += 40) {
            struct world_shape s = { .n_kv = 3,
                                     .group = 3,
                                     .dim = 64,
                                     .window = window,
                                     .n_seqs = 3,
                                     .len = { 130, 900, c->small ? 70 : 608 },
                                     .rows = { 2, c->small ? 5 : 20, 1 },
                                     .from = { 96, 864, 0 } };
            s.narrow[0] = s.narrow[1] = narrow[i];
            each_type(c, &s);
            s.narrow_type = KV_NARROW_Q8;
            each_type(c, &s);
            s.rows[0] = s.rows[1] = 1; /* all of them decode */
            check_shape(c, &s, KV_BF16);
            s.narrow_type = KV_NARROW_SAME;
            check_shape(c, &s, KV_BF16);
        }
}

/* q8 slots of heads of every size, for one row and for many. */
static void check_q8(struct check *c)
{
    static const int dims[] = { 64, 6, 128, 2, 48, 80, 256, 512 };
    for (int i = 0; i < (c->small ? 3 : COUNT(dims)); i++)
        for (int rows = 1; rows <= 40; rows += 39) {
            struct world_shape s = { .n_kv = 2,
                                     .group = 3,
                                     .dim = dims[i],
                                     .n_seqs = 1,
                                     .len = { 140 },
                                     .rows = { rows },
                                     .from = { 96 },
                                     .narrow = { 97 },
                                     .narrow_type = KV_NARROW_Q8 };
            each_type(c, &s);
        }
}

/* Prompts, decoding rows and sequences without rows side by side. */
static void check_batches(struct check *c)
{
    static const struct world_shape shape[] = {
        { 2, 4, 64, 0, 4, { 70, 33, 530, 1 }, { 70, 0, 1, 1 }, { 0 }, { 0 }, KV_NARROW_SAME },
        { 1,
          8,
          128,
          0,
          5,
          { 1, 31, 64, 300, 520 },
          { 1, 1, 1, 1, 1 },
          { 0 },
          { 0 },
          KV_NARROW_SAME },
        { 2, 2, 32, 0, 1, { 200 }, { 200 }, { 0 }, { 0 }, KV_NARROW_SAME },
        { 2, 4, 128, 0, 2, { 600, 1100 }, { 600, 130 }, { 0 }, { 0 }, KV_NARROW_SAME },
        { 1,
          1,
          256,
          0,
          9,
          { 1, 2, 3, 65, 129, 513, 514, 1025, 1100 },
          { 1, 1, 1, 1, 1, 1, 1, 1, 1 },
          { 0 },
          { 0 },
          KV_NARROW_SAME },
    };
    for (int i = 0; i < (c->small ? 3 : COUNT(shape)); i++)
        each_type(c, &shape[i]);
}

/* ---- odd input --------------------------------------------------------------------------------------------------- */

/* NaN and infinities of a query, or of another sequence's keys and values, stay where they are; rows that see nothing give
 * zeros. */
static void check_odd(struct check *c, enum kv_type type)
{
    static struct world w;
    static const struct world_shape shape = {
        2, 3, 64, 0, 3, { 530, 40, 50 }, { 5, 1, 2 }, { 0, 32 }, { 0 }, KV_NARROW_SAME
    };
    enum check_id id = rule_of(type);
    world_open(&w, c->ref, &shape, type);
    check_case(c, "attend, %s, what is not finite", kv_type_name(type));
    size_t row = (size_t)(w.n_heads * w.s.dim), bytes = row * sizeof(float);
    size_t n = world_floats(&w), heads = (size_t)w.n_heads;
    float *clean = check_host(c, n * sizeof *clean), *out = check_host(c, n * sizeof *out);
    float *lse = check_host(c, n * sizeof *lse), *q = check_host(c, n * sizeof *q);
    attend_on(c, c->be, &w, w.seqs, 3, w.q, clean, NULL);
    memcpy(q, w.q, n * sizeof *q);
    q[row] = NAN;
    q[2 * row] = INFINITY;
    attend_on(c, c->be, &w, w.seqs, 3, q, out, lse);
    check_same(c, id, "a row before NaN", out, clean, bytes);
    check_same(c, id, "rows behind NaN", out + 3 * row, clean + 3 * row, 5 * bytes);
    check_that(c, id, isnan(out[row]) && isnan(out[row + 63]), "NaN in q gives %g",
               (double)out[row]);

    struct be_seq poison = w.seqs[2];
    poison.row0 = 0;
    poison.pos0 = 0;
    poison.n_rows = 50;
    struct be_kv kv = w.kv;
    kv.n_seqs = 1;
    kv.seqs = &poison;
    for (size_t i = 0; i < 50 * 2 * 64; i++)
        w.k[2][i] = w.v[2][i] = i % 3 ? NAN : INFINITY;
    c->ref->ops->kv_append(c->ref, &kv, w.k[2], w.v[2]);
    attend_on(c, c->be, &w, w.seqs, 3, w.q, out, NULL);
    check_same(c, id, "rows beside a sequence of NaN", out, clean, 6 * bytes);

    struct be_seq blind = w.seqs[1];
    blind.row0 = 0;
    blind.pos0 = blind.kv.wide_pos0 - 1;
    attend_on(c, c->be, &w, &blind, 1, w.q, out, lse);
    for (size_t i = 0; i < row; i++)
        check_that(c, id, out[i] == 0, "a row that sees nothing gives %g", (double)out[i]);
    for (size_t h = 0; h < heads; h++)
        check_that(c, id, lse[h] == -INFINITY, "lse of a row that sees nothing is %g",
                   (double)lse[h]);
    check_close(c, id);
    world_close(&w);
}

void check_attend(struct check *c)
{
    check_lengths(c);
    check_heads(c);
    check_windows(c);
    check_narrow(c);
    check_q8(c);
    check_batches(c);
    for (int type = 0; type < KV_TYPE_N; type++)
        check_odd(c, type);
}
