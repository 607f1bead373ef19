/* Merging: votes and values against float64 (tests/golden/kv_fit), what must stay untouched, both forms of the ridge, queries
 * that the fit did not see, exactness of the mean, faults.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache/fit.h"
#include "server/base/buf.h"
#include "tests/tools/levels.h"

enum { ROWS = 320, N = 512, SLOTS = 128, DIM = 32, ARENA = 16 << 20 };

/* One head with all of its memory. */
struct world {
    struct kv_options opt;
    struct kv_head h;
    struct kv_kept kept;
    struct arena arena;
    int32_t pos[N], keep[SLOTS];
    bool exact[SLOTS];
    float beta[N], k[N * DIM], v[N * DIM];
    float q[ROWS * DIM], o[ROWS * DIM], lse[ROWS], weight[ROWS];
    float kept_k[SLOTS * DIM], kept_v[SLOTS * DIM], kept_beta[SLOTS];
};
static struct world w, before;

static void world_open(int rows, int n, int slots, int dim)
{
    assert_true(rows <= ROWS && n <= N && slots <= SLOTS && dim <= DIM);
    memset(&w, 0, sizeof w);
    arena_init(&w.arena, ARENA);
    w.opt = (struct kv_options){ .lambda = 0.02f, .sinks = -1 };
    w.h = (struct kv_head){ .opt = &w.opt,
                            .n = n,
                            .n_tokens = n,
                            .dim = dim,
                            .group = 1,
                            .scale = 1 / sqrtf((float)dim),
                            .isa = cpu_isa_best(),
                            .pos = w.pos,
                            .beta = w.beta,
                            .k = w.k,
                            .v = w.v,
                            .n_ref = rows,
                            .ref_q = w.q,
                            .ref_o = w.o,
                            .ref_lse = w.lse,
                            .ref_weight = w.weight,
                            .arena = &w.arena };
    w.kept = (struct kv_kept){ slots, w.keep, w.exact, w.kept_k, w.kept_v, w.kept_beta, 0 };
    for (int j = 0; j < n; j++)
        w.pos[j] = j;
    for (int i = 0; i < rows; i++)
        w.weight[i] = 1;
}

/* The copies that kept starts with. */
static void copy_kept(void)
{
    size_t row = (size_t)w.h.dim * sizeof(float);
    for (int c = 0; c < w.kept.n; c++) {
        memcpy(w.kept_k + c * w.h.dim, w.k + w.keep[c] * w.h.dim, row);
        memcpy(w.kept_v + c * w.h.dim, w.v + w.keep[c] * w.h.dim, row);
        w.kept_beta[c] = w.beta[w.keep[c]];
    }
    before = w;
}

static void fit(enum kv_merge mode)
{
    assert_int_equal(kv_fit(&w.h, &w.kept, mode), 0);
    arena_clear(&w.arena);
}

static void merge_mean(void)
{
    assert_int_equal(kv_merge_mean(&w.h, &w.kept), 0);
    arena_clear(&w.arena);
}

static void assert_kept_as_before(void)
{
    assert_memory_equal(w.kept_k, before.kept_k, sizeof w.kept_k);
    assert_memory_equal(w.kept_v, before.kept_v, sizeof w.kept_v);
    assert_memory_equal(w.kept_beta, before.kept_beta, sizeof w.kept_beta);
}

/* out[dim] of query q over n slots; returns the log-sum-exp. */
static double attend(const float *q, const float *k, const float *v, const float *beta, int n,
                     double *out)
{
    double x[N], top = -INFINITY, sum = 0;
    int dim = w.h.dim;
    for (int j = 0; j < n; j++) {
        x[j] = 0;
        for (int i = 0; i < dim; i++)
            x[j] += (double)q[i] * (double)k[j * dim + i];
        x[j] = x[j] * (double)w.h.scale + (double)beta[j];
        top = fmax(top, x[j]);
    }
    memset(out, 0, (size_t)dim * sizeof *out);
    for (int j = 0; j < n; j++) {
        double p = exp(x[j] - top);
        sum += p;
        for (int i = 0; i < dim; i++)
            out[i] += p * (double)v[j * dim + i];
    }
    for (int i = 0; i < dim; i++)
        out[i] /= sum;
    return top + log(sum);
}

/* ---- golden values ----------------------------------------------------------------------------------------------- */

static void take(void *dst, const struct buf *b, size_t *at, size_t bytes)
{
    assert_true(*at + bytes <= b->len);
    memcpy(dst, b->data + *at, bytes);
    *at += bytes;
}

static void take_floats(float *dst, const struct buf *b, size_t *at, int n)
{
    take(dst, b, at, (size_t)n * sizeof *dst);
}

static void load(const char *name, float *beta, float *v_fit, float *v_values)
{
    struct buf b;
    struct err e;
    char path[128];
    int32_t size[5], exact[SLOTS];
    size_t at = 0;
    buf_init(&b, 1 << 20);
    snprintf(path, sizeof path, "tests/golden/kv_fit/%s.bin", name);
    if (buf_read_file(&b, path, &e) < 0)
        fail_msg("%s", e.text);
    take(size, &b, &at, sizeof size);
    int rows = size[0], n = size[1], slots = size[2], dim = size[3];
    world_open(rows, n, slots, dim);
    w.h.n_tokens = size[4];
    take_floats(&w.opt.lambda, &b, &at, 1);
    take_floats(w.q, &b, &at, rows * dim);
    take_floats(w.k, &b, &at, n * dim);
    take_floats(w.v, &b, &at, n * dim);
    take_floats(w.beta, &b, &at, n);
    take_floats(w.o, &b, &at, rows * dim);
    take_floats(w.lse, &b, &at, rows);
    take_floats(w.weight, &b, &at, rows);
    take(w.keep, &b, &at, (size_t)slots * sizeof *w.keep);
    take(exact, &b, &at, (size_t)slots * sizeof *exact);
    for (int c = 0; c < slots; c++)
        w.exact[c] = exact[c] != 0;
    take_floats(beta, &b, &at, slots);
    take_floats(v_fit, &b, &at, slots * dim);
    take_floats(v_values, &b, &at, slots * dim);
    assert_int_equal(at, b.len);
    buf_free(&b);
    copy_kept();
}

static double worst_of(const float *x, const float *want, int n)
{
    double worst = 0;
    for (int i = 0; i < n; i++)
        worst = isfinite(x[i]) ? fmax(worst, fabs((double)x[i] - (double)want[i])) : INFINITY;
    return worst;
}

/* The largest difference between outputs with these values and with others, for the reference queries. */
static double worst_output(const float *v, const float *want)
{
    double worst = 0, x[DIM], y[DIM];
    for (int r = 0; r < w.h.n_ref; r++) {
        const float *q = w.q + r * w.h.dim;
        attend(q, w.kept_k, v, w.kept_beta, w.kept.n, x);
        attend(q, w.kept_k, want, w.kept_beta, w.kept.n, y);
        for (int i = 0; i < w.h.dim; i++)
            worst = isfinite(x[i]) ? fmax(worst, fabs(x[i] - y[i])) : INFINITY;
    }
    return worst;
}

/* The condition of the systems goes with 1 / lambda; values that queries hardly tell apart are off by more than any output
 * shows. */
static void check_golden(const char *name, enum cpu_isa isa)
{
    static float beta[SLOTS], v_fit[SLOTS * DIM], v_values[SLOTS * DIM];
    const enum kv_merge mode[] = { KV_MERGE_VOTES, KV_MERGE_FIT, KV_MERGE_VALUES };
    for (int m = 0; m < 3; m++) {
        load(name, beta, v_fit, v_values);
        w.h.isa = isa;
        double l = (double)w.opt.lambda;
        fit(mode[m]);
        const float *want_beta = mode[m] == KV_MERGE_VALUES ? before.kept_beta : beta;
        const float *want_v = m == 0 ? before.kept_v : m == 1 ? v_fit : v_values;
        double off_beta = worst_of(w.kept_beta, want_beta, w.kept.n);
        double off_v = worst_of(w.kept_v, want_v, w.kept.n * w.h.dim);
        double off_o = worst_output(w.kept_v, want_v);
        if (!(off_beta <= (mode[m] == KV_MERGE_VALUES ? 0 : 2e-5) && off_o <= 5e-7 / l &&
              off_v <= (mode[m] == KV_MERGE_VOTES ? 0 : 5e-6 / l)))
            fail_msg("%s, level %d, mode %d: votes off by %g, values by %g, output by %g", name,
                     isa, mode[m], off_beta, off_v, off_o);
        assert_memory_equal(w.kept_k, before.kept_k, sizeof w.kept_k);
        for (int c = 0; c < w.kept.n; c++) {
            if (!w.exact[c])
                continue;
            assert_memory_equal(&w.kept_beta[c], &before.kept_beta[c], sizeof(float));
            assert_memory_equal(w.kept_v + c * w.h.dim, before.kept_v + c * w.h.dim,
                                (size_t)w.h.dim * sizeof(float));
        }
    }
}

static void test_golden(void **state)
{
    (void)state;
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        check_golden("random", (enum cpu_isa)isa);
        check_golden("clustered", (enum cpu_isa)isa);
        check_golden("few_rows", (enum cpu_isa)isa);
        check_golden("few_rows_clustered", (enum cpu_isa)isa);
        check_golden("sharp", (enum cpu_isa)isa);
        check_golden("small_lambda", (enum cpu_isa)isa);
        check_golden("pressed_before", (enum cpu_isa)isa);
    }
}

/* ---- properties -------------------------------------------------------------------------------------------------- */

/* Tokens in `clusters` groups, queries that look for some group; every step-th token is kept, half of those exact. Queries
 * from n_fit on are not told to the fit. */
static void clustered(int clusters, int n_fit, int slots, float noise)
{
    static float key[64 * DIM], value[64 * DIM];
    world_open(ROWS, N, slots, DIM);
    rnd_fill_normal(key, 64 * DIM, 1);
    rnd_fill_normal(value, 64 * DIM, 1);
    for (int j = 0; j < N; j++)
        for (int g = (int)rnd_bits() % clusters, i = 0; i < DIM; i++) {
            w.k[j * DIM + i] = key[g * DIM + i] + noise * rnd_normal();
            w.v[j * DIM + i] = value[g * DIM + i] + noise * rnd_normal();
        }
    for (int r = 0; r < ROWS; r++) {
        double out[DIM];
        for (int g = (int)rnd_bits() % clusters, i = 0; i < DIM; i++)
            w.q[r * DIM + i] = 2 * key[g * DIM + i] + rnd_normal();
        w.lse[r] = (float)attend(w.q + r * DIM, w.k, w.v, w.beta, N, out);
        for (int i = 0; i < DIM; i++)
            w.o[r * DIM + i] = (float)out[i];
    }
    w.h.n_ref = n_fit;
    for (int c = 0; c < slots; c++) {
        w.keep[c] = c * N / slots;
        w.exact[c] = c % 2 == 0;
    }
    copy_kept();
}

/* Mean squared error of the output for queries [r0, ROWS). */
static double error_from(int r0)
{
    double sum = 0, out[DIM];
    for (int r = r0; r < ROWS; r++) {
        attend(w.q + r * DIM, w.kept_k, w.kept_v, w.kept_beta, w.kept.n, out);
        for (int i = 0; i < DIM; i++)
            sum += (out[i] - (double)w.o[r * DIM + i]) * (out[i] - (double)w.o[r * DIM + i]);
    }
    return sum / (ROWS - r0);
}

/* Of queries that the fit did not see, by every merge; half of the slots are exact, or none. */
static void errors_not_seen(bool exact, double *error)
{
    for (int m = KV_MERGE_NONE; m <= KV_MERGE_FIT; m++) {
        rnd_seed(5);
        clustered(12, 200, 64, 0.6f);
        for (int c = 0; c < 64; c++)
            w.exact[c] = w.exact[c] && exact;
        if (m != KV_MERGE_NONE)
            fit((enum kv_merge)m);
        error[m] = error_from(200);
    }
}

/* Votes alone help where all are free; beside exact slots, which stand for themselves only, the values have to follow them. */
static void test_queries_not_seen(void **state)
{
    (void)state;
    double error[KV_MERGE_MEAN + 1] = { 0 };
    for (int exact = 0; exact < 2; exact++) {
        errors_not_seen(exact == 1, error);
        if (exact == 0)
            assert_true(error[KV_MERGE_VOTES] < error[KV_MERGE_NONE]);
        assert_true(error[KV_MERGE_VALUES] < 0.5 * error[KV_MERGE_NONE]);
        assert_true(error[KV_MERGE_FIT] < error[KV_MERGE_VALUES]);
    }
}

/* Every query five times with five times the ridge asks for the same values; 40 rows are solved by rows, 200 by columns. */
static void test_both_forms(void **state)
{
    (void)state;
    static float by_rows[SLOTS * DIM];
    const float lambda[] = { 0.02f, 0.002f, 0.0005f };
    for (int i = 0; i < 3; i++) {
        rnd_seed(7);
        clustered(20, 40, 128, 0.05f);
        w.opt.lambda = lambda[i];
        fit(KV_MERGE_VALUES);
        memcpy(by_rows, w.kept_v, sizeof by_rows);
        double moved = worst_of(by_rows, before.kept_v, 128 * DIM);

        w = before;
        w.opt.lambda = 5 * lambda[i];
        w.h.n_ref = 200;
        for (int r = 40; r < 200; r++) {
            memcpy(w.q + r * DIM, w.q + r % 40 * DIM, DIM * sizeof(float));
            memcpy(w.o + r * DIM, w.o + r % 40 * DIM, DIM * sizeof(float));
            w.lse[r] = w.lse[r % 40];
        }
        fit(KV_MERGE_VALUES);
        double off = worst_of(w.kept_v, by_rows, 128 * DIM);
        assert_true(moved > 0.05 && off < 3e-7 / (double)lambda[i]);
    }
}

static void test_same_bits(void **state)
{
    (void)state;
    static struct world once;
    clustered(20, 150, 100, 0.2f);
    fit(KV_MERGE_FIT);
    once = w;
    w = before;
    fit(KV_MERGE_FIT);
    assert_memory_equal(w.kept_v, once.kept_v, sizeof w.kept_v);
    assert_memory_equal(w.kept_beta, once.kept_beta, sizeof w.kept_beta);
}

/* A stream that is pressed again and again, each time with e times as much mass as its slots carry, or as little: votes stay
 * between e^-2 and the tokens there were, but may pass e^4. */
static void test_pressed_often(void **state)
{
    (void)state;
    for (int up = 0; up < 2; up++) {
        clustered(8, 200, 16, 0.05f);
        w.h.n_tokens = 2000;
        float least = 0, most = 0;
        for (int i = 0; i < 8; i++) {
            for (int r = 0; r < 200; r++)
                w.lse[r] += up ? 1 : -1;
            fit(KV_MERGE_VOTES);
            for (int c = 0; c < w.kept.n; c++) {
                assert_true(w.kept_beta[c] >= -2.0001f && w.kept_beta[c] <= logf(2000) + 1e-4f);
                least = fminf(least, w.kept_beta[c]);
                most = fmaxf(most, w.kept_beta[c]);
            }
        }
        assert_true(up ? most > 4.5f : least < -1.5f);
    }
}

static void test_nothing_to_do(void **state)
{
    (void)state;
    clustered(20, 0, 64, 0.2f); /* no queries */
    fit(KV_MERGE_FIT);
    assert_kept_as_before();
    clustered(20, 100, 64, 0.2f); /* all exact */
    memset(w.exact, true, sizeof w.exact);
    fit(KV_MERGE_FIT);
    assert_kept_as_before();
    assert_int_equal(w.kept.merged, 0);
    w.exact[w.kept.n - 1] = false;
    fit(KV_MERGE_FIT);
    assert_int_equal(w.kept.merged, w.h.n - w.kept.n);
}

/* Numbers that are not finite never get into the cache. */
static void test_not_finite(void **state)
{
    (void)state;
    const float bad[] = { NAN, INFINITY, -INFINITY };
    for (int i = 0; i < 3; i++)
        for (int rows = 20; rows <= 200; rows += 180)
            for (int where = 0; where < 3; where++) {
                clustered(20, rows, 64, 0.2f);
                float *x = where == 0 ? w.q : where == 1 ? w.o : w.lse;
                x[7] = bad[i];
                before = w;
                fit(where == 2 ? KV_MERGE_VOTES : KV_MERGE_VALUES);
                for (int c = 0; c < w.kept.n; c++)
                    assert_true(isfinite(w.kept_beta[c]));
                if (where < 2)
                    assert_kept_as_before();
                fit(KV_MERGE_FIT);
                for (int c = 0; c < w.kept.n; c++)
                    assert_true(isfinite(w.kept_beta[c]));
                for (int c = 0; c < w.kept.n * DIM; c++)
                    assert_true(isfinite(w.kept_v[c]));
            }
    /* A ridge of 0 over slots that nobody tells apart: no system, no change. */
    clustered(20, 200, 64, 0.2f);
    memset(w.q, 0, sizeof w.q);
    w.opt.lambda = -1;
    before = w;
    fit(KV_MERGE_VALUES);
    assert_kept_as_before();
}

/* ---- the mean ---------------------------------------------------------------------------------------------------- */

/* Groups of 1 to 16 equal keys; one of each is kept. Attention over what is kept is attention over all. */
static void test_mean_of_equals(void **state)
{
    (void)state;
    enum { GROUPS = 16 };
    world_open(ROWS, GROUPS * (GROUPS + 1) / 2, GROUPS, DIM);
    rnd_fill_normal(w.v, N * DIM, 1);
    for (int g = 0, j = 0; g < GROUPS; g++) {
        float key[DIM];
        rnd_fill_normal(key, DIM, 2);
        w.keep[g] = j + g / 2;
        for (int i = 0; i <= g; i++, j++)
            memcpy(w.k + j * DIM, key, sizeof key);
    }
    copy_kept();
    merge_mean();
    rnd_fill_normal(w.q, sizeof w.q / sizeof *w.q, 1);
    for (int r = 0; r < ROWS; r++) {
        double all[DIM], few[DIM];
        double lse = attend(w.q + r * DIM, w.k, w.v, w.beta, w.h.n, all);
        assert_true(
            fabs(attend(w.q + r * DIM, w.kept_k, w.kept_v, w.kept_beta, GROUPS, few) - lse) < 1e-6);
        for (int i = 0; i < DIM; i++)
            assert_true(fabs(all[i] - few[i]) < 1e-6);
    }
}

/* Votes count: a candidate that stands for three weighs three times, in both roles; more than 16 are counted as 16. */
static void test_mean_by_votes(void **state)
{
    (void)state;
    world_open(1, 40, 2, 2);
    for (int j = 0; j < 40; j++) {
        w.k[2 * j + j / 20] = 1 + (float)j; /* one direction each, of any length */
        w.v[2 * j] = (float)j;
    }
    w.keep[0] = 0;
    w.keep[1] = 20;
    for (int j = 2; j < 20; j++)
        w.k[2 * j] = -1; /* like nobody */
    w.beta[0] = logf(3);
    w.beta[1] = logf(2);
    copy_kept();
    merge_mean();
    assert_true(fabsf(w.kept_v[0] - 2 * 1 / 5.0f) < 1e-6f);
    assert_true(fabsf(w.kept_beta[0] - logf(5)) < 1e-6f);
    assert_true(fabsf(w.kept_v[2] - 29.5f) < 1e-5f);
    assert_true(fabsf(w.kept_beta[1] - logf(16)) < 1e-6f);
    assert_memory_equal(w.kept_k, before.kept_k, sizeof w.kept_k);
}

/* Votes that a fit gave are never taken back; a key without a direction is nobody's nearest. */
static void test_mean_after_fit(void **state)
{
    (void)state;
    world_open(1, 4, 2, 2);
    const float k[] = { 0, 0, 1, 2, 1, 2, 2, 4 }, v[] = { 5, 5, 1, 1, 3, 3, 2, 2 };
    memcpy(w.k, k, sizeof k);
    memcpy(w.v, v, sizeof v);
    w.keep[1] = 1;
    w.beta[1] = logf(30);
    copy_kept();
    merge_mean();
    assert_true(w.kept_v[0] == 5 && w.kept_beta[0] == 0);
    assert_true(fabsf(w.kept_v[2] - (30 + 3 + 2) / 32.0f) < 1e-6f);
    assert_true(w.kept_beta[1] == w.beta[1]);
}

static void test_mean_of_nothing(void **state)
{
    (void)state;
    /* Nobody is evicted. */
    world_open(1, SLOTS, SLOTS, DIM);
    rnd_fill_normal(w.k, SLOTS * DIM, 1);
    rnd_fill_normal(w.v, SLOTS * DIM, 1);
    for (int c = 0; c < SLOTS; c++)
        w.keep[c] = c;
    copy_kept();
    merge_mean();
    assert_kept_as_before();
    /* Equals, but the slot is exact, or a sink; and keys without a direction. */
    for (int kind = 0; kind < 3; kind++) {
        world_open(1, 10, 1, DIM);
        for (int i = 0; i < 10 * DIM; i++)
            w.k[i] = kind < 2 ? 1 : 0;
        rnd_fill_normal(w.v, 10 * DIM, 1);
        w.exact[0] = kind == 0;
        w.opt.sinks = kind == 1 ? 4 : -1;
        w.keep[0] = 3;
        copy_kept();
        merge_mean();
        assert_kept_as_before();
    }
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

static void check_faults(bool mean, int rows)
{
    for (uint64_t at = 1;; at++) {
        struct mem_stats from, to;
        clustered(20, rows, 128, 0.2f);
        mem_stats(&from);
        mem_fail_at(at);
        int rc = mean ? kv_merge_mean(&w.h, &w.kept) : kv_fit(&w.h, &w.kept, KV_MERGE_FIT);
        mem_fail_at(0);
        mem_stats(&to);
        arena_clear(&w.arena);
        if (rc == 0) {
            assert_true(at > 2 && to.calls - from.calls < at); /* nothing failed unnoticed */
            return;
        }
        assert_int_equal(rc, ERR_NOMEM);
    }
}

static void test_faults(void **state)
{
    (void)state;
    check_faults(false, 30);
    check_faults(false, 200);
    check_faults(true, 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),          cmocka_unit_test(test_queries_not_seen),
        cmocka_unit_test(test_both_forms),      cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_pressed_often),   cmocka_unit_test(test_nothing_to_do),
        cmocka_unit_test(test_not_finite),      cmocka_unit_test(test_mean_of_equals),
        cmocka_unit_test(test_mean_by_votes),   cmocka_unit_test(test_mean_after_fit),
        cmocka_unit_test(test_mean_of_nothing), cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, levels_close);
}
