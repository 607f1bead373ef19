/* The scheduler's plan, over every small case, and the stop strings, against a search without cleverness. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/engine/sched.h"
#include "server/engine/stop.h"

/* ---- plans --------------------------------------------------------------------------------------------------- */

static int out_rows(const struct sched_seq *s, int rows)
{
    return s->all_out ? rows : rows == s->todo;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Of `most` rows the oldest prompt has half, and whoever has more than that had no more to do than who is left wanting. */
static void check_order(const struct sched_seq *seq, int n, int most, int most_scored,
                        const int *rows)
{
    int half[4] = { 0 }, can[4], i = 0;
    for (int k = 0; k < n; k++)
        can[k] = least(seq[k].todo, seq[k].room);
    while (i < n && sched_decodes(&seq[i]))
        i++;
    if (i < n) {
        half[i] = least(can[i], (most + 1) / 2);
        if (seq[i].all_out)
            half[i] = least(half[i], (most_scored + 1) / 2);
        assert_true(rows[i] >= half[i]);
    }
    for (int j = 0; j < n; j++)
        for (int k = 0; k < n && rows[j] < can[j] && !seq[j].all_out; k++)
            if (!sched_decodes(&seq[k]) && rows[k] > half[k])
                assert_true(seq[k].todo - half[k] <= seq[j].todo - half[j]);
}

static void check_plan(const struct sched_seq *seq, int n, const struct sched_limits *l)
{
    int rows[4], total = 0, out = 0, prompt = 0, decoding = 0, wanting = 0, possible = 0;
    int aside = 0;
    for (int i = 0; i < n; i++) {
        decoding += sched_decodes(&seq[i]);
        aside += !seq[i].all_out && seq[i].room >= seq[i].todo;
        possible += !sched_decodes(&seq[i]) && seq[i].room > 0;
    }
    sched_plan(seq, n, l, rows);
    for (int i = 0; i < n; i++) {
        assert_true(rows[i] >= 0 && rows[i] <= seq[i].todo);
        total += rows[i];
        out += out_rows(&seq[i], rows[i]);
        if (sched_decodes(&seq[i])) {
            assert_int_equal(rows[i], 1);
            continue;
        }
        assert_true(rows[i] <= seq[i].room);
        prompt += rows[i];
        wanting += rows[i] < seq[i].todo && rows[i] < seq[i].room;
    }
    int most = decoding > 0 ? least(l->max_rows - decoding, l->prompt_rows) : l->max_rows;
    check_order(seq, n, most, l->max_out - aside, rows);
    assert_true(total <= l->max_rows);
    assert_true(out <= l->max_out);
    if (decoding > 0)
        assert_true(prompt <= l->prompt_rows);
    else if (possible > 0)
        assert_true(prompt > 0); /* something always goes on */
    /* nothing is left idle: with room for logits the batch is filled */
    if (wanting > 0 && out < l->max_out)
        assert_true(total == l->max_rows || (decoding > 0 && prompt == l->prompt_rows));
}

static void test_plans(void **state)
{
    (void)state;
    static const struct sched_seq kind[] = {
        { 1, 5, false }, { 1, 1, false }, { 2, 2, false }, { 5, 3, false },
        { 7, 7, false }, { 1, 1, true },  { 4, 4, true },  { 9, 0, false },
    };
    enum { KINDS = sizeof kind / sizeof kind[0] };
    struct sched_seq seq[4];
    int cases = 0;
    for (int code = 0; code < KINDS * KINDS * KINDS * KINDS; code++) {
        for (int i = 0, c = code; i < 4; i++, c /= KINDS)
            seq[i] = kind[c % KINDS];
        for (int n = 1; n <= 4; n++)
            for (int rows = n; rows <= 12; rows += 4)
                for (int out = n; out <= 6; out += 2, cases++)
                    check_plan(seq, n,
                               &(struct sched_limits){
                                   .max_rows = rows, .max_out = out, .prompt_rows = 3 });
    }
    assert_true(cases > 50000);
}

/* One that scores takes the rows of logits that are left when every other sequence has one. */
static void test_scores_beside(void **state)
{
    (void)state;
    struct sched_seq seq[58] = { { .todo = 600, .room = 600, .all_out = true } };
    int rows[58];
    for (int i = 1; i < 57; i++)
        seq[i] = (struct sched_seq){ .todo = 1, .room = 1 };
    seq[57] = (struct sched_seq){ .todo = 20, .room = 32 };
    sched_plan(seq, 58,
               &(struct sched_limits){ .max_rows = 512, .max_out = 128, .prompt_rows = 128 }, rows);
    assert_int_equal(rows[0], 128 - 57);
    for (int i = 1; i < 57; i++)
        assert_int_equal(rows[i], 1);
    assert_int_equal(rows[57], 20);
}

/* A short prompt does not wait for a long one, which still gets half; equal ones come one after the other. */
static void test_short_and_long(void **state)
{
    (void)state;
    static const struct {
        int todo[3], rows[3];
    } c[] = {
        { { 100000, 40, 300 }, { 256, 40, 216 } }, { { 100000, 300, 40 }, { 256, 216, 40 } },
        { { 40, 100000, 300 }, { 40, 172, 300 } }, { { 1000, 1000, 1000 }, { 512, 0, 0 } },
        { { 488, 1000, 1000 }, { 488, 24, 0 } },   { { 100, 1000, 90 }, { 100, 322, 90 } },
    };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct sched_seq seq[3];
        int rows[3];
        for (int k = 0; k < 3; k++)
            seq[k] = (struct sched_seq){ .todo = c[i].todo[k], .room = c[i].todo[k] };
        sched_plan(seq, 3, &(struct sched_limits){ .max_rows = 512, .max_out = 72 }, rows);
        assert_memory_equal(rows, c[i].rows, sizeof rows);
    }
}

/* ---- stop strings -------------------------------------------------------------------------------------------- */

/* Where the text ends: the string that is complete first, the longest of those; SIZE_MAX: nowhere. */
static size_t find_stop(const char *text, size_t n, const char *const *str, int n_str)
{
    for (size_t end = 1; end <= n; end++) {
        size_t best = 0;
        for (int i = 0; i < n_str; i++) {
            size_t len = strlen(str[i]);
            if (len > best && len <= end && memcmp(text + end - len, str[i], len) == 0)
                best = len;
        }
        if (best > 0)
            return end - best;
    }
    return SIZE_MAX;
}

static uint64_t rng_state = 3;

static uint32_t rnd(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33) % n;
}

/* Pushes the text in random pieces; out gets what was let go. Returns whether a stop string was hit. */
static bool push_all(struct stop *s, const char *text, size_t n, char *out, size_t *n_out)
{
    char held[128];
    size_t have = 0;
    *n_out = 0;
    for (size_t i = 0; i < n && !s->hit;) {
        size_t len = 1 + rnd(6);
        if (len > n - i)
            len = n - i;
        memcpy(held + have, text + i, len);
        have += len;
        i += len;
        size_t go = stop_push(s, held, have);
        assert_true(go <= have);
        memcpy(out + *n_out, held, go);
        *n_out += go;
        have -= go;
        memmove(held, held + go, have);
    }
    if (!s->hit) { /* what is held back at the end is part of the answer */
        memcpy(out + *n_out, held, have);
        *n_out += have;
    }
    return s->hit;
}

static void test_stop_random(void **state)
{
    (void)state;
    int hits = 0;
    for (int round = 0; round < 20000; round++) {
        char text[65], words[4][8], out[65];
        const char *str[4];
        int n_str = 1 + (int)rnd(4);
        size_t n = rnd(64), n_out;
        for (size_t i = 0; i < n; i++)
            text[i] = (char)('a' + rnd(2 + round % 2));
        for (int k = 0; k < n_str; k++) {
            size_t len = 1 + rnd(7);
            for (size_t i = 0; i < len; i++)
                words[k][i] = (char)('a' + rnd(2 + round % 2));
            words[k][len] = 0;
            str[k] = words[k];
        }
        struct stop s;
        assert_int_equal(stop_open(&s, str, n_str), 0);
        size_t want = find_stop(text, n, str, n_str);
        bool hit = push_all(&s, text, n, out, &n_out);
        stop_close(&s);
        assert_int_equal(hit, want != SIZE_MAX);
        assert_int_equal(n_out, hit ? want : n);
        assert_memory_equal(out, text, n_out);
        hits += hit;
    }
    assert_true(hits > 5000 && hits < 19900);
}

static void test_stop_hold(void **state)
{
    (void)state;
    const char *str[] = { "", "###", "\n\nUser:" };
    struct stop s;
    assert_int_equal(stop_open(&s, str, 3), 0);
    assert_int_equal(stop_push(&s, "hello", 5), 5);
    assert_int_equal(stop_push(&s, " #", 2), 1);
    assert_int_equal(stop_push(&s, "#x", 2), 2); /* "#" was held; it is "#x" now */
    assert_int_equal(stop_push(&s, "\n\nUs", 4), 0);
    assert_int_equal(stop_push(&s, "\n\nUser", 6), 0);
    assert_int_equal(stop_push(&s, "\n\nUser: hi", 10), 0);
    assert_true(s.hit);
    stop_close(&s);
    assert_int_equal(stop_open(&s, str, 1), 0);
    assert_int_equal(stop_push(&s, "free", 4), 4);
    stop_close(&s);
    struct mem_stats before, after;
    mem_stats(&before);
    for (uint64_t n = 1; n <= 2; n++) {
        mem_fail_at(n);
        assert_int_equal(stop_open(&s, str, 3), ERR_NOMEM);
        mem_fail_at(0);
    }
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plans),          cmocka_unit_test(test_scores_beside),
        cmocka_unit_test(test_short_and_long), cmocka_unit_test(test_stop_random),
        cmocka_unit_test(test_stop_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
