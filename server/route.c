/* What each path answers. See http_internal.h. */
#include <string.h>

#include "api/put.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/http_internal.h"
#include "server/version.h"

enum { REPLY_MAX = 512 << 20, STREAM_BLOCK = 8 << 10 };

static const struct {
    const char *path;
    enum route route;
    const char *allow;
} table[] = {
    { "/v1/chat/completions", ROUTE_CHAT, "POST, OPTIONS" },
    { "/v1/completions", ROUTE_COMPLETIONS, "POST, OPTIONS" },
    { "/v1/models", ROUTE_MODELS, "GET, HEAD, OPTIONS" },
    { "/tokenize", ROUTE_TOKENIZE, "POST, OPTIONS" },
    { "/detokenize", ROUTE_DETOKENIZE, "POST, OPTIONS" },
    { "/health", ROUTE_HEALTH, "GET, HEAD, OPTIONS" },
    { "/version", ROUTE_VERSION, "GET, HEAD, OPTIONS" },
    { "/metrics", ROUTE_METRICS, "GET, HEAD, OPTIONS" },
    { "/", ROUTE_PAGE, "GET, HEAD, OPTIONS" },
};
static const char models_dir[] = "/v1/models/";

enum route route_find(const char *path, const char **allow)
{
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (strcmp(path, table[i].path) == 0) {
            *allow = table[i].allow;
            return table[i].route;
        }
    *allow = "GET, HEAD, OPTIONS";
    return strncmp(path, models_dir, sizeof(models_dir) - 1) == 0 ? ROUTE_MODEL : ROUTE_NONE;
}

static const char *allow_of(enum route r)
{
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (table[i].route == r)
            return table[i].allow;
    return "GET, HEAD, OPTIONS";
}

/* Sends res with the headers that every reply has, and lets go of it. */
static enum MHD_Result send_reply(struct request *r, int status, struct MHD_Response *res,
                                  const char *type)
{
    if (!res)
        return MHD_NO;
    if (type)
        MHD_add_response_header(res, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(res, "x-request-id", r->id);
    MHD_add_response_header(res, MHD_HTTP_HEADER_ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    MHD_add_response_header(res, MHD_HTTP_HEADER_ACCESS_CONTROL_EXPOSE_HEADERS,
                            "x-request-id, Retry-After");
    if (r->close)
        MHD_add_response_header(res, MHD_HTTP_HEADER_CONNECTION, "close");
    r->status = status;
    enum MHD_Result rc = MHD_queue_response(r->mhd, (unsigned)status, res);
    MHD_destroy_response(res);
    return rc;
}

/* Takes b's memory. */
static struct MHD_Response *response_of(struct buf *b)
{
    size_t n = b->len;
    if (b->bad || n == 0) {
        buf_free(b);
        return NULL;
    }
    char *text = buf_detach(b);
    struct MHD_Response *res =
        MHD_create_response_from_buffer_with_free_callback(n, text, mem_free);
    if (!res)
        mem_free(text);
    return res;
}

static enum MHD_Result send_json(struct request *r, int status, struct buf *b)
{
    return send_reply(r, status, response_of(b), "application/json");
}

enum MHD_Result route_error(struct request *r, const struct api_error *e)
{
    char seconds[16];
    struct buf b;

    buf_init(&b, 1 << 14);
    api_error_write(e, &b);
    struct MHD_Response *res = response_of(&b);
    if (!res)
        return MHD_NO;
    if (e->retry_after_s > 0) {
        snprintf(seconds, sizeof(seconds), "%d", e->retry_after_s);
        MHD_add_response_header(res, MHD_HTTP_HEADER_RETRY_AFTER, seconds);
    }
    if (e->no_retry)
        MHD_add_response_header(res, "x-should-retry", "false");
    if (e->status == 401)
        MHD_add_response_header(res, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (e->status == 405)
        MHD_add_response_header(res, MHD_HTTP_HEADER_ALLOW, allow_of(r->route));
    return send_reply(r, e->status, res, "application/json");
}

static enum MHD_Result internal(struct request *r)
{
    struct api_error e;
    api_error_internal(&e, "The server ran out of memory.");
    return route_error(r, &e);
}

/* ---- generations ------------------------------------------------------------------------------------------------- */

/* The tie to the connection is made before the jobs are handed over: gen_submit() sees a hang-up that falls between. */
static int begin_generation(struct request *r, enum api_kind kind, bool *stream,
                            struct api_error *e)
{
    struct http *h = r->h;
    struct api_request req;

    if (atomic_load(&h->draining))
        return api_error_unavailable(e, "shutting_down", "The server is shutting down.", 5);
    TRY(api_request_parse(&req, kind, buf_str(&r->body), r->body.len, &h->limits, e));
    if (log_prompts())
        log_whole(LOG_I, "prompt", "body", &r->body, "request=%s", r->id);
    buf_free(&r->body);
    if (req.model && req.model[0] && strcmp(req.model, h->c.model_id) != 0) {
        api_error_model(e, req.model);
        api_request_free(&req);
        return ERR_INVALID;
    }
    *stream = req.stream;
    TRY(gen_new(&r->gen, h, r->mhd, &req, e));
    atomic_fetch_add(&h->metrics.generating, 1);
    if (!watch_attach(&h->watch, r->conn, r->gen))
        return ERR_CANCELLED; /* the client has gone */
    return gen_submit(r->gen, e);
}

static enum MHD_Result send_stream(struct request *r)
{
    struct MHD_Response *res =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, gen_read, r->gen, NULL);
    if (!res)
        return MHD_NO;
    MHD_add_response_header(res, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    MHD_add_response_header(res, "X-Accel-Buffering", "no");
    return send_reply(r, 200, res, "text/event-stream; charset=utf-8");
}

static enum MHD_Result answer_generation(struct request *r, enum api_kind kind)
{
    struct api_error e;
    struct buf out;

    if (!r->dispatched) {
        bool stream = false;
        r->dispatched = true;
        int begun = begin_generation(r, kind, &stream, &e);
        if (begun < 0)
            return begun == ERR_CANCELLED ? MHD_NO : route_error(r, &e);
        if (stream)
            return send_stream(r);
    }
    if (!gen_wait(r->gen))
        return MHD_YES; /* suspended; called again when woken */
    buf_init(&out, REPLY_MAX);
    int rc = gen_reply(r->gen, &out, &e);
    if (rc < 0) {
        buf_free(&out);
        return rc == ERR_CANCELLED ? MHD_NO : route_error(r, &e);
    }
    return send_json(r, 200, &out);
}

/* ---- the small ones ---------------------------------------------------------------------------------------------- */

static int64_t parameters(const struct model *m)
{
    const struct model_config *c = &m->config;
    int64_t d = c->dim, q = (int64_t)c->n_heads * c->head_dim,
            kv = (int64_t)c->n_kv_heads * c->head_dim;
    int64_t layer = 2 * d * q + 2 * d * kv + 3 * d * c->ffn + 2 * d;
    return c->n_layers * layer + (c->tied ? 1 : 2) * (int64_t)c->vocab * d + d;
}

static struct api_model describe(const struct http *h)
{
    const struct model *m = h->model;
    return (struct api_model){ .id = h->c.model_id,
                               .created = h->created,
                               .n_ctx = engine_ctx(h->en),
                               .n_ctx_train = m->config.ctx_train,
                               .n_vocab = m->config.vocab,
                               .n_embd = m->config.dim,
                               .n_params = parameters(m),
                               .bytes = (int64_t)m->weight_bytes,
                               .kv_policies = press_policies(&h->c.press, m->config.window > 0) };
}

static enum MHD_Result answer_models(struct request *r, const char *id)
{
    struct api_model m = describe(r->h);
    struct api_error e;
    struct buf b;

    if (id && strcmp(id, m.id) != 0) {
        api_error_model(&e, id);
        return route_error(r, &e);
    }
    buf_init(&b, 1 << 16);
    if (id)
        api_model_write(&m, &b);
    else
        api_models_write(&m, 1, &b);
    return send_json(r, 200, &b);
}

static int write_tokens(const struct http *h, const struct api_tokenize *t, struct buf *out,
                        struct api_error *e)
{
    int32_t *ids = NULL;
    int n = 0;

    TRY(prompt_tokenize(h, t, &ids, &n, e));
    struct api_str *piece = NULL;
    if (t->with_pieces && n > 0 && (piece = mem_zalloc((size_t)n, sizeof(*piece))))
        for (int i = 0; i < n; i++)
            piece[i] = http_piece(h, ids[i]);
    api_tokenize_write(ids, n, piece, engine_ctx(h->en), out);
    mem_free(piece);
    mem_free(ids);
    return out->bad ? api_error_internal(e, "The server ran out of memory.") : 0;
}

static enum MHD_Result answer_tokenize(struct request *r)
{
    struct api_tokenize t;
    struct api_error e;
    struct buf out;

    if (api_tokenize_parse(&t, buf_str(&r->body), r->body.len, &e) < 0)
        return route_error(r, &e);
    buf_init(&out, REPLY_MAX);
    int rc = write_tokens(r->h, &t, &out, &e);
    api_tokenize_free(&t);
    if (rc == 0)
        return send_json(r, 200, &out);
    buf_free(&out);
    return route_error(r, &e);
}

static enum MHD_Result answer_detokenize(struct request *r)
{
    struct api_detokenize d;
    struct api_error e;
    struct buf text, out;

    if (api_detokenize_parse(&d, buf_str(&r->body), r->body.len, &r->h->limits, &e) < 0)
        return route_error(r, &e);
    buf_init(&text, REPLY_MAX);
    buf_init(&out, REPLY_MAX);
    int rc = tok_decode(r->h->model->tok, d.ids, d.n_ids, true, &text);
    if (rc == 0)
        api_detokenize_write(buf_str(&text), text.len, &out);
    buf_free(&text);
    api_detokenize_free(&d);
    if (rc == 0 && !out.bad)
        return send_json(r, 200, &out);
    buf_free(&out);
    return internal(r);
}

/* A lost device does not end the process: running generations were told, and whoever watches takes it out of rotation. */
static enum MHD_Result answer_health(struct request *r)
{
    struct api_error e;
    struct err why = { 0 };
    struct buf b;

    if (engine_error(r->h->en, &why) < 0) {
        api_error_from(&e, &why, NULL);
        return route_error(r, &e);
    }
    if (atomic_load(&r->h->draining)) {
        api_error_unavailable(&e, "shutting_down", "The server is shutting down.", 5);
        return route_error(r, &e);
    }
    buf_init(&b, 64);
    PUT_RAW(&b, "{\"status\":\"ok\"}");
    return send_json(r, 200, &b);
}

static enum MHD_Result answer_version(struct request *r)
{
    struct buf b;
    buf_init(&b, 128);
    PUT_RAW(&b, "{\"version\":\"" WRING_VERSION "\"}");
    return send_json(r, 200, &b);
}

static enum MHD_Result answer_metrics(struct request *r)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    metrics_write(&r->h->metrics, r->h->en, r->h->c.model_id, &b);
    return send_reply(r, 200, response_of(&b), "text/plain; version=0.0.4; charset=utf-8");
}

static enum MHD_Result answer_page(struct request *r)
{
    struct MHD_Response *res = MHD_create_response_from_buffer(
        http_page_size, (void *)(uintptr_t)http_page, MHD_RESPMEM_PERSISTENT);
    if (!res)
        return MHD_NO;
    MHD_add_response_header(res, "Content-Security-Policy",
                            "default-src 'none'; style-src 'unsafe-inline'; script-src "
                            "'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
                            "form-action 'none'; frame-ancestors 'none'");
    MHD_add_response_header(res, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(res, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    return send_reply(r, 200, res, "text/html; charset=utf-8");
}

static enum MHD_Result answer_preflight(struct request *r)
{
    struct MHD_Response *res = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    if (!res)
        return MHD_NO;
    MHD_add_response_header(res, MHD_HTTP_HEADER_ALLOW, allow_of(r->route));
    MHD_add_response_header(res, MHD_HTTP_HEADER_ACCESS_CONTROL_ALLOW_METHODS, allow_of(r->route));
    const char *want = MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND,
                                                   MHD_HTTP_HEADER_ACCESS_CONTROL_REQUEST_HEADERS);
    /* SDKs send headers of their own (x-stainless-*): what is asked for is allowed. */
    MHD_add_response_header(res, MHD_HTTP_HEADER_ACCESS_CONTROL_ALLOW_HEADERS,
                            want && want[0] ? want : "Authorization, Content-Type, x-request-id");
    MHD_add_response_header(res, MHD_HTTP_HEADER_ACCESS_CONTROL_MAX_AGE, "86400");
    return send_reply(r, 204, res, NULL);
}

enum MHD_Result route_answer(struct request *r, const char *method, const char *path)
{
    struct api_error e;

    if (r->preflight)
        return answer_preflight(r);
    switch (r->route) {
    case ROUTE_CHAT: return answer_generation(r, API_CHAT);
    case ROUTE_COMPLETIONS: return answer_generation(r, API_COMPLETION);
    case ROUTE_MODELS: return answer_models(r, NULL);
    case ROUTE_MODEL: return answer_models(r, path + sizeof(models_dir) - 1);
    case ROUTE_TOKENIZE: return answer_tokenize(r);
    case ROUTE_DETOKENIZE: return answer_detokenize(r);
    case ROUTE_HEALTH: return answer_health(r);
    case ROUTE_VERSION: return answer_version(r);
    case ROUTE_METRICS: return answer_metrics(r);
    case ROUTE_PAGE: return answer_page(r);
    case ROUTE_NONE:
    case ROUTE_N:
    default: api_error_path(&e, method, path); return route_error(r, &e);
    }
}
