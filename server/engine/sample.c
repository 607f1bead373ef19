/* Sampling: opening, penalties, and the way from a row to a token. See sample.h for the order of things. */
#include <math.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/engine/sample_internal.h"

/* ---- opening ------------------------------------------------------------------------------------------------- */

static bool has_penalty(const struct sample_params *p)
{
    return p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

static int check_bias(const struct sample_params *p, int n_vocab, struct err *e)
{
    for (int i = 0; i < p->n_bias; i++) {
        int32_t id = p->bias[i].id;
        if (id < 0 || id >= n_vocab)
            return err_set(e, ERR_INVALID, "logit_bias names token %d; the vocabulary has %d", id,
                           n_vocab);
        for (int k = 0; k < i; k++)
            if (p->bias[k].id == id)
                return err_set(e, ERR_INVALID, "logit_bias names token %d twice", id);
    }
    return 0;
}

static int check_params(const struct sample_params *p, int n_vocab, struct err *e)
{
    if (!(p->temperature >= 0) || isinf(p->temperature))
        return err_set(e, ERR_INVALID, "temperature is %g; 0 or more is needed",
                       (double)p->temperature);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return err_set(e, ERR_INVALID, "top_p is %g; more than 0 and at most 1 is needed",
                       (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return err_set(e, ERR_INVALID, "min_p is %g; 0 or more and at most 1 is needed",
                       (double)p->min_p);
    if (!(p->repetition_penalty > 0) || isinf(p->repetition_penalty))
        return err_set(e, ERR_INVALID, "repetition_penalty is %g; more than 0 is needed",
                       (double)p->repetition_penalty);
    if (!isfinite(p->presence_penalty) || !isfinite(p->frequency_penalty))
        return err_set(e, ERR_INVALID, "presence and frequency penalties must be finite");
    if (p->top_k < 0 || p->n_logprobs < -1 || p->n_logprobs > SAMPLE_MAX_LOGPROBS)
        return err_set(e, ERR_INVALID, "top_k is %d and logprobs %d; at most %d logprobs are given",
                       p->top_k, p->n_logprobs, SAMPLE_MAX_LOGPROBS);
    return check_bias(p, n_vocab, e);
}

static int open_arrays(struct sampler *s)
{
    size_t n = (size_t)s->n_vocab;
    size_t n_bias = (size_t)s->p.n_bias;
    bool penalty = has_penalty(&s->p);
    bool ok = true;
    if (n_bias > 0)
        ok = (s->bias_id = mem_zalloc(n_bias, sizeof *s->bias_id)) != NULL &&
             (s->bias = mem_zalloc(n_bias, sizeof *s->bias)) != NULL;
    for (size_t i = 0; ok && i < n_bias; i++) {
        s->bias_id[i] = s->p.bias[i].id;
        s->bias[i] = s->p.bias[i].bias;
    }
    if (ok && (penalty || n_bias > 0))
        ok = (s->row = mem_zalloc(n, sizeof *s->row)) != NULL;
    if (ok && penalty)
        ok = (s->seen_id = mem_zalloc(n, sizeof *s->seen_id)) != NULL &&
             (s->count = mem_zalloc(n, sizeof *s->count)) != NULL &&
             (s->seen_at = mem_zalloc(n, sizeof *s->seen_at)) != NULL;
    if (ok && s->p.temperature > 0)
        ok = (s->w = mem_zalloc(n, sizeof *s->w)) != NULL &&
             (s->span = mem_zalloc(n / SPAN + 1, sizeof *s->span)) != NULL;
    if (ok && s->p.temperature > 0 && (s->p.top_k > 0 || s->p.top_p < 1))
        ok = (s->heap = mem_zalloc(n, sizeof *s->heap)) != NULL &&
             (s->bucket = mem_zalloc(BUCKETS, sizeof *s->bucket)) != NULL;
    return ok ? 0 : ERR_NOMEM;
}

int sampler_open(struct sampler **out, const struct sample_params *p, int n_vocab, struct err *e)
{
    if (n_vocab < 1)
        return err_set(e, ERR_INVALID, "a vocabulary of %d tokens", n_vocab);
    TRY(check_params(p, n_vocab, e));
    struct sampler *s = mem_zalloc(1, sizeof *s);
    if (s != NULL) {
        s->p = *p;
        s->n_vocab = n_vocab;
    }
    if (s == NULL || open_arrays(s) < 0) {
        sampler_close(s);
        return err_set(e, ERR_NOMEM, "no memory to sample from %d tokens", n_vocab);
    }
    *out = s;
    return 0;
}

void sampler_close(struct sampler *s)
{
    if (s == NULL)
        return;
    mem_free(s->seen_at);
    mem_free(s->count);
    mem_free(s->seen_id);
    mem_free(s->bucket);
    mem_free(s->heap);
    mem_free(s->span);
    mem_free(s->w);
    mem_free(s->row);
    mem_free(s->bias);
    mem_free(s->bias_id);
    mem_free(s);
}

/* ---- penalties ----------------------------------------------------------------------------------------------- */

/* Where id stands among those seen. */
static int see(struct sampler *s, int32_t id)
{
    if (s->seen_at[id] == 0) {
        s->seen_id[s->n_seen++] = id;
        s->seen_at[id] = s->n_seen;
    }
    return s->seen_at[id] - 1;
}

/* Only the repetition penalty asks for the prompt. */
void sampler_accept_prompt(struct sampler *s, const int32_t *id, int n)
{
    for (int i = 0; s->p.repetition_penalty != 1 && i < n; i++)
        if (id[i] >= 0 && id[i] < s->n_vocab)
            see(s, id[i]);
}

void sampler_accept(struct sampler *s, int32_t id)
{
    s->n_drawn++;
    if (s->seen_id != NULL)
        s->count[see(s, id)]++;
}

static const float *adjust(struct sampler *s, const float *logits)
{
    if (s->row == NULL)
        return logits;
    memcpy(s->row, logits, (size_t)s->n_vocab * sizeof *s->row);
    for (int i = 0; i < s->p.n_bias; i++)
        s->row[s->bias_id[i]] += s->bias[i];
    for (int i = 0; i < s->n_seen; i++) {
        float *x = &s->row[s->seen_id[i]];
        *x = *x > 0 ? *x / s->p.repetition_penalty : *x * s->p.repetition_penalty;
        if (s->count[i] > 0)
            *x -= s->p.presence_penalty + s->p.frequency_penalty * (float)s->count[i];
    }
    return s->row;
}

/* ---- a token ------------------------------------------------------------------------------------------------- */

void sampler_next(struct sampler *s, const float *logits, struct sample_result *out)
{
    sampler_pick(s, adjust(s, logits), out);
}

void sampler_pick(struct sampler *s, const float *row, struct sample_result *out)
{
    double u = draw_uniform(s->p.seed, s->n_drawn);
    float max = row_max(row, s->n_vocab);
    int32_t id =
        sampler_greedy(s) || isinf(max) ? row_find(row, s->n_vocab, max) : draw_row(s, row, max, u);
    out->id = id;
    out->logprob = 0;
    out->n_top = 0;
    if (s->p.n_logprobs >= 0)
        sample_logprobs(row, s->n_vocab, id, s->p.n_logprobs, out);
    sampler_accept(s, id);
}
