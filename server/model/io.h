/* Reading model files fast: many large reads in flight, by io_uring with O_DIRECT where that is permitted and pays, by
 * a pool of pread threads otherwise.
 *
 * Requests are handed over as one list; each completed one is given to done() on the calling thread, in any order, while
 * the next ones are in flight. The bytes lie in a staging buffer that is valid only during the call, because every codec
 * lays its weights out anew. Staging memory is bounded by the depth and freed before the function returns.
 * Files whose pages are in the page cache are read through it; the rest with O_DIRECT when the file system allows it.
 */
#ifndef WRING_SERVER_MODEL_IO_H
#define WRING_SERVER_MODEL_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/base/err.h"

struct io_request {
    int fd;
    const char *path; /* for messages, and to open it again with O_DIRECT */
    uint64_t offset;
    size_t bytes; /* 1 to io_max_request() */
    void *user;   /* the caller's */
};

enum io_method { IO_AUTO, IO_URING, IO_PREAD };

struct io_options {
    enum io_method method; /* IO_AUTO: io_uring when the kernel permits it */
    int depth;             /* requests in flight, 0: 8 */
};

struct io_report {
    const char *method; /* "io_uring", "io_uring+direct", "pread", "pread+direct" */
    uint64_t bytes;
    double seconds;
};

size_t io_max_request(void); /* 4 MiB */

/* done() returns 0 or an error that ends the reading (as does a short file: ERR_IO with path and offset). */
typedef int io_done_fn(void *arg, const struct io_request *r, const void *data);
int io_read(const struct io_request *req, int n, const struct io_options *o, io_done_fn *done,
            void *arg, struct io_report *rep, struct err *e) WARN_UNUSED;

#endif
