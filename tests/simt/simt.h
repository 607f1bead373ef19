/* What a test may ask of the simulated device. C and C++.
 *
 * There is one device a process. Settings are functions, nothing is read from the environment. Any thread may call these,
 * one at a time: each takes the device's lock, as every cuda*() call does. Kernels run on the thread that synchronises.
 */
#ifndef WRING_TESTS_SIMT_SIMT_H
#define WRING_TESTS_SIMT_SIMT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Order of blocks and threads, and what fresh memory holds. 0: natural order and bytes 0xff, which are NaN in every float
 * format; anything else: shuffled at every decision, and a pattern of that seed's own. The same seed and the same calls
 * behind it give the same order. What a correct program computes does not depend on it. */
void simt_seed(uint64_t seed);

/* The latest fault or refused call in one sentence: the kernel, block, thread and file:line, as far as they are known.
 * "" when there was none since simt_reset. Valid until the next call into the runtime. */
const char *simt_report(void);

/* Brings a failed device back: forgets the error, the report, queued work, captures and planned failures. Memory, streams
 * and settings stay. A GPU cannot do this; tests need it. */
void simt_reset(void);

/* The n-th kernel that runs from now on (1: the next) does not: the device is lost, with cudaErrorECCUncorrectable from
 * then on. Kernels of a graph count one by one. 0: never. */
void simt_lose_device_after(uint64_t n);

/* The n-th allocation from now on (1: the next), of device or pinned memory or a graph, fails. 0: none does. */
void simt_fail_malloc_at(uint64_t n);

/* Settings of the device; they hold for what is asked and allocated from then on. Defaults: 1 device, 8 GiB, 8
 * multiprocessors, compute capability 9.0, code that loads. */
void simt_set_devices(int n);
void simt_set_memory(size_t bytes);
void simt_set_processors(int n);
void simt_set_capability(int major, int minor);
void simt_set_loads(int whether); /* 0: the driver takes none of the program's code */

struct simt_stats {
    uint64_t launches;         /* kernels that ran */
    uint64_t blocks;           /* blocks that ran */
    uint64_t switches;         /* times that one thread of a block gave way to another */
    size_t device_allocations; /* alive now */
    size_t device_bytes;
    size_t pinned_allocations;
    size_t queued; /* launches, copies and the like that wait for a synchronisation */
};
#ifdef __GNUC__ /* named as its struct, as mem_stats is */
#    pragma GCC diagnostic push
#    pragma GCC diagnostic ignored "-Wshadow"
#endif
void simt_stats(struct simt_stats *s);
#ifdef __GNUC__
#    pragma GCC diagnostic pop
#endif

#ifdef __cplusplus
}
#endif

#endif
