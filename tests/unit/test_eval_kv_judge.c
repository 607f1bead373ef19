/* wring eval kv on a small real model: what it judges by, against plain formulas and plain loops. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/cli/eval_kv.h"
#include "tests/tools/eval_fixture.h"
#include "tests/tools/pressing.h"
#include "tests/tools/scratch.h"

enum { FED = 20, ROWS = 8 };

static double log_sum(const float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i]);
    return log(sum);
}

static int best_of(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static void fill_seq(struct runner *r, int i_seq, int32_t first)
{
    struct err e;
    struct kv_options o = { 0 };
    int32_t token[40];
    for (int i = 0; i < 40; i++)
        token[i] = first + 3 * i;
    assert_int_equal(runner_begin(r, i_seq, &o, 40, &e), 0);
    assert_int_equal(runner_prefill(r, i_seq, token, 40, &e), 0);
}

/* What W_o of every layer reads: [2][layers][FED][cols], cache by cache. */
struct seen {
    float *x;
    int n; /* layers seen so far, of both */
    size_t cols;
};

static void see(void *arg, enum layer_input what, const float *x, int n, int cols)
{
    struct seen *s = arg;
    if (what != INPUT_OF_O)
        return;
    assert_true(n == FED && (size_t)cols == s->cols);
    memcpy(s->x + (size_t)s->n++ * FED * s->cols, x, FED * s->cols * sizeof *x);
}

/* The mean over judged rows and layers of |a - b| / |a|. */
static double error_of(const struct seen *s, const struct kv_case *c)
{
    int layers = s->n / 2;
    int n = 0;
    double sum = 0;
    for (int l = 0; l < layers; l++)
        for (int i = 0; i + 1 < FED; i++) {
            const float *a = s->x + ((size_t)l * FED + (size_t)i) * s->cols;
            const float *b = a + (size_t)layers * FED * s->cols;
            double off = 0;
            double all = 0;
            if (c->answer[i + 1] == 0)
                continue;
            for (size_t k = 0; k < s->cols; k++) {
                off += pow((double)a[k] - (double)b[k], 2);
                all += pow((double)a[k], 2);
            }
            sum += sqrt(off / all);
            n++;
        }
    return sum / n;
}

/* Two caches that have nothing to do with each other. */
static void scores(void **state)
{
    (void)state;
    struct session s = { 0 };
    struct runner r = { 0 };
    struct kv_judge j;
    struct kv_cell whole;
    struct kv_cell other;
    struct kv_case c = { .n_probe = FED, .n_answers = 2 };
    struct err e;
    const float *x;
    eval_model(&s);
    int vocab = s.model->config.vocab;
    struct seen seen = { .cols = (size_t)(s.model->config.n_heads * s.model->config.head_dim) };
    const struct observer o = { see, &seen };
    seen.x = mem_alloc(2 * (size_t)s.model->config.n_layers * FED * seen.cols * sizeof *seen.x);
    assert_int_equal(runner_open(&r, s.model, KV_F32, 2, 128, 64, 64, &e), 0);
    for (int i = 0; i < FED; i++) { /* judged: 6 to 9 and 12 to 15 */
        c.probe[i] = 300 + 7 * i;
        c.answer[i] = (uint8_t)(i >= 6 && i < 10 ? 1 : i >= 12 && i < 16 ? 2 : 0);
    }
    float *logits = mem_alloc((size_t)2 * FED * (size_t)vocab * sizeof *logits);
    for (int k = 0; k < 2; k++) {
        fill_seq(&r, k, k == 0 ? 10 : 260);
        assert_int_equal(workspace_observe(r.ws, &o, &e), 0);
        assert_int_equal(runner_append(&r, k, c.probe, FED, FED, &x, &e), 0);
        assert_int_equal(workspace_observe(r.ws, NULL, &e), 0);
        memcpy(logits + (ptrdiff_t)k * FED * vocab, x, (size_t)FED * (size_t)vocab * sizeof *x);
        fill_seq(&r, k, k == 0 ? 10 : 260);
    }
    double kl = 0;
    double nll = 0;
    double nll_full = 0;
    int same = 0;
    int first = -1; /* judged tokens up to the first whose choice differs */
    int n = 0;
    for (int i = 0; i < FED; i++) {
        if (c.answer[i] == 0)
            continue;
        const float *p = logits + (ptrdiff_t)(i - 1) * vocab;
        const float *q = p + (ptrdiff_t)FED * vocab;
        double lp = log_sum(p, vocab);
        double lq = log_sum(q, vocab);
        for (int w = 0; w < vocab; w++)
            kl += exp((double)p[w] - lp) * ((double)p[w] - lp - (double)q[w] + lq);
        nll += lq - (double)q[c.probe[i]];
        nll_full += lp - (double)p[c.probe[i]];
        same += best_of(p, vocab) == best_of(q, vocab);
        if (first < 0 && best_of(p, vocab) != best_of(q, vocab))
            first = n;
        n++;
    }
    assert_true(first >= 0);
    assert_int_equal(kv_judge_open(&j, &r, &e), 0);
    const struct kv_task *t = kv_task_find("continue");
    assert_int_equal(kv_judge_whole(&j, 0, t, &c, &whole, &e), 0);
    assert_int_equal(kv_judge_other(&j, 1, t, &c, &other, &e), 0);
    assert_true(whole.tokens == ROWS && whole.answers == 2 && whole.kl == 0 && whole.top1 == 1);
    assert_true(fabs(whole.nll - nll_full / ROWS) < 1e-4);
    assert_true(other.tokens == ROWS && other.answers == 2);
    assert_true(fabs(other.kl - kl / ROWS) < 1e-4 * (1 + kl / ROWS));
    assert_true(fabs(other.nll - nll / ROWS) < 1e-4);
    assert_true(fabs(other.nll_full - nll_full / ROWS) < 1e-4);
    assert_true(fabs(other.top1 - (double)same / ROWS) < 1e-12);
    assert_true(other.kl95 >= other.kl);
    assert_int_equal(seen.n, 2 * s.model->config.n_layers);
    assert_true(whole.attn == 0 && other.attn > 0);
    assert_true(fabs(other.attn - error_of(&seen, &c)) < 1e-5 * other.attn);
    assert_true(whole.first == ROWS && other.first == first);
    assert_true(other.pressings == 0 && other.mass == 1 && other.bytes > 0);
    mem_free(logits);
    mem_free(seen.x);
    kv_judge_close(&j);
    runner_close(&r);
    session_close(&s);
}

/* ---- what is decoded on a pressed cache, against plain loops ---------------------------------------------------------- */

struct bench {
    struct session s;
    struct kv_maker m;
    struct kv_case c;
    struct runner r;
    struct kv_judge j;
    int vocab;
};

static void open_bench(struct bench *b)
{
    struct err e;
    eval_model(&b->s);
    assert_int_equal(kv_maker_open(&b->m, b->s.model, in_root("text.txt"), 200, 0, &e), 0);
    assert_int_equal(runner_open_kv(&b->r, b->s.model, KV_F32, KV_NARROW_SAME, 2, 512, KV_JUDGED,
                                    KV_JUDGED, RUNNER_SAMPLES, &e),
                     0);
    assert_int_equal(kv_judge_open(&b->j, &b->r, &e), 0);
    b->vocab = b->s.model->config.vocab;
}

static void close_bench(struct bench *b)
{
    kv_judge_close(&b->j);
    runner_close(&b->r);
    kv_maker_close(&b->m);
    tok_ids_free(&b->c.prompt);
    session_close(&b->s);
}

/* The prompt of a sample in sequence 0. */
static void make_sample(struct bench *b, const struct kv_task *t, int sample)
{
    struct err e;
    struct kv_options o = { .policy = pressing(0), .budget = KV_BUDGET_MIN };
    kv_maker_seed(&b->m, 1, t->name, sample);
    assert_int_equal(t->make(&b->m, &b->c, &e), 0);
    assert_int_equal(runner_begin(&b->r, 0, &o, b->c.prompt.n, &e), 0);
    assert_int_equal(runner_prefill(&b->r, 0, b->c.prompt.id, b->c.prompt.n, &e), 0);
}

/* A copy of it in sequence 1, to be pressed to this budget; 0: the whole cache. */
static void fork_sample(struct bench *b, int budget)
{
    struct err e;
    struct kv_options o = { .policy = budget > 0 ? pressing(0) : NULL, .budget = budget };
    assert_int_equal(runner_fork(&b->r, 1, 0, &o, &e), 0);
}

/* Greedy decoding, token by token. */
static void decode(struct bench *b, int budget, int32_t token, int32_t out[KV_GREEDY])
{
    struct kv_report report = { 0 };
    struct err e;
    const float *x;
    fork_sample(b, budget);
    assert_int_equal(runner_press(&b->r, 1, &report, &e), 0);
    for (int i = 0; i < KV_GREEDY; i++) {
        assert_int_equal(runner_append(&b->r, 1, &token, 1, 1, &x, &e), 0);
        out[i] = token = best_of(x, b->vocab);
    }
}

static void finds_the_first_divergence(void **state)
{
    (void)state;
    struct bench *b = mem_zalloc(1, sizeof *b);
    const struct kv_task *t = kv_task_find("greedy");
    struct kv_cell whole;
    struct kv_cell other;
    struct err e;
    int n_differ = 0;
    open_bench(b);
    for (int sample = 0; sample < 4; sample++) {
        int32_t full[KV_GREEDY];
        int32_t pressed[KV_GREEDY];
        int first = 0;
        make_sample(b, t, sample);
        decode(b, 0, b->c.probe[0], full);
        decode(b, 32, b->c.probe[0], pressed);
        while (first < KV_GREEDY && full[first] == pressed[first])
            first++;
        n_differ += first > 0 && first < KV_GREEDY;
        fork_sample(b, 0);
        assert_int_equal(kv_judge_whole(&b->j, 1, t, &b->c, &whole, &e), 0);
        assert_int_equal(b->c.n_probe, 1 + KV_GREEDY);
        assert_memory_equal(b->c.probe + 1, full, sizeof full);
        assert_true(whole.first == KV_GREEDY && whole.tokens == KV_GREEDY && whole.exact == 1);
        fork_sample(b, 32);
        assert_int_equal(kv_judge_other(&b->j, 1, t, &b->c, &other, &e), 0);
        assert_true(other.first == first && other.pressings == 1);
        fork_sample(b, 512);
        assert_int_equal(kv_judge_other(&b->j, 1, t, &b->c, &other, &e), 0);
        assert_true(other.first == KV_GREEDY && other.kl == 0 && other.pressings == 0);
        assert_true(other.attn == 0);
    }
    assert_true(n_differ > 0);
    close_bench(b);
    mem_free(b);
}

/* The logits of all of a stream's tokens but the last, 32 at a time; returns the number of pressings. */
static int follow(struct bench *b, int budget, float *logits)
{
    struct kv_report report = { 0 };
    struct err e;
    const float *x;
    fork_sample(b, budget);
    for (int i = 0; i < b->c.n_probe - 1; i += 32) {
        int n = b->c.n_probe - 1 - i < 32 ? b->c.n_probe - 1 - i : 32;
        assert_int_equal(runner_press(&b->r, 1, &report, &e), 0);
        assert_int_equal(runner_append(&b->r, 1, b->c.probe + i, n, n, &x, &e), 0);
        memcpy(logits + (ptrdiff_t)i * b->vocab, x, (size_t)n * (size_t)b->vocab * sizeof *x);
    }
    return report.n_compactions;
}

static void follows_a_stream(void **state)
{
    (void)state;
    struct bench *b = mem_zalloc(1, sizeof *b);
    const struct kv_task *t = kv_task_find("stream");
    struct kv_cell whole;
    struct kv_cell other;
    struct err e;
    open_bench(b);
    make_sample(b, t, 0);
    int rows = b->c.n_probe - 1;
    int stride = (rows + KV_JUDGED - 1) / KV_JUDGED;
    size_t size = (size_t)rows * (size_t)b->vocab;
    float *full = mem_alloc(size * sizeof *full);
    float *pressed = mem_alloc(size * sizeof *pressed);
    assert_int_equal(follow(b, 0, full), 0);
    int pressings = follow(b, 32, pressed);
    double nll[2] = { 0, 0 };
    double kl = 0;
    int n_kl = 0;
    for (int i = 0; i < rows; i++) {
        const float *p = full + (ptrdiff_t)i * b->vocab;
        const float *q = pressed + (ptrdiff_t)i * b->vocab;
        double lp = log_sum(p, b->vocab);
        double lq = log_sum(q, b->vocab);
        nll[0] += lp - (double)p[b->c.probe[i + 1]];
        nll[1] += lq - (double)q[b->c.probe[i + 1]];
        for (int w = 0; i % stride == 0 && w < b->vocab; w++)
            kl += exp((double)p[w] - lp) * ((double)p[w] - lp - (double)q[w] + lq);
        n_kl += i % stride == 0;
    }
    fork_sample(b, 0);
    assert_int_equal(kv_judge_whole(&b->j, 1, t, &b->c, &whole, &e), 0);
    fork_sample(b, 32);
    assert_int_equal(kv_judge_other(&b->j, 1, t, &b->c, &other, &e), 0);
    assert_true(stride > 1 && n_kl > KV_JUDGED / 2 && pressings > 1);
    assert_true(whole.tokens == rows && other.tokens == rows && other.pressings == pressings);
    assert_true(fabs(whole.nll - nll[0] / rows) < 1e-4 && whole.nll == other.nll_full);
    assert_true(fabs(other.nll - nll[1] / rows) < 1e-4);
    assert_true(fabs(other.kl - kl / n_kl) < 1e-4 * (1 + kl / n_kl));
    /* the whole cache ends with all tokens; the other one never holds more than budget, tail and a step */
    assert_true(whole.bytes > 2 * other.bytes);
    mem_free(pressed);
    mem_free(full);
    close_bench(b);
    mem_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores),
        cmocka_unit_test(finds_the_first_divergence),
        cmocka_unit_test(follows_a_stream),
    };
    return cmocka_run_group_tests(tests, eval_open, scratch_close);
}
