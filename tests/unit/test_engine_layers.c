/* Prompts that go through the model layer by layer: the bits of the ordinary way, in a pool that could not hold them otherwise,
 * beside others, and with every page back whatever becomes of them. */
#include <limits.h>
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
    .max_seqs = 8, .kv_tokens = 8192, .kv_type = KV_F16, .kv_samples = 4, .max_batch = 64
};
/* Pages for 832 tokens in both layers; a prompt of 1,100 takes 70 and more, layer by layer 42. */
static const struct engine_config small = { .ctx = 1200,
                                            .max_seqs = 8,
                                            .kv_tokens = 832,
                                            .kv_type = KV_F16,
                                            .kv_samples = 4,
                                            .layer_major = INT_MAX,
                                            .max_batch = 64 };
enum { HEADS = TOY_LAYERS * TOY_KV_HEADS };

/* ---- the same bits --------------------------------------------------------------------------------------------- */

static struct {
    int32_t slots[HEADS];
    float survival[MAX_PROMPT];
    int n;
} detail;

static void keep_detail(struct job *j, const struct job_event *ev)
{
    if (ev->kv != NULL) {
        memcpy(detail.slots, ev->kv->slots, sizeof detail.slots);
        memcpy(detail.survival, ev->kv->survival, (size_t)j->n_prompt * sizeof(float));
        detail.n++;
    }
    on_event(j, ev);
}

static void assert_same_report(const struct kv_report *a, const struct kv_report *b)
{
    struct kv_report x = *a;
    x.ns = b->ns;
    assert_int_equal(x.n_compactions, b->n_compactions);
    assert_int_equal(x.budget, b->budget);
    assert_int_equal(x.raised, b->raised);
    assert_int_equal(x.kept, b->kept);
    assert_int_equal(x.merged, b->merged);
    assert_int_equal(x.evicted, b->evicted);
    assert_memory_equal(&x.mass_min, &b->mass_min, sizeof(float));
    assert_memory_equal(&x.mass_mean, &b->mass_mean, sizeof(float));
}

/* Runs r and returns how many prompts went layer by layer. */
static uint64_t run_in(const struct engine_config *c, struct run *r)
{
    struct engine *en = open_engine(c);
    r->job.on_event = keep_detail;
    r->job.kv_detail = true;
    submit(en, r);
    wait_done(r);
    check_clean(en);
    uint64_t n = atomic_load(&engine_stats(en)->layer_major);
    engine_close(en);
    assert_int_equal(r->finish, FINISH_LENGTH);
    return n;
}

/* The job of the ordinary way and layer by layer; returns whether the second went so. */
static bool both_ways(const struct run *job, enum kv_type type, int max_batch)
{
    static struct run a, b;
    struct engine_config c = plain;
    c.kv_type = type;
    detail.n = 0;
    a = *job;
    a.job.prompt = a.prompt;
    a.job.user = &a;
    assert_int_equal(run_in(&c, &a), 0);
    int32_t slots[HEADS];
    static float survival[MAX_PROMPT];
    memcpy(slots, detail.slots, sizeof slots);
    memcpy(survival, detail.survival, sizeof survival);
    c.layer_major = 100;
    c.max_batch = max_batch;
    b = *job;
    b.job.prompt = b.prompt;
    b.job.user = &b;
    uint64_t n = run_in(&c, &b);
    assert_same(&a, &b);
    assert_same_report(&a.usage.kv, &b.usage.kv);
    assert_int_equal(a.usage.kv_bytes, b.usage.kv_bytes);
    assert_int_equal(detail.n, 2);
    assert_memory_equal(slots, detail.slots, sizeof slots);
    assert_memory_equal(survival, detail.survival, (size_t)b.job.n_prompt * sizeof(float));
    return n == 1;
}

static void test_same_bits(void **state)
{
    (void)state;
    static struct run r;
    static const enum kv_split split[] = { KV_SPLIT_DEFAULT, KV_SPLIT_UNIFORM, KV_SPLIT_PYRAMID,
                                           KV_SPLIT_ADA };
    static const int length[] = { 400, 384, 385, 127 }; /* the last page: part, whole, one token */
    for (int i = 0; i < n_pressing(); i++) {
        for (int k = 0; k < 4; k++) {
            make_pressed(&r, i, i, length[(i + k) % 4], 60);
            r.job.kv.split = split[k];
            bool layered = both_ways(&r, (enum kv_type)((i + k) % KV_TYPE_N), k == 1 ? 512 : 8);
            bool may = split[k] != KV_SPLIT_DEFAULT || pressing(i)->split != KV_SPLIT_MASS;
            assert_int_equal(layered, may);
        }
    }
}

/* What has to know all layers before the first is pressed goes the ordinary way. */
static void test_not_layered(void **state)
{
    (void)state;
    static struct run r;
    make_pressed(&r, 0, 1, 400, 40);
    r.job.kv.split = KV_SPLIT_MASS;
    assert_false(both_ways(&r, KV_F16, 64));
    make_pressed(&r, 0, 1, 400, 40);
    r.job.kv.split = KV_SPLIT_UNIFORM;
    r.job.kv.mass_floor = 0.99f;
    r.job.kv.budget_max = 96;
    assert_false(both_ways(&r, KV_F16, 64));
    r.job.kv.budget_max = 0; /* a guard that may raise nothing */
    assert_true(both_ways(&r, KV_F16, 64));
    make_pressed(&r, 0, 1, 99, 40);
    r.job.kv.split = KV_SPLIT_UNIFORM;
    assert_false(both_ways(&r, KV_F16, 64));
    make_pressed(&r, 0, 1, 400, 40);
    r.job.prompt_logprobs = true;
    assert_false(both_ways(&r, KV_F16, 64));
    make_pressed(&r, 0, 1, 400, 0); /* the prompt only */
    r.job.kv.split = KV_SPLIT_UNIFORM;
    assert_true(both_ways(&r, KV_F16, 64));
}

/* ---- room ------------------------------------------------------------------------------------------------------ */

/* A uniform split, so that policies whose own is `mass` may go layer by layer. */
static void make_long(struct run *r, int i, int n_prompt, int max_tokens)
{
    make_pressed(r, i, i, n_prompt, max_tokens);
    r->job.kv.split = KV_SPLIT_UNIFORM;
}

/* A prompt that the pool cannot hold is served, and goes on as it would in a large one. */
static void test_small_pool(void **state)
{
    (void)state;
    static struct run whole, r;
    struct engine_config c = plain;
    struct err e;
    for (int i = 0; i < n_pressing(); i++) {
        make_long(&whole, i, 1100, 90);
        run_one(&plain, &whole);
        make_long(&r, i, 1100, 90);
        assert_int_equal(run_in(&small, &r), 1);
        assert_same(&whole, &r);
        assert_same_report(&whole.usage.kv, &r.usage.kv);
    }
    struct engine *en = open_engine(&small);
    assert_int_equal(engine_ctx(en), 1200);
    make_run(&r, 0, 1100, 5); /* whole it does not fit, and cannot grow beyond the pool */
    assert_int_equal(try_submit(en, &r, &e), ERR_LIMIT);
    make_run(&r, 0, 800, -1);
    submit(en, &r);
    wait_done(&r);
    assert_int_equal(r.finish, FINISH_LENGTH);
    assert_int_equal(r.n_tokens, 32);
    make_long(&r, 0, 1100, 5); /* a split that needs every layer's scores has no way */
    r.job.kv.split = KV_SPLIT_MASS;
    assert_int_equal(try_submit(en, &r, &e), ERR_LIMIT);
    check_clean(en);
    engine_close(en);
    c = small;
    c.layer_major = 0;
    assert_int_equal(engine_open(&en, toy.model, &c, &e), ERR_INVALID);
    c = small;
    c.kv_samples = 0;
    assert_int_equal(engine_open(&en, toy.model, &c, &e), ERR_INVALID);
}

/* A prompt that its budget keeps whole has room in the pool for itself and what it asks for, or is refused. */
static void test_kept_whole(void **state)
{
    (void)state;
    static struct run r;
    struct err e;
    struct engine *en = open_engine(&small);
    for (int n = 831; n <= 833; n++) {
        make_long(&r, 0, n, 3);
        r.job.kv.budget = 900;
        assert_int_equal(try_submit(en, &r, &e), n < 832 ? 0 : ERR_LIMIT);
        if (n < 832) {
            wait_done(&r);
            assert_int_equal(r.finish, FINISH_LENGTH);
            assert_int_equal(r.n_tokens, 1);
        }
    }
    check_clean(en);
    engine_close(en);
}

/* The plan has the residual stream when it may be wanted, and only then. */
static void test_stream(void **state)
{
    (void)state;
    struct engine *en = open_engine(&small);
    assert_int_equal(en->stream_bytes, (size_t)1200 * TOY_DIM * sizeof(float));
    engine_close(en);
    struct engine_config c = plain;
    c.layer_major = INT_MAX;
    en = open_engine(&c);
    assert_int_equal(en->stream_bytes, 0);
    assert_int_equal(engine_settings(en)->layer_major, 0);
    engine_close(en);
    c.layer_major = 1000;
    en = open_engine(&c);
    assert_int_equal(en->stream_bytes, (size_t)TOY_CTX * TOY_DIM * sizeof(float));
    engine_close(en);
}

/* A cached prefix is read where it is; what is computed layer by layer is not published. A prefix whose pages of all layers
 * leave no room for one layer of the rest is computed again. */
static void test_prefix(void **state)
{
    (void)state;
    static struct run first, lone, r;
    struct engine_config c = plain;
    for (int tight = 0; tight < 2; tight++) {
        int n_shared = tight ? 700 : 300, n = tight ? 1100 : 500;
        make_long(&lone, 1, n, 40);
        run_one(&plain, &lone);
        c = tight ? small : plain;
        c.prefix_cache = true;
        c.layer_major = 400;
        struct engine *en = open_engine(&c);
        make_run(&first, 1, n_shared, 2);
        memcpy(first.prompt, lone.prompt, (size_t)n_shared * sizeof *first.prompt);
        submit(en, &first);
        wait_done(&first);
        for (int again = 0; again < 2; again++) {
            make_long(&r, 1, n, 40);
            submit(en, &r);
            wait_done(&r);
            assert_same(&lone, &r);
            assert_same_report(&lone.usage.kv, &r.usage.kv);
            if (tight) /* what is left of it after it made room */
                assert_true(r.usage.cached_tokens < n_shared / KV_PAGE * KV_PAGE);
            else
                assert_int_equal(r.usage.cached_tokens, n_shared / KV_PAGE * KV_PAGE);
        }
        assert_int_equal(atomic_load(&engine_stats(en)->layer_major), 2);
        check_clean(en);
        engine_close(en);
    }
}

/* ---- company --------------------------------------------------------------------------------------------------- */

enum { CROWD = 24 };

/* Every sixth is long and goes layer by layer; the others keep everything or are pressed the ordinary way, when their tails
 * have grown long: where the pool is small some make room before. */
static void make_crowd(struct run *r)
{
    for (int i = 0; i < CROWD; i++) {
        if (i % 6 == 2)
            make_long(&r[i], i, 500 + 10 * i, 30);
        else if (i % 3 == 0)
            make_run(&r[i], i, 40 + i, 150);
        else
            make_pressed(&r[i], i, i, 45 + i, 150);
        if (i % 6 != 2)
            r[i].job.kv.tail = 128;
    }
}

static void crowd(const struct engine_config *c, const struct run *alone, uint64_t *preemptions)
{
    static struct run r[CROWD];
    struct engine *en = open_engine(c);
    make_crowd(r);
    submit_all(en, r, CROWD);
    for (int i = 0; i < CROWD; i++)
        wait_done(&r[i]);
    check_clean(en);
    for (int i = 0; i < CROWD; i++) {
        assert_same(&alone[i], &r[i]);
        assert_same_report(&alone[i].usage.kv, &r[i].usage.kv);
    }
    const struct engine_stats *s = engine_stats(en);
    assert_int_equal(atomic_load(&s->layer_major), CROWD / 6);
    *preemptions += atomic_load(&s->preemptions);
    engine_close(en);
}

static void test_company(void **state)
{
    (void)state;
    static struct run alone[CROWD];
    uint64_t preemptions = 0;
    make_crowd(alone);
    for (int i = 0; i < CROWD; i++)
        run_one(&plain, &alone[i]);
    struct engine_config c = plain;
    c.layer_major = 400;
    c.max_seqs = CROWD;
    crowd(&c, alone, &preemptions);
    c.prefix_cache = true;
    c.max_batch = 24;
    c.kv_tokens = 1536;
    crowd(&c, alone, &preemptions);
    c.kv_tokens = 640;
    c.ctx = 1200;
    c.max_batch = 200;
    crowd(&c, alone, &preemptions);
    c.max_seqs = 3; /* as many may wait for the stream as would fill what holds the preempted */
    crowd(&c, alone, &preemptions);
    assert_true(preemptions > 0);
}

static struct engine *watched;
/* While a long prompt is computed: steps between two tokens of a decoding neighbour, and its tokens. */
static int most_waited, n_beside;
static uint64_t last_step;
static sem_t long_there; /* the prompt: the neighbour goes no further than its third token before */

static void watch(struct job *j, const struct job_event *ev)
{
    const struct run *r = j->user;
    while (ev->kind == JOB_TOKEN && r->n_tokens == 3 && sem_wait(&long_there) < 0)
        ;
    uint64_t now = atomic_load(&watched->stats.steps);
    if (ev->kind == JOB_TOKEN && last_step > 0 && layers_busy(watched)) {
        int waited = (int)(now - last_step);
        most_waited = waited > most_waited ? waited : most_waited;
        n_beside++;
    }
    if (ev->kind == JOB_TOKEN)
        last_step = now;
    on_event(j, ev);
}

/* A neighbour gets its token in every step, and the prompt needs as many steps as its 1,100 rows take, 32 a step. */
static void test_fair(void **state)
{
    (void)state;
    static struct run beside, r;
    struct engine_config c = plain;
    c.layer_major = 400;
    watched = open_engine(&c);
    most_waited = n_beside = 0;
    last_step = 0;
    make_run(&beside, 0, 20, 600);
    beside.job.on_event = watch;
    make_long(&r, 0, 1100, 1);
    sem_init(&long_there, 0, 0);
    submit(watched, &beside);
    while (atomic_load(&watched->stats.generation_tokens) < 3)
        usleep(50);
    submit(watched, &r);
    sem_post(&long_there);
    wait_done(&r);
    engine_cancel(watched, &beside.job);
    wait_done(&beside);
    sem_destroy(&long_there);
    assert_int_equal(most_waited, 1);
    assert_true(n_beside >= 1100 / 32 && n_beside < 2 * 1100 / 32);
    check_clean(watched);
    engine_close(watched);
}

enum { MOST_SEEN = 16 };
static struct {
    const struct job *job;
    enum event_kind kind;
} seen[MOST_SEEN]; /* prompts that were through, jobs that ended; in order */
static int n_seen;

static void see(struct job *j, const struct job_event *ev)
{
    if (ev->kind != JOB_TOKEN && n_seen < MOST_SEEN) {
        seen[n_seen].job = j;
        seen[n_seen++].kind = ev->kind;
    }
    on_event(j, ev);
}

static int when(const struct run *r, enum event_kind kind)
{
    for (int i = 0; i < n_seen; i++)
        if (seen[i].job == &r->job && seen[i].kind == kind)
            return i;
    fail_msg("not seen");
    return -1;
}

/* While a prompt goes layer by layer, others of its kind wait, in their order, and the one behind them does not. */
static void test_waiting_for_stream(void **state)
{
    (void)state;
    static struct run beside, r[4];
    struct engine_config c = plain;
    c.layer_major = 400;
    c.max_seqs = 4;
    struct engine *en = open_engine(&c);
    sem_t all_there;
    n_seen = 0;
    sem_init(&all_there, 0, 0);
    make_run(&beside, 0, 20, 600);
    beside.gate = &all_there;
    submit(en, &beside);
    for (int i = 0; i < 4; i++) {
        if (i < 3)
            make_long(&r[i], i, 1000, 3);
        else
            make_run(&r[i], i, 1, 5);
        r[i].job.on_event = see;
        submit(en, &r[i]);
    }
    sem_post(&all_there);
    for (int i = 0; i < 4; i++) {
        wait_done(&r[i]);
        assert_int_equal(r[i].finish, FINISH_LENGTH);
    }
    engine_cancel(en, &beside.job);
    wait_done(&beside);
    assert_true(when(&r[3], JOB_DONE) < when(&r[0], JOB_PROMPT));
    assert_true(when(&r[0], JOB_PROMPT) < when(&r[1], JOB_PROMPT));
    assert_true(when(&r[1], JOB_PROMPT) < when(&r[2], JOB_PROMPT));
    assert_int_equal(atomic_load(&engine_stats(en)->layer_major), 3);
    check_clean(en);
    sem_destroy(&all_there);
    engine_close(en);
}

/* 60 pages for a prompt that takes 42 of them layer by layer and two that grow: the younger of those makes room, for the prompt
 * would begin anew. */
static void test_not_preempted(void **state)
{
    (void)state;
    static struct run lone, old, young, r;
    struct engine_config c = small;
    sem_t all_there;
    make_long(&lone, 0, 1100, 20);
    run_one(&plain, &lone);
    c.kv_tokens = 960;
    c.max_batch = 8;
    struct engine *en = open_engine(&c);
    sem_init(&all_there, 0, 0);
    make_run(&old, 0, 40, 140);
    old.gate = &all_there;
    make_run(&young, 1, 40, 250);
    make_long(&r, 0, 1100, 20);
    submit(en, &old);
    submit(en, &young);
    submit(en, &r);
    sem_post(&all_there);
    wait_done(&old);
    wait_done(&young);
    wait_done(&r);
    assert_same(&lone, &r);
    assert_int_equal(old.usage.preemptions, 0);
    assert_int_equal(young.usage.preemptions, 1);
    assert_int_equal(r.usage.preemptions, 0);
    check_clean(en);
    sem_destroy(&all_there);
    engine_close(en);
}

/* ---- ends ------------------------------------------------------------------------------------------------------ */

static struct {
    struct job *job;
    int layer, n_tokens;
    bool done;
} hang_up;

/* A neighbour's events, on the engine's thread: the job hangs up when it has come so far in that layer. */
static void hang_up_there(struct job *j, const struct job_event *ev)
{
    for (int i = 0; i < watched->n_running && !hang_up.done; i++) {
        const struct seq *s = watched->running[i];
        if (s->job != hang_up.job || s->kv.layer < hang_up.layer ||
            s->kv.n_tokens < hang_up.n_tokens)
            continue;
        hang_up.done = true;
        engine_cancel(watched, hang_up.job);
    }
    on_event(j, ev);
}

/* In every layer, before, in the midst and at the end of it. */
static void test_cancel(void **state)
{
    (void)state;
    static struct run beside, r;
    static const int tokens[] = { 0, 500, 1050 };
    struct engine_config c = plain;
    c.layer_major = 400;
    watched = open_engine(&c);
    for (int i = 0; i < 3 * TOY_LAYERS; i++) {
        make_run(&beside, 0, 20, 600);
        beside.job.on_event = hang_up_there;
        make_long(&r, i, 1100, 20);
        memset(&hang_up, 0, sizeof hang_up);
        hang_up.job = &r.job;
        hang_up.layer = i / 3;
        hang_up.n_tokens = tokens[i % 3];
        sem_t both; /* are there */
        sem_init(&both, 0, 0);
        beside.gate = &both;
        submit(watched, &beside);
        submit(watched, &r);
        sem_post(&both);
        wait_done(&r);
        engine_cancel(watched, &beside.job);
        wait_done(&beside);
        sem_destroy(&both);
        assert_true(hang_up.done);
        assert_int_equal(r.finish, FINISH_CANCELLED);
        assert_int_equal(r.n_prompt_events, 0);
        assert_int_equal(r.usage.kv.kept > 0, i / 3 > 0); /* of the layers before */
        check_clean(watched);
    }
    make_long(&r, 0, 1100, 20);
    submit(watched, &r);
    wait_done(&r);
    assert_int_equal(r.finish, FINISH_LENGTH);
    engine_close(watched);
}

/* From anywhere, at any time, with others waiting for the stream. */
static void test_cancel_any(void **state)
{
    (void)state;
    static struct run r[3];
    struct engine *en = open_engine(&small);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 3; i++) {
            make_long(&r[i], i, 1100 - 40 * i, 20);
            submit(en, &r[i]);
        }
        usleep((useconds_t)(round * 400));
        for (int i = 0; i < 3; i++) {
            engine_cancel(en, &r[i].job);
            usleep((useconds_t)(round % 7 * 300));
        }
        for (int i = 0; i < 3; i++) {
            wait_done(&r[i]);
            assert_true(r[i].finish == FINISH_CANCELLED || r[i].finish == FINISH_LENGTH);
        }
        check_clean(en);
    }
    engine_close(en);
}

/* Every allocation of a job fails once: it ends with it, no page and no byte is lost. Every fifth under the
 * thread sanitizer. */
static void test_no_memory(void **state)
{
    (void)state;
    static struct run r;
    struct mem_stats before, now, after;
    uint64_t failed = 0;
    mem_stats(&before);
    for (uint64_t n = 1;; n += check_races() ? 5 : 1) {
        struct engine *en = open_engine(&small);
        make_long(&r, 0, 1000, 8);
        mem_stats(&now);
        mem_fail_at(n);
        submit(en, &r);
        wait_done(&r);
        mem_fail_at(0);
        mem_stats(&after);
        assert_true(r.finish == FINISH_LENGTH || r.code == ERR_NOMEM);
        failed += r.finish == FINISH_ERROR;
        check_clean(en);
        engine_close(en);
        if (after.calls - now.calls < n)
            break;
    }
    assert_int_equal(r.finish, FINISH_LENGTH);
    assert_true(failed > 10);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
    assert_int_equal(before.bytes, after.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),     cmocka_unit_test(test_not_layered),
        cmocka_unit_test(test_small_pool),    cmocka_unit_test(test_kept_whole),
        cmocka_unit_test(test_stream),        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_company),       cmocka_unit_test(test_fair),
        cmocka_unit_test(test_cancel),        cmocka_unit_test(test_cancel_any),
        cmocka_unit_test(test_no_memory),     cmocka_unit_test(test_waiting_for_stream),
        cmocka_unit_test(test_not_preempted),
    };
    return cmocka_run_group_tests(tests, open_toy, close_toy);
}
