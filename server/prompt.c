/* Text to token ids: the model's template, then its tokenizer. See http_internal.h.
 *
 * Runs on an I/O thread. Special tokens are recognised in what the template wrote and in raw prompts of /v1/completions
 * (whose author writes the whole prompt), never in the messages of a chat.
 */
#include <limits.h>
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
    if (rc == 0) {
        *ids = t->id;
        *n_ids = t->n;
        return 0;
    }
    tok_ids_free(t);
    return rc == ERR_LIMIT ? api_error_bad(e, param, "The text is too long.") : no_memory(e);
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

/* ---- marks ------------------------------------------------------------------------------------------------------- */

/* The message's text where it stands in the rendered prompt, at or after *from and in what users wrote; most templates trim
 * it, so it is looked for without the blanks around it. *from moves behind it. */
static bool find_content(const struct tmpl_output *out, const json_t *message, size_t *from,
                         size_t *start)
{
    static const char blank[] = " \t\r\n";
    const char *text = json_string_value(json_object_get(message, "content"));
    size_t n = text ? strlen(text) : 0;

    for (; n > 0 && strchr(blank, text[n - 1]); n--) {
    }
    for (; n > 0 && strchr(blank, text[0]); n--)
        text++;
    for (int i = 0; n > 0 && i < out->n_seg; i++) {
        const struct text_segment *s = &out->seg[i];
        size_t at = s->start > *from ? s->start : *from, end = s->start + s->len;
        const char *p =
            !s->user || at >= end ? NULL : memmem(out->text.data + at, end - at, text, n);
        if (!p)
            continue;
        *start = (size_t)(p - out->text.data);
        *from = *start + n;
        return true;
    }
    return false;
}

/* Tokens of the first n bytes. A token across that border counts as one of them, which may be one too many. */
static int count_tokens(const struct tokenizer *tok, struct tmpl_output *out, size_t n, int *count)
{
    struct tok_ids t = { 0 };
    int k = 0;

    while (k < out->n_seg - 1 && out->seg[k].start + out->seg[k].len < n)
        k++;
    struct text_segment *last = &out->seg[k];
    size_t whole = last->len;
    last->len = n - last->start;
    int rc = tok_encode_segments(tok, buf_str(&out->text), out->seg, k + 1, &t);
    last->len = whole;
    *count = t.n;
    tok_ids_free(&t);
    return rc;
}

/* In a template that rewrites texts, looking for thousands of them is not worth it. */
enum { MISSES_MOST = 64 };

/* Messages come in order, so each is looked for behind the one before. */
static int find_marks(const struct tokenizer *tok, const json_t *messages, struct tmpl_output *out,
                      struct prompt_marks *m)
{
    size_t n = json_array_size(messages), from = 0, start = 0;
    size_t system = 0, question0 = 0, question1 = 0;
    int missed = 0;

    for (size_t i = 0; i < n && missed < MISSES_MOST; i++) {
        const json_t *message = json_array_get(messages, i);
        const char *role = json_string_value(json_object_get(message, "role"));
        bool found = find_content(out, message, &from, &start);
        missed += !found;
        if (found && i == 0 && (strcmp(role, "system") == 0 || strcmp(role, "developer") == 0))
            system = from;
        if (strcmp(role, "user") == 0) {
            question0 = found ? start : 0;
            question1 = found ? from : 0;
        }
    }
    if (system > 0)
        TRY(count_tokens(tok, out, system, &m->system));
    if (question1 == 0 || missed == MISSES_MOST)
        return 0;
    TRY(count_tokens(tok, out, question0, &m->question0));
    TRY(count_tokens(tok, out, question1, &m->question1));
    if (m->question0 < m->question1 - KV_WINDOW_QUERIES)
        m->question0 = m->question1 - KV_WINDOW_QUERIES;
    return 0;
}

/* ---- prompts ----------------------------------------------------------------------------------------------------- */

enum { ANY_ROOM = INT_MAX }; /* somebody only wants the tokens */
/* Bytes of a request that are encoded whatever they come to: 1 to 3 s of a core. */
enum { TEXT_FREE = 2 << 20 };

/* More text than that is encoded where it may be of use: while it is, the thread's other connections wait. n: bytes of all that
 * is to be encoded for a request, which come to `least` tokens at least. */
static int check_text(const struct http *h, size_t n, int64_t least, const char *param,
                      struct api_error *e)
{
    if (n <= TEXT_FREE || least <= engine_ctx(h->en))
        return 0;
    return api_error_bad(e, param,
                         "Invalid '%s': %zu bytes of text, at least %lld tokens. More than %d "
                         "bytes in one request must be such as may fit the context of %d tokens.",
                         param, n, (long long)least, TEXT_FREE, engine_ctx(h->en));
}

static int check_room(const struct http *h, const char *s, size_t n, int room, const char *param,
                      struct api_error *e)
{
    int64_t least = tok_at_least(h->model->tok, s, n);
    if (room == ANY_ROOM)
        return check_text(h, n, least, param, e);
    if (least <= room)
        return 0;
    return api_error_context_least(e, param, least, (struct api_room){ room, engine_ctx(h->en) });
}

static int chat_tokens(const struct http *h, const struct api_request *req, int room, int32_t **ids,
                       int *n_ids, struct prompt_marks *marks, struct api_error *e)
{
    const struct tokenizer *tok = h->model->tok;
    struct tmpl_output out = { 0 };
    struct tok_ids t = { 0 };
    struct err why = { 0 };

    if (!h->model->tmpl)
        return api_error_code(
            e, "unsupported_value", "messages",
            "This model has no chat template that can be read; use /v1/completions.");
    const struct tmpl_input in = { .messages = req->messages,
                                   .tools = req->tools,
                                   .kwargs = req->template_kwargs,
                                   .add_generation_prompt = req->add_generation_prompt,
                                   .bos_token = token_text(tok, tok_bos(tok)),
                                   .eos_token = token_text(tok, tok_eos(tok)),
                                   .now_unix = clock_wall_s() };
    const struct tmpl *tools = req->tools != NULL ? h->model->tool_tmpl : NULL;
    int rc = tmpl_render(tools != NULL ? tools : h->model->tmpl, &in, NULL, &out, &why);
    if (rc == ERR_NOMEM)
        return no_memory(e);
    if (rc < 0)
        return api_error_bad(e, "messages", "The model's chat template refused the messages: %s",
                             why.text);
    if (check_room(h, buf_str(&out.text), out.text.len, room, "messages", e) < 0) {
        tmpl_output_free(&out);
        return ERR_INVALID;
    }
    rc = tok_encode_segments(tok, buf_str(&out.text), out.seg, out.n_seg, &t);
    if (rc == 0 && marks)
        rc = find_marks(tok, req->messages, &out, marks);
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

static int any_tokens(const struct http *h, const struct api_request *req, int i, int room,
                      int32_t **ids, int *n_ids, struct prompt_marks *marks, struct api_error *e)
{
    if (req->kind == API_CHAT)
        return chat_tokens(h, req, room, ids, n_ids, marks, e);
    const struct api_prompt *p = &req->prompts[i];
    if (!p->ids) {
        TRY(check_room(h, p->text.p, p->text.n, room, "prompt", e));
        return text_tokens(h, &p->text, TOK_ADD_BOS | TOK_PARSE_SPECIAL, "prompt", ids, n_ids, e);
    }
    *ids = mem_alloc((size_t)p->n_ids * sizeof(**ids));
    if (!*ids)
        return no_memory(e);
    memcpy(*ids, p->ids, (size_t)p->n_ids * sizeof(**ids));
    *n_ids = p->n_ids;
    return 0;
}

int prompt_check(const struct http *h, const struct api_request *req, struct api_error *e)
{
    size_t n = 0;
    int64_t least = 0;

    if (req->n_prompts == 1) /* has to fit alone */
        return 0;
    for (int i = 0; i < req->n_prompts; i++) {
        const struct api_str *text = &req->prompts[i].text;
        n += text->n;
        least += text->n > 0 ? tok_at_least(h->model->tok, text->p, text->n) : 0;
    }
    return check_text(h, n, least, "prompt", e);
}

int prompt_tokens(const struct http *h, const struct api_request *req, int i, int room,
                  int32_t **ids, int *n_ids, struct prompt_marks *marks, struct api_error *e)
{
    const char *param = req->kind == API_CHAT ? "messages" : "prompt";
    TRY(any_tokens(h, req, i, room, ids, n_ids, marks, e));
    if (*n_ids > 0)
        return 0;
    mem_free(*ids);
    *ids = NULL;
    return api_error_bad(e, param, "Invalid '%s': a prompt of no tokens.", param);
}

int prompt_tokenize(const struct http *h, const struct api_tokenize *t, int32_t **ids, int *n_ids,
                    struct api_error *e)
{
    if (t->is_chat)
        return chat_tokens(h, &t->chat, ANY_ROOM, ids, n_ids, NULL, e);
    TRY(check_room(h, t->text.p, t->text.n, ANY_ROOM, t->param, e));
    unsigned flags =
        (t->add_special ? TOK_ADD_BOS : 0u) | (t->parse_special ? TOK_PARSE_SPECIAL : 0u);
    return text_tokens(h, &t->text, flags, t->param, ids, n_ids, e);
}
