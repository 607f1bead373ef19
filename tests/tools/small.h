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

/* The thread sanitizer watches: whether threads race is asked, while what comes out and what leaks is for other runs. */
static inline bool check_races(void)
{
#ifdef __SANITIZE_THREAD__
    return true;
#else
    return false;
#endif
}

#endif
