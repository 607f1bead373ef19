/* Waiting, cancelling, draining, closing, a lost device: every job ends exactly once and leaks nothing. */
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "tests/tools/engine_fixture.h"

static const struct engine_config plain = { .max_seqs = 8, .kv_tokens = 2048, .kv_type = KV_F32 };

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
    assert_int_equal(try_submit(en, &r[4], &e), ERR_BUSY);
    assert_int_equal(atomic_load(&engine_stats(en)->waiting), 3);
    /* a waiting job leaves the queue at once */
    engine_cancel(en, &r[2].job);
    wait_done(&r[2]);
    assert_int_equal(r[2].finish, FINISH_CANCELLED);
    assert_int_equal(r[2].n_tokens, 0);
    submit(en, &r[4]);
    assert_int_equal(try_submit(en, &r[5], &e), ERR_BUSY);
    engine_drain(en);
    engine_cancel(en, &r[0].job);
    engine_cancel(en, &r[1].job);
    wait_done(&r[0]);
    wait_done(&r[1]);
    assert_int_equal(try_submit(en, &r[6], &e), ERR_BUSY);
    assert_false(engine_idle(en));
    /* closing ends the rest */
    engine_close(en);
    wait_done(&r[3]);
    wait_done(&r[4]);
    assert_int_equal(r[3].finish, FINISH_CANCELLED);
    assert_int_equal(r[4].finish, FINISH_CANCELLED);
}

/* The jobs of a request are taken together or not at all; as many as there are while nobody waits. */
static void test_together(void **state)
{
    (void)state;
    static struct run r[9];
    struct job *job[9];
    struct err e;
    struct engine_config c = plain;
    c.max_seqs = 1;
    c.max_queue = 3;
    struct engine *en = open_engine(&c);
    for (int i = 0; i < 9; i++) {
        make_run(&r[i], 0, 10, i == 0 ? 1000 : 2);
        job[i] = &r[i].job;
    }
    submit(en, &r[0]);
    while (atomic_load(&engine_stats(en)->running) == 0)
        usleep(100);
    submit(en, &r[1]);
    assert_int_equal(engine_submit(en, &job[2], 3, &e), ERR_BUSY);
    assert_int_equal(atomic_load(&engine_stats(en)->waiting), 1);
    assert_int_equal(engine_submit(en, &job[2], 2, &e), 0);
    engine_cancel(en, &r[0].job);
    for (int i = 0; i < 4; i++)
        wait_done(&r[i]);
    r[8].prompt[3] = -1;
    assert_int_equal(engine_submit(en, &job[4], 5, &e), ERR_INVALID);
    r[8].prompt[3] = 0;
    assert_int_equal(engine_submit(en, &job[4], 5, &e), 0); /* more than the queue holds */
    for (int i = 4; i < 9; i++) {
        wait_done(&r[i]);
        assert_int_equal(r[i].finish, FINISH_LENGTH);
    }
    check_clean(en);
    engine_close(en);
}

/* While a step lasts, those who hung up keep nobody out. */
static void test_cancelled_take_no_room(void **state)
{
    (void)state;
    static struct run r[5];
    struct err e;
    sem_t go_on;
    struct engine_config c = plain;
    c.max_seqs = 1;
    c.max_queue = 2;
    struct engine *en = open_engine(&c);
    sem_init(&go_on, 0, 0);
    for (int i = 0; i < 5; i++)
        make_run(&r[i], 0, 10, 2);
    r[0].gate = &go_on; /* its first step ends when this test says so */
    submit(en, &r[0]);
    while (atomic_load(&engine_stats(en)->waiting) > 0)
        usleep(100);
    submit(en, &r[1]);
    submit(en, &r[2]);
    assert_int_equal(try_submit(en, &r[3], &e), ERR_BUSY);
    engine_cancel(en, &r[1].job);
    engine_cancel(en, &r[1].job);
    assert_int_equal(atomic_load(&engine_stats(en)->waiting), 1);
    submit(en, &r[3]);
    assert_int_equal(try_submit(en, &r[4], &e), ERR_BUSY);
    sem_post(&go_on);
    for (int i = 0; i < 4; i++) {
        wait_done(&r[i]);
        assert_int_equal(r[i].finish, i == 1 ? FINISH_CANCELLED : FINISH_LENGTH);
    }
    check_clean(en);
    sem_destroy(&go_on);
    engine_close(en);
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
    assert_int_equal(try_submit(en, &r[3], &e), ERR_BUSY);
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
    assert_int_equal(engine_error(en, &e), 0);
    atomic_store(&fail_sync, 1);
    for (int i = 0; i < 3; i++) {
        wait_done(&r[i]);
        assert_int_equal(r[i].finish, FINISH_ERROR);
        assert_int_equal(r[i].code, ERR_DEVICE);
    }
    assert_int_equal(engine_error(en, &e), ERR_DEVICE);
    assert_string_equal(e.text, "the device is gone");
    assert_int_equal(try_submit(en, &r[3], &e), ERR_DEVICE);
    check_clean(en);
    engine_close(en);
}

/* The device goes with the last token of an answer. */
static void lost_at_the_end(struct job *j, const struct job_event *ev)
{
    on_event(j, ev);
    const struct run *r = j->user;
    if (ev->kind == JOB_TOKEN && r->n_tokens == j->max_tokens)
        atomic_store(&fail_sync, 1);
}

/* An answer that was complete is no error, whatever becomes of the others in the same step: of a prompt that goes layer by layer
 * behind the batch. */
static void test_lost_at_the_end(void **state)
{
    (void)state;
    static struct run r[2];
    struct engine_config c = { .max_seqs = 2,
                               .kv_tokens = 8192,
                               .kv_type = KV_F16,
                               .kv_samples = 4,
                               .layer_major = 400,
                               .max_batch = 32 };
    struct engine *en = open_engine(&c);
    make_run(&r[0], 0, 20, 8);
    r[0].job.on_event = lost_at_the_end;
    make_pressed(&r[1], 0, 1, 1000, 20);
    submit_all(en, r, 2);
    for (int i = 0; i < 2; i++)
        wait_done(&r[i]);
    assert_int_equal(r[0].finish, FINISH_LENGTH);
    assert_int_equal(r[1].finish, FINISH_ERROR);
    assert_int_equal(r[1].code, ERR_DEVICE);
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
        while (try_submit(me->en, r, NULL) == ERR_BUSY)
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_queue, set_slow, set_fast),
        cmocka_unit_test_setup_teardown(test_together, set_slow, set_fast),
        cmocka_unit_test(test_cancelled_take_no_room),
        cmocka_unit_test_setup_teardown(test_drain, set_slow, set_fast),
        cmocka_unit_test_setup_teardown(test_device_lost, set_slow, set_fast),
        cmocka_unit_test_setup_teardown(test_lost_at_the_end, set_slow, set_fast),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_crowd),
    };
    return cmocka_run_group_tests(tests, open_toy, close_toy);
}
