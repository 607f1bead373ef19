/* Positions and the way into the cache: rope_table, rope, kv_append, and rope_append against those three. */
#include <math.h>
#include <string.h>

#include "tests/ops/check.h"
#include "tests/tools/levels.h"

enum { POSITIONS = 5 };
static const int32_t positions[POSITIONS] = { 0, 1, 77, 8191, 131071 };
static const float MSCALE = 1.25f;

static float *frequencies(struct check *c, int half)
{
    float *f = check_host(c, (size_t)half * sizeof *f);
    for (int i = 0; i < half; i++)
        f[i] = powf(10000.0f, -(float)i / (float)half);
    return f;
}

/* ---- rope_table -------------------------------------------------------------------------------------------------- */

static void table_on(struct check *c, struct be *be, const int32_t *pos, int n, int half,
                     float *out)
{
    size_t cells = (size_t)n * (size_t)half, room = (size_t)check_padded(n) * (size_t)half;
    float *freq = check_put(c, be, frequencies(c, half), (size_t)half * sizeof *freq);
    float *dc = check_room(c, be, room * sizeof *dc), *ds = check_room(c, be, room * sizeof *ds);
    struct be_step s = check_plain_step(c, n, pos);
    check_begin(c, be, &s);
    be->ops->rope_table(be, dc, ds, s.pos, freq, MSCALE, s.n_rows, half);
    be->ops->step_end(be);
    check_get(c, be, out, dc, cells * sizeof *out);
    check_get(c, be, out + cells, ds, cells * sizeof *out);
}

/* Against doubles: the angle is rounded to f32 by definition. */
static void check_table(struct check *c, int half)
{
    check_case(c, "rope_table, half %d", half);
    size_t n = (size_t)(POSITIONS * half);
    float *got = check_host(c, 2 * n * sizeof *got), *want = check_host(c, 2 * n * sizeof *want);
    float *one = check_host(c, 2 * n * sizeof *one), *freq = frequencies(c, half);
    table_on(c, c->be, positions, POSITIONS, half, got);
    for (int r = 0; r < POSITIONS; r++)
        for (int i = 0; i < half; i++) {
            double angle = (double)((float)positions[r] * freq[i]);
            want[r * half + i] = (float)(cos(angle) * (double)MSCALE);
            want[n + (size_t)(r * half + i)] = (float)(sin(angle) * (double)MSCALE);
        }
    check_near(c, CHECK_ROPE_TABLE, got, want, 2 * n, 1);
    table_on(c, c->be, positions + 3, 1, half, one);
    check_same(c, CHECK_ROPE_TABLE, "a row alone", one, got + 3 * half, (size_t)half * sizeof *one);
    check_close(c, CHECK_ROPE_TABLE);
}

/* ---- rope -------------------------------------------------------------------------------------------------------- */

struct rotation {
    int heads, dim, half;
    bool split, norm;
    const float *cos, *sin; /* host [POSITIONS][half] */
};

static void rope(struct check *c, struct be *be, const struct rows *t, float *out)
{
    const struct rotation *q = t->more;
    size_t bytes = (size_t)t->n * (size_t)t->dim * sizeof(float);
    size_t table = (size_t)t->n * (size_t)q->half * sizeof(float), at = (size_t)(t->row0 * q->half);
    float *x = check_put(c, be, t->x, bytes);
    float *dc = check_put(c, be, q->cos + at, table), *ds = check_put(c, be, q->sin + at, table);
    float *w = check_put(c, be, t->w, (size_t)q->dim * sizeof(float));
    be->ops->rope(be, x, dc, ds, q->norm ? w : NULL, 0.01f, t->n, q->heads, q->dim, q->half,
                  q->split);
    check_get(c, be, out, x, bytes);
}

static void check_rotation(struct check *c, struct rotation *q)
{
    check_case(c, "rope, %d heads of %d, half %d%s%s", q->heads, q->dim, q->half,
               q->split ? ", split" : "", q->norm ? ", norm" : "");
    struct rows t = { .n = POSITIONS, .dim = q->heads * q->dim, .more = q };
    float *table = check_host(c, (size_t)(2 * POSITIONS * q->half) * sizeof *table);
    table_on(c, c->ref, positions, POSITIONS, q->half, table);
    q->cos = table;
    q->sin = table + POSITIONS * q->half;
    t.x = check_floats(c, (size_t)(t.n * t.dim), 2);
    t.w = check_floats(c, (size_t)q->dim, 1);
    check_each_row(c, CHECK_ROPE, rope, &t, 1);
    check_close(c, CHECK_ROPE);
}

void check_rope(struct check *c)
{
    static const int shape[][2] = { { 2, 1 },    { 8, 4 },     { 64, 32 }, { 80, 32 },
                                    { 128, 64 }, { 256, 128 }, { 32, 16 }, { 48, 24 },
                                    { 6, 3 },    { 64, 16 },   { 80, 40 }, { 96, 45 } };
    for (int i = 0; i < (c->small ? 5 : COUNT(shape)); i++) {
        check_table(c, shape[i][1]);
        for (int k = 0; k < 4; k++) {
            struct rotation q = {
                .heads = 3, .dim = shape[i][0], .half = shape[i][1], .split = k % 2, .norm = k / 2
            };
            check_rotation(c, &q);
        }
    }
}

/* ---- kv_append --------------------------------------------------------------------------------------------------- */

enum { KV_HEADS = 2, PAGES = 12, SEQS = 3 };

/* Three sequences, the middle one without rows in this step; pages in no order. */
struct cache_case {
    enum kv_type type;
    int dim, n_rows;
    struct be_seq seqs[SEQS];
    float *k, *v; /* host [n_rows][KV_HEADS][dim] */
};

static const int32_t page_list[SEQS][4] = { { 2, 0, 3, 1 }, { 8, 9, 10, 11 }, { 7, 4, 6, 5 } };

static void open_case(struct check *c, struct cache_case *t, enum kv_type type, int dim, int n_rows,
                      int pos0)
{
    *t = (struct cache_case){ .type = type, .dim = dim, .n_rows = n_rows + 2 };
    t->seqs[0] = (struct be_seq){ .row0 = 0,
                                  .n_rows = n_rows,
                                  .pos0 = 64 + pos0,
                                  .kv = { .wide = page_list[0], .wide_pos0 = 64 } };
    t->seqs[1] = (struct be_seq){ .row0 = n_rows, .pos0 = 5, .kv = { .wide = page_list[1] } };
    t->seqs[2] =
        (struct be_seq){ .row0 = n_rows, .n_rows = 2, .pos0 = 31, .kv = { .wide = page_list[2] } };
    size_t n = (size_t)(t->n_rows * KV_HEADS * dim);
    t->k = check_floats(c, n, 1);
    t->v = check_floats(c, n, 70000); /* f16 ends at 65504 */
    for (size_t i = 0; i < n; i += 7)
        t->k[i] *= 0x1p-20f; /* f16 is subnormal here */
    t->k[n - 1] = NAN;
    t->v[n - 1] = INFINITY;
}

static size_t pool_bytes(const struct cache_case *t)
{
    return PAGES * KV_HEADS * kv_block_bytes(t->type, t->dim);
}

static struct be_kv cache_of(const struct cache_case *t, void *pool, const struct be_step *s)
{
    return (struct be_kv){ .pool = pool,
                           .type = t->type,
                           .n_kv_heads = KV_HEADS,
                           .head_dim = t->dim,
                           .n_seqs = s->n_seqs,
                           .seqs = s->seqs };
}

/* Finite numbers in every format, so that a slot that should have stayed shows. */
static void *new_pool(struct check *c, struct be *be, const struct cache_case *t)
{
    char *p = check_host(c, pool_bytes(t));
    memset(p, 0x11, pool_bytes(t));
    return check_put(c, be, p, pool_bytes(t));
}

/* All rows at once, or the rows of sequence 0 one by one first. */
static char *append_on(struct check *c, struct be *be, const struct cache_case *t, bool one_by_one)
{
    size_t row = (size_t)(KV_HEADS * t->dim), room = (size_t)check_padded(t->n_rows) * row;
    float *k = check_room(c, be, 2 * room * sizeof *k),
          *v = check_room(c, be, 2 * room * sizeof *v);
    void *pool = new_pool(c, be, t);
    char *out = check_host(c, pool_bytes(t));
    be->ops->upload(be, k, t->k, (size_t)t->n_rows * row * sizeof *k);
    be->ops->upload(be, v, t->v, (size_t)t->n_rows * row * sizeof *v);
    for (int r = 0; one_by_one && r < t->seqs[0].n_rows; r++) {
        struct be_seq one = t->seqs[0];
        one.n_rows = 1;
        one.pos0 += r;
        struct be_step s = check_step(c, &one, 1, KV_HEADS);
        check_begin(c, be, &s);
        struct be_kv kv = cache_of(t, pool, &s);
        be->ops->kv_append(be, &kv, k + (size_t)r * row, v + (size_t)r * row);
        be->ops->step_end(be);
    }
    struct be_step s = check_step(c, t->seqs, SEQS, KV_HEADS);
    check_begin(c, be, &s);
    struct be_kv kv = cache_of(t, pool, &s);
    be->ops->kv_append(be, &kv, k, v);
    be->ops->step_end(be);
    check_get(c, be, out, pool, pool_bytes(t));
    check_canonical(t->type, out, pool_bytes(t));
    return out;
}

static void check_append(struct check *c, enum kv_type type, int dim, int n_rows, int pos0)
{
    struct cache_case t;
    check_case(c, "kv_append, %s, dim %d, %d rows at %d", kv_type_name(type), dim, n_rows, pos0);
    open_case(c, &t, type, dim, n_rows, pos0);
    char *want = append_on(c, c->ref, &t, false), *got = append_on(c, c->be, &t, false);
    check_same(c, CHECK_KV_APPEND, "the pool", got, want, pool_bytes(&t));
    if (n_rows <= 33)
        check_same(c, CHECK_KV_APPEND, "row by row", append_on(c, c->be, &t, true), want,
                   pool_bytes(&t));
    check_close(c, CHECK_KV_APPEND);
}

/* ---- rope_append ------------------------------------------------------------------------------------------------- */

enum { Q_HEADS = 6 };

struct fused_out {
    float *q;
    char *pool;
};

static struct fused_out fused_on(struct check *c, const struct cache_case *t, const float *q,
                                 const float *norm, int half, bool split, bool fused)
{
    struct be *be = c->be;
    const struct be_ops *ops = be->ops;
    size_t rows = (size_t)check_padded(t->n_rows), n = (size_t)t->n_rows, dim = (size_t)t->dim;
    size_t q_row = Q_HEADS * dim * sizeof(float), kv_row = KV_HEADS * dim * sizeof(float);
    float *dq = check_room(c, be, rows * q_row), *dk = check_room(c, be, rows * kv_row);
    float *dv = check_room(c, be, rows * kv_row);
    float *dc = check_room(c, be, rows * (size_t)half * 4),
          *ds = check_room(c, be, rows * (size_t)half * 4);
    float *freq = check_put(c, be, frequencies(c, half), (size_t)half * 4);
    const float *qw = norm != NULL ? check_put(c, be, norm, dim * 4) : NULL;
    const float *kw = norm != NULL ? check_put(c, be, norm + dim, dim * 4) : NULL;
    void *pool = new_pool(c, be, t);
    ops->upload(be, dq, q, n * q_row);
    ops->upload(be, dk, t->k, n * kv_row);
    ops->upload(be, dv, t->v, n * kv_row);
    struct be_step s = check_step(c, t->seqs, SEQS, KV_HEADS);
    check_begin(c, be, &s);
    ops->rope_table(be, dc, ds, s.pos, freq, 1, s.n_rows, half);
    struct be_kv kv = cache_of(t, pool, &s);
    struct be_rope_append r = { dq, dk, dv, dc, ds, qw, kw, 0.01f, s.n_rows, Q_HEADS, half, split };
    if (fused) {
        ops->rope_append(be, &r, &kv);
    } else {
        ops->rope(be, dq, dc, ds, qw, r.eps, r.n, Q_HEADS, t->dim, half, split);
        ops->rope(be, dk, dc, ds, kw, r.eps, r.n, KV_HEADS, t->dim, half, split);
        ops->kv_append(be, &kv, dk, dv);
    }
    ops->step_end(be);
    struct fused_out out = { check_host(c, n * q_row), check_host(c, pool_bytes(t)) };
    check_get(c, be, out.q, dq, n * q_row);
    check_get(c, be, out.pool, pool, pool_bytes(t));
    check_canonical(KV_F32, out.q, n * q_row);
    check_canonical(t->type, out.pool, pool_bytes(t));
    return out;
}

static void check_fused(struct check *c, enum kv_type type, int dim, int half, int n_rows, int kind)
{
    struct cache_case t;
    bool split = kind % 2, norm = kind / 2;
    check_case(c, "rope_append, %s, dim %d, half %d, %d rows%s%s", kv_type_name(type), dim, half,
               n_rows, split ? ", split" : "", norm ? ", norm" : "");
    open_case(c, &t, type, dim, n_rows, 15);
    float *q = check_floats(c, (size_t)(t.n_rows * Q_HEADS * dim), 2);
    float *w = norm ? check_floats(c, 2 * (size_t)dim, 1) : NULL;
    struct fused_out a = fused_on(c, &t, q, w, half, split, false);
    struct fused_out b = fused_on(c, &t, q, w, half, split, true);
    check_same(c, CHECK_ROPE_APPEND, "q", b.q, a.q, (size_t)(t.n_rows * Q_HEADS * dim) * 4);
    check_same(c, CHECK_ROPE_APPEND, "the pool", b.pool, a.pool, pool_bytes(&t));
    check_close(c, CHECK_ROPE_APPEND);
}

void check_cache(struct check *c)
{
    static const int shape[][2] = {
        { 1, 0 }, { 33, 15 }, { 1, 1 }, { 1, 32 }, { 2, 31 }, { 96, 32 }
    };
    static const int dims[] = { 2, 64, 128, 6, 8, 48, 80, 256 };
    for (int type = 0; type < KV_TYPE_N; type++)
        for (int d = 0; d < (c->small ? 3 : COUNT(dims)); d++) {
            for (int s = 0; s < (c->small ? 2 : COUNT(shape)); s++)
                check_append(c, type, dims[d], shape[s][0], shape[s][1]);
            for (int kind = 0; kind < 4 && c->be->ops->rope_append != NULL; kind++)
                check_fused(c, type, dims[d], kind == 1 && dims[d] > 8 ? dims[d] / 4 : dims[d] / 2,
                            kind == 0 ? 1 : 18, kind);
        }
}
