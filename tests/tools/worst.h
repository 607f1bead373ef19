/* The largest of some errors. */
#ifndef WRING_TESTS_TOOLS_WORST_H
#define WRING_TESTS_TOOLS_WORST_H

#include <math.h>

/* The larger one of the worst so far and of another; fmax would pass over a NaN, which is worse than all. */
static inline double worst_of(double worst, double error)
{
    if (isnan(error))
        return INFINITY;
    return error > worst ? error : worst;
}

#endif
