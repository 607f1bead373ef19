#include "server/base/clock.h"

#include <time.h>

static uint64_t now(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t clock_ns(void)
{
    return now(CLOCK_MONOTONIC);
}

double clock_s(void)
{
    return (double)clock_ns() / 1e9;
}

uint64_t clock_wall_ns(void)
{
    return now(CLOCK_REALTIME);
}

int64_t clock_wall_s(void)
{
    return (int64_t)(clock_wall_ns() / 1000000000u);
}
