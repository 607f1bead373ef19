/* From logits to a token. Pure functions over one row; every request brings its own parameters and random state.
 *
 * Order, as in vLLM and the OpenAI API: logit_bias, repetition penalty (arXiv 1909.05858, eq. 2), presence and frequency
 * penalties (OpenAI API reference), log-softmax for reported logprobs (before temperature), then greedy for
 * temperature 0, else temperature, top_k, min_p (arXiv 2407.01082), top_p (arXiv 1904.09751), and a draw.
 */
#ifndef WRING_SERVER_ENGINE_SAMPLE_H
#define WRING_SERVER_ENGINE_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "server/base/err.h"

struct logit_bias {
    int32_t id;
    float bias;
};

struct sample_params {
    float temperature;                         /* 0: greedy */
    float top_p;                               /* (0, 1], 1: off */
    float min_p;                               /* [0, 1], 0: off; 1: only the likeliest */
    int top_k;                                 /* 0: off */
    float repetition_penalty;                  /* > 0, 1: off; over prompt and output */
    float presence_penalty, frequency_penalty; /* [-2, 2], 0: off; over the output */
    uint64_t seed;
    const struct logit_bias *bias; /* borrowed; each id once */
    int n_bias;
    int n_logprobs; /* -1: none wanted; 0: the chosen token's; n: and the n best */
};
enum { SAMPLE_MAX_LOGPROBS = 20 };

struct token_logprob {
    int32_t id;
    float logprob;
};

struct
    sampler; /* token counts and random state of one sequence, and scratch for one row of logits */
/* n_vocab logits a row. Everything is allocated here; sampling allocates nothing. */
int sampler_open(struct sampler **out, const struct sample_params *p, int n_vocab,
                 struct err *e) WARN_UNUSED;
void sampler_close(struct sampler *s);
void sampler_accept_prompt(struct sampler *s, const int32_t *id,
                           int n); /* counts for the repetition penalty */

struct sample_result {
    int32_t id;
    float logprob; /* of id, when logprobs are wanted */
    int n_top;
    struct token_logprob top[SAMPLE_MAX_LOGPROBS]; /* falling */
};
/* Draws from logits [n_vocab] (not changed) and counts the token. The draw depends on seed and on how many tokens were
 * drawn before, on nothing else. NaN logits never win; when all are NaN the result is the lowest id. */
void sampler_next(struct sampler *s, const float *logits, struct sample_result *out);
/* The same for a row to which bias and penalties have been applied. */
void sampler_pick(struct sampler *s, const float *row, struct sample_result *out);
/* Log-probability of a given token under the raw logits, and the best n_top: for echo and eval. */
void sample_logprobs(const float *logits, int n_vocab, int32_t id, int n_top,
                     struct sample_result *out);

/* ---- from what the head op leaves of a row (kernels/backend.h) ---------------------------------------------------- */
/* What the request does to its next row and asks of it. The lists are the sampler's: valid until it takes a token. */
void sampler_head(const struct sampler *s, struct be_head_row *out);
/* As sampler_next would from the whole row, up to the rounding of sums. false: h does not hold enough, nothing has changed,
 * and sampler_pick takes the row as the op left it. */
bool sampler_take(struct sampler *s, const struct be_head_out *h, struct sample_result *out);
/* sample_logprobs() of id h->pick; false when h does not list n_top. */
bool sample_head_logprobs(const struct be_head_out *h, int n_top, struct sample_result *out);

#endif
