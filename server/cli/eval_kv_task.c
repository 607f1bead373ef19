/* The tasks of wring eval kv, family by family, and how many samples they take. */
#include "server/cli/eval_kv.h"

#include <string.h>

const struct kv_task *const kv_families[] = { kv_recall_tasks, kv_fact_tasks, NULL };

const struct kv_task *kv_task_find(const char *name)
{
    for (int f = 0; kv_families[f] != NULL; f++)
        for (const struct kv_task *t = kv_families[f]; t->name != NULL; t++)
            if (strcmp(t->name, name) == 0)
                return t;
    return NULL;
}

int kv_task_samples(const struct kv_task *t, const struct kv_maker *m, int n)
{
    int runs = (KV_STREAM + m->run - 1) / m->run;
    return t->kind == KV_LONG && n > runs ? runs : n;
}
