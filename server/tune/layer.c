/* A layer of the llama family, as server/model/arch_llama.c runs it, and the way back. */
#include <string.h>

#include "server/tune/tune_internal.h"

static void copy(float *to, const float *from, int n, int dim)
{
    memcpy(to, from, (size_t)n * (size_t)dim * sizeof *to);
}

/* to = a + b */
static void add(const struct tune *t, float *to, const float *a, const float *b, int n)
{
    copy(to, a, n, t->m->config.dim);
    t->be->ops->add(t->be, to, b, n, t->m->config.dim);
}

/* x is not changed: nothing is added to it. */
static void normalise(const struct tune *t, float *y, const float *x, const float *w, int n,
                      int dim)
{
    t->be->ops->rmsnorm(t->be, y, (float *)x, NULL, w, n, dim, t->m->config.norm_eps);
}

static void rotate(const struct tune *t, float *x, const float *sin, const float *norm, int n,
                   int n_heads)
{
    const struct model_config *c = &t->m->config;
    t->be->ops->rope(t->be, x, t->cos, sin, norm, c->norm_eps, n, n_heads, c->head_dim,
                     c->rope_dim / 2, c->rope_half_split);
}

void tune_forward(struct tune *t, int layer, const float *x, float *out, int n)
{
    const struct model_config *c = &t->m->config;
    const struct layer *y = &t->m->layer[layer];
    const struct tune_layer *l = &t->layer[layer];
    struct tune_acts *a = &t->a;
    normalise(t, a->xn, x, y->attn_norm, n, c->dim);
    tune_multiply(t, &l->q, a->xn, a->yq, n);
    tune_multiply(t, &l->k, a->xn, a->yk, n);
    tune_multiply(t, &l->v, a->xn, a->v, n);
    copy(a->q, a->yq, n, c->n_heads * c->head_dim);
    copy(a->k, a->yk, n, c->n_kv_heads * c->head_dim);
    rotate(t, a->q, t->sin, y->q_norm, n, c->n_heads);
    rotate(t, a->k, t->sin, y->k_norm, n, c->n_kv_heads);
    tune_attend(t, n);
    tune_multiply(t, &l->o, a->att, a->o, n);
    add(t, a->h, x, a->o, n);
    normalise(t, a->hn, a->h, y->ffn_norm, n, c->dim);
    tune_multiply(t, &l->gate, a->hn, a->gate, n);
    tune_multiply(t, &l->up, a->hn, a->up, n);
    t->be->ops->swiglu(t->be, a->act, a->gate, a->up, n, c->ffn);
    tune_multiply(t, &l->down, a->act, a->down, n);
    add(t, out, a->h, a->down, n);
}

/* dq from behind rotation and norm of the heads to before them, where yq is. */
static void heads_back(const struct tune *t, float *dq, const float *yq, const float *norm, int at,
                       int n, int n_heads, double *grad)
{
    int dim = t->m->config.head_dim;
    rotate(t, dq, t->minus, NULL, n, n_heads);
    if (norm == NULL)
        return;
    normalise(t, t->d.row, yq, norm, n * n_heads, dim);
    tune_norm_back(t, yq, t->d.row, norm, at, dq, NULL, dq, n * n_heads, dim, grad);
}

/* t->d.h, behind attention, to t->dx. */
static void attention_back(struct tune *t, int layer, const float *x, int n, double *grad)
{
    const struct model_config *c = &t->m->config;
    const struct layer *y = &t->m->layer[layer];
    const struct tune_layer *l = &t->layer[layer];
    struct tune_acts *a = &t->a;
    struct tune_back *d = &t->d;
    copy(d->row, d->h, n, c->dim);
    tune_multiply_back(t, &l->o, d->row, a->att, a->o, d->att, false, n, grad);
    tune_attend_back(t, n);
    heads_back(t, d->q, a->yq, y->q_norm, l->q_norm, n, c->n_heads, grad);
    heads_back(t, d->k, a->yk, y->k_norm, l->k_norm, n, c->n_kv_heads, grad);
    tune_multiply_back(t, &l->q, d->q, a->xn, a->yq, d->hn, false, n, grad);
    tune_multiply_back(t, &l->k, d->k, a->xn, a->yk, d->hn, true, n, grad);
    tune_multiply_back(t, &l->v, d->v, a->xn, a->v, d->hn, true, n, grad);
    tune_norm_back(t, x, a->xn, y->attn_norm, l->attn_norm, d->hn, d->h, t->dx, n, c->dim, grad);
}

void tune_reverse(struct tune *t, int layer, const float *x, int n, double *grad)
{
    const struct model_config *c = &t->m->config;
    const struct tune_layer *l = &t->layer[layer];
    struct tune_acts *a = &t->a;
    struct tune_back *d = &t->d;
    copy(d->row, t->dx, n, c->dim);
    tune_multiply_back(t, &l->down, d->row, a->act, a->down, d->act, false, n, grad);
    tune_swiglu_back(t, a->gate, a->up, d->act, d->gate, d->up, n);
    tune_multiply_back(t, &l->gate, d->gate, a->hn, a->gate, d->hn, false, n, grad);
    tune_multiply_back(t, &l->up, d->up, a->hn, a->up, d->hn, true, n, grad);
    tune_norm_back(t, a->h, a->hn, t->m->layer[layer].ffn_norm, l->ffn_norm, d->hn, t->dx, d->h, n,
                   c->dim, grad);
    attention_back(t, layer, x, n, grad);
}
