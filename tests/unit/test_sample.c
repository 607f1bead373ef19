/* Sampling against a plain reference in double precision: sort, cut, count. Draws are judged by chi-squared with fixed
 * seeds. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/engine/sample.h"

enum { BIG = 6000 };

static const struct sample_params plain = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1
};

static uint64_t rng_state = 7;

static double rnd(void)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng_state >> 11) * 0x1p-53;
}

static void make_logits(float *x, int n, double spread)
{
    for (int i = 0; i < n; i++)
        x[i] = (float)(spread * sqrt(-2 * log(rnd() + 1e-300)) * cos(6.283185307 * rnd()));
}

static struct sampler *open_sampler(const struct sample_params *p, int n)
{
    struct sampler *s;
    struct err e;
    assert_int_equal(sampler_open(&s, p, n, &e), 0);
    return s;
}

static int32_t one(const struct sample_params *p, const float *x, int n)
{
    struct sample_result r;
    struct sampler *s = open_sampler(p, n);
    sampler_next(s, x, &r);
    sampler_close(s);
    return r.id;
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

/* The distribution a draw must follow. */
static void reference(const float *x, int n, const struct sample_params *p, double *prob)
{
    int32_t *id = mem_alloc((size_t)n * sizeof *id);
    double sum = 0, kept = 0, run = 0;
    for (int i = 0; i < n; i++)
        id[i] = i;
    sort_key = x;
    qsort(id, (size_t)n, sizeof *id, by_logit);
    memset(prob, 0, (size_t)n * sizeof *prob);
    int have = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    for (int i = 0; i < have; i++) {
        double w = exp(((double)x[id[i]] - (double)x[id[0]]) / (double)p->temperature);
        prob[id[i]] = w < (double)p->min_p ? 0 : w;
        sum += prob[id[i]];
    }
    for (int i = 0; i < have; i++) {
        if (run >= (double)p->top_p * sum)
            prob[id[i]] = 0;
        run += prob[id[i]];
        kept += prob[id[i]];
    }
    for (int i = 0; i < n; i++)
        prob[i] /= kept;
    mem_free(id);
}

/* Draws n_draws times and compares the counts: bins of less than 10 expected are put together. Returns the chi-squared
 * statistic's distance from its mean in standard deviations. */
static double chi_squared(const float *x, int n, const struct sample_params *p, int n_draws)
{
    double *prob = mem_zalloc((size_t)n, sizeof *prob);
    int *count = mem_zalloc((size_t)n, sizeof *count);
    struct sampler *s = open_sampler(p, n);
    struct sample_result r;
    reference(x, n, p, prob);
    for (int i = 0; i < n_draws; i++) {
        sampler_next(s, x, &r);
        count[r.id]++;
    }
    double chi = 0, rest_want = 0, rest_got = 0;
    int bins = 0;
    for (int i = 0; i < n; i++) {
        double want = prob[i] * n_draws;
        if (prob[i] == 0)
            assert_int_equal(count[i], 0);
        if (want < 10) {
            rest_want += want;
            rest_got += count[i];
            continue;
        }
        chi += (count[i] - want) * (count[i] - want) / want;
        bins++;
    }
    if (rest_want >= 10) {
        chi += (rest_got - rest_want) * (rest_got - rest_want) / rest_want;
        bins++;
    }
    sampler_close(s);
    mem_free(count);
    mem_free(prob);
    return bins < 2 ? 0 : (chi - (bins - 1)) / sqrt(2.0 * (bins - 1));
}

static void test_draws(void **state)
{
    (void)state;
    static float x[BIG];
    static const struct {
        float temperature, top_p, min_p;
        int top_k;
    } grid[] = {
        { 1, 1, 0, 0 },        { 0.7f, 1, 0, 0 },    { 2, 1, 0, 0 },        { 1, 0.9f, 0, 0 },
        { 1, 0.3f, 0, 0 },     { 3, 0.95f, 0, 0 },   { 1, 1, 0.05f, 0 },    { 1, 0.8f, 0.02f, 0 },
        { 1, 1, 0, 1 },        { 1, 1, 0, 40 },      { 0.8f, 0.7f, 0, 40 }, { 1, 0.9f, 0.1f, 100 },
        { 5, 0.99f, 0, 3000 }, { 1, 1, 0, BIG + 5 }, { 0.2f, 0.5f, 0, 0 },  { 1, 1e-6f, 0, 0 },
    };
    static const int sizes[] = { 5, 300, BIG };
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        make_logits(x, sizes[k], 2.5);
        for (size_t i = 0; i < sizeof grid / sizeof grid[0]; i++) {
            struct sample_params p = plain;
            p.temperature = grid[i].temperature;
            p.top_p = grid[i].top_p;
            p.min_p = grid[i].min_p;
            p.top_k = grid[i].top_k;
            p.seed = 1000 * k + i;
            double z = chi_squared(x, sizes[k], &p, sizes[k] == BIG ? 4000 : 20000);
            if (fabs(z) > 4.5)
                fail_msg("size %d, case %zu: chi-squared is %.1f sigma off", sizes[k], i, z);
        }
    }
}

/* ---- greedy, ties, NaN --------------------------------------------------------------------------------------- */

static void test_greedy(void **state)
{
    (void)state;
    static float x[1003];
    struct sample_params p = plain;
    p.temperature = 0;
    make_logits(x, 1003, 1);
    for (int at = 0; at < 1003; at += 59) {
        float was = x[at];
        x[at] = 50;
        assert_int_equal(one(&p, x, 1003), at);
        x[1002] = 50; /* a tie goes to the lower id */
        assert_int_equal(one(&p, x, 1003), at);
        x[at] = was;
        x[1002] = 0;
    }
    for (int i = 0; i < 1003; i++)
        x[i] = NAN;
    assert_int_equal(one(&p, x, 1003), 0);
    x[77] = -INFINITY;
    assert_int_equal(one(&p, x, 1003), 77);
    x[900] = -1e30f;
    assert_int_equal(one(&p, x, 1003), 900);
    x[901] = INFINITY;
    assert_int_equal(one(&p, x, 1003), 901);
    assert_int_equal(one(&p, x, 1), 0);
}

static void test_nan_draws(void **state)
{
    (void)state;
    static float x[5000];
    for (int i = 0; i < 5000; i++)
        x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? -INFINITY : (float)(i % 7);
    struct sample_params grid[5] = { plain, plain, plain, plain, plain };
    grid[1].top_p = 0.9f;
    grid[2].top_k = 50;
    grid[3].min_p = 0.2f;
    grid[4].top_k = 4000;
    for (int g = 0; g < 5; g++) {
        struct sampler *s = open_sampler(&grid[g], 5000);
        struct sample_result r;
        for (int i = 0; i < 500; i++) {
            sampler_next(s, x, &r);
            assert_int_equal(r.id % 3, 2);
        }
        sampler_close(s);
    }
    for (int i = 0; i < 5000; i++)
        x[i] = NAN;
    for (int g = 0; g < 5; g++)
        assert_int_equal(one(&grid[g], x, 5000), 0);
    x[4000] = INFINITY;
    for (int g = 0; g < 5; g++)
        assert_int_equal(one(&grid[g], x, 5000), 4000);
}

/* Equal logits at the edge of top_k and top_p: the lower ids stay. */
static void test_ties(void **state)
{
    (void)state;
    float x[100] = { 0 };
    struct sample_params p = plain;
    p.top_k = 10;
    struct sampler *s = open_sampler(&p, 100);
    struct sample_result r;
    for (int i = 0; i < 1000; i++) {
        sampler_next(s, x, &r);
        assert_in_range(r.id, 0, 9);
    }
    sampler_close(s);
    p.top_k = 0;
    p.top_p = 0.2f;
    s = open_sampler(&p, 100);
    for (int i = 0; i < 1000; i++) {
        sampler_next(s, x, &r);
        assert_in_range(r.id, 0, 20); /* 20 or, by rounding of 0.2f, 21 of them */
    }
    sampler_close(s);
}

static void test_seed(void **state)
{
    (void)state;
    static float x[3000], y[3000];
    make_logits(x, 3000, 1);
    make_logits(y, 3000, 1);
    struct sample_params p = plain;
    int same = 0;
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct sample_result a, b, c;
        p.seed = seed;
        struct sampler *s = open_sampler(&p, 3000), *t = open_sampler(&p, 3000);
        p.seed = seed + 1;
        struct sampler *other = open_sampler(&p, 3000);
        sampler_next(s, y, &a); /* what was drawn before does not matter, only how often */
        sampler_next(t, x, &b);
        sampler_next(other, x, &c);
        sampler_next(s, x, &a);
        sampler_next(t, x, &b);
        sampler_next(other, x, &c);
        assert_int_equal(a.id, b.id);
        same += a.id == c.id;
        sampler_close(s);
        sampler_close(t);
        sampler_close(other);
    }
    assert_true(same < 5);
}

/* ---- penalties, bias, logprobs ------------------------------------------------------------------------------- */

static double log_softmax(const float *x, int n, int id)
{
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        max = (double)x[i] > max ? (double)x[i] : max;
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return (double)x[id] - max - log(sum);
}

static void test_logprobs(void **state)
{
    (void)state;
    static float x[BIG];
    struct sample_result r;
    static const int sizes[] = { 1, 3, 17, 1024, 1500, BIG };
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        int n = sizes[k];
        make_logits(x, n, 4);
        for (int id = 0; id < n; id += 1 + n / 9) {
            sample_logprobs(x, n, id, SAMPLE_MAX_LOGPROBS, &r);
            assert_int_equal(r.id, id);
            assert_float_equal(r.logprob, (float)log_softmax(x, n, id), 2e-6f * (1 - r.logprob));
        }
        assert_int_equal(r.n_top, n < SAMPLE_MAX_LOGPROBS ? n : SAMPLE_MAX_LOGPROBS);
        int32_t id[BIG];
        for (int i = 0; i < n; i++)
            id[i] = i;
        sort_key = x;
        qsort(id, (size_t)n, sizeof *id, by_logit);
        for (int i = 0; i < r.n_top; i++) {
            assert_int_equal(r.top[i].id, id[i]);
            assert_float_equal(r.top[i].logprob, (float)log_softmax(x, n, id[i]), 1e-5f);
        }
    }
    /* infinities and NaN */
    float odd[6] = { 1, NAN, -INFINITY, 1, NAN, 0 };
    sample_logprobs(odd, 6, 1, 5, &r);
    assert_true(r.logprob == -INFINITY);
    assert_int_equal(r.n_top, 4);
    assert_int_equal(r.top[0].id, 0);
    assert_int_equal(r.top[1].id, 3);
    assert_int_equal(r.top[2].id, 5);
    assert_true(r.top[3].logprob == -INFINITY);
    odd[5] = INFINITY;
    sample_logprobs(odd, 6, 5, 1, &r);
    assert_float_equal(r.logprob, 0, 0);
    sample_logprobs(odd, 6, 0, 0, &r);
    assert_true(r.logprob == -INFINITY);
    assert_int_equal(r.n_top, 0);
}

/* Chosen by arithmetic that is exact in floats. */
static void test_penalties(void **state)
{
    (void)state;
    float x[8] = { 4, 3, -1, 0, 2, -2, 1, 0.5f };
    float want[8];
    struct logit_bias bias[2] = { { 6, 2.5f }, { 0, -3 } };
    const int32_t prompt[] = { 4, 2, 4, -1, 99 };
    struct sample_params p = { .top_p = 1,
                               .repetition_penalty = 2,
                               .presence_penalty = 0.25f,
                               .frequency_penalty = 0.5f,
                               .bias = bias,
                               .n_bias = 2,
                               .n_logprobs = 8 };
    struct sampler *s = open_sampler(&p, 8);
    struct sample_result r;
    sampler_accept_prompt(s, prompt, 5);
    int count[8] = { 0 }, seen[8] = { 0, 0, 1, 0, 1, 0, 0, 0 };
    for (int step = 0; step < 12; step++) {
        for (int i = 0; i < 8; i++) {
            want[i] = x[i] + (i == 6 ? 2.5f : i == 0 ? -3.0f : 0.0f);
            if (seen[i])
                want[i] = want[i] > 0 ? want[i] / 2 : want[i] * 2;
            if (count[i] > 0)
                want[i] -= 0.25f + 0.5f * (float)count[i];
        }
        sampler_next(s, x, &r);
        int best = 0;
        for (int i = 1; i < 8; i++)
            best = want[i] > want[best] ? i : best;
        assert_int_equal(r.id, best);
        assert_float_equal(r.logprob, (float)log_softmax(want, 8, best), 1e-6f);
        assert_int_equal(r.n_top, 8);
        for (int i = 0; i < 8; i++)
            assert_float_equal(r.top[i].logprob, (float)log_softmax(want, 8, r.top[i].id), 1e-6f);
        count[best]++;
        seen[best] = 1;
    }
    assert_float_equal(x[0], 4, 0); /* the caller's row is not touched */
    sampler_close(s);
    bias[0].bias = -100;
    p = plain;
    p.bias = bias;
    p.n_bias = 1;
    s = open_sampler(&p, 8);
    for (int i = 0; i < 1000; i++) {
        sampler_next(s, x, &r);
        assert_int_not_equal(r.id, 6);
    }
    sampler_close(s);
}

/* ---- from what the head leaves of a row ---------------------------------------------------------------------- */

/* One sampler reads rows, the other what the head op leaves of them: tokens must agree. Returns how many times that was not
 * enough. */
static int run_head(struct be *be, const struct sample_params *p, int n, double spread, int n_steps)
{
    static float x[BIG], y[BIG];
    static struct be_head_out left;
    static const int32_t prompt[] = { 4, 2, 4, 1, 3 };
    struct sampler *a = open_sampler(p, n), *b = open_sampler(p, n);
    int missed = 0;
    sampler_accept_prompt(a, prompt, 5);
    sampler_accept_prompt(b, prompt, 5);
    for (int step = 0; step < n_steps; step++) {
        struct sample_result want, got;
        struct be_head_row row;
        make_logits(x, n, spread);
        if (step % 5 == 1)
            for (int i = 0; i < n; i += 3)
                x[i] = i % 2 == 0 ? NAN : -INFINITY;
        if (step % 7 == 3)
            x[n / 2] = INFINITY;
        memcpy(y, x, sizeof y);
        sampler_next(a, x, &want);
        sampler_head(b, &row);
        be->ops->head(be, y, 1, n, &row, &left);
        if (!sampler_take(b, &left, &got)) {
            sampler_pick(b, y, &got);
            missed++;
        }
        assert_int_equal(want.id, got.id);
        assert_true(want.logprob == got.logprob || fabsf(want.logprob - got.logprob) < 1e-5f);
        assert_int_equal(want.n_top, got.n_top);
        for (int i = 0; i < want.n_top; i++) {
            float l = want.top[i].logprob, m = got.top[i].logprob;
            assert_int_equal(want.top[i].id, got.top[i].id);
            assert_true(l == m || fabsf(l - m) < 1e-5f);
        }
    }
    sampler_close(a);
    sampler_close(b);
    return missed;
}

static void test_head(void **state)
{
    (void)state;
    static const struct logit_bias bias[] = { { 1, 3 }, { 4, -5 }, { 0, 0.5f } };
    static const struct {
        float temperature, top_p, min_p;
        int top_k, n_logprobs, enough; /* 1: the head's list always is, -1: never for BIG */
    } grid[] = {
        { 0, 1, 0, 0, 20, 1 },      { 0, 1, 0, 0, -1, 1 },       { 1e-6f, 0.5f, 0, 0, 0, 1 },
        { 1, 1, 0, 0, 5, 1 },       { 0.7f, 1, 0, 0, -1, 1 },    { 2, 1, 0, 0, 0, 1 },
        { 1, 0.5f, 0, 0, 3, 1 },    { 1, 0.9f, 0, 0, 3, 0 },     { 5, 0.99f, 0, 0, 0, -1 },
        { 1, 1, 0.05f, 0, 2, 1 },   { 9, 1, 0.05f, 0, 2, -1 },   { 1, 0.9f, 0.1f, 0, 1, 1 },
        { 1, 1, 0, 40, 1, 1 },      { 0.8f, 0.7f, 0, 40, 1, 1 }, { 1, 0.9f, 0.1f, 100, 1, 1 },
        { 3, 0.99f, 0, 256, 1, 1 }, { 3, 0.99f, 0, 257, 1, -1 }, { 1, 1, 0, BIG, 1, 1 },
    };
    static const int sizes[] = { 30, 300, BIG };
    struct be *be;
    struct err e;
    assert_int_equal(be_open(&be, &(struct be_config){ .n_threads = 2 }, &e), 0);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (size_t i = 0; i < sizeof grid / sizeof *grid; i++) {
            struct sample_params p = plain;
            p.temperature = grid[i].temperature;
            p.top_p = grid[i].top_p;
            p.min_p = grid[i].min_p;
            p.top_k = grid[i].top_k;
            p.n_logprobs = grid[i].n_logprobs;
            p.seed = 100 * k + i;
            for (int penalties = 0; penalties < 2; penalties++) {
                int missed = run_head(be, &p, sizes[k], 2.5, 100);
                if (grid[i].enough > 0 && sizes[k] > 30)
                    assert_int_equal(missed, 0);
                if (grid[i].enough < 0 && sizes[k] == BIG)
                    assert_true(missed > 50);
                p.repetition_penalty = 1.2f;
                p.frequency_penalty = 0.5f;
                p.presence_penalty = -0.2f;
                p.bias = bias;
                p.n_bias = 3;
            }
        }
    be_close(be);
}

/* What is left of a prompt's row, and rows with hardly anything in them. */
static void test_head_logprobs(void **state)
{
    (void)state;
    static float x[BIG];
    static struct be_head_out left;
    struct sample_result want, got;
    struct be *be;
    struct err e;
    assert_int_equal(be_open(&be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    make_logits(x, BIG, 3);
    for (int id = 0; id < BIG; id += 577) {
        struct be_head_row row = { .repetition = 1, .pick = id };
        be->ops->head(be, x, 1, BIG, &row, &left);
        assert_true(sample_head_logprobs(&left, SAMPLE_MAX_LOGPROBS, &got));
        sample_logprobs(x, BIG, id, SAMPLE_MAX_LOGPROBS, &want);
        assert_int_equal(got.id, id);
        assert_float_equal(got.logprob, want.logprob, 1e-5f);
        assert_int_equal(got.n_top, want.n_top);
        for (int i = 0; i < got.n_top; i++)
            assert_int_equal(got.top[i].id, want.top[i].id);
    }
    for (int i = 0; i < 50; i++)
        x[i] = i == 20 ? -INFINITY : NAN;
    struct be_head_row row = { .repetition = 1 };
    be->ops->head(be, x, 1, 50, &row, &left);
    assert_false(sample_head_logprobs(&left, 1, &got));
    struct sampler *s = open_sampler(&plain, 50);
    assert_false(sampler_take(s, &left, &got));
    sampler_pick(s, x, &got);
    assert_int_equal(got.id, 20);
    sampler_close(s);
    be_close(be);
}

/* min_p 1 leaves the likeliest token, whatever the draw and the other cuts are, and those that are as likely; read from the row
 * or from what the head leaves of it. */
static void test_min_p_one(void **state)
{
    (void)state;
    static float x[BIG];
    static const float temperature[] = { 0.01f, 0.7f, 2 }, top_p[] = { 1, 0.9f };
    static const int top_k[] = { 0, 40, 3000 };
    struct sample_params p = plain, greedy = plain;
    struct be *be;
    struct err e;
    assert_int_equal(be_open(&be, &(struct be_config){ .n_threads = 2 }, &e), 0);
    greedy.temperature = 0;
    p.min_p = 1;
    for (int i = 0; i < 18 * 20; i++) {
        p.temperature = temperature[i % 3];
        p.top_p = top_p[i / 3 % 2];
        p.top_k = top_k[i / 6 % 3];
        p.seed = (uint64_t)i;
        make_logits(x, BIG, 0.1);
        int32_t best = one(&greedy, x, BIG);
        assert_int_equal(one(&p, x, BIG), best);
        int32_t other = (best + 999) % BIG;
        x[other] = x[best];
        int32_t id = one(&p, x, BIG);
        assert_true(id == best || id == other);
        if (i < 18)
            assert_true(run_head(be, &p, BIG, 2.5, 20) == 0 || p.top_k == 3000);
    }
    be_close(be);
}

static void test_refusals(void **state)
{
    (void)state;
    enum { N_BAD = 13 };
    struct sample_params bad[N_BAD];
    struct logit_bias bias = { 10, 1 }, twice[2] = { { 7, 1 }, { 7, 2 } };
    for (int i = 0; i < N_BAD; i++)
        bad[i] = plain;
    bad[0].temperature = -1;
    bad[1].temperature = NAN;
    bad[2].top_p = 0;
    bad[3].top_p = 1.5f;
    bad[4].min_p = nextafterf(1, 2);
    bad[5].min_p = -0.1f;
    bad[6].repetition_penalty = 0;
    bad[7].presence_penalty = NAN;
    bad[8].frequency_penalty = INFINITY;
    bad[9].top_k = -1;
    bad[10].n_logprobs = SAMPLE_MAX_LOGPROBS + 1;
    bad[11].bias = &bias;
    bad[11].n_bias = 1;
    bad[12].bias = twice;
    bad[12].n_bias = 2;
    for (int i = 0; i < N_BAD; i++) {
        struct sampler *s;
        struct err e;
        assert_int_equal(sampler_open(&s, &bad[i], 10, &e), ERR_INVALID);
        assert_true(strlen(e.text) > 10);
    }
    sampler_close(NULL);
}

static void test_memory(void **state)
{
    (void)state;
    struct mem_stats before, after;
    float x[300];
    struct sample_params p = plain;
    p.top_p = 0.9f;
    p.frequency_penalty = 1;
    p.n_logprobs = 5;
    make_logits(x, 300, 1);
    struct sampler *s = open_sampler(&p, 300);
    struct sample_result r;
    mem_stats(&before);
    for (int i = 0; i < 1000; i++)
        sampler_next(s, x, &r);
    mem_stats(&after);
    assert_int_equal(before.calls, after.calls);
    sampler_close(s);
    mem_stats(&before);
    for (uint64_t n = 1; n < 20; n++) {
        struct err e;
        mem_fail_at(n);
        int rc = sampler_open(&s, &p, 300, &e);
        mem_fail_at(0);
        if (rc == 0) {
            sampler_close(s);
            break;
        }
        assert_int_equal(rc, ERR_NOMEM);
    }
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_draws),         cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_nan_draws),     cmocka_unit_test(test_ties),
        cmocka_unit_test(test_seed),          cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_penalties),     cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_memory),        cmocka_unit_test(test_head),
        cmocka_unit_test(test_head_logprobs), cmocka_unit_test(test_min_p_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
