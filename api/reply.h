/* Replies: OpenAI's objects and server-sent events, written into a struct buf.
 *
 * Nothing here keeps state but what the structs below show; failures are remembered by the buffers. Text handed in
 * should be whole UTF-8 (the engine holds back split characters); what is not becomes U+FFFD.
 * Thread: one owner per struct.
 *
 * Order of a stream, per choice: with "detail" (once) a chunk with choices [] and compression; chunk with the role and
 * content "" (chat only), text chunks, a chunk without text that has finish_reason; then, when include_usage was set, one
 * chunk with choices [] and usage (all earlier chunks have usage null); then "data: [DONE]".
 */
#ifndef WRING_API_REPLY_H
#define WRING_API_REPLY_H

#include <stdbool.h>
#include <stdint.h>

#include "api/error.h"
#include "api/request.h"
#include "server/base/buf.h"

/* What all chunks of one reply have in common. Strings are borrowed. */
struct api_head {
    enum api_kind kind;
    const char *id; /* "chatcmpl-..." or "cmpl-..." */
    const char *model;
    const char *fingerprint; /* system_fingerprint: the build that answered */
    int64_t created;         /* Unix time */
    bool include_usage;      /* streams only */
};

/* What became of the caches of all choices. */
struct api_kv_usage {
    const char *policy; /* NULL: no compression member */
    int budget;         /* slots a KV head; 0: the policy keeps all */
    int64_t bytes;      /* held in the cache at the end */
    int64_t full_bytes; /* what a full cache of the same tokens takes */
    /* Below: when at least one was pressed. */
    int n_pressed;
    int raised; /* the budget that the guard gave; 0: it gave none */
    int64_t kept, merged;
    double mass_min, mass_mean;
    struct api_str detail; /* what api_detail_write() wrote; empty: none */
};

struct api_usage {
    int64_t n_prompt, n_completion, n_cached;
    struct api_kv_usage kv;
};

/* ---- log-probabilities -----------------------------------------------------------------------------------------
 * One entry a token, written as JSON the moment it is known:
 *   chat:        {"content": [{"token", "logprob", "bytes", "top_logprobs": [...]}], "refusal": null}
 *   completions: {"tokens", "token_logprobs", "top_logprobs": [{token: logprob}], "text_offset"} (offsets in code points)
 */
struct api_token {
    struct api_str text; /* the token's own bytes, maybe part of a character */
    float logprob;
    bool no_logprob; /* completions with echo: the first token has none */
};
struct api_logprobs {
    enum api_kind kind;
    int n;          /* tokens so far */
    int64_t offset; /* of the next token, code points */
    struct buf a, b, c,
        offsets; /* chat: a. completions: tokens, token_logprobs, top_logprobs, text_offset */
};
void api_logprobs_init(struct api_logprobs *lp, enum api_kind kind, size_t max_bytes);
void api_logprobs_free(struct api_logprobs *lp);
/* Forgets the tokens, keeps the offset: a stream sends each token once. */
void api_logprobs_clear(struct api_logprobs *lp);
/* top: the n_top best alternatives, falling. */
void api_logprobs_add(struct api_logprobs *lp, const struct api_token *t,
                      const struct api_token *top, int n_top);
/* The object, or null when it holds no token. */
void api_logprobs_write(const struct api_logprobs *lp, struct buf *out);

/* ---- detail of a pressed cache ---------------------------------------------------------------------------------
 * {"slots": [[a head's slots, ...] a layer, ...], "survival": [a prompt token's share of heads, 3 decimals, ...]}
 */
struct api_detail {
    int n_layers, n_heads, n_prompt;
    const int32_t *slots;  /* [n_layers * n_heads] */
    const float *survival; /* [n_prompt] 0..1 */
};
void api_detail_write(const struct api_detail *d, struct buf *out);

/* ---- whole replies -------------------------------------------------------------------------------------------- */
struct api_choice {
    struct api_str text;
    const char *finish_reason;           /* "stop" or "length" */
    const struct api_logprobs *logprobs; /* NULL: null */
};
void api_reply_write(const struct api_head *h, const struct api_choice *choice, int n,
                     const struct api_usage *u, struct buf *out);

/* ---- streams -------------------------------------------------------------------------------------------------- */
struct api_stream {
    struct buf prefix; /* `data: {...,"choices":[{"index":` */
    enum api_kind kind;
    bool include_usage;
};
/* ERR_NOMEM. */
int api_stream_init(struct api_stream *s, const struct api_head *h) WARN_UNUSED;
void api_stream_free(struct api_stream *s);
/* Each appends one event, ending in a blank line. */
void api_stream_role(const struct api_stream *s, int index, struct buf *out);
void api_stream_text(const struct api_stream *s, int index, const char *text, size_t n,
                     const struct api_logprobs *lp, struct buf *out);
void api_stream_finish(const struct api_stream *s, int index, const char *finish_reason,
                       struct buf *out);
void api_stream_usage(const struct api_stream *s, const struct api_head *h,
                      const struct api_usage *u, struct buf *out);
/* With "detail": a chunk with choices [] and "compression", as soon as the prompt is pressed. */
void api_stream_detail(const struct api_stream *s, const struct api_head *h,
                       const struct api_detail *d, struct buf *out);
void api_stream_done(struct buf *out);
/* A failure after the headers went out: openai-python raises on a chunk that has "error". */
void api_stream_error(const struct api_error *e, struct buf *out);
/* A comment that keeps proxies from giving up; clients skip it. */
void api_stream_ping(struct buf *out);

/* ---- small ones ----------------------------------------------------------------------------------------------- */
struct api_model {
    const char *id;
    int64_t created;
    int n_ctx, n_ctx_train, n_vocab, n_embd;
    int64_t n_params, bytes;
    const char *kv_policies; /* "full, ..."; NULL: none */
};
void api_model_write(const struct api_model *m, struct buf *out);
void api_models_write(const struct api_model *m, int n, struct buf *out);
/* piece: NULL unless asked for; then [n]. */
void api_tokenize_write(const int32_t *ids, int n, const struct api_str *piece, int n_ctx,
                        struct buf *out);
void api_detokenize_write(const char *text, size_t n, struct buf *out);

#endif
