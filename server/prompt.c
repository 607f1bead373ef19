/* Text to token ids: the model's template, then its tokenizer. See http_internal.h.
 *
 * Runs on an I/O thread. Special tokens are recognised in what the template wrote and in raw prompts of /v1/completions
 * (whose author writes the whole prompt), never in the messages of a chat.
 */
#include <string.h>

#include "server/base/clock.h"
#include "server/base/mem.h"
#include "server/http_internal.h"

static int no_memory(struct api_error *e)
{
    return api_error_internal(e, "The server ran out of memory.");
}

/* Gives the ids away, or reports the failure. */
static int take_ids(struct tok_ids *t, int rc, const char *param, int32_t **ids, int *n_ids,
                    struct api_error *e)
{
    if (rc == 0 && t->n > 0) {
        *ids = t->id;
        *n_ids = t->n;
        return 0;
    }
    tok_ids_free(t);
    if (rc < 0)
        return rc == ERR_LIMIT ? api_error_bad(e, param, "The text is too long.") : no_memory(e);
    return api_error_bad(e, param, "Invalid '%s': a prompt of no tokens.", param);
}

struct api_str http_piece(const struct http *h, int32_t id)
{
    int n = 0;
    const char *p = tok_piece(h->model->tok, id, &n);
    return (struct api_str){ p ? p : "", p ? (size_t)n : 0 };
}

static const char *token_text(const struct tokenizer *t, int32_t id)
{
    return id >= 0 ? tok_text(t, id) : NULL;
}

static int chat_tokens(const struct http *h, const struct api_request *req, int32_t **ids,
                       int *n_ids, struct api_error *e)
{
    const struct tokenizer *tok = h->model->tok;
    struct tmpl_output out = { 0 };
    struct tok_ids t = { 0 };
    struct err why = { 0 };

    if (!h->model->tmpl)
        return api_error_code(e, "unsupported_value", "messages",
                              "This model has no chat template; use /v1/completions.");
    const struct tmpl_input in = { .messages = req->messages,
                                   .tools = req->tools,
                                   .kwargs = req->template_kwargs,
                                   .add_generation_prompt = req->add_generation_prompt,
                                   .bos_token = token_text(tok, tok_bos(tok)),
                                   .eos_token = token_text(tok, tok_eos(tok)),
                                   .now_unix = clock_wall_s() };
    int rc = tmpl_render(h->model->tmpl, &in, NULL, &out, &why);
    if (rc == ERR_NOMEM)
        return no_memory(e);
    if (rc < 0)
        return api_error_bad(e, "messages", "The model's chat template refused the messages: %s",
                             why.text);
    rc = tok_encode_segments(tok, buf_str(&out.text), out.seg, out.n_seg, &t);
    tmpl_output_free(&out);
    return take_ids(&t, rc, "messages", ids, n_ids, e);
}

static int text_tokens(const struct http *h, const struct api_str *s, unsigned flags,
                       const char *param, int32_t **ids, int *n_ids, struct api_error *e)
{
    struct tok_ids t = { 0 };
    int rc = tok_encode(h->model->tok, s->p, s->n, flags, &t);
    return take_ids(&t, rc, param, ids, n_ids, e);
}

int prompt_tokens(const struct http *h, const struct api_request *req, int i, int32_t **ids,
                  int *n_ids, struct api_error *e)
{
    if (req->kind == API_CHAT)
        return chat_tokens(h, req, ids, n_ids, e);
    const struct api_prompt *p = &req->prompts[i];
    if (!p->ids)
        return text_tokens(h, &p->text, TOK_ADD_BOS | TOK_PARSE_SPECIAL, "prompt", ids, n_ids, e);
    *ids = mem_alloc((size_t)p->n_ids * sizeof(**ids));
    if (!*ids)
        return no_memory(e);
    memcpy(*ids, p->ids, (size_t)p->n_ids * sizeof(**ids));
    *n_ids = p->n_ids;
    return 0;
}

int prompt_tokenize(const struct http *h, const struct api_tokenize *t, int32_t **ids, int *n_ids,
                    struct api_error *e)
{
    if (t->is_chat)
        return chat_tokens(h, &t->chat, ids, n_ids, e);
    unsigned flags =
        (t->add_special ? TOK_ADD_BOS : 0u) | (t->parse_special ? TOK_PARSE_SPECIAL : 0u);
    if (t->text.n == 0 && !t->add_special) {
        *ids = NULL;
        *n_ids = 0;
        return 0;
    }
    return text_tokens(h, &t->text, flags, "content", ids, n_ids, e);
}
