/* Inside the reader: what io.c and the two methods share. */
#ifndef WRING_SERVER_MODEL_IO_INTERNAL_H
#define WRING_SERVER_MODEL_IO_INTERNAL_H

#include <sys/types.h>

#include "server/model/io.h"

enum { IO_ALIGN = 4096, IO_REQUEST = 4 << 20 };

/* One request under way. With O_DIRECT the window is the request widened to whole blocks. */
struct io_slot {
    char *buf; /* IO_REQUEST + 2 * IO_ALIGN bytes, aligned */
    int i;     /* request */
    int fd;
    uint64_t offset; /* of the window */
    size_t want;     /* bytes that must come, from the window's start */
    size_t size;     /* bytes asked for, at least want */
    size_t got;
};

struct io_job {
    const struct io_request *req;
    int n;
    const int *fd; /* [n] to read each request from */
    bool direct;
    io_done_fn *done;
    void *arg;
    struct io_slot *slot;
    int n_slots;
};

void io_slot_start(struct io_slot *s, const struct io_job *j, int i);
/* Takes what a read returned (negative: -errno): 1 all there, 0 go on reading, else an error. */
int io_slot_take(struct io_slot *s, const struct io_job *j, ssize_t n, struct err *e);
/* Hands a whole request to the caller. */
int io_slot_done(const struct io_slot *s, const struct io_job *j);

/* ERR_UNSUPPORTED when the kernel does not permit io_uring; nothing was read then. */
int io_run_uring(struct io_job *j, struct err *e) WARN_UNUSED;
int io_run_pread(struct io_job *j, struct err *e) WARN_UNUSED;

#endif
