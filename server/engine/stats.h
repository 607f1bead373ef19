/* The engine's numbers: bucket bounds and counting. Relaxed atomics: readers see every number whole, at any time. */
#ifndef WRING_SERVER_ENGINE_STATS_H
#define WRING_SERVER_ENGINE_STATS_H

#include "server/engine/engine.h"

void stats_init(struct engine_stats *s);
/* Seconds or plain units; what is not v >= 0, such as NaN, is not counted. */
void histogram_observe(struct histogram *h, double v);

#endif
