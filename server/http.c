/* The daemon: sockets, threads, bodies, and the end of it all. See http.h.
 *
 * libmicrohttpd 0.9.75 runs in epoll mode with its own threads. It accepts a duplicated Content-Length, one beside
 * Transfer-Encoding, and blanks in a header's name, which let requests be smuggled past a proxy, so they are refused here.
 * So is a missing Host: told to look itself (MHD_OPTION_STRICT_FOR_CLIENT) it sends the head of its 400 twice, as it does
 * where Content-Length is no number. Its limits on the size of a request's head answer with HTML, not JSON; they are
 * generous (32 KiB).
 */
#include "server/http.h"

#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/http_internal.h"
#include "server/version.h"

enum {
    HEAD_BYTES = 32 << 10, /* a connection's memory: head of the request and of the reply */
    IDLE_S = 60,           /* silence on a connection that nobody works for */
    BODY_S = 60,           /* for a whole body to arrive */
    NEXT_HEAD_S = 90,      /* for a whole head, silence before it included, after a reply */
    BACKLOG = 1024,
    BODIES_READ = 4, /* times max_body: so long a body is read to its end before it is refused */
    LOADING_RETRY_S = 2,
    SPARE_SLOTS = 16 /* connections being closed while new ones are accepted */
};

void http_random_hex(char *out, size_t n)
{
    static const char digit[] = "0123456789abcdef";
    unsigned char r[32] = { 0 };
    n = n < sizeof(r) ? n : sizeof(r);
    if (getrandom(r, n, 0) != (ssize_t)n) {
        uint64_t t = clock_wall_ns();
        memcpy(r, &t, sizeof(t));
    }
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digit[r[i] >> 4];
        out[2 * i + 1] = digit[r[i] & 15];
    }
    out[2 * n] = 0;
}

int http_retry_after(const struct http *h)
{
    const struct engine_stats *s = engine_stats(h->en);
    uint64_t n = 0;
    for (int i = 0; i <= s->e2e.n; i++)
        n += atomic_load(&s->e2e.count[i]);
    double mean = n ? (double)atomic_load(&s->e2e.sum_us) / 1e6 / (double)n : 1;
    double waves = (double)atomic_load(&s->waiting) / (double)engine_settings(h->en)->max_seqs;
    double wait = mean * (waves + 1) / 2;
    return wait < 1 ? 1 : wait > 60 ? 60 : (int)wait;
}

/* ---- the head of a request --------------------------------------------------------------------------------------- */

struct framing {
    int n_length, n_encoding, n_host;
    bool chunked, blank; /* blank: in the name of a header */
    int64_t length;      /* -1: not given or not a number */
};

static enum MHD_Result look_at_header(void *cls, enum MHD_ValueKind kind, const char *key,
                                      const char *value)
{
    struct framing *f = cls;
    (void)kind;
    f->blank = f->blank || strpbrk(key, " \t");
    if (strcasecmp(key, "Content-Length") == 0) {
        f->n_length++;
        f->length = 0;
        for (const char *p = value; *p && f->length >= 0; p++)
            f->length = *p >= '0' && *p <= '9' && f->length < INT64_MAX / 20
                            ? f->length * 10 + (*p - '0')
                            : -1;
    } else if (strcasecmp(key, "Transfer-Encoding") == 0) {
        f->n_encoding++;
        f->chunked = value && strcasecmp(value, "chunked") == 0;
    } else if (strcasecmp(key, "Host") == 0) {
        f->n_host++;
    }
    return MHD_YES;
}

/* Framing that two readers could understand differently ends the connection. */
static void check_framing(struct request *r, const char *version)
{
    struct framing f = { .length = -1 };
    bool old = strcmp(version, MHD_HTTP_VERSION_1_0) == 0;
    MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, look_at_header, &f);
    const char *why = NULL;
    if (f.blank)
        why = "The name of a header has a blank in it.";
    else if (f.n_length > 1)
        why = "The request has more than one Content-Length header.";
    else if (f.n_length && f.n_encoding)
        why = "The request has both Content-Length and Transfer-Encoding.";
    else if (f.n_length && f.length < 0)
        why = "The Content-Length header is not a number.";
    else if (f.n_encoding > 1 || (f.n_encoding && !f.chunked))
        why = "The only Transfer-Encoding this server takes is chunked.";
    else if (f.n_encoding && old)
        why = "A request of HTTP/1.0 has no Transfer-Encoding.";
    else if (f.n_host != 1 && !old)
        why = "The request must have exactly one Host header.";
    if (why) {
        api_error_bad(&r->err, NULL, "%s", why);
        r->close = true;
    } else if (f.length > (int64_t)r->h->c.max_body) {
        api_error_too_large(&r->err, (int64_t)r->h->c.max_body);
        /* Most clients write all before they read: closed meanwhile, they see a broken pipe and not the answer. */
        r->close = MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_EXPECT) ||
                   f.length / BODIES_READ >= (int64_t)r->h->c.max_body;
    }
}

/* Takes as long for a wrong key as for the right one; its length is not a secret. */
static bool same_key(const char *a, const char *b)
{
    size_t na = strlen(a), nb = strlen(b);
    unsigned diff = na != nb;
    for (size_t i = 0; i < na; i++)
        diff |= (unsigned)((unsigned char)a[i] ^ (unsigned char)b[nb ? i % nb : 0]);
    return diff == 0 && nb > 0;
}

static void check_key(struct request *r)
{
    const char *key = r->h->c.api_key;
    if (!key || !key[0] || r->route == ROUTE_HEALTH || r->route == ROUTE_PAGE || r->preflight)
        return;
    const char *auth =
        MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    bool bearer = auth && strncasecmp(auth, "Bearer ", 7) == 0;
    if (!bearer || !same_key(auth + 7, key))
        api_error_key(&r->err, bearer && auth[7]);
}

static bool is_json(const char *type)
{
    static const char json[] = "application/json";
    size_t n = sizeof(json) - 1;
    return !type ||
           (strncasecmp(type, json, n) == 0 && (type[n] == 0 || type[n] == ';' || type[n] == ' '));
}

/* The path of a request's target, which may be a whole URI (RFC 9112, 3.2.2): this server answers to any name. */
static const char *path_of(const char *target)
{
    static const char *const scheme[] = { "http://", "https://" };
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(scheme[i]);
        if (strncasecmp(target, scheme[i], n) != 0)
            continue;
        const char *path = strchr(target + n, '/');
        return path ? path : "/";
    }
    return target;
}

static void check_route(struct request *r, const char *method, const char *path)
{
    const char *allow;
    r->route = route_find(path, &allow);
    if (r->route == ROUTE_NONE) {
        if (!r->preflight)
            api_error_path(&r->err, method, path);
        return;
    }
    bool post = strcmp(method, "POST") == 0, want_post = strncmp(allow, "POST", 4) == 0;
    bool get = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    if (!r->preflight && !(want_post ? post : get)) {
        api_error_method(&r->err, method, path);
        return;
    }
    const char *type =
        MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_TYPE);
    const char *coding =
        MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_ENCODING);
    if (post && !is_json(type))
        api_error_media(&r->err, type);
    else if (post && coding && coding[0] && strcasecmp(coding, "identity") != 0)
        api_error_coding(&r->err, coding);
}

static void take_id(struct request *r)
{
    const char *id = MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, "x-request-id");
    size_t n = id ? strlen(id) : 0;
    bool good = n > 0 && n < sizeof(r->id);
    for (size_t i = 0; i < n && good; i++)
        good = (id[i] >= '0' && id[i] <= '9') || (id[i] >= 'a' && id[i] <= 'z') ||
               (id[i] >= 'A' && id[i] <= 'Z') || strchr("-_.:", id[i]) != NULL;
    if (good)
        memcpy(r->id, id, n + 1);
    else {
        memcpy(r->id, "req_", 4);
        http_random_hex(r->id + 4, 16);
    }
}

static struct request *begin(struct http *h, struct MHD_Connection *mhd, const char *path,
                             const char *method, const char *version)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    if (!info || !info->socket_context)
        return NULL;
    struct request *r = mem_zalloc(1, sizeof(*r));
    if (!r)
        return NULL;
    r->h = h;
    r->conn = info->socket_context;
    r->mhd = mhd;
    r->start_ns = clock_ns();
    r->preflight = strcmp(method, "OPTIONS") == 0;
    buf_init(&r->body, h->c.max_body);
    take_id(r);
    check_route(r, method, path);
    check_key(r); /* its error replaces the route's: a stranger learns nothing about paths */
    check_framing(r, version);
    if (r->err.status == 0 && !r->preflight && !atomic_load(&h->ready))
        api_error_unavailable(&r->err, "loading", "The model is still loading.", LOADING_RETRY_S);
    watch_await(&h->watch, r->conn, BODY_S);
    return r;
}

/* ---- callbacks of libmicrohttpd ----------------------------------------------------------------------------------- */

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *target,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **state)
{
    struct http *h = cls;
    struct request *r = *state;
    const char *path = path_of(target);

    if (!r) {
        *state = r = begin(h, mhd, path, method, version);
        if (!r)
            return MHD_NO;
        /* An answer before the body makes libmicrohttpd close the connection after it: only where that is meant. */
        return r->err.status && r->close ? route_error(r, &r->err) : MHD_YES;
    }
    if (*size > 0) {
        if (r->err.status == 0 && buf_add(&r->body, data, *size) < 0) {
            if (r->body.bad == ERR_LIMIT)
                api_error_too_large(&r->err, (int64_t)h->c.max_body);
            else
                api_error_internal(&r->err, "The server ran out of memory.");
            r->close = true;
            buf_free(&r->body);
        }
        *size = 0;
        return MHD_YES;
    }
    if (!r->dispatched)
        watch_await(&h->watch, r->conn, 0);
    return r->err.status ? route_error(r, &r->err) : route_answer(r, method, path);
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **state,
                         enum MHD_RequestTerminationCode why)
{
    struct http *h = cls;
    struct request *r = *state;

    (void)mhd;
    (void)why;
    if (!r)
        return;
    *state = NULL;
    if (r->gen) {
        watch_detach(&h->watch, r->conn);
        gen_release(r->gen);
        atomic_fetch_sub(&h->metrics.generating, 1);
    }
    watch_await(&h->watch, r->conn, NEXT_HEAD_S);
    int status = r->status ? r->status : 499; /* nobody stayed for an answer */
    metrics_count(&h->metrics, r->route, status);
    LOG(D, "request", "id=%s route=%d status=%d ms=%.2f", r->id, (int)r->route, status,
        (double)(clock_ns() - r->start_ns) / 1e6);
    buf_free(&r->body);
    mem_free(r);
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **state,
                          enum MHD_ConnectionNotificationCode what)
{
    struct http *h = cls;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        *state = info ? watch_add(&h->watch, h, info->connect_fd) : NULL;
        if (*state)
            atomic_fetch_add(&h->metrics.connections, 1);
    } else if (*state) {
        watch_remove(&h->watch, *state);
        *state = NULL;
        atomic_fetch_sub(&h->metrics.connections, 1);
    }
}

static void on_log(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void on_log(void *cls, const char *fmt, va_list ap)
{
    char text[256];
    (void)cls;
    if (!log_on(LOG_D))
        return;
    vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\r\n")] = 0;
    LOG(D, "microhttpd", "text=%s", LOG_STR(text));
}

/* ---- opening and closing ------------------------------------------------------------------------------------------ */

static int bind_any(const struct addrinfo *list, int *port)
{
    int saved = EADDRNOTAVAIL;
    for (const struct addrinfo *a = list; a; a = a->ai_next) {
        int one = 1, fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0) {
            saved = errno;
            continue;
        }
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
        struct sockaddr_storage got;
        socklen_t n = sizeof(got);
        if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0 &&
            getsockname(fd, (struct sockaddr *)&got, &n) == 0) {
            char service[16] = "0";
            (void)getnameinfo((struct sockaddr *)&got, n, NULL, 0, service, sizeof(service),
                              NI_NUMERICSERV);
            *port = 0;
            for (const char *p = service; *p; p++)
                *port = *port * 10 + (*p - '0');
            return fd;
        }
        saved = errno;
        close(fd);
    }
    errno = saved;
    return -1;
}

static int listen_on(struct http *h, struct err *e)
{
    const char *host = h->c.host && h->c.host[0] ? h->c.host : "127.0.0.1";
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE }, *list;
    char service[16];

    snprintf(service, sizeof(service), "%d", h->c.port);
    int rc = getaddrinfo(host, service, &hints, &list);
    if (rc != 0)
        return err_set(e, ERR_IO, "host \"%s\": %s", host, gai_strerror(rc));
    h->listen_fd = bind_any(list, &h->port);
    freeaddrinfo(list);
    if (h->listen_fd < 0)
        return err_errno(e, ERR_IO, "cannot listen on %s port %d", host, h->c.port);
    return 0;
}

/* Every connection is two epoll entries but one descriptor; the soft limit is often 1024. */
static void raise_fd_limit(int n)
{
    struct rlimit lim;
    rlim_t want = (rlim_t)n + 256;
    if (getrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur >= want)
        return;
    lim.rlim_cur = lim.rlim_max < want ? lim.rlim_max : want;
    if (setrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur < want)
        LOG(W, "few_descriptors", "limit=%llu connections=%d", (unsigned long long)lim.rlim_cur, n);
}

static int start(struct http *h, struct err *e)
{
    TRY(watch_open(&h->watch, h->c.max_connections + SPARE_SLOTS, e));
    TRY(listen_on(h, e));
    raise_fd_limit(h->c.max_connections);
    h->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
        on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET,
        (MHD_socket)h->listen_fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)h->c.max_connections,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEAD_BYTES, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)IDLE_S, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
        h->c.threads > 1 ? MHD_OPTION_THREAD_POOL_SIZE : MHD_OPTION_END, (unsigned)h->c.threads,
        MHD_OPTION_END);
    if (!h->daemon)
        return err_errno(e, ERR_IO, "the HTTP threads could not be started");
    return 0;
}

int http_open(struct http **out, const struct http_config *c, struct err *e)
{
    struct http *h = mem_zalloc(1, sizeof(*h));
    if (!h)
        return err_set(e, ERR_NOMEM, "no memory for the HTTP front");
    h->c = *c;
    h->listen_fd = -1;
    h->watch.ep = h->watch.wake = -1;
    h->created = h->metrics.start_s = clock_wall_s();
    snprintf(h->fingerprint, sizeof(h->fingerprint), "wring-%s", WRING_VERSION);
    int rc = start(h, e);
    if (rc < 0) {
        http_close(h);
        return rc;
    }
    *out = h;
    return 0;
}

void http_ready(struct http *h, const struct model *m, struct engine *en)
{
    h->model = m;
    h->en = en;
    h->limits = (struct api_limits){ .n_vocab = m->config.vocab };
    atomic_store(&h->ready, true);
}

int http_port(const struct http *h)
{
    return h->port;
}

static bool wait_for_gens(const struct http *h, double seconds)
{
    double end = clock_s() + seconds;
    while (atomic_load(&h->metrics.generating) > 0) {
        if (clock_s() >= end)
            return false;
        usleep(2000);
    }
    return true;
}

static void stop_accepting(struct http *h)
{
    if (atomic_exchange(&h->draining, true) || !h->daemon)
        return;
    MHD_socket fd = MHD_quiesce_daemon(h->daemon);
    if (fd != MHD_INVALID_SOCKET)
        close(fd);
    h->listen_fd = -1;
}

void http_shutdown(struct http *h, double drain_s)
{
    stop_accepting(h);
    engine_drain(h->en);
    if (wait_for_gens(h, drain_s))
        return;
    LOG(W, "drain_timeout", "left=%lld", (long long)atomic_load(&h->metrics.generating));
    watch_each(&h->watch, gen_stop);
    wait_for_gens(h, 5);
}

void http_close(struct http *h)
{
    if (!h)
        return;
    stop_accepting(h);
    /* libmicrohttpd must not be stopped while a connection is suspended. */
    if (h->watch.slot)
        watch_each(&h->watch, gen_hangup);
    if (h->daemon)
        MHD_stop_daemon(h->daemon);
    else if (h->listen_fd >= 0)
        close(h->listen_fd);
    while (atomic_load(&h->n_gens) > 0)
        usleep(1000); /* cancelled jobs still owe their last event */
    watch_close(&h->watch);
    mem_free(h);
}
