/* Queries on their way through the forward pass: the records that policies score by are the same however a prompt was cut,
 * say what attention said, and leave the logits as they are. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/cli/runner.h"
#include "tests/tools/pressing.h"
#include "tests/tools/toy.h"

enum { TOKENS = 200, SAMPLES = 4, MAX_RECORDS = TOKENS / KV_PAGE * SAMPLES + SAMPLES + 32 };

static struct toy toy;
static int32_t token[TOKENS];

static int open_toy(void **state)
{
    struct err e;
    (void)state;
    for (int i = 0; i < TOKENS; i++)
        token[i] = 3 + (i * 37 + 11) % (TOY_VOCAB - 3);
    return toy_open(&toy, 5, "auto", 2, NULL, &e);
}

static int close_toy(void **state)
{
    struct mem_stats m;
    (void)state;
    toy_close(&toy);
    mem_stats(&m);
    return m.blocks != 0;
}

/* The prompt in steps of at most max_rows; the last logits come back. samples 0: without policy, otherwise with so
 * small a budget that the prompt's last queries are kept too. The pool has room for two, because pressing needs some. */
static void open_prompt(struct runner *r, enum kv_type type, int samples, int max_rows,
                        float *logits)
{
    struct err e = { 0 };
    const float *last;
    struct kv_options o = { .policy = pressing(0), .budget = 32 };
    assert_int_equal(
        runner_open_kv(r, toy.model, type, KV_NARROW_SAME, 2, TOKENS, max_rows, 1, samples, &e), 0);
    if (samples > 0)
        assert_int_equal(runner_begin(r, 0, &o, TOKENS, &e), 0);
    assert_int_equal(runner_prefill(r, 0, token, TOKENS - 1, &e), 0);
    assert_int_equal(runner_append(r, 0, token + TOKENS - 1, 1, 1, &last, &e), 0);
    memcpy(logits, last, TOY_VOCAB * sizeof *logits);
}

/* All records in order, and the position of each; returns how many there are a layer. */
static int list_records(const struct runner *r, int layer, const char *record[MAX_RECORDS],
                        int pos[MAX_RECORDS])
{
    int n = 0;
    for (int i = 0; i < TOKENS; i++) {
        struct be_keep keep;
        if (!kv_seq_keep(&r->seq[0], r->pool, layer, i, &keep))
            continue;
        const void *at[2] = { keep.sample, keep.window };
        for (int k = 0; k < 2; k++) {
            if (at[k] == NULL)
                continue;
            assert_true(n < MAX_RECORDS);
            record[n] = at[k];
            pos[n++] = i;
        }
    }
    return n;
}

static void test_any_chunking(void **state)
{
    static const int rows[] = { 33, 7, 1 };
    static float want[TOY_VOCAB], got[TOY_VOCAB];
    const char *a[MAX_RECORDS], *b[MAX_RECORDS];
    int pos_a[MAX_RECORDS], pos_b[MAX_RECORDS];
    struct runner whole, other;
    (void)state;
    for (int type = 0; type < KV_TYPE_N; type++) {
        size_t bytes = kv_record_lse(type, TOY_HEADS, TOY_DIM / TOY_HEADS) + TOY_HEADS * 4;
        open_prompt(&whole, type, SAMPLES, TOKENS, want);
        open_prompt(&other, type, 0, TOKENS, got);
        assert_memory_equal(got, want, sizeof want);
        assert_int_equal(list_records(&other, 0, b, pos_b), 0);
        runner_close(&other);
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            open_prompt(&other, type, SAMPLES, rows[i], got);
            assert_memory_equal(got, want, sizeof want);
            for (int l = 0; l < TOY_LAYERS; l++) {
                int n = list_records(&whole, l, a, pos_a);
                assert_int_equal(n, TOKENS * SAMPLES / KV_PAGE + KV_WINDOW_QUERIES);
                assert_int_equal(list_records(&other, l, b, pos_b), n);
                for (int k = 0; k < n; k++) {
                    assert_int_equal(pos_a[k], pos_b[k]);
                    assert_memory_equal(a[k], b[k], bytes);
                }
            }
            runner_close(&other);
        }
        runner_close(&whole);
    }
}

/* log sum_j exp(q.k_j * scale) over the keys in the cache. */
static double naive_lse(const struct runner *r, int layer, int pos, int head, const float *q)
{
    enum { DIM = TOY_DIM / TOY_HEADS, GROUP = TOY_HEADS / TOY_KV_HEADS };
    struct kv_view v;
    double sum = 0;
    kv_seq_view(&r->seq[0], r->pool, layer, &v);
    for (int j = 0; j <= pos; j++) {
        size_t block = (size_t)(v.wide[j / KV_PAGE] * TOY_KV_HEADS + head / GROUP);
        const float *k =
            (const float *)((char *)kv_pool_base(r->pool) + block * kv_block_bytes(KV_F32, DIM));
        double dot = 0;
        for (int i = 0; i < DIM; i++)
            dot += (double)q[i] * (double)k[kv_k_index(j % KV_PAGE, i)];
        sum += exp(dot / sqrt(DIM));
    }
    return log(sum);
}

static void test_what_attention_saw(void **state)
{
    enum { DIM = TOY_DIM / TOY_HEADS };
    static float logits[TOY_VOCAB];
    const char *record[MAX_RECORDS];
    int pos[MAX_RECORDS];
    struct runner r;
    (void)state;
    open_prompt(&r, KV_F32, SAMPLES, 50, logits);
    for (int l = 0; l < TOY_LAYERS; l++) {
        int n = list_records(&r, l, record, pos);
        assert_true(n > 0);
        for (int k = 0; k < n; k++) {
            const float *q = (const float *)(const void *)record[k];
            const float *lse =
                (const float *)(const void *)(record[k] + kv_record_lse(KV_F32, TOY_HEADS, DIM));
            for (int h = 0; h < TOY_HEADS; h++)
                assert_true(fabs(naive_lse(&r, l, pos[k], h, q + h * DIM) - (double)lse[h]) < 1e-5);
        }
    }
    runner_close(&r);
}

static void test_rope(void **state)
{
    (void)state;
    const struct kv_rope *rope = &toy.model->rope;
    assert_int_equal(rope->half, TOY_DIM / TOY_HEADS / 2);
    assert_false(rope->half_split);
    for (int i = 0; i < rope->half; i++)
        assert_true(fabs((double)rope->inv_freq[i] - pow(10000, -(double)i / rope->half)) < 1e-7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_chunking),
        cmocka_unit_test(test_what_attention_saw),
        cmocka_unit_test(test_rope),
    };
    return cmocka_run_group_tests(tests, open_toy, close_toy);
}
