/* Speed of probing one KV head on one thread, next to the measured bound: SmolLM2-135M (dim 64, 3 query heads a group) at
 * 8192 tokens, 160 reference positions. Usage: bench_probe [isa]. Medians of repeated runs.
 *
 * attend counts 4 * dim operations per query and visible slot, sums 2 * dim.
 */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/bound.h"
#include "kernels/probe.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

enum { DIM = 64, QUERIES = 3 * 160, SLOTS = 8192, BLOCKS = SLOTS / KV_PAGE, RUNS = 31 };

struct bench {
    struct be *be;
    struct probe_head h;
    struct probe_queries q;
    float *o, *lse, *weight, *sum, *square;
    void *scratch;
};

static void *room(size_t bytes)
{
    void *p = mem_map(bytes);
    if (!p)
        exit(1);
    return p;
}

static float *floats(size_t n)
{
    float *p = room(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        p[i] = (float)((i * 2654435761u >> 7) % 2001) / 1000.0f - 1.0f;
    return p;
}

static void run_attend(struct bench *b)
{
    probe_attend(b->be->isa, &b->h, &b->q, b->o, b->lse, b->scratch);
}

static void run_sums(struct bench *b)
{
    probe_sums(b->be->isa, &b->h, &b->q, b->lse, b->weight, b->sum, b->square, b->scratch);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(struct bench *b, const char *what, void (*fn)(struct bench *), double ops,
                   double peak)
{
    double t[RUNS];
    fn(b);
    for (int i = 0; i < RUNS; i++) {
        uint64_t from = clock_ns();
        fn(b);
        t[i] = (double)(clock_ns() - from);
    }
    qsort(t, RUNS, sizeof(t[0]), by_value);
    double pairs = 0, ns = t[RUNS / 2];
    for (int i = 0; i < b->q.n; i++)
        pairs += b->q.see ? b->q.see[i] : SLOTS;
    printf("%-4s %-6s %-6s: %7.2f ms a head  %6.1f GFLOP/s %3.0f %%\n", kv_type_name(b->h.type),
           b->q.see ? "causal" : "all", what, ns / 1e6, pairs * DIM * ops / ns,
           100 * pairs * DIM * ops / ns / peak);
}

int main(int argc, char **argv)
{
    struct bench b = { 0 };
    struct err e;
    struct be_config c = { .isa = argc > 1 ? argv[1] : NULL, .n_threads = 1 };
    if (be_open(&b.be, &c, &e) < 0) {
        printf("%s\n", e.text);
        return 1;
    }
    double f32 = bound_dot_gops(b.be, BOUND_F32), bf16 = bound_dot_gops(b.be, BOUND_BF16);
    printf("%s, 1 thread: f32 %.0f, bf16 %.0f GFLOP/s\n", cpu_isa_name(b.be->isa), f32, bf16);
    static int32_t wide[BLOCKS], see[QUERIES];
    float *k = floats(KV_PAGE * DIM), *v = floats(KV_PAGE * DIM);
    char *pool = room(BLOCKS * kv_block_bytes(KV_F32, DIM));
    b.q.q = floats(QUERIES * DIM);
    b.o = floats(QUERIES * DIM);
    b.lse = floats(QUERIES);
    b.weight = floats(QUERIES);
    b.sum = floats(SLOTS);
    b.square = floats(SLOTS);
    b.scratch = room(probe_scratch_bytes(DIM));
    b.q.n = QUERIES;
    for (int i = 0; i < QUERIES; i++)
        see[i] = (i / 3 + 1) * SLOTS * 3 / QUERIES;
    for (int type = 0; type < KV_TYPE_N; type++) {
        for (int i = 0; i < BLOCKS; i++) {
            wide[i] = i;
            probe_write(pool + (size_t)i * kv_block_bytes(type, DIM), type, DIM, k, v, KV_PAGE);
        }
        b.h = (struct probe_head){
            .pool = pool, .type = type, .dim = DIM, .wide = wide, .n_wide = SLOTS, .scale = 0.125f
        };
        double peak = b.be->isa == CPU_BF16 && type == KV_BF16 ? bf16 : f32;
        for (int causal = 0; causal < 2; causal++) {
            b.q.see = causal ? see : NULL;
            report(&b, "attend", run_attend, 4, peak);
            report(&b, "sums", run_sums, 2, peak);
        }
    }
    be_close(b.be);
    return 0;
}
