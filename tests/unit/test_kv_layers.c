/* A prompt that is pressed layer by layer: the pages it takes, the bits it leaves, and that all come back at any layer. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/tools/kv_world.h"

enum { N = 300, FULL = N / KV_PAGE }; /* full pages, and one more in part */

static struct kv_stats stats(const struct kv_pool *p)
{
    struct kv_stats s;
    kv_pool_stats(p, &s);
    return s;
}

static struct kv_options layered(int budget)
{
    struct kv_options o = kv_world_options(&kv_world_evict, budget);
    o.layer_major = 1;
    return o;
}

/* The pages of one layer, of all layers for the tail page only, one layer's query pages, and those that stay. */
static void test_pages(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = layered(64);
    struct kv_report r = { 0 };
    struct err e;
    kv_world_open(&w, KV_BF16, 1, false);
    assert_int_equal(kv_seq_open(&s, w.p, &o, N, N + 10, &e), 0);
    int64_t need = FULL + KV_LAYERS + s.want_query + s.max_spare / KV_HEADS;
    assert_int_equal(kv_seq_need(&s, w.p, N), need);
    for (int l = 0; l < KV_LAYERS; l++) {
        assert_int_equal(s.layer, l);
        kv_world_grow(&w, &s, N);
        assert_int_equal(stats(w.p).used, need);
        assert_int_equal(kv_seq_need(&s, w.p, N), 0);
        assert_true(kv_compact_due(&s));
        assert_int_equal(kv_compact(w.c, &s, &r, &e), 0);
        assert_int_equal(kv_seq_pressed(&s), l == KV_LAYERS - 1);
        assert_int_equal(r.n_compactions, l == KV_LAYERS - 1);
        assert_false(kv_compact_due(&s));
        assert_true(kv_pool_check(w.p));
    }
    assert_int_equal(s.n_tokens, N);
    assert_int_equal(s.n_blocks, 1);
    assert_int_equal(s.n_query, 0);
    assert_int_equal(stats(w.p).used, KV_LAYERS + s.max_spare / KV_HEADS);
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

/* Presses in both ways and goes on to the next pressing: the same bits all along. */
static void same(enum kv_type type, bool device, const struct kv_options *o, int n)
{
    uint64_t bits[2][2];
    struct kv_report r[2][2];
    for (int way = 0; way < 2; way++) {
        struct kv_world w;
        struct kv_seq s;
        struct err e;
        struct kv_options opt = *o;
        opt.layer_major = way;
        memset(r[way], 0, sizeof r[way]);
        kv_world_open(&w, type, 2, device);
        kv_world_start(&w, &s, &opt, n, n + 400);
        while (!kv_seq_pressed(&s)) {
            kv_world_grow(&w, &s, n);
            assert_int_equal(kv_compact(w.c, &s, &r[way][0], &e), 0);
        }
        bits[way][0] = kv_world_bits(&w, &s);
        kv_world_grow(&w, &s, n + 200);
        r[way][1] = kv_world_press(&w, &s);
        bits[way][1] = kv_world_bits(&w, &s);
        r[way][0].ns = r[way][1].ns = 0;
        kv_seq_close(&s, w.p);
        kv_world_close(&w);
    }
    assert_true(bits[0][0] == bits[1][0]);
    assert_true(bits[0][1] == bits[1][1]);
    assert_memory_equal(r[0], r[1], sizeof r[0]);
}

static void test_same(void **state)
{
    (void)state;
    static const enum kv_split split[] = { KV_SPLIT_UNIFORM, KV_SPLIT_PYRAMID, KV_SPLIT_ADA };
    for (int type = 0; type < KV_TYPE_N; type++) {
        for (int device = 0; device < 2; device++) {
            struct kv_options o = kv_world_options(&kv_world_evict, 64);
            o.split = split[(type + device) % 3];
            o.merge = device ? KV_MERGE_FIT : KV_MERGE_NONE;
            same((enum kv_type)type, device, &o, type == 0 ? N : N - N % KV_PAGE + type - 1);
        }
    }
}

/* Of every policy that may, its own split and merge. */
static void test_policies(void **state)
{
    (void)state;
    for (int i = 0; kv_policy_list[i] != NULL; i++) {
        const struct kv_policy *p = kv_policy_list[i];
        if (p->keeps_all || p->split == KV_SPLIT_MASS)
            continue;
        struct kv_options o = { .policy = p, .budget = 64, .seed = 3 };
        same(KV_F16, i % 2, &o, N);
    }
}

/* At every layer a sequence can be cleared and begin again. */
static void test_clear(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = layered(64);
    struct err e;
    kv_world_open(&w, KV_F16, 1, false);
    assert_int_equal(kv_seq_open(&s, w.p, &o, N, N + 10, &e), 0);
    for (int layers = 0; layers <= KV_LAYERS; layers++) {
        struct kv_report r = { 0 };
        for (int l = 0; l < layers; l++) {
            kv_world_grow(&w, &s, N);
            assert_int_equal(kv_compact(w.c, &s, &r, &e), 0);
        }
        if (layers < KV_LAYERS)
            kv_world_grow(&w, &s, N - 50);
        kv_seq_clear(&s, w.p);
        assert_int_equal(stats(w.p).used, 0);
        assert_true(kv_pool_check(w.p));
        assert_true(kv_seq_by_layer(&s));
        assert_int_equal(s.layer, 0);
        assert_int_equal(s.n_tokens, 0);
    }
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

/* A prefix found in the index has pages in all layers; nothing of the prompt goes there. */
static void test_prefix(void **state)
{
    (void)state;
    int32_t t[N] = { 0 };
    struct kv_world w;
    struct kv_options o = layered(64), all = { 0 };
    struct kv_seq s;
    struct err e;
    uint64_t bits[2];
    kv_world_open(&w, KV_BF16, 1, false);
    kv_world_start(&w, &s, &all, 4 * KV_PAGE, N);
    kv_prefix_publish(&s, w.p, t, 0);
    kv_seq_close(&s, w.p);
    for (int way = 0; way < 2; way++) {
        struct kv_report r = { 0 };
        o.layer_major = way;
        assert_int_equal(kv_seq_open(&s, w.p, &o, N, N + 10, &e), 0);
        assert_int_equal(kv_prefix_match(&s, w.p, t, N, 0), 4 * KV_PAGE);
        int64_t cached = stats(w.p).used;
        assert_int_equal(cached, 4 * KV_LAYERS);
        if (way == 1)
            assert_int_equal(kv_seq_need(&s, w.p, N),
                             FULL - 4 + KV_LAYERS + s.want_query + s.max_spare / KV_HEADS);
        while (!kv_seq_pressed(&s)) {
            kv_world_grow(&w, &s, N);
            if (way == 1)
                kv_prefix_publish(&s, w.p, t, 0);
            assert_int_equal(kv_compact(w.c, &s, &r, &e), 0);
        }
        bits[way] = kv_world_bits(&w, &s);
        kv_seq_close(&s, w.p);
        assert_int_equal(stats(w.p).cached, 4 * KV_LAYERS);
        assert_true(kv_pool_check(w.p));
    }
    assert_true(bits[0] == bits[1]);
    kv_prefix_clear(w.p);
    kv_world_close(&w);
}

/* Which prompts go so, and what a pool must hold for them: also the answer's wide tail in all layers. */
static void test_which(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq s;
    struct err e;
    kv_world_open(&w, KV_BF16, 1, false);
    int pages = (int)stats(w.p).pages,
        most = pages / KV_LAYERS * KV_PAGE; /* tokens of a whole one */
    struct kv_options o = layered(64);
    o.layer_major = N;
    assert_int_equal(kv_seq_open(&s, w.p, &o, N - 1, 2 * N, &e), 0);
    assert_false(s.layer_major);
    kv_seq_close(&s, w.p);
    assert_int_equal(kv_seq_open(&s, w.p, &o, N, 2 * N, &e), 0);
    assert_true(s.layer_major);
    kv_seq_close(&s, w.p);
    o.layer_major = INT_MAX;
    assert_int_equal(kv_seq_open(&s, w.p, &o, N, 2 * N, &e), 0);
    assert_false(s.layer_major);
    kv_seq_close(&s, w.p);
    assert_int_equal(kv_seq_open(&s, w.p, &o, most + N, most + 2 * N, &e), 0);
    assert_true(s.layer_major);
    kv_seq_close(&s, w.p);
    o.tail = most; /* the answer's */
    assert_int_equal(kv_seq_open(&s, w.p, &o, most + N, 3 * most, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, "a tail of"));
    assert_int_equal(kv_seq_open(&s, w.p, &o, N, 3 * most, &e),
                     ERR_LIMIT); /* whichever way it goes */
    o.tail = 0;
    o.split = KV_SPLIT_MASS;
    assert_int_equal(kv_seq_open(&s, w.p, &o, most + N, most + 2 * N, &e), ERR_LIMIT);
    o.split = KV_SPLIT_UNIFORM;
    o.mass_floor = 0.5f;
    o.budget_max = 128;
    assert_int_equal(kv_seq_open(&s, w.p, &o, most + N, most + 2 * N, &e), ERR_LIMIT);
    kv_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages),    cmocka_unit_test(test_same),
        cmocka_unit_test(test_policies), cmocka_unit_test(test_clear),
        cmocka_unit_test(test_prefix),   cmocka_unit_test(test_which),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
