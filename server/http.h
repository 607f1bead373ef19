/* The front: the OpenAI API over HTTP/1.1, on libmicrohttpd.
 *
 * Owns the listening socket, the I/O threads, one watcher thread and everything that belongs to a request; turns bytes
 * into jobs for the engine and events into bytes. Knows nothing of models but their tokenizer and template.
 *
 * Threads: http_open/http_shutdown/http_close by one thread; inside, `threads` I/O threads run the handlers, the
 * engine's thread runs job events (which append to a buffer under a short lock and wake a connection, nothing more), and
 * the watcher sees hang-ups within milliseconds (libmicrohttpd does not look at a suspended connection) and keeps the
 * clocks: pings, deadlines, readers that do not read.
 *
 * SIGPIPE must be ignored by the process. TLS is left to a proxy in front.
 */
#ifndef WRING_SERVER_HTTP_H
#define WRING_SERVER_HTTP_H

#include <stddef.h>
#include <stdint.h>

#include "server/base/err.h"
#include "server/engine/engine.h"
#include "server/model/model.h"
#include "server/press_options.h"

struct http_config {
    const char
        *host; /* address or name to listen on, e.g. "127.0.0.1"; NULL: the loopback address */
    int port;  /* 0: any free one, see http_port() */
    const char *api_key;  /* NULL or "": none needed. Wanted on every route but / and /health */
    const char *model_id; /* the name clients use */
    size_t max_body;      /* bytes a request body may have */
    int max_connections;
    int threads;              /* I/O threads, at least 1 */
    struct press_rules press; /* how caches are pressed, and how far */
};

struct http;

/* Listens and starts the threads, before anything that takes long: a port that is taken is told at once, and clients are
 * answered 503 until http_ready(). Strings of c outlive the front. ERR_IO names the address. */
int http_open(struct http **out, const struct http_config *c, struct err *e) WARN_UNUSED;
/* From now on requests are served. Once; the model and the engine outlive the front. */
void http_ready(struct http *h, const struct model *m, struct engine *en);
int http_port(const struct http *h);
/* After http_ready(): stops accepting, lets running requests finish for at most drain_s seconds, then cancels the rest and
 * waits for them. Drains the engine too. */
void http_shutdown(struct http *h, double drain_s);
/* Ends the threads and frees everything. The engine must still be open. NULL is accepted. */
void http_close(struct http *h);

#endif
