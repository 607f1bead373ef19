/* What "compression" in a request comes to: its fields over the server's options, names looked up, budgets held against
 * the server's ceiling. The only place of the front that turns api/'s words into kvcache/'s options.
 *
 * Values and constants; any thread.
 */
#ifndef WRING_SERVER_PRESS_OPTIONS_H
#define WRING_SERVER_PRESS_OPTIONS_H

#include "api/request.h"
#include "kvcache/policy.h"
#include "server/config.h"

/* The server's options kv-policy to kv-samples. A zeroed one: everything is kept, and nobody may ask for less. */
struct press_rules {
    /* Of a request that names none; NULL: the first, which keeps everything. */
    const struct kv_policy *policy;
    struct api_budget budget;  /* of a request that gives none */
    struct api_budget ceiling; /* what a request may ask for and the guard may give; empty: any */
    double mass_floor;
    int samples; /* queries kept of KV_PAGE; without them nothing can be pressed */
};
/* ERR_INVALID names the option. */
int press_rules_read(struct press_rules *r, const struct config *c, struct err *e) WARN_UNUSED;
/* Whether some prompt can meet the budgets, now that the size of a slot of all heads is known. ERR_INVALID names the option. */
int press_rules_check(const struct press_rules *r, int64_t slot_bytes, struct err *e) WARN_UNUSED;
/* Names of the policies that a request may ask for, "snapkv, ...". windowed: the model's attention has a sliding window,
 * and its cache cannot be pressed. */
const char *press_policies(const struct press_rules *r, bool windowed);

/* The options that the request asks for; budgets are as given. */
int press_options(struct kv_options *out, const struct press_rules *r,
                  const struct api_compression *c, struct api_error *e) WARN_UNUSED;
/* Fits them to one prompt of n_prompt tokens, which the marks in *kv belong to: budgets become slots, none above the
 * ceiling. What kvcache/ would refuse is refused here. slot_bytes: of one slot of all heads and layers. */
int press_fit(struct kv_options *kv, const struct press_rules *r, const struct api_compression *c,
              int n_prompt, int64_t slot_bytes, struct api_error *e) WARN_UNUSED;

#endif
