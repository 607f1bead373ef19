/* Reading by a pool of threads: each owns a slot, fills it with the next request, and waits until the calling thread has
 * taken it. */
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/model/io_internal.h"

enum state { READING, FULL, TAKEN };

struct pool {
    struct io_job *job;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int next;          /* request to start next */
    enum state *state; /* of each slot */
    int rc;            /* first error of a reader */
    struct err err;
    bool stop;
};

struct reader {
    struct pool *pool;
    int i_slot;
    pthread_t thread;
};

static int read_slot(struct io_slot *s, const struct io_job *j, struct err *e)
{
    for (;;) {
        ssize_t n = pread(s->fd, s->buf + s->got, s->size - s->got, (off_t)(s->offset + s->got));
        int rc = io_slot_take(s, j, n < 0 ? -errno : n, e);
        if (rc != 0)
            return rc < 0 ? rc : 0;
    }
}

static void *read_requests(void *arg)
{
    struct reader *r = arg;
    struct pool *p = r->pool;
    struct io_slot *s = &p->job->slot[r->i_slot];
    pthread_mutex_lock(&p->lock);
    while (!p->stop && p->rc == 0 && p->next < p->job->n) {
        struct err e;
        io_slot_start(s, p->job, p->next++);
        p->state[r->i_slot] = READING;
        pthread_mutex_unlock(&p->lock);
        int rc = read_slot(s, p->job, &e);
        pthread_mutex_lock(&p->lock);
        if (rc < 0 && p->rc == 0) {
            p->rc = rc;
            p->err = e;
        }
        p->state[r->i_slot] = FULL;
        pthread_cond_broadcast(&p->changed);
        while (p->state[r->i_slot] == FULL && !p->stop && p->rc == 0)
            pthread_cond_wait(&p->changed, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static int find_full(const struct pool *p)
{
    for (int i = 0; i < p->job->n_slots; i++)
        if (p->state[i] == FULL)
            return i;
    return -1;
}

static int take_all(struct pool *p)
{
    int rc = 0;
    pthread_mutex_lock(&p->lock);
    for (int taken = 0; taken < p->job->n && rc == 0; taken++) {
        int i;
        while ((i = find_full(p)) < 0 && p->rc == 0)
            pthread_cond_wait(&p->changed, &p->lock);
        rc = p->rc;
        if (rc < 0)
            break;
        pthread_mutex_unlock(&p->lock);
        rc = io_slot_done(&p->job->slot[i], p->job);
        pthread_mutex_lock(&p->lock);
        p->state[i] = TAKEN;
        pthread_cond_broadcast(&p->changed);
    }
    p->stop = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

int io_run_pread(struct io_job *j, struct err *e)
{
    struct pool p = { .job = j };
    int n = 0;
    int rc = 0;
    struct reader *reader = mem_zalloc((size_t)j->n_slots, sizeof *reader);
    p.state = mem_zalloc((size_t)j->n_slots, sizeof *p.state);
    pthread_mutex_init(&p.lock, NULL);
    pthread_cond_init(&p.changed, NULL);
    if (reader == NULL || p.state == NULL)
        rc = ERR_NOMEM;
    if (rc < 0)
        err_set(e, rc, "no memory to read with");
    for (; rc == 0 && n < j->n_slots; n++) {
        reader[n] = (struct reader){ .pool = &p, .i_slot = n };
        errno = pthread_create(&reader[n].thread, NULL, read_requests, &reader[n]);
        if (errno != 0)
            break;
    }
    if (rc == 0 && n == 0)
        rc = err_errno(e, ERR_IO, "cannot start a thread to read with");
    if (rc == 0) {
        rc = take_all(&p);
        if (p.rc < 0 && e != NULL)
            *e = p.err;
    }
    for (int i = 0; i < n; i++)
        pthread_join(reader[i].thread, NULL);
    pthread_cond_destroy(&p.changed);
    pthread_mutex_destroy(&p.lock);
    mem_free(p.state);
    mem_free(reader);
    return rc;
}
