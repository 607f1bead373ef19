/* A token from what the head op left of a row: the sums, and the largest logits. See sample.h.
 *
 * What sample.c finds in a whole row is found here in the list, as long as everything that the request keeps is in it. The
 * draw itself is the same code.
 */
#include <math.h>

#include "server/engine/sample_internal.h"

/* Nothing but temperature stands between the weights and the draw: any token may come, and the head op draws it. */
static bool is_plain(const struct sampler *s)
{
    return !sampler_greedy(s) && !sampler_top_k(s) && s->p.top_p >= 1 && s->p.min_p <= 0;
}

void sampler_head(const struct sampler *s, struct be_head_row *out)
{
    *out = (struct be_head_row){
        .bias_id = s->bias_id,
        .bias = s->bias,
        .seen_id = s->seen_id,
        .count = s->count,
        .n_bias = s->p.n_bias,
        .n_seen = s->n_seen,
        .repetition = s->p.repetition_penalty,
        .presence = s->p.presence_penalty,
        .frequency = s->p.frequency_penalty,
        .temperature = sampler_greedy(s) ? 0 : s->p.temperature,
        .draw = is_plain(s),
        .u = draw_uniform(s->p.seed, s->n_drawn),
    };
}

/* Among all of h, by rising id. */
static int32_t draw_by_id(struct candidate *h, int n, double sum, double u)
{
    double at = u * sum, run = 0;
    for (int i = 1; i < n; i++) {
        struct candidate c = h[i];
        int k = i;
        for (; k > 0 && h[k - 1].id > c.id; k--)
            h[k] = h[k - 1];
        h[k] = c;
    }
    for (int i = 0; i < n; i++) {
        run += (double)h[i].w;
        if (at < run)
            return h[i].id;
    }
    return h[n - 1].id;
}

/* draw_row() from the list; false when it would look beyond it. */
static bool draw_listed(const struct sampler *s, const struct be_head_out *h, int32_t *id)
{
    const struct sample_params *p = &s->p;
    struct candidate c[BE_HEAD_TOP];
    bool all = h->n < BE_HEAD_TOP; /* nothing else has any weight */
    bool top_k = sampler_top_k(s);
    float inv_t = 1 / p->temperature;
    double u = draw_uniform(p->seed, s->n_drawn), sum;
    int n = top_k && p->top_k < h->n ? p->top_k : h->n;
    if (top_k && p->top_k > h->n && !all)
        return false;
    for (int i = 0; i < n; i++)
        c[i] = (struct candidate){ row_exp_one((h->logit[i] - h->max) * inv_t), h->id[i] };
    bool beyond = !all && !top_k && c[n - 1].w >= p->min_p;
    n = draw_keep_heavy(c, n, p->min_p, &sum);
    if (beyond && (p->min_p > 0 || sum < (double)p->top_p * h->warm_sum))
        return false;
    if (!top_k && p->min_p <= 0)
        sum = h->warm_sum;
    *id = !top_k && p->top_p >= 1 ? draw_by_id(c, n, sum, u)
                                  : draw_nucleus(NULL, c, n, (double)p->top_p, sum, u);
    return true;
}

static void put_logprobs(const struct be_head_out *h, float logit, int n_top,
                         struct sample_result *out)
{
    double log_sum = isinf(h->max) ? 0 : log(h->sum);
    out->logprob = logprob_of(logit, h->max, log_sum);
    out->n_top = n_top > 0 ? n_top : 0;
    for (int i = 0; i < out->n_top; i++)
        out->top[i] = (struct token_logprob){ h->id[i], logprob_of(h->logit[i], h->max, log_sum) };
}

bool sample_head_logprobs(const struct be_head_out *h, int n_top, struct sample_result *out)
{
    if (n_top > h->n)
        return false;
    out->id = h->pick;
    put_logprobs(h, h->pick_logit, n_top, out);
    return true;
}

bool sampler_take(struct sampler *s, const struct be_head_out *h, struct sample_result *out)
{
    bool drawn = !sampler_greedy(s) && !isinf(h->max), plain = drawn && is_plain(s);
    int32_t id = plain ? h->pick : h->id[0];
    if (h->n == 0 || h->n < s->p.n_logprobs)
        return false;
    if (drawn && !plain && !draw_listed(s, h, &id))
        return false;
    *out = (struct sample_result){ .id = id };
    int at = 0;
    while (!plain && h->id[at] != id)
        at++;
    if (s->p.n_logprobs >= 0)
        put_logprobs(h, plain ? h->pick_logit : h->logit[at], s->p.n_logprobs, out);
    sampler_accept(s, id);
    return true;
}
