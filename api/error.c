/* Error objects. See error.h. */
#include "api/error.h"

#include <stdio.h>
#include <string.h>

#include "api/put.h"

#define TYPE_REQUEST "invalid_request_error"

static void fill(struct api_error *e, int status, const char *type, const char *code,
                 const char *param)
{
    memset(e, 0, sizeof(*e));
    e->status = status;
    e->type = type;
    e->code = code;
    if (param)
        snprintf(e->param, sizeof(e->param), "%s", param);
}

int api_error_bad(struct api_error *e, const char *param, const char *fmt, ...)
{
    va_list ap;
    fill(e, 400, TYPE_REQUEST, NULL, param);
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof(e->message), fmt, ap);
    va_end(ap);
    return ERR_INVALID;
}

int api_error_code(struct api_error *e, const char *code, const char *param, const char *fmt, ...)
{
    va_list ap;
    fill(e, 400, TYPE_REQUEST, code, param);
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof(e->message), fmt, ap);
    va_end(ap);
    return ERR_INVALID;
}

/* What bounds a sequence, in OpenAI's words where it is the context. */
static void put_limit(char *out, size_t size, struct api_room room)
{
    if (room.n < room.n_ctx)
        snprintf(out, size,
                 "This server's KV pool holds %lld tokens of a cache that stays whole, fewer than "
                 "the maximum context length of %lld tokens; compression.kv or a larger --kv-size "
                 "makes room.",
                 (long long)room.n, (long long)room.n_ctx);
    else
        snprintf(out, size, "This model's maximum context length is %lld tokens.",
                 (long long)room.n);
}

static int too_long(struct api_error *e, const char *param, const char *about, int64_t n_prompt,
                    struct api_room room)
{
    const char *what = strcmp(param, "messages") == 0 ? "messages" : "prompt";
    char limit[224];
    put_limit(limit, sizeof(limit), room);
    fill(e, 400, TYPE_REQUEST, "context_length_exceeded", param);
    snprintf(e->message, sizeof(e->message),
             "%s However, your %s resulted in %s%lld tokens. Please reduce the length of the %s.",
             limit, what, about, (long long)n_prompt, what);
    e->n_prompt = n_prompt;
    e->n_ctx = room.n;
    return ERR_INVALID;
}

int api_error_context(struct api_error *e, const char *param, int64_t n_prompt, int64_t n_wanted,
                      struct api_room room)
{
    const char *what = strcmp(param, "messages") == 0 ? "messages" : "prompt";
    char limit[224];
    put_limit(limit, sizeof(limit), room);
    too_long(e, param, "", n_prompt, room);
    if (n_wanted > 0)
        snprintf(e->message, sizeof(e->message),
                 "%s However, you requested %lld tokens (%lld in the %s, %lld in the completion). "
                 "Please reduce the length of the %s or completion.",
                 limit, (long long)(n_prompt + n_wanted), (long long)n_prompt, what,
                 (long long)n_wanted, what);
    return ERR_INVALID;
}

int api_error_context_least(struct api_error *e, const char *param, int64_t n_least,
                            struct api_room room)
{
    return too_long(e, param, "at least ", n_least, room);
}

int api_error_key(struct api_error *e, bool given)
{
    fill(e, 401, TYPE_REQUEST, "invalid_api_key", NULL);
    snprintf(e->message, sizeof(e->message), "%s",
             given ? "Incorrect API key provided."
                   : "You didn't provide an API key. You need to provide your API key in an "
                     "Authorization header using Bearer auth (i.e. Authorization: Bearer "
                     "YOUR_KEY).");
    return ERR_INVALID;
}

int api_error_model(struct api_error *e, const char *name)
{
    fill(e, 404, TYPE_REQUEST, "model_not_found", "model");
    snprintf(e->message, sizeof(e->message),
             "The model `%.200s` does not exist or you do not have access to it.", name);
    return ERR_INVALID;
}

int api_error_path(struct api_error *e, const char *method, const char *path)
{
    fill(e, 404, TYPE_REQUEST, "unknown_url", NULL);
    snprintf(e->message, sizeof(e->message), "Unknown request URL: %.16s %.200s.", method, path);
    return ERR_INVALID;
}

int api_error_method(struct api_error *e, const char *method, const char *path)
{
    fill(e, 405, TYPE_REQUEST, "method_not_supported", NULL);
    snprintf(e->message, sizeof(e->message), "Not allowed to %.16s on %.200s.", method, path);
    return ERR_INVALID;
}

int api_error_too_large(struct api_error *e, int64_t max_bytes)
{
    fill(e, 413, TYPE_REQUEST, "request_too_large", NULL);
    snprintf(e->message, sizeof(e->message),
             "The request body is larger than this server takes (%lld bytes).",
             (long long)max_bytes);
    return ERR_INVALID;
}

int api_error_media(struct api_error *e, const char *got)
{
    fill(e, 415, TYPE_REQUEST, "unsupported_content_type", NULL);
    snprintf(e->message, sizeof(e->message),
             "Unsupported Content-Type: '%.100s'. This API takes 'application/json'.",
             got ? got : "");
    return ERR_INVALID;
}

int api_error_coding(struct api_error *e, const char *got)
{
    fill(e, 415, TYPE_REQUEST, "unsupported_content_encoding", NULL);
    snprintf(e->message, sizeof(e->message),
             "Unsupported Content-Encoding: '%.100s'. This API takes bodies that are not encoded.",
             got);
    return ERR_INVALID;
}

int api_error_busy(struct api_error *e, const char *why, int retry_s)
{
    fill(e, 429, "requests", "rate_limit_exceeded", NULL);
    snprintf(e->message, sizeof(e->message), "%.300s Please try again in %ds.", why, retry_s);
    e->retry_after_s = retry_s;
    return ERR_BUSY;
}

int api_error_unavailable(struct api_error *e, const char *code, const char *why, int retry_s)
{
    fill(e, 503, "service_unavailable", code, NULL);
    snprintf(e->message, sizeof(e->message), "%s", why);
    e->retry_after_s = retry_s;
    return ERR_BUSY;
}

int api_error_internal(struct api_error *e, const char *why)
{
    fill(e, 500, "server_error", NULL, NULL);
    snprintf(e->message, sizeof(e->message), "%s", why);
    e->no_retry = true;
    return ERR_IO;
}

int api_error_from(struct api_error *e, const struct err *why, const char *param)
{
    switch (why->code) {
    case ERR_LIMIT:
    case ERR_INVALID:
    case ERR_FORMAT: return api_error_bad(e, param, "%s", why->text);
    case ERR_UNSUPPORTED: return api_error_code(e, "unsupported_value", param, "%s", why->text);
    case ERR_BUSY: return api_error_busy(e, why->text, 1);
    case ERR_DEVICE: return api_error_unavailable(e, "device_lost", why->text, 10);
    default: return api_error_internal(e, why->text);
    }
}

void api_error_write(const struct api_error *e, struct buf *out)
{
    PUT_RAW(out, "{\"error\":{\"message\":");
    api_put_cstr(out, e->message);
    PUT_RAW(out, ",\"type\":");
    api_put_cstr(out, e->type);
    PUT_RAW(out, ",\"param\":");
    api_put_cstr(out, e->param[0] ? e->param : NULL);
    PUT_RAW(out, ",\"code\":");
    api_put_cstr(out, e->code);
    if (e->n_ctx > 0) {
        PUT_RAW(out, ",\"n_prompt_tokens\":");
        api_put_int(out, e->n_prompt);
        PUT_RAW(out, ",\"n_ctx\":");
        api_put_int(out, e->n_ctx);
    }
    PUT_RAW(out, "}}");
}
