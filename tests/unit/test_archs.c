/* Every variant of the llama family against transformers, on tiny random models (tests/golden/archs): rope scaling,
 * sliding window, biases, head norms, tied and untied heads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/buf.h"
#include "server/cli/runner.h"
#include "tests/tools/worst.h"

enum { TOKENS = 100, CHUNK = 33 };

struct expected {
    int32_t id[TOKENS];
    double logprob[TOKENS];
};

static void read_expected(struct expected *x, const char *folder)
{
    char path[300];
    struct buf b;
    snprintf(path, sizeof path, "%s/expected.txt", folder);
    buf_init(&b, 1 << 20);
    assert_int_equal(buf_read_file(&b, path, NULL), 0);
    char *p = b.data;
    for (int i = 0; i < TOKENS; i++) {
        x->id[i] = (int32_t)strtol(p, &p, 10);
        x->logprob[i] = strtod(p, &p);
    }
    buf_free(&b);
}

static double logprob_of(const float *row, int vocab, int32_t id)
{
    double sum = 0;
    for (int i = 0; i < vocab; i++)
        sum += exp((double)row[i] - (double)row[id]);
    return -log(sum);
}

static void check_arch(void **state)
{
    char folder[256];
    struct be *be;
    struct model *m;
    struct runner r;
    struct expected x;
    struct err e;
    const float *logits;
    snprintf(folder, sizeof folder, "tests/golden/archs/%s", (const char *)*state);
    read_expected(&x, folder);
    assert_int_equal(be_open(&be, &(struct be_config){ .device = "cpu" }, &e), 0);
    struct model_options o = { .weights = "f32" };
    if (model_open(&m, folder, &o, be, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(runner_open(&r, m, KV_F32, 1, TOKENS, CHUNK, CHUNK, &e), 0);
    double worst = 0;
    for (int at = 0; at < TOKENS; at += CHUNK) {
        int n = TOKENS - at < CHUNK ? TOKENS - at : CHUNK;
        assert_int_equal(runner_append(&r, 0, x.id + at, n, n, &logits, &e), 0);
        for (int k = 0; k < n && at + k + 1 < TOKENS; k++) {
            const float *row = logits + (size_t)k * (size_t)m->config.vocab;
            double got = logprob_of(row, m->config.vocab, x.id[at + k + 1]);
            worst = worst_of(worst, fabs(got - x.logprob[at + k + 1]));
        }
    }
    print_message("%s: largest difference %.1e\n", folder, worst);
    assert_true(worst < 1e-4);
    runner_close(&r);
    model_close(m);
    be_close(be);
}

#define CASE(name)                                                                                 \
    {                                                                                              \
        name, check_arch, NULL, NULL, (void *)name                                                 \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE("llama3-scaling"), CASE("linear-scaling"),   CASE("mistral-window"),
        CASE("qwen2-biases"),   CASE("qwen3-head-norms"),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
