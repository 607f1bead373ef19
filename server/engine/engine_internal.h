/* The engine's inside, shared by engine.c (the doors, any thread) and step.c (the engine thread). */
#ifndef WRING_SERVER_ENGINE_ENGINE_INTERNAL_H
#define WRING_SERVER_ENGINE_ENGINE_INTERNAL_H

#include <pthread.h>

#include "server/engine/engine.h"
#include "server/engine/sched.h"
#include "server/engine/seq.h"

/* A row of logits that was asked for: whose, of which position, and what was chosen there. */
struct out_row {
    struct seq *seq;
    int pos;
    const float *logits;
    struct sample_result result;
};

struct engine {
    const struct model *model;
    struct engine_config config;
    struct engine_stats stats;
    struct kv_pool *pool;
    struct workspace *ws;

    /* any thread, under lock */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct job *queue, **queue_end; /* oldest first */
    int n_waiting;                  /* submitted and never admitted */
    int n_preempted;                /* admitted once, waiting again */
    bool draining, stop;
    struct err dead; /* code != 0: the device is lost */

    _Atomic uint64_t n_cancels; /* calls of engine_cancel */
    _Atomic int64_t live;       /* submitted and not done */

    /* the engine thread's */
    pthread_t thread;
    struct seq **running; /* [max_seqs] oldest first */
    int n_running;
    struct seq **held; /* [max_seqs + 1] preempted, and the first of the queue; oldest first */
    int n_held;
    bool blocked; /* held[0] found no pages, and none were given back since */
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
};

void *engine_main(void *arg); /* the thread */

#endif
