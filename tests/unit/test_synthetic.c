/* Synthetic models: the same numbers everywhere, of the promised size, and models that run. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/cli/runner.h"
#include "server/model/synthetic.h"

static const struct model_options options = { .weights = "auto", .int8 = true };

static struct be *open_be(int threads)
{
    struct be *be;
    assert_int_equal(be_open(&be, &(struct be_config){ .n_threads = threads }, NULL), 0);
    return be;
}

enum { TOKENS = 40 };

/* Logits of the last of some tokens. */
static void logits_of(const char *spec, int threads, float *out, int vocab)
{
    struct be *be = open_be(threads);
    struct model *m;
    struct runner r;
    struct err e;
    const float *logits;
    int32_t token[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        token[i] = (i * 37 + 11) % vocab;
    if (synthetic_open(&m, spec, &options, be, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(m->config.vocab, vocab);
    assert_int_equal(runner_open(&r, m, KV_F32, 1, TOKENS, TOKENS, 1, &e), 0);
    assert_int_equal(runner_append(&r, 0, token, TOKENS, 1, &logits, &e), 0);
    memcpy(out, logits, (size_t)vocab * sizeof *out);
    runner_close(&r);
    model_close(m);
    be_close(be);
}

/* Every form runs; logits are numbers, about as large as they should be, and do not depend on the threads. */
static void test_runs(void **state)
{
    static const char *const spec[] = { "tiny:f32", "tiny:f16", "tiny:bf16", "tiny:q8", "tiny:q4" };
    enum { VOCAB = 320 };
    float one[VOCAB];
    float two[VOCAB];
    (void)state;
    for (size_t i = 0; i < sizeof spec / sizeof spec[0]; i++) {
        logits_of(spec[i], 1, one, VOCAB);
        logits_of(spec[i], 2, two, VOCAB);
        assert_memory_equal(one, two, sizeof one);
        double sum = 0;
        for (int k = 0; k < VOCAB; k++)
            sum += (double)one[k] * (double)one[k];
        double size = sqrt(sum / VOCAB);
        assert_true(size > 0.5 && size < 2);
    }
}

static void row_of(const struct weight *w, int row, float *out)
{
    w->codec->decode(w, row, out);
}

/* A matrix of more rows than are made repeats them; within them no two are alike, nor are those of two layers. */
static void test_numbers(void **state)
{
    struct be *be = open_be(0);
    struct model *m;
    struct err e;
    float a[576];
    float b[576];
    (void)state;
    if (synthetic_open(&m, "smollm2-135m:bf16", &options, be, &e) < 0)
        fail_msg("%s", e.text);
    const struct weight *w = &m->layer[3].gate;
    assert_int_equal(w->rows, 1536);
    assert_int_equal(w->cols, 576);
    row_of(w, 5, a);
    row_of(w, 5 + 1024, b);
    assert_memory_equal(a, b, sizeof a);
    row_of(w, 6, b);
    assert_memory_not_equal(a, b, sizeof a);
    row_of(&m->layer[4].gate, 5, b);
    assert_memory_not_equal(a, b, sizeof a);
    double sum = 0;
    double square = 0;
    double fourth = 0;
    int n = 0;
    for (int r = 0; r < 1024; r++) {
        row_of(w, r, a);
        for (int k = 0; k < 576; k++, n++) {
            double x = (double)a[k] * 24; /* sqrt(576) */
            sum += x;
            square += x * x;
            fourth += x * x * x * x;
        }
    }
    assert_true(fabs(sum / n) < 0.01);
    assert_true(fabs(square / n - 1) < 0.01);
    assert_true(fabs(fourth / n - 2.7) < 0.05); /* four uniform numbers: 3 - 1.2 / 4 */
    model_close(m);
    be_close(be);
}

/* The bytes go in and come out; every token has a text. */
static void test_text(void **state)
{
    struct be *be = open_be(1);
    struct model *m;
    struct tok_ids ids = { 0 };
    struct buf b;
    (void)state;
    assert_int_equal(synthetic_open(&m, "tiny:q8", &options, be, NULL), 0);
    assert_int_equal(tok_n(m->tok), m->config.vocab);
    assert_int_equal(tok_encode(m->tok, "h\xc3\xa9!", 4, 0, &ids), 0);
    buf_init(&b, 1 << 20);
    assert_int_equal(tok_decode(m->tok, ids.id, ids.n, false, &b), 0);
    assert_string_equal(buf_str(&b), "h\xc3\xa9!");
    assert_string_equal(tok_text(m->tok, 300), "12c ");
    buf_free(&b);
    tok_ids_free(&ids);
    model_close(m);
    be_close(be);
}

static void expect_error(struct be *be, const char *spec, int code, const char *part)
{
    struct model *m;
    struct err e;
    assert_int_equal(synthetic_open(&m, spec, &options, be, &e), code);
    if (strstr(e.text, part) == NULL)
        fail_msg("%s: \"%s\" lacks \"%s\"", spec, e.text, part);
}

static void test_errors(void **state)
{
    struct be *be = open_be(1);
    (void)state;
    expect_error(be, "mixtral-8x7b:q4", ERR_UNSUPPORTED, "mixture of experts");
    expect_error(be, "gpt-9:q4", ERR_INVALID, "llama-3.1-8b");
    expect_error(be, "", ERR_INVALID, "SHAPE:FORM");
    expect_error(be, "tiny", ERR_INVALID, "tiny:q4");
    expect_error(be, "tiny:", ERR_INVALID, "bf16");
    expect_error(be, "tiny:q3", ERR_INVALID, "\"q3\"");
    be_close(be);
}

/* Memory that runs out at any place is an error that leaves nothing behind. */
static void test_memory(void **state)
{
    struct be *be = open_be(1);
    struct mem_stats before;
    struct mem_stats after;
    int rc = ERR_NOMEM;
    int n = 0;
    struct err e;
    (void)state;
    mem_stats(&before);
    while (rc == ERR_NOMEM) {
        struct model *m = NULL;
        mem_fail_at((uint64_t)++n);
        rc = synthetic_open(&m, "tiny:q4", &options, be, &e);
        mem_fail_at(0);
        if (rc == 0)
            model_close(m);
        mem_stats(&after);
        assert_int_equal(after.blocks, before.blocks);
    }
    if (rc < 0)
        fail_msg("allocation %d: %s", n, e.text);
    assert_true(n > 50);
    be_close(be);
}

/* Every shape of the list is one that a spec may name. */
static void test_list(void **state)
{
    struct be *be = open_be(1);
    char names[512];
    int n = 0;
    (void)state;
    strncpy(names, synthetic_shapes(), sizeof names - 1);
    names[sizeof names - 1] = 0;
    for (char *p = names; p != NULL && *p != 0; n++) {
        char *end = strstr(p, ", ");
        if (end != NULL)
            *end = 0;
        expect_error(be, p, ERR_INVALID, "names no form of weights");
        p = end != NULL ? end + 2 : NULL;
    }
    assert_int_equal(n, 11);
    be_close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs),   cmocka_unit_test(test_numbers), cmocka_unit_test(test_text),
        cmocka_unit_test(test_errors), cmocka_unit_test(test_memory),  cmocka_unit_test(test_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
