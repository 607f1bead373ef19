/* Whole replies and streams. See reply.h. */
#include "api/reply.h"

#include <math.h>
#include <string.h>

#include "api/put.h"

enum { PREFIX_MAX = 4096 };

/* "id": ..., "object": ..., "created": ..., "model": ..., "system_fingerprint": ... */
static void put_head(const struct api_head *h, bool stream, struct buf *out)
{
    PUT_RAW(out, "\"id\":");
    api_put_cstr(out, h->id);
    if (h->kind == API_COMPLETION)
        PUT_RAW(out, ",\"object\":\"text_completion\"");
    else if (stream)
        PUT_RAW(out, ",\"object\":\"chat.completion.chunk\"");
    else
        PUT_RAW(out, ",\"object\":\"chat.completion\"");
    PUT_RAW(out, ",\"created\":");
    api_put_int(out, h->created);
    PUT_RAW(out, ",\"model\":");
    api_put_cstr(out, h->model);
    PUT_RAW(out, ",\"system_fingerprint\":");
    api_put_cstr(out, h->fingerprint);
}

static void put_kv_usage(const struct api_kv_usage *kv, struct buf *out)
{
    PUT_RAW(out, ",\"compression\":{\"kv\":{\"policy\":");
    api_put_cstr(out, kv->policy);
    if (kv->budget > 0) {
        PUT_RAW(out, ",\"budget\":");
        api_put_int(out, kv->budget);
    }
    PUT_RAW(out, ",\"bytes\":");
    api_put_int(out, kv->bytes);
    PUT_RAW(out, ",\"full_bytes\":");
    api_put_int(out, kv->full_bytes);
    if (kv->n_pressed > 0) {
        PUT_RAW(out, ",\"kept\":");
        api_put_int(out, kv->kept);
        PUT_RAW(out, ",\"merged\":");
        api_put_int(out, kv->merged);
        PUT_RAW(out, ",\"mass_min\":");
        api_put_num(out, round(kv->mass_min * 1e4) / 1e4);
        PUT_RAW(out, ",\"mass_mean\":");
        api_put_num(out, round(kv->mass_mean * 1e4) / 1e4);
    }
    if (kv->raised > 0) {
        PUT_RAW(out, ",\"raised\":");
        api_put_int(out, kv->raised);
    }
    if (kv->detail.n > 0) {
        PUT_RAW(out, ",\"detail\":");
        (void)buf_add(out, kv->detail.p, kv->detail.n);
    }
    PUT_RAW(out, "}}");
}

static void put_usage(const struct api_usage *u, struct buf *out)
{
    PUT_RAW(out, "{\"prompt_tokens\":");
    api_put_int(out, u->n_prompt);
    PUT_RAW(out, ",\"completion_tokens\":");
    api_put_int(out, u->n_completion);
    PUT_RAW(out, ",\"total_tokens\":");
    api_put_int(out, u->n_prompt + u->n_completion);
    PUT_RAW(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    api_put_int(out, u->n_cached);
    (void)buf_addc(out, '}');
    if (u->kv.policy)
        put_kv_usage(&u->kv, out);
    (void)buf_addc(out, '}');
}

static void put_logprobs(const struct api_logprobs *lp, struct buf *out)
{
    if (lp)
        api_logprobs_write(lp, out);
    else
        PUT_RAW(out, "null");
}

void api_detail_write(const struct api_detail *d, struct buf *out)
{
    PUT_RAW(out, "{\"slots\":[");
    for (int i = 0; i < d->n_layers * d->n_heads; i++) {
        bool first = i % d->n_heads == 0;
        (void)buf_adds(out, !first ? "," : i > 0 ? "],[" : "[");
        api_put_int(out, d->slots[i]);
    }
    PUT_RAW(out, "]],\"survival\":[");
    for (int i = 0; i < d->n_prompt; i++) {
        int thousandths = (int)(d->survival[i] * 1000 + 0.5f);
        if (i > 0)
            (void)buf_addc(out, ',');
        if (thousandths <= 0 || thousandths >= 1000)
            (void)buf_addc(out, thousandths <= 0 ? '0' : '1');
        else
            (void)buf_addf(out, "0.%03d", thousandths);
    }
    PUT_RAW(out, "]}");
}

void api_reply_write(const struct api_head *h, const struct api_choice *choice, int n,
                     const struct api_usage *u, struct buf *out)
{
    (void)buf_addc(out, '{');
    put_head(h, false, out);
    PUT_RAW(out, ",\"choices\":[");
    for (int i = 0; i < n; i++) {
        const struct api_choice *c = &choice[i];
        if (i > 0)
            (void)buf_addc(out, ',');
        PUT_RAW(out, "{\"index\":");
        api_put_int(out, i);
        if (h->kind == API_CHAT) {
            PUT_RAW(out, ",\"message\":{\"role\":\"assistant\",\"content\":");
            api_put_str(out, c->text.p, c->text.n);
            PUT_RAW(out, ",\"refusal\":null}");
        } else {
            PUT_RAW(out, ",\"text\":");
            api_put_str(out, c->text.p, c->text.n);
        }
        PUT_RAW(out, ",\"logprobs\":");
        put_logprobs(c->logprobs, out);
        PUT_RAW(out, ",\"finish_reason\":");
        api_put_cstr(out, c->finish_reason);
        (void)buf_addc(out, '}');
    }
    PUT_RAW(out, "],\"usage\":");
    put_usage(u, out);
    (void)buf_addc(out, '}');
}

int api_stream_init(struct api_stream *s, const struct api_head *h)
{
    s->kind = h->kind;
    s->include_usage = h->include_usage;
    buf_init(&s->prefix, PREFIX_MAX);
    PUT_RAW(&s->prefix, "data: {");
    put_head(h, true, &s->prefix);
    PUT_RAW(&s->prefix, ",\"choices\":[{\"index\":");
    if (!s->prefix.bad)
        return 0;
    buf_free(&s->prefix);
    return ERR_NOMEM;
}

void api_stream_free(struct api_stream *s)
{
    buf_free(&s->prefix);
}

static void open_chunk(const struct api_stream *s, int index, struct buf *out)
{
    (void)buf_add(out, s->prefix.data, s->prefix.len);
    api_put_int(out, index);
}

static void close_chunk(const struct api_stream *s, struct buf *out)
{
    if (s->include_usage)
        PUT_RAW(out, "}],\"usage\":null}\n\n");
    else
        PUT_RAW(out, "}]}\n\n");
}

void api_stream_role(const struct api_stream *s, int index, struct buf *out)
{
    open_chunk(s, index, out);
    PUT_RAW(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},"
                 "\"logprobs\":null,\"finish_reason\":null");
    close_chunk(s, out);
}

void api_stream_text(const struct api_stream *s, int index, const char *text, size_t n,
                     const struct api_logprobs *lp, struct buf *out)
{
    open_chunk(s, index, out);
    if (s->kind == API_CHAT) {
        PUT_RAW(out, ",\"delta\":{\"content\":");
        api_put_str(out, text, n);
        PUT_RAW(out, "},\"logprobs\":");
    } else {
        PUT_RAW(out, ",\"text\":");
        api_put_str(out, text, n);
        PUT_RAW(out, ",\"logprobs\":");
    }
    put_logprobs(lp, out);
    PUT_RAW(out, ",\"finish_reason\":null");
    close_chunk(s, out);
}

void api_stream_finish(const struct api_stream *s, int index, const char *finish_reason,
                       struct buf *out)
{
    open_chunk(s, index, out);
    if (s->kind == API_CHAT)
        PUT_RAW(out, ",\"delta\":{},\"logprobs\":null,\"finish_reason\":");
    else
        PUT_RAW(out, ",\"text\":\"\",\"logprobs\":null,\"finish_reason\":");
    api_put_cstr(out, finish_reason);
    close_chunk(s, out);
}

void api_stream_usage(const struct api_stream *s, const struct api_head *h,
                      const struct api_usage *u, struct buf *out)
{
    if (!s->include_usage)
        return;
    PUT_RAW(out, "data: {");
    put_head(h, true, out);
    PUT_RAW(out, ",\"choices\":[],\"usage\":");
    put_usage(u, out);
    PUT_RAW(out, "}\n\n");
}

void api_stream_detail(const struct api_stream *s, const struct api_head *h,
                       const struct api_detail *d, struct buf *out)
{
    PUT_RAW(out, "data: {");
    put_head(h, true, out);
    PUT_RAW(out, ",\"choices\":[],\"compression\":{\"kv\":{\"detail\":");
    api_detail_write(d, out);
    PUT_RAW(out, "}}");
    if (s->include_usage)
        PUT_RAW(out, ",\"usage\":null");
    PUT_RAW(out, "}\n\n");
}

void api_stream_done(struct buf *out)
{
    PUT_RAW(out, "data: [DONE]\n\n");
}

void api_stream_error(const struct api_error *e, struct buf *out)
{
    PUT_RAW(out, "data: ");
    api_error_write(e, out);
    PUT_RAW(out, "\n\n");
}

void api_stream_ping(struct buf *out)
{
    PUT_RAW(out, ": ping\n\n");
}
