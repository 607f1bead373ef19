/* From a step's logits to tokens and log-probabilities: one result for each row that was asked for.
 *
 * On the CPU the samplers read the rows where they are, side by side (a row is some 100 us of one core). From other memory
 * only what the head op leaves of a row comes over, 2 KiB instead of 500; the few rows that this is not enough for
 * (sampling that keeps more than BE_HEAD_TOP tokens) are fetched whole, one after the other.
 */
#include "server/base/mem.h"
#include "server/engine/engine_internal.h"

int choose_open(struct engine *en, struct err *e)
{
    size_t n = (size_t)en->max_out, vocab = (size_t)en->model->config.vocab;
    if (en->model->be->host)
        return 0;
    if ((en->head_row = mem_zalloc(n, sizeof *en->head_row)) == NULL ||
        (en->head_out = mem_zalloc(n, sizeof *en->head_out)) == NULL ||
        (en->fetched = mem_zalloc(vocab, sizeof *en->fetched)) == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the results of %d rows", en->max_out);
    return 0;
}

void choose_close(struct engine *en)
{
    mem_free(en->fetched);
    mem_free(en->head_out);
    mem_free(en->head_row);
}

bool out_is_next(const struct out_row *o)
{
    return o->pos + 1 == o->seq->n_tokens && o->pos + 1 >= o->seq->job->n_prompt;
}

static int32_t scored_id(const struct out_row *o)
{
    return o->seq->token[o->pos + 1];
}

static void score(const struct engine *en, struct out_row *o, const float *logits)
{
    sample_logprobs(logits, en->model->config.vocab, scored_id(o), o->seq->job->sample.n_logprobs,
                    &o->result);
}

/* ---- rows in ordinary memory ----------------------------------------------------------------------------------- */

static void read_rows(void *arg, int first, int last, int i_thread)
{
    struct engine *en = arg;
    (void)i_thread;
    for (int i = first; i < last; i++) {
        struct out_row *o = &en->out[i];
        const float *x = en->logits + (size_t)i * (size_t)en->model->config.vocab;
        if (out_is_next(o))
            sampler_next(o->seq->sampler, x, &o->result);
        else
            score(en, o, x);
    }
}

/* ---- rows elsewhere -------------------------------------------------------------------------------------------- */

static void take_rows(void *arg, int first, int last, int i_thread)
{
    struct engine *en = arg;
    (void)i_thread;
    for (int i = first; i < last; i++) {
        struct out_row *o = &en->out[i];
        if (out_is_next(o))
            o->taken = sampler_take(o->seq->sampler, &en->head_out[i], &o->result);
        else
            o->taken =
                sample_head_logprobs(&en->head_out[i], o->seq->job->sample.n_logprobs, &o->result);
    }
}

static int fetch_row(struct engine *en, int i, struct err *e)
{
    struct be *be = en->model->be;
    struct out_row *o = &en->out[i];
    size_t vocab = (size_t)en->model->config.vocab;
    be->ops->download(be, en->fetched, en->logits + (size_t)i * vocab, vocab * sizeof(float));
    TRY(be->ops->sync(be, e));
    if (out_is_next(o))
        sampler_pick(o->seq->sampler, en->fetched, &o->result);
    else
        score(en, o, en->fetched);
    return 0;
}

static int choose_there(struct engine *en, int n, struct err *e)
{
    struct be *be = en->model->be;
    for (int i = 0; i < n; i++) {
        const struct out_row *o = &en->out[i];
        if (out_is_next(o))
            sampler_head(o->seq->sampler, &en->head_row[i]);
        else
            en->head_row[i] = (struct be_head_row){ .repetition = 1, .pick = scored_id(o) };
    }
    be->ops->head(be, en->logits, n, en->model->config.vocab, en->head_row, en->head_out);
    TRY(be->ops->sync(be, e)); /* after a failure the results are nobody's */
    par_for(be->par, n, 1, take_rows, en);
    for (int i = 0; i < n; i++)
        if (!en->out[i].taken)
            TRY(fetch_row(en, i, e));
    return 0;
}

int choose(struct engine *en, int n_out, struct err *e)
{
    if (n_out == 0)
        return 0;
    if (!en->model->be->host)
        return choose_there(en, n_out, e);
    par_for(en->model->be->par, n_out, 1, read_rows, en);
    return 0;
}
