/* wring bench --kv: what pressing costs in time, and what it buys.
 *
 * One prompt of random tokens is prefilled once; each policy and budget gets a copy of its cache, presses it and decodes on
 * it. Beside them stand the whole cache at the same depth and at 512 tokens. The last column is the share of decode time
 * that goes into pressing again whenever a tail has grown: compactions over steps, from one compaction to the next.
 */
#include <math.h>
#include <stdio.h>

#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/cli/bench.h"
#include "server/cli/runner.h"

enum { LENGTH = 8192, SHORT = 512, STEPS = 24, LONGEST = 1024, WHOLE = 0, COPY = 1 };

struct bench_kv {
    const struct config *config;
    const struct model *model;
    struct runner run;
    struct table *table;
    const struct kv_grid *grid; /* its variants and budgets */
    int32_t *token;
    int length;
    double prefill_s, short_tok_s, whole_tok_s;
    double whole_bytes;
    double seconds[1000]; /* of the repeats */
};

/* Median speed of a sequence that holds its tokens already. */
static int decode(struct bench_kv *b, int i_seq, double *tok_s, struct err *e)
{
    int repeat = (int)b->config->repeat;
    TRY(runner_append(&b->run, i_seq, b->token, 1, 1, NULL, e));
    for (int i = 0; i < repeat; i++) {
        double t0 = clock_s();
        for (int k = 0; k < STEPS; k++)
            TRY(runner_append(&b->run, i_seq, b->token + k, 1, 1, NULL, e));
        b->seconds[i] = (clock_s() - t0) / STEPS;
    }
    *tok_s = 1 / bench_median(b->seconds, repeat);
    return 0;
}

/* Steps from one compaction to the next; *share: of their time, the compaction's. NaN when none comes. */
static int press_on(struct bench_kv *b, int i_seq, double *share, struct err *e)
{
    struct kv_report r = { 0 };
    double t0 = 0;
    uint64_t ns0 = 0;
    *share = NAN;
    for (int k = 0, seen = 0; k < LONGEST && seen < 2; k++) {
        int before = r.n_compactions;
        TRY(runner_press(&b->run, i_seq, &r, e));
        if (r.n_compactions > before) {
            seen++;
            if (seen == 2)
                *share = (double)(r.ns - ns0) / 1e9 / (clock_s() - t0);
            t0 = clock_s();
            ns0 = r.ns;
        }
        TRY(runner_append(&b->run, i_seq, b->token + k, 1, 1, NULL, e));
    }
    return 0;
}

static void add_row(struct bench_kv *b, const char *policy, int budget, double bytes,
                    double press_ms, double tok_s, double share)
{
    table_str(b->table, policy);
    table_int(b->table, budget);
    table_num(b->table, bytes / (1 << 20), 2);
    table_num(b->table, 100 * bytes / b->whole_bytes, 1);
    table_num(b->table, press_ms, 1);
    table_num(b->table, press_ms / b->prefill_s / 10, 2);
    table_num(b->table, tok_s, 1);
    table_num(b->table, tok_s / b->short_tok_s, 3);
    table_num(b->table, tok_s / b->whole_tok_s, 2);
    table_num(b->table, 100 * share, 2);
}

static int pressed(struct bench_kv *b, const struct kv_variant *v, int budget, struct err *e)
{
    struct kv_options o = v->opt;
    double tok_s;
    double share;
    double press_ms[3];
    size_t bytes = 0;
    o.budget = budget;
    for (int i = 0; i < 3; i++) {
        struct kv_report r = { 0 };
        TRY(runner_fork(&b->run, COPY, WHOLE, &o, e));
        TRY(runner_press(&b->run, COPY, &r, e));
        press_ms[i] = (double)r.ns / 1e6;
        bytes = kv_seq_bytes(&b->run.seq[COPY], b->run.pool);
    }
    TRY(decode(b, COPY, &tok_s, e));
    TRY(press_on(b, COPY, &share, e));
    add_row(b, v->word, budget, (double)bytes, bench_median(press_ms, 3), tok_s, share);
    return 0;
}

/* The whole cache at both depths. The prompt lies in a sequence that keeps its queries and is never pressed itself. */
static int whole(struct bench_kv *b, struct err *e)
{
    struct kv_options o = { 0 };
    double short_bytes;
    TRY(runner_begin(&b->run, COPY, &o, b->length, e));
    TRY(runner_prefill(&b->run, COPY, b->token, SHORT, e));
    short_bytes = (double)kv_seq_bytes(&b->run.seq[COPY], b->run.pool);
    TRY(decode(b, COPY, &b->short_tok_s, e));
    o = b->grid->variant[0].opt;
    o.budget = KV_BUDGET_MIN;
    TRY(runner_begin(&b->run, WHOLE, &o, b->length, e));
    double t0 = clock_s();
    TRY(runner_prefill(&b->run, WHOLE, b->token, b->length, e));
    b->prefill_s = clock_s() - t0;
    o = (struct kv_options){ 0 };
    TRY(runner_fork(&b->run, COPY, WHOLE, &o, e));
    b->whole_bytes = (double)kv_seq_bytes(&b->run.seq[COPY], b->run.pool);
    TRY(decode(b, COPY, &b->whole_tok_s, e));
    add_row(b, "whole, 512 tokens", 0, short_bytes, NAN, b->short_tok_s, NAN);
    add_row(b, "whole", 0, b->whole_bytes, NAN, b->whole_tok_s, NAN);
    return 0;
}

static int length_of(const struct config *c)
{
    return c->length > 0 ? (int)c->length : LENGTH;
}

int bench_kv_read(struct kv_grid *g, const struct config *c, struct err *e)
{
    if (length_of(c) < SHORT)
        return err_set(e, ERR_INVALID, "length: %d is less than %d", length_of(c), SHORT);
    return kv_grid_open(g, c, "256", 1, e);
}

static int setup(struct bench_kv *b, struct err *e)
{
    static const struct table_col cols[] = {
        { "policy", "policy" },
        { "budget", "budget" },
        { "mib", "MiB" },
        { "share", "% of full" },
        { "press_ms", "press ms" },
        { "press_share", "% of prefill" },
        { "tok_s", "decode tok/s" },
        { "of_short", "of 512's" },
        { "of_whole", "of whole's" },
        { "again", "pressing, % of decode" },
    };
    const struct config *c = b->config;
    b->length = length_of(c);
    int n = b->length + LONGEST + (int)c->repeat * STEPS + 2;
    enum kv_type type = cli_kv_type(c, b->model->be);
    TRY(runner_open_kv(&b->run, b->model, type, cli_kv_narrow(c, type), 2, n, (int)c->max_batch, 1,
                       RUNNER_SAMPLES, e));
    b->token = mem_zalloc((size_t)n, sizeof *b->token);
    if (b->token == NULL || table_open(&b->table, cols, 10) < 0)
        return err_set(e, ERR_NOMEM, "no memory for %d tokens", n);
    bench_tokens(b->token, n, b->model->config.vocab);
    return 0;
}

static int run(struct bench_kv *b, struct err *e)
{
    TRY(setup(b, e));
    TRY(whole(b, e));
    for (int v = 0; v < b->grid->n_variants; v++)
        for (int k = 0; k < b->grid->budget.n; k++)
            TRY(pressed(b, &b->grid->variant[v], b->grid->budget.v[k], e));
    return 0;
}

int bench_kv(const struct model *m, const struct config *c, const struct kv_grid *g)
{
    struct err e;
    struct bench_kv *b = mem_zalloc(1, sizeof *b);
    int code = 0;
    if (b == NULL) {
        err_set(&e, ERR_NOMEM, "no memory to start");
        return cli_fail(&e);
    }
    b->config = c;
    b->model = m;
    b->grid = g;
    if (run(b, &e) < 0) {
        code = cli_fail(&e);
        table_close(b->table);
    } else {
        if (!c->json)
            printf("%d tokens, %d threads, %s: prefill %.3f s; weights %s, kv %s, pressed %s\n",
                   b->length, par_threads(m->be->par), m->be->device, b->prefill_s,
                   weight_form(&m->layer[0].q), kv_type_name(kv_pool_shape(b->run.pool)->type),
                   kv_narrow_name(kv_pool_shape(b->run.pool)->narrow_type));
        code = cli_table(b->table, c->json);
    }
    mem_free(b->token);
    runner_close(&b->run);
    mem_free(b);
    return code;
}
