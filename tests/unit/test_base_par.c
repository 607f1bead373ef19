/* The worker pool: every item exactly once, whatever the grain; clean shutdown; what a loop costs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "server/base/clock.h"
#include "server/base/machine.h"
#include "server/base/mem.h"
#include "server/base/par.h"
#include "tests/tools/scratch.h"

enum { MAX_ITEMS = 1000 };

struct seen {
    int item[MAX_ITEMS]; /* not atomic: a range belongs to one thread, and TSan checks it */
    int n_items, grain, n_threads;
    _Atomic int bad;
};

static void mark(void *arg, int first, int last, int i_thread)
{
    struct seen *s = arg;
    bool ok = first >= 0 && first < last && last <= s->n_items && i_thread >= 0 &&
              i_thread < s->n_threads && (s->grain == 0 || last - first <= s->grain);
    if (!ok) {
        atomic_fetch_add(&s->bad, 1);
        return;
    }
    for (int i = first; i < last; i++)
        s->item[i]++;
}

static void test_covers(void **state)
{
    (void)state;
    static struct seen s;
    for (int t = 1; t <= 5; t++) {
        struct par *p;
        assert_int_equal(par_open(&p, t, NULL), 0);
        assert_int_equal(par_threads(p), t);
        for (int n = 0; n <= 130; n++)
            for (int grain = 0; grain <= 9; grain += 3) {
                memset(&s, 0, sizeof s);
                s.n_items = n;
                s.grain = grain;
                s.n_threads = t;
                par_for(p, n, grain, mark, &s);
                assert_int_equal(s.bad, 0);
                for (int i = 0; i < n; i++)
                    assert_int_equal(s.item[i], 1);
            }
        par_close(p);
    }
}

static void add_count(void *arg, int first, int last, int i_thread)
{
    (void)i_thread;
    atomic_fetch_add((_Atomic int64_t *)arg, last - first);
}

static void test_extreme_sizes(void **state)
{
    (void)state;
    static const int grain[] = { 0, INT_MAX, INT_MAX - 1, INT_MAX / 2, 1 << 24 };
    for (int t = 1; t <= 3; t++) {
        struct par *p;
        assert_int_equal(par_open(&p, t, NULL), 0);
        for (int i = 0; i < 5; i++) {
            _Atomic int64_t sum = 0;
            par_for(p, INT_MAX, grain[i], add_count, &sum);
            assert_true(sum == INT_MAX);
        }
        par_for(p, 0, 1, NULL, NULL);
        par_for(p, -3, 1, NULL, NULL);
        par_close(p);
    }
}

/* A chain of loops, each reading what the other threads wrote in the one before. */
struct chain {
    int a[64], b[64];
};

static void step(void *arg, int first, int last, int i_thread)
{
    (void)i_thread;
    struct chain *c = arg;
    for (int i = first; i < last; i++)
        c->b[i] = c->a[(i + 17) % 64] + 1;
}

static void test_loops_follow_each_other(void **state)
{
    (void)state;
    static struct chain c;
    struct par *p;
    assert_int_equal(par_open(&p, 4, NULL), 0);
    memset(&c, 0, sizeof c);
    for (int i = 0; i < 2000; i++) {
        par_for(p, 64, 5, step, &c);
        memcpy(c.a, c.b, sizeof c.a);
    }
    for (int i = 0; i < 64; i++)
        assert_int_equal(c.a[i], 2000);
    par_close(p);
}

static void test_sleepers_wake(void **state)
{
    (void)state;
    struct par *p;
    assert_int_equal(par_open(&p, 3, NULL), 0);
    for (int i = 0; i < 50; i++) {
        _Atomic int64_t sum = 0;
        uint64_t end = clock_ns() + 500000; /* long enough for workers to fall asleep */
        while (clock_ns() < end)
            ;
        par_for(p, 300, 1, add_count, &sum);
        assert_true(sum == 300);
    }
    par_close(p);
    par_close(NULL);
}

static void *second_engine(void *arg)
{
    struct par *p = NULL;
    if (par_open(&p, 4, NULL) < 0)
        return NULL;
    for (int i = 0; i < 300; i++) {
        _Atomic int64_t sum = 0;
        par_for(p, 64, 1, add_count, &sum);
        atomic_fetch_add((_Atomic int64_t *)arg, sum);
    }
    par_close(p);
    return NULL;
}

/* More threads than CPUs, and two pools: nobody waits for ever. */
static void test_two_engines(void **state)
{
    (void)state;
    _Atomic int64_t sum = 0;
    pthread_t t[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&t[i], NULL, second_engine, &sum), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    assert_true(sum == 2 * 300 * 64);
}

static void test_open_fails(void **state)
{
    (void)state;
    struct par *p = NULL;
    struct mem_stats was;
    struct mem_stats now;
    mem_stats(&was);
    mem_fail_at(1);
    assert_int_equal(par_open(&p, 2, NULL), ERR_NOMEM);
    mem_fail_at(0);
    mem_stats(&now);
    assert_int_equal(now.blocks, was.blocks);
}

static void test_auto_honours_affinity(void **state)
{
    (void)state;
    cpu_set_t old;
    cpu_set_t one;
    struct par *p;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &old))
            CPU_SET(i, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    int rc = par_open(&p, 0, NULL);
    sched_setaffinity(0, sizeof old, &old);
    assert_int_equal(rc, 0);
    assert_int_equal(par_threads(p), 1);
    par_close(p);
    assert_int_equal(par_open(&p, 0, NULL), 0);
    assert_in_range(par_threads(p), 1, CPU_COUNT(&old));
    par_close(p);
}

static void nothing(void *arg, int first, int last, int i_thread)
{
    (void)arg;
    (void)first;
    (void)last;
    (void)i_thread;
}

static void write_limit(const char *name, const char *text)
{
    assert_int_equal(file_write_atomic(in_root(name), text, strlen(text), NULL), 0);
}

/* A cgroup's limits count where they are smaller than what there is; "max", nonsense and no file at all are none. */
static void test_machine(void **state)
{
    (void)state;
    int64_t all = machine_memory(root);
    int cpus = machine_cpus(root);
    assert_true(all > 0 && cpus > 0);
    assert_int_equal(mkdir(in_root("memory"), 0700), 0);
    write_limit("memory/memory.limit_in_bytes", "9223372036854771712\n"); /* version 1: none */
    write_limit("memory.max", "max\n");
    write_limit("cpu.max", "max 100000\n");
    assert_int_equal(machine_memory(root), all);
    assert_int_equal(machine_cpus(root), cpus);
    write_limit("memory.max", "");
    write_limit("cpu.max", "100000\n");
    assert_int_equal(machine_memory(root), all);
    assert_int_equal(machine_cpus(root), cpus);
    write_limit("memory/memory.limit_in_bytes", "8192\n");
    assert_int_equal(machine_memory(root), 8192);
    write_limit("memory.max", "4096\n");
    write_limit("cpu.max", "1000 100000\n");
    assert_int_equal(machine_memory(root), 4096);
    assert_int_equal(machine_cpus(root), 1);
}

/* Allocates nothing; the cost of a hot loop is printed, not asserted: the machine may be busy. */
static void test_dispatch(void **state)
{
    (void)state;
    struct par *p;
    struct mem_stats was;
    struct mem_stats now;
    assert_int_equal(par_open(&p, 2, NULL), 0);
    par_for(p, 2, 1, nothing, NULL);
    mem_stats(&was);
    uint64_t best = UINT64_MAX;
    for (int k = 0; k < 20; k++) {
        uint64_t start = clock_ns();
        for (int i = 0; i < 500; i++)
            par_for(p, 2, 1, nothing, NULL);
        uint64_t ns = (clock_ns() - start) / 500;
        best = ns < best ? ns : best;
    }
    mem_stats(&now);
    assert_int_equal(now.calls, was.calls);
    printf("par_for, 2 threads, hot: %llu ns\n", (unsigned long long)best);
    par_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_covers),
        cmocka_unit_test(test_extreme_sizes),
        cmocka_unit_test(test_loops_follow_each_other),
        cmocka_unit_test(test_sleepers_wake),
        cmocka_unit_test(test_two_engines),
        cmocka_unit_test(test_open_fails),
        cmocka_unit_test(test_auto_honours_affinity),
        cmocka_unit_test_setup_teardown(test_machine, scratch_open, scratch_close),
        cmocka_unit_test(test_dispatch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
