/* The choice of forms against trying all of them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/allocate.h"
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
        cmocka_unit_test(finds_the_best),
        cmocka_unit_test(many_sizes_fit_and_are_close),
        cmocka_unit_test(refuses_nonsense),
        cmocka_unit_test(says_when_memory_is_out),
    };
    return cmocka_run_group_tests(tests, NULL, nothing_is_left);
}
