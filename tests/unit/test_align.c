/* Calibration sequences that are like a target text: the measure against zlib's own one-call function, the choice on a text of two
 * kinds, and what is left for judging. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <zlib.h>

#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/quantize/align.h"
#include "server/quantize/quantize.h"
#include "tests/tools/eval_fixture.h"
#include "tests/tools/scratch.h"

enum { LEN = 64, BLOCKS = 8, BLOCK_BYTES = 3000 };

/* ---- texts ------------------------------------------------------------------------------------------------------- */

/* Sentences of a kind, in an order that the seed gives. */
static void add_block(struct buf *b, int kind, uint32_t seed)
{
    static const char *const part[2][4] = { { "Once upon a time there was a little cat. ",
                                              "The sun was warm and the dog ran to the park. ",
                                              "\"Can we play?\" asked Lily. ",
                                              "They were very happy. " },
                                            { "x = 12 * y + 7; ", "return z[19] - 4; ",
                                              "for (i = 0; i < 96; i++) ", "if (q == 5) p--; " } };
    size_t end = b->len + BLOCK_BYTES;
    for (uint32_t x = seed + 1; b->len < end;) {
        x = x * 1664525u + 1013904223u;
        buf_adds(b, part[kind][x >> 30]);
    }
}

static void write_texts(void)
{
    struct buf mixed;
    struct buf target;
    struct err e;
    buf_init(&mixed, 1 << 20);
    buf_init(&target, 1 << 20);
    for (uint32_t i = 0; i < BLOCKS; i++)
        add_block(&mixed, i % 2, i);
    add_block(&target, 1, 99);
    assert_int_equal(file_write_atomic(in_root("mixed.txt"), mixed.data, mixed.len, &e), 0);
    assert_int_equal(file_write_atomic(in_root("target.txt"), target.data, target.len, &e), 0);
    assert_int_equal(file_write_atomic(in_root("empty.txt"), "", 0, &e), 0);
    buf_free(&mixed);
    buf_free(&target);
}

static struct session model;

static int open_group(void **state)
{
    if (eval_open(state) < 0)
        return -1;
    eval_model(&model);
    write_texts();
    return 0;
}

static int close_group(void **state)
{
    session_close(&model);
    return scratch_close(state);
}

/* ---- the measure ------------------------------------------------------------------------------------------------- */

static double length_of(const char *x, size_t n)
{
    static unsigned char out[1 << 16];
    uLongf len = sizeof out;
    assert_int_equal(compress2(out, &len, (const unsigned char *)x, n, Z_DEFAULT_COMPRESSION),
                     Z_OK);
    return (double)len;
}

static void measures_as_written_out(void **state)
{
    struct buf a[3];
    struct err e;
    double is[3];
    (void)state;
    for (int i = 0; i < 3; i++) {
        buf_init(&a[i], 1 << 20);
        add_block(&a[i], i == 2, (uint32_t)i);
    }
    for (int i = 0; i < 3; i++) {
        static char both[4 * BLOCK_BYTES];
        memcpy(both, a[0].data, a[0].len);
        memcpy(both + a[0].len, a[i].data, a[i].len);
        double x = length_of(a[0].data, a[0].len), y = length_of(a[i].data, a[i].len);
        double xy = length_of(both, a[0].len + a[i].len);
        double want = 1 - (xy - fmin(x, y)) / fmax(x, y);
        assert_int_equal(align_strings(a[0].data, a[0].len, a[i].data, a[i].len, &is[i], &e), 0);
        assert_true(fabs(is[i] - want) < 1e-12);
    }
    assert_true(is[0] > .8 && is[0] > is[1] && is[1] > is[2] + .1);
    mem_fail_at(1);
    assert_int_equal(align_strings("a", 1, "b", 1, &is[0], &e), ERR_NOMEM);
    mem_fail_at(0);
    for (int i = 0; i < 3; i++)
        buf_free(&a[i]);
}

/* ---- the choice -------------------------------------------------------------------------------------------------- */

static bool is_code(const int32_t *token)
{
    struct buf b;
    buf_init(&b, 1 << 16);
    assert_int_equal(tok_decode(model.model->tok, token, LEN, false, &b), 0);
    int marks = 0;
    for (size_t i = 0; i < b.len; i++)
        marks += strchr("=;[]<>", b.data[i]) != NULL;
    buf_free(&b);
    return marks > 3;
}

static void open_aligned(struct sequences *s, const char *target, int n, int threads)
{
    struct par *par;
    struct err e;
    assert_int_equal(par_open(&par, threads, &e), 0);
    if (sequences_aligned(s, model.model->tok, in_root("mixed.txt"), target, n * LEN, LEN, par,
                          &e) < 0)
        fail_msg("%s", e.text);
    par_close(par);
}

static void takes_what_is_like_it(void **state)
{
    struct sequences s;
    struct sequences t;
    int stories = 0;
    (void)state;
    open_aligned(&s, in_root("target.txt"), 20, 1);
    open_aligned(&t, in_root("target.txt"), 20, 2);
    assert_int_equal(s.n, 20);
    assert_memory_equal(s.chunk, t.chunk, 20 * sizeof *s.chunk);
    assert_memory_equal(s.token, t.token, 20 * LEN * sizeof *s.token);
    for (int i = 0; i < s.n; i++) {
        assert_true(is_code(sequences_at(&s, i)));
        assert_true(i == 0 || s.chunk[i] > s.chunk[i - 1]);
    }
    sequences_close(&s);
    sequences_close(&t);
    open_aligned(&s, "", 20, 1); /* evenly spread: both kinds */
    for (int i = 0; i < s.n; i++)
        stories += !is_code(sequences_at(&s, i));
    assert_in_range(stories, 5, 15);
    sequences_close(&s);
}

/* What was not taken is left, and nothing else. */
static void leaves_the_rest(void **state)
{
    struct sequences s;
    struct sequences rest;
    struct err e;
    const struct tokenizer *tok = model.model->tok;
    (void)state;
    for (int k = 0; k < 2; k++) {
        bool seen[4096] = { false };
        open_aligned(&s, k == 0 ? "" : in_root("target.txt"), 20, 1);
        assert_int_equal(sequences_rest(&rest, &s, tok, in_root("mixed.txt"), 1 << 20, &e), 0);
        int all = s.n + rest.n;
        assert_true(all > 100);
        for (int i = 0; i < all; i++) {
            int c = i < s.n ? s.chunk[i] : rest.chunk[i - s.n];
            assert_false(seen[c]);
            seen[c] = true;
        }
        for (int c = 0; c < all; c++)
            assert_true(seen[c]);
        sequences_close(&rest);
        assert_int_equal(sequences_rest(&rest, &s, tok, in_root("mixed.txt"), 7, &e), 0);
        assert_int_equal(rest.n, 7);
        assert_true(rest.chunk[0] < all / 4 && rest.chunk[6] > all / 2);
        sequences_close(&rest);
        sequences_close(&s);
        open_aligned(&s, k == 0 ? "" : in_root("target.txt"), all, 1);
        assert_int_equal(sequences_rest(&rest, &s, tok, in_root("mixed.txt"), 7, &e), ERR_INVALID);
        assert_non_null(strstr(e.text, "all are taken"));
        sequences_close(&s);
    }
}

static void says_what_is_wrong(void **state)
{
    struct sequences s;
    struct err e;
    struct mem_stats before;
    struct mem_stats after;
    struct par *par = model.be->par;
    const struct tokenizer *tok = model.model->tok;
    (void)state;
    const char *mixed = in_root("mixed.txt"), *target = in_root("target.txt");
    assert_int_equal(sequences_aligned(&s, tok, mixed, in_root("empty.txt"), 640, LEN, par, &e),
                     ERR_INVALID);
    assert_non_null(strstr(e.text, "align: the text is empty"));
    assert_int_equal(sequences_aligned(&s, tok, mixed, in_root("none.txt"), 640, LEN, par, &e),
                     ERR_NOTFOUND);
    mem_stats(&before);
    int failed = 0;
    for (uint64_t i = 1; i < 60; i++) {
        mem_fail_at(i);
        failed += sequences_aligned(&s, tok, mixed, target, 640, LEN, par, &e) < 0;
        mem_fail_at(0);
        sequences_close(&s);
        mem_stats(&after);
        assert_int_equal(after.blocks, before.blocks);
    }
    assert_true(failed > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measures_as_written_out),
        cmocka_unit_test(takes_what_is_like_it),
        cmocka_unit_test(leaves_the_rest),
        cmocka_unit_test(says_what_is_wrong),
    };
    log_setup(&(struct log_config){ .level = LOG_E });
    return cmocka_run_group_tests(tests, open_group, close_group);
}
