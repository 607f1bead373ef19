/* Hang-ups and clocks. See http_internal.h.
 *
 * libmicrohttpd looks at a connection only while it reads or writes; one that is suspended because its request is queued
 * may be gone for long before anybody notices. This thread has its own epoll set with the same sockets, edge-triggered on
 * EPOLLRDHUP. A half-closed socket counts as gone: clients of this API keep their side open while they wait.
 *
 * The set's data is (slot, generation), never a pointer: an event that was on its way while its connection closed finds a
 * slot with another generation and is dropped.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/http_internal.h"

enum { N_EVENTS = 128, TICK_MS = 500, FIRST_HEAD_S = 30 /* of a first request */ };
static const uint64_t wake_key = UINT64_MAX;

static uint64_t seconds_from_now(int seconds)
{
    return clock_ns() + (uint64_t)seconds * 1000000000;
}

struct conn *watch_add(struct watch *w, struct http *h, int fd)
{
    struct conn *c = mem_zalloc(1, sizeof(*c));
    if (!c)
        return NULL;
    *c = (struct conn){ .h = h, .fd = fd, .by_ns = seconds_from_now(FIRST_HEAD_S) };
    pthread_mutex_lock(&w->lock);
    c->slot = w->first_free;
    if (c->slot >= 0) {
        struct watch_slot *s = &w->slot[c->slot];
        w->first_free = s->next_free;
        s->conn = c;
        s->generation++;
        struct epoll_event ev = { .events = EPOLLRDHUP | EPOLLET,
                                  .data.u64 = (uint64_t)s->generation << 32 | (uint32_t)c->slot };
        /* Without a watch the connection still works; its hang-up is then seen at the next write. */
        (void)epoll_ctl(w->ep, EPOLL_CTL_ADD, fd, &ev);
    }
    pthread_mutex_unlock(&w->lock);
    if (c->slot < 0) {
        mem_free(c);
        return NULL;
    }
    return c;
}

void watch_remove(struct watch *w, struct conn *c)
{
    pthread_mutex_lock(&w->lock);
    (void)epoll_ctl(w->ep, EPOLL_CTL_DEL, c->fd, NULL);
    struct watch_slot *s = &w->slot[c->slot];
    s->conn = NULL;
    s->next_free = w->first_free;
    w->first_free = c->slot;
    pthread_mutex_unlock(&w->lock);
    mem_free(c);
}

void watch_await(struct watch *w, struct conn *c, int seconds)
{
    pthread_mutex_lock(&w->lock);
    c->by_ns = seconds > 0 ? seconds_from_now(seconds) : 0;
    pthread_mutex_unlock(&w->lock);
}

bool watch_attach(struct watch *w, struct conn *c, struct gen *g)
{
    pthread_mutex_lock(&w->lock);
    bool here = !c->gone;
    if (here)
        c->gen = g;
    pthread_mutex_unlock(&w->lock);
    return here;
}

void watch_detach(struct watch *w, struct conn *c)
{
    pthread_mutex_lock(&w->lock);
    c->gen = NULL;
    pthread_mutex_unlock(&w->lock);
}

void watch_each(struct watch *w, void (*fn)(struct gen *g))
{
    pthread_mutex_lock(&w->lock);
    for (int i = 0; i < w->n_slots; i++)
        if (w->slot[i].conn && w->slot[i].conn->gen)
            fn(w->slot[i].conn->gen);
    pthread_mutex_unlock(&w->lock);
}

static void on_hangup(struct watch *w, uint64_t key)
{
    uint32_t i = (uint32_t)key;
    pthread_mutex_lock(&w->lock);
    struct conn *c = w->slot[i].generation == (uint32_t)(key >> 32) ? w->slot[i].conn : NULL;
    if (c && !c->gone) {
        c->gone = true;
        c->gone_ns = clock_ns();
        if (c->gen)
            gen_hangup(c->gen);
    }
    pthread_mutex_unlock(&w->lock);
}

/* Inactivity is libmicrohttpd's clock; a peer that sends a byte now and then, or never reads, is ours. A socket that is
 * shut down here makes libmicrohttpd close its connection in the ordinary way. */
static void on_tick(struct watch *w, uint64_t now)
{
    pthread_mutex_lock(&w->lock);
    for (int i = 0; i < w->n_slots; i++) {
        struct conn *c = w->slot[i].conn;
        if (!c)
            continue;
        bool end = c->by_ns && now > c->by_ns;
        /* libmicrohttpd may not notice a peer that closed between or inside requests until its idle clock runs out. One
         * tick of grace lets a reply to a half-closed socket out. */
        end = end || (c->gone && c->gone_ns + TICK_MS * 1000000ull < now);
        end = end || (c->gen && gen_tick(c->gen, now));
        if (end)
            (void)shutdown(c->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&w->lock);
}

static void *run(void *arg)
{
    struct watch *w = arg;
    struct epoll_event ev[N_EVENTS];
    uint64_t next = clock_ns() + TICK_MS * 1000000ull;

    for (;;) {
        uint64_t now = clock_ns();
        if (now >= next) {
            on_tick(w, now);
            next = now + TICK_MS * 1000000ull;
        }
        int n = epoll_wait(w->ep, ev, N_EVENTS, (int)((next - now) / 1000000) + 1);
        for (int i = 0; i < n; i++) {
            if (ev[i].data.u64 == wake_key)
                return NULL;
            on_hangup(w, ev[i].data.u64);
        }
    }
}

int watch_open(struct watch *w, int n_slots, struct err *e)
{
    struct epoll_event ev = { .events = EPOLLIN, .data.u64 = wake_key };

    *w = (struct watch){ .ep = -1, .wake = -1, .n_slots = n_slots, .first_free = 0 };
    pthread_mutex_init(&w->lock, NULL);
    w->slot = mem_zalloc((size_t)n_slots, sizeof(*w->slot));
    if (!w->slot) {
        watch_close(w);
        return err_set(e, ERR_NOMEM, "no memory for %d connections", n_slots);
    }
    for (int i = 0; i < n_slots; i++)
        w->slot[i].next_free = i + 1 < n_slots ? i + 1 : -1;
    w->ep = epoll_create1(EPOLL_CLOEXEC);
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->ep < 0 || w->wake < 0 || epoll_ctl(w->ep, EPOLL_CTL_ADD, w->wake, &ev) < 0) {
        int rc = err_errno(e, ERR_IO, "the connection watcher could not be set up");
        watch_close(w);
        return rc;
    }
    int rc = pthread_create(&w->thread, NULL, run, w);
    if (rc != 0) {
        errno = rc;
        rc = err_errno(e, ERR_IO, "the connection watcher could not be started");
        watch_close(w);
        return rc;
    }
    w->running = true;
    return 0;
}

void watch_close(struct watch *w)
{
    if (w->running) {
        uint64_t one = 1;
        ssize_t n = write(w->wake, &one, sizeof(one));
        (void)n; /* an eventfd at 0 takes a 1 */
        pthread_join(w->thread, NULL);
    }
    if (w->ep >= 0)
        close(w->ep);
    if (w->wake >= 0)
        close(w->wake);
    mem_free(w->slot);
    pthread_mutex_destroy(&w->lock);
    *w = (struct watch){ .ep = -1, .wake = -1 };
}
