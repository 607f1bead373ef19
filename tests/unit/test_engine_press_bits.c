/* A pressed job's tokens and log-probabilities are the same bits whatever else runs, with a prefix hit, beside shared
 * prefixes and after it was swapped; one that fits its budget has those of a whole cache. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "tests/tools/engine_fixture.h"
#include "tests/tools/small.h"

static const struct engine_config plain = {
    .max_seqs = 8, .kv_tokens = 4096, .kv_type = KV_F16, .kv_samples = 4
};

/* What fits the budget is untouched, bit for bit. */
static void test_fits(void **state)
{
    (void)state;
    static struct run full, r;
    for (int n_prompt = 40; n_prompt <= 300; n_prompt += 130) {
        make_run(&full, 1, n_prompt, 60);
        run_one(&plain, &full);
        assert_string_equal(full.usage.kv_policy, kv_policy_list[0]->name);
        assert_int_equal(full.usage.kv_budget, 0);
        for (int i = 0; kv_policy_list[i] != NULL; i++) {
            make_run(&r, 1, n_prompt, 60);
            r.job.kv = (struct kv_options){ .policy = kv_policy_list[i] };
            if (!kv_policy_list[i]->keeps_all)
                r.job.kv.budget = n_prompt + 60;
            run_one(&plain, &r);
            assert_same(&full, &r);
            assert_int_equal(r.usage.kv.n_compactions, 0);
            assert_int_equal(r.usage.kv_bytes, full.usage.kv_bytes);
            assert_string_equal(r.usage.kv_policy, kv_policy_list[i]->name);
        }
    }
}

/* ---- company --------------------------------------------------------------------------------------------------- */

enum { CROWD = 64 };
static struct run *alone, *other; /* [CROWD] */

/* Every fourth keeps its cache whole, the others are spread over the policies; half of them share a prefix. Every so
 * many have long prompts and short answers, the others short prompts and tails that grow long: those are swapped where the
 * pool is small. */
static void make_crowd(struct run *r, int every)
{
    for (int i = 0; i < CROWD; i++) {
        bool grows = i % every > 0;
        int n_prompt = grows ? 45 + i % 20 : 30 + i * 37 % 270, n_new = grows ? 150 : 60;
        if (i % 4 == 0) {
            make_run(&r[i], i, n_prompt, n_new);
        } else {
            make_pressed(&r[i], i, i, n_prompt, n_new);
            r[i].job.kv.tail = grows ? 128 : PRESS_TAIL;
        }
        for (int k = 0; i % 2 == 0 && k < n_prompt - 20; k++)
            r[i].prompt[k] = k * 7 % TOY_VOCAB;
        r[i].job.prompt_logprobs = i % 16 == 5;
    }
}

struct seen {
    uint64_t compactions, swaps, preemptions, prefix_hits;
};

static void crowd_together(const struct engine_config *c, int every, struct seen *seen)
{
    struct engine *en = open_engine(c);
    make_crowd(other, every);
    submit_all(en, other, CROWD);
    for (int i = 0; i < CROWD; i++)
        wait_done(&other[i]);
    check_clean(en);
    for (int i = 0; i < CROWD; i++) {
        assert_int_equal(other[i].finish, FINISH_LENGTH);
        assert_same(&alone[i], &other[i]);
        assert_int_equal(alone[i].usage.kv.kept, other[i].usage.kv.kept);
        assert_int_equal(alone[i].usage.kv.n_compactions, other[i].usage.kv.n_compactions);
    }
    const struct engine_stats *s = engine_stats(en);
    *seen = (struct seen){ .compactions = atomic_load(&s->compactions),
                           .swaps = atomic_load(&s->swaps),
                           .preemptions = atomic_load(&s->preemptions),
                           .prefix_hits = atomic_load(&s->prefix_hits) };
    engine_close(en);
}

/* Of small checks one type has its crowd: they differ in kernels, which the op suite knows. */
static void crowd(enum kv_type type, int every)
{
    if (check_small() && type != KV_F16)
        skip();
    struct seen seen;
    uint64_t swaps;
    struct engine_config c = plain;
    c.kv_type = type;
    c.max_seqs = CROWD;
    c.kv_tokens = 32768;
    struct engine *en = open_engine(&c);
    make_crowd(alone, every);
    for (int i = 0; i < CROWD; i++) {
        submit(en, &alone[i]);
        wait_done(&alone[i]);
        assert_int_equal(alone[i].finish, FINISH_LENGTH);
    }
    check_clean(en);
    engine_close(en);
    crowd_together(&c, every, &seen);
    assert_true(seen.compactions > CROWD / 2);
    assert_int_equal(seen.swaps, 0);
    assert_int_equal(seen.preemptions, 0);
    c.prefix_cache = true;
    c.max_seqs = 12;
    c.max_batch = 80;
    crowd_together(&c, every, &seen);
    assert_true(seen.prefix_hits > 0);
    c.max_seqs = CROWD;
    c.kv_tokens = 1536; /* many fit at first, half of them when their tails have grown */
    crowd_together(&c, every, &seen);
    swaps = seen.swaps;
    c.kv_tokens = 640; /* hardly more than one long job beside what it is pressed into */
    crowd_together(&c, every, &seen);
    assert_true(seen.preemptions > seen.swaps);
    assert_true(swaps + seen.swaps > 5);
    c.prefix_cache = false;
    c.max_seqs = 5;
    crowd_together(&c, every, &seen);
}

static int open_crowd(void **state)
{
    (void)state;
    alone = mem_zalloc(CROWD, sizeof *alone);
    other = mem_zalloc(CROWD, sizeof *other);
    return alone != NULL && other != NULL ? 0 : -1;
}

static int close_crowd(void **state)
{
    (void)state;
    mem_free(alone);
    mem_free(other);
    return 0;
}

static void test_crowd_f16(void **state)
{
    (void)state;
    crowd(KV_F16, 8);
}

static void test_crowd_bf16(void **state)
{
    (void)state;
    crowd(KV_BF16, CROWD);
}

static void test_crowd_f32(void **state)
{
    (void)state;
    crowd(KV_F32, 5);
}

/* Two jobs share a prefix and one of them is pressed: the other does not notice, whichever comes first, and both find it. */
static void test_shared_prefix(void **state)
{
    (void)state;
    static struct run lone[2], r[2], again;
    struct engine_config c = plain;
    c.prefix_cache = true;
    for (int policy = 0; policy < n_pressing(); policy++) {
        for (int i = 0; i < 2; i++) {
            if (i == 0)
                make_run(&lone[i], 2, 280, 100);
            else
                make_pressed(&lone[i], policy, 2, 280, 100);
            lone[i].prompt[270] = i;
            run_one(&plain, &lone[i]);
        }
        for (int first = 0; first < 2; first++) {
            struct engine *en = open_engine(&c);
            for (int k = 0; k < 2; k++) {
                int i = k == 0 ? first : 1 - first;
                make_run(&r[i], 2, 280, 100);
                r[i].prompt[270] = i;
                r[i].job.kv = lone[i].job.kv;
                submit(en, &r[i]);
                while (k == 0 && atomic_load(&engine_stats(en)->generation_tokens) < 3)
                    usleep(50); /* the second comes while the first is at its answer */
            }
            for (int i = 0; i < 2; i++) {
                wait_done(&r[i]);
                assert_same(&lone[i], &r[i]);
            }
            assert_true(r[1 - first].usage.cached_tokens >= 192);
            assert_int_equal(r[first].usage.cached_tokens, 0);
            /* what was published outlives the pressing */
            make_run(&again, 2, 280, 100);
            again.prompt[270] = 0;
            submit(en, &again);
            wait_done(&again);
            assert_same(&lone[0], &again);
            assert_true(again.usage.cached_tokens >= 256);
            check_clean(en);
            engine_close(en);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fits),
        cmocka_unit_test_setup_teardown(test_crowd_f16, open_crowd, close_crowd),
        cmocka_unit_test_setup_teardown(test_crowd_bf16, open_crowd, close_crowd),
        cmocka_unit_test_setup_teardown(test_crowd_f32, open_crowd, close_crowd),
        cmocka_unit_test(test_shared_prefix),
    };
    return cmocka_run_group_tests(tests, open_toy, close_toy);
}
