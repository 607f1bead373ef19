/* Compaction: what it keeps, and by which scores, against plain arithmetic in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/tools/kv_world.h"
#include "tests/tools/pressing.h"

enum { N = 300 };

/* ---- a policy that shows what it was shown --------------------------------------------------------------------- */

static struct {
    float local[N], global[N], last[N], mean[N], rms[N];
    int n, n_ref, pos[N];
    float weight[2 * 256 * KV_GROUP];
    int turned[256];
} shown; /* of layer 1, head 1 */

static int score_shown(const struct kv_head *h, float *score)
{
    for (int j = 0; j < h->n; j++)
        score[j] = 0.5f * h->local[j] + 0.5f * h->global[j];
    if (h->layer != 1 || h->head != 1)
        return 0;
    size_t bytes = (size_t)h->n * sizeof(float);
    memcpy(shown.local, h->local, bytes);
    memcpy(shown.global, h->global, bytes);
    memcpy(shown.last, h->last, bytes);
    memcpy(shown.mean, h->mean, bytes);
    memcpy(shown.rms, h->rms, bytes);
    memcpy(shown.pos, h->pos, (size_t)h->n * sizeof *h->pos);
    shown.n = h->n;
    shown.n_ref = h->n_ref;
    for (int i = 0; i < h->n_ref; i++) {
        shown.weight[i] = h->ref_weight[i * h->group];
        shown.turned[i] = h->ref_pos[i] + h->ref_turn[i];
    }
    return 0;
}

static const struct kv_policy evict = { .name = "evict", .score = score_shown };

static struct kv_options evict_to(int budget)
{
    return kv_world_options(&evict, budget);
}

/* ---- what is kept ---------------------------------------------------------------------------------------------- */

static void test_untouched(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = evict_to(N);
    kv_world_open(&w, KV_BF16, 1, false);
    kv_world_start(&w, &s, &o, N, N + 100);
    assert_false(kv_compact_due(&s));
    assert_null(s.narrow);
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

/* Every kept slot has the bits it had, no bias, and the tail page stays. */
static void check_evicted(struct kv_world *w, struct kv_seq *s, int budget)
{
    static struct kv_slots k;
    enum kv_type type = w->p->shape.type;
    int tail = s->n_tokens % KV_PAGE;
    assert_int_equal(s->wide_pos0, s->n_tokens - tail);
    for (int i = 0; i < KV_ALL; i++) {
        assert_int_equal(s->n_narrow[i], budget - tail);
        kv_slots_read(w, s, i / KV_HEADS, i % KV_HEADS, &k);
        assert_int_equal(k.n, budget);
        for (int j = 0; j < k.n; j++) {
            assert_true(j == 0 || k.pos[j] > k.pos[j - 1]);
            assert_true(k.beta[j] == 0);
            assert_true(j >= 4 || k.pos[j] == j);
            assert_true(j < k.n - 16 || k.pos[j] == s->n_tokens - k.n + j);
            for (int d = 0; d < KV_DIM; d++) {
                int layer = i / KV_HEADS, head = i % KV_HEADS;
                assert_true(k.k[j][d] == kv_made_up(type, 0, layer, head, k.pos[j], d));
                assert_true(k.v[j][d] == kv_made_up(type, 1, layer, head, k.pos[j], d));
            }
        }
    }
}

static void test_evict(void **state)
{
    (void)state;
    static const int length[] = { N, 256, 255, 257 }; /* with a tail page, without, ... */
    for (int type = 0; type < KV_TYPE_N; type++) {
        for (size_t i = 0; i < sizeof length / sizeof *length; i++) {
            struct kv_world w;
            struct kv_seq s;
            struct kv_options o = evict_to(64);
            kv_world_open(&w, (enum kv_type)type, 2, false);
            kv_world_start(&w, &s, &o, length[i], length[i] + 10);
            struct kv_report r = kv_world_press(&w, &s);
            check_evicted(&w, &s, 64);
            int n = length[i], tail = n % KV_PAGE;
            assert_int_equal(r.n_compactions, 1);
            assert_int_equal(r.budget, 64);
            assert_int_equal(r.kept, KV_ALL * (64 - tail));
            assert_int_equal(r.evicted, KV_ALL * (n - 64));
            assert_int_equal(r.merged, 0);
            assert_true(r.mass_min > 0 && r.mass_min <= r.mass_mean && r.mass_mean < 1);
            assert_int_equal(kv_seq_slots(&s, w.p), 64);
            struct kv_stats st;
            kv_pool_stats(w.p, &st); /* not to be pressed again: pages for what is there */
            assert_int_equal(st.narrow, KV_ALL * ((64 - tail + KV_PAGE - 1) / KV_PAGE));
            kv_seq_close(&s, w.p);
            kv_world_close(&w);
        }
    }
}

/* The system prompt says what it said, whoever presses and whatever is merged. */
static void test_protected(void **state)
{
    (void)state;
    static const enum kv_merge merges[] = { KV_MERGE_FIT, KV_MERGE_VOTES, KV_MERGE_VALUES,
                                            KV_MERGE_MEAN };
    static struct kv_slots k;
    for (int i = 0; i < n_pressing(); i++)
        for (size_t m = 0; m < sizeof merges / sizeof *merges; m++) {
            struct kv_world w;
            struct kv_seq s;
            struct kv_options o = kv_world_options(pressing(i), 64);
            o.merge = merges[m];
            o.protect = 12;
            kv_world_open(&w, KV_F32, 1, false);
            kv_world_start(&w, &s, &o, N, N + 10);
            kv_world_press(&w, &s);
            for (int h = 0; h < KV_ALL; h++) {
                kv_slots_read(&w, &s, h / KV_HEADS, h % KV_HEADS, &k);
                for (int j = s.opt.sinks; j < o.protect; j++) {
                    assert_int_equal(k.pos[j], j);
                    assert_true(k.beta[j] == 0);
                    for (int d = 0; d < KV_DIM; d++) {
                        float want[2];
                        for (int kind = 0; kind < 2; kind++)
                            want[kind] = kv_made_up(KV_F32, kind, h / KV_HEADS, h % KV_HEADS, j, d);
                        if (k.k[j][d] != want[0] || k.v[j][d] != want[1])
                            fail_msg("%s, merge %d: slot %d", o.policy->name, (int)o.merge, j);
                    }
                }
            }
            kv_seq_close(&s, w.p);
            kv_world_close(&w);
        }
}

/* ---- scores ---------------------------------------------------------------------------------------------------- */

static void make_query(int head, int pos, float *q)
{
    for (int i = 0; i < KV_DIM; i++)
        q[i] = kv_made_up(KV_F32, 2, 1, head, pos, i);
}

/* The average over the group of layer 1, head 1 of what a query gives to slot j from where it stood. */
static double attention(const struct kv_slots *k, int pos, int j)
{
    double sum = 0;
    for (int g = 0; g < KV_GROUP && k->pos[j] <= pos; g++) {
        float q[KV_DIM];
        make_query(KV_GROUP + g, pos, q);
        sum += exp(kv_slots_logit(k, j, q) - kv_slots_lse(k, q, pos));
    }
    return sum / KV_GROUP;
}

static void check_close(double got, double want)
{
    if (!(fabs(got - want) <= 1e-5 * want + 1e-9))
        fail_msg("%g, should be %g", got, want);
}

static double average(const struct kv_slots *k, int j, int from, int to, int step)
{
    double sum = 0;
    int n = 0;
    for (int pos = from; pos < to; pos += step, n++)
        sum += attention(k, pos, j);
    return sum / n;
}

/* The same over `some` of the n samples, evenly strided, the last one among them. */
static double average_some(const struct kv_slots *k, int j, int n, int some)
{
    double sum = 0;
    for (int i = 1; i <= some; i++)
        sum += attention(k, 8 * (i * n / some) - 1, j);
    return sum / some;
}

/* Where reference i of test_scores stood: samples from 5 % on, 15 + 8 k for k < 32, of which 16 are taken; the window. */
static int ref_pos(int i)
{
    return i < 16 ? 15 + 8 * (i * 31 / 15) : N - KV_WINDOW_QUERIES + i - 16;
}

static void ref_query(int i, int g, float *q)
{
    make_query(KV_GROUP + g, ref_pos(i), q);
    kv_rope_turn(&kv_world_rope, q, 1, KV_DIM, shown.turned[i] - ref_pos(i));
}

static void check_references(const struct kv_slots *k, int j)
{
    double mean = 0, square = 0;
    for (int i = 0; i < shown.n_ref * KV_GROUP; i++) {
        float q[KV_DIM];
        ref_query(i / KV_GROUP, i % KV_GROUP, q);
        double p = exp(kv_slots_logit(k, j, q) - kv_slots_lse(k, q, N));
        mean += p / (shown.n_ref * KV_GROUP);
        square += p * p / (shown.n_ref * KV_GROUP);
    }
    check_close((double)shown.mean[j], mean);
    check_close((double)shown.rms[j], sqrt(square));
}

/* The question's references count 20 times, each by the square of what it gives to the candidates. */
static void check_weights(const struct kv_slots *k)
{
    double one = 0;
    for (int i = 0; i < shown.n_ref; i++) {
        float q[KV_DIM];
        ref_query(i, 0, q);
        double share = exp(kv_slots_lse(k, q, shown.n - 1) - kv_slots_lse(k, q, N));
        bool question = ref_pos(i) >= 280 && ref_pos(i) < 290;
        double unit = (double)shown.weight[i] / (question ? 20 : 1) / share / share;
        one = i == 0 ? unit : one;
        check_close(unit, one);
    }
}

static void test_scores(void **state)
{
    (void)state;
    static struct kv_slots k;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = evict_to(64);
    o.question0 = 280;
    o.question1 = 290;
    o.queries = 16;
    kv_world_open(&w, KV_F32, 1, false);
    kv_world_start(&w, &s, &o, N, N + 10);
    kv_slots_read(&w, &s, 1, 1, &k);
    kv_world_press(&w, &s);
    assert_int_equal(shown.n, 288);
    assert_int_equal(shown.n_ref, 16 + KV_WINDOW_QUERIES);
    for (int i = 0; i < shown.n_ref; i++)
        for (int j = 0; j <= i; j++)
            assert_true(j < i ? shown.turned[i] != shown.turned[j]
                              : shown.turned[i] >= N && shown.turned[i] < N + 64);
    for (int j = 0; j < shown.n; j += 7) {
        check_close((double)shown.local[j], average(&k, j, 280, 290, 1));
        check_close((double)shown.last[j], average(&k, j, N - 1, N, 1));
        check_close((double)shown.global[j], average_some(&k, j, N / 8, 16));
        check_references(&k, j);
    }
    check_weights(&k);
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

/* With a stride the global score is that of every so-many-th query, whatever `queries` says; with 1 that of all. */
static void test_stride(void **state)
{
    (void)state;
    static struct kv_slots k;
    static const int stride[] = { 16, 32, 1, 2, 32 };
    for (int i = 0; i < 5; i++)
        for (int device = 0; device < 2; device++) {
            struct kv_world w;
            struct kv_seq s;
            struct kv_options o = evict_to(64);
            o.stride = stride[i];
            o.queries = 16;
            (i < 2 ? kv_world_open : kv_world_open_exact)(&w, KV_F32, 1, device);
            kv_world_start(&w, &s, &o, N, N + 10);
            kv_slots_read(&w, &s, 1, 1, &k);
            kv_world_press(&w, &s);
            for (int j = 0; j < shown.n; j += 31)
                check_close((double)shown.global[j],
                            average(&k, j, stride[i] - 1, N / stride[i] * stride[i], stride[i]));
            kv_seq_close(&s, w.p);
            kv_world_close(&w);
        }
}

/* Queries that are not kept cannot be asked for. */
static void test_bad_stride(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = evict_to(64);
    struct err e;
    kv_world_open(&w, KV_F32, 1, false);
    o.stride = 4;
    assert_int_equal(kv_seq_open(&s, w.p, &o, N, N + 10, &e), ERR_INVALID);
    assert_string_equal(e.text, "stride is 4; one query in 8 is kept");
    o.stride = KV_PAGE + 8;
    assert_int_equal(kv_seq_open(&s, w.p, &o, N, N + 10, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "stride"));
    kv_world_close(&w);
}

/* What was found with the sample of a prefix, and not computed again, scores the same. */
static void test_prefix(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq a, b;
    struct kv_stats st;
    struct kv_options o = evict_to(64), all = { 0 };
    struct err e;
    int32_t token[N] = { 0 };
    kv_world_open(&w, KV_BF16, 2, false);
    kv_world_start(&w, &a, &o, N, N + 10);
    kv_prefix_publish(&a, w.p, token, 0);
    kv_world_press(&w, &a);
    uint64_t bits = kv_world_bits(&w, &a);
    kv_pool_stats(w.p, &st);
    assert_int_equal(st.cached, N / KV_PAGE * KV_LAYERS);
    assert_int_equal(kv_seq_open(&b, w.p, &all, N, N, &e), 0);
    assert_int_equal(kv_prefix_match(&b, w.p, token, N, 0), N / KV_PAGE * KV_PAGE);
    kv_seq_close(&b, w.p);
    assert_int_equal(kv_seq_open(&b, w.p, &o, N, N + 10, &e), 0);
    assert_int_equal(kv_prefix_match(&b, w.p, token, N, 0),
                     (N - KV_WINDOW_QUERIES) / KV_PAGE * KV_PAGE);
    kv_world_grow(&w, &b, N);
    kv_prefix_publish(&b, w.p, token, 0);
    kv_world_press(&w, &b);
    assert_true(bits == kv_world_bits(&w, &b));
    kv_prefix_publish(&b, w.p, token, 0); /* what is pressed stays out of the index */
    kv_seq_close(&a, w.p);
    assert_true(bits == kv_world_bits(&w, &b));
    kv_seq_close(&b, w.p);
    kv_world_close(&w);
}

/* ---- time ------------------------------------------------------------------------------------------------------ */

/* The references, some of the queries of the wide tail, speak for both scores but of what an older pressing has left. */
static void check_again(const struct kv_seq *s, int n_wide, const float *old, int n_old)
{
    int n_samples = n_wide / 8, most = s->opt.budget == 64 ? 16 : 10;
    assert_int_equal(shown.n_ref, n_samples < most ? n_samples : most);
    for (int i = 0; i < shown.n_ref; i++)
        assert_in_range(shown.turned[i], s->n_tokens, s->n_tokens + 63);
    assert_memory_equal(shown.global, old, (size_t)n_old * sizeof *old);
    assert_memory_equal(shown.local, shown.mean, (size_t)shown.n * sizeof *old);
    assert_memory_equal(shown.global + n_old, shown.mean + n_old,
                        (size_t)(shown.n - n_old) * sizeof *old);
}

/* Pressed at the prompt, again when the tail has grown, and again. */
static void press_often(int budget, int tail)
{
    static struct kv_slots before, after;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = evict_to(budget);
    o.tail = tail;
    struct kv_report r = { 0 };
    struct err e;
    kv_world_open(&w, KV_BF16, 2, false);
    kv_world_start(&w, &s, &o, N, 2 * N);
    int at = N, pressings = 0;
    for (; s.n_tokens < 2 * N; kv_world_grow(&w, &s, s.n_tokens + 1)) {
        if (!kv_compact_due(&s)) {
            assert_true(kv_seq_slots(&s, w.p) <= budget + tail);
            continue;
        }
        assert_int_equal(s.n_tokens, pressings == 0 ? N : at + tail + 1);
        at = s.n_tokens;
        kv_slots_read(&w, &s, 1, 1, &before);
        int n_old = kv_seq_pressed(&s) ? s.n_narrow[KV_ALL - 1] : 0, n_wide = at - s.wide_pos0;
        float old[N];
        for (int j = 0; j < n_old; j++)
            old[j] = s.slot[KV_ALL - 1][j].score;
        assert_int_equal(kv_compact(w.c, &s, &r, &e), 0);
        if (n_old > 0)
            check_again(&s, n_wide, old, n_old);
        assert_int_equal(r.n_compactions, ++pressings);
        assert_int_equal(kv_seq_slots(&s, w.p), budget);
        assert_true(kv_pool_check(w.p));
        check_evicted(&w, &s, budget);
        kv_slots_read(&w, &s, 1, 1, &after);
        for (int j = 0, i = 0; j < after.n; j++) { /* a part of what was there */
            while (i < before.n && before.pos[i] < after.pos[j])
                i++;
            assert_true(i < before.n && before.pos[i] == after.pos[j]);
        }
    }
    assert_int_equal(pressings, 1 + (N - 1) / (tail + 1));
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

static void test_again(void **state)
{
    (void)state;
    press_often(64, 48);
    press_often(64, 150);
    press_often(200, 90);
}

static const struct kv_policy blend = {
    .name = "blend", .global_local = true, .local = 1, .score = score_shown
};

/* Policies of a Global-Local score: what the question saw is what a slot is remembered by, and counts when the answer's queries
 * speak. Where the local score is all, the global one is not computed. */
static void test_remembered(void **state)
{
    (void)state;
    for (int global = 0; global < 2; global++) {
        struct kv_world w;
        struct kv_seq s;
        struct kv_options o = kv_world_options(&blend, 64);
        float old[N], weight = global ? 0.75f : 1;
        o.local = global ? weight : 0;
        o.tail = 48;
        kv_world_open(&w, KV_BF16, 2, false);
        kv_world_start(&w, &s, &o, N, 2 * N);
        for (int again = 0; again < 3; again++) {
            while (!kv_compact_due(&s))
                kv_world_grow(&w, &s, s.n_tokens + 1);
            int n_old = again ? s.n_narrow[KV_ALL - 1] : 0;
            for (int j = 0; j < n_old; j++)
                old[j] = s.slot[KV_ALL - 1][j].score;
            kv_world_press(&w, &s);
            assert_memory_equal(shown.global, old, (size_t)n_old * sizeof *old);
            weight = again ? 0.5f : weight;
            float sum = 0;
            for (int c = 0; c < s.n_narrow[KV_ALL - 1]; c++) {
                int j = shown.n;
                while (--j >= 0 && shown.pos[j] != s.slot[KV_ALL - 1][c].pos)
                    ;
                assert_true(j >= 0);
                sum += shown.global[j];
                check_close((double)s.slot[KV_ALL - 1][c].score,
                            (double)weight * (double)shown.local[j] +
                                (1 - (double)weight) * (double)shown.global[j]);
            }
            assert_true((sum > 0) == (global || again));
        }
        kv_seq_close(&s, w.p);
        kv_world_close(&w);
    }
}

/* A budget smaller than the tail page: what is protected stays beside it, and the budget is what that takes. */
static void test_small(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = evict_to(KV_BUDGET_MIN);
    o.tail = 1;
    kv_world_open(&w, KV_BF16, 1, false);
    kv_world_start(&w, &s, &o, 95, N);
    kv_world_press(&w, &s);
    assert_int_equal(kv_seq_slots(&s, w.p), 4 + 31);
    while (s.n_tokens < N) {
        kv_world_grow(&w, &s, s.n_tokens + 1);
        if (kv_compact_due(&s))
            kv_world_press(&w, &s);
        assert_in_range(kv_seq_slots(&s, w.p), 4, 4 + 31 + KV_PAGE);
    }
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

/* A prompt that fits, outgrown by what follows: the last samples stand in for the prompt's queries. */
static void test_late(void **state)
{
    (void)state;
    static struct kv_slots k;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = evict_to(64);
    o.tail = 100;
    kv_world_open(&w, KV_F32, 1, true);
    kv_world_start(&w, &s, &o, 60, N);
    kv_world_grow(&w, &s, 164);
    assert_false(kv_compact_due(&s));
    kv_world_grow(&w, &s, 165);
    kv_slots_read(&w, &s, 1, 1, &k);
    kv_world_press(&w, &s);
    check_evicted(&w, &s, 64);
    assert_int_equal(shown.n, 160);
    for (int j = 0; j < shown.n; j += 7) {
        check_close((double)shown.global[j], average(&k, j, 7, 165, 8));
        check_close((double)shown.local[j], average(&k, j, 7, 165, 8)); /* there are 20 */
        check_close((double)shown.last[j], average(&k, j, 159, 160, 1));
    }
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

static void test_guard(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = evict_to(32);
    kv_world_open(&w, KV_BF16, 2, false);
    kv_world_start(&w, &s, &o, N, N);
    float mass = kv_world_press(&w, &s).mass_mean;
    kv_seq_close(&s, w.p);
    o.budget_max = 200;
    o.mass_floor = mass + 0.1f;
    kv_world_start(&w, &s, &o, N, N);
    struct kv_report r = kv_world_press(&w, &s);
    assert_true(r.raised && r.budget > 32 && r.budget < 200);
    assert_true(r.mass_mean >= o.mass_floor);
    kv_seq_close(&s, w.p);
    o.mass_floor = 1;
    kv_world_start(&w, &s, &o, N, N);
    r = kv_world_press(&w, &s);
    assert_true(r.raised);
    assert_int_equal(r.budget, 200);
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

/* A guard that nothing satisfies: all is kept, in the pages that were held for it, and fewer later. */
static void keep_all(const struct kv_world *w, enum kv_split split, int n)
{
    struct kv_seq s;
    struct kv_options o = evict_to(KV_BUDGET_MIN);
    o.split = split;
    o.tail = 20;
    o.mass_floor = 1;
    o.budget_max = 1 << 30;
    kv_world_start(w, &s, &o, n, 2 * N);
    while (!kv_compact_due(&s))
        kv_world_grow(w, &s, s.n_tokens + 1);
    int then = s.n_tokens;
    struct kv_report r = kv_world_press(w, &s);
    assert_true(r.raised);
    assert_int_equal(r.budget, then);
    for (int again = 0; again < 3; again++) {
        while (!kv_compact_due(&s))
            kv_world_grow(w, &s, s.n_tokens + 1);
        assert_int_equal(kv_world_press(w, &s).budget, then);
    }
    kv_seq_close(&s, w->p);
}

static void test_guard_keeps_all(void **state)
{
    (void)state;
    static const int length[] = { 5, 31, 32, 33, 64, 95, 130, N };
    for (int q8 = 0; q8 < 2; q8++) {
        struct kv_world w;
        if (q8)
            kv_world_open_q8(&w, 2, false);
        else
            kv_world_open(&w, KV_BF16, 2, false);
        for (int split = KV_SPLIT_UNIFORM; split <= KV_SPLIT_MASS; split++)
            for (size_t i = 0; i < sizeof length / sizeof *length; i++)
                keep_all(&w, (enum kv_split)split, length[i]);
        kv_world_close(&w);
    }
}

/* A fork that is pressed with more than the prompt in it: the guard goes as far as for the prompt. */
static void test_guard_late(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq src, s;
    struct kv_options all = evict_to(N - 1), o = evict_to(32);
    struct err e;
    o.mass_floor = 1;
    o.budget_max = 1 << 30;
    kv_world_open(&w, KV_BF16, 2, false);
    kv_world_start(&w, &src, &all, N, 2 * N);
    kv_world_grow(&w, &src, N + 150);
    assert_int_equal(kv_seq_fork(&s, &src, w.p, &o, 2 * N, &e), 0);
    assert_int_equal(kv_world_press(&w, &s).budget, N);
    kv_seq_close(&s, w.p);
    kv_seq_close(&src, w.p);
    kv_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_untouched),       cmocka_unit_test(test_evict),
        cmocka_unit_test(test_protected),       cmocka_unit_test(test_scores),
        cmocka_unit_test(test_stride),          cmocka_unit_test(test_bad_stride),
        cmocka_unit_test(test_prefix),          cmocka_unit_test(test_again),
        cmocka_unit_test(test_small),           cmocka_unit_test(test_late),
        cmocka_unit_test(test_guard),           cmocka_unit_test(test_remembered),
        cmocka_unit_test(test_guard_keeps_all), cmocka_unit_test(test_guard_late),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
