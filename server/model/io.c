#include "server/model/io.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/model/io_internal.h"

size_t io_max_request(void)
{
    return IO_REQUEST;
}

void io_slot_start(struct io_slot *s, const struct io_job *j, int i)
{
    const struct io_request *r = &j->req[i];
    uint64_t start = j->direct ? r->offset / IO_ALIGN * IO_ALIGN : r->offset;
    s->i = i;
    s->fd = j->fd[i];
    s->offset = start;
    s->want = (size_t)(r->offset - start) + r->bytes;
    s->size = j->direct ? (s->want + IO_ALIGN - 1) / IO_ALIGN * IO_ALIGN : s->want;
    s->got = 0;
}

int io_slot_take(struct io_slot *s, const struct io_job *j, ssize_t n, struct err *e)
{
    const struct io_request *r = &j->req[s->i];
    if (n == -EINTR || n == -EAGAIN)
        return 0;
    if (n < 0) {
        errno = (int)-n;
        return err_errno(e, ERR_IO, "%s: cannot read at byte %" PRIu64, r->path,
                         s->offset + s->got);
    }
    if (n == 0)
        return err_set(e, ERR_IO,
                       "%s: ends at byte %" PRIu64 ", %zu bytes before what its header promises",
                       r->path, s->offset + s->got, s->want - s->got);
    s->got += (size_t)n;
    return s->got >= s->want;
}

int io_slot_done(const struct io_slot *s, const struct io_job *j)
{
    const struct io_request *r = &j->req[s->i];
    return j->done(j->arg, r, s->buf + (r->offset - s->offset));
}

/* True when the first byte of some requests can be had without waiting for the disk. */
static bool is_cached(const struct io_request *req, int n)
{
    char byte;
    struct iovec v = { &byte, 1 };
    for (int k = 0; k < 8; k++) {
        const struct io_request *r = &req[(int64_t)k * (n - 1) / 7];
        if (preadv2(r->fd, &v, 1, (off_t)r->offset, RWF_NOWAIT) != 1)
            return false;
    }
    return true;
}

/* A second descriptor with O_DIRECT for each file of the list; false when one cannot be had. */
static bool open_direct(const struct io_request *req, int n, int *fd)
{
    for (int i = 0; i < n; i++) {
        bool same = i > 0 && req[i].fd == req[i - 1].fd;
        fd[i] = same ? fd[i - 1] : open(req[i].path, O_RDONLY | O_DIRECT | O_CLOEXEC);
        if (fd[i] < 0)
            return false;
    }
    return true;
}

static void close_direct(const struct io_request *req, int n, const int *fd)
{
    for (int i = 0; i < n && fd[i] >= 0; i++)
        if (i == 0 || req[i].fd != req[i - 1].fd)
            close(fd[i]);
}

static int run(struct io_job *j, enum io_method method, const char **used, struct err *e)
{
    int rc = method == IO_PREAD ? ERR_UNSUPPORTED : io_run_uring(j, e);
    *used = j->direct ? "io_uring+direct" : "io_uring";
    if (rc != ERR_UNSUPPORTED || method == IO_URING)
        return rc;
    *used = j->direct ? "pread+direct" : "pread";
    return io_run_pread(j, e);
}

int io_read(const struct io_request *req, int n, const struct io_options *o, io_done_fn *done,
            void *arg, struct io_report *rep, struct err *e)
{
    double t0 = clock_s();
    *rep = (struct io_report){ .method = "none" };
    if (n == 0)
        return 0;
    int depth = o->depth > 0 ? o->depth : 8;
    depth = depth < n ? depth : n;
    size_t room = IO_REQUEST + 2 * IO_ALIGN;
    int *fd = mem_alloc((size_t)n * sizeof *fd);
    struct io_slot *slot = mem_zalloc((size_t)depth, sizeof *slot);
    char *staging = mem_map((size_t)depth * room);
    int rc = fd != NULL && slot != NULL && staging != NULL ? 0 : ERR_NOMEM;
    if (rc < 0)
        err_set(e, rc, "no memory to read with");
    bool direct = rc == 0 && !is_cached(req, n);
    if (direct && !open_direct(req, n, fd)) {
        close_direct(req, n, fd);
        direct = false;
    }
    for (int i = 0; rc == 0 && !direct && i < n; i++)
        fd[i] = req[i].fd;
    for (int i = 0; rc == 0 && i < depth; i++)
        slot[i].buf = staging + (size_t)i * room;
    if (rc == 0) {
        struct io_job j = { req, n, fd, direct, done, arg, slot, depth };
        rc = run(&j, o->method, &rep->method, e);
    }
    if (direct)
        close_direct(req, n, fd);
    for (int i = 0; i < n; i++)
        rep->bytes += req[i].bytes;
    mem_unmap(staging, (size_t)depth * room);
    mem_free(slot);
    mem_free(fd);
    rep->seconds = clock_s() - t0;
    return rc;
}
