/* The policy `ems-r`: EMS as it can be rebuilt from what is known of it. */
#ifndef WRING_KVCACHE_EMS_R_EMS_R_H
#define WRING_KVCACHE_EMS_R_EMS_R_H

#include "kvcache/policy.h"

extern const struct kv_policy kv_ems_r;

struct kv_ems_r_limits {
    float p_keep; /* tokens that together hold this share of the head's score are relevant */
    int kappa;    /* to be merged: at most so many for one important token */
    float tau;    /* least redundancy for a merge; over 1: no merge, -1: none refused */
};
/* Its own: .98, 4, .6 */
extern const struct kv_ems_r_limits kv_ems_r_defaults;

/* Evicted tokens by what became of them: merged + dropped were to be merged (N_tbm), the others were irrelevant. */
struct kv_ems_r_counts {
    int merged, dropped, irrelevant;
};

/* Merges what kept does not hold into kept->k and kept->v. score: protected ones +inf. counts may be NULL. ERR_NOMEM only. */
int kv_ems_r_merge(const struct kv_head *h, const float *score, struct kv_kept *kept,
                   const struct kv_ems_r_limits *limits,
                   struct kv_ems_r_counts *counts) WARN_UNUSED;

#endif
