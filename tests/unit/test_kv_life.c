/* Compaction and what goes on around it: forks, swaps, failures, other backends, and all of it in any order. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "kvcache/compact_internal.h"
#include "server/base/mem.h"
#include "tests/tools/kv_world.h"
#include "tests/tools/pressing.h"
#include "tests/tools/small.h"

enum { N = 300 };

static struct kv_options evict_to(int budget)
{
    return kv_world_options(&kv_world_evict, budget);
}

/* ---- forks and swaps ------------------------------------------------------------------------------------------- */

static void test_fork(void **state)
{
    (void)state;
    for (int device = 0; device < 2; device++) {
        struct kv_world w;
        struct kv_seq src, dst, alone;
        struct kv_options all = evict_to(N - 1), o = evict_to(64), full = { 0 };
        struct err e;
        kv_world_open(&w, KV_F16, 2, device);
        kv_world_start(&w, &src, &all, N, N + 50);
        kv_world_start(&w, &alone, &o, N, N + 50);
        kv_world_press(&w, &alone);
        uint64_t bits = kv_world_bits(&w, &src);
        assert_int_equal(kv_seq_fork(&dst, &src, w.p, &o, N + 50, &e), 0);
        assert_true(bits == kv_world_bits(&w, &dst));
        kv_world_press(&w, &dst);
        assert_true(kv_world_bits(&w, &alone) == kv_world_bits(&w, &dst));
        assert_true(bits == kv_world_bits(&w, &src));
        kv_world_grow(&w, &dst, N + 40);
        assert_true(bits == kv_world_bits(&w, &src));
        kv_seq_close(&dst, w.p);
        assert_true(bits == kv_world_bits(&w, &src));
        assert_int_equal(kv_seq_fork(&dst, &src, w.p, &full, N + 50, &e), 0);
        assert_int_equal(dst.n_query, 0);
        kv_world_grow(&w, &src, N + 20);
        kv_world_grow(&w, &dst, N + 20);
        assert_true(kv_world_bits(&w, &dst) == kv_world_bits(&w, &src));
        kv_seq_close(&src, w.p); /* the last queries went with it */
        assert_int_equal(kv_seq_fork(&src, &dst, w.p, &o, N + 50, &e), ERR_UNSUPPORTED);
        kv_seq_close(&dst, w.p);
        kv_seq_close(&alone, w.p);
        kv_world_close(&w);
    }
}

/* Presses a fork of src under o and compares with what a compactor makes of it that has pressed nothing before. */
static void check_pressed(struct kv_world *w, const struct kv_seq *src, const struct kv_options *o)
{
    struct kv_world other = *w;
    struct kv_seq a, b;
    struct err e;
    assert_int_equal(kv_seq_fork(&a, src, w->p, o, N + 50, &e), 0);
    assert_int_equal(kv_seq_fork(&b, src, w->p, o, N + 50, &e), 0);
    assert_int_equal(kv_compactor_open(&other.c, w->p, &kv_world_rope, KV_GROUP, KV_SCALE, &e), 0);
    struct kv_report got = kv_world_press(w, &a), want = kv_world_press(&other, &b);
    assert_int_equal(got.budget, want.budget);
    assert_int_equal(got.kept, want.kept);
    assert_int_equal(got.merged, want.merged);
    assert_int_equal(got.evicted, want.evicted);
    assert_true(got.mass_min == want.mass_min && got.mass_mean == want.mass_mean);
    assert_true(kv_world_bits(w, &a) == kv_world_bits(w, &b));
    kv_compactor_close(other.c);
    kv_seq_close(&b, w->p);
    kv_seq_close(&a, w->p);
}

/* Forks of a prompt are probed once, unless they ask for another probe, whatever else they ask. */
static void test_forks(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq src, next;
    struct kv_options some = evict_to(64);
    kv_world_open(&w, KV_BF16, 2, false);
    kv_world_start(&w, &src, &some, N, N + 50);
    kv_world_start(&w, &next, &some, N - 30, N + 50);
    for (int i = 0; i < n_pressing(); i += check_small() ? 4 : 1) {
        const struct kv_policy *policy = pressing(i);
        uint64_t ns = 0;
        for (int budget = 40; budget < 200; budget += 60) {
            struct kv_options o = { .policy = policy, .budget = budget, .seed = 1 };
            check_pressed(&w, &src, &o);
            assert_true(budget == 40 || w.c->probe_ns == ns);
            ns = w.c->probe_ns;
        }
        struct kv_options o = { .policy = policy, .budget = 64, .queries = 32 };
        check_pressed(&w, &src, &o);
        o.question0 = N - 50;
        o.question1 = N - 40;
        check_pressed(&w, &src, &o);
        o.question0 = o.question1 = 0;
        check_pressed(&w, &next, &o);
    }
    kv_world_grow(&w, &src, N + 40); /* more than the prompt in it */
    struct kv_options o = { .policy = kv_policy_find("ems"), .budget = 64 };
    check_pressed(&w, &src, &o);
    check_pressed(&w, &src, &o);
    kv_seq_close(&next, w.p);
    kv_seq_close(&src, w.p);
    kv_world_close(&w);
}

static void test_swap(void **state)
{
    (void)state;
    for (int device = 0; device < 2; device++) {
        struct kv_world w;
        struct kv_seq s, other;
        struct kv_stats st;
        struct kv_options o = evict_to(64), full = { 0 };
        struct err e;
        kv_world_open(&w, KV_BF16, 2, device);
        kv_world_start(&w, &s, &o, N, 2 * N);
        kv_world_press(&w, &s);
        kv_world_grow(&w, &s, N + 40);
        uint64_t bits = kv_world_bits(&w, &s);
        size_t held = kv_seq_bytes(&s, w.p);
        mem_fail_at(1);
        assert_int_equal(kv_seq_swap_out(&s, w.p, &e), ERR_NOMEM);
        mem_fail_at(0);
        assert_true(bits == kv_world_bits(&w, &s));
        assert_int_equal(kv_seq_swap_out(&s, w.p, &e), 0);
        kv_pool_stats(w.p, &st);
        assert_int_equal(st.free, st.pages);
        assert_int_equal(kv_seq_bytes(&s, w.p), (size_t)KV_ALL * 64 * sizeof(struct kv_slot));
        int many = 63 * KV_PAGE; /* of 64 pages a layer */
        assert_int_equal(kv_seq_open(&other, w.p, &full, many, many, &e), 0);
        assert_int_equal(kv_seq_reserve(&other, w.p, many), 0);
        assert_int_equal(kv_seq_swap_in(&s, w.p, &e), ERR_LIMIT);
        assert_true(kv_seq_need(&s, w.p, s.n_tokens) > kv_pool_available(w.p));
        kv_seq_close(&other, w.p);
        int64_t need = kv_seq_need(&s, w.p, s.n_tokens), room = kv_pool_available(w.p);
        assert_int_equal(kv_seq_swap_in(&s, w.p, &e), 0);
        assert_int_equal(room - need, kv_pool_available(w.p));
        assert_true(bits == kv_world_bits(&w, &s));
        assert_int_equal(kv_seq_bytes(&s, w.p), held);
        assert_int_equal(kv_seq_swap_out(&s, w.p, &e), 0);
        kv_seq_close(&s, w.p); /* swapped */
        kv_world_close(&w);
    }
}

/* ---- the same bits ----------------------------------------------------------------------------------------------- */

static void test_same(void **state)
{
    (void)state;
    static const int threads[] = { 1, 4, 2 };
    for (size_t k = 0; kv_policy_list[k] != NULL; k++) {
        uint64_t bits[3];
        for (int i = 0; i < 3 && !kv_policy_list[k]->keeps_all; i++) {
            struct kv_world w;
            struct kv_seq s;
            struct kv_options o = { .policy = kv_policy_list[k], .budget = 64, .tail = 50 };
            kv_world_open(&w, KV_BF16, threads[i], i == 2);
            kv_world_start(&w, &s, &o, N, 2 * N);
            struct kv_report r = kv_world_press(&w, &s);
            assert_true(r.budget <= 64);
            for (int h = 0; kv_policy_list[k]->one_set && h < KV_ALL; h += KV_HEADS)
                for (int j = 0; j < s.n_narrow[h]; j++)
                    assert_int_equal(s.slot[h][j].pos, s.slot[h + 1][j].pos);
            assert_true(r.kept <= KV_ALL * (64 - N % KV_PAGE));
            while (!kv_compact_due(&s))
                kv_world_grow(&w, &s, s.n_tokens + 1);
            kv_world_press(&w, &s);
            bits[i] = kv_world_bits(&w, &s);
            assert_true(bits[i] == bits[0]);
            kv_seq_close(&s, w.p);
            kv_world_close(&w);
        }
    }
}

/* ---- failures ---------------------------------------------------------------------------------------------------- */

/* Every allocation of a compaction fails once, at the prompt and later; nothing has changed then, and the next try works. */
static void fail_everywhere(struct kv_world *w, struct kv_seq *s)
{
    struct kv_report r = { 0 };
    struct kv_stats st, now;
    struct err e;
    uint64_t bits = kv_world_bits(w, s);
    kv_pool_stats(w->p, &st);
    for (uint64_t n = 1;; n++) {
        kv_world_compactor(w); /* its memory, too, is asked for again */
        mem_fail_at(n);
        int rc = kv_compact(w->c, s, &r, &e);
        mem_fail_at(0);
        assert_true(kv_pool_check(w->p));
        if (rc == 0) {
            assert_true(n > 4);
            break;
        }
        assert_int_equal(rc, ERR_NOMEM);
        assert_true(kv_compact_due(s));
        assert_true(bits == kv_world_bits(w, s));
        kv_pool_stats(w->p, &now);
        assert_memory_equal(&st, &now, sizeof st);
    }
    assert_int_equal(r.n_compactions, 1);
}

static void test_no_memory(void **state)
{
    (void)state;
    static const enum kv_merge merge[] = { KV_MERGE_NONE, KV_MERGE_MEAN };
    for (int i = 0; i < 4; i++) {
        struct kv_world w;
        struct kv_seq s;
        struct mem_stats first, last;
        struct kv_options o = evict_to(64);
        o.merge = merge[i / 2];
        o.tail = 40;
        mem_stats(&first);
        kv_world_open(&w, KV_BF16, 2, i % 2);
        kv_world_start(&w, &s, &o, N, 2 * N);
        fail_everywhere(&w, &s);
        kv_world_grow(&w, &s, N + 41);
        fail_everywhere(&w, &s);
        kv_seq_close(&s, w.p);
        kv_world_close(&w);
        mem_stats(&last);
        assert_int_equal(first.blocks, last.blocks);
        assert_int_equal(first.bytes, last.bytes);
    }
}

/* What a long prompt took, as if one had been pressed before. */
static void grow_scratch(struct kv_compactor *c)
{
    struct room *room[] = { &c->heads, &c->stage, &c->out };
    struct err e;
    for (int i = 0; i < 3; i++)
        assert_int_equal(room_reserve(room[i], KV_SCRATCH_KEPT + 1, &e), 0);
}

/* It goes back whatever becomes of the pressing. */
static void test_scratch(void **state)
{
    (void)state;
    for (int device = 0; device < 2; device++) {
        struct kv_world w;
        struct kv_seq s;
        struct kv_report r = { 0 };
        struct kv_options o = evict_to(64);
        struct err e;
        int rc = -1, failed = 0;
        kv_world_open(&w, KV_BF16, 2, device);
        kv_world_start(&w, &s, &o, N, 2 * N);
        for (uint64_t n = 1; rc < 0; n++) {
            grow_scratch(w.c);
            mem_fail_at(n);
            rc = kv_compact(w.c, &s, &r, &e);
            mem_fail_at(0);
            failed += rc < 0;
            assert_int_equal(w.c->heads.bytes + w.c->stage.bytes + w.c->out.bytes, 0);
        }
        assert_true(failed > 2);
        kv_seq_close(&s, w.p);
        kv_world_start(&w, &s, &o, N, 2 * N);
        kv_world_press(&w, &s); /* what is small is kept */
        assert_in_range(w.c->heads.bytes, 1, KV_SCRATCH_KEPT);
        assert_in_range(w.c->out.bytes, 1, KV_SCRATCH_KEPT);
        kv_seq_close(&s, w.p);
        kv_world_close(&w);
    }
}

/* A device lost at any wait: the sequence is as it was. */
static void test_lost(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq s;
    struct err e;
    struct kv_report r = { 0 };
    struct kv_options o = evict_to(64);
    kv_world_open(&w, KV_BF16, 2, true);
    kv_world_start(&w, &s, &o, N, 2 * N);
    uint64_t bits = kv_world_bits(&w, &s);
    int n = 0, left;
    for (; left = n, w.far.state = &left, kv_compact(w.c, &s, &r, &e) < 0; n++) {
        assert_int_equal(e.code, ERR_DEVICE);
        assert_true(bits == kv_world_bits(&w, &s) && kv_compact_due(&s) && kv_pool_check(w.p));
    }
    assert_int_equal(n, 4);
    bits = kv_world_bits(&w, &s);
    left = 0;
    assert_int_equal(kv_seq_swap_out(&s, w.p, &e), ERR_DEVICE);
    assert_true(bits == kv_world_bits(&w, &s));
    w.far.state = NULL;
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

/* ---- anything --------------------------------------------------------------------------------------------------- */

static uint32_t rng_state;
static int n_pressed, n_swapped, n_forked; /* how often it came to that */

static int rnd(int n)
{
    rng_state = rng_state * 1664525u + 1013904223u;
    return (int)((rng_state >> 8) % (uint32_t)n);
}

static void open_some(struct kv_world *w, struct kv_seq *s, const int32_t *token)
{
    struct kv_options o = { .policy = rnd(4) == 0 ? kv_policy_list[0] : &kv_world_evict };
    struct err e;
    o.budget = 16 + rnd(80);
    o.split = (enum kv_split)(1 + rnd(4));
    o.merge = (enum kv_merge)(1 + rnd(5));
    o.tail = 1 + rnd(60);
    o.window = rnd(20);
    o.sinks = rnd(9) - 1;
    o.protect = rnd(30);
    o.mass_floor = rnd(3) == 0 ? .9f : 0;
    o.budget_max = o.mass_floor > 0 ? o.budget + rnd(60) : 0;
    int n_prompt = 1 + rnd(150);
    assert_int_equal(kv_seq_open(s, w->p, &o, n_prompt, n_prompt + rnd(150), &e), 0);
    kv_prefix_match(s, w->p, token, n_prompt, 0);
}

static void step(struct kv_world *w, struct kv_seq *s, const int32_t *token)
{
    struct kv_report r = { 0 };
    struct err e;
    if (s->swap != NULL) {
        int64_t need = kv_seq_need(s, w->p, s->n_tokens), room = kv_pool_available(w->p);
        assert_int_equal(kv_seq_swap_in(s, w->p, &e), need > room ? ERR_LIMIT : 0);
        n_swapped += need <= room;
        return;
    }
    if (kv_compact_due(s)) {
        int64_t room = kv_pool_available(w->p);
        assert_int_equal(kv_compact(w->c, s, &r, &e), 0);
        assert_true(kv_pool_available(w->p) >= room);
        n_pressed++;
        return;
    }
    int n = s->n_tokens < s->n_prompt ? s->n_prompt : s->n_tokens + 1;
    if (n > s->max_blocks * KV_PAGE) {
        kv_seq_close(s, w->p);
        return;
    }
    int64_t need = kv_seq_need(s, w->p, n), room = kv_pool_available(w->p);
    if (need > room) {
        assert_int_equal(kv_seq_reserve(s, w->p, n), ERR_LIMIT);
        if (kv_seq_pressed(s))
            assert_int_equal(kv_seq_swap_out(s, w->p, &e), 0);
        else
            kv_seq_clear(s, w->p);
    } else {
        kv_world_grow(w, s, n);
        assert_true(kv_pool_available(w->p) >= room - need);
        kv_prefix_publish(s, w->p, token, 0);
    }
}

static void test_anything(void **state)
{
    (void)state;
    enum { SEQS = 8, STEPS = 2500 };
    struct kv_world w;
    struct kv_seq s[SEQS] = { 0 };
    struct err e;
    int32_t token[N + 1] = { 0 };
    rng_state = 5;
    kv_world_open(&w, KV_BF16, 2, false);
    for (int n = 0; n < STEPS; n++) {
        struct kv_seq *a = &s[rnd(SEQS)], *b = &s[rnd(SEQS)];
        if (a->wide == NULL)
            open_some(&w, a, token);
        else if (rnd(60) == 0)
            kv_seq_close(a, w.p);
        else if (rnd(40) == 0 && kv_seq_pressed(a) && a->swap == NULL)
            assert_int_equal(kv_seq_swap_out(a, w.p, &e), 0);
        else if (rnd(20) == 0 && a != b && a->n_tokens >= a->n_prompt && !kv_seq_pressed(a)) {
            kv_seq_close(b, w.p);
            struct kv_options o = evict_to(16 + rnd(80));
            int rc = kv_seq_fork(b, a, w.p, &o, a->n_tokens + rnd(100), &e);
            assert_true(rc == 0 || rc == ERR_LIMIT || rc == ERR_UNSUPPORTED);
            n_forked += rc == 0;
        } else
            step(&w, a, token);
        if (n % 8 == 0)
            assert_true(kv_pool_check(w.p));
    }
    assert_true(n_pressed > 20 && n_swapped > 10 && n_forked > 10);
    for (int i = 0; i < SEQS; i++)
        kv_seq_close(&s[i], w.p);
    kv_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fork),      cmocka_unit_test(test_forks),
        cmocka_unit_test(test_swap),      cmocka_unit_test(test_same),
        cmocka_unit_test(test_no_memory), cmocka_unit_test(test_lost),
        cmocka_unit_test(test_anything),  cmocka_unit_test(test_scratch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
