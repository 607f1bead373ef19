/* Log-probabilities in OpenAI's two shapes. See reply.h. */
#include "api/put.h"
#include "api/reply.h"

void api_logprobs_init(struct api_logprobs *lp, enum api_kind kind, size_t max_bytes)
{
    *lp = (struct api_logprobs){ .kind = kind };
    buf_init(&lp->a, max_bytes);
    buf_init(&lp->b, max_bytes);
    buf_init(&lp->c, max_bytes);
    buf_init(&lp->offsets, max_bytes);
}

void api_logprobs_free(struct api_logprobs *lp)
{
    buf_free(&lp->a);
    buf_free(&lp->b);
    buf_free(&lp->c);
    buf_free(&lp->offsets);
}

void api_logprobs_clear(struct api_logprobs *lp)
{
    buf_clear(&lp->a);
    buf_clear(&lp->b);
    buf_clear(&lp->c);
    buf_clear(&lp->offsets);
    lp->n = 0;
}

/* "token": ..., "logprob": ..., "bytes": [...] */
static void put_entry(struct buf *b, const struct api_token *t)
{
    PUT_RAW(b, "\"token\":");
    api_put_token(b, t->text.p, t->text.n);
    PUT_RAW(b, ",\"logprob\":");
    api_put_num(b, (double)t->logprob);
    PUT_RAW(b, ",\"bytes\":[");
    for (size_t i = 0; i < t->text.n; i++) {
        if (i > 0)
            (void)buf_addc(b, ',');
        api_put_int(b, (unsigned char)t->text.p[i]);
    }
    (void)buf_addc(b, ']');
}

static void add_chat(struct api_logprobs *lp, const struct api_token *t,
                     const struct api_token *top, int n_top)
{
    struct buf *b = &lp->a;
    if (lp->n > 0)
        (void)buf_addc(b, ',');
    (void)buf_addc(b, '{');
    put_entry(b, t);
    PUT_RAW(b, ",\"top_logprobs\":[");
    for (int i = 0; i < n_top; i++) {
        if (i > 0)
            (void)buf_addc(b, ',');
        (void)buf_addc(b, '{');
        put_entry(b, &top[i]);
        (void)buf_addc(b, '}');
    }
    PUT_RAW(b, "]}");
}

static bool same_text(const struct api_str *a, const struct api_str *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (a->p[i] != b->p[i])
            return false;
    return true;
}

/* {token: logprob}: two tokens with the same text are one key, and the likelier one comes first. */
static void put_top(struct buf *b, const struct api_token *top, int n_top)
{
    int n = 0;
    (void)buf_addc(b, '{');
    for (int i = 0; i < n_top; i++) {
        bool seen = false;
        for (int j = 0; j < i && !seen; j++)
            seen = same_text(&top[i].text, &top[j].text);
        if (seen)
            continue;
        if (n++ > 0)
            (void)buf_addc(b, ',');
        api_put_token(b, top[i].text.p, top[i].text.n);
        (void)buf_addc(b, ':');
        api_put_num(b, (double)top[i].logprob);
    }
    (void)buf_addc(b, '}');
}

static void add_completion(struct api_logprobs *lp, const struct api_token *t,
                           const struct api_token *top, int n_top)
{
    if (lp->n > 0) {
        (void)buf_addc(&lp->a, ',');
        (void)buf_addc(&lp->b, ',');
        (void)buf_addc(&lp->c, ',');
        (void)buf_addc(&lp->offsets, ',');
    }
    api_put_token(&lp->a, t->text.p, t->text.n);
    if (t->no_logprob) {
        PUT_RAW(&lp->b, "null");
        PUT_RAW(&lp->c, "null");
    } else {
        api_put_num(&lp->b, (double)t->logprob);
        put_top(&lp->c, top, n_top);
    }
    api_put_int(&lp->offsets, lp->offset);
}

void api_logprobs_add(struct api_logprobs *lp, const struct api_token *t,
                      const struct api_token *top, int n_top)
{
    if (lp->kind == API_CHAT)
        add_chat(lp, t, top, n_top);
    else
        add_completion(lp, t, top, n_top);
    lp->offset += (int64_t)api_utf8_count(t->text.p, t->text.n);
    lp->n++;
}

static void append(struct buf *out, const struct buf *b)
{
    (void)buf_add(out, buf_str(b), b->len);
}

void api_logprobs_write(const struct api_logprobs *lp, struct buf *out)
{
    if (lp->n == 0) {
        PUT_RAW(out, "null");
        return;
    }
    if (lp->kind == API_CHAT) {
        PUT_RAW(out, "{\"content\":[");
        append(out, &lp->a);
        PUT_RAW(out, "],\"refusal\":null}");
    } else {
        PUT_RAW(out, "{\"tokens\":[");
        append(out, &lp->a);
        PUT_RAW(out, "],\"token_logprobs\":[");
        append(out, &lp->b);
        PUT_RAW(out, "],\"top_logprobs\":[");
        append(out, &lp->c);
        PUT_RAW(out, "],\"text_offset\":[");
        append(out, &lp->offsets);
        PUT_RAW(out, "]}");
    }
    /* A token list cut at its ceiling would be broken JSON. */
    int bad = lp->a.bad   ? lp->a.bad
              : lp->b.bad ? lp->b.bad
              : lp->c.bad ? lp->c.bad
                          : lp->offsets.bad;
    if (bad && !out->bad)
        out->bad = bad;
}
