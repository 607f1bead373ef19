/* Layer-major prefill: all chunks of a prompt through one layer, which is then pressed, then the next layer (kvcache/kv.h).
 *
 * Between the layers the residual stream of the whole prompt is kept, 4 * dim bytes a token, in memory that was taken when the
 * engine opened: one prompt at a time goes this way. Its unit of work is a chunk in one layer; a step runs as many as come to
 * the rows that the plan gave it times all layers, so that others wait for it no longer than for any other prompt.
 */
#include "server/engine/engine_internal.h"

/* Caches of a sliding window are not pressed. */
bool layers_may(const struct engine_config *c, const struct model *m)
{
    return c->layer_major > 0 && c->kv_samples > 0 && m->config.window == 0;
}

size_t layers_bytes(const struct engine_config *c, const struct model *m, int64_t ctx)
{
    return layers_may(c, m) ? (size_t)ctx * (size_t)m->config.dim * sizeof(float) : 0;
}

enum { PAGES_BESIDE = 16 }; /* of kept queries, and of heads that round up */

/* A prompt and what it is pressed to fit side by side in a pool of twice the context and a little: no prompt has to go by
 * layer then. */
int layers_open(struct engine *en, struct err *e)
{
    struct engine_config *c = &en->config;
    int64_t ample = 2 * (int64_t)c->ctx + PAGES_BESIDE * KV_PAGE;
    if (!layers_may(c, en->model) || (c->layer_major > c->ctx && c->kv_tokens >= ample)) {
        c->layer_major = 0;
        return 0;
    }
    en->stream_bytes = layers_bytes(c, en->model, c->ctx);
    en->stream = en->model->be->ops->alloc(en->model->be, en->stream_bytes);
    if (en->stream == NULL)
        return err_set(e, ERR_NOMEM,
                       "no memory to keep %d tokens between the layers (%zu bytes) on %s", c->ctx,
                       en->stream_bytes, en->model->be->device);
    return 0;
}

void layers_close(struct engine *en)
{
    if (en->stream != NULL)
        en->model->be->ops->free(en->model->be, en->stream, en->stream_bytes);
}

bool layers_busy(const struct engine *en)
{
    for (int i = 0; i < en->n_running; i++)
        if (kv_seq_by_layer(&en->running[i]->kv))
            return true;
    return false;
}

/* The next chunk of the layer under way. Only the prompt's last row in the last layer may give logits. */
static void build_unit(struct engine *en, struct seq *s, struct batch *b)
{
    int pos0 = s->kv.n_tokens, n = s->job->n_prompt - pos0;
    bool last = s->kv.layer == kv_pool_shape(en->pool)->n_layers - 1;
    n = n < en->config.max_batch ? n : en->config.max_batch;
    en->batch_seq[0] = (struct batch_seq){ .kv = &s->kv, .n_rows = n, .pos0 = pos0 };
    *b = (struct batch){ .n_rows = n,
                         .n_seqs = 1,
                         .token = s->token + pos0,
                         .pos = en->pos,
                         .seq = en->batch_seq,
                         .out_row = en->out_row };
    for (int i = 0; i < n; i++)
        en->pos[i] = pos0 + i;
    if (!last || !seq_wants_row(s, pos0 + n - 1))
        return;
    en->out[0].seq = s;
    en->out[0].pos = pos0 + n - 1;
    en->out_row[0] = n - 1;
    b->n_out = 1;
}

/* Units of s that come to `rows` rows of all layers; each layer is pressed when it is through, but the last one. True: the
 * prompt is through, with *b what ran last. */
static int run_units(struct engine *en, struct seq *s, int rows, struct batch *b, bool *through,
                     struct err *e)
{
    int last = kv_pool_shape(en->pool)->n_layers - 1;
    int64_t left = (int64_t)rows * (last + 1);
    while (left > 0 && s->finish == FINISH_NONE && !atomic_load(&s->job->cancelled)) {
        int layer = s->kv.layer;
        build_unit(en, s, b);
        float *x = en->stream + (size_t)s->kv.n_tokens * (size_t)en->model->config.dim;
        TRY(model_forward_layer(en->model, en->ws, en->pool, b, layer, x, &en->logits, e));
        left -= b->n_rows;
        if (s->kv.n_tokens < s->job->n_prompt)
            continue;
        *through = layer == last;
        if (*through)
            return 0;
        TRY(press_seq(en, s, e));
    }
    return 0;
}

int layers_run(struct engine *en, struct batch *b, bool *through, struct err *e)
{
    *through = false;
    for (int i = 0; i < en->n_running; i++)
        if (en->rows[i] > 0 && kv_seq_by_layer(&en->running[i]->kv))
            return run_units(en, en->running[i], en->rows[i], b, through, e);
    return 0;
}

int layers_todo(const struct seq *s, int n_layers)
{
    int64_t prompt = s->job->n_prompt - s->kv.n_cached, done = s->kv.n_tokens - s->kv.n_cached;
    int64_t rows = (prompt * (n_layers - s->kv.layer) - done + n_layers - 1) / n_layers;
    return rows > 2 ? (int)rows : 2;
}
