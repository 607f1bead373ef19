/* Paired bootstrap: how sure a mean difference is. Drawn from a fixed seed: the same data give the same interval. */
#ifndef WRING_SERVER_CLI_BOOTSTRAP_H
#define WRING_SERVER_CLI_BOOTSTRAP_H

enum { BOOTSTRAP_DRAWS = 10000 };

struct interval {
    double mean, low, high; /* low, high: bounds of the middle 95 %. All NaN without data */
};
/* Of the mean of d[n], the differences of n pairs. ERR_NOMEM only. */
int bootstrap_mean(const double *d, int n, struct interval *out)
    __attribute__((warn_unused_result));

#endif
