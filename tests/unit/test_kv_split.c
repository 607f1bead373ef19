/* Splitting a budget over heads and layers: known answers, naive counts, and what holds for every split. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache/split.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

enum { LAYERS = 5, HEADS = 3, ALL = LAYERS * HEADS, N = 120 };

static float score[ALL][N];
static const float *rows[ALL];
static struct arena arena;

static struct kv_split_in make_input(int n, int n_protected, int budget, enum kv_split split)
{
    for (int i = 0; i < ALL; i++)
        rows[i] = score[i];
    return (struct kv_split_in){ .n_layers = LAYERS,
                                 .n_kv_heads = HEADS,
                                 .n = n,
                                 .score = rows,
                                 .n_protected = n_protected,
                                 .budget = budget,
                                 .split = split };
}

/* Heads of different width: attention that falls off at a rate of its own; the first n_protected are protected. */
static void fill_scores(int n_protected)
{
    for (int i = 0; i < ALL; i++) {
        float rate = 0.02f + 0.6f * fabsf(rnd_unit());
        for (int j = 0; j < N; j++) {
            int rank = (j * 37 + i * 11) % N;
            score[i][j] = j < n_protected ? INFINITY : expf(-rate * (float)rank);
        }
    }
}

/* What must hold of any split; the budget is given out to the last slot. */
static void check(const struct kv_split_in *in, const int *budget)
{
    int64_t sum = 0;
    int n_all = in->n_layers * in->n_kv_heads;
    for (int i = 0; i < n_all; i++) {
        assert_in_range(budget[i], in->n_protected, in->n);
        sum += budget[i];
    }
    assert_int_equal(sum, (int64_t)n_all * in->budget);
}

static void test_invariants(void **state)
{
    (void)state;
    int budget[ALL];
    for (int round = 0; round < 400; round++) {
        int n = 1 + (int)(rnd_bits() % N), n_protected = (int)(rnd_bits() % (uint32_t)(n + 1));
        int mean = n_protected + (int)(rnd_bits() % (uint32_t)(n - n_protected + 1));
        fill_scores(n_protected);
        if (round % 7 == 0)
            for (int j = n_protected; j < n; j++)
                score[round % ALL][j] = 0;
        if (round % 5 == 0 && n > n_protected)
            score[1][n - 1] = NAN;
        if (round % 3 == 0) /* as keydiff's are */
            for (int i = 0; i < ALL; i++)
                for (int j = n_protected; j < n; j++)
                    score[i][j] -= 1;
        for (enum kv_split s = KV_SPLIT_UNIFORM; s <= KV_SPLIT_MASS; s++) {
            struct kv_split_in in = make_input(n, n_protected, mean, s);
            assert_int_equal(kv_split_budget(&in, budget, &arena), 0);
            check(&in, budget);
            arena_clear(&arena);
        }
    }
}

static void test_uniform(void **state)
{
    (void)state;
    int budget[ALL];
    struct kv_split_in in = make_input(N, 4, 33, KV_SPLIT_UNIFORM);
    assert_int_equal(kv_split_budget(&in, budget, &arena), 0);
    for (int i = 0; i < ALL; i++)
        assert_int_equal(budget[i], 33);
}

static void test_pyramid(void **state)
{
    (void)state;
    int budget[ALL];
    /* a mean of 40 beside 10 protected: 78, 59, 40, 21, 2 */
    struct kv_split_in in = make_input(N, 10, 50, KV_SPLIT_PYRAMID);
    assert_int_equal(kv_split_budget(&in, budget, &arena), 0);
    static const int want[LAYERS] = { 88, 69, 50, 31, 12 };
    for (int i = 0; i < ALL; i++)
        assert_int_equal(budget[i], want[i / HEADS]);
    /* no room for 88 at the bottom: the others grow in proportion, to 70, 70, 60, 35, 15 and some */
    in.n = 70;
    assert_int_equal(kv_split_budget(&in, budget, &arena), 0);
    check(&in, budget);
    for (int i = 0; i < ALL; i++)
        assert_int_equal(budget[i] == in.n, i / HEADS < 2);
    assert_true(budget[6] > budget[9] && budget[9] > budget[12] && budget[12] >= 12);
    /* one layer has nothing to fall to */
    in = make_input(N, 10, 50, KV_SPLIT_PYRAMID);
    in.n_layers = 1;
    assert_int_equal(kv_split_budget(&in, budget, &arena), 0);
    for (int i = 0; i < HEADS; i++)
        assert_int_equal(budget[i], 50);
    arena_clear(&arena);
}

/* The sum of what head i has beside the protected ones. */
static double head_sum(int i, int first)
{
    double sum = 0;
    for (int j = first; j < N; j++)
        sum += (double)score[i][j];
    return sum;
}

static void test_ada(void **state)
{
    (void)state;
    enum { FIRST = 7, MEAN = 30, BEST = HEADS * (MEAN - FIRST) };
    int budget[ALL];
    fill_scores(FIRST);
    struct kv_split_in in = make_input(N, FIRST, MEAN, KV_SPLIT_ADA);
    assert_int_equal(kv_split_budget(&in, budget, &arena), 0);
    check(&in, budget);
    for (int l = 0; l < LAYERS; l++) {
        int layer_sum = 0;
        for (int h = 0; h < HEADS; h++) {
            /* how many of this head are beaten by fewer than BEST of the whole layer */
            int count = 0, i = l * HEADS + h;
            for (int j = FIRST; j < N; j++) {
                int beaten = 0;
                for (int o = l * HEADS; o < (l + 1) * HEADS; o++)
                    for (int m = FIRST; m < N; m++)
                        beaten +=
                            score[o][m] / head_sum(o, FIRST) > score[i][j] / head_sum(i, FIRST);
                count += beaten < BEST;
            }
            double want = FIRST + 0.8 * count + 0.2 * (MEAN - FIRST);
            assert_true(budget[i] > want - 1 && budget[i] <= want + 1);
            layer_sum += budget[i];
        }
        assert_int_equal(layer_sum, HEADS * MEAN);
    }
    /* equal heads share equally, ties and all */
    for (int i = 0; i < ALL; i++)
        for (int j = FIRST; j < N; j++)
            score[i][j] = 0.5f;
    assert_int_equal(kv_split_budget(&in, budget, &arena), 0);
    for (int i = 0; i < ALL; i++)
        assert_int_equal(budget[i], MEAN);
    arena_clear(&arena);
}

/* The least number of best slots of head i that hold 98 %. */
static int count_mass(int i, int first)
{
    double left = head_sum(i, first), rest = 0.02 * left;
    bool taken[N] = { false };
    int count = 0;
    for (; left > rest; count++) {
        int best = -1;
        for (int j = first; j < N; j++)
            if (!taken[j] && (best < 0 || score[i][j] > score[i][best]))
                best = j;
        taken[best] = true;
        left -= (double)score[i][best];
    }
    return count;
}

static void test_mass(void **state)
{
    (void)state;
    enum { FIRST = 5, MEAN = 20 };
    int budget[ALL], count[ALL], total = 0;
    fill_scores(FIRST);
    struct kv_split_in in = make_input(N, FIRST, MEAN, KV_SPLIT_MASS);
    assert_int_equal(kv_split_budget(&in, budget, &arena), 0);
    check(&in, budget);
    for (int i = 0; i < ALL; i++)
        total += count[i] = count_mass(i, FIRST);
    for (int i = 0; i < ALL; i++) {
        double want = FIRST + (double)count[i] * ALL * (MEAN - FIRST) / total;
        assert_true(budget[i] > want - 1 && budget[i] <= want + 1);
    }
    /* scores below 0 are lifted: the same split as that of the lifted ones */
    int lifted[ALL];
    for (int below = 0; below < 2; below++) {
        for (int i = 0; i < ALL; i++)
            for (int j = FIRST; j < N; j++)
                score[i][j] = (float)((j - FIRST) * (j % (i + 2) == 0)) - (float)(below * (i + 1));
        assert_int_equal(kv_split_budget(&in, below ? lifted : budget, &arena), 0);
    }
    assert_memory_equal(lifted, budget, sizeof budget);
    arena_clear(&arena);
}

static void test_no_memory(void **state)
{
    (void)state;
    struct mem_stats before, after;
    mem_stats(&before);
    int budget[ALL];
    fill_scores(3);
    for (enum kv_split s = KV_SPLIT_PYRAMID; s <= KV_SPLIT_MASS; s++) {
        struct kv_split_in in = make_input(N, 3, 30, s);
        mem_fail_at(1);
        assert_int_equal(kv_split_budget(&in, budget, &arena), ERR_NOMEM);
        mem_fail_at(0);
        arena_clear(&arena);
    }
    mem_stats(&after);
    assert_int_equal(after.blocks, before.blocks);
}

static int setup(void **state)
{
    (void)state;
    arena_init(&arena, 1 << 20);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_invariants), cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_pyramid),    cmocka_unit_test(test_ada),
        cmocka_unit_test(test_mass),       cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
