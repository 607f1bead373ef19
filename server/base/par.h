/* The worker pool: n threads (the caller is one of them) that run one loop at a time.
 *
 * par_for(p, n_items, grain, fn, arg) calls fn(arg, first, last, i_thread) for disjoint ranges that cover [0, n_items),
 * each at most `grain` items long (grain 0: n_items spread evenly), and returns when all are done. Ranges are handed out
 * in rising order from one atomic counter; which thread takes a range is not defined, so a result must never depend on
 * i_thread, which only names scratch memory (0 <= i_thread < par_threads()).
 *
 * Workers wait for the next loop by spinning for a short time (some tens of microseconds) and then sleep on a futex, so
 * that two engines on one machine do not starve each other; the caller waits for stragglers in the same way.
 * par_for must be called by one thread at a time and not from inside fn. It allocates nothing.
 */
#ifndef WRING_BASE_PAR_H
#define WRING_BASE_PAR_H

#include "server/base/err.h"

struct par;

typedef void par_fn(void *arg, int first, int last, int i_thread);

/* n_threads 0: one per online CPU the process may use (affinity and cgroup quota are honoured), at most 256. */
int par_open(struct par **out, int n_threads, struct err *e) WARN_UNUSED;
void par_close(struct par *p); /* NULL is accepted */
int par_threads(const struct par *p);
void par_for(struct par *p, int n_items, int grain, par_fn *fn, void *arg);

#endif
