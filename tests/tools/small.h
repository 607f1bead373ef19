/* What tests/run asks for under sanitizers: one of a kind, where the plain run takes all. */
#ifndef WRING_TESTS_TOOLS_SMALL_H
#define WRING_TESTS_TOOLS_SMALL_H

#include <stdbool.h>
#include <stdlib.h>

/* CHECK_SMALL is set. */
static inline bool check_small(void)
{
    return getenv("CHECK_SMALL") != NULL;
}

#endif
