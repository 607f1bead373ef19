/* wring eval kv on a small real model: a whole run, taken up again; every task; scores against the plain formulas. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/cli/eval.h"
#include "server/cli/eval_kv.h"
#include "server/cli/fetch.h"
#include "server/cli/import.h"

static char root[64]; /* a folder of our own */

static const char *in_root(const char *name)
{
    static char path[8][128];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", root, name);
    return path[next];
}

static void read_file(struct buf *b, const char *name)
{
    struct err e;
    buf_init(b, 16 << 20);
    if (buf_read_file(b, in_root(name), &e) < 0)
        fail_msg("%s", e.text);
}

static const struct kv_policy *some_policy(void)
{
    int i = 0;
    while (kv_policy_list[i]->keeps_all)
        i++;
    return kv_policy_list[i];
}

static void write_text(void)
{
    static const char *const part[] = { "Once upon a time there was a little cat. ",
                                        "The sun was warm and the dog ran to the park. ",
                                        "\"Can we play?\" asked Lily. ", "They were very happy. " };
    struct buf b;
    struct err e;
    uint32_t x = 1;
    buf_init(&b, 1 << 20);
    while (b.len < 20000) {
        x = x * 1664525u + 1013904223u;
        buf_adds(&b, part[x >> 30]);
    }
    assert_int_equal(file_write_atomic(in_root("text.txt"), b.data, b.len, &e), 0);
    buf_free(&b);
}

/* The command as a user gives it, its table thrown away. */
static int run(const char *tasks)
{
    char text[128];
    char out[128];
    char policies[128];
    const char *name = some_policy()->name;
    snprintf(text, sizeof text, "--text=%s", in_root("text.txt"));
    snprintf(out, sizeof out, "--out=%s", in_root("out"));
    snprintf(policies, sizeof policies, "--policies=%s,%s:sinks=0", name, name);
    const char *argv[] = { "kv",
                           in_root("model"),
                           "--samples=2",
                           "--length=200",
                           "--budgets=32,64,512",
                           "--device=cpu",
                           "--log-level=error",
                           text,
                           out,
                           policies,
                           tasks };
    int null = open("/dev/null", O_WRONLY);
    int old = dup(STDOUT_FILENO);
    fflush(stdout);
    dup2(null, STDOUT_FILENO);
    int code = eval_kv((int)(sizeof argv / sizeof *argv), (char **)(uintptr_t)argv);
    fflush(stdout);
    dup2(old, STDOUT_FILENO);
    close(old);
    close(null);
    return code;
}

/* Lines of the CSV without the two columns of times at the end. */
static void cut_times(struct buf *csv)
{
    char *to = csv->data;
    for (const char *p = csv->data; *p != 0;) {
        size_t n = strcspn(p, "\n");
        size_t keep = n;
        for (int k = 0; k < 2; k++)
            while (keep > 0 && p[--keep] != ',')
                ;
        memmove(to, p, keep);
        to[keep] = '\n';
        to += keep + 1;
        p += n + (p[n] == '\n');
    }
    *to = 0;
    csv->len = (size_t)(to - csv->data);
}

static int lines_of(const struct buf *b)
{
    int n = 0;
    for (const char *p = buf_str(b); *p != 0; p++)
        n += *p == '\n';
    return n;
}

/* The first numbers of the first variant's row of a task. */
enum {
    N_AT,
    BYTES_AT,
    SHARE_AT,
    KL_AT,
    KL95_AT,
    TOP1_AT,
    PPL_AT,
    ANSWERS_AT,
    NLL_AT,
    FIRST_AT,
    MASS_AT,
    PRESSINGS_AT,
    N_NUMBERS
};
static void row_of(const struct buf *csv, const char *task, const char *budget,
                   double out[N_NUMBERS])
{
    char head[128];
    int n = snprintf(head, sizeof head, "\n%s,\"%s\",%s,", task, some_policy()->name, budget);
    const char *p = strstr(buf_str(csv), head);
    assert_non_null(p);
    p += n;
    for (int i = 0; i < N_NUMBERS; i++) {
        char *end;
        out[i] = strtod(p, &end);
        p = end + 1;
    }
}

static void runs_and_goes_on(void **state)
{
    (void)state;
    static const char tasks[] = "--tasks=continue,number,greedy,stream";
    struct buf csv[3];
    struct buf md[2];
    struct buf log;
    struct err e;
    assert_int_equal(run(tasks), 0);
    read_file(&csv[0], "out/kv.csv");
    read_file(&md[0], "out/kv.md");
    read_file(&log, "out/kv.jsonl");
    int lines = lines_of(&log);
    assert_true(lines >=
                3 * 2 * 7 + 2); /* all are judged everywhere, `number` where it is answered */
    assert_int_equal(access(in_root("out/kv-continue.png"), R_OK), 0);
    assert_int_equal(access(in_root("out/kv-number.png"), R_OK), 0);

    /* a budget that holds the prompt changes nothing, and a smaller one does */
    static const char *const task[] = { "continue", "greedy", "stream" };
    for (int i = 0; i < 3; i++) {
        double small[N_NUMBERS];
        double large[N_NUMBERS];
        row_of(&csv[0], task[i], "32", small);
        row_of(&csv[0], task[i], "512", large);
        assert_true(large[KL_AT] == 0 && large[TOP1_AT] == 1 && large[SHARE_AT] == 1);
        assert_true(large[PPL_AT] == 1 && large[MASS_AT] == 1 && large[PRESSINGS_AT] == 0);
        assert_true(small[KL_AT] > 0 && small[SHARE_AT] < 1 && small[MASS_AT] < 1);
        assert_true(small[FIRST_AT] < large[FIRST_AT]);
        assert_true(i < 2 ? small[PRESSINGS_AT] == 1 : small[PRESSINGS_AT] > 1);
    }

    /* all is there: nothing is measured again, the tables are the same to the byte */
    assert_int_equal(run(tasks), 0);
    read_file(&csv[1], "out/kv.csv");
    read_file(&md[1], "out/kv.md");
    assert_string_equal(buf_str(&csv[0]), buf_str(&csv[1]));
    assert_string_equal(buf_str(&md[0]), buf_str(&md[1]));

    /* half of it, and a line cut short: the rest is measured again, all but the times the same */
    assert_int_equal(file_write_atomic(in_root("out/kv.jsonl"), log.data, log.len / 2, &e), 0);
    assert_int_equal(run(tasks), 0);
    read_file(&csv[2], "out/kv.csv");
    cut_times(&csv[1]);
    cut_times(&csv[2]);
    assert_string_equal(buf_str(&csv[1]), buf_str(&csv[2]));
    for (int i = 0; i < 3; i++)
        buf_free(&csv[i]);
    buf_free(&md[0]);
    buf_free(&md[1]);
    buf_free(&log);
}

/* Every task makes cases that fit, whatever the model answers. */
static void makes_all_tasks(void **state)
{
    (void)state;
    struct session s = { 0 };
    struct kv_maker m;
    struct kv_case c = { 0 };
    struct err e;
    struct model_options o = { .weights = "auto" };
    assert_int_equal(be_open(&s.be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    assert_int_equal(model_open(&s.model, in_root("model"), &o, s.be, &e), 0);
    assert_int_equal(kv_maker_open(&m, s.model, in_root("text.txt"), 500, 0, &e), 0);
    assert_int_equal(m.run, s.model->config.ctx_train);
    for (int f = 0; kv_families[f] != NULL; f++)
        for (const struct kv_task *t = kv_families[f]; t->name != NULL; t++)
            for (int i = 0; i < 3; i++) {
                kv_maker_seed(&m, 1, t->name, i);
                if (t->make(&m, &c, &e) < 0)
                    fail_msg("%s: %s", t->name, e.text);
                int question = c.question1 - c.question0;
                assert_int_equal(c.prompt.n - question, t->kind == KV_LONG ? m.run / 8 : 500);
                assert_true(question == 0 || c.question1 == c.prompt.n);
                assert_true(c.n_answers >= (t->kind != KV_CHOICE) && c.n_answers <= KV_ANSWERS);
                int judged = 0;
                for (int k = 1; k < c.n_probe; k++)
                    judged += c.answer[k] != 0;
                assert_int_equal(c.answer[0], 0);
                if (t->kind == KV_LONG)
                    assert_int_equal(judged, m.run - m.run / 8 - 1);
                else if (t->kind == KV_CHOICE)
                    assert_true(judged == 0 && c.n_probe > 0);
                else
                    assert_true(judged > 0 && judged <= KV_JUDGED);
                assert_ptr_equal(kv_task_find(t->name), t);
            }
    const struct kv_task *stream = kv_task_find("stream"); /* runs of 512 tokens: 128 are enough */
    assert_int_equal(kv_task_samples(stream, &m, 200), 128);
    assert_int_equal(kv_task_samples(stream, &m, 3), 3);
    assert_int_equal(kv_task_samples(kv_task_find("continue"), &m, 200), 200);
    kv_maker_close(&m);
    assert_int_equal(kv_maker_open(&m, s.model, in_root("text.txt"), 500, 7, &e), 0);
    assert_int_equal(stream->make(&m, &c, &e), ERR_INVALID); /* an eighth of it is no prompt */
    kv_maker_close(&m);
    assert_int_equal(kv_maker_open(&m, s.model, in_root("text.txt"), 4000, 100, &e), 0);
    assert_int_equal(m.run, 100);
    kv_maker_seed(&m, 1, "x", 0);
    assert_int_equal(kv_maker_context(&m, NULL, 0, &c, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "too short"));
    kv_maker_close(&m);
    tok_ids_free(&c.prompt);
    session_close(&s);
}

/* Scores against the plain formulas, for two caches that have nothing to do with each other. */
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
    struct model_options o = { .weights = "auto" };
    const float *x;
    assert_int_equal(be_open(&s.be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    assert_int_equal(model_open(&s.model, in_root("model"), &o, s.be, &e), 0);
    int vocab = s.model->config.vocab;
    assert_int_equal(runner_open(&r, s.model, KV_F32, 2, 128, 64, 64, &e), 0);
    for (int i = 0; i < FED; i++) { /* judged: 6 to 9 and 12 to 15 */
        c.probe[i] = 300 + 7 * i;
        c.answer[i] = (uint8_t)(i >= 6 && i < 10 ? 1 : i >= 12 && i < 16 ? 2 : 0);
    }
    float *logits = mem_alloc((size_t)2 * FED * (size_t)vocab * sizeof *logits);
    for (int k = 0; k < 2; k++) {
        fill_seq(&r, k, k == 0 ? 10 : 260);
        assert_int_equal(runner_append(&r, k, c.probe, FED, FED, &x, &e), 0);
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
    assert_true(fabs(other.kl - kl / ROWS) < 1e-4 * (1 + kl));
    assert_true(fabs(other.nll - nll / ROWS) < 1e-4);
    assert_true(fabs(other.nll_full - nll_full / ROWS) < 1e-4);
    assert_true(fabs(other.top1 - (double)same / ROWS) < 1e-12);
    assert_true(other.kl95 >= other.kl);
    assert_true(whole.first == ROWS && other.first == first);
    assert_true(other.pressings == 0 && other.mass == 1 && other.bytes > 0);
    mem_free(logits);
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
    struct model_options o = { .weights = "auto" };
    assert_int_equal(be_open(&b->s.be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    assert_int_equal(model_open(&b->s.model, in_root("model"), &o, b->s.be, &e), 0);
    assert_int_equal(kv_maker_open(&b->m, b->s.model, in_root("text.txt"), 200, 0, &e), 0);
    assert_int_equal(
        runner_open_kv(&b->r, b->s.model, KV_F32, 2, 512, KV_JUDGED, KV_JUDGED, RUNNER_SAMPLES, &e),
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
    struct kv_options o = { .policy = some_policy(), .budget = KV_BUDGET_MIN };
    kv_maker_seed(&b->m, 1, t->name, sample);
    assert_int_equal(t->make(&b->m, &b->c, &e), 0);
    assert_int_equal(runner_begin(&b->r, 0, &o, b->c.prompt.n, &e), 0);
    assert_int_equal(runner_prefill(&b->r, 0, b->c.prompt.id, b->c.prompt.n, &e), 0);
}

/* A copy of it in sequence 1, to be pressed to this budget; 0: the whole cache. */
static void fork_sample(struct bench *b, int budget)
{
    struct err e;
    struct kv_options o = { .policy = budget > 0 ? some_policy() : NULL, .budget = budget };
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

static void refuses_wrong_use(void **state)
{
    (void)state;
    const char *no_model[] = { "kv" };
    assert_int_equal(eval_kv(1, (char **)(uintptr_t)no_model), 2);
    assert_int_equal(run("--tasks=nosuch"), 1);
}

static int set_up(void **state)
{
    (void)state;
    struct err e;
    snprintf(root, sizeof root, "/tmp/wring-test-eval-kv.XXXXXX");
    if (mkdtemp(root) == NULL)
        return -1;
    write_text();
    return import_llama2c("tests/golden/models/stories260K.bin", "tests/golden/models/tok512.bin",
                          in_root("model"), &e);
}

static int tear_down(void **state)
{
    (void)state;
    struct mem_stats m;
    fetch_remove(root);
    mem_stats(&m);
    return m.blocks == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_and_goes_on), cmocka_unit_test(makes_all_tasks),
        cmocka_unit_test(scores),           cmocka_unit_test(finds_the_first_divergence),
        cmocka_unit_test(follows_a_stream), cmocka_unit_test(refuses_wrong_use),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
