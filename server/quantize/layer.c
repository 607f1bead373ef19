#include <stdio.h>

#include "quant/moments.h"
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/model/arch.h"
#include "server/quantize/quantize.h"

/* Rows of more than MASSIVE times the median square length count with that length: the first token of a sequence has one
 * ten thousand times the median in some models, and H would be that token's and nobody else's. */
enum { MASSIVE = 100 };

int quantize_layer_of(const char *tensor)
{
    int layer;
    return sscanf(tensor, "blk.%d.", &layer) == 1 ? layer : -1;
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

int sums_open(struct sums *s, const struct model *m, int layer, struct err *e)
{
    *s = (struct sums){ 0 };
    for (int i = 0; i < m->n_slots; i++) {
        const struct slot *t = &m->slot[i];
        if (t->w == NULL || quantize_layer_of(t->name) != layer || s->h[t->reads] != NULL)
            continue;
        s->cols[t->reads] = t->cols;
        s->h[t->reads] = mem_zalloc((size_t)t->cols * (size_t)t->cols, sizeof(float));
        if (s->h[t->reads] == NULL) {
            sums_close(s);
            return err_set(e, ERR_NOMEM, "no memory for %d x %d second moments", t->cols, t->cols);
        }
    }
    return 0;
}

void sums_close(struct sums *s)
{
    for (int i = 0; i < LAYER_INPUTS; i++)
        mem_free(s->h[i]);
    *s = (struct sums){ 0 };
}

struct watch {
    struct sums *sums;
    const struct be *be;
    double *length; /* [rows] scratch */
};

static float median_length(const float *x, int n, int cols, double *length)
{
    for (int r = 0; r < n; r++) {
        const float *row = x + (size_t)r * (size_t)cols;
        double sum = 0;
        for (int i = 0; i < cols; i++)
            sum += (double)row[i] * (double)row[i];
        length[r] = sum;
    }
    cli_sort(length, n);
    return (float)length[(n - 1) / 2];
}

static void see(void *arg, enum layer_input what, const float *x, int n, int cols)
{
    struct watch *w = arg;
    ASSERT(w->sums->h[what] != NULL && w->sums->cols[what] == cols);
    float cap = MASSIVE * median_length(x, n, cols, w->length);
    moments_add(w->sums->h[what], x, n, cols, cap, w->be->isa, w->be->par);
}

/* ---- the layer --------------------------------------------------------------------------------------------------- */

int quantize_runner(struct runner *r, const struct model *m, int len, struct err *e)
{
    TRY(runner_open(r, m, KV_F32, 1, len, len, len < QUANTIZE_OUT ? len : QUANTIZE_OUT, e));
    if (kv_seq_reserve(&r->seq[0], r->pool, len) < 0) {
        runner_close(r);
        return err_set(e, ERR_LIMIT, "no room for a sequence of %d tokens", len);
    }
    for (int i = 0; i < len; i++)
        r->pos[i] = i;
    return 0;
}

/* Every sequence takes the place of the one before in the cache: a layer writes all keys that its rows then see. */
int quantize_pass(struct runner *r, int layer, const int32_t *token, int len,
                  const struct observer *o, float *x, struct err *e)
{
    r->batch_seq[0] = (struct batch_seq){ .kv = &r->seq[0], .n_rows = len };
    struct batch b = {
        .n_rows = len, .n_seqs = 1, .token = token, .pos = r->pos, .seq = r->batch_seq
    };
    return model_layer(r->model, r->ws, r->pool, &b, layer, o, x, e);
}

int quantize_run_sequence(struct quantize *q, int layer, int i, int len, const struct observer *o,
                          float *x, struct err *e)
{
    return quantize_pass(&q->run, layer, sequences_at(&q->text, i), len, o, x, e);
}

int quantize_run_layer(struct quantize *q, int layer, struct sums *s, struct err *e)
{
    struct watch w = { .sums = s, .be = q->session.be };
    struct observer o = { see, &w };
    size_t size = (size_t)q->text.len * (size_t)q->model->config.dim;
    w.length = mem_zalloc((size_t)q->text.len, sizeof *w.length);
    if (w.length == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d rows", q->text.len);
    int rc = 0;
    for (int i = 0; i < q->text.n && rc == 0; i++) {
        rc = quantize_run_sequence(q, layer, i, q->text.len, s != NULL ? &o : NULL,
                                   q->x + (size_t)i * size, e);
        if (s != NULL)
            s->n_rows += q->text.len;
        if (rc == 0 && fetch_cancelled())
            rc = err_set(e, ERR_CANCELLED, "stopped");
    }
    mem_free(w.length);
    return rc;
}
