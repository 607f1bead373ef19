/* Policies with options as one word: "name:merge=none,phi=0". */
#include <stdlib.h>
#include <string.h>

#include "server/cli/eval_kv.h"

/* How a number is written into its field: struct kv_options takes 0 for "the default" and -1 for a true 0. */
enum kind { WHOLE, REAL, MERGE, SPLIT, SEED };

struct key {
    const char *name;
    enum kind kind;
    bool zero_is_minus;
    size_t at;
};
#define AT(member) offsetof(struct kv_options, member)
static const struct key keys[] = {
    { "sinks", WHOLE, true, AT(sinks) },    { "window", WHOLE, false, AT(window) },
    { "tail", WHOLE, false, AT(tail) },     { "protect", WHOLE, false, AT(protect) },
    { "pool", WHOLE, true, AT(pool) },      { "queries", WHOLE, false, AT(queries) },
    { "stride", WHOLE, false, AT(stride) }, { "budget_max", WHOLE, false, AT(budget_max) },
    { "local", REAL, true, AT(local) },     { "phi", REAL, true, AT(phi) },
    { "lambda", REAL, false, AT(lambda) },  { "mass_floor", REAL, false, AT(mass_floor) },
    { "merge", MERGE, false, AT(merge) },   { "split", SPLIT, false, AT(split) },
    { "seed", SEED, false, AT(seed) },
};
enum { N_KEYS = sizeof keys / sizeof *keys };

static int set_number(struct kv_options *o, const struct key *k, const char *text)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end != 0 || !(v >= 0 && v <= 1e9) ||
        (k->kind != REAL && v != (double)(int64_t)v))
        return ERR_INVALID;
    void *field = (char *)o + k->at;
    if (v == 0 && k->zero_is_minus)
        v = -1;
    if (k->kind == REAL)
        *(float *)field = (float)v;
    else if (k->kind == WHOLE)
        *(int *)field = (int)v;
    else
        *(uint64_t *)field = (uint64_t)v;
    return 0;
}

static int set_option(struct kv_options *o, const char *name, const char *value)
{
    for (int i = 0; i < N_KEYS; i++) {
        if (strcmp(keys[i].name, name) != 0)
            continue;
        if (keys[i].kind == MERGE)
            return (o->merge = kv_merge_find(value)) != KV_MERGE_DEFAULT ? 0 : ERR_INVALID;
        if (keys[i].kind == SPLIT)
            return (o->split = kv_split_find(value)) != KV_SPLIT_DEFAULT ? 0 : ERR_INVALID;
        return set_number(o, &keys[i], value);
    }
    return ERR_INVALID;
}

int kv_variant_parse(struct kv_variant *v, const char *word, struct err *e)
{
    char text[KV_WORD];
    *v = (struct kv_variant){ 0 };
    if (strlen(word) + 1 >= sizeof text) /* it may have been cut */
        return err_set(e, ERR_INVALID, "policies: \"%s\" is too long", word);
    snprintf(v->word, sizeof v->word, "%s", word);
    snprintf(text, sizeof text, "%s", word);
    char *rest = text + strcspn(text, ":");
    if (*rest != 0)
        *rest++ = 0;
    v->opt.policy = kv_policy_find(text);
    if (v->opt.policy == NULL)
        return err_set(e, ERR_INVALID, "policies: there is no \"%s\"; there are: %s", text,
                       kv_policy_names());
    while (*rest != 0) {
        char *name = rest;
        rest += strcspn(rest, ",");
        if (*rest != 0)
            *rest++ = 0;
        char *value = strchr(name, '=');
        if (value != NULL)
            *value++ = 0;
        if (value == NULL || set_option(&v->opt, name, value) < 0)
            return err_set(e, ERR_INVALID, "policies: \"%s\": %s is no option with such a value",
                           word, name);
    }
    return 0;
}

bool kv_variant_next(const char **list, char out[KV_WORD])
{
    const char *p = *list;
    size_t n = strcspn(p, ",");
    if (*p == 0)
        return false;
    while (p[n] == ',') {
        size_t more = strcspn(p + n + 1, ",");
        const char *equals = memchr(p + n + 1, '=', more);
        const char *colon = memchr(p + n + 1, ':', more);
        if (equals == NULL || (colon != NULL && colon < equals))
            break;
        n += 1 + more;
    }
    snprintf(out, KV_WORD, "%.*s", (int)n, p);
    *list = p + n + (p[n] == ',');
    return true;
}
