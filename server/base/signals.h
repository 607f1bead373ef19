/* How a program that serves is asked to end: SIGINT and SIGTERM, which a thread of its own takes.
 *
 * Until signals_keep() a signal ends the process at once, however long what goes on then takes: code 1 and a word on
 * stderr. The first one after that is kept for signals_wait(); then SIGINT ends the process as before, and SIGTERM, which
 * timeout(1) and other wrappers send twice, does nothing. Nothing of this rests on what a signal does by default: process 1 of
 * a container is not ended by it.
 */
#ifndef WRING_BASE_SIGNALS_H
#define WRING_BASE_SIGNALS_H

#include "server/base/err.h"

/* Once, before any other thread is started: they all inherit that these signals are blocked. */
int signals_take(struct err *e) WARN_UNUSED;
/* Before anybody can have begun what must not be cut off. */
void signals_keep(void);
/* Waits for the signal that was kept and returns it. Once. */
int signals_wait(void);

#endif
