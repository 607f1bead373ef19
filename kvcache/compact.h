/* Compaction: presses the cache of one sequence, all layers and heads, or one layer (kv.h), as its policy says.
 *
 * Copy-on-compress: wide pages are read, never written; what stays is written to narrow pages that the sequence holds
 * already (since its admission, or since it outgrew its budget), then its references to the wide pages are dropped. So a compaction takes no page and cannot fail
 * for want of one, a shared prefix stays what it was, and cached prefixes outlive it.
 * A head's result depends on its sequence alone: one thread does all of it, in one order.
 *
 * On a backend whose memory the CPU cannot read, the device does what grows with the context (be_ops.probe), the host the rest;
 * where it cannot, and for policies that look at every key, pages are brought to the host layer by layer.
 */
#ifndef WRING_KVCACHE_COMPACT_H
#define WRING_KVCACHE_COMPACT_H

#include "kvcache/kv.h"

/* What compactions did to a sequence; sums over heads and layers of the last one, counters over all. */
struct kv_report {
    int n_compactions;
    int budget;      /* slots per head that the last one kept on average */
    bool raised;     /* the guard gave more than was asked for */
    int64_t kept;    /* slots in narrow pages */
    int64_t merged;  /* evicted candidates that a merge took in, over all compactions */
    int64_t evicted; /* candidates not kept, over all compactions */
    float mass_min,
        mass_mean; /* share of the reference queries' attention that kept slots hold: worst head, mean */
    uint64_t ns; /* time in compactions; a probe that an earlier fork made counts in each */
};

#define KV_SCRATCH_KEPT ((size_t)256 << 20)
struct
    kv_compactor; /* scratch, sized on use; what a long prompt took beyond KV_SCRATCH_KEPT goes back */
/* rope: copied. group: query heads of a KV head. */
int kv_compactor_open(struct kv_compactor **out, struct kv_pool *p, const struct kv_rope *rope,
                      int group, float scale, struct err *e) WARN_UNUSED;
void kv_compactor_close(struct kv_compactor *c); /* NULL is accepted */

/* True when s has to be pressed before its next token: its prompt is in the cache and does not fit the budget, or its
 * slots have outgrown budget + tail. Never for a policy that keeps all. */
bool kv_compact_due(const struct kv_seq *s);
/* Presses s, or the layer under way of one whose prompt goes layer by layer (then the next layer is under way, and *r is
 * complete when there is none), and adds to *r. ERR_NOMEM: s is as it was. ERR_DEVICE: the first time too; later its narrow
 * pages are undefined. */
int kv_compact(struct kv_compactor *c, struct kv_seq *s, struct kv_report *r,
               struct err *e) WARN_UNUSED;

#endif
