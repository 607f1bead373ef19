/* The forward pass against PyTorch: distributions of real models on real text (tests/golden/logits), and the fast paths
 * against the exact one. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/buf.h"
#include "server/cli/runner.h"
#include "tests/tools/models.h"

enum { CHUNK = 100 };

/* A golden file: see tests/tools/golden_logits.py. */
struct golden {
    struct buf file;
    int n_seqs, length, k;
};

struct result {
    double kl, nll; /* means over all positions */
    int n;
};

static void golden_open(struct golden *g, const char *name)
{
    char path[256];
    int32_t head[3];
    snprintf(path, sizeof path, "tests/golden/logits/%s.bin", name);
    buf_init(&g->file, 4 << 20);
    assert_int_equal(buf_read_file(&g->file, path, NULL), 0);
    assert_memory_equal(g->file.data, "WLOG", 4);
    memcpy(head, g->file.data + 4, sizeof head);
    g->n_seqs = head[0];
    g->length = head[1];
    g->k = head[2];
}

static const char *golden_seq(const struct golden *g, int i)
{
    size_t bytes = (size_t)g->length * (4 + 8 * (size_t)g->k);
    return g->file.data + 16 + (size_t)i * bytes;
}

static double log_sum_exp(const float *x, int n)
{
    double max = (double)x[0];
    double sum = 0;
    for (int i = 1; i < n; i++)
        max = (double)x[i] > max ? (double)x[i] : max;
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return max + log(sum);
}

/* KL(reference || ours) over the k best tokens and, as one more outcome, all the rest. */
static double divergence(const char *ref, int k, const float *logits, double lse)
{
    double kl = 0;
    double p_sum = 0;
    double q_sum = 0;
    for (int i = 0; i < k; i++) {
        int32_t id;
        float logp;
        memcpy(&id, ref + 4 * i, 4);
        memcpy(&logp, ref + 4 * (k + i), 4);
        double p = exp((double)logp);
        double logq = (double)logits[id] - lse;
        kl += p * ((double)logp - logq);
        p_sum += p;
        q_sum += exp(logq);
    }
    double p = 1 - p_sum;
    double q = 1 - q_sum;
    return p > 1e-9 && q > 1e-9 ? kl + p * log(p / q) : kl;
}

static void run_seq(struct runner *r, const struct golden *g, int i_seq, struct result *out)
{
    const char *seq = golden_seq(g, i_seq);
    const char *top = seq + 4 * (size_t)g->length;
    int vocab = r->model->config.vocab;
    struct err e;
    runner_reset(r);
    for (int at = 0; at < g->length; at += CHUNK) {
        int32_t token[CHUNK + 1] = { 0 };
        int n = g->length - at < CHUNK ? g->length - at : CHUNK;
        int more = at + n < g->length;
        memcpy(token, seq + 4 * (size_t)at, 4 * (size_t)(n + more));
        const float *logits;
        assert_int_equal(runner_append(r, 0, token, n, n, &logits, &e), 0);
        for (int k = 0; k < n; k++) {
            const float *row = logits + (size_t)k * (size_t)vocab;
            double lse = log_sum_exp(row, vocab);
            out->kl += divergence(top + (size_t)(at + k) * 8 * (size_t)g->k, g->k, row, lse);
            if (k + 1 < n + more)
                out->nll += lse - (double)row[token[k + 1]];
            out->n++;
        }
    }
}

static bool run_model(const char *file, const char *golden, const char *weights, bool int8,
                      enum kv_type kv, struct result *out)
{
    char path[4200];
    struct err e;
    struct be *be;
    struct model *m;
    struct runner r;
    struct golden g;
    if (!model_path(file, path, sizeof path)) {
        print_message("skipped: %s is not there; `build/wring pull` gets it\n", file);
        return false;
    }
    golden_open(&g, golden);
    assert_int_equal(be_open(&be, &(struct be_config){ .device = "cpu" }, &e), 0);
    struct model_options o = { .weights = weights, .int8 = int8 };
    if (model_open(&m, path, &o, be, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(runner_open(&r, m, kv, 1, g.length, CHUNK, CHUNK, &e), 0);
    *out = (struct result){ 0 };
    for (int i = 0; i < g.n_seqs; i++)
        run_seq(&r, &g, i, out);
    out->kl /= out->n;
    out->nll /= out->n;
    runner_close(&r);
    model_close(m);
    be_close(be);
    buf_free(&g.file);
    return true;
}

static const char smollm[] = "smollm2-135m-instruct.gguf";
static const char stories[] = "stories15m";

static void check_exact(const char *file, const char *golden)
{
    struct result r;
    if (!run_model(file, golden, "f32", false, KV_F32, &r)) {
        skip();
        return;
    }
    print_message("%s: KL to PyTorch %.2e over %d positions\n", golden, r.kl, r.n);
    assert_true(r.n >= 1700);
    assert_true(fabs(r.kl) <= 1e-9); /* it goes with the square of an error */
}

static void smollm2_equals_pytorch(void **state)
{
    (void)state;
    check_exact(smollm, "smollm2-135m-instruct");
}

static void stories15m_equals_pytorch(void **state)
{
    (void)state;
    check_exact(stories, "stories15m");
}

/* Weights as they are in the file: only the activations' rounding and the cache's type differ. */
static void int8_activations_cost_little(void **state)
{
    struct result exact;
    struct result fast;
    (void)state;
    if (!run_model(smollm, "smollm2-135m-instruct", "auto", false, KV_F32, &exact) ||
        !run_model(smollm, "smollm2-135m-instruct", "auto", true, KV_BF16, &fast)) {
        skip();
        return;
    }
    print_message("perplexity %.4f exact, %.4f with int8 activations and a bf16 cache\n",
                  exp(exact.nll), exp(fast.nll));
    assert_true(fabs(exp(fast.nll - exact.nll) - 1) <= 0.003);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smollm2_equals_pytorch),
        cmocka_unit_test(stories15m_equals_pytorch),
        cmocka_unit_test(int8_activations_cost_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
