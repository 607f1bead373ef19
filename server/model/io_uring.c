/* Reading by io_uring: `depth` reads in flight from one thread. Containers and hardened kernels refuse the set-up
 * (EPERM, ENOSYS, ENOMEM under a small memlock limit); the caller then takes the other method. */
#include <liburing.h>
#include <string.h>

#include "server/base/log.h"
#include "server/model/io_internal.h"

static int submit(struct io_uring *ring, struct io_slot *s, int *in_flight, struct err *e)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    ASSERT(sqe != NULL); /* the queue is as long as there are slots */
    io_uring_prep_read(sqe, s->fd, s->buf + s->got, (unsigned)(s->size - s->got),
                       s->offset + s->got);
    io_uring_sqe_set_data(sqe, s);
    int rc = io_uring_submit(ring);
    if (rc < 0)
        return err_set(e, ERR_IO, "io_uring takes no more reads: %s", strerrordesc_np(-rc));
    ++*in_flight;
    return 0;
}

/* Waits for what is still in flight: the kernel writes into our buffers until then. */
static void drain(struct io_uring *ring, int in_flight)
{
    struct io_uring_cqe *cqe;
    while (in_flight > 0 && io_uring_wait_cqe(ring, &cqe) == 0) {
        io_uring_cqe_seen(ring, cqe);
        in_flight--;
    }
}

static int wait_one(struct io_uring *ring, struct io_slot **slot, ssize_t *result, struct err *e)
{
    struct io_uring_cqe *cqe;
    int rc;
    do
        rc = io_uring_wait_cqe(ring, &cqe);
    while (rc == -EINTR);
    if (rc < 0)
        return err_set(e, ERR_IO, "io_uring stopped answering: %s", strerrordesc_np(-rc));
    *slot = io_uring_cqe_get_data(cqe);
    *result = cqe->res;
    io_uring_cqe_seen(ring, cqe);
    return 0;
}

static int read_loop(struct io_uring *ring, struct io_job *j, int *in_flight, struct err *e)
{
    int next = 0;
    for (; next < j->n_slots; next++) {
        io_slot_start(&j->slot[next], j, next);
        TRY(submit(ring, &j->slot[next], in_flight, e));
    }
    while (*in_flight > 0) {
        struct io_slot *s = NULL;
        ssize_t n = 0;
        TRY(wait_one(ring, &s, &n, e));
        --*in_flight;
        int rc = io_slot_take(s, j, n, e);
        TRY(rc);
        if (rc == 1) {
            TRY(io_slot_done(s, j));
            if (next == j->n)
                continue;
            io_slot_start(s, j, next++);
        }
        TRY(submit(ring, s, in_flight, e));
    }
    return 0;
}

int io_run_uring(struct io_job *j, struct err *e)
{
    struct io_uring ring;
    int rc = io_uring_queue_init((unsigned)j->n_slots, &ring, 0);
    if (rc < 0) {
        LOG(I, "io_uring_refused", "reason=%s", LOG_STR(strerrordesc_np(-rc)));
        return err_set(e, ERR_UNSUPPORTED, "io_uring is not permitted here: %s",
                       strerrordesc_np(-rc));
    }
    int in_flight = 0;
    rc = read_loop(&ring, j, &in_flight, e);
    drain(&ring, in_flight);
    io_uring_queue_exit(&ring);
    return rc;
}
