/* What the threads of a block do together: where am I, barriers, warps, atomics, shared memory.
 *
 * A function that can fault takes the place it was called from as its last two arguments, which the compiler fills in.
 * A fault ends the launch: the function does not return (tests/simt/README.md).
 */
#ifndef WRING_TESTS_SIMT_DEVICE_CUH
#define WRING_TESTS_SIMT_DEVICE_CUH

#include <string.h>
#include <type_traits>

#include <simt_host.cuh>
#include <simt_types.cuh>

#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* ---- where am I ------------------------------------------------------------------------------------------------ */

struct simt_position {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern simt_position simt_at; /* of the thread that runs now */

#define threadIdx (simt_at.thread)
#define blockIdx  (simt_at.block)
#define blockDim  (simt_at.block_size)
#define gridDim   (simt_at.grid_size)

static const int warpSize = 32;

/* ---- faults ---------------------------------------------------------------------------------------------------- */

/* Ends the launch with `code`, which stays; the rest is a sentence for simt_report(). */
[[noreturn]] void simt_fault(cudaError_t code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static inline void simt_check_aligned(const void *p, size_t alignment, const char *what,
                                      const char *file, int line)
{
    if ((uintptr_t)p % alignment != 0)
        simt_fault(cudaErrorMisalignedAddress, file, line, "%s: %p is not aligned to %zu", what, p,
                   alignment);
}

static inline void __trap(SIMT_SITE)
{
    simt_fault(cudaErrorLaunchFailure, file, line, "__trap");
}

/* ---- waiting for each other ------------------------------------------------------------------------------------ */

enum simt_op : int {
    SIMT_BARRIER,
    SIMT_BARRIER_AND,
    SIMT_BARRIER_OR,
    SIMT_BARRIER_COUNT,
    SIMT_WARP, /* from here on: of a warp */
    SIMT_SHFL,
    SIMT_SHFL_UP,
    SIMT_SHFL_DOWN,
    SIMT_SHFL_XOR,
    SIMT_BALLOT,
    SIMT_ANY,
    SIMT_ALL,
    SIMT_MATCH_ANY,
    SIMT_ADD,
    SIMT_MIN_S,
    SIMT_MIN_U,
    SIMT_MAX_S,
    SIMT_MAX_U,
    SIMT_AND,
    SIMT_OR,
    SIMT_XOR,
    SIMT_MMA_BF16,
    SIMT_MMA_F16,
    SIMT_MMA_S8,
    SIMT_LDMATRIX,
    SIMT_LDMATRIX_TRANS,
    SIMT_WGMMA_BF16
};

/* One thread's part of something that threads do together. It lies on that thread's stack while it waits; the thread
 * that comes last does the work for all of them. */
struct simt_request {
    simt_op op;
    const char *file;
    int line;
    uint32_t mask;  /* lanes that take part, for a warp's */
    uint64_t value; /* what this thread brings: bits of a number, or a pointer to operands */
    uint32_t lane;  /* of a shuffle: the lane, or the distance */
    int width;
    uint64_t result;
};

/* Both return the result once all have come. */
int simt_barrier(simt_op op, int predicate, const char *file, int line);
uint64_t simt_collect(simt_request *r);

static inline uint64_t simt_collect(simt_op op, uint32_t mask, uint64_t value, const char *file,
                                    int line)
{
    simt_request r = { op, file, line, mask, value, 0, warpSize, 0 };
    return simt_collect(&r);
}

static inline void __syncthreads(SIMT_SITE)
{
    simt_barrier(SIMT_BARRIER, 0, file, line);
}

static inline int __syncthreads_and(int predicate, SIMT_SITE)
{
    return simt_barrier(SIMT_BARRIER_AND, predicate, file, line);
}

static inline int __syncthreads_or(int predicate, SIMT_SITE)
{
    return simt_barrier(SIMT_BARRIER_OR, predicate, file, line);
}

static inline int __syncthreads_count(int predicate, SIMT_SITE)
{
    return simt_barrier(SIMT_BARRIER_COUNT, predicate, file, line);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE)
{
    simt_collect(SIMT_WARP, mask, 0, file, line);
}

/* Lanes that happen to run together: any set with the own lane is one a GPU may give. */
unsigned __activemask();

static inline void __threadfence()
{
    __asm__ volatile("" ::: "memory");
}

static inline void __threadfence_block()
{
    __asm__ volatile("" ::: "memory");
}

/* ---- shuffles, votes, reductions of a warp --------------------------------------------------------------------- */

template <class T>
static inline T simt_shuffle(simt_op op, unsigned mask, T v, unsigned lane, int width,
                             const char *file, int line)
{
    static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                  "a shuffle takes numbers of 4 or 8 bytes");
    simt_request r = { op, file, line, mask, 0, lane, width, 0 };
    memcpy(&r.value, &v, sizeof v);
    uint64_t got = simt_collect(&r);
    memcpy(&v, &got, sizeof v);
    return v;
}

template <class T>
static inline T __shfl_sync(unsigned mask, T v, int lane, int width = warpSize, SIMT_SITE)
{
    return simt_shuffle(SIMT_SHFL, mask, v, (unsigned)lane, width, file, line);
}

template <class T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = warpSize, SIMT_SITE)
{
    return simt_shuffle(SIMT_SHFL_UP, mask, v, by, width, file, line);
}

template <class T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = warpSize, SIMT_SITE)
{
    return simt_shuffle(SIMT_SHFL_DOWN, mask, v, by, width, file, line);
}

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = warpSize, SIMT_SITE)
{
    return simt_shuffle(SIMT_SHFL_XOR, mask, v, (unsigned)bits, width, file, line);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE)
{
    return (unsigned)simt_collect(SIMT_BALLOT, mask, predicate != 0, file, line);
}

static inline int __any_sync(unsigned mask, int predicate, SIMT_SITE)
{
    return (int)simt_collect(SIMT_ANY, mask, predicate != 0, file, line);
}

static inline int __all_sync(unsigned mask, int predicate, SIMT_SITE)
{
    return (int)simt_collect(SIMT_ALL, mask, predicate != 0, file, line);
}

template <class T> static inline unsigned __match_any_sync(unsigned mask, T v, SIMT_SITE)
{
    static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                  "__match_any_sync takes numbers of 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    return (unsigned)simt_collect(SIMT_MATCH_ANY, mask, bits, file, line);
}

#define SIMT_REDUCE(name, type, op)                                                                \
    static inline type name(unsigned mask, type v, SIMT_SITE)                                      \
    {                                                                                              \
        return (type)simt_collect(op, mask, (uint32_t)v, file, line);                              \
    }
SIMT_REDUCE(__reduce_add_sync, unsigned, SIMT_ADD)
SIMT_REDUCE(__reduce_add_sync, int, SIMT_ADD)
SIMT_REDUCE(__reduce_min_sync, unsigned, SIMT_MIN_U)
SIMT_REDUCE(__reduce_min_sync, int, SIMT_MIN_S)
SIMT_REDUCE(__reduce_max_sync, unsigned, SIMT_MAX_U)
SIMT_REDUCE(__reduce_max_sync, int, SIMT_MAX_S)
SIMT_REDUCE(__reduce_and_sync, unsigned, SIMT_AND)
SIMT_REDUCE(__reduce_or_sync, unsigned, SIMT_OR)
SIMT_REDUCE(__reduce_xor_sync, unsigned, SIMT_XOR)
#undef SIMT_REDUCE

/* ---- atomics: threads give way only where they wait, so that plain C++ is atomic ------------------------------- */

/* SIMT_ATOMIC(name, type, e): sets *p to e, written with `old` and `v`, and gives the old value. */
#define SIMT_ATOMIC(name, type, e)                                                                 \
    static inline type name(type *p, type v, SIMT_SITE)                                            \
    {                                                                                              \
        simt_check_aligned(p, sizeof *p, #name, file, line);                                       \
        type old = *p;                                                                             \
        *p = e;                                                                                    \
        return old;                                                                                \
    }
#define SIMT_ATOMICS(type)                                                                         \
    SIMT_ATOMIC(atomicMin, type, old < v ? old : v)                                                \
    SIMT_ATOMIC(atomicMax, type, old > v ? old : v)                                                \
    SIMT_ATOMIC(atomicExch, type, ((void)old, v))                                                  \
    SIMT_ATOMIC(atomicAnd, type, old &v)                                                           \
    SIMT_ATOMIC(atomicOr, type, old | v)                                                           \
    SIMT_ATOMIC(atomicXor, type, old ^ v)                                                          \
    static inline type atomicCAS(type *p, type expected, type v, SIMT_SITE)                        \
    {                                                                                              \
        simt_check_aligned(p, sizeof *p, "atomicCAS", file, line);                                 \
        type old = *p;                                                                             \
        *p = old == expected ? v : old;                                                            \
        return old;                                                                                \
    }
SIMT_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)v))
SIMT_ATOMIC(atomicAdd, unsigned, old + v)
SIMT_ATOMIC(atomicAdd, unsigned long long, old + v)
SIMT_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)v))
SIMT_ATOMIC(atomicSub, unsigned, old - v)
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned)
SIMT_ATOMICS(unsigned long long)
#undef SIMT_ATOMIC
#undef SIMT_ATOMICS

/* ---- loads and stores with a cache hint ------------------------------------------------------------------------ */

#define SIMT_LOAD(name)                                                                            \
    template <class T> static inline T name(const T *p, SIMT_SITE)                                 \
    {                                                                                              \
        simt_check_aligned(p, alignof(T), #name, file, line);                                      \
        return *p;                                                                                 \
    }
#define SIMT_STORE(name)                                                                           \
    template <class T> static inline void name(T *p, T v, SIMT_SITE)                               \
    {                                                                                              \
        simt_check_aligned(p, alignof(T), #name, file, line);                                      \
        *p = v;                                                                                    \
    }
SIMT_LOAD(__ldg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldcs)
SIMT_LOAD(__ldlu)
SIMT_LOAD(__ldcv)
SIMT_STORE(__stwb)
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
SIMT_STORE(__stwt)
#undef SIMT_LOAD
#undef SIMT_STORE

/* ---- shared memory --------------------------------------------------------------------------------------------- */

/* A CU_SHARED in a kernel: one object for each place in the source (and each instance of a template). */
struct simt_shared_site {
    const char *name, *file;
    int line;
    size_t size; /* bytes */
};

/* The block's array of that place; the first thread to come makes it, poisoned, between guard bytes. */
void *simt_shared(const simt_shared_site *site);

/* The bytes that the launch asked for; the size in `site` is ignored. */
void *simt_dynamic(const simt_shared_site *site);

#define CU_SHARED(type, name, count)                                                               \
    static constexpr simt_shared_site name##_site = { #name, __FILE__, __LINE__,                   \
                                                      sizeof(type) * (count) };                    \
    type *const name = (type *)simt_shared(&name##_site)
#define CU_DYNAMIC(type, name)                                                                     \
    static constexpr simt_shared_site name##_site = { #name, __FILE__, __LINE__, 0 };              \
    type *const name = (type *)simt_dynamic(&name##_site)

#endif
