/* Which form each matrix gets, so that all of them fit a number of bytes: as a multiple-choice knapsack problem, or by a
 * water level.
 *
 * Source of the former: HAWQ-V3 (arXiv 2011.10680), which gives it to a solver of integer programs; forms of weights have so
 * few different sizes that dynamic programming is exact and quick. Source of the latter: BAQ (arXiv 2506.05664).
 */
#ifndef WRING_QUANT_ALLOCATE_H
#define WRING_QUANT_ALLOCATE_H

#include <stdbool.h>
#include <stddef.h>

#include "server/base/err.h"

enum { ALLOCATE_CHOICES = 32 };

/* The forms that one matrix may get, in any order. */
struct allocate_item {
    const size_t *bytes; /* [n] exact sizes */
    const double *error; /* [n] of any finite value; sums of them are what counts */
    int n;               /* 1 to ALLOCATE_CHOICES */
};

/* choice[n]: of each item the form with which the sum of errors is least while that of bytes is at most budget; among equal
 * sums of errors one with the fewest bytes. Exact while no more than 2^14 different sums of bytes are of use for the first
 * items; after that sums that differ by less than 2^-14 of the budget are taken for one. Pure: the same in, the same out. ERR_LIMIT: not even the
 * smallest forms fit, and the message says how much they need; ERR_INVALID; ERR_NOMEM. */
int allocate_dp(const struct allocate_item *item, int n, size_t budget, int *choice,
                struct err *e) WARN_UNUSED;

/* Form by form upwards: the choice of the item whose size is the next above that of choice c (up) or below it; -1: none. */
int allocate_next(const struct allocate_item *item, int c, bool up);

/* The least error where error falls by a factor of 4 with each bit is that of want[i] + level bits for item i, the level being
 * the same for all. Forms are the nearest to that; the level is the highest at which they fit. weights[n]: the numbers of each
 * matrix. Errors of the items are not looked at. Pure; fails as allocate_dp. */
int allocate_level(const struct allocate_item *item, const double *weights, const double *want,
                   int n, size_t budget, int *choice, struct err *e) WARN_UNUSED;

#endif
