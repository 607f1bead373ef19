/* Records of queries against the definition: every type of cache, heads that are odd in number and in size, rows that are
 * kept nowhere, in one place or in both, as rows of a prompt and as decoding sequences, whose number a step may raise. What
 * lies between and behind the records must stay as it was. */
#include <math.h>
#include <string.h>

#include "tests/ops/check.h"
#include "tests/tools/levels.h"

struct keep_case {
    enum kv_type type;
    int n, n_heads, dim;
    bool decode; /* each row is a sequence */
    const float *q, *lse;
};

static size_t record_room(const struct keep_case *t)
{
    return kv_record_bytes(t->type, t->n_heads, t->dim) + 16; /* 16 bytes nobody may touch */
}

static struct be_step step_of(struct check *c, const struct keep_case *t)
{
    static const int32_t page[] = { 0 };
    if (!t->decode)
        return check_plain_step(c, t->n, NULL);
    struct be_seq *seqs = check_host(c, (size_t)t->n * sizeof *seqs);
    for (int i = 0; i < t->n; i++)
        seqs[i] = (struct be_seq){ .row0 = i, .n_rows = 1, .kv = { .wide = page } };
    return check_step(c, seqs, t->n, 1);
}

/* All records, two a row, on the host; last rows come first. */
static char *keep_on(struct check *c, struct be *be, const struct keep_case *t)
{
    size_t heads = (size_t)t->n * (size_t)t->n_heads, dim = (size_t)t->dim;
    size_t room = (size_t)check_padded(t->n) * (size_t)t->n_heads * sizeof(float);
    size_t bytes = 2 * (size_t)t->n * record_room(t);
    char *host = check_host(c, bytes);
    memset(host, 0x11, bytes);
    char *records = check_put(c, be, host, bytes);
    float *q = check_room(c, be, room * dim), *lse = check_room(c, be, room);
    struct be_keep *keep = check_host(c, (size_t)t->n * sizeof *keep);
    be->ops->upload(be, q, t->q, heads * dim * sizeof *q);
    be->ops->upload(be, lse, t->lse, heads * sizeof *lse);
    for (int r = 0; r < t->n; r++) {
        char *at = records + (size_t)(2 * (t->n - 1 - r)) * record_room(t);
        int kind = (r + t->n) % 4;
        keep[r] = (struct be_keep){ kind & 1 ? at : NULL, kind & 2 ? at + record_room(t) : NULL };
    }
    struct be_step s = step_of(c, t);
    s.keep = keep;
    check_begin(c, be, &s);
    be->ops->query_keep(be, s.keep, q, lse, t->type, s.n_rows, t->n_heads, t->dim);
    be->ops->step_end(be);
    check_get(c, be, host, records, bytes);
    check_canonical(t->type, host, bytes);
    return host;
}

static void check_records(struct check *c, const struct keep_case *shape)
{
    struct keep_case t = *shape;
    size_t heads = (size_t)t.n * (size_t)t.n_heads, n = heads * (size_t)t.dim;
    check_case(c, "query_keep, %s, %d rows of %d heads of %d%s", kv_type_name(t.type), t.n,
               t.n_heads, t.dim, t.decode ? ", decode" : "");
    float *q = check_floats(c, n, 8), *lse = check_floats(c, heads, 30);
    for (size_t i = 0; i < n; i += 7)
        q[i] *= 0x1p-20f; /* f16 is subnormal here */
    q[n - 1] = NAN;
    q[n / 2] = 70000; /* f16 ends at 65504 */
    lse[heads / 2] = -INFINITY;
    t.q = q;
    t.lse = lse;
    char *want = keep_on(c, c->ref, &t), *got = keep_on(c, c->be, &t);
    check_same(c, CHECK_QUERY_KEEP, "the records", got, want, 2 * (size_t)t.n * record_room(&t));
    check_close(c, CHECK_QUERY_KEEP);
}

void check_keep(struct check *c)
{
    static const int heads[][2] = { { 9, 64 },   { 1, 2 }, { 3, 80 },
                                    { 32, 128 }, { 7, 6 }, { 5, 258 } };
    static const int counts[] = { 1, 3, 8, 2, 17, 100, 500 };
    for (int type = 0; type < KV_TYPE_N; type++)
        for (int h = 0; h < (c->small ? 3 : COUNT(heads)); h++)
            for (int i = 0; i < (c->small ? 3 : COUNT(counts)); i++)
                for (int decode = 0; decode < 2; decode++) {
                    struct keep_case t = { .type = type,
                                           .n = counts[i],
                                           .n_heads = heads[h][0],
                                           .dim = heads[h][1],
                                           .decode = decode };
                    check_records(c, &t);
                }
}
