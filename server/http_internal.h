/* What the files of the front share. Not for others.
 *
 * Lock order: watch.lock, then gen.lock. A gen is referenced by its HTTP request and by its running jobs; the last one
 * out frees it.
 */
#ifndef WRING_SERVER_HTTP_INTERNAL_H
#define WRING_SERVER_HTTP_INTERNAL_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/reply.h"
#include "api/request.h"
#include "server/http.h"
#include "server/metrics.h"

struct gen;
struct conn;

/* ---- watch.c: one epoll set of all connections, for hang-ups and clocks ---------------------------------------- */
struct watch_slot {
    struct conn *conn; /* NULL: free */
    uint32_t generation;
    int next_free;
};
struct watch {
    pthread_mutex_t lock;
    pthread_t thread;
    int ep, wake; /* epoll set, eventfd that ends the thread */
    struct watch_slot *slot;
    int n_slots, first_free;
    bool running;
};

/* One TCP connection, from accept to close. Fields below the line are guarded by watch.lock. */
struct conn {
    struct http *h;
    int fd, slot;
    /* -- */
    bool gone;        /* the client hung up */
    uint64_t gone_ns; /* when */
    uint64_t by_ns;   /* when what is awaited of the client must be there; 0: nothing is */
    struct gen *gen;  /* the generation it waits for */
};

int watch_open(struct watch *w, int n_slots, struct err *e) WARN_UNUSED;
void watch_close(struct watch *w);
struct conn *watch_add(struct watch *w, struct http *h, int fd); /* NULL: no room, no memory */
void watch_remove(struct watch *w, struct conn *c);
/* What comes next, a whole head or a whole body, must be there within so many seconds; 0: nothing is awaited. */
void watch_await(struct watch *w, struct conn *c, int seconds);
/* Ties g to c until watch_detach, so that a hang-up reaches it. false when the client has gone already. */
bool watch_attach(struct watch *w, struct conn *c, struct gen *g);
void watch_detach(struct watch *w, struct conn *c);
/* Calls fn for every attached generation, under the lock. */
void watch_each(struct watch *w, void (*fn)(struct gen *g));

/* ---- gen.c, stream.c: one generation, from jobs to bytes --------------------------------------------------------------- */
/* Takes over *req (also on failure) and makes its jobs; nothing is submitted yet. */
int gen_new(struct gen **out, struct http *h, struct MHD_Connection *mhd, struct api_request *req,
            struct api_error *e) WARN_UNUSED;
/* Hands the jobs to the engine, all or, on failure, none. The caller releases g in any case. */
int gen_submit(struct gen *g, struct api_error *e) WARN_UNUSED;
/* Gives up the HTTP side's reference; what still runs is cancelled. NULL is accepted. */
void gen_release(struct gen *g);
/* Not a stream: true when everything has finished, else the connection is suspended until it has. */
bool gen_wait(struct gen *g);
/* Not a stream, after gen_wait: the whole reply, an error, or ERR_CANCELLED when there is nobody to tell. */
int gen_reply(struct gen *g, struct buf *out, struct api_error *e) WARN_UNUSED;
/* A stream: libmicrohttpd's reader. cls is the gen. */
ssize_t gen_read(void *cls, uint64_t pos, char *out, size_t max);
/* The client has gone: cancel, and wake the connection so that it ends. */
void gen_hangup(struct gen *g);
/* Nobody wants what is still to come: cancels all choices. Any thread without the lock; the engine in an event too. */
void gen_stop(struct gen *g);
/* Clock: pings what has been silent for long. true when the reader has fallen too far behind. */
bool gen_tick(struct gen *g, uint64_t now_ns);

/* ---- prompt.c: text to token ids --------------------------------------------------------------------------------- */
/* What of a chat prompt a policy wants to know, in tokens; 0 where there is none. */
struct prompt_marks {
    int question0, question1; /* the end of the last user message, at most KV_WINDOW_QUERIES */
    int system;               /* up to the end of a leading system message */
};
/* Whether the request's prompts are not too much text to encode, together. */
int prompt_check(const struct http *h, const struct api_request *req,
                 struct api_error *e) WARN_UNUSED;
/* The request's i-th prompt as ids, a block for mem_free(). A text that has over room tokens whatever they are is refused
 * before it is encoded, which would hold up the thread's other connections. marks: NULL, or zeroed. */
int prompt_tokens(const struct http *h, const struct api_request *req, int i, int room,
                  int32_t **ids, int *n_ids, struct prompt_marks *marks,
                  struct api_error *e) WARN_UNUSED;
/* The same for /tokenize, where no token at all is a fine answer, and more than fit the context are unless the text is long. */
int prompt_tokenize(const struct http *h, const struct api_tokenize *t, int32_t **ids, int *n_ids,
                    struct api_error *e) WARN_UNUSED;

/* ---- route.c: what each path answers ----------------------------------------------------------------------------- */
struct request {
    struct http *h;
    struct conn *conn;
    struct MHD_Connection *mhd;
    enum route route;
    char id[65];     /* x-request-id */
    bool close;      /* Connection: close */
    bool preflight;  /* OPTIONS */
    bool dispatched; /* the handler has run */
    int status;      /* of the reply, 0 before */
    uint64_t start_ns;
    struct buf body;
    struct gen *gen;
    struct api_error err; /* status != 0: found before the body was read */
};
enum route route_find(const char *path, const char **allow);
/* Answers r (body complete); called again after a suspension. */
enum MHD_Result route_answer(struct request *r, const char *method, const char *path);
enum MHD_Result route_error(struct request *r, const struct api_error *e);

/* ---- http.c ------------------------------------------------------------------------------------------------------ */
struct http {
    struct http_config c;
    const struct model *model; /* with en and limits: only once `ready` is set */
    struct engine *en;
    struct MHD_Daemon *daemon;
    int port, listen_fd;
    int64_t created; /* Unix time of the start */
    struct watch watch;
    struct metrics metrics;
    struct api_limits limits;
    char fingerprint[32];
    _Atomic bool ready, draining;
    _Atomic int64_t n_gens; /* alive */
};
/* n random bytes as 2n hex digits and a NUL. */
void http_random_hex(char *out, size_t n);
/* A token's own bytes; owned by the tokenizer. */
struct api_str http_piece(const struct http *h, int32_t id);
/* Seconds after which a refused client may try again, from how fast the queue moves. */
int http_retry_after(const struct http *h);

extern const char http_page[]; /* api/chat_page.c */
extern const size_t http_page_size;

#endif
