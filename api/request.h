/* One request body, understood: JSON text in, a checked struct out.
 *
 * The rules: a field that is absent or null has its default; a field this server does not know is ignored, but handed to
 * the model's template where it stands in a message or a tool, and refused in "compression"; a field it knows must have the
 * right type and range or the request fails with 400 and the field's path in api_error.param; a field it knows but cannot
 * honour yet (response_format json_* and what other servers call it, suffix, functions, tool_choice required) fails in the
 * same way rather than being dropped in silence. The first bad field wins.
 * The text must be UTF-8 without NUL, lone surrogates, duplicate keys or numbers beyond a double, nested at most
 * API_MAX_DEPTH deep.
 *
 * Ownership: a request owns everything it points to (`root` holds the strings, `arena` the arrays) until its _free.
 * Thread: no shared state; one owner at a time.
 */
#ifndef WRING_API_REQUEST_H
#define WRING_API_REQUEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/error.h"
#include "server/base/mem.h"

enum {
    API_MAX_DEPTH = 64,    /* nesting of the body */
    API_MAX_CHOICES = 128, /* prompts times n */
    API_MAX_STOP = 16,
    API_MAX_BIAS = 1024,
    API_MAX_LOGPROBS = 20,
    API_MAX_MESSAGES = 8192,
    API_MAX_TOOLS = 128,
    API_MIN_BUDGET = 16, /* tokens a KV head */
    API_MAX_BUDGET = 1 << 30,
};

enum api_kind { API_CHAT, API_COMPLETION };

struct api_str {
    const char *p; /* NUL-terminated too */
    size_t n;
};

/* One prompt: text, or token ids when ids is not NULL. */
struct api_prompt {
    struct api_str text;
    const int32_t *ids; /* [n_ids] */
    int n_ids;
};

struct api_bias {
    int32_t id;
    float bias; /* added to the logit, -100..100 */
};

struct api_sampling {
    double temperature;        /* 0..2; default 1 */
    double top_p;              /* (0, 1], given as 0: so small that one token is left; default 1 */
    double min_p;              /* 0..1; default 0 */
    int top_k;                 /* 0 and -1: all; default 0 */
    double repetition_penalty; /* (0, 10]; default 1 */
    double presence_penalty;   /* -2..2; default 0 */
    double frequency_penalty;  /* -2..2; default 0 */
    bool has_seed;
    int64_t seed;
    const struct api_bias *bias; /* [n_bias] */
    int n_bias;
    const struct api_str *stop; /* [n_stop], none empty */
    int n_stop;
    const int32_t *stop_ids; /* [n_stop_ids] */
    int n_stop_ids;
    int max_tokens;      /* -1: as many as fit; 0 only for completions */
    bool has_max_tokens; /* given, not the default */
    bool ignore_eos;
    int logprobs; /* -1: none wanted; else how many alternatives a token (may be 0) */
};

/* How much of a KV cache is to stay; one of the three, all 0: not given. */
struct api_budget {
    int tokens;      /* a KV head, at least API_MIN_BUDGET */
    double fraction; /* of the prompt, in (0, 1) */
    int64_t bytes;   /* of the cache of one choice */
};
/* "256", "0.25" or "4MiB" (K, M, G; in powers of 1024). false: none of these. */
bool api_budget_parse(struct api_budget *out, const char *text);
bool api_budget_given(const struct api_budget *b);

/* "compression": {"kv": {...}}. Strings are names that the server knows or not; NULL and -1: not given. */
struct api_compression {
    const char *preset; /* a policy with its budget; fields beside it go before it */
    const char *policy, *merge, *split;
    struct api_budget budget, budget_max;
    double mass_floor;  /* 0..1 */
    double local;       /* 0..1 weight of the local score */
    double phi, lambda; /* 0..1; above 0 */
    int sinks, window, tail, pool, queries, stride;
    int64_t seed;        /* default 0 */
    bool protect_system; /* default true: a leading system message stays as it is */
    bool recompute;      /* find nothing in the prefix cache */
    bool detail;         /* say what became of every head and every token */
};
/* The first field given that says how to press, as "budget"; NULL: none is. Preset and policy are none. */
const char *api_pressing_field(const struct api_compression *c);

struct api_request {
    enum api_kind kind;
    json_t *root;
    struct arena arena;

    const char *model; /* NULL: whichever is served */
    int n;             /* choices a prompt, 1..API_MAX_CHOICES */
    bool stream, include_usage;
    struct api_sampling sampling;
    struct api_compression compression;

    /* Chat. The messages are normalised for templates: content is a string (text parts joined by a newline; "" where an
     * assistant has none, which must have called a tool or refused then), role "developer" is "system", tool_calls'
     * arguments are objects where they parse as such. */
    json_t *messages;           /* borrowed from root */
    json_t *tools;              /* borrowed; NULL: none */
    json_t *template_kwargs;    /* borrowed; NULL: none */
    bool add_generation_prompt; /* default true */

    /* Completions. */
    const struct api_prompt *prompts; /* [n_prompts] */
    int n_prompts;                    /* 1 for chat (and prompts is NULL) */
    bool echo;
};

/* What the parser must know of the server. */
struct api_limits {
    int n_vocab; /* token ids are 0..n_vocab-1 */
};

/* 0, or ERR_INVALID / ERR_NOMEM with *e filled; on failure there is nothing to free. */
int api_request_parse(struct api_request *out, enum api_kind kind, const char *body, size_t n,
                      const struct api_limits *lim, struct api_error *e) WARN_UNUSED;
void api_request_free(struct api_request *r); /* NULL is accepted */

/* POST /tokenize, one of three: {"content": s, "add_special": false, "parse_special": true, "with_pieces": false} as
 * llama-server, or vLLM's {"prompt": s, "add_special_tokens": true} or {"messages": [...], "add_generation_prompt": true}, with
 * tools, tool_choice and chat_template_kwargs as in chat. */
struct api_tokenize {
    struct api_request
        chat; /* messages, tools, template_kwargs, add_generation_prompt; owns root */
    bool is_chat;
    struct api_str text; /* when not chat */
    const char *param;   /* the member that it came in: content, prompt as vLLM has it, messages */
    bool add_special, parse_special, with_pieces;
};
int api_tokenize_parse(struct api_tokenize *out, const char *body, size_t n,
                       struct api_error *e) WARN_UNUSED;
void api_tokenize_free(struct api_tokenize *r);

/* POST /detokenize: {"tokens": [ids]}. */
struct api_detokenize {
    struct api_request own; /* root and arena only */
    const int32_t *ids;     /* [n_ids] */
    int n_ids;
};
int api_detokenize_parse(struct api_detokenize *out, const char *body, size_t n,
                         const struct api_limits *lim, struct api_error *e) WARN_UNUSED;
void api_detokenize_free(struct api_detokenize *r);

#endif
