/* One generation on its way: tokens, page table, sampler, text. Owned by the engine thread from the first try to admit its
 * job until its JOB_DONE. Everything it needs is allocated on opening, sized by the job's limits.
 */
#ifndef WRING_SERVER_ENGINE_SEQ_H
#define WRING_SERVER_ENGINE_SEQ_H

#include "server/base/buf.h"
#include "server/engine/engine.h"
#include "server/engine/stop.h"

struct seq {
    struct job *job;
    uint64_t serial; /* order of submission: smaller is older */
    int32_t *token;  /* [limit] prompt, then output */
    int n_tokens;
    int limit;    /* most tokens it may have: prompt and max_tokens, at most the context */
    int n_scored; /* prompt tokens reported with prompt_logprobs */
    struct kv_seq kv;
    struct sampler *sampler;
    struct detok detok;
    struct stop stop;
    struct buf text;         /* generated and not yet handed out */
    bool running;            /* in the batch, not waiting */
    bool prompt_done;        /* and reported */
    bool shares;             /* may read and write the prefix index */
    struct kv_report report; /* what pressing the cache did */
    int32_t *kept_slots;     /* of struct job_kv; NULL unless the job wants to know */
    float *survival;
    enum finish_reason finish;            /* set during a step, acted on at its end */
    struct err err;                       /* with FINISH_ERROR */
    uint64_t admit_ns, first_ns, last_ns; /* 0: not yet */
    int n_cached, preemptions;
};

/* The cache that j asks for, without its tables, and in *limit the most tokens it may have. kv_seq_plan's errors, and ERR_LIMIT
 * for a prompt that stays whole and does not fit the pool. Any thread. */
int seq_plan(struct kv_seq *kv, int *limit, const struct job *j, const struct kv_pool *pool,
             const struct engine_config *c, struct err *e) WARN_UNUSED;
/* ERR_NOMEM, ERR_INVALID (sampling parameters), and seq_plan's. */
int seq_open(struct seq **out, struct job *j, const struct model *m, struct kv_pool *pool,
             const struct engine_config *c, struct err *e) WARN_UNUSED;
void seq_close(struct seq *s, struct kv_pool *pool); /* NULL is accepted */

/* Tokens to put into the cache next, of the layer under way where a prompt goes layer by layer. A prompt that will be pressed comes alone, with no token of the answer behind it: it is
 * pressed in the step that completes it, and from then on it is swapped, not computed again. */
static inline int seq_todo(const struct seq *s)
{
    return s->n_tokens - s->kv.n_tokens;
}
static inline int seq_room(const struct seq *s)
{
    return s->kv.wide_pos0 + s->kv.n_blocks * KV_PAGE - s->kv.n_tokens;
}
/* Ends with the step, for the reason in why. */
static inline void seq_fail(struct seq *s, const struct err *why)
{
    s->finish = FINISH_ERROR;
    s->err = *why;
}
/* Prompt tokens are still to be reported with their logprobs. */
static inline bool seq_scores(const struct seq *s)
{
    return s->job->prompt_logprobs && s->n_scored < s->job->n_prompt;
}
/* Whether the row at position pos must give logits: it predicts a prompt token that is to be reported, or the next token. */
bool seq_wants_row(const struct seq *s, int pos);

/* Reports prompt tokens: the next one with its log-probability. The first has none: r NULL. */
void seq_score(struct seq *s, const struct sample_result *r);
/* Appends the token that was chosen, reports it, and sets finish when it was the last. */
void seq_push(struct seq *s, const struct sample_result *r, const struct tokenizer *tok,
              uint64_t now_ns);
/* JOB_DONE; from then on the job is the caller's. */
void seq_done(struct seq *s, const struct job_usage *u);

#endif
