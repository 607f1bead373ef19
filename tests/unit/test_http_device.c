/* The front when the device is lost: what runs is told, what comes is refused with 503, /health says why, the rest goes
 * on answering, and the end is clean. And clients that leave while their jobs are handed to the engine, read late, or do
 * not go on.
 */
#include <arpa/inet.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/engine/engine_internal.h"
#include "server/gen_internal.h"
#include "tests/tools/engine_fixture.h"

/* ---- a device that can be lost ------------------------------------------------------------------------------- */

static const struct be_ops *good_ops;
static struct be_ops frail_ops;
static _Atomic bool lost;

static int frail_sync(struct be *be, struct err *e)
{
    usleep(1000);
    if (atomic_load(&lost))
        return err_set(e, ERR_DEVICE, "the device is gone");
    return good_ops->sync(be, e);
}

static int open_frail(void **state)
{
    signal(SIGPIPE, SIG_IGN);
    if (open_toy(state) < 0)
        return -1;
    good_ops = toy.be->ops;
    frail_ops = *good_ops;
    frail_ops.sync = frail_sync;
    toy.be->ops = &frail_ops;
    return 0;
}

/* ---- a client ------------------------------------------------------------------------------------------------ */

static int port;

static int dial(void)
{
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons((uint16_t)port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static int ask(const char *method, const char *path, const char *body)
{
    char text[1024];
    int fd = dial();
    int n = snprintf(text, sizeof text,
                     "%s %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                     "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     method, path, strlen(body), body);
    assert_int_equal(send(fd, text, (size_t)n, 0), n);
    return fd;
}

/* The status; the whole answer is in `answer`. */
static char answer[1 << 20];
static int read_answer(int fd)
{
    size_t n = 0;
    ssize_t got;
    while ((got = recv(fd, answer + n, sizeof answer - 1 - n, 0)) > 0)
        n += (size_t)got;
    answer[n] = 0;
    close(fd);
    int status = 0;
    assert_int_equal(sscanf(answer, "HTTP/1.1 %d", &status), 1);
    return status;
}

static int get(const char *path)
{
    return read_answer(ask("GET", path, ""));
}

static void assert_told(void)
{
    assert_non_null(strstr(answer, "\"message\":\"the device is gone\""));
    assert_non_null(strstr(answer, "\"code\":\"device_lost\""));
}

/* ---- the test ------------------------------------------------------------------------------------------------ */

static void lose_it(struct http *h)
{
    struct engine *en = h->en;
    static const char whole[] =
        "{\"prompt\":\"a\",\"max_tokens\":1500,\"temperature\":0,\"ignore_eos\":true}";
    static const char stream[] = "{\"prompt\":\"b\",\"max_tokens\":1500,\"temperature\":0,"
                                 "\"ignore_eos\":true,\"stream\":true}";
    assert_int_equal(get("/health"), 200);
    int a = ask("POST", "/v1/completions", whole), b = ask("POST", "/v1/completions", stream);
    while (atomic_load(&engine_stats(en)->running) < 2 ||
           atomic_load(&engine_stats(en)->generation_tokens) < 20)
        usleep(500);
    atomic_store(&lost, true);
    assert_int_equal(read_answer(a), 503);
    assert_told();
    assert_int_equal(read_answer(b), 200); /* the stream had begun */
    assert_told();
    assert_null(strstr(answer, "[DONE]"));
    /* new ones are refused */
    for (int i = 0; i < 3; i++) {
        assert_int_equal(read_answer(ask("POST", "/v1/completions", i == 0 ? whole : stream)), 503);
        assert_told();
        assert_non_null(strstr(answer, "Retry-After: "));
    }
    assert_int_equal(get("/health"), 503);
    assert_told();
    assert_int_equal(get("/v1/models"), 200);
    assert_int_equal(get("/metrics"), 200);
    check_clean(en); /* whoever has read the end of an answer may be ahead of the engine */
}

/* A path that is none is one at once; a browser's question about headers is answered. */
static void refuses_until_ready(void)
{
    static const char *const path[] = { "/health", "/v1/models", "/metrics", "/version", "/" };
    for (size_t i = 0; i < sizeof path / sizeof *path; i++) {
        assert_int_equal(get(path[i]), 503);
        assert_non_null(strstr(answer, "\"code\":\"loading\""));
        assert_non_null(strstr(answer, "Retry-After: "));
    }
    assert_int_equal(read_answer(ask("POST", "/v1/completions", "{\"prompt\":\"a\"}")), 503);
    assert_int_equal(read_answer(ask("OPTIONS", "/v1/completions", "")), 204);
    assert_int_equal(get("/nothing"), 404);
}

static void with_front(void (*use)(struct http *h))
{
    struct mem_stats before, after;
    struct http *h;
    struct err e = { 0 };
    struct http_config c = {
        .model_id = "toy", .max_body = 1 << 20, .max_connections = 16, .threads = 2
    };
    mem_stats(&before);
    struct engine *en = open_engine(
        &(struct engine_config){ .max_seqs = 64, .kv_tokens = 20480, .kv_type = KV_F32 });
    if (http_open(&h, &c, &e) < 0)
        fail_msg("%s", e.text);
    port = http_port(h);
    refuses_until_ready();
    http_ready(h, toy.model, en);
    use(h);
    http_shutdown(h, 5);
    http_close(h);
    engine_close(en);
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

/* Whether the only connection's generation hands over its jobs; with `gone`, whether it knows of a hang-up. */
static bool generation_is(struct http *h, bool gone)
{
    bool is = false;
    pthread_mutex_lock(&h->watch.lock);
    for (int i = 0; i < h->watch.n_slots; i++) {
        struct gen *g = h->watch.slot[i].conn != NULL ? h->watch.slot[i].conn->gen : NULL;
        if (g == NULL)
            continue;
        pthread_mutex_lock(&g->lock);
        is = gone ? g->gone : g->n_running > 0;
        pthread_mutex_unlock(&g->lock);
    }
    pthread_mutex_unlock(&h->watch.lock);
    return is;
}

/* The engine's lock holds the handing over until the hang-up has been dealt with. */
static void leave_early(struct http *h)
{
    const struct engine_stats *st = engine_stats(h->en);
    pthread_mutex_lock(&h->en->lock);
    int fd = ask("POST", "/v1/completions",
                 "{\"prompt\":\"a\",\"n\":3,\"max_tokens\":1500,\"ignore_eos\":true}");
    while (!generation_is(h, false))
        usleep(500);
    close(fd);
    while (!generation_is(h, true))
        usleep(500);
    pthread_mutex_unlock(&h->en->lock);
    while (atomic_load(&h->n_gens) > 0)
        usleep(500);
    assert_int_equal(atomic_load(&st->finished[FINISH_CANCELLED]), 3);
    assert_int_equal(atomic_load(&st->finished[FINISH_LENGTH]), 0);
}

/* What 64 choices of 250 tokens write is more than sockets hold, but less than 64 steps may. */
static void read_late(struct http *h)
{
    const struct engine_stats *st = engine_stats(h->en);
    char part[65536], end[16] = "";
    size_t all = 0;
    int fd = ask(
        "POST", "/v1/completions",
        "{\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\"],\"n\":8,\"max_tokens\":250,"
        "\"ignore_eos\":true,\"logprobs\":5,\"stream\":true}");
    for (int ms = 0; ms < 30000 && atomic_load(&st->finished[FINISH_LENGTH]) < 64; ms++)
        usleep(1000);
    for (ssize_t n; (n = recv(fd, part, sizeof part, 0)) > 0; all += (size_t)n)
        for (ssize_t i = 0; i < n; i++) {
            memmove(end, end + 1, sizeof end - 2);
            end[sizeof end - 2] = part[i];
        }
    close(fd);
    assert_true(all > 6 << 20);
    assert_non_null(strstr(end, "[DONE]"));
    assert_int_equal(atomic_load(&h->metrics.slow_readers), 0);
}

/* Seconds that the only connection's client has left for what comes next, rounded up; 0: any number. expire: leaves none. */
static int seconds_left(struct http *h, bool expire)
{
    uint64_t left = 0;
    pthread_mutex_lock(&h->watch.lock);
    for (int i = 0; i < h->watch.n_slots; i++) {
        struct conn *c = h->watch.slot[i].conn;
        if (c != NULL && c->by_ns > 0)
            left = c->by_ns - clock_ns();
        if (c != NULL && expire)
            c->by_ns = 1;
    }
    pthread_mutex_unlock(&h->watch.lock);
    return (int)((left + 999999999) / 1000000000);
}

static void say(struct http *h, int fd, const char *text, int seconds)
{
    assert_int_equal(send(fd, text, strlen(text), 0), strlen(text));
    int left = seconds_left(h, false);
    for (int ms = 0; ms < 10000 && (left > seconds || left < seconds - 10); ms++) {
        usleep(1000);
        left = seconds_left(h, false);
    }
    assert_in_range(left, seconds - 10, seconds);
}

/* A client owes a first head, a body, another head; only while it is worked for it owes nothing. One that does not go on is let
 * go of, whichever it owes. */
static void stall(struct http *h)
{
    static const char *const part[] = { "POST /v1/completions HTTP/1.1\r\nHost: a\r\n",
                                        "Content-Length: 47\r\n\r\n",
                                        "{\"prompt\":\"a\",\"max_tokens\":9,\"ignore_eos\":true}",
                                        "GET /hea" };
    static const int left[] = { 30, 60, 90, 90 };
    char text[4096];
    for (int last = 0; last < 4; last++) {
        int fd = dial();
        for (int i = 0; i <= last; i++)
            say(h, fd, part[i], left[i]);
        seconds_left(h, true);
        while (recv(fd, text, sizeof text, 0) > 0) {
        }
        close(fd);
        for (int ms = 0; ms < 10000 && atomic_load(&h->metrics.connections) > 0; ms++)
            usleep(1000);
        assert_int_equal(atomic_load(&h->metrics.connections), 0);
    }
    int fd = ask("POST", "/v1/completions",
                 "{\"prompt\":\"a\",\"max_tokens\":1500,\"ignore_eos\":true}");
    while (!generation_is(h, false))
        usleep(500);
    assert_int_equal(seconds_left(h, false), 0);
    close(fd);
}

static void test_clients_that_stall(void **state)
{
    (void)state;
    with_front(stall);
}

static void test_hangup_while_submitting(void **state)
{
    (void)state;
    with_front(leave_early);
}

static void test_late_reader(void **state)
{
    (void)state;
    with_front(read_late);
}

static void test_backlog(void **state)
{
    (void)state;
    assert_int_equal(gen_backlog(1, -1), 256 << 10);
    assert_true(gen_backlog(1, 20) > 64 * 20 * 200);
    assert_true(gen_backlog(64, -1) > 64 * 64 * 300);
    assert_true(gen_backlog(64, 0) > gen_backlog(64, -1));
    assert_int_equal(gen_backlog(4096, 20), 32 << 20);
}

static void test_device_lost(void **state)
{
    (void)state;
    with_front(lose_it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hangup_while_submitting),
        cmocka_unit_test(test_clients_that_stall),
        cmocka_unit_test(test_late_reader),
        cmocka_unit_test(test_backlog),
        cmocka_unit_test(test_device_lost),
    };
    return cmocka_run_group_tests(tests, open_frail, close_toy);
}
