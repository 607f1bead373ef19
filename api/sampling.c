/* The sampling fields of a request. See request.h for ranges and defaults. */
#include "api/sampling.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct num_field {
    const char *key;
    double min, max;
    size_t offset; /* of a double in struct api_sampling */
};

static int parse_numbers(const struct field_at *at, struct api_sampling *s)
{
    const struct num_field f[] = {
        { "temperature", 0, 2, offsetof(struct api_sampling, temperature) },
        { "top_p", 0, 1, offsetof(struct api_sampling, top_p) },
        { "min_p", 0, 1, offsetof(struct api_sampling, min_p) },
        { "repetition_penalty", FIELD_ABOVE_ZERO, 10,
          offsetof(struct api_sampling, repetition_penalty) },
        { "presence_penalty", -2, 2, offsetof(struct api_sampling, presence_penalty) },
        { "frequency_penalty", -2, 2, offsetof(struct api_sampling, frequency_penalty) },
    };
    int64_t v = 0;

    for (size_t i = 0; i < sizeof(f) / sizeof(f[0]); i++) {
        double d;
        memcpy(&d, (char *)s + f[i].offset, sizeof(d));
        TRY(field_num(at, f[i].key, f[i].min, f[i].max, &d));
        memcpy((char *)s + f[i].offset, &d, sizeof(d));
    }
    if (s->top_p < FIELD_ABOVE_ZERO)
        s->top_p = FIELD_ABOVE_ZERO;
    TRY(field_int(at, "top_k", -1, INT32_MAX, &v));
    s->top_k = v < 0 ? 0 : (int)v;
    s->has_seed = field_get(at, "seed") != NULL;
    TRY(field_int(at, "seed", INT64_MIN, INT64_MAX, &s->seed));
    return field_bool(at, "ignore_eos", &s->ignore_eos);
}

/* {"50256": -100}: keys are token ids in text. A bias of 0 changes nothing whatever its key is, so such entries are
 * dropped unread. */
static int parse_bias(const struct field_at *at, const struct api_limits *lim, struct arena *arena,
                      struct api_sampling *s)
{
    json_t *map = NULL, *v;
    const char *key;
    int n = 0;

    TRY(field_object(at, "logit_bias", &map));
    if (!map || json_object_size(map) == 0)
        return 0;
    if (json_object_size(map) > API_MAX_BIAS)
        return field_bad(at, "logit_bias", "at most %d entries are allowed.", API_MAX_BIAS);
    struct api_bias *a = arena_alloc(arena, json_object_size(map) * sizeof(*a));
    if (!a)
        return api_error_internal(at->err, "The server ran out of memory.");
    struct field_at in = { map, "logit_bias", at->err };
    json_object_foreach(map, key, v)
    {
        double bias = 0;
        TRY(field_num(&in, key, -100, 100, &bias));
        if (bias == 0)
            continue;
        char *end;
        long long id = strtoll(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end || id >= lim->n_vocab)
            return field_bad(&in, key, "the key must be a token id, 0 <= id < %d.", lim->n_vocab);
        for (int i = 0; i < n; i++)
            if (a[i].id == id) /* "7" and "07" */
                return field_bad(&in, key, "the token id %lld is given twice.", id);
        a[n].id = (int32_t)id;
        a[n++].bias = (float)bias;
    }
    s->bias = a;
    s->n_bias = n;
    return 0;
}

static int parse_stop(const struct field_at *at, const struct api_limits *lim, struct arena *arena,
                      struct api_sampling *s)
{
    const json_t *v = field_get(at, "stop");
    json_t *ids = NULL;
    struct api_str *a = NULL;
    char item[32];

    if (v && !json_is_string(v) && !json_is_array(v))
        return field_bad(at, "stop", "expected a string or an array of strings, but got %s.",
                         field_type(v));
    size_t n = !v ? 0 : json_is_string(v) ? 1 : json_array_size(v);
    if (n > API_MAX_STOP)
        return field_bad(at, "stop", "array too long. Expected at most %d items, but got %zu.",
                         API_MAX_STOP, n);
    if (n && !(a = arena_alloc(arena, n * sizeof(*a))))
        return api_error_internal(at->err, "The server ran out of memory.");
    for (size_t i = 0; i < n; i++) {
        const json_t *t = json_is_string(v) ? v : json_array_get(v, i);
        snprintf(item, sizeof(item), json_is_string(v) ? "stop" : "stop[%zu]", i);
        if (!json_is_string(t))
            return field_bad(at, item, "expected a string, but got %s.", field_type(t));
        if (json_string_length(t) == 0)
            return field_bad(at, item, "a stop sequence may not be empty.");
        a[i] = (struct api_str){ json_string_value(t), json_string_length(t) };
    }
    s->stop = a;
    s->n_stop = (int)n;
    TRY(field_array(at, "stop_token_ids", 1024, &ids));
    if (ids)
        TRY(field_ids(ids, "stop_token_ids", 1024, lim->n_vocab, arena, &s->stop_ids,
                      &s->n_stop_ids, at->err));
    return 0;
}

static int parse_logprobs(const struct field_at *at, enum api_kind kind, struct api_sampling *s)
{
    int64_t v = -1;
    bool on = false;

    if (kind == API_COMPLETION) {
        TRY(field_int(at, "logprobs", 0, API_MAX_LOGPROBS, &v));
        s->logprobs = (int)v;
        return 0;
    }
    TRY(field_bool(at, "logprobs", &on));
    TRY(field_int(at, "top_logprobs", 0, API_MAX_LOGPROBS, &v));
    if (v > 0 && !on)
        return field_bad(at, "top_logprobs", "it needs 'logprobs' to be true.");
    s->logprobs = on ? (v > 0 ? (int)v : 0) : -1;
    return 0;
}

int sampling_parse(const struct field_at *at, enum api_kind kind, const struct api_limits *lim,
                   struct arena *arena, struct api_sampling *s)
{
    int64_t max_tokens = -1;
    int64_t least = kind == API_CHAT ? 1 : 0;

    *s = (struct api_sampling){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1, .max_tokens = -1
    };
    TRY(parse_numbers(at, s));
    TRY(parse_bias(at, lim, arena, s));
    TRY(parse_stop(at, lim, arena, s));
    TRY(parse_logprobs(at, kind, s));
    /* OpenAI's completions default is 16 tokens; its chat default is "as many as fit". */
    if (kind == API_COMPLETION)
        max_tokens = 16;
    TRY(field_int(at, "max_tokens", least, INT32_MAX, &max_tokens));
    TRY(field_int(at, "max_completion_tokens", least, INT32_MAX, &max_tokens));
    s->max_tokens = (int)max_tokens;
    s->has_max_tokens = field_get(at, "max_tokens") || field_get(at, "max_completion_tokens");
    return 0;
}
