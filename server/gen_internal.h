/* One generation: the jobs of one HTTP request, and the bytes they become. For gen.c and stream.c only. */
#ifndef WRING_SERVER_GEN_INTERNAL_H
#define WRING_SERVER_GEN_INTERNAL_H

#include "server/http_internal.h"

enum { TEXT_MAX = 64 << 20 }; /* bytes of one answer */

/* One sequence. */
struct choice {
    struct gen *g;
    struct job job;
    int index;
    int32_t *ids; /* the prompt; owned by the first choice of each prompt */
    bool owns_ids;
    struct api_str echo; /* the prompt's text as the reply repeats it */
    struct buf decoded;  /* holds it where the prompt is ids; owned as ids are */
    int i_prompt;
    int n_scored;    /* prompt tokens whose logprobs are in lp */
    size_t echo_at;  /* bytes of the echo that those tokens are */
    bool begun;      /* a stream: role or echo has been sent */
    struct buf text; /* the answer; of a stream only where it is to be logged */
    struct api_logprobs lp;
    enum finish_reason finish;
    struct job_usage usage;
};

struct gen {
    struct http *h;
    struct MHD_Connection *mhd;
    struct api_request req;
    struct api_head head;
    char id[48];
    struct choice *choice; /* [n] */
    int n;
    const char **stop; /* the request's stop strings as the engine wants them */
    struct logit_bias *bias;
    struct kv_options kv; /* of every choice, before its prompt is known */
    uint64_t start_ns;

    pthread_mutex_t lock; /* everything below, and the choices once submitted */
    int refs;             /* the request, and one for all running jobs */
    int n_running;
    bool gone;      /* nobody is there to read */
    bool overflow;  /* the reader has fallen behind */
    bool finished;  /* everything has been written to out */
    bool suspended; /* the connection sleeps until wake() */
    bool decoding;  /* a first token has come */
    struct api_stream stream;
    struct buf out;
    struct buf detail; /* not a stream: what became of the first choice's cache, as JSON */
    uint64_t last_ns;  /* when out was last written to */
    struct api_error err;
};

/* stream.c: what the engine's thread calls. */
void stream_on_event(struct job *j, const struct job_event *ev);
/* Under the lock: resumes a suspended connection. */
void gen_wake(struct gen *g);
/* Drops a reference; the last one logs what was made, and frees. Without the lock. */
void gen_unref(struct gen *g);
/* Bytes a stream of n_seqs sequences that run at once may be ahead of its reader; n_logprobs -1: none are sent. */
size_t gen_backlog(int n_seqs, int n_logprobs);
/* Totals of all choices. Under the lock, or when nothing runs. */
void gen_usage(const struct gen *g, struct api_usage *u);

#endif
