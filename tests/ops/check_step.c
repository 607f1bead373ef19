/* Steps that a backend has recorded: a small pass of two layers, again and again under one name, with other tokens, lengths
 * and pages each time, with and without queries to keep, and now and then another number of sequences. Whether it was
 * replayed or not, the results are those of a pass that was called op by op under a new name. */
#include <math.h>
#include <string.h>

#include "tests/ops/check.h"
#include "tests/tools/forms.h"
#include "tests/tools/levels.h"

enum {
    VOCAB = 50,
    HEADS = 4,
    KV_HEADS = 2,
    DIM = 32,
    HALF = DIM / 2,
    WIDTH = HEADS * DIM,
    KV_WIDTH = KV_HEADS * DIM,
    LAYERS = 2,
    SEQS = 6,
    SEQ_PAGES = 40,
    ROOM = 16, /* rows */
    RECORDS = LAYERS * ROOM,
    POOL_FLOATS = SEQS * SEQ_PAGES * KV_HEADS * 2 * KV_PAGE * DIM
};

#define RECORD_BYTES kv_record_bytes(KV_F32, HEADS, DIM)

/* One copy of the little model with its activations and caches on some backend. */
struct copy {
    struct be *be;
    struct weight embd_q, embd_k, embd_v;
    float *q, *k, *v, *cos, *sin, *freq, *out, *rows, *lse;
    void *pool[LAYERS];
    char *records; /* [RECORDS] of queries that are kept */
};

struct source {
    uint8_t *q, *k, *v; /* of the embeddings */
    float *pool, *freq;
};

static struct source make_source(struct check *c)
{
    struct source s;
    s.q = check_host(c, (size_t)VOCAB * WIDTH * 4);
    s.k = check_host(c, (size_t)VOCAB * KV_WIDTH * 4);
    s.v = check_host(c, (size_t)VOCAB * KV_WIDTH * 4);
    s.pool = check_floats(c, POOL_FLOATS, 1);
    s.freq = check_host(c, HALF * sizeof *s.freq);
    rnd_fill((float *)(void *)s.q, (size_t)VOCAB * WIDTH, 4);
    rnd_fill((float *)(void *)s.k, (size_t)VOCAB * KV_WIDTH, 1);
    rnd_fill((float *)(void *)s.v, (size_t)VOCAB * KV_WIDTH, 1);
    for (int i = 0; i < HALF; i++)
        s.freq[i] = powf(10000.0f, -(float)i / HALF);
    return s;
}

static bool open_copy(struct check *c, struct copy *t, struct be *be, const struct source *s)
{
    const struct form *f32 = &form_list[0];
    struct err e = { 0 };
    *t = (struct copy){ .be = be };
    bool ok = form_open(&t->embd_q, be, f32, false, VOCAB, WIDTH, s->q, &e) == 0 &&
              form_open(&t->embd_k, be, f32, false, VOCAB, KV_WIDTH, s->k, &e) == 0 &&
              form_open(&t->embd_v, be, f32, false, VOCAB, KV_WIDTH, s->v, &e) == 0;
    check_that(c, CHECK_STEP, ok, "%s", e.text);
    t->q = check_room(c, be, ROOM * WIDTH * sizeof(float));
    t->k = check_room(c, be, ROOM * KV_WIDTH * sizeof(float));
    t->v = check_room(c, be, ROOM * KV_WIDTH * sizeof(float));
    t->cos = check_room(c, be, ROOM * HALF * sizeof(float));
    t->sin = check_room(c, be, ROOM * HALF * sizeof(float));
    t->out = check_room(c, be, ROOM * WIDTH * sizeof(float));
    t->rows = check_room(c, be, ROOM * WIDTH * sizeof(float));
    t->lse = check_room(c, be, ROOM * HEADS * sizeof(float));
    t->records = check_room(c, be, RECORDS * RECORD_BYTES);
    t->freq = check_put(c, be, s->freq, HALF * sizeof(float));
    for (int l = 0; l < LAYERS; l++)
        t->pool[l] = check_put(c, be, s->pool, POOL_FLOATS * sizeof(float));
    return ok;
}

static void close_copy(struct copy *t)
{
    weight_close(&t->embd_q, t->be);
    weight_close(&t->embd_k, t->be);
    weight_close(&t->embd_v, t->be);
}

static void layer(const struct copy *t, const struct be_step *s, int l)
{
    const struct be_ops *ops = t->be->ops;
    struct be_kv kv = { .pool = t->pool[l],
                        .type = KV_F32,
                        .n_kv_heads = KV_HEADS,
                        .head_dim = DIM,
                        .n_seqs = s->n_seqs,
                        .seqs = s->seqs + l * s->n_seqs };
    struct be_rope_append r = { t->q, t->k, t->v,      t->cos, t->sin, NULL,
                                NULL, 0,    s->n_rows, HEADS,  HALF,   true };
    if (ops->rope_append != NULL) {
        ops->rope_append(t->be, &r, &kv);
    } else {
        ops->rope(t->be, t->q, t->cos, t->sin, NULL, 0, r.n, HEADS, DIM, HALF, true);
        ops->rope(t->be, t->k, t->cos, t->sin, NULL, 0, r.n, KV_HEADS, DIM, HALF, true);
        ops->kv_append(t->be, &kv, t->k, t->v);
    }
    struct be_attend a = { .kv = kv,
                           .q = t->q,
                           .out = t->out,
                           .lse = s->keep != NULL ? t->lse : NULL,
                           .n_heads = HEADS,
                           .scale = 1 / sqrtf(DIM) };
    ops->attend(t->be, &a);
    if (s->keep != NULL)
        ops->query_keep(t->be, s->keep + l * s->n_rows, t->q, t->lse, KV_F32, s->n_rows, HEADS,
                        DIM);
    ops->add(t->be, t->q, t->out, s->n_rows, WIDTH);
}

/* Every third query of the step, each layer's to another place; in every step to another one. */
static const struct be_keep *make_keep(struct check *c, const struct copy *t, int n_rows, int turn)
{
    struct be_keep *keep = check_host(c, (size_t)(LAYERS * n_rows) * sizeof *keep);
    for (int i = 0; i < LAYERS * n_rows; i++) {
        char *at = t->records + (size_t)((i * 5 + turn) % RECORDS) * RECORD_BYTES;
        if ((i + turn) % 3 == 0)
            keep[i] = (struct be_keep){ i % 2 ? at : NULL, i % 2 ? NULL : at };
    }
    return keep;
}

static const char part[1]; /* an owner: none at all, as for a part of a pass */

static bool begin_part(struct check *c, struct be *be, struct be_step *s)
{
    struct be_step was = *s;
    bool replayed = be->ops->step_begin(be, s, NULL);
    check_that(c, CHECK_STEP,
               s->n_rows == was.n_rows && s->n_seqs == was.n_seqs && s->n_out == was.n_out,
               "counts were raised for a part of a pass");
    return replayed;
}

/* turn: of the queries that are kept; below 0: none. Returns whether it was replayed. result: host [n_out][WIDTH]. owner NULL: a
 * new one. */
static bool run(struct check *c, const struct copy *t, const struct be_step *step,
                const void *owner, int turn, float *result)
{
    struct be *be = t->be;
    struct be_step s = *step;
    bool replayed = false;
    s.keep = turn >= 0 ? make_keep(c, t, s.n_rows, turn) : NULL;
    if (owner == part)
        replayed = begin_part(c, be, &s);
    else if (owner != NULL)
        replayed = be->ops->step_begin(be, &s, owner);
    else
        check_begin(c, be, &s);
    if (!replayed) {
        weight_rows(&t->embd_q, be, s.token, s.n_rows, t->q);
        be->ops->rope_table(be, t->cos, t->sin, s.pos, t->freq, 1, s.n_rows, HALF);
        for (int l = 0; l < LAYERS; l++) {
            weight_rows(&t->embd_k, be, s.token, s.n_rows, t->k);
            weight_rows(&t->embd_v, be, s.token, s.n_rows, t->v);
            layer(t, &s, l);
        }
        be->ops->gather(be, t->rows, t->q, s.out_row, s.n_out, WIDTH);
    }
    be->ops->step_end(be);
    check_get(c, be, result, t->rows, (size_t)step->n_out * WIDTH * sizeof *result);
    return replayed;
}

/* Sequence i of the batch, in both layers, with pages in another order in each. */
struct batch {
    struct be_seq seqs[LAYERS * SEQS];
    int32_t page[LAYERS][SEQS][SEQ_PAGES];
    int32_t token[ROOM];
};

static struct be_step make_step(struct check *c, struct batch *b, const int *len, const int *rows,
                                int n, int turn)
{
    int row0 = 0;
    for (int i = 0; i < n; i++) {
        for (int l = 0; l < LAYERS; l++) {
            for (int p = 0; p < SEQ_PAGES; p++)
                b->page[l][i][p] = (l == 0 ? p : SEQ_PAGES - 1 - p) * SEQS + (i + turn / 3) % SEQS;
            b->seqs[l * n + i] = (struct be_seq){ .row0 = row0,
                                                  .n_rows = rows[i],
                                                  .pos0 = len[i] - rows[i],
                                                  .kv = { .wide = b->page[l][i] } };
        }
        row0 += rows[i];
    }
    struct be_step s = check_step(c, b->seqs, n, KV_HEADS);
    for (int r = 0; r < s.n_rows; r++)
        b->token[r] = (int32_t)(rnd_bits() % VOCAB);
    s.token = b->token;
    s.n_layers = LAYERS;
    return s;
}

/* Lengths and rows of the sequences of each step. Counts come back, with more spans. */
static const struct turn {
    int n, len[SEQS], rows[SEQS];
} turns[] = {
    { 3, { 3, 63, 511 }, { 1, 1, 1 } },
    { 3, { 4, 64, 512 }, { 1, 1, 1 } },
    { 3, { 5, 65, 513 }, { 1, 1, 1 } },
    { 3, { 900, 1, 514 }, { 1, 1, 1 } },
    { 4, { 6, 66, 515, 33 }, { 1, 1, 1, 1 } },
    { 2, { 40, 7 }, { 5, 1 } },
    { 2, { 41, 12 }, { 2, 4 } },
    { 3, { 31, 1100, 32 }, { 1, 1, 1 } },
    { 5, { 2, 3, 4, 1030, 34 }, { 1, 1, 1, 1, 1 } },
    { 2, { 600, 20 }, { 1, 1 } },
    { 2, { 1200, 21 }, { 1, 1 } },
    { 1, { 35 }, { 1 } },
    { 1, { 1 }, { 1 } },
    { 4, { 7, 67, 516, 34 }, { 1, 1, 1, 1 } },
    { 3, { 6, 66, 515 }, { 1, 1, 1 } },
    { 3, { 1101, 33, 8 }, { 1, 1, 1 } },
    { 4, { 5, 1102, 34, 1025 }, { 1, 1, 1, 1 } },
};

/* What the steps so far left in memory. */
static void check_same_memory(struct check *c, const char *what, const void *got, const void *want,
                              size_t bytes)
{
    char *a = check_host(c, bytes), *b = check_host(c, bytes);
    check_get(c, c->be, a, got, bytes);
    check_get(c, c->be, b, want, bytes);
    check_same(c, CHECK_STEP, what, a, b, bytes);
}

/* With queries to keep, or without, under a name that was seen, under a new one and under none, and by the definition. */
static bool check_turn(struct check *c, const struct copy copy[3], const struct be_step *step,
                       int turn)
{
    size_t n = (size_t)step->n_rows * WIDTH, size = RECORDS * RECORD_BYTES / sizeof(float);
    float *got = check_host(c, n * sizeof *got), *want = check_host(c, n * sizeof *want);
    bool replayed = run(c, &copy[0], step, copy, turn, got);
    run(c, &copy[1], step, NULL, turn, want);
    check_same(c, CHECK_STEP, "under a name that was seen", got, want, n * sizeof *got);
    check_that(c, CHECK_STEP, !run(c, &copy[1], step, part, turn, want), "a part was replayed");
    check_same(c, CHECK_STEP, "under no name", got, want, n * sizeof *got);
    run(c, &copy[2], step, NULL, turn, want);
    check_near(c, CHECK_STEP, got, want, n, 1);
    if (turn < 0)
        return replayed;
    check_same_memory(c, "the records", copy[0].records, copy[1].records, size * sizeof *got);
    got = check_host(c, size * sizeof *got);
    want = check_host(c, size * sizeof *want);
    check_get(c, c->be, got, copy[0].records, size * sizeof *got);
    check_get(c, c->ref, want, copy[2].records, size * sizeof *want);
    check_near(c, CHECK_STEP, got, want, size, 1);
    return replayed;
}

void check_steps(struct check *c)
{
    enum { TURNS = sizeof turns / sizeof turns[0] };
    static struct batch batch;
    struct copy copy[3]; /* run under one name, under new ones, by the definition */
    struct source s = make_source(c);
    int n_replayed[2] = { 0, 0 };
    bool ok = open_copy(c, &copy[0], c->be, &s);
    ok = open_copy(c, &copy[1], c->be, &s) && ok;
    ok = open_copy(c, &copy[2], c->ref, &s) && ok;
    for (int i = 0; ok && i < 2 * TURNS; i++) {
        const struct turn *t = &turns[i / 2];
        check_case(c, "step %d, %d sequences%s", i / 2, t->n, i % 2 ? ", kept queries" : "");
        struct be_step step = make_step(c, &batch, t->len, t->rows, t->n, i / 2);
        n_replayed[i % 2] += check_turn(c, copy, &step, i % 2 ? i / 2 : -1);
    }
    for (int l = 0; ok && l < LAYERS; l++)
        check_same_memory(c, "the cache", copy[0].pool[l], copy[1].pool[l],
                          POOL_FLOATS * sizeof(float));
    for (int k = 0; k < 2; k++)
        check_that(c, CHECK_STEP, c->be->host || n_replayed[k] > 0, "no pass was replayed");
    check_close(c, CHECK_STEP);
    for (int k = 0; k < 3; k++)
        close_copy(&copy[k]);
}
