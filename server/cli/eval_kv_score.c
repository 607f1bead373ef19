/* Judging by teacher forcing: what is said after a pressed cache, token by token, against what the whole cache says.
 *
 * Greedy decoding needs no steps of its own here: up to the token where it first differs from the whole cache's, both are fed
 * the same, so the first divergence is the first row whose choice differs when the whole cache's choices are forced. Rows do
 * not depend on how many share a step, so it is the same one to the bit.
 *
 * What attention gives is compared where W_o reads it, with the same tokens fed: the error of a layer holds that of the keys
 * and values it no longer has and that of the layers below it.
 */
#include <math.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/cli/eval_kv.h"
#include "server/cli/logits.h"

enum {
    STEP = 64,     /* rows of logits at once; the most that a runner must give */
    LONG_STEP = 32 /* of a stream: after each the cache is pressed if that is due */
};

static size_t attn_cols(const struct kv_judge *j)
{
    const struct model_config *c = &j->run->model->config;
    return (size_t)c->n_heads * (size_t)c->head_dim;
}

/* What attention gave the whole cache, of the layer under way, for a row that is compared. */
static float *attn_of(const struct kv_judge *j, int row)
{
    size_t layers = (size_t)j->run->model->config.n_layers;
    return j->attn + ((size_t)(row / j->stride) * layers + (size_t)j->layer) * attn_cols(j);
}

static double relative_error(const float *x, const float *whole, int n)
{
    double off = 0;
    double all = 0;
    for (int i = 0; i < n; i++) {
        double d = (double)x[i] - (double)whole[i];
        off += d * d;
        all += (double)whole[i] * (double)whole[i];
    }
    return off > 0 ? sqrt(off / all) : 0;
}

/* Of an observer: the rows of the step under way in the next layer. */
static void see_attention(void *arg, enum layer_input what, const float *x, int n, int cols)
{
    struct kv_judge *j = arg;
    if (what != INPUT_OF_O)
        return;
    for (int r = 0; r < n; r++) {
        const float *y = x + (ptrdiff_t)r * cols;
        if ((j->at + r) % j->stride != 0)
            continue;
        float *whole = attn_of(j, j->at + r);
        if (j->row == j->of_whole)
            memcpy(whole, y, (size_t)cols * sizeof *y);
        else
            j->row[j->at + r].attn += relative_error(y, whole, cols);
    }
    j->layer++;
}

int kv_judge_open(struct kv_judge *j, struct runner *run, struct err *e)
{
    const struct model *m = run->model;
    *j = (struct kv_judge){ .run = run, .observer = { see_attention, j } };
    size_t vocab = (size_t)m->config.vocab;
    size_t layers = (size_t)m->config.n_layers;
    if (m->be->host)
        j->attn = mem_alloc(KV_JUDGED * layers * attn_cols(j) * sizeof *j->attn);
    j->truth = mem_alloc(KV_JUDGED * vocab * sizeof *j->truth);
    j->of_whole = mem_zalloc(KV_PROBE, sizeof *j->of_whole);
    j->of_other = mem_zalloc(KV_PROBE, sizeof *j->of_other);
    if (j->truth != NULL && j->of_whole != NULL && j->of_other != NULL &&
        (j->attn != NULL || !m->be->host))
        return 0;
    kv_judge_close(j);
    return err_set(e, ERR_NOMEM, "no memory to judge answers");
}

void kv_judge_close(struct kv_judge *j)
{
    mem_free(j->of_other);
    mem_free(j->of_whole);
    mem_free(j->attn);
    mem_free(j->truth);
    *j = (struct kv_judge){ 0 };
}

/* ---- one sequence -------------------------------------------------------------------------------------------------- */

static void judge_rows(void *arg, int first, int last, int i_thread)
{
    struct kv_judge *j = arg;
    int vocab = j->run->model->config.vocab;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        const float *x = j->logits + (ptrdiff_t)r * vocab;
        float *truth = j->truth + (ptrdiff_t)((j->at + r) / j->stride) * vocab;
        struct kv_row *row = &j->row[j->at + r];
        struct peak p = logits_peak(x, vocab);
        row->nll = p.lse - (double)x[j->target[r]];
        row->best = p.best;
        row->hit = p.best == j->target[r];
        row->kl = 0;
        if ((j->at + r) % j->stride != 0)
            continue;
        if (j->row == j->of_whole)
            memcpy(truth, x, (size_t)vocab * sizeof *x);
        else
            row->kl = logits_kl(truth, x, vocab, logits_peak(truth, vocab).lse, p.lse);
    }
}

/* Feeds n tokens whose rows are judged, from row n_rows on. */
static int append_judged(struct kv_judge *j, int i_seq, const int32_t *token, int n, struct err *e)
{
    struct workspace *ws = j->run->ws;
    j->at = j->n_rows;
    j->layer = 0;
    for (int r = 0; r < n; r++)
        j->row[j->at + r].attn = j->attn != NULL ? 0 : (double)NAN;
    if (j->attn != NULL)
        TRY(workspace_observe(ws, &j->observer, e));
    int rc = runner_append(j->run, i_seq, token, n, n, &j->logits, e);
    if (j->attn != NULL)
        TRY(workspace_observe(ws, NULL, e));
    return rc;
}

/* Tokens [first, last) of the probe, which all are judged by their successors, or none is. */
static int feed(struct kv_judge *j, int i_seq, const struct kv_case *c, int first, int last,
                struct err *e)
{
    bool judged = c->answer[first + 1] != 0;
    int n = last - first;
    if (!judged)
        return runner_append(j->run, i_seq, c->probe + first, n, 0, NULL, e);
    TRY(append_judged(j, i_seq, c->probe + first, n, e));
    j->target = c->probe + first + 1;
    par_for(j->run->model->be->par, n, 1, judge_rows, j);
    for (int i = 0; i < n; i++)
        j->row[j->n_rows++].answer = c->answer[first + 1 + i];
    return 0;
}

static int feed_all(struct kv_judge *j, int i_seq, const struct kv_case *c, bool press,
                    struct err *e)
{
    int step = press ? LONG_STEP : STEP;
    for (int first = 0; first < c->n_probe - 1;) {
        int last = first + 1;
        bool judged = c->answer[first + 1] != 0;
        while (last < c->n_probe - 1 && last - first < step && (c->answer[last + 1] != 0) == judged)
            last++;
        if (press)
            TRY(runner_press(j->run, i_seq, &j->report, e));
        TRY(feed(j, i_seq, c, first, last, e));
        size_t bytes = kv_seq_bytes(&j->run->seq[i_seq], j->run->pool);
        if (press && bytes > j->bytes)
            j->bytes = bytes;
        first = last;
    }
    return 0;
}

/* The whole cache's choices, one after the other, are what goes on: they join the probe. */
static int choose_all(struct kv_judge *j, int i_seq, struct kv_case *c, struct err *e)
{
    int vocab = j->run->model->config.vocab;
    TRY(feed_all(j, i_seq, c, false, e));
    for (int i = 0; i < KV_GREEDY; i++) {
        TRY(append_judged(j, i_seq, c->probe + c->n_probe - 1, 1, e));
        int32_t best = logits_peak(j->logits, vocab).best;
        TRY(kv_maker_feed_ids(c, &best, 1, 1, e));
        j->target = &best;
        judge_rows(j, 0, 1, 0);
        j->row[j->n_rows++].answer = 1;
    }
    return 0;
}

/* Presses the sequence for the first time and makes ready for its rows. */
static int start(struct kv_judge *j, int i_seq, struct kv_row *row, struct err *e)
{
    const struct kv_seq *s = &j->run->seq[i_seq];
    j->row = row;
    j->n_rows = 0;
    j->report = (struct kv_report){ 0 };
    TRY(runner_press(j->run, i_seq, &j->report, e));
    j->mass = kv_seq_pressed(s) ? (double)j->report.mass_mean : 1;
    j->bytes = kv_seq_bytes(s, j->run->pool);
    return 0;
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

/* Mean and 95th percentile of the divergences that were measured, and the mean error of attention. */
static void sum_up_compared(const struct kv_judge *j, const bool *counts, struct kv_cell *out)
{
    double kl[KV_JUDGED];
    int n = 0;
    for (int r = 0; r < j->n_rows; r += j->stride) {
        if (!counts[j->row[r].answer])
            continue;
        out->kl += j->row[r].kl;
        out->attn += j->row[r].attn;
        kl[n++] = j->row[r].kl;
    }
    if (n == 0)
        return;
    cli_sort(kl, n);
    out->kl95 = kl[(n - 1) * 95 / 100];
    out->kl /= n;
    out->attn /= n * j->run->model->config.n_layers;
}

/* Sums up the rows of answers that count. */
static void sum_up(const struct kv_judge *j, const bool *counts, int n_answers, struct kv_cell *out)
{
    bool right[KV_ANSWERS + 1];
    bool same = true;
    memset(right, true, sizeof right);
    *out = (struct kv_cell){ .have = true,
                             .mass = j->mass,
                             .bytes = (double)j->bytes,
                             .pressings = j->report.n_compactions,
                             .press_ms = (double)j->report.ns * 1e-6,
                             .depth = -1 };
    for (int r = 0; r < j->n_rows; r++) {
        const struct kv_row *row = &j->row[r];
        const struct kv_row *whole = &j->of_whole[r];
        if (!counts[row->answer])
            continue;
        right[row->answer] &= row->hit;
        same &= row->best == whole->best;
        out->first += same;
        out->top1 += row->best == whole->best;
        out->nll += row->nll;
        out->nll_full += whole->nll;
        out->tokens++;
    }
    for (int a = 1; a <= n_answers; a++) {
        out->answers += counts[a];
        out->exact += counts[a] && right[a];
    }
    if (out->tokens == 0)
        return;
    sum_up_compared(j, counts, out);
    out->top1 /= out->tokens;
    out->nll /= out->tokens;
    out->nll_full /= out->tokens;
    out->exact /= out->answers;
}

/* Of how many rows one is compared, so that there is room for all that are. */
static int stride_of(const struct kv_case *c)
{
    int n = 0;
    for (int i = 0; i < c->n_probe; i++)
        n += c->answer[i] != 0;
    return n > KV_JUDGED ? (n + KV_JUDGED - 1) / KV_JUDGED : 1;
}

int kv_judge_whole(struct kv_judge *j, int i_seq, const struct kv_task *t, struct kv_case *c,
                   struct kv_cell *out, struct err *e)
{
    bool all[KV_ANSWERS + 1];
    memset(all, true, sizeof all);
    memset(j->solved, true, sizeof j->solved);
    j->stride = stride_of(c);
    TRY(start(j, i_seq, j->of_whole, e));
    if (t->kind == KV_CHOICE)
        TRY(choose_all(j, i_seq, c, e));
    else
        TRY(feed_all(j, i_seq, c, t->kind == KV_LONG, e));
    for (int r = 0; r < j->n_rows; r++)
        j->solved[j->row[r].answer] &= j->row[r].hit;
    sum_up(j, all, c->n_answers, out);
    return 0;
}

int kv_judge_other(struct kv_judge *j, int i_seq, const struct kv_task *t, const struct kv_case *c,
                   struct kv_cell *out, struct err *e)
{
    bool all[KV_ANSWERS + 1];
    memset(all, true, sizeof all);
    TRY(start(j, i_seq, j->of_other, e));
    TRY(feed_all(j, i_seq, c, t->kind == KV_LONG, e));
    sum_up(j, t->kind == KV_ANSWER ? j->solved : all, c->n_answers, out);
    return 0;
}
