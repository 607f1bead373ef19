/* Progress of long work: a bar with rate and ETA when stderr is a terminal, otherwise one log line per stage and at most
 * one every ten seconds. One owner; the counter may be advanced from any thread.
 */
#ifndef WRING_BASE_PROGRESS_H
#define WRING_BASE_PROGRESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *stage, *unit; /* borrowed: must outlive the progress */
    uint64_t total;           /* 0: not known */
    _Atomic uint64_t done;
    uint64_t start_ns;
    _Atomic uint64_t drawn_ns;
    bool tty;
};

void progress_start(struct progress *p, const char *stage, const char *unit, uint64_t total);
void progress_add(struct progress *p,
                  uint64_t n);         /* any thread; draws at most ten times a second */
void progress_end(struct progress *p); /* final line with the mean rate */

#endif
