/* Numbers for Prometheus: what the front counts itself, and the engine's, as text.
 *
 * Names start with wring_; those that gateways and dashboards look for exist a second time under vLLM's name with
 * vLLM's meaning (gauges of running and waiting requests, KV use as 0..1, token counters, latency histograms).
 * Everything is read from atomics, so a scrape takes no lock and never waits for the engine.
 */
#ifndef WRING_SERVER_METRICS_H
#define WRING_SERVER_METRICS_H

#include <stdatomic.h>
#include <stdint.h>

#include "server/base/buf.h"
#include "server/engine/engine.h"

enum route {
    ROUTE_CHAT,
    ROUTE_COMPLETIONS,
    ROUTE_MODELS,
    ROUTE_MODEL,
    ROUTE_TOKENIZE,
    ROUTE_DETOKENIZE,
    ROUTE_HEALTH,
    ROUTE_VERSION,
    ROUTE_METRICS,
    ROUTE_PAGE,
    ROUTE_NONE,
    ROUTE_N
};

/* Where a request was when its client left: before its first token (queued or prefilling), or after. */
enum phase { PHASE_PROMPT, PHASE_DECODE, PHASE_N };

enum { METRICS_CODES = 13 };

struct metrics {
    _Atomic uint64_t requests[ROUTE_N][METRICS_CODES];
    _Atomic uint64_t cancelled[PHASE_N];
    _Atomic uint64_t slow_readers; /* streams ended because nobody read them */
    _Atomic int64_t connections;   /* open */
    _Atomic int64_t generating;    /* requests that have jobs */
    int64_t start_s;               /* Unix time */
};

void metrics_count(struct metrics *m, enum route r, int status);
/* Text format 0.0.4. model: the name clients use. */
void metrics_write(const struct metrics *m, const struct engine *en, const char *model,
                   struct buf *out);

#endif
