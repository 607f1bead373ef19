/* Any bytes as a request body: the first byte picks the route, the rest is the body. What parses is written back, and
 * what is written must parse as JSON. */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api/reply.h"
#include "api/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must_be_json(struct buf *b)
{
    json_t *v = json_loadb(buf_str(b), b->len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    if (b->bad || !v)
        err_bug(__FILE__, __LINE__, "what was written is JSON");
    json_decref(v);
    buf_clear(b);
}

static void write_reply(enum api_kind kind, const char *text, size_t n, struct buf *out)
{
    struct api_head h = { .kind = kind, .id = "id", .model = "m", .fingerprint = "f" };
    struct api_str half = { text, strnlen(text, n / 2) }; /* the checker takes no NUL in keys */
    struct api_token t = { .text = { text, n }, .logprob = -1 };
    struct api_token top[2] = { { .text = half, .logprob = -1 }, { .text = half, .logprob = -2 } };
    struct api_logprobs lp;
    const int32_t slots[] = { (int32_t)n };
    const float survival[] = { n > 0 ? (float)(signed char)text[0] / 100 : 0 };
    struct api_detail d = {
        .n_layers = 1, .n_heads = 1, .n_prompt = 1, .slots = slots, .survival = survival
    };
    struct api_usage u = { .n_prompt = 1, .kv = { .policy = "p", .budget = 1, .n_pressed = 1 } };

    api_logprobs_init(&lp, kind, (size_t)1 << 24);
    api_logprobs_add(&lp, &t, top, 2);
    struct api_choice c = { .text = half, .finish_reason = "stop", .logprobs = &lp };
    api_reply_write(&h, &c, 1, &u, out);
    must_be_json(out);
    api_logprobs_free(&lp);
    api_detokenize_write(text, n, out);
    must_be_json(out);
    api_detail_write(&d, out);
    must_be_json(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct api_limits lim = { .n_vocab = 100 };
    struct api_error e = { .status = 0 };
    struct api_request r;
    struct api_tokenize t;
    struct api_detokenize d;
    struct buf out;
    int rc;

    if (size == 0)
        return 0;
    const char *body = (const char *)data + 1;
    size_t n = size - 1;
    switch (data[0] % 4) {
    case 0:
    case 1:
        if ((rc = api_request_parse(&r, data[0] % 4 ? API_COMPLETION : API_CHAT, body, n, &lim,
                                    &e)) == 0)
            api_request_free(&r);
        break;
    case 2:
        if ((rc = api_tokenize_parse(&t, body, n, &e)) == 0)
            api_tokenize_free(&t);
        break;
    default:
        if ((rc = api_detokenize_parse(&d, body, n, &lim, &e)) == 0)
            api_detokenize_free(&d);
        break;
    }
    buf_init(&out, (size_t)1 << 26);
    if (rc < 0) {
        api_error_write(&e, &out);
        must_be_json(&out);
    }
    write_reply(data[0] % 2 ? API_COMPLETION : API_CHAT, body, n, &out);
    buf_free(&out);
    return 0;
}
