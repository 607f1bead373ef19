/* The parts of wring quantize: a pass in layers, what is summed up, how loss is measured, how a text is cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/model/arch.h"
#include "server/model/workspace.h"
#include "server/quantize/quantize.h"
#include "tests/tools/eval_fixture.h"
#include "tests/tools/scratch.h"

enum { DIM = 64 };

static const int32_t prompt[] = { 1, 263, 287, 261, 278, 292, 290, 270, 281, 42, 5 };
enum { PROMPT = sizeof prompt / sizeof prompt[0] };

/* Layer by layer the model gives the bits of the whole pass. */
static void layers_make_the_pass(void **state)
{
    struct session s;
    struct runner r;
    struct err e;
    const float *want;
    static float x[PROMPT * DIM];
    (void)state;
    eval_model(&s);
    const struct model *m = s.model;
    assert_int_equal(runner_open(&r, m, KV_F32, 1, PROMPT, PROMPT, PROMPT, &e), 0);
    assert_int_equal(runner_append(&r, 0, prompt, PROMPT, PROMPT, &want, &e), 0);
    size_t bytes = (size_t)PROMPT * (size_t)m->config.vocab * sizeof(float);
    float *copy = mem_alloc(bytes);
    assert_non_null(copy);
    memcpy(copy, want, bytes);
    struct batch b = { .n_rows = PROMPT,
                       .n_seqs = 1,
                       .token = prompt,
                       .pos = r.pos,
                       .seq = &(struct batch_seq){ .kv = &r.seq[0], .n_rows = PROMPT } };
    assert_int_equal(m->config.dim, DIM);
    for (int l = 0; l < m->config.n_layers; l++)
        assert_int_equal(model_layer(m, r.ws, r.pool, &b, l, NULL, x, &e), 0);
    memcpy(r.ws->x, x, sizeof x);
    memset(r.ws->delta, 0, sizeof x);
    m->arch->end(m, r.ws, &(struct be_step){ .n_out = PROMPT });
    assert_memory_equal(copy, r.ws->logits, bytes);
    mem_free(copy);
    runner_close(&r);
    session_close(&s);
}

/* What a layer's matrices read, kept by a test. */
struct seen {
    int calls[LAYER_INPUTS], cols[LAYER_INPUTS];
    double first; /* element 0 of row 1 of what q, k and v read */
};

static void keep(void *arg, enum layer_input what, const float *x, int n, int cols)
{
    struct seen *s = arg;
    assert_int_equal(n, PROMPT);
    s->calls[what]++;
    s->cols[what] = cols;
    if (what == INPUT_OF_QKV)
        s->first = (double)x[cols];
}

static void shows_what_matrices_read(void **state)
{
    struct session s;
    struct runner r;
    struct err e;
    struct seen seen = { 0 };
    static float x[PROMPT * DIM];
    float row[DIM];
    (void)state;
    eval_model(&s);
    const struct model *m = s.model;
    assert_int_equal(runner_open(&r, m, KV_F32, 1, PROMPT, PROMPT, 1, &e), 0);
    assert_int_equal(kv_seq_reserve(&r.seq[0], r.pool, PROMPT), 0);
    for (int i = 0; i < PROMPT; i++)
        r.pos[i] = i;
    struct batch b = { .n_rows = PROMPT,
                       .n_seqs = 1,
                       .token = prompt,
                       .pos = r.pos,
                       .seq = &(struct batch_seq){ .kv = &r.seq[0], .n_rows = PROMPT } };
    struct observer o = { keep, &seen };
    assert_int_equal(model_layer(m, r.ws, r.pool, &b, 0, &o, x, &e), 0);
    for (int i = INPUT_OF_QKV; i < LAYER_INPUTS; i++)
        assert_int_equal(seen.calls[i], 1);
    assert_int_equal(seen.calls[INPUT_OF_NONE], 0);
    assert_int_equal(seen.cols[INPUT_OF_DOWN], m->config.ffn);
    weight_row(&m->embd, prompt[1], row);
    double sum = 0;
    for (int i = 0; i < DIM; i++)
        sum += (double)row[i] * (double)row[i];
    double want = (double)row[0] / sqrt(sum / DIM + (double)m->config.norm_eps) *
                  (double)m->layer[0].attn_norm[0];
    assert_true(fabs(seen.first - want) < 1e-5 * fabs(want) + 1e-9);
    runner_close(&r);
    session_close(&s);
}

/* The diagonal of what q, k and v of the first layer read holds the squares of the normalised embeddings. */
static void sums_over_sequences(void **state)
{
    enum { LEN = 16, N = 3 };
    struct quantize q = { 0 };
    struct sums s;
    struct err e;
    float row[DIM];
    double want[DIM] = { 0 };
    (void)state;
    eval_model(&q.session);
    q.model = q.session.model;
    const struct model *m = q.model;
    assert_int_equal(sequences_open(&q.text, m->tok, in_root("text.txt"), N * LEN, LEN, &e), 0);
    assert_int_equal(runner_open(&q.run, m, KV_F32, 1, LEN, LEN, 1, &e), 0);
    assert_int_equal(kv_seq_reserve(&q.run.seq[0], q.run.pool, LEN), 0);
    for (int i = 0; i < LEN; i++)
        q.run.pos[i] = i;
    q.x = mem_zalloc(N * LEN * DIM, sizeof *q.x);
    assert_non_null(q.x);
    assert_int_equal(sums_open(&s, m, 0, &e), 0);
    assert_int_equal(quantize_run_layer(&q, 0, &s, &e), 0);
    assert_int_equal(s.n_rows, N * LEN);
    for (int r = 0; r < N * LEN; r++) {
        double sum = 0;
        weight_row(&m->embd, q.text.token[r], row);
        for (int i = 0; i < DIM; i++)
            sum += (double)row[i] * (double)row[i];
        for (int i = 0; i < DIM; i++) {
            double x = (double)row[i] * (double)m->layer[0].attn_norm[i];
            want[i] += x * x / (sum / DIM + (double)m->config.norm_eps);
        }
    }
    for (int i = 0; i < DIM; i++)
        assert_true(fabs((double)s.h[INPUT_OF_QKV][i * DIM + i] - want[i]) < 1e-4 * want[i] + 1e-6);
    sums_close(&s);
    assert_int_equal(quantize_run_layer(&q, 1, NULL, &e), 0);
    static float x[LEN * DIM];
    for (int i = 0; i < N; i++) { /* each sequence by itself */
        struct batch b = { .n_rows = LEN,
                           .n_seqs = 1,
                           .token = q.text.token + i * LEN,
                           .pos = q.run.pos,
                           .seq = &(struct batch_seq){ .kv = &q.run.seq[0], .n_rows = LEN } };
        for (int l = 0; l < 2; l++)
            assert_int_equal(model_layer(m, q.run.ws, q.run.pool, &b, l, NULL, x, &e), 0);
        assert_memory_equal(x, q.x + i * LEN * DIM, sizeof x);
    }
    quantize_close(&q);
}

/* The ratio of traces, written out. */
static double plain_loss(const struct pressed *p, const float *h, int cols)
{
    double lost = 0;
    double all = 0;
    float was[DIM];
    float is[DIM];
    for (int r = 0; r < p->w.rows; r++) {
        weight_row(p->slot->w, r, was);
        weight_row(&p->w, r, is);
        for (int i = 0; i < cols; i++)
            for (int j = 0; j < cols; j++) {
                double hij = (double)(i < j ? h[i * cols + j] : h[j * cols + i]);
                all += (double)was[i] * hij * (double)was[j];
                lost += (double)(is[i] - was[i]) * hij * (double)(is[j] - was[j]);
            }
    }
    return lost / all;
}

static void measures_loss(void **state)
{
    struct quantize q = { 0 };
    struct sums s;
    struct pressed p = { 0 };
    struct err e;
    static float rows[2][DIM * DIM];
    (void)state;
    eval_model(&q.session);
    q.model = q.session.model;
    for (int i = 0; i < q.model->n_slots; i++)
        if (strcmp(q.model->slot[i].name, "blk.1.attn_output.weight") == 0)
            p.slot = &q.model->slot[i];
    assert_non_null(p.slot);
    assert_int_equal(sums_open(&s, q.model, 1, &e), 0);
    for (int i = 0; i < DIM; i++) /* diagonally dominant, but far from a diagonal */
        for (int j = i; j < DIM; j++)
            s.h[INPUT_OF_O][i * DIM + j] = i == j ? 10 + (float)i : 1 / (float)(1 + (i + j) % 7);
    assert_int_equal(weight_open(&p.w, q.session.be, "q4", false, DT_F32, DIM, DIM, &e), 0);
    for (int r = 0; r < DIM; r++)
        quantize_row(&q, &p, r, rows[0] + r * DIM);
    assert_int_equal(weight_press(&p.w, 0, DIM, rows[0], rows[1], NULL, &e), 0);
    assert_int_equal(quantize_loss(&q, &p, 1, &s, &e), 0);
    double want = plain_loss(&p, s.h[INPUT_OF_O], DIM);
    assert_true(want > 1e-4 && fabs(p.error - want) < 1e-4 * want);
    for (int i = 0; i < DIM * DIM; i++) /* without sums all inputs count alike */
        s.h[INPUT_OF_O][i] = i % (DIM + 1) == 0;
    want = plain_loss(&p, s.h[INPUT_OF_O], DIM);
    assert_int_equal(quantize_loss(&q, &p, 1, NULL, &e), 0);
    assert_true(fabs(p.error - want) < 1e-4 * want);
    weight_close(&p.w, q.session.be);
    sums_close(&s);
    quantize_close(&q);
}

static void cuts_sequences(void **state)
{
    struct session s;
    struct sequences q;
    struct err e;
    struct tok_ids ids = { 0 };
    struct buf b;
    (void)state;
    static const char text[] = "The cat sat.<|endoftext|>\nThe dog ran away and came back.";
    eval_model(&s);
    const struct tokenizer *tok = s.model->tok;
    assert_int_equal(file_write_atomic(in_root("two.txt"), text, strlen(text), &e), 0);
    assert_int_equal(sequences_open(&q, tok, in_root("two.txt"), 8, 8, &e), 0);
    assert_int_equal(tok_encode(tok, text, 12, TOK_ADD_BOS, &ids), 0);
    assert_true(ids.n < 8); /* the second document begins in the sequence, with BOS */
    assert_memory_equal(q.token, ids.id, (size_t)ids.n * sizeof *ids.id);
    assert_int_equal(q.token[ids.n], tok_bos(tok));
    sequences_close(&q);
    tok_ids_free(&ids);

    /* three of many: at the beginning, after a third, after two thirds */
    read_file(&b, "text.txt");
    assert_int_equal(tok_encode(tok, buf_str(&b), b.len, TOK_ADD_BOS, &ids), 0);
    assert_int_equal(sequences_open(&q, tok, in_root("text.txt"), 50, 16, &e), 0);
    assert_int_equal(q.n, 3);
    for (int i = 0; i < 3; i++) {
        const int32_t *from = ids.id + ids.n / 16 * i / 3 * 16;
        assert_int_equal(q.token[i * 16], tok_bos(tok));
        assert_memory_equal(q.token + i * 16 + 1, from + 1, 15 * sizeof *from);
    }
    sequences_close(&q);
    tok_ids_free(&ids);
    buf_free(&b);
    session_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_make_the_pass), cmocka_unit_test(shows_what_matrices_read),
        cmocka_unit_test(sums_over_sequences),  cmocka_unit_test(measures_loss),
        cmocka_unit_test(cuts_sequences),
    };
    log_setup(&(struct log_config){ .level = LOG_E });
    return cmocka_run_group_tests(tests, eval_open, scratch_close);
}
