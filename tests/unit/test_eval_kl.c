/* wring eval kl and the chunks it runs over: two toy models beside each other, against plain formulas in double precision. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "server/base/mem.h"
#include "server/cli/chunks.h"
#include "server/cli/eval.h"
#include "server/cli/eval_kl.h"
#include "server/cli/runner.h"
#include "tests/tools/eval_fixture.h"
#include "tests/tools/printed.h"
#include "tests/tools/scratch.h"
#include "tests/tools/toy.h"

enum { SEED = 5, CTX = 150, CHUNKS = 3, ROWS = CTX * CHUNKS, MAX_ARGS = 16 };

/* ---- what is given -------------------------------------------------------------------------------------------------- */

static struct toy exact, pressed, same;

static int open_toys(void **state)
{
    struct model_options q4 = { .weights = "q4", .int8 = true };
    struct err e;
    TRY(eval_open(state));
    TRY(toy_write(in_root("toy.gguf"), SEED, &e));
    TRY(toy_open(&exact, SEED, NULL, 1, NULL, &e));
    TRY(toy_open(&pressed, SEED, NULL, 2, &q4, &e));
    return toy_open(&same, SEED, NULL, 1, NULL, &e);
}

static int close_toys(void **state)
{
    toy_close(&same);
    toy_close(&pressed);
    toy_close(&exact);
    return scratch_close(state);
}

/* more: NULL-terminated, later ones count. */
static void options(struct config *c, const char *const *more)
{
    static const char *argv[MAX_ARGS] = { 0 };
    struct err e;
    int n = 0;
    argv[n++] = "--ctx=150";
    argv[n++] = "--chunks=3";
    argv[n++] = "--kv-type=f32";
    for (int i = 0; more != NULL && more[i] != NULL; i++)
        argv[n++] = more[i];
    if (config_parse(c, CONFIG_EVAL_KL, n, (char **)(uintptr_t)argv, &e) < 0)
        fail_msg("%s", e.text);
}

static int measure(const struct toy *a, const struct toy *b, const char *text,
                   const char *const *more, struct kl_result *out, struct err *e)
{
    struct config c;
    options(&c, more);
    int rc = kl_measure(a->model, b->model, &c, in_root(text), out, e);
    config_free(&c);
    return rc;
}

static void must_measure(const struct toy *a, const struct toy *b, const char *const *more,
                         struct kl_result *out)
{
    struct err e;
    if (measure(a, b, "text.txt", more, out, &e) < 0)
        fail_msg("%s", e.text);
}

static void write_text(const char *name, const char *text)
{
    assert_int_equal(file_write_atomic(in_root(name), text, strlen(text), NULL), 0);
}

static void is_near(double got, double want, double off)
{
    if (!(fabs(got - want) <= off * fabs(want)))
        fail_msg("%.10g is not %.10g", got, want);
}

/* ---- against plain formulas ----------------------------------------------------------------------------------------- */

/* log p of every position and token, a token a step: the caller frees it. */
static double *log_probs(const struct model *m, const struct chunks *t)
{
    struct runner r;
    struct err e;
    const float *x;
    int vocab = m->config.vocab;
    double *out = mem_alloc((size_t)ROWS * (size_t)vocab * sizeof *out);
    assert_non_null(out);
    assert_int_equal(runner_open(&r, m, KV_F32, 1, CTX, 1, 1, &e), 0);
    for (int i = 0; i < ROWS; i++) {
        double *row = out + (ptrdiff_t)i * vocab;
        double sum = 0;
        if (i % CTX == 0)
            runner_reset(&r);
        assert_int_equal(runner_append(&r, 0, chunks_at(t, i / CTX) + i % CTX, 1, 1, &x, &e), 0);
        for (int k = 0; k < vocab; k++)
            sum += exp((double)x[k]);
        for (int k = 0; k < vocab; k++)
            row[k] = (double)x[k] - log(sum);
    }
    runner_close(&r);
    return out;
}

static int best_of(const double *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

struct sums {
    double kl[ROWS], chunk_kl[CHUNKS], top1[CHUNKS], nll[CHUNKS], nll_ref[CHUNKS], bytes;
};

static void sum_up(struct sums *s, const struct chunks *t, const double *q, const double *p,
                   int vocab)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < ROWS; i++, p += vocab, q += vocab) {
        int c = i / CTX;
        for (int k = 0; k < vocab; k++)
            s->kl[i] += exp(p[k]) * (p[k] - q[k]);
        s->chunk_kl[c] += s->kl[i] / CTX;
        s->top1[c] += (double)(best_of(p, vocab) == best_of(q, vocab)) / CTX;
        if (i % CTX == CTX - 1)
            continue;
        int32_t next = chunks_at(t, c)[i % CTX + 1];
        s->nll[c] -= q[next] / (CTX - 1);
        s->nll_ref[c] -= p[next] / (CTX - 1);
        s->bytes += (double)strlen(tok_text(exact.model->tok, next));
    }
}

static double mean(const double *x)
{
    return (x[0] + x[1] + x[2]) / CHUNKS;
}

static double error(const double *x)
{
    double m = mean(x), sum = 0;
    for (int i = 0; i < CHUNKS; i++)
        sum += (x[i] - m) * (x[i] - m);
    return sqrt(sum / (CHUNKS - 1) / CHUNKS);
}

static void is_what_formulas_say(void **state)
{
    static struct sums s;
    struct config c;
    struct chunks t;
    struct kl_result r;
    struct err e;
    (void)state;
    options(&c, NULL);
    assert_int_equal(chunks_open(&t, &c, exact.model->tok, TOY_CTX, in_root("text.txt"), &e), 0);
    assert_int_equal(t.n, CHUNKS);
    for (int i = 0; i < CHUNKS; i++)
        assert_int_equal(chunks_at(&t, i)[0], tok_bos(exact.model->tok));
    double *q = log_probs(pressed.model, &t);
    double *p = log_probs(exact.model, &t);
    sum_up(&s, &t, q, p, TOY_VOCAB);
    must_measure(&pressed, &exact, NULL, &r);
    assert_true(r.n_chunks == CHUNKS && r.ctx == CTX);
    assert_true(r.kl.mean > .01 && r.top1.mean < 1);
    is_near(r.kl.mean, mean(s.chunk_kl), 1e-5);
    is_near(r.kl.error, error(s.chunk_kl), 1e-4);
    is_near(r.top1.mean, mean(s.top1), 1e-12);
    is_near(r.top1.error, error(s.top1), 1e-9);
    is_near(r.model.ppl, exp(mean(s.nll)), 1e-6);
    is_near(r.ref.ppl, exp(mean(s.nll_ref)), 1e-6);
    is_near(r.ratio.mean, exp(mean(s.nll) - mean(s.nll_ref)), 1e-6);
    for (int i = 0; i < CHUNKS; i++)
        s.top1[i] = s.nll[i] - s.nll_ref[i];
    is_near(r.ratio.error, exp(mean(s.top1)) * error(s.top1), 1e-4);
    double bits = mean(s.nll) / log(2) * CHUNKS * (CTX - 1);
    is_near(r.model.byte_bits, bits / s.bytes, 1e-6);
    cli_sort(s.kl, ROWS);
    is_near(r.kl95, s.kl[(ROWS - 1) * 95 / 100], 1e-5);
    mem_free(p);
    mem_free(q);
    chunks_close(&t);
    config_free(&c);
}

static void finds_no_difference_where_there_is_none(void **state)
{
    static const char *const one[] = { "--chunks=1", NULL };
    struct kl_result r;
    (void)state;
    must_measure(&same, &exact, NULL, &r);
    assert_true(r.kl.mean == 0 && r.kl.error == 0 && r.kl95 == 0);
    assert_true(r.top1.error < 1e-15 && r.ratio.error == 0 && r.ratio.mean == 1);
    is_near(r.top1.mean, 1, 1e-12);
    assert_true(r.model.ppl == r.ref.ppl && r.model.byte_bits == r.ref.byte_bits);
    must_measure(&same, &exact, one, &r);
    assert_true(isnan(r.kl.error) && isnan(r.ratio.error));
}

static void counts_bits(void **state)
{
    static const int layer =
        2 * TOY_DIM * TOY_DIM + 2 * TOY_DIM * TOY_DIM / 2 + 3 * TOY_DIM * TOY_FFN;
    struct kl_result r;
    double n = TOY_LAYERS * (layer + 2 * TOY_DIM) + 2 * TOY_VOCAB * TOY_DIM + TOY_DIM;
    double bytes = 0;
    (void)state;
    must_measure(&pressed, &exact, NULL, &r);
    is_near(r.ref.layer_bits, 32, 1e-12);
    const struct model *m = pressed.model;
    for (int l = 0; l < TOY_LAYERS; l++) {
        const struct layer *y = &m->layer[l];
        const struct weight *w[] = { &y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down };
        for (int i = 0; i < 7; i++)
            bytes += (double)weight_bytes(w[i]);
    }
    is_near(r.model.layer_bits, 8 * bytes / (TOY_LAYERS * layer), 1e-12);
    assert_true(r.model.layer_bits > 4 && r.model.layer_bits < 6);
    is_near(r.model.bits, 8 * (double)m->weight_bytes / n, 1e-12);
    assert_true(r.model.bytes == m->weight_bytes && r.ref.bytes == exact.model->weight_bytes);
}

/* ---- documents ------------------------------------------------------------------------------------------------------ */

static void parts_documents(void **state)
{
    static const char *const more[] = { "--separator=<|end|>", "--ctx=4", "--chunks=0", NULL };
    static const char *const whole[] = { "--ctx=4", "--chunks=0", NULL };
    const struct tokenizer *tok = exact.model->tok;
    struct config c;
    struct chunks t;
    struct err e;
    (void)state;
    write_text("parts.txt", "<|end|>\nthe dog<|end|>\n\nand<|end|>");
    options(&c, more);
    assert_int_equal(chunks_open(&t, &c, tok, TOY_CTX, in_root("parts.txt"), &e), 0);
    struct tok_ids want = { 0 };
    assert_int_equal(tok_encode(tok, "the dog", 7, TOK_ADD_BOS, &want), 0);
    assert_int_equal(tok_encode(tok, "and", 3, TOK_ADD_BOS, &want), 0);
    assert_int_equal(t.text.n, want.n);
    for (int i = 0; i < want.n; i++)
        assert_int_equal(t.text.id[i], i % 4 == 0 && i < 4 * t.n ? tok_bos(tok) : want.id[i]);
    chunks_close(&t);
    config_free(&c);
    options(&c, whole);
    assert_int_equal(chunks_open(&t, &c, tok, TOY_CTX, in_root("parts.txt"), &e), 0);
    assert_true(t.text.n > want.n + 15); /* the marks are letters like others */
    chunks_close(&t);
    config_free(&c);
    tok_ids_free(&want);
}

/* A separator that the vocabulary has stays in the text, special tokens too. */
static void keeps_known_marks(void **state)
{
    static const char *const more[] = { "--separator=</s>", "--ctx=4", "--chunks=0", NULL };
    static const char mark[] = "</s>";
    const struct tokenizer *tok = exact.model->tok;
    struct config c;
    struct chunks t;
    struct err e;
    int marks = 0;
    (void)state;
    assert_true(tok_is_special(tok, tok_eos(tok)) &&
                strcmp(tok_text(tok, tok_eos(tok)), mark) == 0);
    write_text("marks.txt", "the dog</s>\nand the dog</s>\n");
    options(&c, more);
    assert_int_equal(chunks_open(&t, &c, tok, TOY_CTX, in_root("marks.txt"), &e), 0);
    struct tok_ids want = { 0 };
    const char *text = "the dog</s>\nand the dog</s>\n";
    assert_int_equal(tok_encode(tok, text, strlen(text), TOK_ADD_BOS | TOK_PARSE_SPECIAL, &want),
                     0);
    assert_int_equal(t.text.n, want.n);
    for (int i = 0; i < want.n; i++)
        marks += want.id[i] == tok_eos(tok);
    assert_int_equal(marks, 2);
    chunks_close(&t);
    config_free(&c);
    tok_ids_free(&want);
}

/* Chunks of no more tokens than the model was trained for, unless that is asked for. */
static void fits_the_training(void **state)
{
    static const struct {
        const char *option;
        int trained, ctx;
    } cases[] = { { "--ctx=0", 4096, 512 }, { "--ctx=0", 100, 100 }, { "--ctx=200", 100, 200 } };
    struct err e = { 0 };
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct config c;
        struct chunks t;
        options(&c, (const char *const[]){ cases[i].option, NULL });
        assert_int_equal(
            chunks_open(&t, &c, exact.model->tok, cases[i].trained, in_root("text.txt"), &e), 0);
        assert_int_equal(t.ctx, cases[i].ctx);
        chunks_close(&t);
        config_free(&c);
    }
}

/* ---- what it refuses ------------------------------------------------------------------------------------------------ */

static void must_fail(const struct toy *a, const struct toy *b, const char *text, const char *says)
{
    struct kl_result r;
    struct err e = { 0 };
    assert_int_equal(measure(a, b, text, NULL, &r, &e), ERR_INVALID);
    if (strstr(e.text, says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static void wants_a_text(void **state)
{
    struct kl_result r;
    struct err e = { 0 };
    (void)state;
    write_text("short.txt", "the dog");
    write_text("empty.txt", "");
    must_fail(&pressed, &exact, "short.txt", "one chunk of --ctx 150");
    must_fail(&pressed, &exact, "empty.txt", "has 0 tokens");
    assert_int_equal(measure(&pressed, &exact, "none.txt", NULL, &r, &e), ERR_NOTFOUND);
    const char *const tiny[] = { "--ctx=1", NULL };
    assert_int_equal(measure(&pressed, &exact, "text.txt", tiny, &r, &e), ERR_INVALID);
    assert_string_equal(e.text, "ctx: a chunk has at least 4 tokens, not 1");
}

/* The toy's file with other bytes in one place, n of them. */
static void open_other(struct toy *t, const char *from, const char *to, size_t n)
{
    static const struct model_options o = { .weights = "auto" };
    struct buf b;
    struct err e;
    *t = (struct toy){ 0 };
    read_file(&b, "toy.gguf");
    char *at = memmem(b.data, b.len, from, n);
    assert_non_null(at);
    memcpy(at, to, n);
    snprintf(t->path, sizeof t->path, "%s", in_root("other.gguf"));
    assert_int_equal(file_write_atomic(t->path, b.data, b.len, &e), 0);
    buf_free(&b);
    assert_int_equal(be_open(&t->be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    if (model_open(&t->model, t->path, &o, t->be, &e) < 0)
        fail_msg("%s", e.text);
}

static void wants_one_vocabulary(void **state)
{
    static const char piece[] = "\3\0\0\0\0\0\0\0and", other_piece[] = "\3\0\0\0\0\0\0\0any";
    static const char bos[] = "add_bos_token\7\0\0\0\1", no_bos[] = "add_bos_token\7\0\0\0";
    struct session small = { 0 };
    struct toy other;
    (void)state;
    open_other(&other, piece, other_piece, sizeof piece - 1);
    must_fail(&other, &exact, "text.txt", "token 299 is \"any\" in one model and \"and\"");
    toy_close(&other);
    open_other(&other, bos, no_bos, sizeof bos - 1);
    must_fail(&other, &exact, "text.txt", "give other tokens for");
    toy_close(&other);
    eval_model(&small);
    other = (struct toy){ .model = small.model };
    must_fail(&other, &exact, "text.txt", "vocabularies of 512 and 300 tokens");
    session_close(&small);
}

/* ---- the command ---------------------------------------------------------------------------------------------------- */

/* What it prints, in out; returns its exit code. */
static int run(const char *const *more, struct buf *out)
{
    static const char *argv[MAX_ARGS] = { 0 };
    int n = 0;
    argv[n++] = "kl";
    argv[n++] = in_root("toy.gguf");
    argv[n++] = in_root("toy.gguf");
    argv[n++] = in_root("text.txt");
    argv[n++] = "--ctx=64";
    argv[n++] = "--chunks=2";
    argv[n++] = "--device=cpu";
    argv[n++] = "--log-level=error";
    for (int i = 0; more[i] != NULL; i++)
        argv[n++] = more[i];
    return printed(eval_kl, n, argv, out);
}

static double number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v))
        fail_msg("no number \"%s\"", key);
    return json_number_value(v);
}

static void prints_what_it_found(void **state)
{
    static const char *const json[] = { "--json", "--weights=q8", "--activations=f32",
                                        "--kv-type=f16", NULL };
    static const char *const exactly[] = { "--json", "--activations=f32", NULL };
    static const char *const table[] = { "--weights=q4", NULL };
    static const char *const one[] = { "--json", "--chunks=1", NULL };
    static const char *const long_one[] = { "--ctx=100000", NULL };
    struct buf b;
    (void)state;
    assert_int_equal(run(json, &b), 0);
    json_t *o = json_loads(buf_str(&b), 0, NULL);
    assert_non_null(o);
    assert_true(number(o, "kl") > 0 && number(o, "kl") < .01 && number(o, "kl_err") > 0);
    assert_true(number(o, "top1") > .9 && number(o, "kl95") >= number(o, "kl"));
    assert_true(number(o, "layer_bits") > 8 && number(o, "layer_bits") < 10);
    assert_true(number(o, "layer_bits_ref") == 32 && number(o, "bits_ref") < 32.5);
    assert_true(number(o, "positions") == 128 && number(o, "chunks") == 2 &&
                number(o, "ctx") == 64);
    assert_true(fabs(number(o, "ppl") / number(o, "ppl_ref") - number(o, "ppl_ratio")) < 1e-3);
    json_decref(o);
    buf_free(&b);
    assert_int_equal(run(exactly, &b), 0);
    o = json_loads(buf_str(&b), 0, NULL);
    assert_true(number(o, "kl") == 0 && number(o, "top1") == 1 && number(o, "ppl_ratio") == 1);
    json_decref(o);
    buf_free(&b);
    assert_int_equal(run(one, &b), 0);
    o = json_loads(buf_str(&b), 0, NULL);
    assert_true(json_is_null(json_object_get(o, "kl_err")));
    json_decref(o);
    buf_free(&b);
    assert_int_equal(run(table, &b), 0);
    assert_non_null(strstr(buf_str(&b), "bits per weight, layers"));
    assert_non_null(strstr(buf_str(&b), "32.000\n"));
    buf_free(&b);
    assert_int_equal(run(long_one, &b), 2);
    assert_int_equal(b.len, 0);
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_what_formulas_say),
        cmocka_unit_test(finds_no_difference_where_there_is_none),
        cmocka_unit_test(counts_bits),
        cmocka_unit_test(parts_documents),
        cmocka_unit_test(keeps_known_marks),
        cmocka_unit_test(fits_the_training),
        cmocka_unit_test(wants_a_text),
        cmocka_unit_test(wants_one_vocabulary),
        cmocka_unit_test(prints_what_it_found),
    };
    return cmocka_run_group_tests(tests, open_toys, close_toys);
}
