/* wring bench: how fast a model runs here, next to what the machine could do.
 *
 * Prefill: n random tokens into an empty cache. Decode: one token for each of `batch` sequences that hold `depth` tokens
 * already. A test is repeated and its median counts. Bytes of a decode step are the weights once and every cached key
 * and value once; operations are two per weight and row, and four per cached element and query head. The bounds are
 * measured in the same run: of a CPU reading memory and int8 dot products, of a GPU copying memory and a bf16 product.
 * Logits are made and stay where they are: what fetches or samples them is the server's, not the model's.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/bound.h"
#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/cli/bench.h"
#include "server/cli/cli.h"
#include "server/cli/runner.h"

static const char usage[] = "bench MODEL | --synthetic SHAPE:FORM [options]";

enum { BENCH_STEPS = 24 };

struct bench {
    const struct config *config;
    const struct model *model;
    struct runner run;
    struct table *table;
    struct cli_list prompts, batches, depths;
    struct kv_grid grid;  /* of --kv */
    int32_t *token;       /* [ctx] */
    double gbs, gops;     /* the bounds; NaN: nobody knows */
    double seconds[1000]; /* of the repeats */
};

double bench_median(double *v, int n)
{
    cli_sort(v, n);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* Bytes of the matrices a decode step reads: all but an embedding that is not also the head. */
static double step_bytes(const struct model *m)
{
    double bytes = (double)m->weight_bytes;
    return m->out.codec != NULL ? bytes - (double)weight_bytes(&m->embd) : bytes;
}

/* Weights that one row is multiplied with in the layers, and in the head. */
static double layer_weights(const struct model *m)
{
    double n = 0;
    for (int l = 0; l < m->config.n_layers; l++) {
        const struct layer *y = &m->layer[l];
        const struct weight *w[] = { &y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down };
        for (int i = 0; i < 7; i++)
            n += (double)w[i]->rows * w[i]->cols;
    }
    return n;
}

static double attend_ops(const struct model *m, double cached)
{
    const struct model_config *c = &m->config;
    return 4.0 * c->n_layers * c->n_heads * c->head_dim * cached;
}

static void add_row(struct bench *b, const char *test, int batch, int depth, double tok_s,
                    double gb_s, double gop_s)
{
    table_str(b->table, test);
    table_int(b->table, batch);
    table_int(b->table, depth);
    table_num(b->table, tok_s, 1);
    table_num(b->table, gb_s, 2);
    table_num(b->table, gb_s / b->gbs, 3);
    table_num(b->table, gop_s, 1);
    table_num(b->table, gop_s / b->gops, 3);
}

static int prefill(struct bench *b, int n, struct err *e)
{
    int repeat = (int)b->config->repeat;
    for (int i = -1; i < repeat; i++) {
        runner_reset(&b->run);
        double t0 = clock_s();
        TRY(runner_prefill(&b->run, 0, b->token, n, e));
        if (i >= 0)
            b->seconds[i] = clock_s() - t0;
    }
    double s = bench_median(b->seconds, repeat);
    const struct model_config *c = &b->model->config;
    double ops = 2 * layer_weights(b->model) * n + 2.0 * c->vocab * c->dim +
                 attend_ops(b->model, (double)n * (n + 1) / 2);
    char name[32];
    snprintf(name, sizeof name, "prefill %d", n);
    add_row(b, name, 1, 0, n / s, NAN, ops / s / 1e9);
    return 0;
}

static int decode(struct bench *b, int batch, int depth, struct err *e)
{
    const struct model_config *c = &b->model->config;
    int repeat = (int)b->config->repeat;
    runner_reset(&b->run);
    for (int i = 0; i < batch && depth > 0; i++)
        TRY(runner_prefill(&b->run, i, b->token, depth, e));
    TRY(runner_decode(&b->run, b->token, batch, NULL, e));
    for (int i = 0; i < repeat; i++) {
        double t0 = clock_s();
        for (int k = 0; k < BENCH_STEPS; k++)
            TRY(runner_decode(&b->run, b->token + k, batch, NULL, e));
        b->seconds[i] = (clock_s() - t0) / BENCH_STEPS;
    }
    double s = bench_median(b->seconds, repeat);
    double cached = depth + 1 + repeat * BENCH_STEPS / 2.0;
    double bytes =
        step_bytes(b->model) + batch * cached * (double)kv_token_bytes(kv_pool_shape(b->run.pool));
    double ops = batch * (2 * layer_weights(b->model) + 2.0 * c->vocab * c->dim +
                          attend_ops(b->model, cached));
    add_row(b, "decode", batch, depth, batch / s, bytes / s / 1e9, ops / s / 1e9);
    return 0;
}

static int run_tests(struct bench *b, struct err *e)
{
    for (int i = 0; i < b->prompts.n; i++)
        TRY(prefill(b, b->prompts.v[i], e));
    for (int d = 0; d < b->depths.n; d++)
        for (int i = 0; i < b->batches.n; i++)
            TRY(decode(b, b->batches.v[i], b->depths.v[d], e));
    return 0;
}

static int max_of(const struct cli_list *l, int least)
{
    for (int i = 0; i < l->n; i++)
        least = l->v[i] > least ? l->v[i] : least;
    return least;
}

static void measure_bounds(struct bench *b)
{
    struct be *be = b->model->be;
    if (be->ops->bounds != NULL) {
        be->ops->bounds(be, &b->gbs, &b->gops);
    } else {
        b->gbs = bound_read_gbs(be);
        b->gops = bound_dot_gops(be, BOUND_I8);
    }
    b->gbs = b->gbs > 0 ? b->gbs : NAN;
    b->gops = b->gops > 0 ? b->gops : NAN;
}

void bench_tokens(int32_t *token, int n, int vocab)
{
    uint32_t x = 12345;
    for (int i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        token[i] = (int32_t)((x >> 8) % (uint32_t)vocab);
    }
}

/* What can be told before the model is loaded. */
static int read_lists(struct bench *b, struct err *e)
{
    const struct config *c = b->config;
    if (c->kv)
        return bench_kv_read(&b->grid, c, e);
    TRY(cli_numbers("prompts", c->tests, 1, 1 << 20, &b->prompts, e));
    TRY(cli_numbers("batches", c->batches, 1, 4096, &b->batches, e));
    return cli_numbers("depths", c->depths, 0, 1 << 20, &b->depths, e);
}

static int setup(struct bench *b, struct err *e)
{
    static const struct table_col cols[] = {
        { "test", "test" },   { "batch", "batch" },        { "depth", "depth" },
        { "tok_s", "tok/s" }, { "gb_s", "GB/s" },          { "bw_frac", "of bound" },
        { "gop_s", "GOP/s" }, { "peak_frac", "of bound" },
    };
    const struct config *c = b->config;
    int steps = (int)c->repeat * BENCH_STEPS + 2;
    int ctx = max_of(&b->depths, 0) + steps;
    ctx = max_of(&b->prompts, ctx);
    int seqs = max_of(&b->batches, 1);
    int rows = c->max_batch > seqs ? (int)c->max_batch : seqs;
    enum kv_type type = cli_kv_type(c, b->model->be);
    TRY(runner_open(&b->run, b->model, type, seqs, ctx, rows, seqs, e));
    b->token = mem_zalloc((size_t)(ctx + seqs), sizeof *b->token);
    if (b->token == NULL || table_open(&b->table, cols, 8) < 0)
        return err_set(e, ERR_NOMEM, "no memory for %d tokens", ctx);
    bench_tokens(b->token, ctx + seqs, b->model->config.vocab);
    measure_bounds(b);
    return 0;
}

static const char *bound_text(char out[32], double v)
{
    snprintf(out, 32, "%.0f", v);
    return isnan(v) ? "-" : out;
}

static int print_bench(struct bench *b)
{
    const struct be *be = b->model->be;
    char gbs[32];
    char gops[32];
    if (!b->config->json && be->host)
        printf(
            "bounds measured in this run, %d threads, %s: read %s GB/s, int8 dot product %s GOP/s",
            par_threads(be->par), cpu_isa_name(be->isa), bound_text(gbs, b->gbs),
            bound_text(gops, b->gops));
    else if (!b->config->json)
        printf("bounds measured in this run, %s: copy %s GB/s, bf16 product %s GOP/s", be->device,
               bound_text(gbs, b->gbs), bound_text(gops, b->gops));
    if (!b->config->json)
        printf("; weights %s, kv %s\n", weight_form(&b->model->layer[0].q),
               kv_type_name(kv_pool_shape(b->run.pool)->type));
    int code = cli_table(b->table, b->config->json);
    b->table = NULL;
    return code;
}

/* What is to be measured, which says what options there are; what is wrong with them is said later. */
static enum config_command measured(int argc, char **argv)
{
    struct config c;
    struct err e;
    enum config_command what = CONFIG_BENCH;
    if (config_parse(&c, CONFIG_BENCH, argc, argv, &e) == 0)
        what = c.kv ? CONFIG_BENCH_KV : c.help ? CONFIG_BENCH : CONFIG_BENCH_SPEED;
    config_free(&c);
    return what;
}

int cmd_bench(int argc, char **argv)
{
    struct config c;
    struct err e;
    bool done;
    int code = cli_config(&c, measured(argc, argv), usage, 1, argc, argv, &done);
    if (done)
        return code;
    struct session s = { 0 };
    struct bench b = { .config = &c };
    if (read_lists(&b, &e) < 0 || session_open(&s, &c, c.word[0], true, &e) < 0) {
        code = cli_fail(&e);
    } else if (c.kv) {
        code = bench_kv(s.model, &c, &b.grid);
    } else {
        b.model = s.model;
        code = setup(&b, &e) < 0 || run_tests(&b, &e) < 0 ? cli_fail(&e) : print_bench(&b);
    }
    table_close(b.table);
    mem_free(b.token);
    runner_close(&b.run);
    kv_grid_close(&b.grid);
    session_close(&s);
    config_free(&c);
    return code;
}
