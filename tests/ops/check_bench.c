/* Speed of the ops next to the bounds of the machine, measured in the same run: `checkops --bench`.
 *
 * On a device the shapes are those of Llama-3.1-8B, on the CPU those of SmolLM2-135M. A run is one step that calls the op
 * some times, each time on other memory (copies of weights, caches, activations), after caches were flushed by adding two
 * large arrays: what is read comes from memory. The step is begun under one name, so a backend that records steps replays
 * it, as a server's decode does. Medians of at least nine runs after two that do not count.
 * Bytes: what the op must read and write at least. Operations: two per multiply-add. A product is timed with the preparation
 * of its input.
 * JSON is printed a row at a time, so that a run that is stopped has told what it measured until then.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/clock.h"
#include "tests/ops/check.h"
#include "tests/ops/check_bench.h"
#include "tests/tools/forms.h"
#include "tests/tools/levels.h"

enum { COPIES = 16, RUNS = 200, STRIP = 128 };

static const struct shape llama_8b = { 4096,  1024,
                                       14336, 128256,
                                       32,    8,
                                       128,   { 1, 8, 64, 512, 4096 },
                                       5,     { 1024, 8192, 32768 },
                                       3,     (size_t)256 << 20 };
static const struct shape smollm_135m = {
    576, 192, 1536, 49152, 9, 3, 64, { 1, 8, 64 }, 3, { 256, 4096 }, 2, (size_t)48 << 20
};

/* ---- timing ------------------------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void sync(struct bench *b)
{
    struct err e = { 0 };
    if (b->be->ops->sync(b->be, &e) == 0)
        return;
    (void)fprintf(stderr, "checkops: %s %s: %s\n", b->now->op, b->now->shape, e.text);
    exit(1);
}

/* Seconds of one call. */
static double run_once(struct bench *b, struct speed *t, int calls)
{
    enum { DIM = 8192 };
    b->be->ops->add(b->be, b->flush[0], b->flush[1], (int)(b->s->region / 2 / DIM / sizeof(float)),
                    DIM);
    sync(b);
    b->now = t;
    uint64_t from = clock_ns();
    struct be_step step = t->step;
    bool replayed = t->step.n_rows > 0 && b->be->ops->step_begin(b->be, &step, t->owner);
    for (int i = 0; i < calls && !replayed; i++)
        t->call(b, t, i % t->copies, &step);
    if (t->step.n_rows > 0)
        b->be->ops->step_end(b->be);
    sync(b);
    return (double)(clock_ns() - from) * 1e-9 / calls;
}

/* Runs for a quarter of a second, on a device, whose ops are shorter, for a tenth. */
static double median(struct bench *b, struct speed *t)
{
    static double seconds[RUNS];
    int calls = t->copies < 4 ? 4 : t->copies, n = 0;
    double sum = 0, enough = b->be->host ? 0.25 : 0.1;
    if (t->bytes * t->copies < (double)b->s->region / 2) /* what was flushed would be read again */
        calls = t->copies;
    for (int i = 0; i < 2; i++)
        run_once(b, t, calls);
    while (n < RUNS && (n < 9 || sum < enough)) {
        seconds[n] = run_once(b, t, calls);
        sum += seconds[n++] * calls;
    }
    qsort(seconds, (size_t)n, sizeof *seconds, by_value);
    return seconds[n / 2];
}

static void open_table(struct bench *b)
{
    static const struct table_col cols[] = {
        { "op", "op" },          { "shape", "shape" },    { "form", "form" },
        { "rows", "rows" },      { "us", "us" },          { "gbs", "GB/s" },
        { "copy_percent", "%" }, { "tflops", "TFLOP/s" }, { "peak_percent", "%" },
    };
    ASSERT(table_open(&b->table, cols, COUNT(cols)) == 0);
}

/* Prints the rows since the last time, and begins anew. */
static void print_rows(struct bench *b)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    ASSERT(table_print(b->table, b->json, &out) == 0);
    (void)fwrite(out.data, 1, out.len, stdout);
    (void)fflush(stdout);
    buf_free(&out);
    table_close(b->table);
    open_table(b);
}

static void add_row(struct bench *b, const char *op, const char *shape, const char *form, int n,
                    double s, double gbs, double gops, enum bound_dot peak)
{
    table_str(b->table, op);
    table_str(b->table, shape);
    table_str(b->table, form);
    table_int(b->table, n);
    table_num(b->table, s * 1e6, 2);
    table_num(b->table, gbs, 1);
    table_num(b->table, b->gbs > 0 ? 100 * gbs / b->gbs : NAN, 1);
    table_num(b->table, gops > 0 ? gops * 1e-3 : NAN, 3);
    table_num(b->table, gops > 0 && b->gops[peak] > 0 ? 100 * gops / b->gops[peak] : NAN, 1);
    if (b->json)
        print_rows(b);
}

void bench_measure(struct bench *b, struct speed *t)
{
    t->owner = (const void *)(0x1000 + b->n_measured++); /* a name, never followed */
    double s = median(b, t);
    add_row(b, t->op, t->shape, t->form, t->n, s, t->bytes / s * 1e-9, t->ops / s * 1e-9, t->peak);
}

/* A step of n_seqs sequences, one row each, whose pages do not matter. */
static struct be_step plain_step(struct be_seq *seqs, int n_seqs)
{
    static int32_t page[1], rows[4096];
    for (int i = 0; i < n_seqs; i++) {
        seqs[i] = (struct be_seq){ .row0 = i, .n_rows = 1, .kv = { .wide = page } };
        rows[i] = i;
    }
    return (struct be_step){ .n_rows = n_seqs,
                             .n_seqs = n_seqs,
                             .n_out = n_seqs,
                             .n_layers = 1,
                             .n_kv_heads = 1,
                             .token = rows,
                             .pos = rows,
                             .out_row = rows,
                             .seqs = seqs };
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static float *part(const struct bench *b, int region, const struct speed *t, int i)
{
    return b->region[region] + (size_t)i * (size_t)t->n * (size_t)t->dim;
}

static void call_norm(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    (void)step;
    b->be->ops->rmsnorm(b->be, part(b, 0, t, i), part(b, 1, t, i), part(b, 2, t, i), b->region[3],
                        t->n, t->dim, 1e-5f);
}

static void call_add(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    (void)step;
    b->be->ops->add(b->be, part(b, 0, t, i), part(b, 1, t, i), t->n, t->dim);
}

static void call_swiglu(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    (void)step;
    b->be->ops->swiglu(b->be, part(b, 0, t, i), part(b, 1, t, i), part(b, 2, t, i), t->n, t->dim);
}

static void call_rope(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    int half = b->s->head_dim / 2;
    (void)step;
    b->be->ops->rope(b->be, part(b, 0, t, i), b->region[1], b->region[2], NULL, 0, t->n,
                     b->s->heads, b->s->head_dim, half, true);
}

static void call_head(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    static struct be_head_out out[8];
    struct be_head_row row[8];
    (void)step;
    for (int r = 0; r < t->n; r++)
        row[r] =
            (struct be_head_row){ .repetition = 1, .temperature = 0.8f, .draw = true, .u = 0.5 };
    b->be->ops->head(b->be, part(b, 0, t, i), t->n, t->dim, row, out);
}

static void bench_row_op(struct bench *b, struct speed t, double bytes_each)
{
    struct be_seq seq;
    size_t size = (size_t)t.n * (size_t)t.dim * sizeof(float);
    if (size > b->s->region)
        return;
    size_t fits = b->s->region / size;
    t.copies = fits < COPIES ? (int)fits : COPIES;
    t.form = "f32";
    t.bytes = (double)t.n * t.dim * bytes_each;
    if (t.call != call_head)
        t.step = plain_step(&seq, 1);
    bench_measure(b, &t);
}

static void bench_rows(struct bench *b)
{
    const struct shape *s = b->s;
    const struct speed op[] = {
        /* first: the others leave many equal numbers in what it reads as logits */
        { .op = "head", .call = call_head, .dim = s->vocab, .shape = "vocab", .bytes = 4 },
        { .op = "rmsnorm + add", .call = call_norm, .dim = s->dim, .shape = "dim", .bytes = 16 },
        { .op = "add", .call = call_add, .dim = s->dim, .shape = "dim", .bytes = 12 },
        { .op = "swiglu", .call = call_swiglu, .dim = s->ffn, .shape = "ffn", .bytes = 12 },
        { .op = "rope", .call = call_rope, .dim = s->dim, .shape = "heads", .bytes = 8 },
    };
    for (int k = 0; k < COUNT(op); k++)
        for (int i = 0; i < s->n_rows; i++) {
            struct speed t = op[k];
            t.n = s->rows[i];
            if (t.call != call_head || (t.n <= 8 && b->be->ops->head != NULL))
                bench_row_op(b, t, op[k].bytes);
        }
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

struct products {
    struct weight w[COPIES];
    void *ws;
};

static void call_mul(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    const struct products *p = t->more;
    struct input in;
    (void)step;
    input_set(&in, b->region[0], t->n, p->w[i].cols, p->ws);
    weight_matmul(b->be, &in, &(struct matmul){ &p->w[i], NULL, b->region[1] }, 1);
}

/* One strip of random rows, again and again; all copies get what was pressed once, since that may take seconds. */
struct strip {
    const struct form *f;
    uint8_t *raw;
    float *scratch;
    struct weight
        stage[2]; /* for a device: of STRIP rows, and of the last ones; no codec: not pressed yet */
};

static void fill_weight(struct bench *b, struct weight *w, struct strip *s)
{
    for (int r = 0; r < w->rows; r += STRIP) {
        int n = w->rows - r < STRIP ? w->rows - r : STRIP;
        struct weight *stage = &s->stage[n < STRIP];
        struct err e;
        if (b->be->host) {
            weight_fill(w, r, n, s->f->from, s->raw, s->scratch);
            continue;
        }
        if (stage->codec == NULL) {
            ASSERT(weight_stage_open(stage, w, n, &e) == 0);
            weight_fill(stage, 0, n, s->f->from, s->raw, s->scratch);
        }
        weight_stage_upload(stage, w, b->be, r);
    }
}

/* As many copies as no cache holds. False when there is no memory for one. */
static int open_weights(struct bench *b, struct products *p, const struct form *f, bool int8,
                        int rows, int cols)
{
    struct err e;
    struct strip s = { .f = f };
    s.raw = mem_alloc((size_t)STRIP * (size_t)cols * 4);
    s.scratch = mem_alloc((size_t)STRIP * (size_t)cols * sizeof *s.scratch);
    ASSERT(s.raw != NULL && s.scratch != NULL);
    form_blocks(f->from, s.raw, STRIP, cols);
    int n = 0;
    size_t bytes = 0;
    while (n < COPIES && bytes < b->s->region) {
        if (weight_open(&p->w[n], b->be, f->word, int8, f->from, rows, cols, &e) < 0)
            break;
        fill_weight(b, &p->w[n], &s);
        bytes += weight_bytes(&p->w[n++]);
    }
    weight_stage_close(&s.stage[0]);
    weight_stage_close(&s.stage[1]);
    mem_free(s.raw);
    mem_free(s.scratch);
    return n;
}

static void bench_matrix(struct bench *b, const struct form *f, bool int8, int rows, int cols)
{
    struct products p;
    struct be_seq seq;
    struct speed t = { .op = "matmul", .form = f->form, .call = call_mul, .more = &p };
    t.copies = open_weights(b, &p, f, int8, rows, cols);
    for (int i = 0; i < b->s->n_rows && t.copies > 0; i++) {
        int n = b->s->rows[i];
        size_t most = (size_t)n * (size_t)(rows > cols ? rows : cols) * sizeof(float);
        if (most > b->s->region || (rows == b->s->vocab && n > 8))
            continue;
        size_t ws = input_ws_bytes(b->be, n, cols);
        p.ws = b->be->ops->alloc(b->be, ws);
        if (p.ws == NULL)
            continue;
        (void)snprintf(t.shape, sizeof t.shape, "%dx%d%s", rows, cols, int8 ? "" : " f32 in");
        t.n = n;
        t.peak = p.w[0].prep == PREP_F32  ? BOUND_F32
                 : p.w[0].prep == PREP_I8 ? BOUND_I8
                                          : BOUND_BF16;
        t.bytes = (double)weight_bytes(&p.w[0]) + (double)n * (rows + cols) * sizeof(float);
        t.ops = 2.0 * rows * cols * n;
        t.step = plain_step(&seq, 1);
        bench_measure(b, &t);
        b->be->ops->free(b->be, p.ws, ws);
    }
    for (int i = 0; i < t.copies; i++)
        weight_close(&p.w[i], b->be);
}

static void bench_products(struct bench *b)
{
    const struct shape *s = b->s;
    const int shape[][2] = { { s->dim, s->dim },
                             { s->kv, s->dim },
                             { s->ffn, s->dim },
                             { s->dim, s->ffn },
                             { s->vocab, s->dim } };
    for (int f = 0; f < FORMS; f++) {
        for (int i = 0; i < COUNT(shape); i++)
            bench_matrix(b, &form_list[f], true, shape[i][0], shape[i][1]);
        bench_matrix(b, &form_list[f], false, s->ffn, s->dim);
    }
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

static void call_attend(struct bench *b, const struct speed *t, int i, const struct be_step *step)
{
    const struct caches *c = t->more;
    struct be_attend a = { .kv = { .pool = c->pool + (size_t)i * c->bytes,
                                   .type = c->type,
                                   .n_kv_heads = b->s->kv_heads,
                                   .head_dim = b->s->head_dim,
                                   .n_seqs = step->n_seqs,
                                   .seqs = step->seqs },
                           .q = b->region[0],
                           .out = b->region[1],
                           .n_heads = b->s->heads,
                           .scale = 1 / sqrtf((float)b->s->head_dim) };
    b->be->ops->attend(b->be, &a);
}

bool bench_caches(struct bench *b, struct caches *c, size_t bytes)
{
    enum { BLOCK = 1 << 20 };
    static uint16_t block[BLOCK / 2];
    c->pool = b->be->ops->alloc(b->be, bytes);
    if (c->pool == NULL)
        return false;
    for (int i = 0; i < BLOCK / 2; i++)
        block[i] = (uint16_t)((rnd_bits() & 0x80ff) | 0x3000);
    for (size_t at = 0; at < bytes; at += BLOCK)
        b->be->ops->upload(b->be, c->pool + at, block, bytes - at < BLOCK ? bytes - at : BLOCK);
    return true;
}

/* n_seqs sequences of depth tokens, of which the last `rows` are asked about. */
static void bench_attend(struct bench *b, const char *op, enum kv_type type, int n_seqs, int rows,
                         int depth)
{
    const struct shape *s = b->s;
    struct be_seq seqs[8];
    struct caches c = { .type = type };
    struct speed t = { .op = op, .form = kv_type_name(type), .call = call_attend, .more = &c };
    int pages = (depth + KV_PAGE - 1) / KV_PAGE, n = n_seqs * rows;
    c.bytes = (size_t)(n_seqs * pages * s->kv_heads) * kv_block_bytes(type, s->head_dim);
    t.copies = c.bytes > s->region ? 1 : (int)(s->region / c.bytes);
    t.copies = t.copies < COPIES ? t.copies : COPIES;
    int32_t *page = mem_alloc((size_t)(n_seqs * pages) * sizeof *page);
    int32_t *row = mem_zalloc((size_t)n, sizeof *row);
    if (page == NULL || row == NULL || !bench_caches(b, &c, c.bytes * (size_t)t.copies))
        goto out;
    for (int i = 0; i < n_seqs * pages; i++)
        page[i] = i % pages * n_seqs + i / pages; /* sequences lie between each other */
    t.step = plain_step(seqs, n_seqs);
    for (int i = 0; i < n_seqs; i++)
        seqs[i] = (struct be_seq){ .row0 = i * rows,
                                   .n_rows = rows,
                                   .pos0 = depth - rows,
                                   .kv = { .wide = page + i * pages } };
    t.step.n_rows = t.step.n_out = n;
    t.step.n_kv_heads = s->kv_heads;
    t.step.token = t.step.pos = t.step.out_row = row;
    (void)snprintf(t.shape, sizeof t.shape, "%dx%d at %d", n_seqs, rows, depth);
    double keys = 0;
    for (int r = 0; r < rows; r++)
        keys += depth - rows + r + 1;
    t.n = n;
    bool halves = !b->be->host || (type == KV_BF16 && b->be->isa == CPU_BF16);
    t.peak = halves ? BOUND_BF16 : BOUND_F32;
    t.ops = keys * n_seqs * s->heads * s->head_dim * 4;
    t.bytes = (double)n_seqs * depth * s->kv_heads * s->head_dim * 2 * (double)kv_elem_bytes(type) +
              8.0 * n * s->heads * s->head_dim;
    bench_measure(b, &t);
out:
    if (c.pool != NULL)
        b->be->ops->free(b->be, c.pool, c.bytes * (size_t)t.copies);
    mem_free(page);
    mem_free(row);
}

static void bench_attention(struct bench *b)
{
    const struct shape *s = b->s;
    for (int type = 0; type < KV_F32; type++) {
        for (int n_seqs = 1; n_seqs <= 8; n_seqs *= 8)
            for (int d = 0; d < s->n_depths; d++)
                bench_attend(b, "decode", type, n_seqs, 1, s->depth[d]);
        for (int d = 0; d < s->n_depths - 1; d++)
            bench_attend(b, "prefill", type, 1, s->depth[d] < 2048 ? s->depth[d] : 2048,
                         s->depth[d]);
    }
}

/* ---- all --------------------------------------------------------------------------------------------------------- */

static void find_bounds(struct bench *b)
{
    double dot = 0;
    if (b->be->ops->bounds != NULL) {
        b->be->ops->bounds(b->be, &b->gbs, &dot);
        for (int i = 0; i < BOUND_DOT_N; i++)
            b->gops[i] = dot;
    } else if (b->be->host) {
        b->gbs = bound_read_gbs(b->be);
        for (int i = 0; i < BOUND_DOT_N; i++)
            b->gops[i] = bound_dot_gops(b->be, i);
    }
    add_row(b, "bounds", b->be->host ? "read, bf16" : "copy, bf16", b->be->device, 0, NAN, b->gbs,
            b->gops[BOUND_BF16], BOUND_BF16);
}

static bool open_regions(struct bench *b)
{
    enum { BLOCK = 1 << 18 };
    static float block[BLOCK];
    rnd_fill(block, BLOCK, 1);
    for (int i = 0; i < 2; i++)
        b->flush[i] = b->be->ops->alloc(b->be, b->s->region / 2);
    for (int i = 0; i < REGIONS; i++) {
        b->region[i] = b->be->ops->alloc(b->be, b->s->region);
        for (size_t at = 0; b->region[i] != NULL && at < b->s->region / sizeof(float); at += BLOCK)
            b->be->ops->upload(b->be, b->region[i] + at, block, sizeof block);
    }
    return b->flush[0] != NULL && b->flush[1] != NULL && b->region[REGIONS - 1] != NULL;
}

static void close_regions(struct bench *b)
{
    for (int i = 0; i < 2; i++)
        b->be->ops->free(b->be, b->flush[i], b->s->region / 2);
    for (int i = 0; i < REGIONS; i++)
        b->be->ops->free(b->be, b->region[i], b->s->region);
}

int check_bench(struct be *be, bool json)
{
    struct bench b = { .be = be, .s = be->host ? &smollm_135m : &llama_8b, .json = json };
    rnd_seed(1);
    bool opened = open_regions(&b);
    open_table(&b);
    if (opened) {
        find_bounds(&b);
        bench_rows(&b);
        bench_attention(&b);
        bench_products(&b);
        bench_probes(&b);
        if (!json)
            print_rows(&b);
    }
    close_regions(&b);
    table_close(b.table);
    return opened ? 0 : ERR_NOMEM;
}
