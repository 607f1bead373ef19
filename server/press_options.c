#include "server/press_options.h"

#include <stdio.h>
#include <string.h>

_Static_assert((int)API_MIN_BUDGET == (int)KV_BUDGET_MIN,
               "what requests are told is what kvcache/ takes");

/* Also as profiles for a whole server: configs/kv-NAME.yaml. */
static const struct preset {
    const char *name, *policy;
    double fraction, mass_floor;
} presets[] = {
    { "quality", "ems", 0.25, 0.9 },
    { "balanced", "ems", 0.1, 0 },
    { "extreme", "ems", 0.03, 0 },
};

static int bad_name(struct api_error *e, const char *key, const char *name, const char *names)
{
    char param[64];
    snprintf(param, sizeof(param), "compression.kv.%s", key);
    return api_error_bad(e, param, "Invalid '%s': '%.40s' is not one of: %s.", param, name, names);
}

static void set_budget(struct kv_options *o, const struct api_budget *b)
{
    o->budget = b->tokens;
    o->budget_fraction = b->fraction;
    o->budget_bytes = b->bytes;
}

/* ---- the server's options ---------------------------------------------------------------------------------------- */

static int read_budget(struct api_budget *b, const char *option, const char *text, struct err *e)
{
    if (text[0] == 0 || api_budget_parse(b, text))
        return 0;
    return err_set(e, ERR_INVALID,
                   "%s: \"%s\" is neither tokens a head (from %d), nor a part of the prompt (as "
                   "0.25), nor bytes (as 4MiB)",
                   option, text, API_MIN_BUDGET);
}

/* A ceiling binds everybody, those who say nothing too: the server's own budget bows to it. */
static int check_ceiling(const struct press_rules *r, struct err *e)
{
    if (!api_budget_given(&r->ceiling) || !r->policy->keeps_all)
        return 0;
    return err_set(e, ERR_INVALID,
                   "kv-budget-max: requests that say nothing would keep a full cache: give a "
                   "--kv-policy other than %s",
                   r->policy->name);
}

int press_rules_read(struct press_rules *r, const struct config *c, struct err *e)
{
    struct press_rules got = { .policy = kv_policy_find(c->kv_policy),
                               .mass_floor = c->kv_mass_floor,
                               .samples = (int)c->kv_samples };
    if (got.policy == NULL)
        return err_set(e, ERR_INVALID, "kv-policy: \"%s\" is not one of: %s", c->kv_policy,
                       kv_policy_names());
    if (!got.policy->keeps_all && got.samples == 0)
        return err_set(e, ERR_INVALID, "kv-policy: \"%s\" needs queries, kv-samples above 0",
                       got.policy->name);
    TRY(read_budget(&got.budget, "kv-budget", c->kv_budget, e));
    TRY(read_budget(&got.ceiling, "kv-budget-max", c->kv_budget_max, e));
    TRY(check_ceiling(&got, e));
    *r = got;
    return 0;
}

int press_rules_check(const struct press_rules *r, int64_t slot_bytes, struct err *e)
{
    const struct {
        const char *option;
        const struct api_budget *budget;
    } given[] = { { "kv-budget", &r->budget }, { "kv-budget-max", &r->ceiling } };
    for (int i = 0; i < 2; i++) {
        struct kv_options o = { .policy = kv_policy_find(presets[0].policy) };
        set_budget(&o, given[i].budget);
        if (kv_options_fill(&o, 1, slot_bytes, e) < 0)
            return err_prefix(e, "%s", given[i].option);
    }
    return 0;
}

const char *press_policies(const struct press_rules *r, bool windowed)
{
    const char *all = kv_policy_list[0]->name;
    if (r->samples == 0 || windowed)
        return all;
    /* the first name and ", " left out */
    return api_budget_given(&r->ceiling) ? kv_policy_names() + strlen(all) + 2 : kv_policy_names();
}

/* ---- one request ------------------------------------------------------------------------------------------------- */

static int find_preset(const struct api_compression *c, const struct preset **out,
                       struct api_error *e)
{
    for (size_t i = 0; c->preset && i < sizeof(presets) / sizeof(presets[0]); i++)
        if (strcmp(presets[i].name, c->preset) == 0)
            *out = &presets[i];
    if (c->preset && !*out)
        return bad_name(e, "preset", c->preset, "quality, balanced, extreme");
    return 0;
}

static int find_policy(const struct press_rules *r, const struct api_compression *c,
                       const struct preset *preset, const struct kv_policy **out,
                       struct api_error *e)
{
    const char *key = preset && !c->policy ? "preset" : "policy";
    const char *name = c->policy ? c->policy : preset ? preset->policy : NULL;
    const char *field = api_pressing_field(c);
    char param[64];
    const struct kv_policy *p = name        ? kv_policy_find(name)
                                : r->policy ? r->policy
                                            : *kv_policy_list;

    if (!p)
        return bad_name(e, key, name, kv_policy_names());
    if (!p->keeps_all && r->samples == 0) {
        snprintf(param, sizeof(param), "compression.kv.%s", key);
        return api_error_bad(
            e, param, "Invalid '%s': '%s' needs the prompt's queries, and this server keeps none.",
            param, p->name);
    }
    if (p->keeps_all && field) {
        snprintf(param, sizeof(param), "compression.kv.%s", field);
        return api_error_bad(e, param, "Invalid '%s': the policy '%s' keeps everything.", param,
                             p->name);
    }
    *out = p;
    return 0;
}

static int find_stride(const struct press_rules *r, const struct api_compression *c,
                       struct kv_options *o, struct api_error *e)
{
    int kept = r->samples > 0 ? KV_PAGE / r->samples : 1; /* one of so many */

    if (c->stride > 0 && c->stride % kept != 0)
        return api_error_bad(
            e, "compression.kv.stride",
            "Invalid 'compression.kv.stride': %d is no multiple of %d: this server "
            "keeps the query of every %d tokens.",
            c->stride, kept, kept);
    o->stride = c->stride > 0 ? c->stride : 0;
    return 0;
}

static int find_ways(const struct api_compression *c, struct kv_options *o, struct api_error *e)
{
    if (c->merge && !(o->merge = kv_merge_find(c->merge)))
        return bad_name(e, "merge", c->merge, kv_merge_names());
    if (c->split && !(o->split = kv_split_find(c->split)))
        return bad_name(e, "split", c->split, kv_split_names());
    return 0;
}

/* In kv_options 0 is "not given" and -1 is 0. */
static int or_default(int v)
{
    return v < 0 ? 0 : v > 0 ? v : -1;
}

static float part_or_default(double v)
{
    return v < 0 ? 0 : (float)v > 0 ? (float)v : -1;
}

int press_options(struct kv_options *out, const struct press_rules *r,
                  const struct api_compression *c, struct api_error *e)
{
    const struct preset *preset = NULL;
    struct kv_options o = { .sinks = or_default(c->sinks),
                            .window = or_default(c->window),
                            .tail = or_default(c->tail),
                            .local = part_or_default(c->local),
                            .pool = or_default(c->pool),
                            .phi = part_or_default(c->phi),
                            .lambda = c->lambda > 0 ? (float)c->lambda : 0,
                            .queries = or_default(c->queries),
                            .seed = (uint64_t)c->seed };
    TRY(find_preset(c, &preset, e));
    TRY(find_policy(r, c, preset, &o.policy, e));
    TRY(find_stride(r, c, &o, e));
    TRY(find_ways(c, &o, e));
    double floor = preset ? preset->mass_floor : r->mass_floor;
    o.mass_floor = (float)(c->mass_floor >= 0 ? c->mass_floor : floor);
    set_budget(&o, &r->budget);
    if (preset)
        set_budget(&o, &(struct api_budget){ .fraction = preset->fraction });
    if (api_budget_given(&c->budget))
        set_budget(&o, &c->budget);
    *out = o;
    return 0;
}

/* ---- one prompt -------------------------------------------------------------------------------------------------- */

struct prompt {
    int n;
    int64_t slot_bytes;
};

static int fill(struct kv_options *o, const struct prompt *p, const char *param,
                struct api_error *e)
{
    struct err why = { 0 };
    if (kv_options_fill(o, p->n, p->slot_bytes, &why) < 0)
        return api_error_bad(e, param, "Invalid '%s': %s.", param, why.text);
    return 0;
}

/* Slots a head that a budget comes to. */
static int slots(const struct kv_options *kv, const struct api_budget *b, const struct prompt *p,
                 const char *param, int *out, struct api_error *e)
{
    struct kv_options o = { .policy = kv->policy };
    set_budget(&o, b);
    TRY(fill(&o, p, param, e));
    *out = o.budget;
    return 0;
}

static int above_ceiling(struct api_error *e, const char *param, int got, int ceiling)
{
    return api_error_bad(
        e, param,
        "Invalid '%s': %d tokens a head, and this server's ceiling is %d for this prompt.", param,
        got, ceiling);
}

static int keeps_too_much(const struct kv_policy *p, struct api_error *e)
{
    return api_error_bad(e, "compression.kv.policy",
                         "Invalid 'compression.kv.policy': '%s' keeps everything, and this server "
                         "has a ceiling.",
                         p->name);
}

/* How far the guard may go: what the request says, else twice the budget. */
static int fit_max(struct kv_options *kv, const struct api_compression *c, const struct prompt *p,
                   int ceiling, struct api_error *e)
{
    static const char param[] = "compression.kv.budget_max";
    int max = kv->budget < ceiling / 2 ? 2 * kv->budget : ceiling;

    if (api_budget_given(&c->budget_max)) {
        TRY(slots(kv, &c->budget_max, p, param, &max, e));
        if (max > ceiling)
            return above_ceiling(e, param, max, ceiling);
        if (max < kv->budget)
            return api_error_bad(e, param,
                                 "Invalid '%s': %d tokens a head, less than the budget %d.", param,
                                 max, kv->budget);
    }
    kv->budget_max = kv->mass_floor > 0 ? max : 0;
    return 0;
}

int press_fit(struct kv_options *kv, const struct press_rules *r, const struct api_compression *c,
              int n_prompt, int64_t slot_bytes, struct api_error *e)
{
    static const char param[] = "compression.kv.budget";
    const struct prompt p = { n_prompt, slot_bytes };
    const struct api_budget given = { kv->budget, kv->budget_fraction, kv->budget_bytes };
    int budget, ceiling = 1 << 30;

    if (kv->policy->keeps_all)
        return api_budget_given(&r->ceiling) && c->policy ? keeps_too_much(kv->policy, e) : 0;
    TRY(slots(kv, &given, &p, param, &budget, e));
    if (api_budget_given(&r->ceiling))
        TRY(slots(kv, &r->ceiling, &p, param, &ceiling, e));
    if (budget > ceiling && (c->preset || api_budget_given(&c->budget)))
        return above_ceiling(e, api_budget_given(&c->budget) ? param : "compression.kv.preset",
                             budget, ceiling);
    /* no ceiling forbids the shortest tail there is by default */
    if (api_budget_given(&r->ceiling) && kv->tail > KV_TAIL_LEAST && kv->tail > ceiling)
        return above_ceiling(e, "compression.kv.tail", kv->tail, ceiling);
    /* In slots from here on; the server's own default bows to its ceiling. */
    set_budget(kv, &(struct api_budget){ .tokens = budget < ceiling ? budget : ceiling });
    TRY(fit_max(kv, c, &p, ceiling, e));
    struct kv_options all = *kv;
    return fill(&all, &p, "compression.kv", e);
}
