/* wring serve: opens the front, which answers 503 meanwhile, the model and the engine, and waits for a signal.
 *
 * SIGTERM and SIGINT drain: no new requests, running ones get drain-timeout seconds, exit 0. A second signal while
 * draining ends at once, as one does while the model loads.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "server/base/log.h"
#include "server/base/signals.h"
#include "server/cli/cli.h"
#include "server/http.h"
#include "server/model/folder.h"

static const char usage[] = "serve MODEL [options]";

struct serve {
    const struct config *config;
    struct session session;
    struct engine *engine;
    struct http *http;
    char model_id[256];
};

/* The alias, or the last part of the path without its ending. */
static void name_model(struct serve *s)
{
    if (s->config->alias[0] != 0) {
        snprintf(s->model_id, sizeof s->model_id, "%s", s->config->alias);
        return;
    }
    folder_name(s->model_id, sizeof s->model_id, s->config->word[0]);
    size_t n = strlen(s->model_id);
    if (n > 5 && strcmp(s->model_id + n - 5, ".gguf") == 0)
        s->model_id[n - 5] = 0;
}

static void print_plan(struct serve *s)
{
    struct table *t;
    struct buf b;
    if (engine_plan(s->engine, &t) < 0)
        return;
    buf_init(&b, 1 << 16);
    if (table_print(t, false, &b) == 0)
        log_text("%s", buf_str(&b));
    buf_free(&b);
    table_close(t);
}

/* A default that no request could meet is found at the start, not by the first client. */
static int check_defaults(const struct serve *s, const struct press_rules *r, struct err *e)
{
    static const int32_t token;
    const struct job j = { .prompt = &token, .n_prompt = 1, .kv = { .policy = r->policy } };
    const struct engine_config *ec = engine_settings(s->engine);
    struct kv_shape shape;
    model_kv_shape(s->session.model, ec->kv_type, ec->kv_narrow, 0, &shape);
    TRY(press_rules_check(r, kv_slot_bytes(&shape), e));
    return engine_check(s->engine, &j, e) < 0 ? err_prefix(e, "kv-policy") : 0;
}

static int open_front(struct serve *s, const struct press_rules *press, struct err *e)
{
    const struct config *c = s->config;
    name_model(s);
    struct http_config hc = { .host = c->host,
                              .port = (int)c->port,
                              .api_key = c->api_key,
                              .model_id = s->model_id,
                              .max_body = (size_t)c->max_body,
                              .max_connections = (int)c->max_connections,
                              .threads = (int)c->http_threads,
                              .press = *press };
    return http_open(&s->http, &hc, e);
}

static int open_all(struct serve *s, struct err *e)
{
    const struct config *c = s->config;
    struct press_rules press;
    TRY(press_rules_read(&press, c, e));
    TRY(open_front(s, &press, e));
    TRY(session_engine(&s->session, &s->engine, c, 0, isatty(STDERR_FILENO), e));
    TRY(check_defaults(s, &press, e));
    if (strcmp(c->log_format, "json") != 0)
        print_plan(s);
    signals_keep();
    http_ready(s->http, s->session.model, s->engine);
    return 0;
}

/* The host as a client's URL has it: an address that can be called, in brackets where it has colons. */
static void print_host(char *out, size_t size, const char *host)
{
    if (strcmp(host, "0.0.0.0") == 0)
        host = "127.0.0.1";
    else if (strcmp(host, "::") == 0)
        host = "::1";
    snprintf(out, size, strchr(host, ':') != NULL ? "[%s]" : "%s", host);
}

static void wait_and_drain(struct serve *s)
{
    char host[512];
    print_host(host, sizeof host, s->config->host);
    LOG(I, "listening", "url=http://%s:%d model=%s ctx=%d", host, http_port(s->http),
        LOG_STR(s->model_id), engine_ctx(s->engine));
    int sig = signals_wait();
    LOG(I, "draining", "signal=%s timeout_s=%lld", sig == SIGTERM ? "TERM" : "INT",
        (long long)s->config->drain_timeout);
    http_shutdown(s->http, (double)s->config->drain_timeout);
}

int cmd_serve(int argc, char **argv)
{
    struct config c;
    struct err e;
    bool done;
    int code = cli_config(&c, CONFIG_SERVE, usage, 1, argc, argv, &done);
    if (done)
        return code;
    signal(SIGPIPE, SIG_IGN);
    struct serve s = { .config = &c };
    if (signals_take(&e) < 0 || open_all(&s, &e) < 0)
        code = cli_fail(&e);
    else
        wait_and_drain(&s);
    http_close(s.http);
    engine_close(s.engine);
    session_close(&s.session);
    config_free(&c);
    if (code == 0)
        LOG(I, "stopped", "code=0");
    return code;
}
