/* The engine's numbers: bucket bounds and counting. Relaxed atomics: readers see every number whole, at any time. */
#ifndef WRING_SERVER_ENGINE_STATS_H
#define WRING_SERVER_ENGINE_STATS_H

#include "server/engine/engine.h"

void stats_init(struct engine_stats *s);
void histogram_observe(struct histogram *h, double v); /* v >= 0: seconds or plain units */

#endif
