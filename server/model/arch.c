#include "server/model/arch.h"

#include <string.h>

extern const struct arch arch_llama;

const struct arch *const arch_list[] = { &arch_llama, NULL };

const struct arch *arch_find(const char *name)
{
    for (int i = 0; arch_list[i] != NULL; i++)
        for (int j = 0; arch_list[i]->names[j] != NULL; j++)
            if (strcmp(arch_list[i]->names[j], name) == 0)
                return arch_list[i];
    return NULL;
}
