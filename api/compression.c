/* "compression": {"kv": {"policy", "budget", ...}, "experts": {"prune"}}. See request.h for ranges and defaults. */
#include "api/compression.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *key;
    double min, max;
    size_t at; /* of a double in struct api_compression */
} numbers[] = {
    { "mass_floor", 0, 1, offsetof(struct api_compression, mass_floor) },
    { "local", 0, 1, offsetof(struct api_compression, local) },
    { "phi", 0, 1, offsetof(struct api_compression, phi) },
    { "lambda", FIELD_ABOVE_ZERO, 1e6, offsetof(struct api_compression, lambda) },
};
static const struct {
    const char *key;
    int min, max;
    size_t at; /* of an int */
} integers[] = {
    { "sinks", 0, 1 << 16, offsetof(struct api_compression, sinks) },
    { "window", 1, 1 << 16, offsetof(struct api_compression, window) },
    { "tail", 1, 1 << 16, offsetof(struct api_compression, tail) },
    { "pool", 0, 1 << 10, offsetof(struct api_compression, pool) },
    { "queries", 1, 512, offsetof(struct api_compression, queries) },
    { "stride", 1, 32, offsetof(struct api_compression, stride) },
};
static const struct {
    const char *key;
    size_t at; /* of a const char * */
} words[] = {
    { "preset", offsetof(struct api_compression, preset) },
    { "policy", offsetof(struct api_compression, policy) },
    { "merge", offsetof(struct api_compression, merge) },
    { "split", offsetof(struct api_compression, split) },
};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const char *const others[] = {
    "budget", "budget_max", "seed", "protect_system", "recompute", "detail",
};

/* Field i of "compression", of its "kv" and of its "experts"; NULL: there are no more. */
static const char *top_field(size_t i)
{
    static const char *const name[] = { "kv", "experts" };
    return i < COUNT(name) ? name[i] : NULL;
}

static const char *experts_field(size_t i)
{
    return i == 0 ? "prune" : NULL;
}

static const char *kv_field(size_t i)
{
    if (i < COUNT(words))
        return words[i].key;
    i -= COUNT(words);
    if (i < COUNT(others))
        return others[i];
    i -= COUNT(others);
    if (i < COUNT(numbers))
        return numbers[i].key;
    i -= COUNT(numbers);
    return i < COUNT(integers) ? integers[i].key : NULL;
}

/* This object is the server's own, and what is misspelt in it would answer with a cache that nobody asked for. */
static int check_fields(json_t *obj, const char *path, const char *(*field)(size_t),
                        struct api_error *e)
{
    const struct field_at at = { obj, path, e };
    char names[512];
    const char *key;
    json_t *v;

    json_object_foreach(obj, key, v)
    {
        size_t n = 0, i = 0;
        for (; field(i) && strcmp(field(i), key) != 0; i++)
            n +=
                (size_t)snprintf(names + n, sizeof(names) - n, "%s%s", i > 0 ? ", " : "", field(i));
        if (!field(i))
            return field_bad(&at, key, "there is no such field; there are: %s.", names);
    }
    return 0;
}

bool api_budget_parse(struct api_budget *out, const char *text)
{
    static const char unit[] = "KMG";
    size_t n = strspn(text, "0123456789.");
    char *end;
    double v = strtod(text, &end);

    if (n == 0 || end != text + n)
        return false;
    if (*end == 0) {
        bool whole = v <= INT32_MAX && v == (double)(int32_t)v;
        if (v > 0 && v < 1)
            *out = (struct api_budget){ .fraction = v };
        else if (whole && v >= API_MIN_BUDGET)
            *out = (struct api_budget){ .tokens = (int)v };
        else
            return false;
        return true;
    }
    const char *u = strchr(unit, *end);
    if (!u || (strcmp(end + 1, "iB") != 0 && strcmp(end + 1, "B") != 0 && end[1] != 0))
        return false;
    for (long i = u - unit; i >= 0; i--)
        v *= 1024;
    if (!(v >= 1 && v <= 1e15))
        return false;
    *out = (struct api_budget){ .bytes = (int64_t)v };
    return true;
}

bool api_budget_given(const struct api_budget *b)
{
    return b->tokens > 0 || b->fraction > 0 || b->bytes > 0;
}

static int parse_budget(const struct field_at *at, const char *key, struct api_budget *b)
{
    const json_t *v = field_get(at, key);
    int64_t n;

    if (!v)
        return 0;
    if (json_is_string(v) && api_budget_parse(b, json_string_value(v)))
        return 0;
    if (json_is_number(v)) {
        double d = json_number_value(v);
        bool whole = field_integral(v, &n);
        if (whole && n > API_MAX_BUDGET)
            return field_bad(at, key, "expected at most %d tokens a head, but got %lld.",
                             API_MAX_BUDGET, (long long)n);
        *b = whole ? (struct api_budget){ .tokens = (int)n } : (struct api_budget){ .fraction = d };
        if (whole ? n >= API_MIN_BUDGET : d > 0 && d < 1)
            return 0;
    }
    return field_bad(at, key,
                     "expected tokens a head (a whole number >= %d), a part of the prompt (above 0 "
                     "and below 1), or bytes (as \"4MiB\").",
                     API_MIN_BUDGET);
}

static int parse_kv(const struct field_at *at, struct api_compression *c)
{
    char *base = (char *)c;

    for (size_t i = 0; i < COUNT(words); i++) {
        struct api_str s = { 0 };
        TRY(field_str(at, words[i].key, &s));
        memcpy(base + words[i].at, &s.p, sizeof(s.p));
    }
    TRY(parse_budget(at, "budget", &c->budget));
    TRY(parse_budget(at, "budget_max", &c->budget_max));
    for (size_t i = 0; i < COUNT(numbers); i++) {
        double d = -1;
        TRY(field_num(at, numbers[i].key, numbers[i].min, numbers[i].max, &d));
        memcpy(base + numbers[i].at, &d, sizeof(d));
    }
    for (size_t i = 0; i < COUNT(integers); i++) {
        int64_t v = -1;
        TRY(field_int(at, integers[i].key, integers[i].min, integers[i].max, &v));
        int n = (int)v;
        memcpy(base + integers[i].at, &n, sizeof(n));
    }
    TRY(field_int(at, "seed", INT64_MIN, INT64_MAX, &c->seed));
    TRY(field_bool(at, "protect_system", &c->protect_system));
    TRY(field_bool(at, "recompute", &c->recompute));
    return field_bool(at, "detail", &c->detail);
}

const char *api_pressing_field(const struct api_compression *c)
{
    const char *base = (const char *)c;

    if (api_budget_given(&c->budget) || api_budget_given(&c->budget_max))
        return api_budget_given(&c->budget) ? "budget" : "budget_max";
    if (c->merge || c->split)
        return c->merge ? "merge" : "split";
    for (size_t i = 0; i < COUNT(numbers); i++) {
        double d;
        memcpy(&d, base + numbers[i].at, sizeof(d));
        if (d >= 0)
            return numbers[i].key;
    }
    for (size_t i = 0; i < COUNT(integers); i++) {
        int n;
        memcpy(&n, base + integers[i].at, sizeof(n));
        if (n >= 0)
            return integers[i].key;
    }
    return NULL;
}

int compression_parse(const struct field_at *at, struct api_compression *c)
{
    json_t *top = NULL, *kv = NULL, *experts = NULL;

    *c = (struct api_compression){ .mass_floor = -1,
                                   .local = -1,
                                   .phi = -1,
                                   .lambda = -1,
                                   .sinks = -1,
                                   .window = -1,
                                   .tail = -1,
                                   .pool = -1,
                                   .queries = -1,
                                   .stride = -1,
                                   .protect_system = true };
    TRY(field_object(at, "compression", &top));
    if (!top)
        return 0;
    struct field_at in = { top, "compression", at->err };
    TRY(check_fields(top, in.path, top_field, at->err));
    TRY(field_object(&in, "kv", &kv));
    TRY(field_object(&in, "experts", &experts));
    struct field_at in_experts = { experts, "compression.experts", at->err };
    if (experts)
        TRY(check_fields(experts, in_experts.path, experts_field, at->err));
    if (experts && field_get(&in_experts, "prune"))
        return api_error_code(at->err, "unsupported_value", "compression.experts.prune",
                              "Unsupported value: 'compression.experts.prune' is not supported by "
                              "this model.");
    struct field_at in_kv = { kv, "compression.kv", at->err };
    if (!kv)
        return 0;
    TRY(check_fields(kv, in_kv.path, kv_field, at->err));
    return parse_kv(&in_kv, c);
}
