/* The choice of forms against trying all of them, and by other ways. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/evolve.h"
#include "server/base/mem.h"
#include "tests/tools/levels.h"

enum { ITEMS = 7, CHOICES = 4, MANY = 200 };

static size_t bytes[MANY][CHOICES];
static double error[MANY][CHOICES];
static struct allocate_item item[MANY];
static int choice[MANY];

static void set_items(int n, int coarse)
{
    for (int i = 0; i < n; i++) {
        item[i] = (struct allocate_item){ bytes[i], error[i], 1 + (int)(rnd_bits() % CHOICES) };
        for (int c = 0; c < CHOICES; c++) {
            bytes[i][c] = coarse ? 10 * (1 + rnd_bits() % 4) : 1 + rnd_bits() % 1000;
            error[i][c] = coarse ? (double)(rnd_bits() % 4) : (double)(rnd_bits() % 1000) / 64 - 3;
        }
    }
}

static void sums_of(const int *c, int n, size_t *all_bytes, double *all_errors)
{
    *all_bytes = 0;
    *all_errors = 0;
    for (int i = 0; i < n; i++) {
        assert_in_range(c[i], 0, item[i].n - 1);
        *all_bytes += item[i].bytes[c[i]];
        *all_errors += item[i].error[c[i]];
    }
}

/* All choices, counted like the digits of a number. False when none fits; then bytes is the least they need. */
static bool best_of_all(int n, size_t budget, size_t *best_bytes, double *best)
{
    int c[ITEMS] = { 0 }, i;
    size_t least = SIZE_MAX;
    *best_bytes = 0;
    *best = INFINITY;
    do {
        size_t b;
        double e;
        sums_of(c, n, &b, &e);
        least = b < least ? b : least;
        if (b <= budget && (e < *best || (e == *best && b < *best_bytes))) {
            *best = e;
            *best_bytes = b;
        }
        for (i = 0; i < n && ++c[i] == item[i].n; i++)
            c[i] = 0;
    } while (i < n);
    if (isinf(*best))
        *best_bytes = least;
    return !isinf(*best);
}

static void finds_the_best(void **state)
{
    int infeasible = 0;
    (void)state;
    rnd_seed(11);
    for (int round = 0; round < 600; round++) {
        int n = 1 + (int)(rnd_bits() % ITEMS), coarse = round % 2;
        size_t budget = rnd_bits() % (coarse ? 41 * ITEMS / 2 : 1000 * ITEMS / 2), want_bytes, got;
        double want, got_error;
        struct err e = { 0 };
        set_items(n, coarse);
        bool fits = best_of_all(n, budget, &want_bytes, &want);
        int rc = allocate_dp(item, n, budget, choice, &e);
        assert_int_equal(rc, fits ? 0 : ERR_LIMIT);
        if (!fits) {
            char least[32];
            (void)snprintf(least, sizeof least, "need %zu", want_bytes);
            assert_non_null(strstr(e.text, least));
            infeasible++;
            continue;
        }
        sums_of(choice, n, &got, &got_error);
        assert_true(got_error == want); /* multiples of 1/64: sums are exact */
        assert_true(got == want_bytes && got <= budget);
    }
    assert_in_range(infeasible, 20, 500);
}

/* So many different sizes that the front must be thinned: still fits, and close to the bound of the relaxed problem, in
 * which a matrix may be of two forms by halves. */
static void many_sizes_fit_and_are_close(void **state)
{
    size_t budget = 0, got;
    double bound = -INFINITY, got_error;
    struct err e;
    (void)state;
    rnd_seed(5);
    for (int i = 0; i < MANY; i++) {
        size_t weights = 1000000 + rnd_bits() % 1000000;
        double slope = 1 + (double)rnd_bits() / 1000000;
        item[i] = (struct allocate_item){ bytes[i], error[i], CHOICES };
        for (int c = 0; c < CHOICES; c++) {
            bytes[i][c] = weights * (size_t)(c + 1) / 8 + rnd_bits() % 1000;
            error[i][c] = slope * pow(0.25, c);
        }
        budget += weights * 5 / 16;
    }
    assert_int_equal(allocate_dp(item, MANY, budget, choice, &e), 0);
    sums_of(choice, MANY, &got, &got_error);
    assert_true(got <= budget);
    bound =
        -INFINITY; /* for any price of a byte: the best of each matrix, less what the budget is worth */
    for (double price = 1e-9; price < 1; price *= 1.05) {
        double sum = -price * (double)budget;
        for (int i = 0; i < MANY; i++) {
            double least = INFINITY;
            for (int c = 0; c < CHOICES; c++)
                least = fmin(least, error[i][c] + price * (double)bytes[i][c]);
            sum += least;
        }
        bound = fmax(bound, sum);
    }
    assert_true(got_error >= bound);
    assert_true(got_error < 1.001 * bound);
}

/* ---- steps and levels -------------------------------------------------------------------------------------------- */

static void steps_by_size(void **state)
{
    static const size_t sizes[] = { 30, 10, 20, 30, 10 };
    static const struct allocate_item one = { sizes, NULL, 5 };
    (void)state;
    assert_int_equal(allocate_next(&one, 1, true), 2);
    assert_int_equal(allocate_next(&one, 4, true), 2);
    assert_int_equal(allocate_next(&one, 2, true), 0);
    assert_int_equal(allocate_next(&one, 2, false), 1);
    assert_int_equal(allocate_next(&one, 3, false), 2);
    assert_int_equal(allocate_next(&one, 3, true), -1);
    assert_int_equal(allocate_next(&one, 1, false), -1);
}

/* What fits at a level, written out: every item has the form nearest to what it wants there. */
static size_t bytes_at(const double *weights, const double *want, int n, double at, int *c)
{
    size_t sum = 0;
    for (int i = 0; i < n; i++) {
        double best = INFINITY;
        for (int k = 0; k < item[i].n; k++) {
            double off = fabs(8 * (double)bytes[i][k] / weights[i] - want[i] - at);
            if (off < best) {
                best = off;
                c[i] = k;
            }
        }
        sum += bytes[i][c[i]];
    }
    return sum;
}

/* The highest level that fits, by bisection. */
static void rises_to_the_level(void **state)
{
    enum { N = 40 };
    double weights[N], want[N];
    int level_choice[N];
    struct err e;
    (void)state;
    rnd_seed(23);
    for (int round = 0; round < 50; round++) {
        size_t budget = 0, got;
        double errors, low = -40, high = 40;
        for (int i = 0; i < N; i++) {
            weights[i] = (double)(1000 + rnd_bits() % 1000);
            want[i] = (double)(rnd_bits() % 4096) / 1024;
            item[i] = (struct allocate_item){ bytes[i], error[i], CHOICES };
            for (int c = 0; c < CHOICES; c++) {
                bytes[i][c] = (size_t)(weights[i] * (c + 1) / 8) + rnd_bits() % 8;
                error[i][c] = 0;
            }
            budget += bytes[i][0] + rnd_bits() % (bytes[i][2] - bytes[i][0]);
        }
        assert_int_equal(allocate_level(item, weights, want, N, budget, choice, &e), 0);
        sums_of(choice, N, &got, &errors);
        assert_true(got <= budget && got + 300 > budget);
        for (int k = 0; k < 60; k++) {
            double middle = (low + high) / 2;
            *(bytes_at(weights, want, N, middle, level_choice) <= budget ? &low : &high) = middle;
        }
        (void)bytes_at(weights, want, N, low, level_choice);
        assert_memory_equal(choice, level_choice, sizeof level_choice);
    }
    want[3] = NAN;
    assert_int_equal(allocate_level(item, weights, want, N, 1 << 30, choice, &e), ERR_INVALID);
    want[3] = 0;
    assert_int_equal(allocate_level(item, weights, want, N, 1, choice, &e), ERR_LIMIT);
}

/* ---- generations ------------------------------------------------------------------------------------------------- */

struct field {
    size_t budget;
    int calls[EVOLVE_ROUNDS];
    int fail_at; /* call of the last round */
};

/* Errors and what no sum of them knows: neighbours that are both narrow lose more. All within the budget. */
static int judge_field(void *arg, const int *c, int generation, int round, double *loss,
                       struct err *e)
{
    struct field *f = arg;
    size_t b;
    (void)generation;
    sums_of(c, 12, &b, loss);
    assert_true(b <= f->budget);
    for (int i = 1; i < 12; i++)
        *loss += c[i] + c[i - 1] == 0 ? 100 : 0;
    if (++f->calls[round] == f->fail_at && round == EVOLVE_ROUNDS - 1)
        return err_set(e, ERR_CANCELLED, "stopped");
    return 0;
}

static void set_field(struct field *f, struct evolve *v)
{
    *f = (struct field){ .budget = 0 };
    rnd_seed(77);
    for (int i = 0; i < 12; i++) {
        item[i] = (struct allocate_item){ bytes[i], error[i], CHOICES };
        size_t unit = 50 + rnd_bits() % 50;
        double slope = (double)(1 + rnd_bits() % 1000);
        for (int c = 0; c < CHOICES; c++) {
            bytes[i][c] = unit * (size_t)(c + 1);
            error[i][c] = slope * pow(.25, c);
        }
        f->budget += unit * 2;
    }
    *v = (struct evolve){
        .item = item, .n = 12, .budget = f->budget, .seed = 5, .judge = judge_field, .arg = f
    };
}

/* It gets better and never worse, close to the best of all, the same way every time, in any number of pieces. */
static void evolves(void **state)
{
    struct field f;
    struct evolve v;
    struct err e;
    double loss, first, last;
    int again[12] = { 0 };
    (void)state;
    set_field(&f, &v);
    memset(choice, 0, sizeof choice);
    assert_int_equal(judge_field(&f, choice, 0, 0, &first, &e), 0);
    loss = first;
    for (int g = 0; g < 60; g++) {
        last = loss;
        assert_int_equal(evolve_generation(&v, g, choice, &loss, &e), 0);
        assert_true(loss <= last);
    }
    assert_int_equal(f.calls[0], 60 * EVOLVE_OFFSPRING + 1);
    assert_int_equal(f.calls[1], 60 * 4);
    assert_int_equal(f.calls[2], 60);
    assert_int_equal(judge_field(&f, choice, 0, 0, &last, &e), 0);
    assert_true(last == loss);
    /* no choice that avoids narrow neighbours can be better than the best sum of errors */
    int best[12];
    double bound;
    size_t b;
    assert_int_equal(allocate_dp(item, 12, f.budget, best, &e), 0);
    sums_of(best, 12, &b, &bound);
    assert_true(loss >= bound);
    assert_true(loss < bound + .1 * (first - bound));
    last = first;
    for (int g = 0; g < 60; g++)
        assert_int_equal(evolve_generation(&v, g, again, &last, &e), 0);
    assert_memory_equal(choice, again, sizeof again);
    v.seed++;
    memset(again, 0, sizeof again);
    last = first;
    assert_int_equal(evolve_generation(&v, 0, again, &last, &e), 0);
    assert_memory_not_equal(choice, again, sizeof again);
}

/* Where nothing can move the parent stays; what the judge says of failures goes on; memory may be out. */
static void evolves_no_further(void **state)
{
    struct field f;
    struct evolve v;
    struct err e;
    double loss = 1e9;
    (void)state;
    set_field(&f, &v);
    v.budget = f.budget = 1 << 20;
    for (int i = 0; i < 12; i++)
        choice[i] = CHOICES - 1;
    assert_int_equal(evolve_generation(&v, 0, choice, &loss, &e), 0);
    for (int i = 0; i < 12; i++)
        assert_int_equal(choice[i], CHOICES - 1);
    f.fail_at = 2;
    assert_int_equal(evolve_generation(&v, 0, choice, &loss, &e), ERR_CANCELLED);
    for (uint64_t i = 1; i <= 2; i++) {
        mem_fail_at(i);
        assert_int_equal(evolve_generation(&v, 0, choice, &loss, &e), ERR_NOMEM);
    }
    mem_fail_at(0);
    v.n = 0;
    assert_int_equal(evolve_generation(&v, 0, choice, &loss, &e), 0);
}

static void refuses_nonsense(void **state)
{
    struct err e;
    (void)state;
    set_items(3, 0);
    item[1].n = 0;
    assert_int_equal(allocate_dp(item, 3, 10000, choice, &e), ERR_INVALID);
    item[1].n = ALLOCATE_CHOICES + 1;
    assert_int_equal(allocate_dp(item, 3, 10000, choice, &e), ERR_INVALID);
    item[1].n = 1;
    error[1][0] = NAN;
    assert_int_equal(allocate_dp(item, 3, 10000, choice, &e), ERR_INVALID);
    error[1][0] = 0;
    assert_int_equal(allocate_dp(item, 3, 10000, choice, &e), 0);
    assert_int_equal(allocate_dp(item, 0, 0, choice, &e), 0);
}

static void says_when_memory_is_out(void **state)
{
    struct err e;
    uint64_t i;
    (void)state;
    set_items(3, 0);
    for (i = 1;; i++) {
        mem_fail_at(i);
        int rc = allocate_dp(item, 3, 10000, choice, &e);
        if (rc == 0 && i > 8) /* a list of steps, a front to begin with, two blocks an item */
            break;
        assert_true(rc == 0 || rc == ERR_NOMEM);
        assert_true(rc == 0 || e.code == ERR_NOMEM);
    }
    mem_fail_at(0);
}

static int nothing_is_left(void **state)
{
    struct mem_stats m;
    (void)state;
    mem_stats(&m);
    return m.blocks == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_the_best),   cmocka_unit_test(many_sizes_fit_and_are_close),
        cmocka_unit_test(steps_by_size),    cmocka_unit_test(rises_to_the_level),
        cmocka_unit_test(evolves),          cmocka_unit_test(evolves_no_further),
        cmocka_unit_test(refuses_nonsense), cmocka_unit_test(says_when_memory_is_out),
    };
    return cmocka_run_group_tests(tests, NULL, nothing_is_left);
}
