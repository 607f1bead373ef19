/* Elements of a cache of any type, one at a time. */
#ifndef WRING_TESTS_TOOLS_ELEM_H
#define WRING_TESTS_TOOLS_ELEM_H

#include "kernels/backend.h"

/* Number i of those at `at`, which need not be aligned. */
void elem_store(enum kv_type type, void *at, size_t i, float x);
float elem_load(enum kv_type type, const void *at, size_t i);
/* x as it is when it was stored. */
float elem_rounded(enum kv_type type, float x);

#endif
