/* Narrow pages of q8: what pressing leaves in them, what they take, and that they go every way that others go: pressed again,
 * swapped, forked, on a device. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/tools/kv_world.h"

static const size_t SIDE_BYTES = 3 * KV_PAGE_Q8 * sizeof(float);

static struct kv_stats stats(struct kv_pool *p)
{
    struct kv_stats st;
    kv_pool_stats(p, &st);
    return st;
}

/* Half a step of a scale that is the largest element over 127. */
static bool q8_near(const float *got, const float *want)
{
    float most = 0;
    for (int i = 0; i < KV_DIM; i++)
        most = fmaxf(most, fabsf(want[i]));
    for (int i = 0; i < KV_DIM; i++)
        if (!(fabsf(got[i] - want[i]) <= most / 127 * 0.5001f))
            return false;
    return true;
}

/* The same slots as in the cache's own type, as near to them as 8 bits can be. */
static void test_same_slots(void **state)
{
    (void)state;
    static struct kv_slots a, b;
    struct kv_world same, q8;
    struct kv_options o = kv_world_options(&kv_world_evict, 100);
    struct kv_seq s, t;
    kv_world_open(&same, KV_BF16, 1, false);
    kv_world_open_q8(&q8, 2, false);
    kv_world_start(&same, &s, &o, 300, 310);
    kv_world_start(&q8, &t, &o, 300, 310);
    kv_world_press(&same, &s);
    kv_world_press(&q8, &t);
    for (int i = 0; i < KV_ALL; i++) {
        kv_slots_read(&same, &s, i / KV_HEADS, i % KV_HEADS, &a);
        kv_slots_read(&q8, &t, i / KV_HEADS, i % KV_HEADS, &b);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.pos, b.pos, (size_t)a.n * sizeof *a.pos);
        assert_memory_equal(a.beta, b.beta, (size_t)a.n * sizeof *a.beta);
        for (int j = 0; j < a.n; j++)
            assert_true(q8_near(b.k[j], a.k[j]) && q8_near(b.v[j], a.v[j]));
        for (int j = s.n_narrow[i]; j < a.n; j++) /* the tail is what it was */
            assert_memory_equal(a.k[j], b.k[j], sizeof a.k[j]);
    }
    kv_seq_close(&s, same.p);
    kv_seq_close(&t, q8.p);
    kv_world_close(&same);
    kv_world_close(&q8);
}

/* Half the pages; bytes are those of pages, sides and tables; bytes asked for buy more slots. */
static void test_bytes(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq s;
    struct err e;
    struct kv_options o = kv_world_options(&kv_world_evict, 128 + 12);
    kv_world_open_q8(&w, 1, false);
    size_t block = stats(w.p).page_bytes / KV_HEADS;
    assert_int_equal(block, 2 * KV_PAGE * KV_DIM * 2);
    kv_world_start(&w, &s, &o, 300, 300);
    kv_world_press(&w, &s);
    assert_int_equal(s.n_narrow[0], 128);
    assert_int_equal(stats(w.p).narrow, KV_ALL * 2);
    assert_int_equal(kv_seq_bytes(&s, w.p),
                     KV_LAYERS * (stats(w.p).page_bytes + stats(w.p).sample_bytes) +
                         KV_ALL * 2 * (block + SIDE_BYTES) + KV_ALL * 140 * sizeof(struct kv_slot));
    kv_seq_close(&s, w.p);

    struct kv_shape same = w.p->shape;
    same.narrow_type = KV_NARROW_SAME;
    assert_int_equal(kv_slot_bytes(&same), KV_ALL * (2 * KV_DIM * 2 + 4 + 8));
    assert_int_equal(kv_slot_bytes(&w.p->shape), KV_ALL * (2 * KV_DIM + 3 * 4 + 8));
    o.budget = 0;
    o.budget_bytes = 100 * kv_slot_bytes(&w.p->shape);
    assert_int_equal(kv_options_fill(&o, 300, kv_slot_bytes(&w.p->shape), &e), 0);
    assert_int_equal(o.budget, 100);
    kv_world_close(&w);
}

/* A pool whose plan is told: with biases, and scales that another pool does not have. */
static void test_pool(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_pool *p;
    struct err e;
    kv_world_open_q8(&w, 1, false);
    struct kv_shape shape = w.p->shape;
    assert_int_equal(kv_pool_bytes(w.p), KV_PAGES * kv_span_bytes(&shape));
    size_t q8 = kv_span_bytes(&shape);
    shape.narrow_type = KV_NARROW_SAME;
    assert_int_equal(q8 - kv_span_bytes(&shape), KV_ALL * (SIDE_BYTES - KV_PAGE * sizeof(float)));
    shape.narrow_type = KV_NARROW_Q8;
    shape.type = KV_F32;
    assert_int_equal(kv_pool_open(&p, w.be, &shape, 320, &e), ERR_UNSUPPORTED);
    assert_non_null(strstr(e.text, "f32"));
    kv_world_close(&w);
}

/* What stays keeps its bits however often it is pressed; what comes in is rounded once. */
static void test_again(void **state)
{
    (void)state;
    static struct kv_slots was[KV_ALL], now;
    struct kv_world w;
    struct kv_seq s;
    struct kv_options o = kv_world_options(&kv_world_evict, 80);
    o.tail = 40;
    kv_world_open_q8(&w, 2, false);
    kv_world_start(&w, &s, &o, 200, 600);
    kv_world_press(&w, &s);
    for (int n = 200; n < 560;) {
        for (int i = 0; i < KV_ALL; i++)
            kv_slots_read(&w, &s, i / KV_HEADS, i % KV_HEADS, &was[i]);
        while (!kv_compact_due(&s))
            kv_world_grow(&w, &s, ++n);
        kv_world_press(&w, &s);
        int stayed = 0;
        for (int i = 0; i < KV_ALL; i++) {
            kv_slots_read(&w, &s, i / KV_HEADS, i % KV_HEADS, &now);
            for (int j = 0, k = 0; j < s.n_narrow[i]; j++) {
                int head = i % KV_HEADS, layer = i / KV_HEADS;
                float want[KV_DIM];
                for (int d = 0; d < KV_DIM; d++)
                    want[d] = kv_made_up(KV_BF16, 0, layer, head, now.pos[j], d);
                assert_true(q8_near(now.k[j], want));
                while (k < was[i].n && was[i].pos[k] < now.pos[j])
                    k++;
                if (k >= was[i].n || was[i].pos[k] != now.pos[j] || now.pos[j] >= 192)
                    continue;
                stayed++;
                assert_memory_equal(now.k[j], was[i].k[k], sizeof now.k[j]);
                assert_memory_equal(now.v[j], was[i].v[k], sizeof now.v[j]);
            }
        }
        assert_true(stayed > 0);
    }
    kv_seq_close(&s, w.p);
    kv_world_close(&w);
}

static void test_swap(void **state)
{
    (void)state;
    for (int device = 0; device < 2; device++) {
        struct kv_world w;
        struct kv_seq s, other;
        struct err e;
        struct kv_options o = kv_world_options(&kv_world_evict, 90);
        kv_world_open_q8(&w, 2, device);
        kv_world_start(&w, &s, &o, 300, 400);
        kv_world_press(&w, &s);
        uint64_t bits = kv_world_bits(&w, &s);
        size_t held = kv_seq_bytes(&s, w.p);
        int64_t used = stats(w.p).used;
        assert_int_equal(kv_seq_swap_out(&s, w.p, &e), 0);
        assert_int_equal(stats(w.p).used, 0);
        kv_world_start(&w, &other, &o, 200, 250); /* writes over what s had */
        kv_world_press(&w, &other);
        assert_int_equal(kv_seq_swap_in(&s, w.p, &e), 0);
        assert_true(kv_world_bits(&w, &s) == bits);
        assert_int_equal(kv_seq_bytes(&s, w.p), held);
        kv_seq_close(&other, w.p);
        assert_int_equal(stats(w.p).used, used);
        kv_seq_close(&s, w.p);
        kv_world_close(&w);
    }
}

/* The fork is pressed, and again; the whole sequence beside it stays what it was. */
static void test_fork(void **state)
{
    (void)state;
    struct kv_world w;
    struct kv_seq whole, s;
    struct err e;
    struct kv_options wide = kv_world_options(&kv_world_evict, 200);
    struct kv_options o = kv_world_options(&kv_world_evict, 70);
    o.tail = 32;
    kv_world_open_q8(&w, 1, false);
    kv_world_start(&w, &whole, &wide, 250, 400);
    uint64_t bits = kv_world_bits(&w, &whole);
    assert_int_equal(kv_seq_fork(&s, &whole, w.p, &o, 400, &e), 0);
    kv_world_press(&w, &s);
    for (int n = s.n_tokens; !kv_compact_due(&s);)
        kv_world_grow(&w, &s, ++n);
    kv_world_press(&w, &s);
    assert_true(kv_world_bits(&w, &whole) == bits);
    kv_seq_close(&s, w.p);
    kv_seq_close(&whole, w.p);
    kv_world_close(&w);
}

/* All ways of merging, on one thread, on three, and on a device whose memory the CPU cannot follow: the same bits, twice. */
static void test_same_bits(void **state)
{
    (void)state;
    static const enum kv_merge merge[] = { KV_MERGE_NONE, KV_MERGE_FIT, KV_MERGE_MEAN };
    for (size_t m = 0; m < 3; m++) {
        uint64_t bits[3][2];
        for (int i = 0; i < 3; i++) {
            struct kv_world w;
            struct kv_seq s;
            struct kv_options o = kv_world_options(&kv_world_evict, 100);
            o.merge = merge[m];
            kv_world_open_q8(&w, i == 1 ? 3 : 1, i == 2);
            kv_world_start(&w, &s, &o, 230, 400);
            kv_world_press(&w, &s);
            bits[i][0] = kv_world_bits(&w, &s);
            for (int n = s.n_tokens; !kv_compact_due(&s);)
                kv_world_grow(&w, &s, ++n);
            kv_world_press(&w, &s);
            bits[i][1] = kv_world_bits(&w, &s);
            kv_seq_close(&s, w.p);
            kv_world_close(&w);
        }
        assert_memory_equal(bits[0], bits[1], sizeof bits[0]);
        assert_memory_equal(bits[0], bits[2], sizeof bits[0]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_slots), cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_pool),       cmocka_unit_test(test_again),
        cmocka_unit_test(test_swap),       cmocka_unit_test(test_fork),
        cmocka_unit_test(test_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
