/* A job's tokens and log-probabilities are the same bits whatever else runs, however its prompt is cut, with a prefix hit and
 * after preemption. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/tools/engine_fixture.h"
#include "tests/tools/small.h"

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
    submit_all(en, other, N_RUNS);
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

/* Of small checks one type has its turn: they differ in kernels, which the op suite knows. */
static void same_bits(enum kv_type type)
{
    if (check_small() && type != KV_F16)
        skip();
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

/* Every codec's kernels, with exact and with rounded inputs, at every level this machine has; of small checks at the best: the
 * op suite knows the others. */
static void test_same_bits_codecs(void **state)
{
    (void)state;
    static const char *const weights[] = { "f32", "bf16", "q8", "q4", "q8", "q4" };
    struct toy was = toy;
    n_new = 25;
    int best = (int)cpu_isa_best();
    for (int isa = check_small() ? best : CPU_REF; isa <= best; isa++) {
        for (int i = 0; i < 6; i++) {
            const struct model_options o = { .weights = weights[i], .int8 = i >= 4 };
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits_f32),
        cmocka_unit_test(test_same_bits_f16),
        cmocka_unit_test(test_same_bits_bf16),
        cmocka_unit_test(test_same_bits_codecs),
    };
    return cmocka_run_group_tests(tests, open_toy, close_toy);
}
