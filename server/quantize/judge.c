/* The teacher's logits are made again for each comparison, from what its last layer left: kept, they would take vocab / dim
 * times as much memory, a hundred times in small models. */
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/cli/logits.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"

/* All layers of the runner's model for sequence i, to x [len][dim]. */
static int run_layers(const struct judge *j, struct runner *r, int i, float *x, struct err *e)
{
    if (fetch_cancelled())
        return err_set(e, ERR_CANCELLED, "stopped");
    for (int l = 0; l < r->model->config.n_layers; l++)
        TRY(quantize_pass(r, l, sequences_at(j->text, i), j->len, NULL, x, e));
    return 0;
}

static float *truth_of(const struct judge *j, int i)
{
    return j->truth + (size_t)i * (size_t)j->len * (size_t)j->q->model->config.dim;
}

static int open_all(struct judge *j, const struct model *student, struct err *e)
{
    size_t size = (size_t)j->len * (size_t)j->q->model->config.dim;
    j->truth = mem_zalloc((size_t)j->n * size, sizeof *j->truth);
    j->x = mem_zalloc(size, sizeof *j->x);
    if (j->truth == NULL || j->x == NULL)
        return err_set(e, ERR_NOMEM, "no memory to judge with %d x %d tokens", j->n, j->len);
    TRY(quantize_runner(&j->run, student, j->len, e));
    for (int i = 0; i < j->n; i++)
        TRY(run_layers(j, &j->q->run, i, truth_of(j, i), e));
    return 0;
}

int judge_open(struct judge *j, struct quantize *q, const struct sequences *text, int n, int len,
               const struct model *student, struct err *e)
{
    *j = (struct judge){ .q = q,
                         .text = text,
                         .n = text->n < n ? text->n : n,
                         .len = text->len < len ? text->len : len };
    int rc = open_all(j, student, e);
    if (rc < 0)
        judge_close(j);
    return rc;
}

void judge_close(struct judge *j)
{
    runner_close(&j->run);
    mem_free(j->x);
    mem_free(j->truth);
    *j = (struct judge){ 0 };
}

/* Of x [len][dim] from the truth of sequence i. */
static int judge_outputs(struct judge *j, int i, const float *x, double *kl, struct err *e)
{
    const struct model_config *c = &j->q->model->config;
    const float *truth = truth_of(j, i);
    double row[QUANTIZE_OUT], sum = 0;
    for (int r = 0, n; r < j->len; r += n) {
        const float *want;
        const float *is;
        size_t at = (size_t)r * (size_t)c->dim;
        n = j->len - r < j->run.max_out ? j->len - r : j->run.max_out;
        TRY(model_head(j->q->model, j->q->run.ws, truth + at, n, &want, e));
        TRY(model_head(j->run.model, j->run.ws, x + at, n, &is, e));
        logits_kls(j->q->session.be->par, want, is, c->vocab, n, row);
        for (int k = 0; k < n; k++)
            sum += row[k];
    }
    *kl = sum / j->len;
    return 0;
}

int judge_run(struct judge *j, int first, int count, double *kl, struct err *e)
{
    for (int k = 0; k < count; k++) {
        int i = (first + k) % j->n;
        TRY(run_layers(j, &j->run, i, j->x, e));
        TRY(judge_outputs(j, i, j->x, &kl[k], e));
    }
    return 0;
}
