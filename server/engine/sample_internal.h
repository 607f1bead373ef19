/* The inside of sampling, shared by sample.c (opening, penalties), sample_row.c (passes over a row), sample_draw.c (the draw)
 * and sample_head.c (the same from what the head op left of a row).
 */
#ifndef WRING_SERVER_ENGINE_SAMPLE_INTERNAL_H
#define WRING_SERVER_ENGINE_SAMPLE_INTERNAL_H

#include "server/engine/sample.h"

struct candidate {
    float w;
    int32_t id;
};

enum {
    SPAN = 1024,   /* elements summed in f32 before the sum goes on in f64 */
    BUCKETS = 4096 /* 128 an octave */
};

struct sampler {
    struct sample_params p;
    int n_vocab;
    uint64_t n_drawn;
    int32_t *bias_id; /* [n_bias] */
    float *bias;      /* [n_bias] */
    float
        *row; /* [n_vocab] logits with bias and penalties applied; NULL when nothing changes them */
    float *w; /* [n_vocab] weights; NULL when greedy */
    double *span;           /* [spans] sums of w */
    struct candidate *heap; /* [n_vocab]; NULL when neither top_k nor top_p can need it */
    double *bucket;         /* [BUCKETS] with the heap */
    /* tokens in prompt or output, each once; NULL without penalties */
    int32_t *seen_id; /* [n_vocab] */
    uint32_t *count;  /* [n_vocab] times seen_id[i] was chosen */
    int32_t *seen_at; /* [n_vocab] by id: 1 + where it is in seen_id, 0: nowhere */
    int n_seen;
};

/* So cold is greedy: 1 / temperature may overflow. */
static inline bool sampler_greedy(const struct sampler *s)
{
    return s->p.temperature <= 1e-5f;
}
static inline bool sampler_top_k(const struct sampler *s)
{
    return s->p.top_k > 0 && s->p.top_k < s->n_vocab;
}
/* Counts a token that was chosen. */
void sampler_accept(struct sampler *s, int32_t id);

/* ---- a row ----------------------------------------------------------------------------------------------------- */
/* The largest logit; -inf when there is none. NaN compares false and so never wins. */
float row_max(const float *x, int n);
/* The first id whose logit is `max`; 0 when there is none. */
int32_t row_find(const float *x, int n, float max);
/* The first id from i on whose logit is above v; n when there is none. */
int32_t row_above(const float *x, int n, int32_t i, float v);
/* w[i] = exp((x[i] - max) * inv_t); returns the sum, and the sums of the spans in span. w and span may be NULL. */
double row_exp(const float *x, float *w, double *span, int n, float max, float inv_t);
/* The sum of the weights of at least min. */
double row_heavy_sum(const float *w, int n, float min);
float row_exp_one(float x); /* the same exponential; x <= 0 */
float logprob_of(float x, float max, double log_sum);

/* ---- the draw -------------------------------------------------------------------------------------------------- */
/* Draw n of a seed, in [0, 1). */
double draw_uniform(uint64_t seed, uint64_t n);
/* Drops candidates lighter than min; returns how many are left and their sum. */
int draw_keep_heavy(struct candidate *h, int n, float min, double *sum);
/* Draws among the heaviest of h[n] that together weigh top_p * sum. Reorders h. bucket: [BUCKETS], or NULL when n is at most
 * BUCKETS / 2. */
int32_t draw_nucleus(double *bucket, struct candidate *h, int n, double top_p, double sum,
                     double u);
/* From a whole row, bias and penalties applied. max is finite. */
int32_t draw_row(struct sampler *s, const float *x, float max, double u);

#endif
