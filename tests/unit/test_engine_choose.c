/* Choosing from logits that the CPU may not read: through the head op the same tokens come as from whole rows, nothing is
 * allocated, and a device that fails in the head ends all jobs. The backend is the CPU's, which says of its memory between
 * passes that it is not the host's.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "tests/tools/engine_fixture.h"

static const struct engine_config plain = { .max_seqs = 8, .kv_tokens = 4096, .kv_type = KV_F32 };

/* ---- memory that is elsewhere -------------------------------------------------------------------------------- */

static const struct be_ops *near_ops;
static struct be_ops far_ops;
static int n_heads, n_fetched,
    fail_at; /* calls of head, rows fetched, the call of head that loses the device */
static bool lost;

static bool far_step_begin(struct be *be, struct be_step *s, const void *owner)
{
    be->host = true;
    return near_ops->step_begin(be, s, owner);
}

static void far_step_end(struct be *be)
{
    near_ops->step_end(be);
    be->host = false;
}

static void far_download(struct be *be, void *dst, const void *src, size_t bytes)
{
    if (bytes == TOY_VOCAB * sizeof(float))
        n_fetched++;
    near_ops->download(be, dst, src, bytes);
}

static int far_sync(struct be *be, struct err *e)
{
    if (lost)
        return err_set(e, ERR_DEVICE, "the device is gone");
    return near_ops->sync(be, e);
}

static void far_head(struct be *be, float *logits, int n, int vocab, const struct be_head_row *row,
                     struct be_head_out *out)
{
    near_ops->head(be, logits, n, vocab, row, out);
    if (++n_heads != fail_at)
        return;
    lost = true;
    memset(out, 0x5a, (size_t)n * sizeof *out); /* nobody may read it */
}

static void set_far(bool far)
{
    n_heads = n_fetched = fail_at = 0;
    lost = false;
    toy.be->host = !far;
    toy.be->ops = far ? &far_ops : near_ops;
}

static int open_far(void **state)
{
    if (open_toy(state) < 0)
        return -1;
    near_ops = toy.be->ops;
    far_ops = *near_ops;
    far_ops.step_begin = far_step_begin;
    far_ops.step_end = far_step_end;
    far_ops.download = far_download;
    far_ops.sync = far_sync;
    far_ops.head = far_head;
    return 0;
}

static int close_far(void **state)
{
    set_far(false);
    return close_toy(state);
}

/* ---- the same tokens ----------------------------------------------------------------------------------------- */

static struct logit_bias bias[] = { { 270, 4 }, { 3, -100 }, { 8, 1.5f } };

static const struct {
    struct sample_params p;
    bool may_fetch;
} grid[] = {
    { { .top_p = 1, .repetition_penalty = 1, .n_logprobs = 20 }, false },
    { { .top_p = 1, .repetition_penalty = 1.3f, .frequency_penalty = 0.5f, .n_logprobs = 3 },
      false },
    { { .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_logprobs = 0 }, false },
    { { .temperature = 0.7f,
        .top_p = 1,
        .repetition_penalty = 1.1f,
        .presence_penalty = 0.4f,
        .bias = bias,
        .n_bias = 3,
        .n_logprobs = 5 },
      false },
    { { .temperature = 1, .top_p = 0.9f, .repetition_penalty = 1, .n_logprobs = 5 }, false },
    { { .temperature = 1, .top_p = 0.8f, .top_k = 40, .repetition_penalty = 1, .n_logprobs = -1 },
      false },
    { { .temperature = 1.5f, .top_p = 1, .min_p = 0.05f, .repetition_penalty = 1 }, false },
    { { .temperature = 1, .top_p = 0.95f, .min_p = 0.02f, .repetition_penalty = 1 }, false },
    { { .temperature = 30, .top_p = 0.99f, .repetition_penalty = 1, .n_logprobs = 2 }, true },
    { { .temperature = 9, .top_p = 1, .top_k = 280, .repetition_penalty = 1.1f, .n_logprobs = 2 },
      true },
};
enum { N_RUNS = sizeof grid / sizeof *grid };
static struct run whole[N_RUNS], far_run[N_RUNS];

static void make_one(struct run *r, int i)
{
    make_run(r, 0, 20 + i, 80);
    r->job.sample = grid[i].p;
    r->job.sample.seed = (uint64_t)i;
    r->job.prompt_logprobs = i % 3 == 0 && grid[i].p.n_logprobs >= 0;
}

static void near_results(const struct sample_result *a, const struct sample_result *b, int n)
{
    for (int i = 0; i < n; i++) {
        assert_int_equal(a[i].id, b[i].id);
        assert_float_equal(a[i].logprob, b[i].logprob, 1e-5f);
        assert_int_equal(a[i].n_top, b[i].n_top);
        for (int k = 0; k < a[i].n_top; k++) {
            assert_int_equal(a[i].top[k].id, b[i].top[k].id);
            assert_float_equal(a[i].top[k].logprob, b[i].top[k].logprob, 1e-5f);
        }
    }
}

static void assert_near(const struct run *a, const struct run *b)
{
    assert_int_equal(a->finish, FINISH_LENGTH);
    assert_int_equal(b->finish, FINISH_LENGTH);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_int_equal(a->n_scored, b->n_scored);
    assert_string_equal(a->text, b->text);
    near_results(a->result, b->result, a->n_tokens);
    near_results(a->score, b->score, a->n_scored);
}

static void test_same_tokens(void **state)
{
    (void)state;
    for (int i = 0; i < N_RUNS; i++) {
        set_far(false);
        make_one(&whole[i], i);
        run_one(&plain, &whole[i]);
        set_far(true);
        make_one(&far_run[i], i);
        run_one(&plain, &far_run[i]);
        assert_near(&whole[i], &far_run[i]);
        assert_true(n_heads >= 80);
        assert_true(grid[i].may_fetch == (n_fetched > 0));
    }
    /* and together */
    set_far(true);
    struct engine *en = open_engine(&plain);
    for (int i = 0; i < N_RUNS; i++) {
        make_one(&far_run[i], i);
        submit(en, &far_run[i]);
    }
    for (int i = 0; i < N_RUNS; i++)
        wait_done(&far_run[i]);
    check_clean(en);
    engine_close(en);
    for (int i = 0; i < N_RUNS; i++)
        assert_near(&whole[i], &far_run[i]);
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

static void test_memory(void **state)
{
    (void)state;
    struct mem_stats before, after;
    struct engine *en;
    struct err e;
    set_far(true);
    en = open_engine(&plain);
    for (int i = 0; i < 8; i++) {
        make_run(&far_run[i], 0, 10, 100);
        far_run[i].job.sample = grid[N_RUNS - 8 + i].p;
    }
    submit_all(en, far_run, 8); /* one that is admitted beside others allocates */
    for (int i = 0; i < 8; i++) {
        wait_done(&far_run[i]);
        assert_true(far_run[i].calls_early > 0);
        assert_int_equal(far_run[i].calls_early, far_run[i].calls_late);
    }
    engine_close(en);
    mem_stats(&before);
    int rc = -1;
    for (uint64_t n = 1; rc < 0; n++) {
        assert_true(n < 100);
        mem_fail_at(n);
        rc = engine_open(&en, toy.model, &plain, &e);
        mem_fail_at(0);
        if (rc < 0)
            assert_int_equal(rc, ERR_NOMEM);
    }
    engine_close(en);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

/* ---- a device that is lost in the head ----------------------------------------------------------------------- */

static void test_lost(void **state)
{
    (void)state;
    struct err e = { 0 };
    set_far(true);
    fail_at = 5;
    struct engine *en = open_engine(&plain);
    assert_int_equal(engine_error(en, &e), 0);
    for (int i = 0; i < 4; i++)
        make_run(&far_run[i], i, 20, 100);
    submit_all(en, far_run, 3);
    for (int i = 0; i < 3; i++) {
        wait_done(&far_run[i]);
        assert_int_equal(far_run[i].finish, FINISH_ERROR);
        assert_int_equal(far_run[i].code, ERR_DEVICE);
        assert_true(far_run[i].n_tokens < 5);
    }
    assert_int_equal(engine_error(en, &e), ERR_DEVICE);
    assert_string_equal(e.text, "the device is gone");
    assert_int_equal(try_submit(en, &far_run[3], &e), ERR_DEVICE);
    check_clean(en);
    engine_close(en);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_tokens),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_lost),
    };
    return cmocka_run_group_tests(tests, open_far, close_far);
}
