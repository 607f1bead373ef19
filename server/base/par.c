/* One loop at a time. The caller opens the gate, raises `epoch`, and everyone takes ranges from one counter; when they
 * are used up the caller shuts the gate and waits for those still inside.
 *
 * A worker takes part in a loop only by passing the open gate, so a worker that has no CPU just now holds nobody up:
 * the others do its share. The loop's description is read only inside, and the caller rewrites it only when the gate is
 * shut and nobody is inside.
 *
 * A worker that waits spins first, because in a decode step the next loop is microseconds away, and then sleeps on a
 * futex. The spin is short so that a second engine on the same CPUs gets them.
 */
#include "server/base/par.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "server/base/clock.h"
#include "server/base/machine.h"
#include "server/base/mem.h"

/* A worker woken only to find the gate shut is likely to share its CPU with the caller: it spins for MISSED_NS. */
enum { PAR_MAX = 256, SPIN_NS = 40000, MISSED_NS = 5000 };
static const uint32_t OPEN = 1u << 31;

struct worker {
    struct par *p;
    int i;
    pthread_t thread;
};

struct par {
    void *block; /* what was allocated: the struct sits on a cache line inside it */
    int n_threads;
    /* the loop */
    par_fn *fn;
    void *arg;
    int n_items, grain;
    _Alignas(64) _Atomic uint32_t epoch; /* futex: workers sleep on it */
    _Atomic int sleeping;
    _Alignas(64) _Atomic uint64_t
        next; /* first item not yet taken; wide, as every thread may overshoot */
    /* OPEN and the number of workers inside; futex: the caller sleeps on it */
    _Alignas(64) _Atomic uint32_t gate;
    _Atomic int caller_sleeps;
    _Atomic bool stop;
    struct worker worker[PAR_MAX];
};

static void futex_wait(_Atomic uint32_t *at, uint32_t value)
{
    syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *at, int n)
{
    syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Spins until *at differs from value or some time has passed; true when it differs. */
static bool spin_while(_Atomic uint32_t *at, uint32_t value, unsigned spin_ns)
{
    uint64_t end = 0;
    for (unsigned i = 1;; i++) {
        if (atomic_load_explicit(at, memory_order_acquire) != value)
            return true;
        pause_cpu();
        if (i % 64 != 0)
            continue;
        uint64_t now = clock_ns();
        if (end == 0)
            end = now + spin_ns;
        else if (now > end)
            return false;
    }
}

static void run_ranges(struct par *p, int i_thread)
{
    uint64_t n = (uint64_t)p->n_items;
    uint64_t grain = (uint64_t)p->grain;
    for (;;) {
        uint64_t first = atomic_fetch_add_explicit(&p->next, grain, memory_order_relaxed);
        if (first >= n)
            return;
        uint64_t last = n - first < grain ? n : first + grain;
        p->fn(p->arg, (int)first, (int)last, i_thread);
    }
}

/* Waits for an epoch other than the one seen last; true when it had to sleep for it. */
static bool next_epoch(struct par *p, uint32_t *seen, unsigned spin_ns)
{
    bool slept = false;
    while (!spin_while(&p->epoch, *seen, slept ? 0 : spin_ns)) {
        atomic_fetch_add(&p->sleeping, 1);
        futex_wait(&p->epoch, *seen);
        atomic_fetch_sub(&p->sleeping, 1);
        slept = true;
    }
    *seen = atomic_load_explicit(&p->epoch, memory_order_acquire);
    return slept;
}

static bool enter(struct par *p)
{
    uint32_t g = atomic_load_explicit(&p->gate, memory_order_relaxed);
    while (g & OPEN)
        if (atomic_compare_exchange_weak(&p->gate, &g, g + 1))
            return true;
    return false;
}

static void leave(struct par *p)
{
    if (atomic_fetch_sub(&p->gate, 1) == 1 && atomic_load(&p->caller_sleeps))
        futex_wake(&p->gate, 1);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    struct par *p = w->p;
    uint32_t seen = 0;
    unsigned spin_ns = SPIN_NS;
    for (;;) {
        bool slept = next_epoch(p, &seen, spin_ns);
        if (atomic_load(&p->stop))
            return NULL;
        spin_ns = slept ? MISSED_NS : SPIN_NS;
        if (enter(p)) {
            run_ranges(p, w->i);
            leave(p);
            spin_ns = SPIN_NS;
        }
    }
}

static void publish(struct par *p)
{
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->sleeping) > 0)
        futex_wake(&p->epoch, PAR_MAX);
}

static void shut(struct par *p)
{
    atomic_fetch_and(&p->gate, ~OPEN);
    uint32_t inside;
    while ((inside = atomic_load_explicit(&p->gate, memory_order_acquire)) != 0) {
        if (spin_while(&p->gate, inside, SPIN_NS))
            continue;
        atomic_store(&p->caller_sleeps, 1);
        inside = atomic_load(&p->gate);
        if (inside != 0)
            futex_wait(&p->gate, inside);
        atomic_store(&p->caller_sleeps, 0);
    }
}

void par_for(struct par *p, int n_items, int grain, par_fn *fn, void *arg)
{
    if (n_items <= 0)
        return;
    if (grain <= 0)
        grain = n_items / p->n_threads + (n_items % p->n_threads != 0);
    if (p->n_threads == 1 || n_items <= grain) {
        for (int i = 0; i < n_items;) {
            int last = n_items - i < grain ? n_items : i + grain;
            fn(arg, i, last, 0);
            i = last;
        }
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n_items = n_items;
    p->grain = grain;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->gate, OPEN, memory_order_release);
    publish(p);
    run_ranges(p, 0);
    shut(p);
}

int par_open(struct par **out, int n_threads, struct err *e)
{
    int n = n_threads > 0 ? n_threads : machine_cpus(NULL);
    n = n > PAR_MAX ? PAR_MAX : n;
    char *raw = mem_zalloc(1, sizeof(struct par) + 64);
    if (raw == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the worker pool");
    struct par *p = (struct par *)(void *)(raw + (64 - (uintptr_t)raw % 64) % 64);
    p->block = raw;
    p->n_threads = 1;
    for (int i = 1; i < n; i++) {
        struct worker *w = &p->worker[i];
        *w = (struct worker){ .p = p, .i = i };
        int rc = pthread_create(&w->thread, NULL, work, w);
        if (rc != 0) {
            errno = rc;
            err_errno(e, ERR_NOMEM, "cannot start worker thread %d of %d", i, n);
            par_close(p);
            return ERR_NOMEM;
        }
        p->n_threads = i + 1;
    }
    *out = p;
    return 0;
}

void par_close(struct par *p)
{
    if (p == NULL)
        return;
    atomic_store(&p->stop, true);
    publish(p);
    for (int i = 1; i < p->n_threads; i++)
        pthread_join(p->worker[i].thread, NULL);
    mem_free(p->block);
}

int par_threads(const struct par *p)
{
    return p->n_threads;
}
