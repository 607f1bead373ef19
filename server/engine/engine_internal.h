/* The engine's inside, shared by engine.c (the doors, any thread), step.c, press.c, layers.c and choose.c (the engine thread). */
#ifndef WRING_SERVER_ENGINE_ENGINE_INTERNAL_H
#define WRING_SERVER_ENGINE_ENGINE_INTERNAL_H

#include <pthread.h>

#include "server/engine/engine.h"
#include "server/engine/sched.h"
#include "server/engine/seq.h"

/* A row of logits that was asked for: whose, of which position, and what comes of it: the token after the last one, or the
 * log-probability of the prompt's token at pos + 1. */
struct out_row {
    struct seq *seq;
    int pos;
    bool taken; /* the head's result was enough */
    struct sample_result result;
};

struct engine {
    const struct model *model;
    struct engine_config config;
    struct engine_stats stats;
    struct kv_pool *pool;
    struct kv_compactor *compactor;
    struct workspace *ws;

    /* any thread, under lock */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct job *queue, **queue_end; /* oldest first */
    bool draining, stop;
    struct err dead; /* code != 0: the device is lost */

    _Atomic int n_waiting;      /* submitted, never admitted, and not cancelled */
    _Atomic uint64_t n_cancels; /* calls of engine_cancel */
    _Atomic int64_t live;       /* submitted and not done */

    /* the engine thread's */
    pthread_t thread;
    struct seq **running; /* [max_seqs] oldest first */
    int n_running;
    /* preempted, and the first of the queue; oldest first. n_running + n_held is at most max_seqs + 1: all that runs can be
     * preempted. */
    struct seq **held; /* [max_seqs + 1] */
    int n_held;
    /* The next of them found no pages; none were given back since, and no prompt that it may share has become whole in the
     * prefix index. */
    bool blocked;
    uint64_t seen_cancels;
    uint64_t last_serial;
    /* the plan and the batch, reused by every step */
    struct sched_seq *plan;      /* [max_seqs] */
    int *rows;                   /* [max_seqs] */
    struct batch_seq *batch_seq; /* [max_seqs] */
    int32_t *token, *pos;        /* [max_batch] */
    int32_t *out_row;            /* [max_out] */
    struct out_row *out;         /* [max_out] */
    int max_out;
    float *
        stream; /* [ctx][dim] of a prompt that goes layer by layer, backend memory; NULL: none ever does */
    size_t stream_bytes;
    float *logits; /* of this step: [n_out][vocab], backend memory */
    /* NULL when that is ordinary memory */
    struct be_head_row *head_row; /* [max_out] */
    struct be_head_out *head_out; /* [max_out] */
    float *fetched;               /* [vocab] */
};

void *engine_main(void *arg); /* the thread */
/* j does not wait to be admitted any more, if it did. Any thread. */
void engine_unwait(struct engine *en, struct job *j);

/* ---- choose.c -------------------------------------------------------------------------------------------------- */
int choose_open(struct engine *en, struct err *e) WARN_UNUSED;
void choose_close(struct engine *en);
/* The row gives a new token, not a log-probability of the prompt. */
bool out_is_next(const struct out_row *o);
/* Fills the results of out[n_out] from logits. ERR_DEVICE only. Allocates nothing. */
int choose(struct engine *en, int n_out, struct err *e) WARN_UNUSED;

/* ---- layers.c ------------------------------------------------------------------------------------------------- */
bool layers_may(const struct engine_config *c, const struct model *m);
/* Of the residual stream of ctx tokens, should it be wanted. */
size_t layers_bytes(const struct engine_config *c, const struct model *m, int64_t ctx);
int layers_open(struct engine *en, struct err *e) WARN_UNUSED; /* ERR_NOMEM */
void layers_close(struct engine *en);
bool layers_busy(const struct engine *en); /* a running prompt has the stream */
/* Rows that are left to compute in all layers together, as a plan counts them; at least 2, for s does not decode. */
int layers_todo(const struct seq *s, int n_layers);
/* Runs what the plan gave to the prompt that goes layer by layer. *through: its last row is through the last layer, which is
 * to be pressed, and *b is what ran last. ERR_DEVICE only. Allocates what pressing a layer does. */
int layers_run(struct engine *en, struct batch *b, bool *through, struct err *e) WARN_UNUSED;

/* ---- press.c --------------------------------------------------------------------------------------------------- */
int press_open(struct engine *en, struct err *e) WARN_UNUSED;
/* What j asks of its cache, planned: what would be refused when its turn comes is refused before an answer has begun.
 * ERR_INVALID, ERR_LIMIT, ERR_UNSUPPORTED. Any thread. */
int press_check(const struct engine *en, const struct job *j, struct err *e) WARN_UNUSED;
/* Presses s when that is due. ERR_DEVICE only: what else goes wrong is the end of s. */
int press_seq(struct engine *en, struct seq *s, struct err *e) WARN_UNUSED;
/* What pressing the prompt of s left, in memory of s; false: nobody asked, or it was not pressed. */
bool press_detail(const struct engine *en, const struct seq *s, struct job_kv *out);
/* A sequence makes room: its pages are given back, those of a pressed one after a copy was made. ERR_DEVICE only: without
 * memory for the copy it is the end of s. */
int press_out(struct engine *en, struct seq *s, struct err *e) WARN_UNUSED;

#endif
