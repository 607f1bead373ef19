#include "server/cli/runner.h"

#include "server/base/mem.h"

static int open_all(struct runner *r, enum kv_type type, enum kv_narrow narrow, int samples,
                    struct err *e)
{
    static const struct kv_options whole = { 0 };
    const struct model *m = r->model;
    struct kv_shape shape;
    model_kv_shape(m, type, narrow, samples, &shape);
    TRY(workspace_open(&r->ws, m, r->max_rows, r->n_seqs, r->max_out, e));
    int64_t tokens = (int64_t)r->n_seqs * ((r->ctx + KV_PAGE - 1) / KV_PAGE * KV_PAGE);
    TRY(kv_pool_open(&r->pool, m->be, &shape, tokens, e));
    if (samples > 0)
        TRY(kv_compactor_open(&r->press, r->pool, &m->rope,
                              m->config.n_heads / m->config.n_kv_heads, m->attn_scale, e));
    r->seq = mem_zalloc((size_t)r->n_seqs, sizeof *r->seq);
    r->pos = mem_zalloc((size_t)r->max_rows, sizeof *r->pos);
    r->out_row = mem_zalloc((size_t)r->max_out, sizeof *r->out_row);
    r->batch_seq = mem_zalloc((size_t)r->n_seqs, sizeof *r->batch_seq);
    if (r->seq == NULL || r->pos == NULL || r->out_row == NULL || r->batch_seq == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d sequences of %d tokens", r->n_seqs, r->ctx);
    for (int i = 0; i < r->n_seqs; i++)
        TRY(runner_begin(r, i, &whole, r->ctx, e));
    return 0;
}

int runner_open_kv(struct runner *r, const struct model *m, enum kv_type type,
                   enum kv_narrow narrow, int n_seqs, int ctx, int max_rows, int max_out,
                   int samples, struct err *e)
{
    *r = (struct runner){
        .model = m, .n_seqs = n_seqs, .ctx = ctx, .max_rows = max_rows, .max_out = max_out
    };
    int rc = open_all(r, type, narrow, samples, e);
    if (rc < 0)
        runner_close(r);
    return rc;
}

int runner_open(struct runner *r, const struct model *m, enum kv_type type, int n_seqs, int ctx,
                int max_rows, int max_out, struct err *e)
{
    return runner_open_kv(r, m, type, KV_NARROW_SAME, n_seqs, ctx, max_rows, max_out, 0, e);
}

void runner_close(struct runner *r)
{
    for (int i = 0; r->seq != NULL && i < r->n_seqs; i++)
        kv_seq_close(&r->seq[i], r->pool);
    mem_free(r->batch_seq);
    mem_free(r->out_row);
    mem_free(r->pos);
    mem_free(r->seq);
    kv_compactor_close(r->press);
    kv_pool_close(r->pool);
    workspace_close(r->ws);
    *r = (struct runner){ 0 };
}

void runner_reset(struct runner *r)
{
    static const struct kv_options whole = { 0 };
    for (int i = 0; i < r->n_seqs; i++) {
        int rc = runner_begin(r, i, &whole, r->ctx, NULL);
        ASSERT(rc == 0);
    }
}

int runner_begin(struct runner *r, int i_seq, const struct kv_options *opt, int n_prompt,
                 struct err *e)
{
    kv_seq_close(&r->seq[i_seq], r->pool);
    return kv_seq_open(&r->seq[i_seq], r->pool, opt, n_prompt, r->ctx, e);
}

int runner_fork(struct runner *r, int to, int from, const struct kv_options *opt, struct err *e)
{
    kv_seq_close(&r->seq[to], r->pool);
    return kv_seq_fork(&r->seq[to], &r->seq[from], r->pool, opt, r->ctx, e);
}

int runner_press(struct runner *r, int i_seq, struct kv_report *report, struct err *e)
{
    if (!kv_compact_due(&r->seq[i_seq]))
        return 0;
    return kv_compact(r->press, &r->seq[i_seq], report, e);
}

static int reserve(struct runner *r, int i_seq, int n, struct err *e)
{
    struct kv_seq *s = &r->seq[i_seq];
    if (s->n_tokens + n > r->ctx)
        return err_set(e, ERR_LIMIT, "%d tokens do not fit a context of %d", s->n_tokens + n,
                       r->ctx);
    if (kv_seq_reserve(s, r->pool, s->n_tokens + n) < 0)
        return err_set(e, ERR_LIMIT, "the KV pool is full");
    return 0;
}

static int run(struct runner *r, const struct batch *b, const float **logits, struct err *e)
{
    float *there;
    TRY(model_forward(r->model, r->ws, r->pool, b, &there, e));
    if (logits == NULL)
        return r->model->be->ops->sync(r->model->be, e);
    return model_logits(r->model, r->ws, b->n_out, logits, e);
}

int runner_append(struct runner *r, int i_seq, const int32_t *token, int n, int n_out,
                  const float **logits, struct err *e)
{
    TRY(reserve(r, i_seq, n, e));
    struct kv_seq *s = &r->seq[i_seq];
    for (int i = 0; i < n; i++)
        r->pos[i] = s->n_tokens + i;
    for (int i = 0; i < n_out; i++)
        r->out_row[i] = n - n_out + i;
    r->batch_seq[0] = (struct batch_seq){ .kv = s, .n_rows = n, .pos0 = s->n_tokens };
    struct batch b = { .n_rows = n,
                       .n_seqs = 1,
                       .n_out = n_out,
                       .token = token,
                       .pos = r->pos,
                       .seq = r->batch_seq,
                       .out_row = r->out_row };
    return run(r, &b, logits, e);
}

int runner_prefill(struct runner *r, int i_seq, const int32_t *token, int n, struct err *e)
{
    for (int i = 0; i < n; i += r->max_rows) {
        int step = n - i < r->max_rows ? n - i : r->max_rows;
        TRY(runner_append(r, i_seq, token + i, step, i + step == n, NULL, e));
    }
    return 0;
}

int runner_decode(struct runner *r, const int32_t *token, int n, const float **logits,
                  struct err *e)
{
    for (int i = 0; i < n; i++) {
        TRY(reserve(r, i, 1, e));
        r->pos[i] = r->seq[i].n_tokens;
        r->out_row[i] = i;
        r->batch_seq[i] =
            (struct batch_seq){ .kv = &r->seq[i], .row0 = i, .n_rows = 1, .pos0 = r->pos[i] };
    }
    struct batch b = { .n_rows = n,
                       .n_seqs = n,
                       .n_out = n,
                       .token = token,
                       .pos = r->pos,
                       .seq = r->batch_seq,
                       .out_row = r->out_row };
    return run(r, &b, logits, e);
}
