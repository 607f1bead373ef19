/* Request bodies. See request.h. */
#include <stdio.h>
#include <string.h>

#include "api/compression.h"
#include "api/field.h"
#include "api/message.h"
#include "api/request.h"
#include "api/sampling.h"

enum { ARENA_MAX = 256 << 20 };

static int no_memory(struct api_error *e)
{
    return api_error_internal(e, "The server ran out of memory.");
}

static int unsupported(struct api_error *e, const char *param, const char *why)
{
    return api_error_code(e, "unsupported_value", param, "Unsupported value: '%s' %s", param, why);
}

static int parse_format(const struct field_at *at)
{
    json_t *format = NULL;
    struct api_str type = { 0 };

    TRY(field_object(at, "response_format", &format));
    if (!format)
        return 0;
    struct field_at in = { format, "response_format", at->err };
    TRY(field_str(&in, "type", &type));
    if (!type.p)
        return field_bad(&in, "type", "a string is required.");
    if (strcmp(type.p, "text") == 0)
        return 0;
    if (strcmp(type.p, "json_object") == 0 || strcmp(type.p, "json_schema") == 0)
        return unsupported(at->err, "response_format.type",
                           "must be 'text'; this server does not constrain output to JSON.");
    return field_bad(&in, "type", "'%.40s' is not one of 'text', 'json_object', and 'json_schema'.",
                     type.p);
}

/* nothing: NULL, "false" or "0". */
static bool asks(const json_t *v, const char *nothing)
{
    if (v == NULL || nothing == NULL)
        return v != NULL;
    return nothing[0] == '0' ? !json_is_integer(v) || json_integer_value(v) != 0
                             : !json_is_false(v);
}

/* Fields by which other servers shape prompt or answer, and those that tools had before: without what they ask for, the answer
 * would look like one that has it. null asks for nothing, and the value that says so. */
static int refuse_foreign(const struct field_at *at)
{
    static const char no_constraint[] = "is not supported; this server does not constrain output.";
    static const struct {
        const char *key, *why, *nothing;
    } f[] = {
        { "guided_json", no_constraint, NULL },
        { "guided_regex", no_constraint, NULL },
        { "guided_choice", no_constraint, NULL },
        { "guided_grammar", no_constraint, NULL },
        { "structured_outputs", no_constraint, NULL },
        { "grammar", no_constraint, NULL },
        { "json_schema", no_constraint, NULL },
        { "continue_final_message", "is not supported; /v1/completions continues a text.",
          "false" },
        { "chat_template", "is not supported; the model's own is used.", NULL },
        { "min_tokens", "is not supported; 'ignore_eos' keeps an answer going to 'max_tokens'.",
          "0" },
        { "include_stop_str_in_output", "is not supported.", "false" },
        { "prompt_logprobs", "is not supported; use 'echo' and 'logprobs' of /v1/completions.",
          NULL },
        { "functions", "is not supported; use 'tools'.", NULL },
        { "function_call", "is not supported; use 'tools' and 'tool_choice'.", NULL },
    };
    for (size_t i = 0; i < sizeof(f) / sizeof(f[0]); i++)
        if (asks(field_get(at, f[i].key), f[i].nothing))
            return unsupported(at->err, f[i].key, f[i].why);
    return 0;
}

static int parse_stream(const struct field_at *at, struct api_request *r)
{
    json_t *opts = NULL;

    TRY(field_bool(at, "stream", &r->stream));
    TRY(field_object(at, "stream_options", &opts));
    if (!opts)
        return 0;
    if (!r->stream)
        return field_bad(at, "stream_options", "it is only allowed when 'stream' is true.");
    struct field_at in = { opts, "stream_options", at->err };
    return field_bool(&in, "include_usage", &r->include_usage);
}

static int parse_chat(const struct field_at *at, struct api_request *r)
{
    TRY(message_parse_all(at, &r->messages));
    TRY(message_parse_tools(at, &r->tools));
    TRY(field_object(at, "chat_template_kwargs", &r->template_kwargs));
    TRY(field_bool(at, "add_generation_prompt", &r->add_generation_prompt));
    r->n_prompts = 1;
    return 0;
}

/* One prompt: a string, or an array of token ids. */
static int parse_prompt(const json_t *v, const char *path, const struct api_limits *lim,
                        struct api_request *r, struct api_prompt *out, struct api_error *e)
{
    if (json_is_string(v)) {
        out->text = (struct api_str){ json_string_value(v), json_string_length(v) };
        return 0;
    }
    if (!json_is_array(v))
        return api_error_bad(
            e, path, "Invalid '%s': expected a string or an array of token ids, but got %s.", path,
            field_type(v));
    if (json_array_size(v) == 0)
        return api_error_bad(e, path, "Invalid '%s': a prompt of no tokens.", path);
    return field_ids(v, path, INT32_MAX / 8, lim->n_vocab, &r->arena, &out->ids, &out->n_ids, e);
}

/* "prompt": a string, an array of strings, an array of ids, or an array of arrays of ids. */
static int parse_prompts(const struct field_at *at, const struct api_limits *lim,
                         struct api_request *r)
{
    json_t *v = field_get(at, "prompt");
    bool many = json_is_array(v) && !json_is_number(json_array_get(v, 0));
    size_t n = many ? json_array_size(v) : 1;

    if (!v)
        return field_bad(at, "prompt", "a string, an array of strings, or token ids are required.");
    if (json_is_array(v) && json_array_size(v) == 0)
        return field_bad(at, "prompt", "array too short. Expected at least 1 item.");
    if (n > API_MAX_CHOICES)
        return field_bad(at, "prompt", "at most %d prompts are allowed in one request.",
                         API_MAX_CHOICES);
    struct api_prompt *p = arena_alloc(&r->arena, n * sizeof(*p));
    if (!p)
        return no_memory(at->err);
    for (size_t i = 0; i < n; i++) {
        char path[32] = "prompt";
        if (many)
            snprintf(path, sizeof(path), "prompt[%zu]", i);
        TRY(parse_prompt(many ? json_array_get(v, i) : v, path, lim, r, &p[i], at->err));
    }
    r->prompts = p;
    r->n_prompts = (int)n;
    return 0;
}

static int parse_completion(const struct field_at *at, const struct api_limits *lim,
                            struct api_request *r)
{
    struct api_str suffix = { 0 };
    int64_t best_of = r->n;

    TRY(parse_prompts(at, lim, r));
    TRY(field_bool(at, "echo", &r->echo));
    TRY(field_str(at, "suffix", &suffix));
    if (suffix.n > 0)
        return unsupported(at->err, "suffix", "is not supported by this model.");
    TRY(field_int(at, "best_of", 1, API_MAX_CHOICES, &best_of));
    if (best_of != r->n)
        return unsupported(at->err, "best_of", "must equal 'n' on this server.");
    if (r->n_prompts * r->n > API_MAX_CHOICES)
        return field_bad(at, "n", "at most %d choices (prompts times n) are allowed.",
                         API_MAX_CHOICES);
    return 0;
}

static int parse_fields(struct api_request *r, const struct api_limits *lim, struct api_error *e)
{
    struct field_at at = { r->root, "", e };
    struct api_str s = { 0 };
    int64_t n = 1;

    TRY(field_str(&at, "model", &s));
    r->model = s.p;
    TRY(field_int(&at, "n", 1, API_MAX_CHOICES, &n));
    r->n = (int)n;
    TRY(r->kind == API_CHAT ? parse_chat(&at, r) : parse_completion(&at, lim, r));
    TRY(sampling_parse(&at, r->kind, lim, &r->arena, &r->sampling));
    TRY(parse_stream(&at, r));
    TRY(parse_format(&at));
    TRY(refuse_foreign(&at));
    return compression_parse(&at, &r->compression);
}

static int open_body(struct api_request *r, enum api_kind kind, const char *body, size_t n,
                     struct api_error *e)
{
    *r = (struct api_request){ .kind = kind, .n = 1, .add_generation_prompt = true };
    TRY(field_root(&r->root, body, n, e));
    arena_init(&r->arena, ARENA_MAX);
    return 0;
}

int api_request_parse(struct api_request *out, enum api_kind kind, const char *body, size_t n,
                      const struct api_limits *lim, struct api_error *e)
{
    struct api_request r;

    TRY(open_body(&r, kind, body, n, e));
    int rc = parse_fields(&r, lim, e);
    if (rc < 0) {
        api_request_free(&r);
        return rc;
    }
    *out = r;
    return 0;
}

void api_request_free(struct api_request *r)
{
    if (!r)
        return;
    json_decref(r->root);
    arena_clear(&r->arena);
    r->root = NULL;
}

/* Which of the three is there. */
static int find_text(const struct field_at *at, const char **key)
{
    static const char *const name[] = { "content", "prompt", "messages" };

    *key = NULL;
    for (size_t i = 0; i < sizeof(name) / sizeof(name[0]); i++) {
        if (!field_get(at, name[i]))
            continue;
        if (*key)
            return field_bad(at, name[i], "it was given beside '%s'; only one of them is allowed.",
                             *key);
        *key = name[i];
    }
    return *key ? 0 : field_bad(at, name[0], "a string is required.");
}

static int tokenize_fields(struct api_tokenize *t, struct api_error *e)
{
    struct field_at at = { t->chat.root, "", e };

    TRY(find_text(&at, &t->param));
    t->is_chat = strcmp(t->param, "messages") == 0;
    if (t->is_chat) {
        TRY(parse_chat(&at, &t->chat));
    } else {
        t->add_special = strcmp(t->param, "prompt") == 0;
        TRY(field_str(&at, t->param, &t->text));
        TRY(field_bool(&at, t->add_special ? "add_special_tokens" : "add_special",
                       &t->add_special));
    }
    TRY(field_bool(&at, "parse_special", &t->parse_special));
    return field_bool(&at, "with_pieces", &t->with_pieces);
}

int api_tokenize_parse(struct api_tokenize *out, const char *body, size_t n, struct api_error *e)
{
    struct api_tokenize t = { .parse_special = true };

    TRY(open_body(&t.chat, API_CHAT, body, n, e));
    int rc = tokenize_fields(&t, e);
    if (rc < 0) {
        api_request_free(&t.chat);
        return rc;
    }
    *out = t;
    return 0;
}

void api_tokenize_free(struct api_tokenize *r)
{
    if (r)
        api_request_free(&r->chat);
}

int api_detokenize_parse(struct api_detokenize *out, const char *body, size_t n,
                         const struct api_limits *lim, struct api_error *e)
{
    struct api_detokenize d = { .n_ids = 0 };
    json_t *ids = NULL;

    TRY(open_body(&d.own, API_COMPLETION, body, n, e));
    struct field_at at = { d.own.root, "", e };
    int rc = field_array(&at, "tokens", INT32_MAX / 8, &ids);
    if (rc == 0 && !ids)
        rc = field_bad(&at, "tokens", "an array of token ids is required.");
    if (rc == 0)
        rc = field_ids(ids, "tokens", INT32_MAX / 8, lim->n_vocab, &d.own.arena, &d.ids, &d.n_ids,
                       e);
    if (rc < 0) {
        api_request_free(&d.own);
        return rc;
    }
    *out = d;
    return 0;
}

void api_detokenize_free(struct api_detokenize *r)
{
    if (r)
        api_request_free(&r->own);
}
