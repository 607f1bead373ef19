/* Attention and its reverse, TUNE_SPAN queries of a head at a time, so that their weights stay in the second-level cache. A KV
 * head with all query heads that read it is one task: what they add to its keys' and values' gradients has one order. */
#include <math.h>
#include <string.h>

#include "server/tune/tune_internal.h"

struct attend {
    const struct tune *t;
    int n;
    bool back;
};

/* Queries [first, last) of one head; they see keys [0, last). */
struct span {
    const struct tune *t;
    int first, last;
    size_t q, kv;  /* of the heads' first numbers in rows of queries and of keys */
    float *p, *dp; /* [last - first][last] weights, and dloss / d of them */
};

static size_t q_dim(const struct tune *t)
{
    return (size_t)t->m->config.n_heads * (size_t)t->m->config.head_dim;
}

static size_t kv_dim(const struct tune *t)
{
    return (size_t)t->m->config.n_kv_heads * (size_t)t->m->config.head_dim;
}

/* to[i][j] = scale * q[first + i] . k[j] */
static void dot_all(const struct span *s, float *to, const float *q, const float *k, float scale)
{
    struct dense_product p = { .c = to, .scale = scale };
    p.a = q + (size_t)s->first * q_dim(s->t) + s->q;
    p.b = k + s->kv;
    p.m = s->last - s->first;
    p.n = s->last;
    p.k = s->t->m->config.head_dim;
    p.c_row = (size_t)s->last;
    p.a_row = q_dim(s->t);
    p.b_col = kv_dim(s->t);
    p.a_col = p.b_row = 1;
    dense_product(s->t->be->isa, &p);
}

/* to[first + i] = sum_j p[i][j] v[j] */
static void mix(const struct span *s, float *to, const float *weight, const float *v)
{
    struct dense_product p = { .a = weight, .scale = 1 };
    p.c = to + (size_t)s->first * q_dim(s->t) + s->q;
    p.b = v + s->kv;
    p.m = s->last - s->first;
    p.n = s->t->m->config.head_dim;
    p.k = s->last;
    p.c_row = q_dim(s->t);
    p.a_row = (size_t)s->last;
    p.b_row = kv_dim(s->t);
    p.a_col = p.b_col = 1;
    dense_product(s->t->be->isa, &p);
}

/* to[j] += sum_i p[i][j] q[first + i] */
static void spread(const struct span *s, float *to, const float *weight, const float *q)
{
    struct dense_product p = { .a = weight, .scale = 1, .add = true };
    p.c = to + s->kv;
    p.b = q + (size_t)s->first * q_dim(s->t) + s->q;
    p.m = s->last;
    p.n = s->t->m->config.head_dim;
    p.k = s->last - s->first;
    p.c_row = kv_dim(s->t);
    p.a_row = p.b_col = 1;
    p.a_col = (size_t)s->last;
    p.b_row = q_dim(s->t);
    dense_product(s->t->be->isa, &p);
}

/* The softmax of what the query at position i sees, zeros elsewhere. */
static void soften(const struct span *s, float *p, int i)
{
    int window = s->t->m->config.window;
    int low = window > 0 && i + 1 > window ? i + 1 - window : 0;
    float max = p[low];
    float sum = 0;
    for (int j = low + 1; j <= i; j++)
        max = p[j] > max ? p[j] : max;
    for (int j = low; j <= i; j++)
        p[j] -= max;
    dense_exp(s->t->be->isa, p + low, p + low, i + 1 - low);
    for (int j = low; j <= i; j++)
        sum += p[j];
    for (int j = low; j <= i; j++)
        p[j] /= sum;
    memset(p, 0, (size_t)low * sizeof *p);
    memset(p + i + 1, 0, (size_t)(s->last - i - 1) * sizeof *p);
}

static void weigh(const struct span *s)
{
    const struct tune *t = s->t;
    dot_all(s, s->p, t->a.q, t->a.k, t->m->attn_scale);
    for (int i = s->first; i < s->last; i++)
        soften(s, s->p + (size_t)(i - s->first) * (size_t)s->last, i);
}

/* dp becomes dloss / d of the scores, q . k: scale p (dp - sum(p dp)). */
static void weigh_back(const struct span *s)
{
    for (int i = s->first; i < s->last; i++) {
        size_t at = (size_t)(i - s->first) * (size_t)s->last;
        const float *p = s->p + at;
        float *dp = s->dp + at;
        double sum = 0;
        for (int j = 0; j <= i; j++)
            sum += (double)p[j] * (double)dp[j];
        for (int j = 0; j < s->last; j++)
            dp[j] = p[j] * (dp[j] - (float)sum) * s->t->m->attn_scale;
    }
}

static void run_span(const struct span *s, bool back)
{
    const struct tune *t = s->t;
    weigh(s);
    if (!back) {
        mix(s, t->a.att, s->p, t->a.v);
        return;
    }
    dot_all(s, s->dp, t->d.att, t->a.v, 1);
    spread(s, t->d.v, s->p, t->d.att);
    weigh_back(s);
    mix(s, t->d.q, s->dp, t->a.k);
    spread(s, t->d.k, s->dp, t->a.q);
}

static void some_heads(void *arg, int first, int last, int i_thread)
{
    const struct attend *a = arg;
    const struct model_config *c = &a->t->m->config;
    size_t size = (size_t)TUNE_SPAN * (size_t)a->t->len;
    int group = c->n_heads / c->n_kv_heads;
    struct span s = { .t = a->t, .p = a->t->scores + (size_t)i_thread * 2 * size };
    s.dp = s.p + size;
    for (int h = first * group; h < last * group; h++) {
        s.q = (size_t)h * (size_t)c->head_dim;
        s.kv = (size_t)(h / group) * (size_t)c->head_dim;
        for (s.first = 0; s.first < a->n; s.first = s.last) {
            s.last = s.first + TUNE_SPAN < a->n ? s.first + TUNE_SPAN : a->n;
            run_span(&s, a->back);
        }
    }
}

void tune_attend(const struct tune *t, int n)
{
    struct attend a = { t, n, false };
    par_for(t->be->par, t->m->config.n_kv_heads, 1, some_heads, &a);
}

void tune_attend_back(const struct tune *t, int n)
{
    struct attend a = { t, n, true };
    memset(t->d.k, 0, (size_t)n * kv_dim(t) * sizeof(float));
    memset(t->d.v, 0, (size_t)n * kv_dim(t) * sizeof(float));
    par_for(t->be->par, t->m->config.n_kv_heads, 1, some_heads, &a);
}
