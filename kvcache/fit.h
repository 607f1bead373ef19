/* Merging what is evicted into what stays.
 *
 * The fit: votes w_c (a logit bias log w_c) and values v_c of the kept slots that are not exact, so that attention over all
 * that is kept gives what attention over all slots gave to the reference queries. Votes by multiplicative updates that make
 * the kept slots carry the full mass of every query, values by ridge regression on what is still missing. Keys stay. It is
 * EMS's "merge" as a least-squares problem: where the evicted mass goes is decided by what queries see, not by cosines.
 */
#ifndef WRING_KVCACHE_FIT_H
#define WRING_KVCACHE_FIT_H

#include <string.h>

#include "kvcache/policy.h"

enum { KV_FIT_ROUNDS = 10 };

/* Fits kept->beta and kept->v against h->ref_*; mode: VOTES, VALUES or FIT. Slots that are exact keep votes and values. One call
 * moves votes by a factor of e^-2 to e^4, and all calls together no lower than e^-2 and no higher than e^4 or h->n_tokens,
 * whichever is more. Without reference queries, or slots that are not exact, nothing changes and nothing is merged. ERR_NOMEM
 * only: then kept may be half done. Where a system is not positive definite or a result is not finite, what was there stays. */
int kv_fit(const struct kv_head *h, struct kv_kept *kept, enum kv_merge mode) WARN_UNUSED;
/* Whether a fit of n slots has any that it may change; else it takes nothing in. */
static inline bool kv_fit_takes(const bool *exact, int n)
{
    return n > 0 && memchr(exact, false, (size_t)n) != NULL;
}
/* By what factors a fit may move the votes of a slot whose bias is beta: by none where it is exact. */
void kv_fit_range(bool exact, float beta, int n_tokens, float *lo, float *hi);

/* EMS+: every evicted candidate joins the kept slot whose key is nearest by cosine, if that is at least 0.8; sinks and exact
 * slots take nobody in. v_c = mean of the cluster's values weighted by votes, beta_c = log of the sum of its votes, at most
 * log 16 unless it had more: n <= 16 identical tokens merged reproduce full attention. Slots that nobody joins stay bit for
 * bit. Needs h->k and h->v. ERR_NOMEM only: then nothing has changed. */
int kv_merge_mean(const struct kv_head *h, struct kv_kept *kept) WARN_UNUSED;

#endif
