/* The policies that press: every one of kv_policy_list but those that keep all. */
#ifndef WRING_TESTS_TOOLS_PRESSING_H
#define WRING_TESTS_TOOLS_PRESSING_H

#include "kvcache/policy.h"

int n_pressing(void); /* fails the test when there is none */
/* Number i % n_pressing() of them. */
const struct kv_policy *pressing(int i);

#endif
