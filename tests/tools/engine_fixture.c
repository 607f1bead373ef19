#include "tests/tools/engine_fixture.h"

#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/engine/engine_internal.h"

struct toy toy;

int open_toy(void **state)
{
    (void)state;
    struct err e = { 0 };
    if (toy_open(&toy, 1, NULL, 2, NULL, &e) < 0) {
        print_error("%s\n", e.text);
        return -1;
    }
    return 0;
}

int close_toy(void **state)
{
    (void)state;
    toy_close(&toy);
    return 0;
}

void on_event(struct job *j, const struct job_event *ev)
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
        while (r->gate != NULL && r->n_tokens == 0 && sem_wait(r->gate) < 0)
            ;
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

void make_run(struct run *r, int kind, int n_prompt, int max_tokens)
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

void make_pressed(struct run *r, int i, int kind, int n_prompt, int max_tokens)
{
    make_run(r, kind, n_prompt, max_tokens);
    r->job.kv = (struct kv_options){
        .policy = pressing(i), .budget = PRESS_BUDGET, .tail = PRESS_TAIL, .window = 8, .seed = 7
    };
}

struct engine *open_engine(const struct engine_config *c)
{
    struct engine *en;
    struct err e = { 0 };
    if (engine_open(&en, toy.model, c, &e) < 0)
        fail_msg("%s", e.text);
    return en;
}

int try_submit(struct engine *en, struct run *r, struct err *e)
{
    struct job *j = &r->job;
    return engine_submit(en, &j, 1, e);
}

void submit(struct engine *en, struct run *r)
{
    struct err e = { 0 };
    if (try_submit(en, r, &e) < 0)
        fail_msg("%s", e.text);
}

void submit_all(struct engine *en, struct run *r, int n)
{
    struct job *job[64];
    struct err e;
    assert_in_range(n, 1, 64);
    for (int i = 0; i < n; i++)
        job[i] = &r[i].job;
    if (engine_submit(en, job, n, &e) < 0)
        fail_msg("%s", e.text);
}

void wait_done(struct run *r)
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

void check_clean(struct engine *en)
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

void assert_same(const struct run *a, const struct run *b)
{
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_int_equal(a->n_scored, b->n_scored);
    assert_int_equal(a->finish, b->finish);
    assert_string_equal(a->text, b->text);
    assert_same_results(a->result, b->result, a->n_tokens);
    assert_same_results(a->score, b->score, a->n_scored);
}

uint64_t histogram_count(const struct histogram *h)
{
    uint64_t n = 0;
    for (int i = 0; i <= h->n; i++)
        n += atomic_load(&h->count[i]);
    return n;
}

void run_one(const struct engine_config *c, struct run *r)
{
    struct engine *en = open_engine(c);
    submit(en, r);
    wait_done(r);
    check_clean(en);
    engine_close(en);
}
