/* The simulated device from within: what the .cc files of this folder share.
 *
 * There is one device, `machine`. Who calls in holds its lock; a block runs on the caller's OS thread, each of its
 * threads as a fiber. Nothing here is thread_local: the next call may come from another OS thread.
 *
 *      fiber.cc    stacks, and the switch from one to another
 *      block.cc    the threads of a block: whose turn it is, barriers, faults
 *      warp.cc     what the lanes of a warp do together
 *      mma.cc      tensor cores, ldmatrix
 *      shared.cc   shared memory and asynchronous copies into it
 *      memory.cc   device and pinned memory
 *      launch.cc   launches: what is refused, the order of blocks, what is checked behind a kernel
 *      stream.cc   streams, events, copies
 *      graph.cc    graphs
 *      device.cc   errors, properties, settings
 */
#ifndef WRING_TESTS_SIMT_MACHINE_HH
#define WRING_TESTS_SIMT_MACHINE_HH

#include <cuda_runtime.h>

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdint.h>
#include <thread>
#include <vector>

#include "tests/simt/simt.h"

/* Which sanitizer watches: gcc defines a macro, clang has a feature. */
#ifdef __has_feature
#    define SIMT_FEATURE(x) __has_feature(x)
#else
#    define SIMT_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || SIMT_FEATURE(address_sanitizer)
#    define SIMT_ASAN 1
#else
#    define SIMT_ASAN 0
#endif
#if defined(__SANITIZE_THREAD__) || SIMT_FEATURE(thread_sanitizer)
#    define SIMT_TSAN 1
#else
#    define SIMT_TSAN 0
#endif

namespace simt
{

enum { LANES = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / LANES };
enum : size_t {
    SHARED_PLAIN = 48 << 10, /* bytes of shared memory: without a word, and at most */
    SHARED_MOST = 227 << 10
};

struct device;

/* ---- fiber.cc -------------------------------------------------------------------------------------------------- */

struct fiber {
    void *sp; /* where its registers are saved, while it does not run */
    const void *bottom;
    size_t size;
    void *sanitizer; /* what a sanitizer remembers of it */
};

/* MAX_THREADS stacks, each made when it is first needed, handed out and taken back. */
struct fiber_pool {
    char *room;
    int made;
    fiber fibers[MAX_THREADS];
    fiber *spare[MAX_THREADS];
    int spares;
    fiber *left; /* by the latest switch */
};

/* A fiber that runs entry() when it is first switched to. entry() starts with fiber_enter() and never returns. */
fiber *fiber_take(fiber_pool *p, void (*entry)());
void fiber_give(fiber_pool *p, fiber *f);
/* Takes all of them back, wherever they are. */
void fiber_drop_all(fiber_pool *p);
/* Leaves `from`, which is running, for `to`. `ends`: from is never switched to again. */
void fiber_switch(fiber *from, fiber *to, bool ends);
void fiber_enter();

/* ---- block.cc -------------------------------------------------------------------------------------------------- */

struct async_copy {
    char *to;
    const char *from;
    int bytes;
    uint64_t group;
};

/* What tensor cores of sm_90a have under way for a lane: numbers that d gets, and for lane 0 a tile as it was read. */
struct async_product {
    float *d;
    std::vector<float> value;
    uint64_t group;
};
struct async_tile {
    uint64_t tile;
    std::vector<uint16_t> read; /* [columns][16] */
    uint64_t group;
};

struct thread {
    simt::fiber *fiber;  /* null until its first turn */
    simt_request *waits; /* for this, or null */
    bool ended;
    uint3 index;
    bool prior_done; /* it has called cu_wait_prior */
    uint64_t groups; /* of copies, closed ones */
    std::vector<async_copy> copies;
    uint64_t product_groups; /* closed ones */
    std::vector<async_product> products;
    std::vector<async_tile> tiles;
};

struct warp {
    uint32_t present; /* lanes that exist */
    uint32_t ready;   /* lanes that can run */
    uint32_t waiting; /* lanes that wait for others of the warp */
    simt_request *request[LANES];
};

struct shared_array {
    const simt_shared_site *site;
    char *base;
    size_t size;
};

struct block {
    const std::function<void()> *body;
    fiber home; /* who runs the block */
    fiber_pool fibers;
    thread *now; /* whose turn it is; null outside of a block */
    int size, alive;
    uint32_t ready_warps;
    int warp_now;
    simt::warp warps[MAX_WARPS];
    thread threads[MAX_THREADS];

    int arrived, votes, verdict; /* at the barrier; non-zero predicates; of the barrier before */
    const simt_request *barrier; /* of who came first */

    enum { MAX_ARRAYS = 64 };
    char *arena; /* shared.cc */
    size_t arena_used, static_bytes, dynamic_bytes, shared_limit;
    shared_array arrays[MAX_ARRAYS];
    int n_arrays;
};

/* Runs the block at simt_at.block; false after a fault. */
bool block_run(device *d);
/* Prepares for blocks of that many threads. */
void block_shape(device *d, dim3 size);
/* The lanes of a warp can run. */
void block_ready(block *b, int warp, uint32_t lanes);
/* The running thread waits for r; returns at its next turn. */
void block_wait(device *d, simt_request *r);
const char *op_name(simt_op op);

/* ---- warp.cc, mma.cc ------------------------------------------------------------------------------------------- */

/* Does what all lanes of r->mask have asked for. */
void mma_perform(warp *w, const simt_request *r);
/* The same for cu_wgmma_*: the results are under way. */
void wgmma_perform(warp *w, const simt_request *r);

/* ---- shared.cc ------------------------------------------------------------------------------------------------- */

void shared_begin(block *b);
/* Checks the guards; false, with the device failed, when one was written to. */
bool shared_end(device *d);
/* Faults unless the bytes lie in one array of the block. */
void shared_check(const void *p, size_t bytes, const simt_request *at);

/* ---- memory.cc ------------------------------------------------------------------------------------------------- */

enum : size_t { GUARD = 256 }; /* bytes before and behind an array or allocation */
enum : unsigned char { GUARD_BYTE = 0xa7 };

struct allocation {
    char *base;
    size_t size;
    char *room; /* what was mapped: GUARD bytes, the bytes, GUARD bytes or more */
    size_t room_size;
};

struct allocations {
    std::map<uintptr_t, allocation> all; /* by base */
    size_t bytes = 0;
    const allocation *latest = nullptr; /* where memory_find looks first */
};

/* The allocation that holds all the bytes, or null. */
const allocation *memory_find(allocations *m, const void *p, size_t bytes);
/* Fails the device when `kernel` wrote outside of an allocation. */
void memory_check(device *d, const char *kernel);
bool memory_fails(device *d); /* whether the next allocation is the one that was planned to */
void memory_poison(const device *d, void *p, size_t bytes);
bool guard_intact(const char *p);
void sanitizer_hide(const void *p, size_t bytes);
void sanitizer_show(const void *p, size_t bytes);

/* ---- launch.cc ------------------------------------------------------------------------------------------------- */

struct launch {
    const char *name;
    dim3 grid, block;
    size_t dynamic_bytes, shared_limit;
    std::function<void()> body;
};

void launch_run(device *d, const launch *l);

/* ---- stream.cc ------------------------------------------------------------------------------------------------- */

struct work {
    std::function<void(device *)> run;
    const void *reads; /* host memory */
    void *writes;
    size_t bytes;
    uint64_t ticket;
};

/* To the stream's queue, or to the graph that it captures. */
cudaError_t stream_add(device *d, cudaStream_t s, work w);
/* Whether the stream is the calling thread's device's, as launches and fills must find it; copies need not. */
bool stream_here(cudaStream_t s);
int device_current(); /* of the calling thread */
/* Runs what the stream was given up to that ticket, and what that has to wait for. */
void stream_run(device *d, CUstream_st *s, uint64_t until);
void stream_run_all(device *d);
void stream_forget_all(device *d);
/* The stream of a handle; null when it is none. */
CUstream_st *stream_of(device *d, cudaStream_t s);
/* The capture of s is no longer valid; its end says so. */
void stream_spoil(CUstream_st *s);
/* Whether a capture forbids the caller what might synchronise; the capture is then no longer valid. */
bool capture_forbids(device *d);

} // namespace simt

struct CUgraph_st {
    std::vector<simt::work> nodes;
};

struct CUgraphExec_st {
    std::vector<simt::work> nodes;
};

struct CUstream_st {
    bool blocking = true; /* waits for the default stream and it for this one */
    int number = 0;       /* of its device */
    std::deque<simt::work> queue;
    std::unique_ptr<CUgraph_st> capture;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    bool capture_invalid = false;
    std::thread::id capturer;
};

/* ---- device.cc ------------------------------------------------------------------------------------------------- */

namespace simt
{

struct device {
    std::mutex lock;

    int devices = 1, processors = 8, major = 9, minor = 0;
    bool loads = true; /* the program's code */
    size_t total_bytes = (size_t)8 << 30;

    uint64_t seed = 0, random = 0;
    uint64_t lose_after = 0, fail_malloc = 0; /* countdowns, 0: none */
    struct simt_stats stats = {};

    cudaError_t failed = cudaSuccess, last = cudaSuccess;
    char report[512] = "";
    const char *kernel = ""; /* that runs, or ran last */

    allocations memory, pinned;
    std::map<const void *, size_t> dynamic_limits; /* by kernel */

    CUstream_st legacy;
    std::set<CUstream_st *> streams;
    std::set<CUevent_st *> events;
    std::set<CUgraph_st *> graphs;
    std::set<CUgraphExec_st *> execs;
    uint64_t tickets = 0;

    simt::block block = {};
};
extern device machine;

/* A sentence for simt_report(). */
void device_report(device *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same, and the device has failed with `code`; the first failure stays. */
void device_fail(device *d, cudaError_t code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* 32 random bits. */
static inline uint32_t device_random(device *d)
{
    d->random ^= d->random << 13;
    d->random ^= d->random >> 7;
    d->random ^= d->random << 17;
    return (uint32_t)(d->random >> 32);
}

static inline uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* A call that releases something: f(device) under the lock, even when the device has failed. */
template <class F> static inline cudaError_t device_release(F f)
{
    std::lock_guard<std::mutex> guard(machine.lock);
    device *d = &machine;
    cudaError_t e = f(d);
    if (d->failed != cudaSuccess)
        e = d->failed;
    if (e != cudaSuccess)
        d->last = e;
    return e;
}

/* Every other call of the runtime API. */
template <class F> static inline cudaError_t device_call(F f)
{
    return device_release([&](device *d) { return d->failed != cudaSuccess ? d->failed : f(d); });
}

} // namespace simt

#endif
