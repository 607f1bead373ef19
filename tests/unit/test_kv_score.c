/* What policies are made of: pooling, ranks, the Global-Local score, turned queries, the list of names. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache/score.h"
#include "server/base/mem.h"
#include "tests/tools/head.h"
#include "tests/tools/levels.h"

enum { N = 500, DIM = 16 };

static void test_pool(void **state)
{
    (void)state;
    const float s[6] = { 1, 5, 2, 0, 0, 3 };
    float out[6];
    kv_pool_max(out, s, 6, 1, 1);
    assert_memory_equal(out, ((float[6]){ 5, 5, 5, 2, 3, 3 }), sizeof out);
    kv_pool_max(out, s, 6, 0, 0);
    assert_memory_equal(out, s, sizeof out);
    kv_pool_max(out, s, 6, 1000, 1000);
    assert_memory_equal(out, ((float[6]){ 5, 5, 5, 5, 5, 5 }), sizeof out);
    kv_pool_max(out, s, 6, 2, 0);
    assert_memory_equal(out, ((float[6]){ 1, 5, 5, 5, 2, 3 }), sizeof out);
    kv_pool_max(out, s, 6, 0, 3);
    assert_memory_equal(out, ((float[6]){ 5, 5, 3, 3, 3, 3 }), sizeof out);
    kv_pool_mean(out, s, 6, 1);
    assert_memory_equal(out, ((float[6]){ 3, 8 / 3.0f, 7 / 3.0f, 2 / 3.0f, 1, 1.5f }), sizeof out);
    kv_pool_mean(out, s, 6, 0);
    assert_memory_equal(out, s, sizeof out);
    kv_pool_mean(out, s, 6, 1000);
    assert_true(is_near(out[0], 11 / 6.0f, 0));
    assert_true(is_near(out[5], 11 / 6.0f, 0));
    kv_pool_max(out, (float[3]){ NAN, 1, NAN }, 3, 1, 1);
    assert_true(is_near(out[0], 1, 0));
    assert_true(is_near(out[2], 1, 0));
}

static const float *sorted; /* what `better` compares */

/* The definition of rank, for qsort. */
static int better(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    float x = sorted[i], y = sorted[j];
    if (isnan(x) || isnan(y))
        return isnan(x) && isnan(y) ? j - i : isnan(x) ? 1 : -1;
    return x > y ? -1 : x < y ? 1 : j - i;
}

/* Numbers of all kinds, many of them equal. */
static void fill_scores(float *s, int n)
{
    static const float special[] = { INFINITY, -INFINITY, NAN, 0, -0.0f, 1e-42f, -1e-42f, 3, -3 };
    for (int i = 0; i < n; i++)
        s[i] = rnd_bits() % 3 ? rnd_unit() : special[rnd_bits() % 9];
}

static void test_order_and_top(void **state)
{
    (void)state;
    float s[N];
    int32_t order[N], scratch[N], want[N], keep[N];
    for (int round = 0; round < 200; round++) {
        int n = round < 20 ? round + 1 : 1 + (int)(rnd_bits() % N);
        fill_scores(s, n);
        for (int i = 0; i < n; i++)
            want[i] = i;
        sorted = s;
        qsort(want, (size_t)n, sizeof *want, better);
        kv_order(s, n, order, scratch);
        assert_memory_equal(order, want, (size_t)n * sizeof *want);
        int k = (int)(rnd_bits() % (uint32_t)(n + 1));
        kv_top(s, n, k, keep);
        bool chosen[N] = { false };
        for (int i = 0; i < k; i++) {
            assert_true(i == 0 || keep[i] > keep[i - 1]);
            chosen[keep[i]] = true;
        }
        for (int i = 0; i < k; i++)
            assert_true(chosen[want[i]]);
    }
}

static void test_global_local(void **state)
{
    (void)state;
    const float local[3] = { 1, 0, 4 }, global[3] = { 0, 2, 8 };
    struct kv_options o = { .local = 0.25f };
    struct kv_head h = { .opt = &o, .n = 3, .local = local, .global = global };
    float s[3];
    kv_global_local(&h, s);
    assert_memory_equal(s, ((float[3]){ 0.25f, 1.5f, 7 }), sizeof s);
    o.local = 0;
    kv_global_local(&h, s);
    assert_memory_equal(s, global, sizeof s);
    h.again = true; /* then what is remembered counts at least as much */
    kv_global_local(&h, s);
    assert_memory_equal(s, global, sizeof s);
    o.local = 1;
    kv_global_local(&h, s);
    assert_memory_equal(s, ((float[3]){ 0.5f, 1, 6 }), sizeof s);
    assert_int_equal(kv_count_protected((float[4]){ 1, INFINITY, -INFINITY, INFINITY }, 4), 2);
    assert_int_equal(kv_pool_reach(&(struct kv_options){ 0 }, 5), 5);
    assert_int_equal(kv_pool_reach(&(struct kv_options){ .pool = 2 }, 5), 2);
    assert_int_equal(kv_pool_reach(&(struct kv_options){ .pool = -1 }, 5), 0);
    assert_true(is_near(kv_norm((float[3]){ 2, 3, 6 }, 3), 7, 0));
}

static void make_rope(struct kv_rope *r, float *inv_freq, int half, bool half_split)
{
    for (int i = 0; i < half; i++)
        inv_freq[i] = powf(10000, -(float)i / (float)half);
    *r = (struct kv_rope){ .inv_freq = inv_freq, .half = half, .half_split = half_split };
}

static void test_turn(void **state)
{
    (void)state;
    struct kv_rope r;
    float inv_freq[DIM / 2], q[DIM], once[DIM], twice[DIM];
    for (int form = 0; form < 4; form++) {
        int half =
            form & 2 ? DIM / 2 : DIM / 4; /* of the second kind, half of the elements stand still */
        make_rope(&r, inv_freq, half, form & 1);
        rnd_fill(q, DIM, 1);
        memcpy(once, q, sizeof q);
        memcpy(twice, q, sizeof q);
        kv_rope_turn(&r, once, 1, DIM, 8191 - 300);
        kv_rope_turn(&r, twice, 1, DIM, 8191);
        kv_rope_turn(&r, twice, 1, DIM, -300);
        for (int i = 0; i < DIM; i++)
            assert_true(is_near(once[i], twice[i], 1e-6));
        assert_memory_equal(once + 2 * half, q + 2 * half, (size_t)(DIM - 2 * half) * sizeof *q);
        /* pair 1, as the header says which elements it is made of */
        int a = form & 1 ? 1 : 2, b = form & 1 ? 1 + half : 3;
        double angle = (8191 - 300) * (double)inv_freq[1], x = q[a], y = q[b];
        assert_true(is_near(once[a], x * cos(angle) - y * sin(angle), 1e-6));
        assert_true(is_near(once[b], x * sin(angle) + y * cos(angle), 1e-6));
        memcpy(once, q, sizeof q);
        kv_rope_turn(&r, once, 1, DIM, 0);
        assert_memory_equal(once, q, sizeof q);
    }
}

static void test_list(void **state)
{
    (void)state;
    assert_string_equal(kv_policy_list[0]->name, "full");
    assert_true(kv_policy_list[0]->keeps_all);
    char names[256] = "";
    for (int i = 0; kv_policy_list[i] != NULL; i++) {
        const struct kv_policy *p = kv_policy_list[i];
        assert_ptr_equal(kv_policy_find(p->name), p);
        assert_true(p->keeps_all == (p->score == NULL));
        assert_true(p->keeps_all || (p->split != KV_SPLIT_DEFAULT && p->merge != KV_MERGE_DEFAULT));
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", p->name);
    }
    assert_string_equal(kv_policy_names(), names);
    static const char *const all[] = { "window", "random",  "h2o",   "tova", "snapkv",  "pyramidkv",
                                       "adakv",  "keydiff", "ems-r", "ems",  "expected" };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        assert_non_null(kv_policy_find(all[i]));
    assert_null(kv_policy_find("ems_r"));
    assert_null(kv_policy_find(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool),         cmocka_unit_test(test_order_and_top),
        cmocka_unit_test(test_global_local), cmocka_unit_test(test_turn),
        cmocka_unit_test(test_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
