/* What a caller is told when a request fails: HTTP status and OpenAI's error object.
 *
 *   {"error": {"message": "...", "type": "...", "param": null | "path", "code": null | "string"}}
 *
 * All four members are always there; code is a string or null, never a number (openai-python types it so). A prompt
 * that does not fit says so in OpenAI's words and also carries n_prompt_tokens and n_ctx, which llama-server's clients
 * read. Values; no shared state; any thread.
 */
#ifndef WRING_API_ERROR_H
#define WRING_API_ERROR_H

#include <stdbool.h>
#include <stdint.h>

#include "server/base/buf.h"
#include "server/base/err.h"

struct api_error {
    int status;       /* HTTP status, 0: no error */
    const char *type; /* static */
    const char *code; /* static; NULL is null */
    char param[120];  /* path of the offending field; "" is null */
    char message[508];
    int retry_after_s; /* > 0: a Retry-After header belongs to it (clients obey 1..60) */
    bool no_retry;     /* x-should-retry: false, for failures a second try would only repeat */
    int64_t n_prompt, n_ctx; /* extra members when n_ctx > 0 */
};

/* Each fills e and returns ERR_INVALID (4xx), ERR_BUSY (429, 503) or ERR_IO (500), so that `return api_error_...` works. */

/* 400 invalid_request_error. param NULL or "" is null. */
int api_error_bad(struct api_error *e, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* 400 with a code of its own, e.g. "unsupported_value". */
int api_error_code(struct api_error *e, const char *code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* How many tokens a sequence may have. */
struct api_room {
    int64_t n;     /* this one */
    int64_t n_ctx; /* any; more than n where the KV pool holds only n of a cache that stays whole */
};
/* 400 context_length_exceeded. param: "messages" or "prompt". n_wanted: tokens asked for the answer, 0: the prompt
 * alone is too long. */
int api_error_context(struct api_error *e, const char *param, int64_t n_prompt, int64_t n_wanted,
                      struct api_room room);
/* The same of a prompt alone, of which only a lower bound is known. */
int api_error_context_least(struct api_error *e, const char *param, int64_t n_least,
                            struct api_room room);
int api_error_key(struct api_error *e, bool given);         /* 401 invalid_api_key */
int api_error_model(struct api_error *e, const char *name); /* 404 model_not_found */
int api_error_path(struct api_error *e, const char *method, const char *path);   /* 404 */
int api_error_method(struct api_error *e, const char *method, const char *path); /* 405 */
int api_error_too_large(struct api_error *e, int64_t max_bytes);                 /* 413 */
int api_error_media(struct api_error *e, const char *got);             /* 415; got may be NULL */
int api_error_coding(struct api_error *e, const char *got);            /* 415 */
int api_error_busy(struct api_error *e, const char *why, int retry_s); /* 429 */
/* 503. code: static, e.g. "shutting_down". */
int api_error_unavailable(struct api_error *e, const char *code, const char *why, int retry_s);
int api_error_internal(struct api_error *e, const char *why); /* 500 */
/* From an error value of the layers below: LIMIT/INVALID/FORMAT/UNSUPPORTED 400, BUSY 429, DEVICE 503, others 500. */
int api_error_from(struct api_error *e, const struct err *why, const char *param);

/* The JSON object, without framing. */
void api_error_write(const struct api_error *e, struct buf *out);

#endif
