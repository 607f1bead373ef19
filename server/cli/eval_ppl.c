/* wring eval ppl: perplexity in the convention of llama-perplexity, so that figures can be put side by side.
 *
 * The text is cut into chunks of ctx tokens; in each, the first token is replaced by BOS where the vocabulary asks for
 * one, and the tokens of the second half are judged, each given everything before it in the chunk. The error is the
 * standard error of the mean negative log-likelihood, times the perplexity.
 */
#include <math.h>
#include <stdio.h>

#include "server/base/progress.h"
#include "server/cli/chunks.h"
#include "server/cli/cli.h"
#include "server/cli/eval.h"
#include "server/cli/logits.h"
#include "server/cli/runner.h"

static const char usage[] = "eval ppl MODEL TEXT [options]";

struct ppl {
    struct runner run;
    const struct model *model;
    struct chunks text;
    double nll, nll2;
    int64_t count;
};

static int judge_chunk(struct ppl *p, const int32_t *token, struct err *e)
{
    const struct model *m = p->model;
    const float *logits;
    double nll[EVAL_OUT];
    int ctx = p->text.ctx;
    int first = ctx / 2;
    runner_reset(&p->run);
    for (int i = 0; i < first; i += p->run.max_rows) {
        int n = first - i < p->run.max_rows ? first - i : p->run.max_rows;
        TRY(runner_append(&p->run, 0, token + i, n, 0, &logits, e));
    }
    for (int i = first; i < ctx - 1; i += EVAL_OUT) {
        int n = ctx - 1 - i < EVAL_OUT ? ctx - 1 - i : EVAL_OUT;
        TRY(runner_append(&p->run, 0, token + i, n, n, &logits, e));
        logits_nll(m->be->par, logits, m->config.vocab, token + i + 1, n, nll);
        for (int r = 0; r < n; r++) {
            p->nll += nll[r];
            p->nll2 += nll[r] * nll[r];
        }
        p->count += n;
    }
    return 0;
}

static int judge_text(struct ppl *p, struct err *e)
{
    struct progress bar;
    const struct chunks *t = &p->text;
    progress_start(&bar, "perplexity", "tok", (uint64_t)t->n * (uint64_t)t->ctx);
    int rc = 0;
    for (int i = 0; rc == 0 && i < t->n; i++) {
        rc = judge_chunk(p, chunks_at(t, i), e);
        progress_add(&bar, (uint64_t)t->ctx);
    }
    progress_end(&bar, rc == 0);
    return rc;
}

static int run_ppl(struct ppl *p, const struct config *c, struct err *e)
{
    int trained = p->model->config.ctx_train;
    TRY(chunks_open(&p->text, c, p->model->tok, trained, c->word[2], e));
    session_check_ctx(p->text.ctx, trained);
    int rows = c->max_batch > EVAL_OUT ? (int)c->max_batch : EVAL_OUT;
    enum kv_type type = cli_kv_type(c, p->model->be);
    TRY(runner_open(&p->run, p->model, type, 1, p->text.ctx, rows, EVAL_OUT, e));
    return judge_text(p, e);
}

static int print_ppl(const struct ppl *p, bool json)
{
    static const struct table_col cols[] = { { "ppl", "perplexity" },
                                             { "err", "+/-" },
                                             { "tokens", "tokens" },
                                             { "chunks", "chunks" },
                                             { "ctx", "ctx" } };
    struct table *t;
    double n = (double)p->count;
    double mean = p->nll / n;
    double ppl = exp(mean);
    double var = p->nll2 / n - mean * mean;
    if (table_open(&t, cols, 5) < 0)
        return cli_no_table();
    table_num(t, ppl, 4);
    table_num(t, ppl * sqrt(var > 0 ? var / (n - 1) : 0), 4);
    table_int(t, p->count);
    table_int(t, p->text.n);
    table_int(t, p->text.ctx);
    return cli_table(t, json);
}

int eval_ppl(int argc, char **argv)
{
    struct config c;
    struct err e;
    bool done;
    int code = cli_config(&c, CONFIG_EVAL_PPL, usage, 3, argc, argv, &done);
    if (done)
        return code;
    struct session s = { 0 };
    struct ppl p = { 0 };
    if (file_check(c.word[2], &e) < 0 || session_open(&s, &c, c.word[1], true, &e) < 0)
        code = cli_fail(&e);
    else {
        p.model = s.model;
        code = run_ppl(&p, &c, &e) < 0 ? cli_fail(&e) : print_ppl(&p, c.json);
    }
    runner_close(&p.run);
    chunks_close(&p.text);
    session_close(&s);
    config_free(&c);
    return code;
}
