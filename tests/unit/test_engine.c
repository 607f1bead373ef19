/* The engine with a toy model: how jobs end, what is refused, memory and numbers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/machine.h"
#include "server/base/mem.h"
#include "server/engine/engine_internal.h"
#include "server/engine/stats.h"
#include "tests/tools/engine_fixture.h"

static const struct engine_config plain = { .max_seqs = 8, .kv_tokens = 2048, .kv_type = KV_F32 };

/* ---- endings ------------------------------------------------------------------------------------------------- */

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
    assert_int_equal(try_submit(en, &r, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, "101"));
    assert_non_null(strstr(e.text, "100"));
    make_run(&r, 0, 100, 1);
    assert_int_equal(try_submit(en, &r, &e), ERR_LIMIT);
    r.job.n_prompt = 0;
    assert_int_equal(try_submit(en, &r, &e), ERR_INVALID);
    make_run(&r, 0, 10, 5);
    r.prompt[7] = TOY_VOCAB;
    assert_int_equal(try_submit(en, &r, &e), ERR_INVALID);
    r.prompt[7] = -1;
    assert_int_equal(try_submit(en, &r, &e), ERR_INVALID);
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

/* What is only mapped would be missed under load. */
static void test_pool_beyond_memory(void **state)
{
    (void)state;
    struct engine_config c = { .kv_type = KV_F16, .kv_bytes = (size_t)1 << 47 };
    char there[32];
    struct engine *en;
    struct err e;
    snprintf(there, sizeof there, "%lld", (long long)machine_memory(NULL));
    assert_int_equal(engine_open(&en, toy.model, &c, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "a KV pool of "));
    assert_non_null(strstr(e.text, there));
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
    assert_int_equal(en->max_out,
                     64 + 64); /* prompts are scored beside a token of every sequence */
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

/* ---- equal prompts ----------------------------------------------------------------------------------------- */

enum { N_CHOICES = 4, CHOICE_TOKENS = 60 };

/* Choices of one prompt: they differ in their seed. */
static void make_choices(struct run *r, int n_prompt)
{
    for (int i = 0; i < N_CHOICES; i++) {
        make_run(&r[i], 1, n_prompt, CHOICE_TOKENS);
        r[i].job.sample.seed = (uint64_t)(100 + i);
        r[i].job.prompt = r[0].prompt;
    }
}

/* Submits all of them, ends the first `cancelled` at once, and waits. */
static void run_choices(struct engine *en, struct run *r, int cancelled)
{
    for (int i = 0; i < N_CHOICES; i++)
        submit(en, &r[i]);
    for (int i = 0; i < cancelled; i++)
        engine_cancel(en, &r[i].job);
    for (int i = 0; i < N_CHOICES; i++)
        wait_done(&r[i]);
    check_clean(en);
}

/* The prompt goes through the model once, in many steps, and its pages are there once; every answer is the one that the
 * choice gets alone. */
static void test_choices(void **state)
{
    (void)state;
    static struct run alone[N_CHOICES], r[N_CHOICES];
    enum { N = 1000, SHARED = (N - 1) / KV_PAGE * KV_PAGE };
    struct engine_config c = plain;
    c.kv_tokens = 4096;
    make_choices(alone, N);
    for (int i = 0; i < N_CHOICES; i++)
        run_one(&c, &alone[i]);
    c.prefix_cache = true;
    c.max_batch = 64;
    struct engine *en = open_engine(&c);
    const struct engine_stats *s = engine_stats(en);
    make_choices(r, N);
    run_choices(en, r, 0);
    for (int i = 0; i < N_CHOICES; i++) {
        assert_same(&alone[i], &r[i]);
        assert_int_equal(r[i].usage.cached_tokens, i > 0 ? SHARED : 0);
    }
    assert_int_equal(atomic_load(&s->prefix_hits), (N_CHOICES - 1) * SHARED);
    int rows = N + (N_CHOICES - 1) * (N - SHARED) + N_CHOICES * (CHOICE_TOKENS - 1);
    assert_int_equal(atomic_load(&s->batch_rows.sum_us), (uint64_t)rows * 1000000);
    engine_close(en);
    /* the first one ends in the middle of the prompt, or before: another goes on from there */
    for (int cancelled = 1; cancelled < N_CHOICES; cancelled++) {
        en = open_engine(&c);
        make_choices(r, N);
        run_choices(en, r, cancelled);
        for (int i = cancelled; i < N_CHOICES; i++) {
            assert_same(&alone[i], &r[i]);
            assert_true(i == cancelled || r[i].usage.cached_tokens == SHARED);
        }
        engine_close(en);
    }
}

/* In a pool that is too small for all answers the youngest make room, again and again, also in the prompt. */
static void test_choices_preempted(void **state)
{
    (void)state;
    static struct run alone[N_CHOICES], r[2 * N_CHOICES];
    struct engine_config c = plain;
    make_choices(alone, 400);
    for (int i = 0; i < N_CHOICES; i++)
        run_one(&c, &alone[i]);
    c.prefix_cache = true;
    c.max_batch = 16;
    c.kv_tokens = 512;
    struct engine *en = open_engine(&c);
    make_choices(r, 400);
    make_choices(r + N_CHOICES, 400);
    submit_all(en, r, 2 * N_CHOICES);
    for (int i = 0; i < 2 * N_CHOICES; i++) {
        wait_done(&r[i]);
        assert_same(&alone[i % N_CHOICES], &r[i]);
    }
    check_clean(en);
    assert_true(atomic_load(&engine_stats(en)->preemptions) > 0);
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
    /* the last to come: while it decodes, nobody is admitted */
    assert_true(r[5].calls_early > 0);
    assert_int_equal(r[5].calls_early, r[5].calls_late);
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
    struct histogram h = s->kv_mass;
    histogram_observe(&h, NAN);
    histogram_observe(&h, .5);
    assert_int_equal(histogram_count(&h), 1);
    assert_int_equal(atomic_load(&h.sum_us), 500000);
    assert_string_equal(finish_name(FINISH_STOP), "stop");
    assert_string_equal(finish_name(FINISH_CANCELLED), "cancelled");
    /* a prompt whose rows are wanted looks for no prefix */
    make_run(&r[0], 0, 100, 1);
    r[0].job.prompt_logprobs = true;
    submit(en, &r[0]);
    wait_done(&r[0]);
    assert_int_equal(atomic_load(&s->prefix_queries), 500);
    assert_int_equal(atomic_load(&s->prefix_hits), 4 * 96);
    engine_close(en);
}

static struct run sharer;
static bool sharer_lives;

/* On the engine's thread, as the other job's events are. */
static void look_at_sharer(struct job *j, const struct job_event *ev)
{
    if (ev->kind == JOB_PROMPT)
        sharer_lives = sharer.n_done == 0;
    on_event(j, ev);
}

/* Of 64 pages a prompt takes 35; one that begins with the same 34 does not fit beside it, until those are in the index. */
static void test_shares_when_published(void **state)
{
    (void)state;
    enum { SAME = 34 * KV_PAGE, LONG = SAME + 12 };
    static struct run beside, r;
    struct engine_config c = plain;
    sem_t all_there;
    c.prefix_cache = true;
    c.max_batch = 64;
    struct engine *en = open_engine(&c);
    sem_init(&all_there, 0, 0);
    make_run(&beside, 0, 20, 600);
    beside.gate = &all_there;
    make_run(&sharer, 1, LONG, 40);
    make_run(&r, 2, LONG, 5);
    memcpy(r.prompt, sharer.prompt, SAME * sizeof *r.prompt);
    r.job.on_event = look_at_sharer;
    submit(en, &beside);
    submit(en, &sharer);
    submit(en, &r);
    sem_post(&all_there);
    wait_done(&r);
    wait_done(&sharer);
    engine_cancel(en, &beside.job);
    wait_done(&beside);
    assert_true(sharer_lives);
    assert_int_equal(r.usage.cached_tokens, SAME);
    assert_int_equal(atomic_load(&engine_stats(en)->preemptions), 0);
    check_clean(en);
    sem_destroy(&all_there);
    engine_close(en);
}

static struct run scored;
static int n_scored_at_end;

static void look_at_scored(struct job *j, const struct job_event *ev)
{
    if (ev->kind == JOB_DONE)
        n_scored_at_end = scored.n_scored;
    on_event(j, ev);
}

/* One waits for its prompt, which takes many steps where every row of it is scored; who comes behind does not. */
static void test_passes_who_waits(void **state)
{
    (void)state;
    static struct run beside, same, r;
    struct engine_config c = plain;
    sem_t all_there;
    c.prefix_cache = true;
    struct engine *en = open_engine(&c);
    sem_init(&all_there, 0, 0);
    make_run(&beside, 0, 20, 600);
    beside.gate = &all_there;
    make_run(&scored, 1, 1000, 0);
    scored.job.prompt_logprobs = true;
    make_run(&same, 1, 1000, 5);
    make_run(&r, 2, 40, 3);
    r.job.on_event = look_at_scored;
    submit(en, &beside);
    submit(en, &scored);
    submit(en, &same);
    submit(en, &r);
    sem_post(&all_there);
    wait_done(&r);
    wait_done(&scored);
    wait_done(&same);
    engine_cancel(en, &beside.job);
    wait_done(&beside);
    assert_in_range(n_scored_at_end, 1, 998);
    assert_int_equal(same.usage.cached_tokens, 999 / KV_PAGE * KV_PAGE);
    check_clean(en);
    sem_destroy(&all_there);
    engine_close(en);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_stops),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_pool_beyond_memory),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_choices_preempted),
        cmocka_unit_test(test_shares_when_published),
        cmocka_unit_test(test_passes_who_waits),
    };
    return cmocka_run_group_tests(tests, open_toy, close_toy);
}
