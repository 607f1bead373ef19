/* What of the machine this process may use: in a container its limits are the machine. */
#ifndef WRING_BASE_MACHINE_H
#define WRING_BASE_MACHINE_H

#include <stdint.h>

/* cgroup: the folder where its limits lie; NULL: /sys/fs/cgroup. */
int machine_cpus(const char *cgroup); /* by affinity, at most the quota rounded up; at least 1 */
int64_t machine_memory(const char *cgroup); /* bytes of physical memory, at most the limit */

#endif
