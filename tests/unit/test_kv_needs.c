/* What a compaction will need is there before it is due: pages, records of queries, options that make sense. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/tools/kv_world.h"

enum { N = 7 * KV_PAGE };

static struct kv_stats stats(const struct kv_pool *p)
{
    struct kv_stats s;
    kv_pool_stats(p, &s);
    return s;
}

static void test_reserve_spares(void **state)
{
    (void)state;
    struct kv_world w;
    kv_world_open(&w, KV_BF16, 1, false);
    struct kv_pool *p = w.p;
    struct kv_options o = { .policy = &kv_world_evict, .budget = 64, .split = KV_SPLIT_UNIFORM };
    struct kv_seq s;
    struct err e;
    /* 2 narrow pages a head are one wide page a layer each; 32 records of 144 bytes take 2 pages of 4096 a layer */
    assert_int_equal(kv_seq_open(&s, p, &o, 100, 120, &e), 0);
    assert_int_equal(s.want_query, 2);
    assert_int_equal(kv_seq_need(&s, p, 100), (4 + 2 + 2) * KV_LAYERS);
    assert_false(kv_compact_due(&s));
    assert_int_equal(kv_seq_reserve(&s, p, 100), 0);
    assert_int_equal(stats(p).used, (4 + 2 + 2) * KV_LAYERS);
    assert_int_equal(stats(p).narrow, 2 * KV_HEADS * KV_LAYERS);
    assert_int_equal(kv_seq_need(&s, p, 128), 0);
    size_t narrow = stats(p).page_bytes / KV_HEADS + KV_PAGE * sizeof(float);
    assert_int_equal(kv_seq_bytes(&s, p),
                     6 * KV_LAYERS * (stats(p).page_bytes + stats(p).sample_bytes) +
                         2 * KV_HEADS * KV_LAYERS * narrow);
    s.n_tokens = 99;
    assert_false(kv_compact_due(&s));
    s.n_tokens = 100;
    assert_true(kv_compact_due(&s));
    assert_true(kv_pool_check(p));
    kv_seq_clear(&s, p);
    assert_int_equal(stats(p).free, stats(p).pages);
    assert_int_equal(kv_seq_need(&s, p, 100), (4 + 2 + 2) * KV_LAYERS);
    kv_seq_close(&s, p);
    /* a split may round every head up: (64 + 31) / 32 pages a head, 11 of them */
    o.split = KV_SPLIT_ADA;
    assert_int_equal(kv_seq_open(&s, p, &o, 100, 120, &e), 0);
    assert_int_equal(s.max_spare, (64 + 31) * KV_HEADS * KV_LAYERS / KV_PAGE);
    assert_int_equal(kv_seq_need(&s, p, 100), (4 + 2) * KV_LAYERS + (s.max_spare + 1) / KV_HEADS);
    kv_seq_close(&s, p);
    /* the guard's ceiling */
    o.split = KV_SPLIT_UNIFORM;
    o.mass_floor = 0.9f;
    o.budget_max = 96;
    assert_int_equal(kv_seq_open(&s, p, &o, 100, 120, &e), 0);
    assert_int_equal(s.max_spare, 3 * KV_HEADS * KV_LAYERS);
    kv_seq_close(&s, p);
    kv_world_close(&w);
}

/* What is pressed and what comes of it lie side by side for a moment: a pool that has no room for both says so at once, or
 * keeps whole what fits whole. */
static void test_no_room_for_both(void **state)
{
    (void)state;
    struct kv_world w;
    kv_world_open(&w, KV_BF16, 1, false);
    int most = (int)(stats(w.p).pages / KV_LAYERS) * KV_PAGE;
    struct kv_options o = { .policy = &kv_world_evict, .split = KV_SPLIT_UNIFORM };
    struct kv_seq s;
    struct err e;
    o.budget = most / 2;
    assert_int_equal(kv_seq_open(&s, w.p, &o, most - 10, most, &e), ERR_LIMIT);
    o.budget = most - 5 * KV_PAGE;
    o.tail = 1;
    assert_int_equal(kv_seq_open(&s, w.p, &o, 64, most, &e), 0);
    assert_null(s.spare);
    assert_int_equal(kv_seq_need(&s, w.p, most), stats(w.p).pages);
    assert_int_equal(kv_seq_reserve(&s, w.p, most), 0);
    s.n_tokens = most;
    assert_false(kv_compact_due(&s));
    kv_seq_close(&s, w.p);
    assert_true(kv_pool_check(w.p));
    kv_world_close(&w);
}

/* A tail that would not fit when the answer is pressed again is not waited for. */
static void test_no_room_for_the_tail(void **state)
{
    (void)state;
    struct kv_world w;
    kv_world_open(&w, KV_BF16, 1, false);
    int pages = (int)stats(w.p).pages / KV_LAYERS, most = pages * KV_PAGE;
    int room =
        (pages - 2) * KV_PAGE; /* tokens beside the spares: two pages a head, as many a layer */
    struct kv_options o = { .policy = &kv_world_evict, .budget = 16, .split = KV_SPLIT_UNIFORM };
    struct kv_seq s;
    struct err e;
    o.tail = room - KV_PAGE;
    assert_int_equal(kv_seq_open(&s, w.p, &o, 10, most, &e), 0);
    assert_non_null(s.spare);
    kv_seq_close(&s, w.p);
    o.tail = room - o.budget - 1; /* as many pages for the first time, one more later */
    assert_int_equal(kv_seq_open(&s, w.p, &o, 10, most, &e), 0);
    assert_null(s.spare);
    assert_int_equal(kv_seq_need(&s, w.p, most), stats(w.p).pages);
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

/* What fits its budget takes nothing; what may outgrow it takes spares when it does. */
static void test_reserve_late(void **state)
{
    (void)state;
    struct kv_world w;
    kv_world_open(&w, KV_BF16, 1, false);
    struct kv_pool *p = w.p;
    struct kv_options o = {
        .policy = &kv_world_evict, .budget = 64, .tail = 40, .split = KV_SPLIT_UNIFORM
    };
    struct kv_seq s;
    struct err e;
    assert_int_equal(kv_seq_open(&s, p, &o, 64, 104, &e), 0);
    assert_null(s.spare);
    assert_int_equal(s.want_query, 0);
    s.n_tokens = 104;
    assert_false(kv_compact_due(&s));
    s.n_tokens = 0;
    kv_seq_close(&s, p);
    assert_int_equal(kv_seq_open(&s, p, &o, 64, 105, &e), 0);
    assert_int_equal(s.want_query, 0);
    assert_int_equal(kv_seq_need(&s, p, 104), 4 * KV_LAYERS);
    assert_int_equal(kv_seq_need(&s, p, 105), (4 + 2) * KV_LAYERS);
    assert_int_equal(kv_seq_reserve(&s, p, 104), 0);
    s.n_tokens = 104;
    assert_false(kv_compact_due(&s));
    assert_int_equal(s.n_spare, 0);
    assert_int_equal(kv_seq_need(&s, p, 105), 2 * KV_LAYERS);
    assert_int_equal(kv_seq_reserve(&s, p, 105), 0);
    assert_int_equal(s.n_spare, 2 * KV_HEADS * KV_LAYERS);
    s.n_tokens = 105;
    assert_true(kv_compact_due(&s));
    assert_true(kv_pool_check(p));
    kv_seq_close(&s, p);
    assert_int_equal(stats(p).free, stats(p).pages);
    kv_world_close(&w);
    struct kv_shape bare = { .n_layers = 1, .n_kv_heads = 1, .head_dim = 2 };
    struct be_config cpu = { .n_threads = 1 };
    struct be *be;
    assert_int_equal(be_open(&be, &cpu, &e), 0);
    assert_int_equal(kv_pool_open(&p, be, &bare, 64, &e), 0);
    assert_int_equal(kv_seq_open(&s, p, &o, 64, 105, &e), ERR_UNSUPPORTED);
    kv_pool_close(p);
    be_close(be);
}

/* The guard may keep all there is when it is asked, which does not depend on how long the answer may become. */
static void test_reserve_guard(void **state)
{
    (void)state;
    struct kv_world w;
    kv_world_open(&w, KV_BF16, 1, false);
    struct kv_options o = { .policy = &kv_world_evict, .budget = 600, .split = KV_SPLIT_UNIFORM };
    struct kv_seq s;
    struct err e;
    o.mass_floor = 0.9f;
    o.budget_max = 1 << 30;
    for (int most = 900; most <= 1900; most += 100) {
        assert_int_equal(kv_seq_open(&s, w.p, &o, 900, most, &e), 0);
        assert_int_equal(s.max_spare, 29 * KV_ALL);
        kv_seq_close(&s, w.p);
    }
    o.budget = 64;
    o.tail = 40;
    for (int most = 105; most <= 1905; most += 300) {
        assert_int_equal(kv_seq_open(&s, w.p, &o, 64, most, &e), 0);
        assert_int_equal(s.max_spare, 4 * KV_ALL);
        kv_seq_close(&s, w.p);
    }
    o.budget = KV_BUDGET_MIN;
    o.sinks = -1;
    for (int i = 0; i < 2; i++) { /* a page before anything is pressed */
        o.tail = i == 0 ? 1 : 1 << 30;
        assert_int_equal(kv_seq_open(&s, w.p, &o, KV_PAGE - 1 + i, 1900, &e), 0);
        assert_int_equal(s.max_spare, KV_ALL);
        kv_seq_close(&s, w.p);
    }
    kv_world_close(&w);
}

static void test_keep(void **state)
{
    (void)state;
    struct kv_world w;
    kv_world_open(&w, KV_BF16, 1, false);
    struct kv_pool *p = w.p;
    struct kv_options o = { .policy = &kv_world_evict, .budget = 16 }, all = { 0 };
    struct kv_seq s, full;
    struct err e;
    struct be_keep k;
    assert_int_equal(kv_seq_open(&s, p, &o, 70, 100, &e), 0);
    assert_int_equal(kv_seq_reserve(&s, p, 75), 0);
    size_t record = kv_record_bytes(KV_BF16, KV_HEADS * KV_GROUP, KV_DIM);
    assert_int_equal(stats(p).sample_bytes, 4 * record);
    char *seen[KV_LAYERS * (9 + KV_WINDOW_QUERIES)];
    int n = 0;
    for (int l = 0; l < KV_LAYERS; l++) {
        for (int pos = 0; pos < 75; pos++) {
            bool kept = kv_seq_keep(&s, p, l, pos, &k), sample = pos % 8 == 7;
            bool window = pos >= 70 - KV_WINDOW_QUERIES && pos < 70;
            assert_int_equal(kept, sample || window);
            assert_int_equal(k.sample != NULL, sample);
            assert_int_equal(k.window != NULL, window);
            if (sample)
                seen[n++] = k.sample;
            if (window)
                seen[n++] = k.window;
        }
    }
    assert_int_equal(n, KV_LAYERS * (9 + KV_WINDOW_QUERIES));
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++)
            assert_true(seen[i] + record <= seen[j] || seen[j] + record <= seen[i]);
    kv_seq_close(&s, p);
    /* one that keeps everything leaves samples for others that find its pages */
    assert_int_equal(kv_seq_open(&full, p, &all, 64, 64, &e), 0);
    assert_int_equal(kv_seq_reserve(&full, p, 64), 0);
    assert_true(kv_seq_keep(&full, p, 0, 31, &k));
    assert_non_null(k.sample);
    assert_false(kv_seq_keep(&full, p, 0, 63 - 1, &k));
    kv_seq_close(&full, p);
    kv_world_close(&w);
}

/* The prompt's last queries have to be computed, however much of it is cached. */
static void test_prefix_window(void **state)
{
    (void)state;
    int32_t t[N] = { 0 };
    struct kv_world w;
    struct kv_options o = kv_world_options(&kv_world_evict, 64), all = { 0 };
    struct kv_seq s;
    struct err e;
    kv_world_open(&w, KV_BF16, 1, false);
    kv_world_start(&w, &s, &all, N, N);
    kv_prefix_publish(&s, w.p, t, 0);
    kv_seq_close(&s, w.p);
    assert_int_equal(kv_seq_open(&s, w.p, &all, N, N, &e), 0);
    assert_int_equal(kv_prefix_match(&s, w.p, t, N, 0), N - KV_PAGE);
    kv_seq_close(&s, w.p);
    assert_int_equal(kv_seq_open(&s, w.p, &o, N, N, &e), 0);
    assert_int_equal(kv_prefix_match(&s, w.p, t, N, 0), N - KV_PAGE);
    kv_seq_close(&s, w.p);
    assert_int_equal(kv_seq_open(&s, w.p, &o, N - 1, N, &e), 0);
    assert_int_equal(kv_prefix_match(&s, w.p, t, N - 1, 0), N - 2 * KV_PAGE);
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

static void bad_option(struct kv_options o, const char *name)
{
    struct err e;
    o.policy = &kv_world_evict;
    assert_int_equal(kv_options_fill(&o, 1000, 100, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, name));
}

static void test_options(void **state)
{
    (void)state;
    struct err e;
    struct kv_options o = { .policy = &kv_world_evict };
    assert_int_equal(kv_options_fill(&o, 1000, 100, &e), 0);
    assert_int_equal(o.budget, KV_BUDGET_DEFAULT);
    assert_int_equal(o.budget_max, KV_BUDGET_DEFAULT);
    assert_int_equal(o.sinks, 4);
    assert_int_equal(o.window, 32);
    assert_int_equal(o.tail, 256);
    assert_int_equal(o.queries, 224);
    assert_true(o.local == 0.5f && o.phi == 0.5f && o.lambda == 0.02f);
    assert_int_equal(o.merge, KV_MERGE_NONE);
    assert_int_equal(o.split, KV_SPLIT_UNIFORM);
    o = (struct kv_options){
        .policy = &kv_world_evict, .budget_fraction = 0.064, .local = -1, .sinks = -1
    };
    assert_int_equal(kv_options_fill(&o, 1000, 100, &e), 0);
    assert_int_equal(o.budget, 64);
    assert_int_equal(o.tail, 128);
    assert_int_equal(o.window, 16);
    assert_int_equal(o.sinks, 0);
    assert_true(o.local == 0);
    o = (struct kv_options){ .policy = kv_policy_find("ems"), .question0 = 990, .question1 = 1000 };
    assert_int_equal(kv_options_fill(&o, 1000, 100, &e), 0);
    assert_true(o.local == 1 && o.phi == 0.9f);
    o = (struct kv_options){ .policy = kv_policy_find("ems-r") };
    assert_int_equal(kv_options_fill(&o, 1000, 100, &e), 0);
    assert_true(o.local == 0.5f && o.phi == 0.5f);
    o = (struct kv_options){ .policy = &kv_world_evict, .budget_bytes = 6499, .protect = 500 };
    assert_int_equal(kv_options_fill(&o, 1000, 100, &e), 0);
    assert_int_equal(o.budget, 64);
    assert_int_equal(o.protect, 16);
    o = (struct kv_options){ .policy = &kv_world_evict, .budget = 200 };
    assert_int_equal(kv_options_fill(&o, 1000, 100, &e), 0);
    assert_int_equal(o.tail, 200);
    o = (struct kv_options){ .policy = &kv_world_evict, .budget = 500 };
    assert_int_equal(kv_options_fill(&o, 1000, 100, &e), 0);
    assert_int_equal(o.tail, 256);
    o = (struct kv_options){ 0 };
    assert_int_equal(kv_options_fill(&o, 1000, 100, &e), 0);
    assert_ptr_equal(o.policy, kv_policy_list[0]);
    assert_int_equal(o.budget, 0);
    bad_option((struct kv_options){ .budget = 15 }, "budget is 15");
    bad_option((struct kv_options){ .budget = 64, .budget_bytes = 6400 }, "budget_bytes");
    bad_option((struct kv_options){ .budget_fraction = 1 }, "budget_fraction is 1");
    bad_option((struct kv_options){ .budget_bytes = 1599 },
               "budget_bytes is 1599; it is at least 1600 bytes");
    bad_option((struct kv_options){ .budget = 64, .budget_max = 63 }, "budget_max is 63");
    bad_option((struct kv_options){ .mass_floor = 1.5f }, "mass_floor is 1.5");
    bad_option((struct kv_options){ .question0 = 9, .question1 = 8 }, "question0 is 9");
    bad_option((struct kv_options){ .question1 = 1001 }, "question1 is 1001");
    bad_option((struct kv_options){ .local = 2 }, "local is 2");
    bad_option((struct kv_options){ .tail = -1 }, "tail is -1");
    assert_int_equal(kv_merge_find("values"), KV_MERGE_VALUES);
    assert_int_equal(kv_merge_find("mean"), KV_MERGE_MEAN);
    assert_int_equal(kv_merge_find("default"), KV_MERGE_DEFAULT);
    assert_int_equal(kv_split_find("mass"), KV_SPLIT_MASS);
    assert_int_equal(kv_split_find(""), KV_SPLIT_DEFAULT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reserve_spares),
        cmocka_unit_test(test_reserve_late),
        cmocka_unit_test(test_no_room_for_the_tail),
        cmocka_unit_test(test_no_room_for_both),
        cmocka_unit_test(test_keep),
        cmocka_unit_test(test_prefix_window),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_reserve_guard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
