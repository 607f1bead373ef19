/* The engine with a toy model: a job's tokens and log-probabilities are the same bits whatever else runs, however its prompt
 * is cut, with a prefix hit and after preemption; cancelling leaks nothing; every job ends exactly once. */
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/engine/engine_internal.h"
#include "tests/tools/toy.h"

enum { MAX_EVENTS = 700, MAX_TEXT = 8192, MAX_PROMPT = 600 };

static struct toy toy;

/* A job and everything that was said about it. */
struct run {
    struct job job;
    int32_t prompt[MAX_PROMPT];
    struct sample_result result[MAX_EVENTS];
    int n_tokens, n_scored, n_prompt_events, n_done;
    struct sample_result score[MAX_PROMPT];
    char text[MAX_TEXT];
    size_t text_len;
    enum finish_reason finish;
    int code;
    struct job_usage usage;
    uint64_t calls_early, calls_late; /* allocations ever made, at two tokens of the answer */
    struct engine *cancel_in;         /* cancel itself at this many tokens */
    int cancel_at;
    sem_t done;
};

static void on_event(struct job *j, const struct job_event *ev)
{
    struct run *r = j->user;
    struct mem_stats m;
    assert_int_equal(r->n_done, 0);
    if (ev->kind == JOB_PROMPT) {
        assert_int_equal(r->n_tokens, 0);
        r->n_prompt_events++;
        if (ev->has_logprob)
            r->score[r->n_scored++] = *ev->result;
    } else if (ev->kind == JOB_TOKEN) {
        assert_int_equal(ev->id, ev->result->id);
        r->result[r->n_tokens++] = *ev->result;
        mem_stats(&m);
        if (r->n_tokens == 20)
            r->calls_early = m.calls;
        if (r->n_tokens == 90)
            r->calls_late = m.calls;
    }
    if (r->cancel_in != NULL && r->n_tokens + r->n_scored >= r->cancel_at)
        engine_cancel(r->cancel_in, j);
    assert_true(r->text_len + ev->text_len < MAX_TEXT);
    memcpy(r->text + r->text_len, ev->text, ev->text_len);
    r->text_len += ev->text_len;
    r->text[r->text_len] = 0;
    if (ev->kind != JOB_DONE)
        return;
    r->n_done++;
    r->finish = ev->finish;
    r->usage = *ev->usage;
    r->code = ev->err != NULL ? ev->err->code : 0;
    sem_post(&r->done);
}

static uint64_t rng_state;

static uint32_t rnd(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

/* Kinds of jobs: greedy, drawn, with penalties. */
static void make_run(struct run *r, int kind, int n_prompt, int max_tokens)
{
    memset(r, 0, sizeof *r);
    sem_init(&r->done, 0, 0);
    rng_state = (uint64_t)(kind * 1000 + n_prompt);
    for (int i = 0; i < n_prompt; i++)
        r->prompt[i] = (int32_t)rnd(TOY_VOCAB);
    r->job = (struct job){ .prompt = r->prompt,
                           .n_prompt = n_prompt,
                           .max_tokens = max_tokens,
                           .sample = { .temperature = kind % 3 > 0 ? 1.0f : 0.0f,
                                       .top_p = kind % 3 == 1 ? 0.9f : 1.0f,
                                       .repetition_penalty = kind % 3 == 2 ? 1.2f : 1.0f,
                                       .frequency_penalty = kind % 3 == 2 ? 0.3f : 0.0f,
                                       .seed = (uint64_t)kind,
                                       .n_logprobs = SAMPLE_MAX_LOGPROBS },
                           .ignore_eos = true,
                           .on_event = on_event,
                           .user = r };
}

static struct engine *open_engine(const struct engine_config *c)
{
    struct engine *en;
    struct err e = { 0 };
    if (engine_open(&en, toy.model, c, &e) < 0)
        fail_msg("%s", e.text);
    return en;
}

static void submit(struct engine *en, struct run *r)
{
    struct err e = { 0 };
    if (engine_submit(en, &r->job, &e) < 0)
        fail_msg("%s", e.text);
}

static void wait_done(struct run *r)
{
    while (sem_wait(&r->done) < 0)
        ;
    assert_int_equal(r->n_done, 1);
    sem_destroy(&r->done);
}

static void wait_idle(const struct engine *en)
{
    while (!engine_idle(en))
        usleep(100);
}

/* Nothing runs, nothing waits, and the pages add up. */
static void check_clean(struct engine *en)
{
    wait_idle(en);
    const struct engine_stats *s = engine_stats(en);
    assert_int_equal(atomic_load(&s->waiting), 0);
    assert_int_equal(atomic_load(&s->running), 0);
    assert_int_equal(atomic_load(&s->kv_used), 0);
    assert_true(kv_pool_check(en->pool));
    assert_int_equal(kv_pool_available(en->pool), atomic_load(&s->kv_pages));
}

static void assert_same_results(const struct sample_result *a, const struct sample_result *b, int n)
{
    for (int i = 0; i < n; i++) {
        assert_int_equal(a[i].id, b[i].id);
        assert_int_equal(a[i].n_top, b[i].n_top);
        assert_memory_equal(&a[i].logprob, &b[i].logprob, sizeof a[i].logprob);
        assert_memory_equal(a[i].top, b[i].top, (size_t)a[i].n_top * sizeof a[i].top[0]);
    }
}

static void assert_same(const struct run *a, const struct run *b)
{
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_int_equal(a->n_scored, b->n_scored);
    assert_int_equal(a->finish, b->finish);
    assert_string_equal(a->text, b->text);
    assert_same_results(a->result, b->result, a->n_tokens);
    assert_same_results(a->score, b->score, a->n_scored);
}

/* ---- the same bits ------------------------------------------------------------------------------------------- */

enum { N_RUNS = 9 };
static struct run alone[N_RUNS], other[N_RUNS];
static int n_new = 100; /* tokens each of them makes */

static void make_jobs(struct run *r)
{
    static const int length[N_RUNS] = { 1, 31, 32, 33, 64, 100, 250, 47, 300 };
    for (int i = 0; i < N_RUNS; i++) {
        make_run(&r[i], i, length[i], n_new);
        r[i].job.prompt_logprobs = i == 5 || i == 8;
    }
}

/* All jobs at once under c. */
static void run_together(const struct engine_config *c, uint64_t *preemptions)
{
    struct engine *en = open_engine(c);
    make_jobs(other);
    for (int i = 0; i < N_RUNS; i++)
        submit(en, &other[i]);
    for (int i = 0; i < N_RUNS; i++)
        wait_done(&other[i]);
    check_clean(en);
    for (int i = 0; i < N_RUNS; i++)
        assert_same(&alone[i], &other[i]);
    *preemptions = atomic_load(&engine_stats(en)->preemptions);
    engine_close(en);
}

static void run_alone(const struct engine_config *c)
{
    struct engine *en = open_engine(c);
    make_jobs(alone);
    for (int i = 0; i < N_RUNS; i++) {
        submit(en, &alone[i]);
        wait_done(&alone[i]);
        assert_int_equal(alone[i].finish, FINISH_LENGTH);
        assert_int_equal(alone[i].n_tokens, n_new);
        assert_int_equal(alone[i].usage.completion_tokens, n_new);
        assert_int_equal(alone[i].usage.cached_tokens, 0);
        assert_int_equal(alone[i].n_prompt_events,
                         alone[i].job.prompt_logprobs ? alone[i].job.n_prompt : 1);
        assert_int_equal(alone[i].n_scored,
                         alone[i].job.prompt_logprobs ? alone[i].job.n_prompt - 1 : 0);
    }
    check_clean(en);
    engine_close(en);
}

/* The second time every full page of prompt and answer is in the index. */
static void run_cached(const struct engine_config *c)
{
    struct engine *en = open_engine(c);
    for (int round = 0; round < 2; round++) {
        make_jobs(other);
        for (int i = 0; i < N_RUNS; i++) {
            submit(en, &other[i]);
            wait_done(&other[i]);
            assert_same(&alone[i], &other[i]);
            int n = other[i].job.n_prompt;
            bool hit = round == 1 && !other[i].job.prompt_logprobs;
            assert_int_equal(other[i].usage.cached_tokens, hit ? (n - 1) / KV_PAGE * KV_PAGE : 0);
        }
    }
    assert_true(atomic_load(&engine_stats(en)->prefix_hits) > 0);
    check_clean(en);
    engine_close(en);
}

static void same_bits(enum kv_type type)
{
    const struct engine_config base = { .max_seqs = 16, .kv_tokens = 8192, .kv_type = type };
    struct engine_config c = base;
    uint64_t preemptions;
    run_alone(&c);
    run_together(&c, &preemptions);
    assert_int_equal(preemptions, 0);
    c.max_batch = 17;
    run_together(&c, &preemptions);
    c.max_seqs = 3;
    c.max_batch = 37;
    c.prefix_cache = true;
    run_together(&c, &preemptions);
    c = base;
    c.kv_tokens = 544; /* hardly more than one long job */
    run_together(&c, &preemptions);
    assert_true(preemptions > 0);
    c.prefix_cache = true;
    c.max_batch = 64;
    run_together(&c, &preemptions);
    c = base;
    c.prefix_cache = true;
    run_cached(&c);
    c.max_batch = 5;
    c.max_seqs = 2;
    run_cached(&c);
}

static void test_same_bits_f32(void **state)
{
    (void)state;
    same_bits(KV_F32);
}

static void test_same_bits_f16(void **state)
{
    (void)state;
    same_bits(KV_F16);
}

static void test_same_bits_bf16(void **state)
{
    (void)state;
    same_bits(KV_BF16);
}

/* Every codec's kernels, with exact and with rounded inputs, at every level this machine has. */
static void test_same_bits_codecs(void **state)
{
    (void)state;
    static const char *const weights[] = { "f32", "bf16", "q8", "q4" };
    struct toy was = toy;
    n_new = 25;
    for (int isa = CPU_REF; isa <= (int)cpu_isa_best(); isa++) {
        for (int i = 0; i < 8; i++) {
            const struct model_options o = { .weights = weights[i % 4], .int8 = i >= 4 };
            struct engine_config c = { .max_seqs = 16, .kv_tokens = 8192, .kv_type = KV_BF16 };
            struct err e = { 0 };
            uint64_t preemptions;
            if (toy_open(&toy, 2, cpu_isa_name((enum cpu_isa)isa), 2, &o, &e) < 0)
                fail_msg("%s", e.text);
            run_alone(&c);
            run_together(&c, &preemptions);
            c.max_batch = 19;
            c.kv_tokens = 544;
            c.prefix_cache = true;
            run_together(&c, &preemptions);
            toy_close(&toy);
        }
    }
    toy = was;
    n_new = 100;
}

/* ---- endings ------------------------------------------------------------------------------------------------- */

static const struct engine_config plain = { .max_seqs = 8, .kv_tokens = 2048, .kv_type = KV_F32 };

static void run_one(const struct engine_config *c, struct run *r)
{
    struct engine *en = open_engine(c);
    submit(en, r);
    wait_done(r);
    check_clean(en);
    engine_close(en);
}

static void test_text(void **state)
{
    (void)state;
    static struct run r;
    struct detok d;
    struct buf b;
    make_run(&r, 1, 20, 300);
    run_one(&plain, &r);
    detok_init(&d);
    buf_init(&b, MAX_TEXT);
    for (int i = 0; i < r.n_tokens; i++)
        assert_int_equal(detok_push(&d, toy.model->tok, r.result[i].id, &b), 0);
    assert_int_equal(detok_flush(&d, &b), 0);
    assert_string_equal(buf_str(&b), r.text);
    buf_free(&b);
}

static void test_stops(void **state)
{
    (void)state;
    static struct run r, s;
    make_run(&r, 1, 20, 100);
    run_one(&plain, &r);
    assert_true(r.text_len > 20);
    /* a string */
    char word[8] = { 0 };
    memcpy(word, r.text + r.text_len / 2, 4);
    const char *stop[] = { "not in there at all", word };
    make_run(&s, 1, 20, 100);
    s.job.stop = stop;
    s.job.n_stop = 2;
    run_one(&plain, &s);
    assert_int_equal(s.finish, FINISH_STOP);
    size_t at = (size_t)(strstr(r.text, word) - r.text);
    assert_int_equal(s.text_len, at);
    assert_memory_equal(s.text, r.text, at);
    /* an id */
    int32_t id = r.result[50].id;
    int n = 0;
    while (r.result[n].id != id)
        n++;
    make_run(&s, 1, 20, 100);
    s.job.stop_id = &id;
    s.job.n_stop_id = 1;
    run_one(&plain, &s);
    assert_int_equal(s.finish, FINISH_STOP);
    assert_int_equal(s.n_tokens, n);
    assert_int_equal(s.usage.completion_tokens, n + 1);
    /* the end of text, made certain by a bias */
    struct logit_bias bias = { tok_eos(toy.model->tok), 1000 };
    make_run(&s, 0, 20, 100);
    s.job.sample.bias = &bias;
    s.job.sample.n_bias = 1;
    s.job.ignore_eos = false;
    run_one(&plain, &s);
    assert_int_equal(s.finish, FINISH_STOP);
    assert_int_equal(s.n_tokens, 0);
    assert_int_equal(s.text_len, 0);
    make_run(&s, 0, 20, 10);
    s.job.sample.bias = &bias;
    s.job.sample.n_bias = 1;
    run_one(&plain, &s);
    assert_int_equal(s.finish, FINISH_LENGTH);
    assert_int_equal(s.n_tokens, 10);
}

static void test_lengths(void **state)
{
    (void)state;
    static struct run r;
    struct engine_config c = plain;
    /* the prompt only */
    make_run(&r, 0, 70, 0);
    run_one(&c, &r);
    assert_int_equal(r.finish, FINISH_LENGTH);
    assert_int_equal(r.n_tokens, 0);
    assert_int_equal(r.n_prompt_events, 1);
    make_run(&r, 0, 70, 0);
    r.job.prompt_logprobs = true;
    run_one(&c, &r);
    assert_int_equal(r.n_prompt_events, 70);
    assert_int_equal(r.n_scored, 69);
    for (int i = 0; i < 69; i++)
        assert_int_equal(r.score[i].id, r.prompt[i + 1]);
    make_run(&r, 0, 1, 0);
    r.job.prompt_logprobs = true;
    run_one(&c, &r);
    assert_int_equal(r.n_prompt_events, 1);
    assert_int_equal(r.n_scored, 0);
    /* a full context */
    c.ctx = 101;
    make_run(&r, 0, 50, -1);
    run_one(&c, &r);
    assert_int_equal(r.finish, FINISH_LENGTH);
    assert_int_equal(r.usage.completion_tokens, 51);
    make_run(&r, 0, 50, 1000);
    run_one(&c, &r);
    assert_int_equal(r.usage.completion_tokens, 51);
    make_run(&r, 0, 101, 0);
    run_one(&c, &r);
    assert_int_equal(r.usage.prompt_tokens, 101);
    assert_int_equal(r.usage.kv_full_bytes, 101 * (size_t)TOY_LAYERS * 2 * TOY_DIM / TOY_HEADS *
                                                TOY_KV_HEADS * sizeof(float));
    assert_true(r.usage.kv_bytes >= r.usage.kv_full_bytes);
}

static void test_refusals(void **state)
{
    (void)state;
    static struct run r;
    struct err e;
    struct engine_config c = plain;
    c.ctx = 100;
    struct engine *en = open_engine(&c);
    assert_int_equal(engine_ctx(en), 100);
    make_run(&r, 0, 101, 0);
    assert_int_equal(engine_submit(en, &r.job, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, "101"));
    assert_non_null(strstr(e.text, "100"));
    make_run(&r, 0, 100, 1);
    assert_int_equal(engine_submit(en, &r.job, &e), ERR_LIMIT);
    r.job.n_prompt = 0;
    assert_int_equal(engine_submit(en, &r.job, &e), ERR_INVALID);
    make_run(&r, 0, 10, 5);
    r.prompt[7] = TOY_VOCAB;
    assert_int_equal(engine_submit(en, &r.job, &e), ERR_INVALID);
    r.prompt[7] = -1;
    assert_int_equal(engine_submit(en, &r.job, &e), ERR_INVALID);
    assert_true(engine_idle(en));
    make_run(&r, 0, 10, 5);
    r.job.sample.top_p = 0;
    submit(en, &r);
    wait_done(&r);
    assert_int_equal(r.finish, FINISH_ERROR);
    assert_int_equal(r.code, ERR_INVALID);
    check_clean(en);
    engine_close(en);
    engine_close(NULL);
    c.kv_tokens = 64;
    assert_int_equal(engine_open(&en, toy.model, &c, &e), ERR_INVALID);
    c.kv_tokens = -1;
    assert_int_equal(engine_open(&en, toy.model, &c, &e), ERR_INVALID);
}

static void test_settings(void **state)
{
    (void)state;
    struct engine *en = open_engine(&(struct engine_config){ .kv_type = KV_F16 });
    const struct engine_config *c = engine_settings(en);
    assert_int_equal(c->ctx, TOY_CTX);
    assert_int_equal(c->kv_tokens, 4 * TOY_CTX);
    assert_int_equal(c->max_seqs, 64);
    assert_int_equal(c->max_batch, 512);
    assert_int_equal(c->max_queue, 1024);
    struct table *t;
    assert_int_equal(engine_plan(en, &t), 0);
    table_close(t);
    size_t bytes = c->kv_bytes;
    engine_close(en);
    /* the same pool by bytes; a pool smaller than the model's context bounds it */
    en = open_engine(&(struct engine_config){ .kv_type = KV_F16, .kv_bytes = bytes + 5 });
    assert_int_equal(engine_settings(en)->kv_tokens, 4 * TOY_CTX);
    engine_close(en);
    en = open_engine(&(struct engine_config){ .kv_type = KV_F16, .kv_bytes = bytes / 16 });
    assert_int_equal(engine_ctx(en), TOY_CTX / 4);
    engine_close(en);
    en = open_engine(&(struct engine_config){ .max_seqs = 100, .max_batch = 7, .kv_tokens = 33 });
    assert_int_equal(engine_settings(en)->max_batch, 100);
    assert_int_equal(engine_ctx(en), 64);
    engine_close(en);
}

/* ---- policies ------------------------------------------------------------------------------------------------ */

static int n_compacted, fail_layer;
static struct seq_seen {
    int n_tokens, layer;
} compacted[64];

static int fake_compact(struct kv_seq *s, struct kv_pool *p, struct be *be, int layer,
                        struct err *e)
{
    (void)p;
    (void)be;
    if (layer == fail_layer)
        return err_set(e, ERR_LIMIT, "layer %d cannot be compacted", layer);
    compacted[n_compacted++ % 64] = (struct seq_seen){ s->n_tokens, layer };
    return 0;
}

/* A policy that compacts sees the prompt alone, whole, once a layer, also after a preemption, and shares nothing. */
static void test_policy(void **state)
{
    (void)state;
    static const struct kv_policy fake = { .name = "fake", .compact = fake_compact };
    static struct run r[3];
    struct engine_config c = plain;
    c.kv_tokens = 256;
    c.prefix_cache = true;
    struct engine *en = open_engine(&c);
    n_compacted = 0;
    fail_layer = -1;
    int preemptions = 0;
    for (int i = 0; i < 3; i++) {
        make_run(&r[i], i, 70, 100);
        r[i].job.policy = &fake;
        submit(en, &r[i]);
    }
    for (int i = 0; i < 3; i++) {
        wait_done(&r[i]);
        assert_int_equal(r[i].finish, FINISH_LENGTH);
        assert_int_equal(r[i].usage.cached_tokens, 0);
        assert_int_equal(r[i].n_prompt_events, 1);
        preemptions += r[i].usage.preemptions;
    }
    check_clean(en);
    assert_int_equal(atomic_load(&engine_stats(en)->kv_cached), 0);
    assert_true(preemptions > 0);
    assert_true(n_compacted >= 3 * TOY_LAYERS && n_compacted <= (3 + preemptions) * TOY_LAYERS);
    for (int i = 0; i < n_compacted && i < 64; i++) {
        assert_int_equal(compacted[i].n_tokens, 70);
        assert_int_equal(compacted[i].layer, i % TOY_LAYERS);
    }
    fail_layer = 1;
    make_run(&r[0], 0, 70, 100);
    r[0].job.policy = &fake;
    submit(en, &r[0]);
    wait_done(&r[0]);
    assert_int_equal(r[0].finish, FINISH_ERROR);
    assert_int_equal(r[0].code, ERR_LIMIT);
    assert_int_equal(r[0].n_tokens, 0);
    check_clean(en);
    engine_close(en);
}

/* ---- cancelling, queueing, draining -------------------------------------------------------------------------- */

static struct be_ops slow_ops; /* the toy's, with a pause in every step */
static const struct be_ops *fast_ops;
static _Atomic int fail_sync;

static int slow_sync(struct be *be, struct err *e)
{
    usleep(2000);
    if (atomic_load(&fail_sync))
        return err_set(e, ERR_DEVICE, "the device is gone");
    return fast_ops->sync(be, e);
}

static int set_slow(void **state)
{
    (void)state;
    fast_ops = toy.be->ops;
    slow_ops = *fast_ops;
    slow_ops.sync = slow_sync;
    toy.be->ops = &slow_ops;
    return 0;
}

static int set_fast(void **state)
{
    (void)state;
    toy.be->ops = fast_ops;
    atomic_store(&fail_sync, 0);
    return 0;
}

static void test_queue(void **state)
{
    (void)state;
    static struct run r[8];
    struct err e;
    struct engine_config c = plain;
    c.max_seqs = 1;
    c.max_queue = 3;
    struct engine *en = open_engine(&c);
    for (int i = 0; i < 8; i++)
        make_run(&r[i], 0, 10, 1000);
    submit(en, &r[0]);
    while (atomic_load(&engine_stats(en)->running) == 0)
        usleep(100);
    for (int i = 1; i <= 3; i++)
        submit(en, &r[i]);
    assert_int_equal(engine_submit(en, &r[4].job, &e), ERR_BUSY);
    assert_int_equal(atomic_load(&engine_stats(en)->waiting), 3);
    /* a waiting job leaves the queue at once */
    engine_cancel(en, &r[2].job);
    wait_done(&r[2]);
    assert_int_equal(r[2].finish, FINISH_CANCELLED);
    assert_int_equal(r[2].n_tokens, 0);
    submit(en, &r[4]);
    assert_int_equal(engine_submit(en, &r[5].job, &e), ERR_BUSY);
    engine_drain(en);
    engine_cancel(en, &r[0].job);
    engine_cancel(en, &r[1].job);
    wait_done(&r[0]);
    wait_done(&r[1]);
    assert_int_equal(engine_submit(en, &r[6].job, &e), ERR_BUSY);
    assert_false(engine_idle(en));
    /* closing ends the rest */
    engine_close(en);
    wait_done(&r[3]);
    wait_done(&r[4]);
    assert_int_equal(r[3].finish, FINISH_CANCELLED);
    assert_int_equal(r[4].finish, FINISH_CANCELLED);
}

static void test_drain(void **state)
{
    (void)state;
    static struct run r[4];
    struct err e;
    struct engine_config c = plain;
    c.max_seqs = 2;
    struct engine *en = open_engine(&c);
    for (int i = 0; i < 4; i++) {
        make_run(&r[i], i, 40, 20);
        if (i < 3)
            submit(en, &r[i]);
    }
    engine_drain(en);
    assert_int_equal(engine_submit(en, &r[3].job, &e), ERR_BUSY);
    for (int i = 0; i < 3; i++) {
        wait_done(&r[i]);
        assert_int_equal(r[i].finish, FINISH_LENGTH);
    }
    check_clean(en);
    engine_close(en);
}

static void test_device_lost(void **state)
{
    (void)state;
    static struct run r[4];
    struct err e;
    struct engine_config c = plain;
    c.max_seqs = 2;
    struct engine *en = open_engine(&c);
    for (int i = 0; i < 4; i++)
        make_run(&r[i], i, 40, 1000);
    for (int i = 0; i < 3; i++)
        submit(en, &r[i]);
    atomic_store(&fail_sync, 1);
    for (int i = 0; i < 3; i++) {
        wait_done(&r[i]);
        assert_int_equal(r[i].finish, FINISH_ERROR);
        assert_int_equal(r[i].code, ERR_DEVICE);
    }
    assert_int_equal(engine_submit(en, &r[3].job, &e), ERR_DEVICE);
    check_clean(en);
    engine_close(en);
}

/* Hang-ups at every phase: waiting, in the prompt, in the answer, at the last token, while preempted. */
static void test_cancel(void **state)
{
    (void)state;
    static struct run r[24];
    struct engine_config c = plain;
    c.kv_tokens = 640;
    c.max_batch = 24;
    c.prefix_cache = true;
    int counts[FINISH_ERROR + 1] = { 0 };
    struct engine *en = open_engine(&c);
    for (int round = 0; round < 6; round++) {
        for (int i = 0; i < 24; i++) {
            make_run(&r[i], i, 1 + (round * 131 + i * 53) % 300, 60);
            r[i].job.prompt_logprobs = i % 5 == 0;
            r[i].cancel_in = i % 2 == 0 ? en : NULL;
            r[i].cancel_at = (i * 7 + round) % 62;
            submit(en, &r[i]);
        }
        for (int i = 23; i >= 0; i--) {
            if (i % 3 == 0)
                engine_cancel(en, &r[i].job);
            if (i % 6 == 0)
                usleep(1000);
        }
        for (int i = 0; i < 24; i++) {
            wait_done(&r[i]);
            counts[r[i].finish]++;
        }
        check_clean(en);
    }
    assert_true(counts[FINISH_CANCELLED] > 30);
    assert_true(counts[FINISH_LENGTH] > 20);
    for (int f = 0; f <= FINISH_ERROR; f++)
        assert_int_equal(atomic_load(&engine_stats(en)->finished[f]), counts[f]);
    engine_close(en);
}

/* Many jobs from several threads, some cancelled by yet another. */
enum { THREADS = 4, JOBS_EACH = 50 };
struct crowd {
    struct engine *en;
    int id;
};

static void *crowd_main(void *arg)
{
    const struct crowd *me = arg;
    struct run *r = mem_zalloc(1, sizeof *r);
    uint64_t seed = (uint64_t)me->id + 99;
    for (int i = 0; i < JOBS_EACH; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        int n = (int)(seed >> 40) % 120 + 1;
        memset(r, 0, sizeof *r);
        sem_init(&r->done, 0, 0);
        for (int k = 0; k < n; k++)
            r->prompt[k] = (int32_t)((k < 64 ? (uint64_t)k : seed >> 20) % TOY_VOCAB);
        r->job = (struct job){ .prompt = r->prompt,
                               .n_prompt = n,
                               .max_tokens = (int)(seed >> 50) % 30,
                               .sample = { .top_p = 1, .repetition_penalty = 1, .n_logprobs = 0 },
                               .on_event = on_event,
                               .user = r };
        while (engine_submit(me->en, &r->job, NULL) == ERR_BUSY)
            usleep(200);
        if (seed >> 33 & 1) {
            usleep((unsigned)(seed >> 45) % 3000);
            engine_cancel(me->en, &r->job);
        }
        while (sem_wait(&r->done) < 0)
            ;
        sem_destroy(&r->done);
    }
    mem_free(r);
    return NULL;
}

static void test_crowd(void **state)
{
    (void)state;
    struct engine_config c = plain;
    c.kv_tokens = 320;
    c.max_seqs = 3;
    c.max_queue = 2;
    c.prefix_cache = true;
    struct engine *en = open_engine(&c);
    pthread_t thread[THREADS];
    struct crowd crowd[THREADS];
    for (int i = 0; i < THREADS; i++) {
        crowd[i] = (struct crowd){ en, i };
        assert_int_equal(pthread_create(&thread[i], NULL, crowd_main, &crowd[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    check_clean(en);
    uint64_t n = 0;
    for (int f = 0; f <= FINISH_ERROR; f++)
        n += atomic_load(&engine_stats(en)->finished[f]);
    assert_int_equal(n, THREADS * JOBS_EACH);
    assert_int_equal(atomic_load(&engine_stats(en)->finished[FINISH_ERROR]), 0);
    engine_close(en);
}

/* ---- memory and numbers -------------------------------------------------------------------------------------- */

static void test_no_allocation(void **state)
{
    (void)state;
    static struct run r[6];
    static const char *const stop[] = { "never said", "nor this" };
    struct engine_config c = plain;
    c.prefix_cache = true;
    c.kv_tokens = 4096;
    struct engine *en = open_engine(&c);
    for (int i = 0; i < 6; i++) {
        make_run(&r[i], i, 10 + i, 100);
        r[i].job.stop = stop;
        r[i].job.n_stop = 2;
        submit(en, &r[i]);
    }
    for (int i = 0; i < 6; i++)
        wait_done(&r[i]);
    for (int i = 0; i < 6; i++) {
        assert_true(r[i].calls_early > 0);
        assert_int_equal(r[i].calls_early, r[i].calls_late);
    }
    check_clean(en);
    engine_close(en);
}

static void test_no_memory(void **state)
{
    (void)state;
    static struct run r;
    struct mem_stats before, after;
    struct engine *en;
    struct err e;
    mem_stats(&before);
    for (uint64_t n = 1; n < 100; n++) {
        mem_fail_at(n);
        int rc = engine_open(&en, toy.model, &plain, &e);
        mem_fail_at(0);
        if (rc == 0) {
            assert_true(n > 10);
            engine_close(en);
            break;
        }
        assert_int_equal(rc, ERR_NOMEM);
    }
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
    assert_int_equal(before.bytes, after.bytes);
    en = open_engine(&plain);
    for (uint64_t n = 1; n < 100; n++) {
        make_run(&r, 1, 40, 3);
        mem_fail_at(n);
        submit(en, &r);
        wait_done(&r);
        mem_fail_at(0);
        check_clean(en);
        if (r.finish == FINISH_LENGTH) {
            assert_true(n > 5);
            break;
        }
        assert_int_equal(r.finish, FINISH_ERROR);
        assert_int_equal(r.code, ERR_NOMEM);
    }
    engine_close(en);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

static uint64_t histogram_count(const struct histogram *h)
{
    uint64_t n = 0;
    for (int i = 0; i <= h->n; i++)
        n += atomic_load(&h->count[i]);
    return n;
}

static void test_numbers(void **state)
{
    (void)state;
    static struct run r[5];
    struct engine_config c = plain;
    c.prefix_cache = true;
    struct engine *en = open_engine(&c);
    for (int i = 0; i < 5; i++) {
        make_run(&r[i], 0, 100, 30);
        submit(en, &r[i]);
        wait_done(&r[i]);
        assert_true(r[i].usage.prefill_ns > 0 && r[i].usage.decode_ns > 0);
    }
    check_clean(en);
    const struct engine_stats *s = engine_stats(en);
    assert_int_equal(atomic_load(&s->prompt_tokens), 500);
    assert_int_equal(atomic_load(&s->generation_tokens), 150);
    assert_int_equal(atomic_load(&s->prefix_queries), 500);
    assert_int_equal(atomic_load(&s->prefix_hits), 4 * 96);
    assert_int_equal(atomic_load(&s->finished[FINISH_LENGTH]), 5);
    assert_int_equal(atomic_load(&s->steps), 150);
    assert_int_equal(atomic_load(&s->kv_cached), TOY_LAYERS * 4);
    assert_int_equal(histogram_count(&s->ttft), 5);
    assert_int_equal(histogram_count(&s->inter_token), 145);
    assert_int_equal(histogram_count(&s->e2e), 5);
    assert_int_equal(histogram_count(&s->queue_time), 5);
    assert_int_equal(histogram_count(&s->batch_rows), 150);
    assert_int_equal(histogram_count(&s->prompt_len), 5);
    assert_int_equal(atomic_load(&s->output_len.sum_us), 150 * 1000000);
    assert_string_equal(finish_name(FINISH_STOP), "stop");
    assert_string_equal(finish_name(FINISH_CANCELLED), "cancelled");
    engine_close(en);
}

static int open_toy(void **state)
{
    (void)state;
    struct err e = { 0 };
    if (toy_open(&toy, 1, NULL, 2, NULL, &e) < 0) {
        print_error("%s\n", e.text);
        return -1;
    }
    return 0;
}

static int close_toy(void **state)
{
    (void)state;
    toy_close(&toy);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits_f32),
        cmocka_unit_test(test_same_bits_f16),
        cmocka_unit_test(test_same_bits_bf16),
        cmocka_unit_test(test_same_bits_codecs),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_stops),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_policy),
        cmocka_unit_test_setup_teardown(test_queue, set_slow, set_fast),
        cmocka_unit_test_setup_teardown(test_drain, set_slow, set_fast),
        cmocka_unit_test_setup_teardown(test_device_lost, set_slow, set_fast),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_crowd),
        cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests(tests, open_toy, close_toy);
}
