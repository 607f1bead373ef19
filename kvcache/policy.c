/* The list of policies: one line each. */
#include <stddef.h>
#include <string.h>

#include "kvcache/full/full.h"
#include "kvcache/kv.h"

#define POLICY_MAP(X) X(full)

#define ADDRESS(name) &kv_##name,
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
#define NAME(name) ", " #name
    static const char names[] = POLICY_MAP(NAME);
    return names + 2;
}
