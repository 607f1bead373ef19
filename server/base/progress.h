/* Progress of long work: a bar with rate and ETA when stderr is a terminal, otherwise one log line per stage and at most
 * one every ten seconds. One owner; the counter may be advanced from any thread.
 */
#ifndef WRING_BASE_PROGRESS_H
#define WRING_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *stage, *unit; /* borrowed: must outlive the progress */
    uint64_t total;           /* 0: not known */
    uint64_t start_ns;
    uint64_t done, drawn_ns; /* atomic */
    bool tty;
};

void progress_start(struct progress *p, const char *stage, const char *unit, uint64_t total);
/* Any thread; draws at most ten times a second. */
void progress_add(struct progress *p, uint64_t n);
/* Final line with the mean rate: finished, or stopped where not all was done. */
void progress_end(struct progress *p, bool all);

#endif
