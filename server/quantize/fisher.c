/* What an error in each row of the layers' matrices costs, for codecs that look at a matrix as a whole (lowrank): the root of the
 * row's Fisher information (server/tune/tune.h), in units of its matrix's mean. */
#include <math.h>
#include <stdio.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/quantize/allocate.h"
#include "server/tune/tune.h"

/* Of the mean information, what a row has at least: what some thousand tokens did not need others may. */
static const double LEAST = .01;

/* Asked before forms are chosen, too: of a family all forms find factors, or none. */
int64_t quantize_fisher_tokens(const struct quantize *q)
{
    const char *codec = quantize_codec(q->config);
    for (int bits = 0; bits <= FAMILY_FORMS; bits++) {
        char digit[12] = "", word[64];
        struct weight w;
        struct err e;
        if (bits > 0)
            snprintf(digit, sizeof digit, "%d", bits);
        int n = snprintf(word, sizeof word, "%s%s", codec, digit);
        if (n < (int)sizeof word && weight_set_form(&w, word, PROBE_COLS, PROBE_COLS, &e) == 0 &&
            w.codec->plan != NULL)
            return q->config->fisher;
    }
    return 0;
}

/* n sequences, evenly spread. */
static int sum_up(struct quantize *q, struct tune *t, int n, double *grad, double *info,
                  struct err *e)
{
    progress_start(&q->bar, "fisher", "tok", (uint64_t)n * (uint64_t)q->text.len);
    for (int i = 0; i < n && !fetch_cancelled(); i++) {
        struct tune_text text = { .len = q->text.len };
        text.token = sequences_at(&q->text, (int)((int64_t)i * q->text.n / n));
        tune_fisher(t, &text, grad, info);
        progress_add(&q->bar, (uint64_t)q->text.len);
    }
    progress_end(&q->bar, !fetch_cancelled());
    return fetch_cancelled() ? err_set(e, ERR_CANCELLED, "stopped") : 0;
}

/* share[n] of a matrix's rows */
static void make_shares(const double *info, int n, float *share)
{
    double mean = 0;
    for (int i = 0; i < n; i++)
        mean += info[i] / n;
    for (int i = 0; i < n; i++) {
        double part = info[i] / mean;
        share[i] = mean > 0 && isfinite(mean) ? (float)sqrt(part > LEAST ? part : LEAST) : 1;
    }
}

static int find_shares(struct quantize *q, struct tune *t, struct err *e)
{
    size_t n = (size_t)tune_count_all(q->model);
    int sequences = (int)(q->config->fisher / q->text.len);
    sequences = sequences < 1 ? 1 : sequences < q->text.n ? sequences : q->text.n;
    double *grad = mem_zalloc(2 * n, sizeof *grad);
    q->share = mem_zalloc(n, sizeof *q->share);
    int rc = grad != NULL && q->share != NULL ? sum_up(q, t, sequences, grad, grad + n, e)
                                              : err_set(e, ERR_NOMEM, "no memory for %zu rows", n);
    for (int i = 0, at = 0; rc == 0 && i < q->model->n_slots; i++) {
        int rows = tune_count(&q->model->slot[i]);
        make_shares(grad + n + at, rows, q->share + at);
        at += rows;
    }
    mem_free(grad);
    return rc;
}

int quantize_fisher(struct quantize *q, struct err *e)
{
    struct tune *t;
    if (quantize_fisher_tokens(q) == 0)
        return 0;
    int rc = tune_open(&t, q->session.model, q->model, q->text.len, e);
    if (rc < 0)
        return err_prefix(e, "fisher (0 does without)");
    rc = find_shares(q, t, e);
    tune_close(t);
    return rc;
}

const float *quantize_shares(const struct quantize *q, const struct slot *s)
{
    const float *share = q->share;
    if (share == NULL || tune_count(s) == 0)
        return NULL;
    for (const struct slot *at = q->model->slot; at != s; at++)
        share += tune_count(at);
    return share;
}
