#include "server/cli/eval_tasks.h"

#include <math.h>
#include <string.h>

#include "server/base/progress.h"
#include "server/cli/eval.h"
#include "server/cli/logits.h"
#include "server/cli/runner.h"

static const char usage[] = "eval tasks MODEL FILE [options]";

enum { SHARED, WHOLE }; /* sequences: what all endings follow, and a fork of it with one of them */

struct judge {
    const struct model *model;
    struct runner run;
    int ctx;
    struct buf text;
    struct tok_ids context, whole[TASK_ENDINGS]; /* of the task under way */
};

static const struct kv_options keep_all = { 0 };

/* ---- one task ------------------------------------------------------------------------------------------------------- */

static int encode(struct judge *j, const char *context, const char *ending, struct tok_ids *out,
                  struct err *e)
{
    buf_clear(&j->text);
    buf_adds(&j->text, context);
    if (ending != NULL)
        buf_addf(&j->text, " %s", ending);
    out->n = 0;
    if (j->text.bad != 0 ||
        tok_encode(j->model->tok, buf_str(&j->text), j->text.len, TOK_ADD_BOS, out) < 0)
        return err_set(e, ERR_NOMEM, "no memory for the tokens of a task");
    return 0;
}

static int encode_all(struct judge *j, const struct task *t, struct err *e)
{
    TRY(encode(j, t->context, NULL, &j->context, e));
    for (int i = 0; i < TASK_ENDINGS; i++) {
        TRY(encode(j, t->context, t->ending[i], &j->whole[i], e));
        if (j->whole[i].n > j->ctx)
            return err_set(e, ERR_LIMIT, "%d tokens do not fit a context of %d: give more --ctx",
                           j->whole[i].n, j->ctx);
    }
    return 0;
}

/* How many tokens the context and all wholes begin with; each whole has more. */
static int n_shared(const struct judge *j)
{
    int n = j->context.n;
    for (int i = 0; i < TASK_ENDINGS; i++) {
        const struct tok_ids *w = &j->whole[i];
        int same = 0;
        while (same < n && same < w->n - 1 && w->id[same] == j->context.id[same])
            same++;
        n = same;
    }
    return n;
}

/* The sum of the log-likelihoods of w's tokens behind the first n, which but for the last of them are in SHARED. */
static int judge_ending(struct judge *j, const struct tok_ids *w, int n, double *sum, struct err *e)
{
    const struct model *m = j->model;
    const float *logits;
    double nll[EVAL_OUT];
    *sum = 0;
    TRY(runner_fork(&j->run, WHOLE, SHARED, &keep_all, e));
    for (int i = n - 1; i < w->n - 1; i += EVAL_OUT) {
        int rows = w->n - 1 - i < EVAL_OUT ? w->n - 1 - i : EVAL_OUT;
        TRY(runner_append(&j->run, WHOLE, w->id + i, rows, rows, &logits, e));
        logits_nll(m->be->par, logits, m->config.vocab, w->id + i + 1, rows, nll);
        for (int r = 0; r < rows; r++)
            *sum -= nll[r];
    }
    return 0;
}

/* Whether the right ending is the likeliest: by sums, and per byte. */
static int judge_task(struct judge *j, const struct task *t, bool *hit, bool *hit_norm,
                      struct err *e)
{
    double sum[TASK_ENDINGS];
    double norm[TASK_ENDINGS];
    int best = 0;
    int best_norm = 0;
    TRY(encode_all(j, t, e));
    int n = n_shared(j);
    if (n == 0)
        return err_set(e, ERR_FORMAT, "its endings have no token in front of them");
    TRY(runner_begin(&j->run, SHARED, &keep_all, n - 1, e));
    TRY(runner_prefill(&j->run, SHARED, j->context.id, n - 1, e));
    for (int i = 0; i < TASK_ENDINGS; i++) {
        TRY(judge_ending(j, &j->whole[i], n, &sum[i], e));
        if (!isfinite(sum[i]))
            return err_set(e, ERR_FORMAT, "what the model makes of its endings is no number");
        norm[i] = sum[i] / (double)strlen(t->ending[i]);
        best = sum[i] > sum[best] ? i : best;
        best_norm = norm[i] > norm[best_norm] ? i : best_norm;
    }
    *hit = best == t->right;
    *hit_norm = best_norm == t->right;
    return 0;
}

/* ---- all of them ---------------------------------------------------------------------------------------------------- */

static void share(int hits, int n, double *mean, double *error)
{
    *mean = (double)hits / n;
    *error = n > 1 ? sqrt(*mean * (1 - *mean) / (n - 1)) : NAN;
}

static int judge_all(struct judge *j, const struct tasks *t, int n, struct tasks_result *out,
                     struct err *e)
{
    struct progress bar;
    int rc = 0;
    int hits = 0;
    int hits_norm = 0;
    progress_start(&bar, "eval tasks", "", (uint64_t)n);
    for (int i = 0; i < n && rc == 0; i++) {
        bool hit = false;
        bool norm = false;
        rc = judge_task(j, &t->task[i], &hit, &norm, e);
        if (rc < 0)
            err_prefix(e, "the task at line %d", t->task[i].line);
        hits += hit;
        hits_norm += norm;
        progress_add(&bar, 1);
    }
    progress_end(&bar, rc == 0);
    out->n = n;
    share(hits, n, &out->acc, &out->acc_err);
    share(hits_norm, n, &out->norm, &out->norm_err);
    return rc;
}

int tasks_measure(const struct model *m, const struct tasks *t, const struct config *c,
                  struct tasks_result *out, struct err *e)
{
    struct judge j = { .model = m, .ctx = m->config.ctx_train };
    if (j.ctx > TASK_CTX)
        j.ctx = TASK_CTX;
    if (c->ctx > 0)
        j.ctx = (int)c->ctx;
    buf_init(&j.text, 1 << 20);
    int n = c->samples < t->n ? (int)c->samples : t->n;
    int rows = c->max_batch > EVAL_OUT ? (int)c->max_batch : EVAL_OUT;
    int rc = runner_open(&j.run, m, cli_kv_type(c, m->be), 2, j.ctx, rows, EVAL_OUT, e);
    if (rc == 0)
        rc = judge_all(&j, t, n, out, e);
    for (int i = 0; i < TASK_ENDINGS; i++)
        tok_ids_free(&j.whole[i]);
    tok_ids_free(&j.context);
    buf_free(&j.text);
    runner_close(&j.run);
    return rc;
}

/* ---- the command ---------------------------------------------------------------------------------------------------- */

static int print(const struct tasks_result *r, bool json)
{
    static const struct table_col cols[] = { { "acc", "accuracy" },
                                             { "acc_err", "+/-" },
                                             { "acc_norm", "per byte" },
                                             { "acc_norm_err", "+/-" },
                                             { "tasks", "tasks" } };
    struct table *t;
    if (table_open(&t, cols, sizeof cols / sizeof *cols) < 0)
        return cli_no_table();
    table_num(t, r->acc, 4);
    table_num(t, r->acc_err, 4);
    table_num(t, r->norm, 4);
    table_num(t, r->norm_err, 4);
    table_int(t, r->n);
    return cli_table(t, json);
}

/* The file first: it is read in no time, a model is not. */
static int run(struct session *s, struct tasks *t, const struct config *c, struct tasks_result *out,
               struct err *e)
{
    TRY(tasks_open(t, c->word[2], (uint64_t)c->seed, e));
    TRY(session_open(s, c, c->word[1], true, e));
    return tasks_measure(s->model, t, c, out, e);
}

int eval_tasks(int argc, char **argv)
{
    struct config c;
    struct err e;
    bool done;
    int code = cli_config(&c, CONFIG_EVAL_TASKS, usage, 3, argc, argv, &done);
    if (done)
        return code;
    struct session s = { 0 };
    struct tasks t = { 0 };
    struct tasks_result r;
    code = run(&s, &t, &c, &r, &e) < 0 ? cli_fail(&e) : print(&r, c.json);
    tasks_close(&t);
    session_close(&s);
    config_free(&c);
    return code;
}
