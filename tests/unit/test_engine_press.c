/* Pressed jobs in the engine: what is pressed and how far, how many fit, what is refused, what is told, and that no page is
 * lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/engine/engine_internal.h"
#include "tests/tools/engine_fixture.h"
#include "tests/tools/small.h"

static const struct engine_config plain = {
    .max_seqs = 8, .kv_tokens = 4096, .kv_type = KV_F16, .kv_samples = 4
};
enum { HEADS = TOY_LAYERS * TOY_KV_HEADS };

/* ---- what is pressed, and what is not -------------------------------------------------------------------------- */

/* The first token comes from the whole cache; those after it from what was kept. */
static void test_pressed(void **state)
{
    (void)state;
    static struct run full, r;
    make_run(&full, 0, 400, 50);
    run_one(&plain, &full);
    for (int i = 0; i < n_pressing(); i++) {
        make_pressed(&r, i, 0, 400, 50);
        run_one(&plain, &r);
        assert_int_equal(r.finish, FINISH_LENGTH);
        assert_int_equal(r.result[0].id, full.result[0].id);
        assert_memory_equal(&r.result[0].logprob, &full.result[0].logprob, sizeof(float));
        assert_memory_not_equal(&r.result[1].logprob, &full.result[1].logprob, sizeof(float));
        assert_int_equal(r.usage.kv_budget, PRESS_BUDGET);
        assert_true(r.usage.kv.n_compactions >= 1);
        assert_true(r.usage.kv.kept > 0 && r.usage.kv.kept <= (int64_t)PRESS_BUDGET * HEADS);
        assert_true(r.usage.kv.evicted >= (int64_t)(400 - PRESS_BUDGET) * HEADS);
        assert_true(r.usage.kv_bytes > 0 && r.usage.kv_bytes < r.usage.kv_full_bytes / 2);
        assert_true(r.usage.kv.mass_min >= 0 && r.usage.kv.mass_min <= r.usage.kv.mass_mean);
        assert_true(r.usage.kv.mass_mean <= 1.001f);
    }
    /* a prompt only, with its log-probabilities, is pressed as well */
    make_pressed(&r, 0, 0, 400, 0);
    r.job.prompt_logprobs = true;
    run_one(&plain, &r);
    assert_int_equal(r.finish, FINISH_LENGTH);
    assert_int_equal(r.n_scored, 399);
    assert_int_equal(r.usage.kv.n_compactions, 1);
}

static int most_slots, most_running, n_details;
static struct engine *watched;

/* Looks into the engine at every event, on its own thread. */
static void watch(struct job *j, const struct job_event *ev)
{
    for (int i = 0; i < watched->n_running; i++) {
        const struct seq *s = watched->running[i];
        if (s->job == j && ev->kind == JOB_TOKEN) {
            int slots = kv_seq_slots(&s->kv, watched->pool);
            most_slots = slots > most_slots ? slots : most_slots;
        }
    }
    if (watched->n_running > most_running)
        most_running = watched->n_running;
    on_event(j, ev);
}

/* A long answer is pressed again and again; a head never has more than its budget, the tail and one page. */
static void test_long(void **state)
{
    (void)state;
    static struct run r;
    for (int i = 0; i < n_pressing(); i++) {
        int n_prompt =
            i % 2 == 0 ? 200
                       : PRESS_BUDGET / 2; /* pressed at once, or when the answer has outgrown it */
        make_pressed(&r, i, i, n_prompt, 600);
        r.job.kv.split = KV_SPLIT_UNIFORM;
        r.job.on_event = watch;
        watched = open_engine(&plain);
        most_slots = 0;
        submit(watched, &r);
        wait_done(&r);
        assert_int_equal(r.finish, FINISH_LENGTH);
        assert_true(most_slots > PRESS_BUDGET);
        assert_true(most_slots <= PRESS_BUDGET + PRESS_TAIL + KV_PAGE);
        assert_true(r.usage.kv.n_compactions >= 600 / (PRESS_TAIL + KV_PAGE) - 1);
        check_clean(watched);
        engine_close(watched);
    }
}

/* ---- room ------------------------------------------------------------------------------------------------------ */

/* A pool that holds two whole sequences runs eight and more pressed ones. */
static void test_room(void **state)
{
    (void)state;
    static struct run r[12];
    struct engine_config c = plain;
    c.max_seqs = 12;
    c.kv_tokens = 2 * 1350;
    for (int pressed = 0; pressed < 2; pressed++) {
        watched = open_engine(&c);
        most_running = 0;
        for (int i = 0; i < 12; i++) {
            if (pressed)
                make_pressed(&r[i], i, i, 1200, 150);
            else
                make_run(&r[i], i, 1200, 150);
            r[i].job.on_event = watch;
        }
        submit_all(watched, r, 12);
        for (int i = 0; i < 12; i++) {
            wait_done(&r[i]);
            assert_int_equal(r[i].finish, FINISH_LENGTH);
        }
        if (pressed)
            assert_true(most_running >= 8);
        else
            assert_true(most_running <= 2);
        check_clean(watched);
        engine_close(watched);
    }
}

/* ---- refusals -------------------------------------------------------------------------------------------------- */

static void test_refusals(void **state)
{
    (void)state;
    static struct run r;
    struct err e;
    struct engine_config c = plain;
    struct engine *en = open_engine(&c);
    make_pressed(&r, 0, 0, 100, 5);
    r.job.kv.budget = -1;
    assert_int_equal(try_submit(en, &r, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "budget is -1"));
    make_pressed(&r, 0, 0, 100, 5);
    toy.model->config.window = 64;
    assert_int_equal(try_submit(en, &r, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.text, "sliding window of 64"));
    toy.model->config.window = 0;
    submit(en, &r);
    wait_done(&r);
    assert_int_equal(r.finish, FINISH_LENGTH);
    check_clean(en);
    engine_close(en);
    /* a pool that keeps no queries to score by */
    c.kv_samples = 0;
    en = open_engine(&c);
    for (int i = 0; i < n_pressing(); i++) {
        make_pressed(&r, i, 0, 100, 5);
        assert_int_equal(try_submit(en, &r, &e), ERR_UNSUPPORTED);
        assert_non_null(strstr(e.text, "keeps no queries"));
    }
    check_clean(en);
    engine_close(en);
    /* a prompt that fits the pool, but not beside its narrow pages; whoever comes behind it is served */
    static struct run next;
    c = plain;
    c.kv_tokens = 512;
    en = open_engine(&c);
    make_pressed(&r, 0, 0, 500, 5);
    make_pressed(&next, 0, 0, 300, 5);
    assert_int_equal(try_submit(en, &r, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, "pressing a prompt of 500 tokens"));
    submit(en, &next);
    wait_done(&next);
    assert_int_equal(next.finish, FINISH_LENGTH);
    check_clean(en);
    engine_close(en);
}

static int no_score(const struct kv_head *h, float *score)
{
    (void)h;
    (void)score;
    return ERR_NOMEM;
}

/* A compaction that fails is the end of its job only; the prefix that was published before it is whole. */
static void test_broken(void **state)
{
    (void)state;
    static const struct kv_policy broken = { .name = "broken",
                                             .shares_prefix = true,
                                             .score = no_score,
                                             .split = KV_SPLIT_UNIFORM,
                                             .merge = KV_MERGE_NONE };
    static struct run full, r, beside, after;
    struct engine_config c = plain;
    c.prefix_cache = true;
    make_run(&full, 1, 200, 40);
    run_one(&plain, &full);
    struct engine *en = open_engine(&c);
    make_run(&r, 1, 200, 40);
    r.job.kv = (struct kv_options){ .policy = &broken, .budget = PRESS_BUDGET };
    make_run(&beside, 1, 200, 40);
    make_run(&after, 1, 200, 40);
    submit(en, &r);
    submit(en, &beside);
    wait_done(&r);
    assert_int_equal(r.finish, FINISH_ERROR);
    assert_int_equal(r.code, ERR_NOMEM);
    assert_int_equal(r.n_tokens, 0);
    assert_int_equal(r.n_prompt_events, 0);
    wait_done(&beside);
    assert_same(&full, &beside);
    submit(en, &after);
    wait_done(&after);
    assert_same(&full, &after);
    assert_int_equal(after.usage.cached_tokens, 192);
    check_clean(en);
    engine_close(en);
}

/* ---- what is told ---------------------------------------------------------------------------------------------- */

static void check_detail(struct job *j, const struct job_event *ev)
{
    if (ev->kv != NULL) {
        const struct job_kv *kv = ev->kv;
        double kept = 0, survived = 0;
        assert_int_equal(ev->kind, JOB_PROMPT);
        assert_int_equal(kv->n_layers * kv->n_kv_heads, HEADS);
        for (int h = 0; h < HEADS; h++)
            kept += kv->slots[h];
        for (int i = 0; i < j->n_prompt; i++) {
            assert_true(kv->survival[i] >= 0 && kv->survival[i] <= 1);
            survived += (double)kv->survival[i] * HEADS;
        }
        assert_true(kept > 0 && kept <= PRESS_BUDGET * HEADS);
        assert_true(survived > kept - 0.5 && survived < kept + 0.5);
        for (int i = 0; i < 4; i++) { /* sinks, and the window */
            assert_true(kv->survival[i] == 1);
            assert_true(kv->survival[j->n_prompt - 1 - i] == 1);
        }
        assert_int_equal(kv->report->n_compactions, 1);
        n_details++;
    }
    on_event(j, ev);
}

static void test_detail(void **state)
{
    (void)state;
    static struct run r;
    for (int i = 0; i < n_pressing(); i++) {
        for (int scored = 0; scored < 2; scored++) {
            make_pressed(&r, i, 0, 300, 10);
            r.job.kv_detail = true;
            r.job.prompt_logprobs = scored;
            r.job.on_event = check_detail;
            n_details = 0;
            run_one(&plain, &r);
            assert_int_equal(r.finish, FINISH_LENGTH);
            assert_int_equal(n_details, 1);
            assert_int_equal(r.n_scored, scored ? 299 : 0);
        }
    }
    /* nothing was pressed, nothing is told */
    make_pressed(&r, 0, 0, PRESS_BUDGET, 10);
    r.job.kv_detail = true;
    r.job.on_event = check_detail;
    n_details = 0;
    run_one(&plain, &r);
    assert_int_equal(n_details, 0);
}

static void test_numbers(void **state)
{
    (void)state;
    static struct run r[4];
    struct engine *en = open_engine(&plain);
    uint64_t compactions = 0, evicted = 0, merged = 0;
    for (int i = 0; i < 4; i++) {
        make_pressed(&r[i], i, 0, 300, 120);
        submit(en, &r[i]);
    }
    for (int i = 0; i < 4; i++) {
        wait_done(&r[i]);
        compactions += (uint64_t)r[i].usage.kv.n_compactions;
        evicted += (uint64_t)r[i].usage.kv.evicted;
        merged += (uint64_t)r[i].usage.kv.merged;
        assert_true(r[i].usage.kv.ns > 0);
    }
    check_clean(en);
    const struct engine_stats *s = engine_stats(en);
    assert_true(compactions >= 8);
    assert_int_equal(atomic_load(&s->compactions), compactions);
    assert_int_equal(atomic_load(&s->kv_evicted), evicted);
    assert_int_equal(atomic_load(&s->kv_merged), merged);
    assert_int_equal(atomic_load(&s->kv_split), 0);
    assert_int_equal(atomic_load(&s->kv_narrow), 0);
    assert_int_equal(histogram_count(&s->compaction_time), compactions);
    assert_int_equal(histogram_count(&s->kv_ratio), 4);
    assert_int_equal(histogram_count(&s->kv_mass), 4);
    engine_close(en);
}

/* ---- ends ------------------------------------------------------------------------------------------------------ */

/* Hang-ups at every phase, in a pool so small that some are swapped at the time. */
static void test_cancel(void **state)
{
    (void)state;
    static struct run r[24];
    struct engine_config c = plain;
    c.kv_tokens = 768;
    c.max_batch = 64;
    c.prefix_cache = true;
    int cancelled = 0;
    struct engine *en = open_engine(&c);
    for (int round = 0; round < 6; round++) {
        for (int i = 0; i < 24; i++) {
            int n_prompt = i % 4 == 0 ? 60 + (round * 131 + i * 53) % 300 : 50 + i;
            make_pressed(&r[i], i, i, n_prompt, 140);
            r[i].job.kv.tail = 128;
            r[i].job.prompt_logprobs = i % 5 == 0;
            r[i].cancel_in = i % 2 == 0 ? en : NULL;
            r[i].cancel_at = (i * 7 + round) % 140;
        }
        submit_all(en, r, 24);
        for (int i = 23; i >= 0; i--) {
            if (i % 3 == 0)
                engine_cancel(en, &r[i].job);
            usleep(500);
        }
        for (int i = 0; i < 24; i++) {
            wait_done(&r[i]);
            assert_true(r[i].finish == FINISH_CANCELLED || r[i].finish == FINISH_LENGTH);
            cancelled += r[i].finish == FINISH_CANCELLED;
        }
        check_clean(en);
    }
    assert_true(cancelled > 30);
    assert_true(atomic_load(&engine_stats(en)->swaps) > 0);
    engine_close(en);
}

static void make_three(struct run *r, int first)
{
    for (int i = 0; i < 3; i++) {
        make_pressed(&r[i], first + i, i, 60, 140);
        r[i].job.kv.tail = 128;
        r[i].job.kv_detail = i == 0;
    }
}

/* Three jobs in a pool that is too small for them; the n-th allocation fails, 0: none. Returns how many ended with it. */
static int run_three(struct run *r, uint64_t n, uint64_t *calls, uint64_t *swaps)
{
    struct engine_config c = plain;
    struct mem_stats before, after;
    int failed = 0;
    c.kv_tokens = 416;
    struct engine *en = open_engine(&c);
    make_three(r, (int)n);
    mem_stats(&before);
    mem_fail_at(n);
    submit_all(en, r, 3);
    for (int i = 0; i < 3; i++) {
        wait_done(&r[i]);
        failed += r[i].finish == FINISH_ERROR;
        assert_true(r[i].finish == FINISH_LENGTH || r[i].code == ERR_NOMEM);
    }
    mem_fail_at(0);
    mem_stats(&after);
    check_clean(en);
    *calls = after.calls - before.calls;
    *swaps += atomic_load(&engine_stats(en)->swaps);
    engine_close(en);
    return failed;
}

/* Every allocation of pressed jobs fails once, also those of swapping: at most one job ends with it, no page and no byte is
 * lost. Under the thread sanitizer, where all take 160 CPU seconds, every fifth. */
static void test_no_memory(void **state)
{
    (void)state;
    static struct run r[3];
    struct mem_stats before, after;
    uint64_t calls, last, swaps = 0;
    int failed = 0;
    mem_stats(&before);
    assert_int_equal(run_three(r, 0, &last, &swaps), 0);
    for (uint64_t n = 1; n <= last; n += check_races() ? 5 : 1) {
        int now = run_three(r, n, &calls, &swaps);
        assert_true(now <= 1);
        failed += now;
    }
    assert_true(failed > 20 && swaps > 0);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
    assert_int_equal(before.bytes, after.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pressed),   cmocka_unit_test(test_long),
        cmocka_unit_test(test_room),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_broken),    cmocka_unit_test(test_detail),
        cmocka_unit_test(test_numbers),   cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, open_toy, close_toy);
}
