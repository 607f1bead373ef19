/* The policies ems and ems-r: what they choose and what they merge, by hand and against a naive implementation in doubles. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache/ems_r/ems_r.h"
#include "kvcache/score.h"
#include "tests/tools/head.h"

/* ---- ems ------------------------------------------------------------------------------------------------------- */

static void test_ems_score(void **state)
{
    (void)state;
    float s[HEAD_N], both[HEAD_N], want[HEAD_N], smooth[HEAD_N];
    head_make(HEAD_N, CPU_REF);
    f.opt.local = 0.25f;
    for (int j = 0; j < HEAD_N; j++)
        both[j] = 0.25f * f.local[j] + 0.75f * f.global[j];
    for (int pool = -1; pool < 10; pool++) {
        f.opt.pool = pool;
        head_score("ems", s);
        int before = pool == 0 ? 5 : pool;
        for (int j = 0; j < HEAD_N; j++) {
            double sum = 0;
            int count = 0;
            for (int i = j - 1; i <= j + 1; i++) {
                if (i >= 0 && i < HEAD_N) {
                    sum += (double)both[i];
                    count++;
                }
            }
            smooth[j] = (float)(sum / count);
        }
        for (int j = 0; j < HEAD_N; j++) {
            want[j] = pool < 0 ? both[j] : 0;
            for (int i = 0; i < HEAD_N && pool >= 0; i++)
                if (i >= j - before && i <= j + 1 && smooth[i] > want[j])
                    want[j] = smooth[i];
            assert_true(is_near(s[j], want[j], 1e-6));
        }
    }
}

static void test_ems_select(void **state)
{
    (void)state;
    static const float phi[] = { 0, 0.25f, 0.5f, 0.75f, 1 };
    float s[HEAD_N];
    for (int c = 0; c < 5; c++) {
        head_make(HEAD_N, CPU_REF);
        f.opt.phi = phi[c];
        head_score("ems", s);
        head_protect(s);
        int budget = 112, n_important = c * 25;
        assert_int_equal(head_choose(kv_policy_find("ems"), s, budget), 0);
        /* the important ones are gone when the rest is ranked by rms */
        float rms[HEAD_N];
        for (int j = 0; j < HEAD_N; j++) {
            bool important = s[j] != INFINITY && head_rank(j, s, s) < n_important;
            rms[j] = important ? -1 : f.rms[j];
        }
        int n_exact = 0;
        for (int j = 0, i = 0; j < HEAD_N; j++) {
            bool protected = s[j] == INFINITY, important = rms[j] < 0;
            bool rest = !protected && !important && head_rank(j, rms, s) < 100 - n_important;
            assert_int_equal(head_keeps(j), protected || important || rest);
            if (i < budget && f.keep[i] == j) {
                assert_int_equal(f.exact[i], important);
                n_exact += f.exact[i++];
            }
        }
        assert_int_equal(n_exact, n_important);
    }
    /* room for the protected ones alone, and for all */
    assert_int_equal(head_choose(kv_policy_find("ems"), s, 12), 0);
    for (int i = 0; i < 12; i++)
        assert_true(s[f.keep[i]] == INFINITY && !f.exact[i]);
    assert_int_equal(head_choose(kv_policy_find("ems"), s, HEAD_N), 0);
    assert_int_equal(f.keep[HEAD_N - 1], HEAD_N - 1);
}

/* ---- ems-r ----------------------------------------------------------------------------------------------------- */

/* The merge as its opening comment says, in doubles, one token at a time. */
static struct kv_ems_r_counts naive_merge(const float *score, const struct kv_ems_r_limits *limits,
                                          double k[][HEAD_DIM], double v[][HEAD_DIM])
{
    struct kv_ems_r_counts counts = { 0 };
    static double u[HEAD_N][HEAD_DIM], weight[HEAD_N];
    static int joined[HEAD_N];
    float s[HEAD_N];
    kv_global_local(&f.h, s);
    double total = 0;
    int n_imp = f.kept.n - kv_count_protected(score, f.h.n);
    for (int j = 0; j < f.h.n; j++)
        total += score[j] == INFINITY ? 0 : (double)s[j];
    for (int i = 0; i < f.kept.n; i++) {
        const float *own = f.k + f.keep[i] * HEAD_DIM;
        weight[i] = (double)s[f.keep[i]];
        joined[i] = 0;
        for (int d = 0; d < HEAD_DIM; d++) {
            u[i][d] = weight[i] * (double)own[d] / sqrt(head_dot(own, own, HEAD_DIM));
            v[i][d] = weight[i] * (double)f.v[f.keep[i] * HEAD_DIM + d];
        }
    }
    for (int rank = n_imp; rank < f.h.n; rank++) {
        for (int j = 0; j < f.h.n; j++) {
            if (head_keeps(j) || head_rank(j, s, score) != rank)
                continue;
            double before = 0; /* the score of those in front of j */
            for (int i = 0; i < f.h.n; i++)
                before += score[i] != INFINITY && s[i] > s[j] ? (double)s[i] : 0;
            if (rank >= n_imp * (1 + limits->kappa) || before >= (double)limits->p_keep * total) {
                counts.irrelevant++;
                continue;
            }
            const float *key = f.k + j * HEAD_DIM, *value = f.v + j * HEAD_DIM;
            double best = -2;
            int to = -1;
            for (int i = 0; i < f.kept.n; i++) {
                double a = head_cosine(key, f.k + f.keep[i] * HEAD_DIM, HEAD_DIM);
                double b = head_cosine(value, f.v + f.keep[i] * HEAD_DIM, HEAD_DIM);
                double rho = a > 0 && b > 0 ? a * b : -1;
                if (f.pos[f.keep[i]] >= f.opt.sinks && rho > best) {
                    best = rho;
                    to = i;
                }
            }
            if (best < (double)limits->tau) {
                counts.dropped++;
                continue;
            }
            counts.merged++;
            joined[to]++;
            weight[to] += (double)s[j];
            for (int d = 0; d < HEAD_DIM; d++) {
                u[to][d] += (double)s[j] * (double)key[d] / sqrt(head_dot(key, key, HEAD_DIM));
                v[to][d] += (double)s[j] * (double)value[d];
            }
        }
    }
    for (int i = 0; i < f.kept.n; i++) {
        double norm = 0,
               length =
                   sqrt(head_dot(f.k + f.keep[i] * HEAD_DIM, f.k + f.keep[i] * HEAD_DIM, HEAD_DIM));
        for (int d = 0; d < HEAD_DIM; d++)
            norm += u[i][d] * u[i][d];
        for (int d = 0; d < HEAD_DIM; d++) {
            k[i][d] =
                joined[i] ? u[i][d] / sqrt(norm) * length : (double)f.k[f.keep[i] * HEAD_DIM + d];
            v[i][d] = joined[i] ? v[i][d] / weight[i] : (double)f.v[f.keep[i] * HEAD_DIM + d];
        }
    }
    return counts;
}

static void test_ems_r(void **state)
{
    (void)state;
    static double k[HEAD_N][HEAD_DIM], v[HEAD_N][HEAD_DIM];
    static const int budgets[] = { 13, 30, 60, 150, HEAD_N };
    struct kv_ems_r_limits limits = kv_ems_r_defaults;
    struct kv_ems_r_counts all = { 0 };
    for (enum cpu_isa isa = CPU_REF; isa <= cpu_isa_best(); isa++) {
        for (int c = 0; c < 20; c++) {
            float s[HEAD_N];
            head_make(HEAD_N, isa);
            head_score("ems-r", s);
            head_protect(s);
            limits.tau = c % 4 == 0 ? 0.9f : c % 4 == 1 ? -1 : 0.6f;
            limits.p_keep = c % 3 ? 0.98f : 0.7f;
            assert_int_equal(head_choose(&kv_ems_r, s, budgets[c / 4]), 0);
            struct kv_ems_r_counts got, want = naive_merge(s, &limits, k, v);
            assert_int_equal(kv_ems_r_merge(&f.h, s, &f.kept, &limits, &got), 0);
            assert_int_equal(got.merged, want.merged);
            assert_int_equal(got.dropped, want.dropped);
            assert_int_equal(got.irrelevant, want.irrelevant);
            assert_int_equal(f.kept.n + got.merged + got.dropped + got.irrelevant, HEAD_N);
            assert_true(limits.tau > 0 || got.dropped == 0);
            all.merged += got.merged;
            all.dropped += got.dropped;
            all.irrelevant += got.irrelevant;
            for (int i = 0; i < f.kept.n * HEAD_DIM; i++) {
                assert_true(is_near(f.kept_k[i], k[i / HEAD_DIM][i % HEAD_DIM], 2e-5));
                assert_true(is_near(f.kept_v[i], v[i / HEAD_DIM][i % HEAD_DIM], 2e-5));
            }
        }
    }
    assert_true(all.merged > 100 && all.dropped > 100 && all.irrelevant > 100);
}

/* No token is redundant enough: eviction, bit for bit. */
static void test_ems_r_zero_class(void **state)
{
    (void)state;
    struct kv_ems_r_limits limits = kv_ems_r_defaults;
    struct kv_ems_r_counts counts;
    float s[HEAD_N], k[60 * HEAD_DIM], v[60 * HEAD_DIM];
    head_make(HEAD_N, cpu_isa_best());
    head_score("ems-r", s);
    head_protect(s);
    assert_int_equal(head_choose(&kv_ems_r, s, 60), 0);
    memcpy(k, f.kept_k, sizeof k);
    memcpy(v, f.kept_v, sizeof v);
    limits.tau = 1.01f;
    assert_int_equal(kv_ems_r_merge(&f.h, s, &f.kept, &limits, &counts), 0);
    assert_true(counts.merged == 0 && counts.dropped > 0);
    assert_memory_equal(f.kept_k, k, sizeof k);
    assert_memory_equal(f.kept_v, v, sizeof v);
    /* what the table's slot does is the same function with the policy's own limits */
    assert_int_equal(kv_ems_r.merge_own(&f.h, s, &f.kept), 0);
    assert_true(memcmp(f.kept_v, v, sizeof v) != 0);
    memcpy(k, f.kept_k, sizeof k);
    assert_int_equal(head_choose(&kv_ems_r, s, 60), 0);
    assert_int_equal(kv_ems_r_merge(&f.h, s, &f.kept, &kv_ems_r_defaults, NULL), 0);
    assert_memory_equal(f.kept_k, k, sizeof k);
}

/* Three tokens, the last of which is evicted: what it does to the first two. */
static void check_three(const float k[6], const float v[6], int into)
{
    struct kv_ems_r_counts counts;
    head_make(3, CPU_REF);
    f.opt.sinks = f.opt.window = 0;
    f.h.dim = 2;
    memcpy(f.k, k, 6 * sizeof *k);
    memcpy(f.v, v, 6 * sizeof *v);
    const float s[3] = { 0.5f, 0.3f, 0.2f };
    memcpy(f.local, s, sizeof s);
    memcpy(f.global, s, sizeof s);
    f.kept =
        (struct kv_kept){ .n = 2, .keep = f.keep, .exact = f.exact, .k = f.kept_k, .v = f.kept_v };
    memcpy(f.keep, ((int32_t[2]){ 0, 1 }), 2 * sizeof *f.keep);
    memcpy(f.kept_k, k, 4 * sizeof *k);
    memcpy(f.kept_v, v, 4 * sizeof *v);
    assert_int_equal(kv_ems_r_merge(&f.h, s, &f.kept, &kv_ems_r_defaults, &counts), 0);
    assert_int_equal(counts.merged, into >= 0);
    for (int i = 0; i < 2; i++)
        if (i != into)
            assert_memory_equal(f.kept_v + 2 * i, v + 2 * i, 2 * sizeof *v);
}

static void test_ems_r_by_hand(void **state)
{
    (void)state;
    const float k[6] = { 4, 0, 0, 2, 3, 0 }, v[6] = { 1, 0, 0, 1, 5, 0 };
    check_three(k, v, 0);
    assert_true(is_near(f.kept_v[0], (0.5f * 1 + 0.2f * 5) / 0.7f, 1e-6));
    assert_true(is_near(f.kept_k[0], 4, 1e-6)); /* the norm is the center's */
    assert_true(is_near(f.kept_k[1], 0, 0));
    /* apart in both: the product of the cosines is 1, and still they are not alike */
    check_three((float[6]){ 4, 0, 0, 2, -3, 0 }, (float[6]){ 1, 0, 0, 1, -5, 0 }, -1);
    /* like the first in its key, like the second in its value: like neither */
    check_three(k, (float[6]){ 1, 0, 0, 1, 0, 5 }, -1);
    /* directions are averaged by their weights, not by their lengths */
    check_three((float[6]){ 4, 0, 0, 2, 0.8f, 0.6f }, v, 0);
    double x = 0.5 + 0.2 * 0.8, y = 0.2 * 0.6, n = sqrt(x * x + y * y);
    assert_true(is_near(f.kept_k[0], 4 * x / n, 1e-5));
    assert_true(is_near(f.kept_k[1], 4 * y / n, 1e-5));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ems_score),     cmocka_unit_test(test_ems_select),
        cmocka_unit_test(test_ems_r),         cmocka_unit_test(test_ems_r_zero_class),
        cmocka_unit_test(test_ems_r_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, head_close);
}
