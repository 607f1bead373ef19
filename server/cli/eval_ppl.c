/* wring eval ppl: perplexity in the convention of llama-perplexity, so that figures can be put side by side.
 *
 * The text is cut into chunks of ctx tokens; in each, the first token is replaced by BOS where the vocabulary asks for
 * one, and the tokens of the second half are judged, each given everything before it in the chunk. The error is the
 * standard error of the mean negative log-likelihood, times the perplexity.
 */
#include <math.h>
#include <stdio.h>

#include "server/base/mem.h"
#include "server/base/progress.h"
#include "server/cli/cli.h"
#include "server/cli/eval.h"
#include "server/cli/runner.h"

static const char usage[] = "eval ppl MODEL TEXT [options]";

enum { EVAL_OUT = 128 }; /* rows of logits a step */

struct ppl {
    struct runner run;
    const struct model *model;
    struct tok_ids text;
    int ctx, n_chunks;
    double nll, nll2;
    int64_t count;
    /* of the step under way */
    const float *logits;
    const int32_t *next; /* [rows] the tokens that came */
    double row_nll[EVAL_OUT];
};

static void judge_rows(void *arg, int first, int last, int i_thread)
{
    struct ppl *p = arg;
    (void)i_thread;
    int vocab = p->model->config.vocab;
    for (int r = first; r < last; r++) {
        const float *x = p->logits + (size_t)r * (size_t)vocab;
        float max = x[0];
        for (int i = 1; i < vocab; i++)
            max = x[i] > max ? x[i] : max;
        double sum = 0;
        for (int i = 0; i < vocab; i++)
            sum += (double)expf(x[i] - max);
        p->row_nll[r] = log(sum) + (double)max - (double)x[p->next[r]];
    }
}

static int judge_chunk(struct ppl *p, const int32_t *token, struct err *e)
{
    int first = p->ctx / 2;
    runner_reset(&p->run);
    for (int i = 0; i < first; i += p->run.max_rows) {
        int n = first - i < p->run.max_rows ? first - i : p->run.max_rows;
        TRY(runner_append(&p->run, 0, token + i, n, 0, &p->logits, e));
    }
    for (int i = first; i < p->ctx - 1; i += EVAL_OUT) {
        int n = p->ctx - 1 - i < EVAL_OUT ? p->ctx - 1 - i : EVAL_OUT;
        TRY(runner_append(&p->run, 0, token + i, n, n, &p->logits, e));
        p->next = token + i + 1;
        par_for(p->model->be->par, n, 1, judge_rows, p);
        for (int r = 0; r < n; r++) {
            p->nll += p->row_nll[r];
            p->nll2 += p->row_nll[r] * p->row_nll[r];
        }
        p->count += n;
    }
    return 0;
}

static int judge_text(struct ppl *p, struct err *e)
{
    struct progress bar;
    bool add_bos = tok_adds_bos(p->model->tok);
    progress_start(&bar, "perplexity", "tok", (uint64_t)p->n_chunks * (uint64_t)p->ctx);
    int rc = 0;
    for (int i = 0; rc == 0 && i < p->n_chunks; i++) {
        int32_t *token = p->text.id + (size_t)i * (size_t)p->ctx;
        if (add_bos)
            token[0] = tok_bos(p->model->tok);
        rc = judge_chunk(p, token, e);
        progress_add(&bar, (uint64_t)p->ctx);
    }
    progress_end(&bar);
    return rc;
}

static int read_text(struct ppl *p, const char *path, struct err *e)
{
    struct buf b;
    buf_init(&b, (size_t)1 << 30);
    int rc = buf_read_file(&b, path, e);
    if (rc == 0 && tok_encode(p->model->tok, buf_str(&b), b.len, TOK_ADD_BOS, &p->text) < 0)
        rc = err_set(e, ERR_NOMEM, "no memory for the tokens of %s", path);
    buf_free(&b);
    return rc;
}

static int run_ppl(struct ppl *p, const struct config *c, struct err *e)
{
    TRY(read_text(p, c->word[2], e));
    p->ctx = c->ctx > 0 ? (int)c->ctx : 512;
    p->n_chunks = p->text.n / p->ctx;
    if (c->chunks > 0 && c->chunks < p->n_chunks)
        p->n_chunks = (int)c->chunks;
    if (p->ctx < 4 || p->n_chunks < 1)
        return err_set(e, ERR_INVALID,
                       "%s has %d tokens; one chunk of --ctx %d (at least 4) is needed", c->word[2],
                       p->text.n, p->ctx);
    int rows = c->max_batch > EVAL_OUT ? (int)c->max_batch : EVAL_OUT;
    enum kv_type type = cli_kv_type(c, p->model->be);
    TRY(runner_open(&p->run, p->model, type, 1, p->ctx, rows, EVAL_OUT, e));
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
    struct err e;
    double n = (double)p->count;
    double mean = p->nll / n;
    double ppl = exp(mean);
    double var = p->nll2 / n - mean * mean;
    if (table_open(&t, cols, 5) < 0) {
        err_set(&e, ERR_NOMEM, "no memory for the table");
        return cli_fail(&e);
    }
    table_num(t, ppl, 4);
    table_num(t, ppl * sqrt(var > 0 ? var / (n - 1) : 0), 4);
    table_int(t, p->count);
    table_int(t, p->n_chunks);
    table_int(t, p->ctx);
    return cli_table(t, json);
}

int eval_ppl(int argc, char **argv)
{
    struct config c;
    struct err e;
    bool done;
    int code = cli_config(&c, CONFIG_EVAL, usage, 3, argc, argv, &done);
    if (done)
        return code;
    struct session s = { 0 };
    struct ppl p = { 0 };
    if (session_open(&s, &c, c.word[1], true, &e) < 0)
        code = cli_fail(&e);
    else {
        p.model = s.model;
        code = run_ppl(&p, &c, &e) < 0 ? cli_fail(&e) : print_ppl(&p, c.json);
    }
    runner_close(&p.run);
    tok_ids_free(&p.text);
    session_close(&s);
    config_free(&c);
    return code;
}
