/* The head op against a reference in double precision that sorts: sums, order of ties, NaN and infinities, bias and
 * penalties, the id that is drawn.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "server/base/mem.h"

enum { MAX_VOCAB = 20000, MAX_ROWS = 5 };

static struct be *be;
static uint64_t seed = 3;

static double rnd(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) * 0x1p-53;
}

static int open_cpu(void **state)
{
    struct err e;
    (void)state;
    return be_open(&be, &(struct be_config){ .n_threads = 3 }, &e);
}

static int close_cpu(void **state)
{
    (void)state;
    be_close(be);
    return 0;
}

/* ---- the reference ------------------------------------------------------------------------------------------- */

static const float *sort_key;

static int by_logit(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, k = *(const int32_t *)b;
    if (sort_key[i] != sort_key[k])
        return sort_key[i] > sort_key[k] ? -1 : 1;
    return i < k ? -1 : 1;
}

static double weight(float x, float max, double t)
{
    return isnan(x) ? 0 : exp(((double)x - (double)max) / t);
}

static void check_sums(const float *x, int vocab, const struct be_head_row *r,
                       const struct be_head_out *o)
{
    double sum = 0, warm = 0, run = 0, before = 0;
    if (isinf(o->max)) {
        assert_true(o->sum == 0 && o->warm_sum == 0);
        return;
    }
    for (int i = 0; i < vocab; i++) {
        sum += weight(x[i], o->max, 1);
        warm += r->temperature > 0 ? weight(x[i], o->max, (double)r->temperature) : 0;
    }
    assert_true(fabs(o->sum - sum) <= 1e-6 * sum);
    assert_true(fabs(o->warm_sum - warm) <= 1e-6 * warm);
    if (!r->draw || warm == 0)
        return;
    for (int i = 0; i <= o->pick; i++) {
        before = run;
        run += weight(x[i], o->max, (double)r->temperature);
    }
    assert_true(run > before);
    assert_true(before <= (r->u + 2e-6) * warm && run >= (r->u - 2e-6) * warm);
}

/* x is the row as the op left it. */
static void check_row(const float *x, int vocab, const struct be_head_row *r,
                      const struct be_head_out *o)
{
    static int32_t id[MAX_VOCAB];
    int n = 0;
    for (int i = 0; i < vocab; i++)
        if (x[i] > -INFINITY)
            id[n++] = i;
    sort_key = x;
    qsort(id, (size_t)n, sizeof *id, by_logit);
    n = n < BE_HEAD_TOP ? n : BE_HEAD_TOP;
    assert_int_equal(o->n, n);
    for (int i = 0; i < n; i++) {
        assert_int_equal(o->id[i], id[i]);
        assert_true(o->logit[i] == x[id[i]]);
    }
    assert_true(o->max == (n > 0 ? x[id[0]] : -INFINITY));
    if (!r->draw || o->warm_sum == 0)
        assert_int_equal(o->pick, r->pick);
    assert_memory_equal(&o->pick_logit, &x[o->pick], sizeof(float));
    check_sums(x, vocab, r, o);
}

/* ---- rows ---------------------------------------------------------------------------------------------------- */

enum kind { NORMAL, CLUSTER, TIES, EQUAL, SOME_NAN, ALL_NAN, ALL_LOW, ONE_HIGH, ZEROS, KIND_N };

static float logit(enum kind kind, int i, int vocab)
{
    double normal = sqrt(-2 * log(rnd() + 1e-300)) * cos(6.283185307 * rnd());
    switch (kind) {
    case CLUSTER: return (float)normal + (i < vocab / 4 ? 30.0f : 0.0f);
    case TIES: return (float)(i * 7 % 5);
    case EQUAL: return -2.5f;
    case SOME_NAN: return i % 3 == 0 ? NAN : i % 3 == 1 ? -INFINITY : (float)normal;
    case ALL_NAN: return i % 2 ? NAN : -NAN;
    case ALL_LOW: return -INFINITY;
    case ONE_HIGH: return i == vocab / 2 ? INFINITY : (float)normal;
    case ZEROS: return i % 2 ? 0.0f : -0.0f;
    case NORMAL:
    case KIND_N:
    default: return (float)(3 * normal);
    }
}

static void test_rows(void **state)
{
    (void)state;
    static const int sizes[] = { 1, 2, 63, 255, 256, 257, 1023, 1024, 1025, 5000, MAX_VOCAB };
    static float x[MAX_VOCAB];
    static struct be_head_out o;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < KIND_N; kind++)
            for (int t = 0; t < 4; t++) {
                int vocab = sizes[s];
                for (int i = 0; i < vocab; i++)
                    x[i] = logit((enum kind)kind, i, vocab);
                struct be_head_row r = { .repetition = 1,
                                         .temperature = (float)t * 0.6f,
                                         .draw = t > 1,
                                         .u = t == 3 ? 0x1.fffffffffffffp-1 : rnd(),
                                         .pick = vocab / 3 };
                be->ops->head(be, x, 1, vocab, &r, &o);
                check_row(x, vocab, &r, &o);
            }
}

/* Bias first, then penalties, each rounded as the samplers do; rows side by side do not touch each other. */
static void test_changes(void **state)
{
    (void)state;
    enum { VOCAB = 3001, N = 900 };
    static float x[MAX_ROWS][VOCAB], want[MAX_ROWS][VOCAB], alone[VOCAB];
    static int32_t id[N];
    static float bias[N];
    static uint32_t count[N];
    static struct be_head_out o[MAX_ROWS], one;
    struct be_head_row r[MAX_ROWS];
    for (int i = 0; i < N; i++) {
        id[i] = i * 1237 % VOCAB;
        bias[i] = (float)(rnd() * 20 - 10);
        count[i] = (uint32_t)i % 4;
    }
    for (int k = 0; k < MAX_ROWS; k++) {
        r[k] = (struct be_head_row){ .bias_id = id,
                                     .bias = bias,
                                     .n_bias = k * 200,
                                     .seen_id = id + 100,
                                     .count = count,
                                     .n_seen = k % 3 * 400,
                                     .repetition = 1 + 0.1f * (float)k,
                                     .presence = 0.3f,
                                     .frequency = -0.7f,
                                     .temperature = 0.5f,
                                     .draw = true,
                                     .u = rnd() };
        for (int i = 0; i < VOCAB; i++)
            x[k][i] = want[k][i] = logit(NORMAL, i, VOCAB);
        for (int i = 0; i < r[k].n_bias; i++)
            want[k][id[i]] += bias[i];
        for (int i = 0; i < r[k].n_seen; i++) {
            float *y = &want[k][id[100 + i]];
            *y = *y > 0 ? *y / r[k].repetition : *y * r[k].repetition;
            if (count[i] > 0)
                *y -= 0.3f + -0.7f * (float)count[i];
        }
    }
    memcpy(alone, x[3], sizeof alone);
    be->ops->head(be, x[0], MAX_ROWS, VOCAB, r, o);
    for (int k = 0; k < MAX_ROWS; k++) {
        assert_memory_equal(x[k], want[k], sizeof x[k]);
        check_row(x[k], VOCAB, &r[k], &o[k]);
    }
    be->ops->head(be, alone, 1, VOCAB, &r[3], &one);
    assert_memory_equal(&one, &o[3], sizeof one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_changes),
    };
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
