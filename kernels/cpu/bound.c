/* Measuring the bounds of this machine. */
#include "kernels/cpu/bound.h"

#include <string.h>

#include "server/base/clock.h"
#include "server/base/mem.h"

enum { PASSES = 9, READ_BYTES = 512 << 20, CHUNK = 1 << 20 };

struct read_pass {
    const uint64_t *p;
    uint64_t sum[256];
};

static void touch_chunks(void *arg, int first, int last, int i_thread)
{
    (void)i_thread;
    memset((char *)arg + (size_t)first * CHUNK, 1, (size_t)(last - first) * CHUNK);
}

static void read_chunks(void *arg, int first, int last, int i_thread)
{
    struct read_pass *t = arg;
    const size_t n = CHUNK / sizeof(uint64_t);
    const uint64_t *p = t->p + (size_t)first * n, *end = t->p + (size_t)last * n;
    uint64_t s[16] = { 0 };
    for (; p < end; p += 16)
        for (int i = 0; i < 16; i++)
            s[i] += p[i];
    for (int i = 1; i < 16; i++)
        s[0] += s[i];
    t->sum[i_thread % 256] += s[0];
}

double bound_read_gbs(struct be *be)
{
    void *p = mem_map(READ_BYTES);
    if (!p)
        return 0;
    struct read_pass t = { .p = p };
    par_for(be->par, READ_BYTES / CHUNK, 1, touch_chunks, p);
    uint64_t ns[PASSES];
    for (int i = 0; i < PASSES; i++) {
        uint64_t from = clock_ns();
        par_for(be->par, READ_BYTES / CHUNK, 1, read_chunks, &t);
        ns[i] = clock_ns() - from + 1;
        for (int j = i; j > 0 && ns[j] < ns[j - 1]; j--) {
            uint64_t swap = ns[j];
            ns[j] = ns[j - 1];
            ns[j - 1] = swap;
        }
    }
    mem_unmap(p, READ_BYTES);
    return (double)READ_BYTES / (double)ns[PASSES / 2];
}

/* ---- arithmetic ------------------------------------------------------------------------------------------------ */

double bound_loop_ref(enum bound_dot kind, long rounds)
{
    float sum[10] = { 0 };
    volatile float one = kind == BOUND_F32 ? 1.0f : 0.5f, sink;
    float x = one;
    for (long i = 0; i < rounds; i++)
        for (int j = 0; j < 10; j++)
            sum[j] += x * (float)j;
    for (int j = 0; j < 10; j++)
        sink = sum[j];
    (void)sink;
    return (double)rounds * 10 * 2;
}

struct dot_pass {
    double (*loop)(enum bound_dot kind, long rounds);
    enum bound_dot kind;
    double ops[256];
};

static void run_loop(void *arg, int first, int last, int i_thread)
{
    struct dot_pass *t = arg;
    for (int i = first; i < last; i++)
        t->ops[i_thread % 256] += t->loop(t->kind, 200000);
}

double bound_dot_gops(struct be *be, enum bound_dot kind)
{
    double (*const loop[CPU_ISA_N])(enum bound_dot, long) = { bound_loop_ref, bound_loop_avx2,
                                                              bound_loop_avx512, bound_loop_bf16 };
    double best = 0;
    int n = par_threads(be->par);
    for (int i = 0; i < PASSES * 2; i++) {
        struct dot_pass t = { .loop = loop[be->isa], .kind = kind };
        uint64_t from = clock_ns();
        par_for(be->par, n * 8, 1, run_loop, &t);
        double ns = (double)(clock_ns() - from + 1), ops = 0;
        for (int j = 0; j < 256; j++)
            ops += t.ops[j];
        best = ops / ns > best ? ops / ns : best;
    }
    return best;
}
