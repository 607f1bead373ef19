#include "server/cli/runner.h"

#include "server/base/mem.h"

int runner_open(struct runner *r, const struct model *m, enum kv_type type, int n_seqs, int ctx,
                int max_rows, int max_out, struct err *e)
{
    struct kv_shape shape;
    *r = (struct runner){
        .model = m, .n_seqs = n_seqs, .ctx = ctx, .max_rows = max_rows, .max_out = max_out
    };
    model_kv_shape(m, type, &shape);
    int rc = workspace_open(&r->ws, m, max_rows, n_seqs, max_out, e);
    int64_t tokens = (int64_t)n_seqs * ((ctx + KV_PAGE - 1) / KV_PAGE * KV_PAGE);
    if (rc == 0)
        rc = kv_pool_open(&r->pool, m->be, &shape, tokens, e);
    if (rc == 0) {
        r->seq = mem_zalloc((size_t)n_seqs, sizeof *r->seq);
        r->pos = mem_zalloc((size_t)max_rows, sizeof *r->pos);
        r->out_row = mem_zalloc((size_t)max_out, sizeof *r->out_row);
        r->batch_seq = mem_zalloc((size_t)n_seqs, sizeof *r->batch_seq);
        bool ok = r->seq != NULL && r->pos != NULL && r->out_row != NULL && r->batch_seq != NULL;
        for (int i = 0; ok && i < n_seqs; i++)
            ok = kv_seq_open(&r->seq[i], r->pool, kv_policy_list[0], ctx) == 0;
        if (!ok)
            rc = err_set(e, ERR_NOMEM, "no memory for %d sequences of %d tokens", n_seqs, ctx);
    }
    if (rc < 0)
        runner_close(r);
    return rc;
}

void runner_close(struct runner *r)
{
    for (int i = 0; r->seq != NULL && i < r->n_seqs; i++)
        kv_seq_close(&r->seq[i], r->pool);
    mem_free(r->batch_seq);
    mem_free(r->out_row);
    mem_free(r->pos);
    mem_free(r->seq);
    kv_pool_close(r->pool);
    workspace_close(r->ws);
    *r = (struct runner){ 0 };
}

void runner_reset(struct runner *r)
{
    for (int i = 0; i < r->n_seqs; i++) {
        kv_seq_close(&r->seq[i], r->pool);
        int rc = kv_seq_open(&r->seq[i], r->pool, kv_policy_list[0], r->ctx);
        ASSERT(rc == 0);
    }
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
