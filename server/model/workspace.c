#include "server/model/workspace.h"

#include <stdint.h>

#include "server/base/mem.h"

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

enum { WS_ALIGN = 256 }; /* of every buffer: whole cache lines, whole transactions of a GPU */

static size_t carve(struct workspace *ws, void *slot, size_t bytes)
{
    void **p = slot;
    if (ws->block != NULL)
        *p = ws->block + ws->used;
    ws->used += (bytes + WS_ALIGN - 1) / WS_ALIGN * WS_ALIGN;
    return ws->used;
}

/* Room for the rows that a device may add to a step (kernels/backend.h, step_begin). */
static size_t room(const struct workspace *ws, int n)
{
    int up = 1;
    while (up < n)
        up *= 2;
    return (size_t)(ws->be->host ? n : up);
}

static void layout(struct workspace *ws, const struct model *m)
{
    const struct model_config *c = &m->config;
    size_t n = room(ws, ws->max_rows);
    size_t f = sizeof(float);
    size_t qdim = (size_t)c->n_heads * (size_t)c->head_dim;
    size_t kvdim = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    size_t widest = max_size(max_size((size_t)c->dim, qdim), (size_t)c->ffn);

    ws->used = 0;
    carve(ws, &ws->x, n * (size_t)c->dim * f);
    carve(ws, &ws->xn, n * (size_t)c->dim * f);
    carve(ws, &ws->q, n * qdim * f);
    carve(ws, &ws->k, n * kvdim * f);
    carve(ws, &ws->v, n * kvdim * f);
    carve(ws, &ws->att, n * qdim * f);
    carve(ws, &ws->lse, n * (size_t)c->n_heads * f);
    carve(ws, &ws->delta, n * (size_t)c->dim * f);
    carve(ws, &ws->gate, n * (size_t)c->ffn * f);
    carve(ws, &ws->up, n * (size_t)c->ffn * f);
    carve(ws, &ws->cos, n * (size_t)(c->rope_dim / 2) * f);
    carve(ws, &ws->sin, n * (size_t)(c->rope_dim / 2) * f);
    carve(ws, &ws->logits, room(ws, ws->max_out) * (size_t)c->vocab * f);
    carve(ws, &ws->input, input_ws_bytes(ws->be, (int)n, (int)widest));
}

int workspace_open(struct workspace **out, const struct model *m, int max_rows, int max_seqs,
                   int max_out, struct err *e)
{
    struct workspace *ws = mem_zalloc(1, sizeof *ws);
    if (ws == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the activations");
    ws->be = m->be;
    ws->max_rows = max_rows;
    ws->max_seqs = max_seqs;
    ws->max_out = max_out;
    layout(ws, m);
    ws->bytes = ws->used;
    ws->block = ws->be->ops->alloc(ws->be, ws->bytes);
    ws->seq = mem_zalloc((size_t)max_seqs * (size_t)m->config.n_layers, sizeof *ws->seq);
    ws->keep = mem_zalloc((size_t)max_rows * (size_t)m->config.n_layers, sizeof *ws->keep);
    bool ok = ws->block != NULL && ws->seq != NULL && ws->keep != NULL;
    if (ok && !ws->be->host) {
        ws->fetched = mem_zalloc((size_t)max_out * (size_t)m->config.vocab, sizeof(float));
        ok = ws->fetched != NULL;
    }
    if (!ok) {
        int rc = err_set(e, ERR_NOMEM, "no memory for the activations of %d rows (%zu bytes) on %s",
                         max_rows, ws->bytes, ws->be->device);
        workspace_close(ws);
        return rc;
    }
    layout(ws, m);
    *out = ws;
    return 0;
}

void workspace_close(struct workspace *ws)
{
    if (ws == NULL)
        return;
    if (ws->block != NULL)
        ws->be->ops->free(ws->be, ws->block, ws->bytes);
    mem_free(ws->fetched);
    mem_free(ws->keep);
    mem_free(ws->seq);
    mem_free(ws);
}

int workspace_observe(struct workspace *ws, const struct observer *o, struct err *e)
{
    if (o != NULL && !ws->be->host)
        return err_set(e, ERR_UNSUPPORTED, "%s cannot show what its layers read", ws->be->device);
    ws->observer = o;
    return 0;
}

size_t workspace_bytes(const struct workspace *ws)
{
    return ws->bytes;
}
