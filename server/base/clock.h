/* Monotonic time. */
#ifndef WRING_BASE_CLOCK_H
#define WRING_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_ns(void);      /* CLOCK_MONOTONIC, nanoseconds */
double clock_s(void);         /* the same in seconds */
int64_t clock_wall_s(void);   /* Unix time, seconds */
uint64_t clock_wall_ns(void); /* Unix time, nanoseconds */

#endif
