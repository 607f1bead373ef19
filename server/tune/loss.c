#include <math.h>
#include <string.h>

#include "server/tune/tune_internal.h"

/* Numbers of a row whose sums are taken in f32, LANES side by side, before they go on in f64: exponentials are made of so many
 * at a time, in the first-level cache. */
enum { BLOCK = 1024, LANES = 16 };

/* ---- a row ------------------------------------------------------------------------------------------------------- */

static float largest(const float *x, int n)
{
    float lane[LANES];
    int i = 0;
    for (int l = 0; l < LANES; l++)
        lane[l] = x[0];
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (; i < n; i++)
        lane[0] = x[i] > lane[0] ? x[i] : lane[0];
    for (int l = 1; l < LANES; l++)
        lane[0] = lane[l] > lane[0] ? lane[l] : lane[0];
    return lane[0];
}

/* sum of a[i] (b NULL) or a[i] b[i] for n <= BLOCK */
static double sum_of(const float *a, const float *b, int n)
{
    float lane[LANES] = { 0 };
    double sum = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += b != NULL ? a[i + l] * b[i + l] : a[i + l];
    for (; i < n; i++)
        lane[0] += b != NULL ? a[i] * b[i] : a[i];
    for (int l = 0; l < LANES; l++)
        sum += (double)lane[l];
    return sum;
}

/* KL(softmax(p) || softmax(z)) of two rows of logits; with back, z becomes its slope in z, softmax(z) - softmax(p), and p is
 * lost. With P = exp(p - max p) / its sum, KL is sum P (p - z) + lse z - lse p. */
static double judge_row(enum cpu_isa isa, float *p, float *z, int n, bool back)
{
    float max_p = largest(p, n);
    float max_z = largest(z, n);
    double sum_p = 0;
    double sum_z = 0;
    double apart = 0;
    for (int at = 0; at < n; at += BLOCK) {
        float gap[BLOCK];
        int m = n - at < BLOCK ? n - at : BLOCK;
        for (int i = at; i < at + m; i++) {
            p[i] -= max_p;
            z[i] -= max_z;
            gap[i - at] = p[i] - z[i];
        }
        dense_exp(isa, p + at, p + at, m);
        dense_exp(isa, z + at, z + at, m);
        sum_p += sum_of(p + at, NULL, m);
        sum_z += sum_of(z + at, NULL, m);
        apart += sum_of(p + at, gap, m);
    }
    float part_p = (float)(1 / sum_p);
    float part_z = (float)(1 / sum_z);
    for (int i = 0; i < n && back; i++)
        z[i] = z[i] * part_z - p[i] * part_p;
    double kl = apart / sum_p + log(sum_z) - log(sum_p);
    return kl < 0 ? 0 : kl; /* rounding; what is no number stays so */
}

/* ---- the head ---------------------------------------------------------------------------------------------------- */

struct judging {
    struct tune *t;
    bool back;
};

static void judge_rows(void *arg, int first, int last, int i_thread)
{
    const struct judging *j = arg;
    struct tune *t = j->t;
    size_t vocab = (size_t)t->m->config.vocab;
    (void)i_thread;
    for (int r = first; r < last; r++)
        t->kl[r] = judge_row(t->be->isa, t->wanted + (size_t)r * vocab,
                             t->logits + (size_t)r * vocab, (int)vocab, j->back);
}

/* to[n][vocab]: the logits of x [n][dim], what the last layer of m left. xn [n][dim]: x normalised. */
static void run_head(const struct tune *t, const struct model *m, const float *head, const float *x,
                     float *xn, int n, float *to)
{
    const struct model_config *c = &m->config;
    t->be->ops->rmsnorm(t->be, xn, (float *)x, NULL, m->out_norm, n, c->dim, c->norm_eps);
    struct dense_product p = { .c = to, .a = xn, .b = head, .m = n, .scale = 1 };
    p.n = c->vocab;
    p.k = c->dim;
    p.c_row = (size_t)c->vocab;
    p.a_row = p.b_col = (size_t)c->dim;
    p.a_col = p.b_row = 1;
    tune_product(t->be, &p);
}

/* The slopes in t->logits to dx; x and xn [n][dim] are the head's input before and behind the norm. */
static void head_back(struct tune *t, const float *x, const float *xn, float *dx, int n,
                      double *grad)
{
    const struct model_config *c = &t->m->config;
    struct dense_product p = { .c = t->d.hn, .a = t->logits, .b = t->head, .m = n, .scale = 1 };
    p.n = c->dim;
    p.k = c->vocab;
    p.a_row = (size_t)c->vocab;
    p.c_row = p.b_row = (size_t)c->dim;
    p.a_col = p.b_col = 1;
    tune_product(t->be, &p);
    tune_norm_back(t, x, xn, t->m->out_norm, t->out_norm, t->d.hn, NULL, dx, n, c->dim, grad);
}

/* What n tokens from `at` on should lead to, as logits: the teacher's, or certainty of the next token, beside which all others
 * are so small that exp() makes zeros of them. */
static void want(struct tune *t, const struct tune_text *text, int at, int n)
{
    size_t vocab = (size_t)t->m->config.vocab;
    if (text->x != NULL) {
        const float *x = text->x + (size_t)at * (size_t)t->m->config.dim;
        run_head(t, t->teacher, t->wanted_head, x, t->a.hn, n, t->wanted);
        return;
    }
    for (size_t i = 0; i < (size_t)n * vocab; i++)
        t->wanted[i] = -1e4f;
    for (int r = 0; r < n; r++)
        t->wanted[(size_t)r * vocab + (size_t)text->token[at + r + 1]] = 0;
}

/* The sum of KL over all rows of x, what the last layer left; with grad also t->dx. Where the text is the teacher nobody knows
 * what comes after the last token. */
static double judge(struct tune *t, const struct tune_text *text, const float *x, double *grad)
{
    size_t dim = (size_t)t->m->config.dim;
    struct judging j = { t, grad != NULL };
    int rows = text->x != NULL ? text->len : text->len - 1;
    double kl = 0;
    memset(t->dx + (size_t)rows * dim, 0, (size_t)(text->len - rows) * dim * sizeof *t->dx);
    for (int at = 0, n; at < rows; at += n) {
        n = rows - at < TUNE_OUT ? rows - at : TUNE_OUT;
        size_t from = (size_t)at * dim;
        want(t, text, at, n);
        run_head(t, t->m, t->head, x + from, t->a.hn, n, t->logits);
        par_for(t->be->par, n, 1, judge_rows, &j);
        for (int r = 0; r < n; r++)
            kl += t->kl[r];
        if (grad != NULL)
            head_back(t, x + from, t->a.hn, t->dx + from, n, grad);
    }
    return kl;
}

/* ---- the pass ---------------------------------------------------------------------------------------------------- */

/* Activations are made anew on the way back: keeping them would take the room of every layer instead of one (30 times 19 MB
 * for 512 tokens of SmolLM2-135M), to save a seventh of the work of stories15M, a quarter of that of larger models. */
double tune_loss(struct tune *t, const struct tune_text *text, double *grad)
{
    int layers = t->m->config.n_layers;
    int n = text->len;
    size_t size = (size_t)t->len * (size_t)t->m->config.dim;
    float *last = t->stream + (size_t)layers * size;
    ASSERT(n >= 1 && n <= t->len);
    weight_rows(&t->m->embd, t->be, text->token, n, t->stream);
    for (int l = 0; l < layers; l++) {
        float *x = t->stream + (size_t)l * size;
        tune_forward(t, l, x, x + size, n);
    }
    double kl = judge(t, text, last, grad);
    for (int l = layers - 1; l >= 0 && grad != NULL; l--) {
        float *x = t->stream + (size_t)l * size;
        tune_forward(t, l, x, x + size, n);
        tune_reverse(t, l, x, n, grad);
    }
    t->seen += grad != NULL ? n : 0;
    t->lost += grad != NULL ? kl : 0;
    return kl;
}

double tune_fisher(struct tune *t, const struct tune_text *text, double *grad, double *info)
{
    t->info = info;
    double loss = tune_loss(t, text, grad);
    t->info = NULL;
    return loss;
}
