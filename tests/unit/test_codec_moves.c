/* Moves of codes that stand alone: what one is said to gain is what it gains, no other one of its place is better, and it can be
 * taken back. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "quant/codec.h"
#include "server/base/mem.h"

enum { ROWS = 40, COLS = 128 };

static uint32_t next_random(uint32_t *state)
{
    return *state = *state * 1664525u + 1013904223u;
}

/* -1 to 1 */
static float random_number(uint32_t *state)
{
    return (float)(next_random(state) >> 8) * 0x1p-23f - 1;
}

struct bench {
    struct be *be;
    struct weight w;
    const struct codec_moves *moves;
    float grad[COLS], curve[COLS], room[3 * COLS];
    float before[COLS], after[COLS];
    struct codec_move offer[COLS];
    int n;
};

/* Parts of random bits, but for numbers in f16, which are small. */
static void fill(struct weight *w, uint32_t *state)
{
    struct codec_part part[CODEC_PARTS];
    int n = weight_parts(w, part);
    for (int i = 0; i < n; i++) {
        size_t bytes = codec_part_bytes(&part[i]);
        uint16_t *p = mem_zalloc(bytes / 2 + 1, sizeof *p);
        assert_non_null(p);
        bool codes = strcmp(part[i].name, "codes") == 0;
        for (size_t k = 0; k <= bytes / 2; k++)
            p[k] = codes ? (uint16_t)(next_random(state) >> 16) : f32_to_f16(random_number(state));
        weight_put(w, i, 0, bytes, p);
        mem_free(p);
    }
}

static void open_bench(struct bench *b, const char *form)
{
    struct err e;
    uint32_t state = 5;
    *b = (struct bench){ 0 };
    assert_int_equal(be_open(&b->be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    if (weight_open_form(&b->w, b->be, form, false, ROWS, COLS, &e) < 0)
        fail_msg("%s", e.text);
    fill(&b->w, &state);
    b->moves = b->w.codec->moves;
    assert_non_null(b->moves);
    b->n = b->moves->count(&b->w);
    assert_true(b->n >= 1 && b->n <= COLS);
    for (int k = 0; k < COLS; k++) {
        b->grad[k] = random_number(&state);
        b->curve[k] = 1 + random_number(&state);
    }
}

static void close_bench(struct bench *b)
{
    weight_close(&b->w, b->be);
    be_close(b->be);
}

/* What the row's numbers, after a change, are worth. */
static double worth(struct bench *b, int row)
{
    double gain = 0;
    weight_row(&b->w, row, b->after);
    for (int k = 0; k < COLS; k++) {
        double d = (double)b->after[k] - (double)b->before[k];
        gain -= d * ((double)b->grad[k] + .5 * d * (double)b->curve[k]);
    }
    return gain;
}

/* Code `at` of the row becomes each of `n` codes around, or in all: the most that one of them gains. */
static double best_by_trial(struct bench *b, int row, int at, int from, int n)
{
    double best = -1e9;
    int was = -1;
    for (int code = from; code < from + n; code++) {
        int is = b->moves->make(&b->w, row, at, code);
        was = was < 0 ? is : was;
        best = code != was ? fmax(best, worth(b, row)) : best;
    }
    (void)b->moves->make(&b->w, row, at, was);
    return best;
}

static void check_offer(struct bench *b, int row, const struct codec_move *m, int books, int codes)
{
    int was = b->moves->make(&b->w, row, m->at, m->code);
    double gain = worth(b, row);
    double rounding = 2e-3 * (1 + fabs((double)m->gain)); /* numbers are f16 */
    assert_true(was != m->code);
    assert_true(fabs(gain - (double)m->gain) < rounding);
    assert_int_equal(b->moves->make(&b->w, row, m->at, was), m->code);
    int first = m->at / books * books;
    for (int at = first; at < first + books; at++) {
        int low = codes < 0 ? (was > 0 ? was - 1 : 0) : 0;
        int n = codes < 0 ? (was + 1 < -codes ? was + 2 : -codes) - low : codes;
        assert_true(best_by_trial(b, row, at, low, n) < gain + rounding);
    }
}

struct kind {
    const char *form;
    int books; /* codes of a place */
    int codes; /* that each of them can be; -n: n, of which the neighbours are offered */
};

static void says_what_it_gains(void **state)
{
    static const struct kind kind[] = { { "planes1", 1, -2 },       { "planes2g32", 1, -4 },
                                        { "planes3g128", 1, -8 },   { "planes7", 1, -128 },
                                        { "planes8", 1, -256 },     { "aqlm2x8g8", 2, 256 },
                                        { "aqlm1x10g16", 1, 1024 }, { "aqlm3x4g32", 3, 16 } };
    (void)state;
    for (size_t i = 0; i < sizeof kind / sizeof *kind; i++) {
        struct bench b;
        int gains = 0;
        open_bench(&b, kind[i].form);
        for (int row = 0; row < ROWS; row += 13) {
            weight_row(&b.w, row, b.before);
            b.moves->find(&b.w, row, b.grad, b.curve, b.room, b.offer);
            for (int k = 0; k < b.n; k++)
                if (b.offer[k].gain > 0) {
                    gains++;
                    check_offer(&b, row, &b.offer[k], kind[i].books, kind[i].codes);
                }
        }
        print_message("%s: %d of %d moves gain\n", kind[i].form, gains, 4 * b.n);
        assert_true(gains > b.n / 2);
        close_bench(&b);
    }
}

/* Moves made and taken back leave every byte as it was, and other rows are never touched. */
static void is_taken_back(void **state)
{
    static const char *const form[] = { "planes3", "aqlm2x8g8", "aqlm1x12g8" };
    (void)state;
    for (size_t i = 0; i < sizeof form / sizeof *form; i++) {
        struct bench b;
        float other[2][COLS];
        int was[COLS];
        open_bench(&b, form[i]);
        size_t bytes = b.w.bytes[0];
        uint8_t *copy = mem_alloc(bytes);
        assert_non_null(copy);
        b.moves->find(&b.w, 3, b.grad, b.curve, b.room, b.offer);
        /* bits that no code has may go: those of files above the codes' own */
        for (int k = 0; k < b.n; k++)
            (void)b.moves->make(&b.w, 3, b.offer[k].at,
                                b.moves->make(&b.w, 3, b.offer[k].at, b.offer[k].code));
        memcpy(copy, b.w.plane[0], bytes);
        weight_row(&b.w, 4, other[0]);
        for (int k = 0; k < b.n; k++)
            was[k] = b.moves->make(&b.w, 3, b.offer[k].at, b.offer[k].code);
        weight_row(&b.w, 4, other[1]);
        assert_memory_equal(other[0], other[1], sizeof other[0]);
        assert_memory_not_equal(copy, b.w.plane[0], bytes);
        for (int k = b.n - 1; k >= 0; k--)
            (void)b.moves->make(&b.w, 3, b.offer[k].at, was[k]);
        assert_memory_equal(copy, b.w.plane[0], bytes);
        mem_free(copy);
        close_bench(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_it_gains),
        cmocka_unit_test(is_taken_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
