/* Models, tokens: the small replies. See reply.h. */
#include <string.h>

#include "api/put.h"
#include "api/reply.h"

/* "a, b" as ["a","b"]. */
static void put_names(const char *names, struct buf *out)
{
    (void)buf_addc(out, '[');
    for (const char *p = names; p && *p;) {
        size_t n = strcspn(p, ",");
        api_put_str(out, p, n);
        p += n + strspn(p + n, ", ");
        if (*p)
            (void)buf_addc(out, ',');
    }
    (void)buf_addc(out, ']');
}

void api_model_write(const struct api_model *m, struct buf *out)
{
    PUT_RAW(out, "{\"id\":");
    api_put_cstr(out, m->id);
    PUT_RAW(out, ",\"object\":\"model\",\"created\":");
    api_put_int(out, m->created);
    PUT_RAW(out, ",\"owned_by\":\"wring\",\"max_model_len\":");
    api_put_int(out, m->n_ctx);
    PUT_RAW(out, ",\"meta\":{\"n_ctx_train\":");
    api_put_int(out, m->n_ctx_train);
    PUT_RAW(out, ",\"n_vocab\":");
    api_put_int(out, m->n_vocab);
    PUT_RAW(out, ",\"n_embd\":");
    api_put_int(out, m->n_embd);
    PUT_RAW(out, ",\"n_params\":");
    api_put_int(out, m->n_params);
    PUT_RAW(out, ",\"size\":");
    api_put_int(out, m->bytes);
    PUT_RAW(out, ",\"kv_policies\":");
    put_names(m->kv_policies, out);
    PUT_RAW(out, "}}");
}

void api_models_write(const struct api_model *m, int n, struct buf *out)
{
    PUT_RAW(out, "{\"object\":\"list\",\"data\":[");
    for (int i = 0; i < n; i++) {
        if (i > 0)
            (void)buf_addc(out, ',');
        api_model_write(&m[i], out);
    }
    PUT_RAW(out, "]}");
}

/* llama-server sends {"tokens"}, pieces inside when asked; vLLM adds count and max_model_len. */
void api_tokenize_write(const int32_t *ids, int n, const struct api_str *piece, int n_ctx,
                        struct buf *out)
{
    PUT_RAW(out, "{\"tokens\":[");
    for (int i = 0; i < n; i++) {
        if (i > 0)
            (void)buf_addc(out, ',');
        if (!piece) {
            api_put_int(out, ids[i]);
            continue;
        }
        PUT_RAW(out, "{\"id\":");
        api_put_int(out, ids[i]);
        PUT_RAW(out, ",\"piece\":");
        api_put_token(out, piece[i].p, piece[i].n);
        (void)buf_addc(out, '}');
    }
    PUT_RAW(out, "],\"count\":");
    api_put_int(out, n);
    PUT_RAW(out, ",\"max_model_len\":");
    api_put_int(out, n_ctx);
    (void)buf_addc(out, '}');
}

void api_detokenize_write(const char *text, size_t n, struct buf *out)
{
    PUT_RAW(out, "{\"content\":");
    api_put_str(out, text, n);
    PUT_RAW(out, ",\"prompt\":");
    api_put_str(out, text, n);
    (void)buf_addc(out, '}');
}
