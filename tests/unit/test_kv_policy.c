/* Every policy on hand-made heads with known answers, and on random heads against a naive implementation in doubles. What ems
 * and ems-r do is in test_kv_ems.c. */
#include <complex.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache/score.h"
#include "server/base/mem.h"
#include "tests/tools/head.h"

/* ---- scores ---------------------------------------------------------------------------------------------------- */

static void test_window_random(void **state)
{
    (void)state;
    float s[HEAD_N], again[HEAD_N];
    head_make(HEAD_N, CPU_REF);
    head_score("window", s);
    head_protect(s);
    assert_int_equal(head_choose(kv_policy_find("window"), s, 50), 0);
    for (int i = 0; i < 50; i++)
        assert_int_equal(f.keep[i], i < 4 ? i : HEAD_N - 50 + i);
    f.opt.seed = 7;
    head_score("random", s);
    double sum = 0;
    for (int j = 0; j < HEAD_N; j++) {
        assert_true(s[j] >= 0 && s[j] < 1);
        sum += (double)s[j] / HEAD_N;
    }
    assert_true(sum > 0.42 && sum < 0.58); /* 5 sigma of HEAD_N even numbers */
    /* a token's score is its own, whatever its neighbours and its place */
    f.h.n = 10;
    f.h.pos = f.pos + 100;
    head_score("random", again);
    assert_memory_equal(again, s + 100, 10 * sizeof *s);
    /* seed, layer and head matter; the same numbers on every machine */
    f.opt.seed = 8;
    head_score("random", again);
    assert_true(again[0] != s[100]);
    f.opt.seed = 7;
    f.h.layer++;
    head_score("random", again);
    assert_true(again[0] != s[100]);
    f.h.layer--;
    f.h.head++;
    head_score("random", again);
    assert_true(again[0] != s[100]);
    f.h.pos = f.pos;
    assert_true(is_near(s[0], 0x1365b0p-24f, 0));
    assert_true(is_near(s[1], 0xa68fd1p-24f, 0));
}

static void test_h2o_tova(void **state)
{
    (void)state;
    float s[HEAD_N];
    head_make(HEAD_N, CPU_REF);
    head_score("tova", s);
    assert_memory_equal(s, f.last, sizeof s);
    assert_true(kv_policy_find("tova")->one_set);
    head_score("h2o", s);
    assert_memory_equal(s, f.global, sizeof s);
    head_protect(s);
    assert_int_equal(head_choose(kv_policy_find("h2o"), s, 51),
                     0); /* 4 + 8, then 19 recent, 20 heavy */
    for (int j = 0; j < HEAD_N; j++) {
        int recent = HEAD_N - 8 - 19, beaten = 0;
        for (int i = 4; i < recent; i++)
            beaten += f.global[i] > f.global[j];
        assert_int_equal(head_keeps(j), j < 4 || j >= recent || beaten < 20);
    }
    for (int i = 0; i < f.kept.n; i++)
        assert_false(f.exact[i]);
}

static void test_snapkv_family(void **state)
{
    (void)state;
    static const char *const names[] = { "snapkv", "pyramidkv", "adakv" };
    float s[HEAD_N];
    head_make(HEAD_N, CPU_REF);
    for (int c = 0; c < 9; c++) {
        int reach = c / 3 == 0 ? 3 : c / 3 == 1 ? 0 : 9;
        f.opt.pool = c / 3 == 0 ? 0 : c / 3 == 1 ? -1 : 9;
        head_score(names[c % 3], s);
        for (int j = 0; j < HEAD_N; j++) {
            float want = 0;
            for (int i = 0; i < HEAD_N; i++)
                want = abs(i - j) <= reach && f.local[i] > want ? f.local[i] : want;
            assert_true(is_near(s[j], want, 0));
        }
    }
    assert_int_equal(kv_policy_find("snapkv")->split, KV_SPLIT_UNIFORM);
    assert_int_equal(kv_policy_find("pyramidkv")->split, KV_SPLIT_PYRAMID);
    assert_int_equal(kv_policy_find("adakv")->split, KV_SPLIT_ADA);
}

static void test_keydiff(void **state)
{
    (void)state;
    float s[HEAD_N];
    for (enum cpu_isa isa = CPU_REF; isa <= cpu_isa_best(); isa++) {
        /* two keys one way, one across, one of no length: m = (2, 1) / 4 */
        head_make(4, isa);
        f.h.dim = 2;
        memcpy(f.k, ((float[8]){ 3, 0, 5, 0, 0, 2, 0, 0 }), 8 * sizeof *f.k);
        head_score("keydiff", s);
        assert_true(is_near(s[0], -2 / sqrtf(5), 1e-6));
        assert_true(is_near(s[1], -2 / sqrtf(5), 1e-6));
        assert_true(is_near(s[2], -1 / sqrtf(5), 1e-6));
        assert_true(is_near(s[3], 0, 0));
        head_make(HEAD_N, isa);
        head_score("keydiff", s);
        float m[HEAD_DIM];
        for (int d = 0; d < HEAD_DIM; d++) {
            double sum = 0;
            for (int j = 0; j < HEAD_N; j++)
                sum += (double)f.k[j * HEAD_DIM + d] /
                       sqrt(head_dot(f.k + j * HEAD_DIM, f.k + j * HEAD_DIM, HEAD_DIM));
            m[d] = (float)sum;
        }
        for (int j = 0; j < HEAD_N; j++)
            assert_true(is_near(s[j], -head_cosine(f.k + j * HEAD_DIM, m, HEAD_DIM), 1e-5));
    }
}

/* ---- expected attention ---------------------------------------------------------------------------------------- */

/* The matrix of the mean rotation over the 512 positions from n_tokens on. */
static void mean_rotation(double r[HEAD_DIM][HEAD_DIM])
{
    memset(r, 0, sizeof(double[HEAD_DIM][HEAD_DIM]));
    for (int i = 0; i < HEAD_DIM; i++)
        r[i][i] = 1;
    for (int i = 0; i < f.rope.half; i++) {
        int a = f.rope.half_split ? i : 2 * i, b = f.rope.half_split ? i + f.rope.half : a + 1;
        double complex mean = 0;
        for (int t = 0; t < 512; t++)
            mean += cexp(I * ((double)(f.h.n_tokens + t) * (double)f.inv_freq[i])) / 512;
        r[a][a] = r[b][b] = creal(mean);
        r[a][b] = -cimag(mean);
        r[b][a] = cimag(mean);
    }
}

/* Mean and covariance of the queries of head g before RoPE. */
static void naive_gaussian(int g, double mean[HEAD_DIM], double cov[HEAD_DIM][HEAD_DIM])
{
    memset(mean, 0, HEAD_DIM * sizeof *mean);
    memset(cov, 0, sizeof(double[HEAD_DIM][HEAD_DIM]));
    float q[HEAD_REFS][HEAD_DIM];
    for (int i = 0; i < HEAD_REFS; i++) {
        memcpy(q[i], f.ref_q + (i * HEAD_GROUP + g) * HEAD_DIM, sizeof q[i]);
        kv_rope_turn(&f.rope, q[i], 1, HEAD_DIM, -(f.ref_pos[i] + f.ref_turn[i]));
        for (int d = 0; d < HEAD_DIM; d++)
            mean[d] += (double)q[i][d] / HEAD_REFS;
    }
    for (int i = 0; i < HEAD_REFS; i++)
        for (int d = 0; d < HEAD_DIM; d++)
            for (int e = 0; e < HEAD_DIM; e++)
                cov[d][e] += ((double)q[i][d] - mean[d]) * ((double)q[i][e] - mean[e]) / HEAD_REFS;
}

/* p[j] += softmax over candidates from `first` on of what head g expects, / HEAD_GROUP */
static void naive_expected(int g, int first, double *p)
{
    double r[HEAD_DIM][HEAD_DIM], mean[HEAD_DIM], cov[HEAD_DIM][HEAD_DIM], z[HEAD_N], sum = 0;
    mean_rotation(r);
    naive_gaussian(g, mean, cov);
    for (int j = first; j < HEAD_N; j++) {
        double k[HEAD_DIM] = { 0 }; /* R' k */
        for (int d = 0; d < HEAD_DIM; d++)
            for (int e = 0; e < HEAD_DIM; e++)
                k[d] += r[e][d] * (double)f.k[j * HEAD_DIM + e];
        z[j] = (double)f.beta[j];
        for (int d = 0; d < HEAD_DIM; d++) {
            z[j] += k[d] * mean[d] / sqrt(HEAD_DIM);
            for (int e = 0; e < HEAD_DIM; e++)
                z[j] += k[d] * cov[d][e] * k[e] / (2 * HEAD_DIM);
        }
        sum += exp(z[j]);
    }
    for (int j = first; j < HEAD_N; j++)
        p[j] += exp(z[j]) / sum / HEAD_GROUP;
}

static void test_expected(void **state)
{
    (void)state;
    for (enum cpu_isa isa = CPU_REF; isa <= cpu_isa_best(); isa++) {
        for (int form = 0; form < 3; form++) {
            float s[HEAD_N];
            head_make(HEAD_N, isa);
            f.rope.half_split = form != 1;
            f.rope.half = form == 2 ? HEAD_DIM / 4 : HEAD_DIM / 2;
            f.opt.sinks = form == 2 ? 0 : 4;
            head_score("expected", s);
            double p[HEAD_N] = { 0 };
            for (int g = 0; g < HEAD_GROUP; g++)
                naive_expected(g, f.opt.sinks, p);
            for (int j = f.opt.sinks; j < HEAD_N; j++) {
                double want = (p[j] + 0.02) *
                              sqrt(head_dot(f.v + j * HEAD_DIM, f.v + j * HEAD_DIM, HEAD_DIM));
                assert_true(is_near(s[j], want, 1e-5 * want));
            }
        }
        /* without reference queries: the length of values alone */
        float s[HEAD_N];
        f.h.n_ref = 0;
        memset(f.beta, 0, sizeof f.beta);
        head_score("expected", s);
        for (int j = 0; j < HEAD_N; j++)
            assert_true(is_near(
                s[j], (1 / (float)HEAD_N + 0.02f) * kv_norm(f.v + j * HEAD_DIM, HEAD_DIM), 1e-6));
    }
}

/* ---- all ------------------------------------------------------------------------------------------------------- */

/* What a policy does with a head from score to merge. */
static int run(const struct kv_policy *p, float *score)
{
    TRY(p->score(&f.h, score));
    head_protect(score);
    TRY(head_choose(p, score, 100));
    return p->merge_own != NULL ? p->merge_own(&f.h, score, &f.kept) : 0;
}

static void test_all_no_memory_and_again(void **state)
{
    (void)state;
    struct mem_stats before, after;
    for (int i = 0; kv_policy_list[i] != NULL; i++) {
        const struct kv_policy *p = kv_policy_list[i];
        if (p->keeps_all)
            continue;
        float s[HEAD_N], again[HEAD_N], v[100 * HEAD_DIM];
        head_make(HEAD_N, cpu_isa_best());
        f.h.k = f.h.v = NULL; /* for those that say they do not want them */
        if (p->wants_kv)
            f.h.k = f.k, f.h.v = f.v;
        arena_clear(&f.arena);
        mem_stats(&before);
        int rc = ERR_NOMEM;
        for (uint64_t nth = 1; rc != 0; nth++) {
            mem_fail_at(nth);
            rc = run(p, s);
            mem_fail_at(0);
            assert_true(rc == 0 || rc == ERR_NOMEM);
            arena_clear(&f.arena);
            mem_stats(&after);
            assert_int_equal(after.blocks, before.blocks);
        }
        memcpy(v, f.kept_v, sizeof v);
        assert_int_equal(run(p, again), 0);
        assert_memory_equal(again, s, sizeof s);
        assert_memory_equal(f.kept_v, v, sizeof v);
        for (int j = 0; j < HEAD_N; j++)
            assert_true(s[j] != INFINITY || head_keeps(j));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_window_random), cmocka_unit_test(test_h2o_tova),
        cmocka_unit_test(test_snapkv_family), cmocka_unit_test(test_keydiff),
        cmocka_unit_test(test_expected),      cmocka_unit_test(test_all_no_memory_and_again),
    };
    return cmocka_run_group_tests(tests, NULL, head_close);
}
