/* Judging by teacher forcing: what is said after a pressed cache, token by token, against what the whole cache says. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/cli/eval_kv.h"

enum { STEP = 64 }; /* rows of logits at once; the most that a runner must give */

int kv_judge_open(struct kv_judge *j, struct runner *run, struct err *e)
{
    *j = (struct kv_judge){ .run = run };
    size_t vocab = (size_t)run->model->config.vocab;
    j->truth = mem_alloc(KV_JUDGED * vocab * sizeof *j->truth);
    return j->truth != NULL ? 0 : err_set(e, ERR_NOMEM, "no memory to judge answers");
}

void kv_judge_close(struct kv_judge *j)
{
    mem_free(j->truth);
    *j = (struct kv_judge){ 0 };
}

struct peak {
    int best;
    double lse;
};

static struct peak peak_of(const float *x, int n)
{
    struct peak p = { 0, 0 };
    double sum = 0;
    for (int i = 1; i < n; i++)
        p.best = x[i] > x[p.best] ? i : p.best;
    for (int i = 0; i < n; i++)
        sum += (double)expf(x[i] - x[p.best]);
    p.lse = (double)x[p.best] + log(sum);
    return p;
}

/* sum_i p_i (log p_i - log q_i), p and q by their logits. */
static double divergence(const float *p, const float *q, int n, double lse_p, double lse_q)
{
    double sum = 0;
    double shift = lse_q - lse_p;
    for (int i = 0; i < n; i++)
        sum += (double)expf(p[i] - (float)lse_p) * ((double)p[i] - (double)q[i] + shift);
    return sum > 0 ? sum : 0;
}

static void judge_rows(void *arg, int first, int last, int i_thread)
{
    struct kv_judge *j = arg;
    int vocab = j->run->model->config.vocab;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        const float *x = j->logits + (size_t)r * (size_t)vocab;
        const float *truth = j->truth + (size_t)(j->at + r) * (size_t)vocab;
        struct kv_row *row = &j->row[j->at + r];
        struct peak p = peak_of(x, vocab);
        row->nll = p.lse - (double)x[j->target[r]];
        row->hit = p.best == j->target[r];
        row->same = true;
        row->kl = 0;
        if (j->is_truth)
            continue;
        struct peak t = peak_of(truth, vocab);
        row->same = p.best == t.best;
        row->kl = divergence(truth, x, vocab, t.lse, p.lse);
    }
}

/* Tokens [first, last) of the probe, which all are judged by their successors, or none is. */
static int feed(struct kv_judge *j, int i_seq, const struct kv_case *c, int first, int last,
                struct err *e)
{
    bool judged = c->answer[first + 1] != 0;
    int n = last - first;
    if (judged && j->n_rows + n > KV_JUDGED)
        return err_set(e, ERR_LIMIT, "more than %d tokens to be judged", KV_JUDGED);
    TRY(runner_append(j->run, i_seq, c->probe + first, n, judged ? n : 0,
                      judged ? &j->logits : NULL, e));
    if (!judged)
        return 0;
    size_t vocab = (size_t)j->run->model->config.vocab;
    j->at = j->n_rows;
    j->target = c->probe + first + 1;
    if (j->is_truth)
        memcpy(j->truth + (size_t)j->at * vocab, j->logits, (size_t)n * vocab * sizeof(float));
    par_for(j->run->model->be->par, n, 1, judge_rows, j);
    for (int i = 0; i < n; i++)
        j->row[j->n_rows++].answer = c->answer[first + 1 + i];
    return 0;
}

static int feed_all(struct kv_judge *j, int i_seq, const struct kv_case *c, struct err *e)
{
    j->n_rows = 0;
    for (int first = 0; first < c->n_probe - 1;) {
        int last = first + 1;
        bool judged = c->answer[first + 1] != 0;
        while (last < c->n_probe - 1 && last - first < STEP && (c->answer[last + 1] != 0) == judged)
            last++;
        TRY(feed(j, i_seq, c, first, last, e));
        first = last;
    }
    return 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sums up the rows of answers that count. */
static void sum_up(const struct kv_judge *j, const bool *counts, int n_answers, struct kv_cell *out)
{
    double kl[KV_JUDGED];
    bool right[KV_ANSWERS + 1];
    int n = 0;
    memset(right, true, sizeof right);
    *out = (struct kv_cell){ .have = true, .depth = -1 };
    for (int r = 0; r < j->n_rows; r++) {
        const struct kv_row *row = &j->row[r];
        if (!counts[row->answer])
            continue;
        right[row->answer] &= row->hit;
        out->top1 += row->same;
        out->nll += row->nll;
        out->nll_full += j->truth_nll[r];
        out->kl += row->kl;
        kl[n++] = row->kl;
    }
    out->tokens = n;
    for (int a = 1; a <= n_answers; a++) {
        out->answers += counts[a];
        out->exact += counts[a] && right[a];
    }
    if (n == 0)
        return;
    qsort(kl, (size_t)n, sizeof *kl, by_value);
    out->kl95 = kl[(n - 1) * 95 / 100];
    out->kl /= n;
    out->top1 /= n;
    out->nll /= n;
    out->nll_full /= n;
    out->exact /= out->answers;
}

int kv_judge_truth(struct kv_judge *j, int i_seq, const struct kv_case *c, struct kv_cell *out,
                   struct err *e)
{
    bool all[KV_ANSWERS + 1];
    memset(all, true, sizeof all);
    memset(j->solved, true, sizeof j->solved);
    j->is_truth = true;
    TRY(feed_all(j, i_seq, c, e));
    for (int r = 0; r < j->n_rows; r++) {
        j->truth_nll[r] = j->row[r].nll;
        j->solved[j->row[r].answer] &= j->row[r].hit;
    }
    sum_up(j, all, c->n_answers, out);
    return 0;
}

int kv_judge_other(struct kv_judge *j, int i_seq, const struct kv_case *c, bool exact,
                   struct kv_cell *out, struct err *e)
{
    bool all[KV_ANSWERS + 1];
    memset(all, true, sizeof all);
    j->is_truth = false;
    TRY(feed_all(j, i_seq, c, e));
    sum_up(j, exact ? j->solved : all, c->n_answers, out);
    return 0;
}
