/* Speed of the CPU ops next to the measured bounds of this machine, on the shapes of SmolLM2-135M (9 query heads, 3 KV
 * heads of 64, width 576, feed-forward 1536). Usage: bench_ops [isa [threads]]. Medians of repeated runs.
 *
 * Attention counts 2 * 2 * dim operations per query head and visible key; decode counts the bytes of keys and values.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/bound.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

enum { HEADS = 9, KV_HEADS = 3, DIM = 64, WIDTH = 576, FF = 1536, CTX = 8192, LAYERS = 30 };

struct bench {
    struct be *be;
    double read_gbs, dot[BOUND_DOT_N];
    float *q, *out, *k, *v, *norm;
    int32_t *pages;
    int n_pages;
};

static float *floats(size_t n)
{
    float *p = mem_map(n * sizeof(float));
    if (!p)
        exit(1);
    for (size_t i = 0; i < n; i++)
        p[i] = (float)((i * 2654435761u >> 7) % 2001) / 1000.0f - 1.0f;
    return p;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median nanoseconds of one call: at least 7 calls and 0.4 s. */
static double median_ns(void (*fn)(struct bench *, void *), struct bench *b, void *arg)
{
    static double t[20000];
    int n = 0;
    double sum = 0;
    fn(b, arg);
    while (n < 20000 && (n < 7 || sum < 4e8)) {
        uint64_t from = clock_ns();
        fn(b, arg);
        t[n] = (double)(clock_ns() - from);
        sum += t[n++];
    }
    qsort(t, (size_t)n, sizeof(t[0]), by_value);
    return t[n / 2];
}

/* ---- attention ------------------------------------------------------------------------------------------------- */

struct attend_case {
    enum kv_type type;
    int n_seqs, rows, depth; /* rows of each sequence, the last of them at position depth - 1 */
    int layers; /* caches walked one after the other, so that decode reads from memory */
    char *pool;
    size_t layer_bytes;
    struct be_seq seq[16];
};

static void run_attend(struct bench *b, void *arg)
{
    struct attend_case *c = arg;
    struct be_attend a = { .kv = { .type = c->type,
                                   .n_kv_heads = KV_HEADS,
                                   .head_dim = DIM,
                                   .n_seqs = c->n_seqs,
                                   .seqs = c->seq },
                           .q = b->q,
                           .out = b->out,
                           .n_heads = HEADS,
                           .scale = 0.125f };
    for (int l = 0; l < c->layers; l++) {
        a.kv.pool = c->pool + (size_t)l * c->layer_bytes;
        b->be->ops->attend(b->be, &a);
    }
}

static void open_cache(struct bench *b, struct attend_case *c)
{
    int pages = (c->depth + KV_PAGE - 1) / KV_PAGE;
    c->layer_bytes = (size_t)(c->n_seqs * pages * KV_HEADS) * kv_block_bytes(c->type, DIM);
    c->pool = b->be->ops->alloc(b->be, c->layer_bytes * (size_t)c->layers);
    if (!c->pool)
        exit(1);
    for (int i = 0; i < c->n_seqs; i++)
        c->seq[i] = (struct be_seq){ .n_rows = c->depth, .kv = { .wide = b->pages + i * pages } };
    for (int l = 0; l < c->layers; l++) {
        for (int i = 0; i < c->n_seqs; i++) {
            struct be_kv kv = { .pool = c->pool + (size_t)l * c->layer_bytes,
                                .type = c->type,
                                .n_kv_heads = KV_HEADS,
                                .head_dim = DIM,
                                .n_seqs = 1,
                                .seqs = &c->seq[i] };
            b->be->ops->kv_append(b->be, &kv, b->k, b->v);
        }
    }
    for (int i = 0; i < c->n_seqs; i++) {
        c->seq[i].row0 = i * c->rows;
        c->seq[i].n_rows = c->rows;
        c->seq[i].pos0 = c->depth - c->rows;
    }
}

static void bench_attend(struct bench *b, const char *what, enum kv_type type, int n_seqs, int rows,
                         int depth, int layers)
{
    struct attend_case c = {
        .type = type, .n_seqs = n_seqs, .rows = rows, .depth = depth, .layers = layers
    };
    open_cache(b, &c);
    double ns = median_ns(run_attend, b, &c) / layers;
    double keys = 0;
    for (int r = 0; r < rows; r++)
        keys += depth - rows + r + 1;
    double ops = keys * n_seqs * HEADS * DIM * 4;
    double bytes = (double)n_seqs * depth * KV_HEADS * DIM * 2 * (double)kv_elem_bytes(type);
    bool dp = type == KV_BF16 && b->be->isa == CPU_BF16;
    double peak = b->dot[dp ? BOUND_BF16 : BOUND_F32];
    printf(
        "attend %-9s %-4s %d x %4d rows, depth %4d: %9.1f us  %6.1f GFLOP/s %3.0f %%  %5.1f GB/s "
        "%3.0f %%\n",
        what, kv_type_name(type), n_seqs, rows, depth, ns / 1e3, ops / ns, 100 * ops / ns / peak,
        bytes / ns, 100 * bytes / ns / b->read_gbs);
    b->be->ops->free(b->be, c.pool, c.layer_bytes * (size_t)layers);
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static void run_norm(struct bench *b, void *arg)
{
    b->be->ops->rmsnorm(b->be, b->out, b->q, b->k, b->norm, *(int *)arg, WIDTH, 1e-5f);
}

static void run_swiglu(struct bench *b, void *arg)
{
    b->be->ops->swiglu(b->be, b->out, b->q, b->k, *(int *)arg, FF);
}

static void run_rope(struct bench *b, void *arg)
{
    b->be->ops->rope(b->be, b->out, b->k, b->v, NULL, 0, *(int *)arg, HEADS, DIM, DIM / 2, false);
}

static void run_append(struct bench *b, void *arg)
{
    struct be_seq seq = { .n_rows = *(int *)arg, .kv = { .wide = b->pages } };
    struct be_kv kv = { .pool = b->out,
                        .type = KV_BF16,
                        .n_kv_heads = KV_HEADS,
                        .head_dim = DIM,
                        .n_seqs = 1,
                        .seqs = &seq };
    b->be->ops->kv_append(b->be, &kv, b->k, b->v);
}

static void bench_rows(struct bench *b, const char *what, void (*fn)(struct bench *, void *), int n,
                       double bytes_a_row)
{
    double ns = median_ns(fn, b, &n);
    printf("%-16s %4d rows: %9.2f us  %6.1f GB/s\n", what, n, ns / 1e3, bytes_a_row * n / ns);
}

int main(int argc, char **argv)
{
    struct bench b = { 0 };
    struct err e;
    struct be_config c = { .isa = argc > 1 ? argv[1] : NULL,
                           .n_threads = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0 };
    if (be_open(&b.be, &c, &e) < 0) {
        printf("%s\n", e.text);
        return 1;
    }
    b.q = floats((size_t)CTX * WIDTH);
    b.k = floats((size_t)CTX * WIDTH);
    b.v = floats((size_t)CTX * WIDTH);
    b.out = floats((size_t)CTX * WIDTH);
    b.norm = floats(WIDTH);
    b.n_pages = 8 * CTX / KV_PAGE;
    b.pages = mem_alloc((size_t)b.n_pages * sizeof(int32_t));
    for (int i = 0; b.pages && i < b.n_pages; i++)
        b.pages[i] = i;
    b.read_gbs = bound_read_gbs(b.be);
    for (int i = 0; i < BOUND_DOT_N; i++)
        b.dot[i] = bound_dot_gops(b.be, i);
    printf("%s, %d threads: read %.1f GB/s, f32 %.0f, bf16 %.0f GFLOP/s, int8 %.0f GOP/s\n",
           cpu_isa_name(b.be->isa), par_threads(b.be->par), b.read_gbs, b.dot[BOUND_F32],
           b.dot[BOUND_BF16], b.dot[BOUND_I8]);
    static const enum kv_type types[] = { KV_BF16, KV_F16, KV_F32 };
    for (int i = 0; i < 3; i++) {
        bench_attend(&b, "prefill", types[i], 1, 512, 512, 1);
        bench_attend(&b, "prefill", types[i], 1, 512, CTX, 1);
        bench_attend(&b, "decode", types[i], 1, 1, 256, LAYERS);
        bench_attend(&b, "decode", types[i], 1, 1, 4096, LAYERS);
        bench_attend(&b, "decode", types[i], 8, 1, 512, LAYERS);
    }
    bench_attend(&b, "whole", KV_BF16, 1, CTX, CTX, 1);
    for (int n = 1; n <= 512; n *= 512) {
        bench_rows(&b, "rmsnorm + add", run_norm, n, WIDTH * 16);
        bench_rows(&b, "swiglu", run_swiglu, n, FF * 12);
        bench_rows(&b, "rope", run_rope, n, WIDTH * 12);
        bench_rows(&b, "kv_append bf16", run_append, n, KV_HEADS * DIM * 12);
    }
    be_close(b.be);
    return 0;
}
