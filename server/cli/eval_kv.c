/* wring eval kv: tasks x policies x budgets, one prefill for each sample. See eval_kv.h. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/base/progress.h"
#include "server/cli/eval.h"
#include "server/cli/eval_kv.h"

static const char usage[] = "eval kv MODEL [options]";

enum { LENGTH = 2048, QUESTION = 384, PATH_SIZE = 4096, WHOLE = 0, PRESSED = 1 };

struct eval {
    const struct config *config;
    const struct model *model;
    struct kv_grid grid;
    struct kv_maker maker;
    struct kv_case now;
    struct runner run; /* two sequences: the prompt, and a copy of it that is pressed */
    struct kv_judge judge;
    struct progress bar;
    int log;   /* DIR/kv.jsonl */
    bool made; /* DIR was not there */
    double prefill_ms;
};

/* ---- one sample -------------------------------------------------------------------------------------------------- */

/* The prompt, in a sequence whose queries are kept: that of the first policy that presses. */
static int fill(struct eval *v, struct err *e)
{
    struct kv_options o = { .budget = KV_BUDGET_MIN };
    for (int i = 0; o.policy == NULL || o.policy->keeps_all; i++)
        o.policy = kv_policy_list[i];
    const struct tok_ids *prompt = &v->now.prompt;
    TRY(runner_begin(&v->run, WHOLE, &o, prompt->n, e));
    double t0 = clock_s();
    TRY(runner_prefill(&v->run, WHOLE, prompt->id, prompt->n, e));
    v->prefill_ms = (clock_s() - t0) * 1e3;
    return 0;
}

static int keep(struct eval *v, int task, int sample, int variant, int budget,
                const struct kv_cell *got, struct err *e)
{
    struct kv_cell *c = kv_grid_at(&v->grid, task, sample, variant, budget);
    if (c->have) /* from an earlier run, whose times stay */
        return 0;
    *c = *got;
    c->depth = v->now.depth;
    c->prefill_ms = v->prefill_ms;
    progress_add(&v->bar, 1);
    if (kv_grid_save(&v->grid, v->log, task, sample, variant, budget, e) < 0)
        return err_prefix(e, "%s/kv.jsonl", v->config->out);
    return 0;
}

/* What the whole cache says: a copy of the prompt that keeps everything. */
static int ask_whole(struct eval *v, int task, int sample, struct err *e)
{
    struct kv_options o = { 0 };
    struct kv_cell got;
    TRY(runner_fork(&v->run, PRESSED, WHOLE, &o, e));
    TRY(kv_judge_whole(&v->judge, PRESSED, v->grid.task[task], &v->now, &got, e));
    return keep(v, task, sample, -1, 0, &got, e);
}

static int ask_pressed(struct eval *v, int task, int sample, int variant, int budget, struct err *e)
{
    struct kv_options o = v->grid.variant[variant].opt;
    struct kv_cell got;
    o.budget = v->grid.budget.v[budget];
    o.question0 = v->now.question0;
    o.question1 = v->now.question1;
    if (o.seed == 0)
        o.seed = (uint64_t)sample + 1;
    TRY(runner_fork(&v->run, PRESSED, WHOLE, &o, e));
    TRY(kv_judge_other(&v->judge, PRESSED, v->grid.task[task], &v->now, &got, e));
    return keep(v, task, sample, variant, budget, &got, e);
}

/* Whether some answer of the whole cache was right, so that the others are worth asking. */
static bool worth_it(const struct eval *v, int task, int sample)
{
    const struct kv_cell *whole = kv_grid_at(&v->grid, task, sample, -1, 0);
    return v->grid.task[task]->kind != KV_ANSWER || whole->exact > 0;
}

static int n_missing(const struct eval *v, int task, int sample)
{
    if (sample >= kv_task_samples(v->grid.task[task], &v->maker, v->grid.n_samples))
        return 0;
    int n = kv_grid_at(&v->grid, task, sample, -1, 0)->have ? 0 : 1;
    if (n == 0 && !worth_it(v, task, sample))
        return 0;
    for (int p = 0; p < v->grid.n_variants; p++)
        for (int b = 0; b < v->grid.budget.n; b++)
            n += !kv_grid_at(&v->grid, task, sample, p, b)->have;
    return n;
}

static int too_long(const struct eval *v, const char *what, int n, struct err *e)
{
    return err_set(e, ERR_INVALID,
                   "length: %s of %d tokens; %s was trained for a context of %d: give a smaller "
                   "--length",
                   what, n, v->model->config.name, v->model->config.ctx_train);
}

/* Makes a case of a task in v->now. Beyond the positions that a model was trained for nothing is said about its cache. */
static int make_case(struct eval *v, int task, int sample, struct err *e)
{
    const struct kv_task *t = v->grid.task[task];
    int trained = v->model->config.ctx_train;
    char what[64];
    snprintf(what, sizeof what, "a case of \"%s\"", t->name);
    kv_maker_seed(&v->maker, (uint64_t)v->config->seed, t->name, sample);
    TRY(t->make(&v->maker, &v->now, e));
    int n = v->now.prompt.n + v->now.n_probe + (t->kind == KV_CHOICE ? KV_GREEDY : 0);
    return n <= trained ? 0 : too_long(v, what, n, e);
}

static int run_sample(struct eval *v, int task, int sample, struct err *e)
{
    int missing = n_missing(v, task, sample);
    if (missing == 0)
        return 0;
    TRY(make_case(v, task, sample, e));
    TRY(fill(v, e));
    TRY(ask_whole(v, task, sample, e));
    if (!worth_it(v, task, sample)) {
        progress_add(&v->bar, (uint64_t)missing - 1);
        return 0;
    }
    for (int p = 0; p < v->grid.n_variants; p++)
        for (int b = 0; b < v->grid.budget.n; b++)
            if (!kv_grid_at(&v->grid, task, sample, p, b)->have)
                TRY(ask_pressed(v, task, sample, p, b, e));
    return 0;
}

/* ---- the whole run ----------------------------------------------------------------------------------------------- */

static int path_in(char out[PATH_SIZE], const struct eval *v, const char *name, struct err *e)
{
    int n = snprintf(out, PATH_SIZE, "%s/%s", v->config->out, name);
    return n >= 0 && n < PATH_SIZE ? 0 : err_set(e, ERR_LIMIT, "out: the path is too long");
}

/* A hash of what results depend on. */
static uint64_t settings_of(const struct eval *v)
{
    const struct config *c = v->config;
    const struct model_config *m = &v->model->config;
    const struct kv_shape *s = kv_pool_shape(v->run.pool);
    char text[512];
    int n = snprintf(text, sizeof text, "%s %d %d %d %zu %s %s %s %d %d %lld %d", m->name,
                     m->n_layers, m->dim, m->vocab, v->model->weight_bytes, v->model->be->ops->name,
                     c->weights, c->activations, (int)s->type + KV_TYPE_N * (int)s->narrow_type,
                     v->maker.length, (long long)c->seed, s->samples);
    uint64_t h =
        XXH3_64bits_withSeed(text, strnlen(text, n > 0 ? sizeof text : 0), model_hash(v->model));
    for (int i = 0; i < v->maker.texts.n; i++)
        h = XXH3_64bits_withSeed(buf_str(&v->maker.texts.text[i]), v->maker.texts.text[i].len, h);
    if (c->ctx > 0)
        h = XXH3_64bits_withSeed(&v->maker.run, sizeof v->maker.run, h);
    return h;
}

static int make_folder(struct eval *v, struct err *e)
{
    char inside[PATH_SIZE];
    TRY(path_in(inside, v, ".", e));
    v->made = mkdir(v->config->out, 0755) == 0;
    if (v->made || (errno == EEXIST && access(inside, W_OK) == 0))
        return 0;
    return err_errno(e, ERR_IO, "%s: cannot write into the folder", v->config->out);
}

/* A line cut short, by a kill or a full disk, must not swallow the next. */
static int end_line(int fd)
{
    struct stat st;
    char last = '\n';
    if (fstat(fd, &st) < 0 || (st.st_size > 0 && pread(fd, &last, 1, st.st_size - 1) != 1))
        return ERR_IO;
    return last == '\n' || write(fd, "\n", 1) == 1 ? 0 : ERR_IO;
}

static int open_log(struct eval *v, struct err *e)
{
    char path[PATH_SIZE];
    TRY(path_in(path, v, "kv.jsonl", e));
    TRY(kv_grid_load(&v->grid, path, e));
    v->log = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (v->log < 0 || end_line(v->log) < 0)
        return err_errno(e, ERR_IO, "%s: cannot write", path);
    return 0;
}

/* Queries kept with every page: what the finest stride asks for, where one is given. */
static int samples_of(const struct kv_grid *g)
{
    int samples = RUNNER_SAMPLES;
    for (int i = 0; i < g->n_variants; i++)
        while (g->variant[i].opt.stride > 0 && samples < KV_PAGE &&
               g->variant[i].opt.stride % (KV_PAGE / samples) != 0)
            samples *= 2;
    return samples;
}

/* Before a text is looked at, which may be too short for them too. A stream is never longer than the model's context. */
static int check_length(const struct eval *v, int length, struct err *e)
{
    for (int t = 0; t < v->grid.n_tasks; t++)
        if (v->grid.task[t]->kind != KV_LONG && length >= v->model->config.ctx_train)
            return too_long(v, "prompts", length, e);
    return 0;
}

/* That every task fits the model, before the first result is there. Questions differ by a few tokens. */
static int check_cases(struct eval *v, struct err *e)
{
    enum { FIRST = 8 };
    for (int t = 0; t < v->grid.n_tasks; t++)
        for (int s = 0; s < v->grid.n_samples && s < FIRST; s++)
            TRY(make_case(v, t, s, e));
    return 0;
}

static int setup(struct eval *v, struct err *e)
{
    const struct config *c = v->config;
    int length = c->length > 0 ? (int)c->length : LENGTH;
    TRY(check_length(v, length, e));
    TRY(kv_maker_open(&v->maker, v->model, c->text, length, (int)c->ctx, e));
    int rows = c->max_batch > KV_JUDGED ? (int)c->max_batch : KV_JUDGED;
    int ctx = length + QUESTION + KV_FED;
    for (int t = 0; t < v->grid.n_tasks; t++)
        if (v->grid.task[t]->kind == KV_LONG && ctx < v->maker.run)
            ctx = v->maker.run;
    enum kv_type type = cli_kv_type(c, v->model->be);
    TRY(runner_open_kv(&v->run, v->model, type, cli_kv_narrow(c, type), 2, ctx, rows, KV_JUDGED,
                       samples_of(&v->grid), e));
    TRY(kv_judge_open(&v->judge, &v->run, e));
    v->grid.settings = settings_of(v);
    TRY(check_cases(v, e));
    return open_log(v, e);
}

static int measure(struct eval *v, struct err *e)
{
    uint64_t total = 0;
    for (int t = 0; t < v->grid.n_tasks; t++)
        for (int s = 0; s < v->grid.n_samples; s++)
            total += (uint64_t)n_missing(v, t, s);
    progress_start(&v->bar, "eval kv", "", total);
    int rc = 0;
    for (int t = 0; t < v->grid.n_tasks; t++)
        for (int s = 0; s < v->grid.n_samples && rc == 0; s++)
            rc = run_sample(v, t, s, e);
    progress_end(&v->bar, rc == 0);
    return rc;
}

static int report(struct eval *v, struct err *e)
{
    const struct config *c = v->config;
    char path[PATH_SIZE];
    char title[512];
    snprintf(title, sizeof title,
             "Model `%s`, prompts of %d tokens and a question, %d samples a task, seed %lld, cache "
             "%s (pressed: %s), %s, %d threads.",
             v->model->config.name, v->maker.length, v->grid.n_samples, (long long)c->seed,
             kv_type_name(kv_pool_shape(v->run.pool)->type),
             kv_narrow_name(kv_pool_shape(v->run.pool)->narrow_type), v->model->be->device,
             par_threads(v->model->be->par));
    TRY(path_in(path, v, "kv.csv", e));
    TRY(kv_report_csv(&v->grid, path, e));
    TRY(kv_report_plots(&v->grid, c->out, e));
    TRY(path_in(path, v, "kv.md", e));
    return kv_report_md(&v->grid, title, path, e);
}

static void add_means(const struct eval *v, struct table *t, int task, int variant, int budget)
{
    struct kv_means m;
    kv_grid_means(&v->grid, task, variant, budget, &m);
    if (m.n == 0)
        return;
    table_str(t, v->grid.task[task]->name);
    table_str(t, variant < 0 ? "-" : v->grid.variant[variant].word);
    table_int(t, variant < 0 ? 0 : v->grid.budget.v[budget]);
    table_num(t, m.bytes, 0);
    table_int(t, m.n);
    table_num(t, m.kl, 4);
    table_num(t, 100 * m.attn, 1);
    table_num(t, 100 * m.top1, 1);
    table_num(t, m.ppl_ratio, 3);
    table_num(t, 100 * m.exact, 1);
    table_num(t, m.first, 1);
    table_num(t, m.press_ms, 1);
}

static int print(const struct eval *v)
{
    static const struct table_col cols[] = {
        { "task", "task" },
        { "policy", "policy" },
        { "budget", "budget" },
        { "bytes", "bytes" },
        { "n", "n" },
        { "kl", "KL" },
        { "attention", "attention error %" },
        { "top1", "top-1 %" },
        { "ppl_ratio", "PPL ratio" },
        { "answers", "answers %" },
        { "first", "first differs" },
        { "press_ms", "press ms" },
    };
    struct table *t;
    if (table_open(&t, cols, sizeof cols / sizeof *cols) < 0)
        return cli_no_table();
    for (int i = 0; i < v->grid.n_tasks; i++)
        add_means(v, t, i, -1, 0);
    for (int i = 0; i < v->grid.n_tasks; i++)
        for (int p = 0; p < v->grid.n_variants; p++)
            for (int b = 0; b < v->grid.budget.n; b++)
                add_means(v, t, i, p, b);
    return cli_table(t, v->config->json);
}

/* What can be told before the model is loaded. */
static int check_asked(struct eval *v, struct err *e)
{
    const struct config *c = v->config;
    TRY(kv_grid_open(&v->grid, c, "64,128,256,512", (int)c->samples, e));
    TRY(texts_check(c->text, e));
    return make_folder(v, e);
}

static int run(struct eval *v, struct session *s, struct err *e)
{
    TRY(check_asked(v, e));
    TRY(session_open(s, v->config, v->config->word[1], true, e));
    v->model = s->model;
    TRY(setup(v, e));
    TRY(measure(v, e));
    return report(v, e);
}

int eval_kv(int argc, char **argv)
{
    struct config c;
    struct err e;
    bool done;
    int code = cli_config(&c, CONFIG_EVAL_KV, usage, 2, argc, argv, &done);
    if (done)
        return code;
    struct session s = { 0 };
    struct eval *v = mem_zalloc(1, sizeof *v);
    if (v == NULL) {
        err_set(&e, ERR_NOMEM, "no memory to start");
        code = cli_fail(&e);
    } else {
        v->config = &c;
        v->log = -1;
        code = run(v, &s, &e) < 0 ? cli_fail(&e) : print(v);
        if (v->log >= 0)
            close(v->log);
        else if (v->made)
            (void)rmdir(c.out);
        kv_judge_close(&v->judge);
        runner_close(&v->run);
        kv_maker_close(&v->maker);
        tok_ids_free(&v->now.prompt);
        kv_grid_close(&v->grid);
    }
    mem_free(v);
    session_close(&s);
    config_free(&c);
    return code;
}
