/* Speed of the products of every codec next to the measured bounds of this machine. Usage:
 * bench_codec [isa [threads [form]]], form being what weight_form() says ("q4m", ...). Medians of repeated runs.
 *
 * First all matrices of a model, in the order of a forward pass, each layer with its own weights (so they come from memory
 * where the model is larger than the caches), rows tokens at a time; then single shapes with weights that are in no cache.
 * Forms that wring quantize makes are filled with random codes; their models have a q8 head, as there.
 * Operations: two per weight and row. Bytes: the weights once.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cpu/bound.h"
#include "quant/codec.h"
#include "server/base/clock.h"
#include "server/base/mem.h"

enum { ROWS_MAX = 512, COLS_MAX = 5632, PRODUCTS = 512 };
#define BY_NAME DTYPE_N

struct form {
    const char *name;
    enum dtype from; /* BY_NAME: made as `name`, of random codes */
    bool int8;
    enum bound_dot dot;
};

/* "q4m/f32" is the same weight with inputs that are not rounded to int8. */
static const struct form forms[] = {
    { "q4", DT_Q4_0, true, BOUND_I8 },       { "q4m", DT_Q4_1, true, BOUND_I8 },
    { "q8", DT_Q8_0, true, BOUND_I8 },       { "q4m/f32", DT_Q4_1, false, BOUND_F32 },
    { "q8/f32", DT_Q8_0, false, BOUND_F32 }, { "f32", DT_F32, false, BOUND_F32 },
    { "f16", DT_F16, false, BOUND_F32 },     { "bf16", DT_BF16, false, BOUND_F32 },
    { "trellis2", BY_NAME, true, BOUND_I8 }, { "trellis3", BY_NAME, true, BOUND_I8 },
    { "trellis4", BY_NAME, true, BOUND_I8 }, { "planes2", BY_NAME, true, BOUND_I8 },
    { "planes3", BY_NAME, true, BOUND_I8 },  { "planes4", BY_NAME, true, BOUND_I8 },
    { "pvq2", BY_NAME, true, BOUND_I8 },     { "pvq3", BY_NAME, true, BOUND_I8 },
    { "pvq4", BY_NAME, true, BOUND_I8 },     { "aqlm2x8g8", BY_NAME, true, BOUND_I8 },
};
static const struct form head = { "q8", DT_Q8_0, true, BOUND_I8 };

struct model {
    const char *name;
    int dim, kv, ffn, vocab, layers;
};
static const struct model models[] = {
    { "smollm2-135m", 576, 192, 1536, 49152, 30 },
    { "tinyllama-1.1b", 2048, 256, 5632, 32000, 22 },
};
/* rows and columns of single products */
static const int shapes[][2] = {
    { 576, 576 }, { 1536, 576 }, { 576, 1536 }, { 49152, 576 }, { 2048, 2048 }, { 2048, 5632 },
};

struct bench {
    struct be *be;
    double read_gbs, dot[BOUND_DOT_N];
    float *x, *y[MATMUL_MAX];
    void *ws;
    /* the products of one pass: groups that share an input */
    struct weight w[PRODUCTS];
    int n_w;
    int group[PRODUCTS], n_groups;
    int rows;
};

static void *pages(size_t bytes)
{
    void *p = mem_map(bytes);
    if (p == NULL)
        exit(1);
    return p;
}

static uint32_t mix(uint64_t i)
{
    i *= 0x9e3779b97f4a7c15u;
    return (uint32_t)(i >> 32);
}

/* Blocks of random codes with scales (and numbers of 16 bits) near 0.01, f32 numbers below 1. */
static void random_blocks(char *p, size_t bytes, enum dtype t)
{
    size_t block = (size_t)dtype_block_bytes(t);
    for (size_t i = 0; i + block <= bytes; i += block) {
        for (size_t j = 0; j < block; j++)
            p[i + j] = (char)mix(i + j);
        if (t == DT_F32) {
            float f = (float)(int32_t)mix(i) * 0x1p-31f;
            memcpy(p + i, &f, sizeof f);
            continue;
        }
        p[i + 1] = 0x21;
        if (t == DT_BF16)
            p[i + 1] = 0x3c;
        if (t == DT_Q4_1)
            p[i + 3] = (char)0xa8;
    }
}

/* Random codes; 16-bit numbers near 0.01. */
static void add_pressed(struct bench *b, const struct form *f, int rows, int cols)
{
    struct err e;
    struct weight *w = &b->w[b->n_w++];
    if (weight_open_form(w, b->be, f->name, f->int8, rows, cols, &e) < 0) {
        printf("%s\n", e.text);
        exit(1);
    }
    struct codec_part part[CODEC_PARTS];
    int n = weight_parts(w, part);
    for (int i = 0; i < n; i++) {
        size_t bytes = codec_part_bytes(&part[i]);
        char *p = pages(bytes);
        for (size_t j = 0; j < bytes; j++)
            p[j] = (char)mix(j);
        for (size_t j = 1; strcmp(part[i].name, "codes") != 0 && j < bytes; j += 2)
            p[j] = 0x21;
        weight_put(w, i, 0, bytes, p);
        mem_unmap(p, bytes);
    }
}

static void add_weight(struct bench *b, const struct form *f, int rows, int cols)
{
    if (f->from == BY_NAME) {
        add_pressed(b, f, rows, cols);
        return;
    }
    struct err e;
    struct weight *w = &b->w[b->n_w++];
    if (weight_open(w, b->be, "auto", f->int8, f->from, rows, cols, &e) < 0) {
        printf("%s\n", e.text);
        exit(1);
    }
    size_t row = dtype_row_bytes(f->from, cols);
    enum { STRIP = 16 * 64 };
    char *src = pages(row * STRIP);
    float *scratch = pages((size_t)STRIP * (size_t)cols * sizeof(float));
    random_blocks(src, row * STRIP, f->from);
    for (int r = 0; r < rows; r += STRIP)
        weight_fill(w, r, rows - r < STRIP ? rows - r : STRIP, f->from, src, scratch);
    mem_unmap(src, row * STRIP);
    mem_unmap(scratch, (size_t)STRIP * (size_t)cols * sizeof(float));
}

static void end_group(struct bench *b)
{
    b->group[b->n_groups++] = b->n_w;
}

static void close_weights(struct bench *b)
{
    for (int i = 0; i < b->n_w; i++)
        weight_close(&b->w[i], b->be);
    b->n_w = b->n_groups = 0;
}

/* ---- one pass ---------------------------------------------------------------------------------------------------- */

static void pass(struct bench *b)
{
    int first = 0;
    for (int g = 0; g < b->n_groups; g++) {
        struct matmul m[MATMUL_MAX];
        struct input in;
        int n = 0;
        for (int i = first; i < b->group[g]; i++, n++)
            m[n] = (struct matmul){ &b->w[i], NULL, b->y[n] };
        int cols = b->w[first].cols;
        /* the head is asked for one row of a prompt */
        int rows = b->w[first].rows >= 32000 && b->rows > 8 && b->n_groups > 1 ? 1 : b->rows;
        input_set(&in, b->x, rows, cols, b->ws);
        weight_matmul(b->be, &in, m, n);
        first = b->group[g];
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median nanoseconds of one pass: at least 5 passes and 0.5 s. */
static double median_ns(struct bench *b)
{
    static double t[20000];
    int n = 0;
    double sum = 0;
    pass(b);
    while (n < 20000 && (n < 5 || sum < 5e8)) {
        uint64_t from = clock_ns();
        pass(b);
        t[n] = (double)(clock_ns() - from);
        sum += t[n++];
    }
    qsort(t, (size_t)n, sizeof(t[0]), by_value);
    return t[n / 2];
}

static void report(struct bench *b, const char *what, const struct form *f, int rows)
{
    b->rows = rows;
    double ns = median_ns(b);
    double bytes = 0;
    double cells = 0;
    for (int i = 0; i < b->n_w; i++) {
        bytes += (double)weight_bytes(&b->w[i]);
        bool once = b->w[i].rows >= 32000 && rows > 8 && b->n_groups > 1;
        cells += (double)b->w[i].rows * b->w[i].cols * (once ? 1.0 / rows : 1);
    }
    double gops = 2 * cells * rows / ns;
    printf("%-16s %-8s %4d rows: %10.1f us %8.1f rows/s %6.1f GB/s %4.0f %% %7.1f GOP/s %4.0f %%\n",
           what, f->name, rows, ns / 1e3, rows * 1e9 / ns, bytes / ns,
           100 * bytes / ns / b->read_gbs, gops, 100 * gops / b->dot[f->dot]);
    (void)fflush(stdout);
}

static void bench_model(struct bench *b, const struct model *m, const struct form *f)
{
    for (int l = 0; l < m->layers; l++) {
        add_weight(b, f, m->dim, m->dim);
        add_weight(b, f, m->kv, m->dim);
        add_weight(b, f, m->kv, m->dim);
        end_group(b);
        add_weight(b, f, m->dim, m->dim);
        end_group(b);
        add_weight(b, f, m->ffn, m->dim);
        add_weight(b, f, m->ffn, m->dim);
        end_group(b);
        add_weight(b, f, m->dim, m->ffn);
        end_group(b);
    }
    add_weight(b, f->from == BY_NAME ? &head : f, m->vocab, m->dim);
    end_group(b);
    static const int rows[] = { 1, 2, 4, 8, 64, 512 };
    for (int i = 0; i < 6; i++)
        report(b, m->name, f, rows[i]);
    close_weights(b);
}

static void bench_shape(struct bench *b, const int *shape, const struct form *f)
{
    char name[32];
    (void)snprintf(name, sizeof name, "%dx%d", shape[0], shape[1]);
    size_t bytes = 0;
    do {
        add_weight(b, f, shape[0], shape[1]);
        end_group(b);
        bytes += weight_bytes(&b->w[b->n_w - 1]);
    } while (bytes < (size_t)96 << 20 && b->n_w < PRODUCTS);
    report(b, name, f, 1);
    close_weights(b);
    add_weight(b, f, shape[0], shape[1]);
    end_group(b);
    report(b, name, f, ROWS_MAX);
    close_weights(b);
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct err e;
    struct be_config c = { .isa = argc > 1 ? argv[1] : NULL,
                           .n_threads = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0 };
    if (be_open(&b.be, &c, &e) < 0) {
        printf("%s\n", e.text);
        return 1;
    }
    b.x = pages((size_t)ROWS_MAX * COLS_MAX * sizeof(float));
    for (size_t i = 0; i < (size_t)ROWS_MAX * COLS_MAX; i++)
        b.x[i] = (float)(int32_t)mix(i) * 0x1p-31f;
    for (int i = 0; i < MATMUL_MAX; i++)
        b.y[i] = pages((size_t)ROWS_MAX * 49152 * sizeof(float));
    b.ws = pages(input_ws_bytes(b.be, ROWS_MAX, COLS_MAX));
    b.read_gbs = bound_read_gbs(b.be);
    for (int i = 0; i < BOUND_DOT_N; i++)
        b.dot[i] = bound_dot_gops(b.be, i);
    printf("%s, %d threads: read %.1f GB/s, f32 %.0f, bf16 %.0f GFLOP/s, int8 %.0f GOP/s\n",
           cpu_isa_name(b.be->isa), par_threads(b.be->par), b.read_gbs, b.dot[BOUND_F32],
           b.dot[BOUND_BF16], b.dot[BOUND_I8]);
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if (argc > 3 && strcmp(forms[i].name, argv[3]) != 0)
            continue;
        for (size_t m = 0; m < sizeof models / sizeof models[0]; m++)
            bench_model(&b, &models[m], &forms[i]);
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            bench_shape(&b, shapes[s], &forms[i]);
    }
    be_close(b.be);
    return 0;
}
