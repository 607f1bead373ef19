/* The llama family: pre-norm decoder blocks of grouped-query attention with rotary positions and a SwiGLU MLP.
 *
 * Llama 1/2/3.x (arXiv 2302.13971, 2307.09288, 2407.21783), Mistral (2310.06825: sliding window), Qwen2/2.5 (2412.15115:
 * biases on q, k, v), Qwen3 (2505.09388: RMS norm on each head of q and k), SmolLM2, TinyLlama. What a file brings
 * (biases, head norms, its own output matrix) is what is used; the name alone decides nothing.
 */
#include <stdio.h>

#include "server/model/arch.h"
#include "server/model/workspace.h"

extern const struct arch arch_llama;

static int check_llama(struct model_config *c, struct err *e)
{
    if (c->head_dim <= 0 && c->n_heads > 0)
        c->head_dim = c->dim / c->n_heads;
    if (c->n_layers < 1 || c->n_layers > 1024 || c->dim < 2 || c->ffn < 1 || c->vocab < 1 ||
        c->n_heads < 1 || c->n_kv_heads < 1 || c->ctx_train < 1)
        return err_set(e, ERR_UNSUPPORTED,
                       "the model's sizes make no sense: %d layers, dim %d, ffn %d, vocabulary %d, "
                       "%d/%d heads, "
                       "context %d; all must be positive (layers at most 1024)",
                       c->n_layers, c->dim, c->ffn, c->vocab, c->n_heads, c->n_kv_heads,
                       c->ctx_train);
    if (c->n_heads % c->n_kv_heads != 0)
        return err_set(e, ERR_UNSUPPORTED, "%d query heads do not divide evenly among %d KV heads",
                       c->n_heads, c->n_kv_heads);
    if (c->head_dim < 2 || c->head_dim > 512 || c->head_dim % 2 != 0)
        return err_set(e, ERR_UNSUPPORTED, "head size %d: an even size from 2 to 512 is needed",
                       c->head_dim);
    if (c->rope_dim <= 0)
        c->rope_dim = c->head_dim;
    if (c->rope_dim > c->head_dim || c->rope_dim % 2 != 0)
        return err_set(
            e, ERR_UNSUPPORTED,
            "%d rotated dimensions in a head of %d: an even number up to the head size is needed",
            c->rope_dim, c->head_dim);
    return 0;
}

/* A growing list that counts past its end, so that one walk serves counting and filling. */
struct slot_list {
    struct slot *out;
    int n, max;
};

static void want(struct slot_list *l, struct slot s)
{
    if (l->n < l->max)
        l->out[l->n] = s;
    l->n++;
}

static void want_layer(struct slot_list *l, struct layer *y, const struct model_config *c,
                       char (*name)[SLOT_NAME], int i)
{
    int qdim = c->n_heads * c->head_dim;
    int kvdim = c->n_kv_heads * c->head_dim;
    const struct {
        const char *part;
        struct slot s;
    } part[] = {
        { "attn_norm.weight", { .v = &y->attn_norm, .rows = c->dim } },
        { "attn_q.weight", { .w = &y->q, .rows = qdim, .cols = c->dim, .reads = INPUT_OF_QKV } },
        { "attn_k.weight", { .w = &y->k, .rows = kvdim, .cols = c->dim, .reads = INPUT_OF_QKV } },
        { "attn_v.weight", { .w = &y->v, .rows = kvdim, .cols = c->dim, .reads = INPUT_OF_QKV } },
        { "attn_output.weight", { .w = &y->o, .rows = c->dim, .cols = qdim, .reads = INPUT_OF_O } },
        { "attn_q.bias", { .v = &y->q_bias, .rows = qdim, .optional = true } },
        { "attn_k.bias", { .v = &y->k_bias, .rows = kvdim, .optional = true } },
        { "attn_v.bias", { .v = &y->v_bias, .rows = kvdim, .optional = true } },
        { "attn_q_norm.weight", { .v = &y->q_norm, .rows = c->head_dim, .optional = true } },
        { "attn_k_norm.weight", { .v = &y->k_norm, .rows = c->head_dim, .optional = true } },
        { "ffn_norm.weight", { .v = &y->ffn_norm, .rows = c->dim } },
        { "ffn_gate.weight",
          { .w = &y->gate, .rows = c->ffn, .cols = c->dim, .reads = INPUT_OF_GATE_UP } },
        { "ffn_up.weight",
          { .w = &y->up, .rows = c->ffn, .cols = c->dim, .reads = INPUT_OF_GATE_UP } },
        { "ffn_down.weight",
          { .w = &y->down, .rows = c->dim, .cols = c->ffn, .reads = INPUT_OF_DOWN } },
    };
    for (size_t k = 0; k < sizeof part / sizeof part[0]; k++) {
        struct slot s = part[k].s;
        if (l->n < l->max) {
            snprintf(name[l->n], SLOT_NAME, "blk.%d.%s", i, part[k].part);
            s.name = name[l->n];
        }
        want(l, s);
    }
}

static int slots_llama(struct model *m, struct slot *out, char (*name)[SLOT_NAME], int max)
{
    const struct model_config *c = &m->config;
    struct slot_list l = { .out = out, .max = max };
    want(&l, (struct slot){
                 .name = "token_embd.weight", .w = &m->embd, .rows = c->vocab, .cols = c->dim });
    want(&l, (struct slot){ .name = "output_norm.weight", .v = &m->out_norm, .rows = c->dim });
    if (!c->tied)
        want(&l, (struct slot){
                     .name = "output.weight", .w = &m->out, .rows = c->vocab, .cols = c->dim });
    want(&l, (struct slot){ .name = "rope_freqs.weight",
                            .v = &m->rope_factor,
                            .rows = c->rope_dim / 2,
                            .optional = true });
    for (int i = 0; i < c->n_layers; i++)
        want_layer(&l, &m->layer[i], c, name, i);
    return l.n;
}

/* The products of n_to matrices with what they all read. */
static void multiply(const struct model *m, struct workspace *ws, enum layer_input what,
                     const float *x, int n, int cols, const struct matmul *to, int n_to)
{
    struct input in;
    if (ws->observer != NULL)
        ws->observer->see(ws->observer->arg, what, x, n, cols);
    input_set(&in, x, n, cols, ws->input);
    weight_matmul(m->be, &in, to, n_to);
}

/* q, k, v of all rows, rotated, with k and v in the cache. */
static void project_qkv(const struct model *m, struct workspace *ws, const struct layer *y,
                        const struct be_kv *kv, int n)
{
    const struct model_config *c = &m->config;
    const struct be_ops *ops = m->be->ops;
    const struct matmul qkv[] = {
        { &y->q, y->q_bias, ws->q },
        { &y->k, y->k_bias, ws->k },
        { &y->v, y->v_bias, ws->v },
    };
    multiply(m, ws, INPUT_OF_QKV, ws->xn, n, c->dim, qkv, 3);
    int half = c->rope_dim / 2;
    if (ops->rope_append != NULL) {
        ops->rope_append(m->be,
                         &(struct be_rope_append){ .q = ws->q,
                                                   .k = ws->k,
                                                   .v = ws->v,
                                                   .cos = ws->cos,
                                                   .sin = ws->sin,
                                                   .q_norm = y->q_norm,
                                                   .k_norm = y->k_norm,
                                                   .eps = c->norm_eps,
                                                   .n = n,
                                                   .n_heads = c->n_heads,
                                                   .half = half,
                                                   .half_split = c->rope_half_split },
                         kv);
        return;
    }
    ops->rope(m->be, ws->q, ws->cos, ws->sin, y->q_norm, c->norm_eps, n, c->n_heads, c->head_dim,
              half, c->rope_half_split);
    ops->rope(m->be, ws->k, ws->cos, ws->sin, y->k_norm, c->norm_eps, n, c->n_kv_heads, c->head_dim,
              half, c->rope_half_split);
    ops->kv_append(m->be, kv, ws->k, ws->v);
}

/* keep: of the rows in this layer, or NULL. */
static void attention(const struct model *m, struct workspace *ws, const struct be_kv *kv,
                      const struct be_keep *keep, int n)
{
    const struct model_config *c = &m->config;
    struct be_attend a = {
        .kv = *kv,
        .q = ws->q,
        .out = ws->att,
        .lse = keep != NULL ? ws->lse : NULL,
        .n_heads = c->n_heads,
        .scale = m->attn_scale,
        .window = c->window,
    };
    m->be->ops->attend(m->be, &a);
    if (keep != NULL)
        m->be->ops->query_keep(m->be, keep, ws->q, ws->lse, kv->type, n, c->n_heads, c->head_dim);
}

/* delta = W_down (silu(W_gate xn) * (W_up xn)) */
static void mlp(const struct model *m, struct workspace *ws, const struct layer *y, int n)
{
    const struct model_config *c = &m->config;
    const struct matmul gate_up[] = { { &y->gate, NULL, ws->gate }, { &y->up, NULL, ws->up } };
    multiply(m, ws, INPUT_OF_GATE_UP, ws->xn, n, c->dim, gate_up, 2);
    m->be->ops->swiglu(m->be, ws->gate, ws->gate, ws->up, n, c->ffn);
    multiply(m, ws, INPUT_OF_DOWN, ws->gate, n, c->ffn,
             &(struct matmul){ &y->down, NULL, ws->delta }, 1);
}

/* After the last attention only the rows whose logits are wanted go on. */
static int keep_rows(const struct model *m, struct workspace *ws, const struct be_step *s)
{
    const struct model_config *c = &m->config;
    const struct be_ops *ops = m->be->ops;
    if (s->n_out == s->n_rows)
        return s->n_rows;
    int qdim = c->n_heads * c->head_dim;
    ops->gather(m->be, ws->q, ws->att, s->out_row, s->n_out, qdim);
    ops->gather(m->be, ws->xn, ws->x, s->out_row, s->n_out, c->dim);
    float *t = ws->q;
    ws->q = ws->att;
    ws->att = t;
    t = ws->xn;
    ws->xn = ws->x;
    ws->x = t;
    return s->n_out;
}

static void begin_llama(const struct model *m, struct workspace *ws, const struct be_step *s)
{
    weight_rows(&m->embd, m->be, s->token, s->n_rows, ws->x);
    ws->settled = true;
    m->be->ops->rope_table(m->be, ws->cos, ws->sin, s->pos, m->inv_freq, 1.0f, s->n_rows,
                           m->config.rope_dim / 2);
}

static void layer_llama(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                        const struct be_step *s, int layer)
{
    const struct model_config *c = &m->config;
    const struct be_ops *ops = m->be->ops;
    const struct layer *y = &m->layer[layer];
    int n = s->n_rows;
    struct be_kv kv = { .pool = kv_pool_base(pool),
                        .beta = kv_pool_beta(pool),
                        .type = kv_pool_shape(pool)->type,
                        .narrow_type = kv_pool_shape(pool)->narrow_type,
                        .n_kv_heads = c->n_kv_heads,
                        .head_dim = c->head_dim,
                        .n_seqs = s->n_seqs,
                        .seqs = s->seqs + (size_t)layer * (size_t)s->n_seqs };

    ops->rmsnorm(m->be, ws->xn, ws->x, ws->settled ? NULL : ws->delta, y->attn_norm, n, c->dim,
                 c->norm_eps);
    ws->settled = false;
    project_qkv(m, ws, y, &kv, n);
    bool last = layer == c->n_layers - 1, done = last && s->n_out == 0;
    if (done && s->keep == NULL)
        return;
    attention(m, ws, &kv, s->keep != NULL ? s->keep + (size_t)layer * (size_t)n : NULL, n);
    if (done)
        return;
    if (last)
        n = keep_rows(m, ws, s);
    multiply(m, ws, INPUT_OF_O, ws->att, n, c->n_heads * c->head_dim,
             &(struct matmul){ &y->o, NULL, ws->delta }, 1);
    ops->rmsnorm(m->be, ws->xn, ws->x, ws->delta, y->ffn_norm, n, c->dim, c->norm_eps);
    mlp(m, ws, y, n);
}

static void end_llama(const struct model *m, struct workspace *ws, const struct be_step *s)
{
    const struct model_config *c = &m->config;
    struct input in;
    m->be->ops->rmsnorm(m->be, ws->xn, ws->x, ws->delta, m->out_norm, s->n_out, c->dim,
                        c->norm_eps);
    input_set(&in, ws->xn, s->n_out, c->dim, ws->input);
    const struct weight *w = m->out.codec != NULL ? &m->out : &m->embd;
    weight_matmul(m->be, &in, &(struct matmul){ w, NULL, ws->logits }, 1);
}

static const char *const llama_names[] = { "llama", "mistral", "qwen2", "qwen3", NULL };

const struct arch arch_llama = {
    .names = llama_names,
    .check = check_llama,
    .slots = slots_llama,
    .begin = begin_llama,
    .layer = layer_llama,
    .end = end_llama,
};
