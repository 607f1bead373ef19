#include "server/base/machine.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

/* Up to two numbers from the start of a file; returns how many there are. "max" is none. */
static int read_numbers(const char *cgroup, const char *name, long long *v)
{
    char path[4096], line[64] = "";
    int n = snprintf(path, sizeof path, "%s/%s", cgroup != NULL ? cgroup : "/sys/fs/cgroup", name);
    FILE *f = n < (int)sizeof path ? fopen(path, "re") : NULL;
    if (f == NULL)
        return 0;
    n = fgets(line, sizeof line, f) != NULL ? sscanf(line, "%lld %lld", &v[0], &v[1]) : 0;
    fclose(f);
    return n < 0 ? 0 : n;
}

int machine_cpus(const char *cgroup)
{
    cpu_set_t set;
    long long v[2]; /* quota and period */
    int n = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        n = CPU_COUNT(&set);
    if (read_numbers(cgroup, "cpu.max", v) == 2 && v[0] > 0 && v[1] > 0 &&
        (v[0] + v[1] - 1) / v[1] < n)
        n = (int)((v[0] + v[1] - 1) / v[1]);
    return n < 1 ? 1 : n;
}

int64_t machine_memory(const char *cgroup)
{
    /* of version 2 and of version 1 */
    static const char *const limit[] = { "memory.max", "memory/memory.limit_in_bytes" };
    int64_t most = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    long long v[2];
    for (int i = 0; i < 2; i++)
        if (read_numbers(cgroup, limit[i], v) >= 1 && v[0] > 0 && v[0] < most)
            most = v[0];
    return most;
}
