/* The list of policies: one line each. */
#include <stddef.h>
#include <string.h>

#include "kvcache/adakv/adakv.h"
#include "kvcache/ems/ems.h"
#include "kvcache/ems_r/ems_r.h"
#include "kvcache/expected/expected.h"
#include "kvcache/full/full.h"
#include "kvcache/h2o/h2o.h"
#include "kvcache/keydiff/keydiff.h"
#include "kvcache/pyramidkv/pyramidkv.h"
#include "kvcache/random/random.h"
#include "kvcache/snapkv/snapkv.h"
#include "kvcache/tova/tova.h"
#include "kvcache/window/window.h"

#define POLICY_MAP(X)                                                                              \
    X(full, "full")                                                                                \
    X(ems, "ems")                                                                                  \
    X(ems_r, "ems-r")                                                                              \
    X(snapkv, "snapkv")                                                                            \
    X(pyramidkv, "pyramidkv")                                                                      \
    X(adakv, "adakv")                                                                              \
    X(h2o, "h2o")                                                                                  \
    X(tova, "tova")                                                                                \
    X(keydiff, "keydiff")                                                                          \
    X(expected, "expected")                                                                        \
    X(window, "window")                                                                            \
    X(random, "random")

#define ADDRESS(symbol, name) &kv_##symbol,
const struct kv_policy *const kv_policy_list[] = { POLICY_MAP(ADDRESS) NULL };

const struct kv_policy *kv_policy_find(const char *name)
{
    for (size_t i = 0; kv_policy_list[i] != NULL; i++)
        if (strcmp(kv_policy_list[i]->name, name) == 0)
            return kv_policy_list[i];
    return NULL;
}

const char *kv_policy_names(void)
{
#define NAME(symbol, name) ", " name
    static const char names[] = POLICY_MAP(NAME);
    return names + 2;
}
