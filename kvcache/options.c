/* What a request may ask of the cache: ranges, defaults, names. */
#include <math.h>
#include <string.h>

#include "kvcache/kv_internal.h"

enum { TOKENS_MOST = 1 << 30, REACH_MOST = 1024, QUERIES_MOST = 4096 };

static int check_int(const char *name, int64_t value, int64_t low, int64_t high, struct err *e)
{
    if (value >= low && value <= high)
        return 0;
    return err_set(e, ERR_INVALID, "%s is %lld; it goes from %lld to %lld", name, (long long)value,
                   (long long)low, (long long)high);
}

static int check_real(const char *name, double value, double low, double high, struct err *e)
{
    if (value >= low && value <= high) /* false for NaN */
        return 0;
    return err_set(e, ERR_INVALID, "%s is %g; it goes from %g to %g", name, value, low, high);
}

/* A weight: -1 says 0, since 0 says "the default". */
static int fill_weight(const char *name, float *w, float preset, struct err *e)
{
    if (*w == 0)
        *w = preset;
    else if (*w == -1)
        *w = 0;
    return check_real(name, *w, 0, 1, e);
}

static int check_ranges(const struct kv_options *o, int n_prompt, struct err *e)
{
    int given = (o->budget != 0) + (o->budget_fraction != 0) + (o->budget_bytes != 0);
    if (given > 1)
        return err_set(e, ERR_INVALID,
                       "budget, budget_fraction and budget_bytes are %d at once; one is possible",
                       given);
    if (o->budget != 0)
        TRY(check_int("budget", o->budget, KV_BUDGET_MIN, TOKENS_MOST, e));
    if (o->budget_fraction != 0 && !(o->budget_fraction > 0 && o->budget_fraction < 1))
        return err_set(e, ERR_INVALID, "budget_fraction is %g; it lies between 0 and 1",
                       o->budget_fraction);
    TRY(check_int("budget_max", o->budget_max, 0, TOKENS_MOST, e));
    TRY(check_real("mass_floor", (double)o->mass_floor, 0, 1, e));
    TRY(check_int("sinks", o->sinks, -1, TOKENS_MOST, e));
    TRY(check_int("window", o->window, 0, TOKENS_MOST, e));
    TRY(check_int("tail", o->tail, 0, TOKENS_MOST, e));
    TRY(check_int("protect", o->protect, 0, TOKENS_MOST, e));
    TRY(check_int("question1", o->question1, 0, n_prompt, e));
    TRY(check_int("question0", o->question0, 0, o->question1, e));
    TRY(check_int("pool", o->pool, -1, REACH_MOST, e));
    TRY(check_real("lambda", (double)o->lambda, 0, 1e6, e));
    TRY(check_int("queries", o->queries, 0, QUERIES_MOST, e));
    TRY(check_int("stride", o->stride, 0, KV_PAGE, e));
    TRY(check_int("merge", o->merge, KV_MERGE_DEFAULT, KV_MERGE_MEAN, e));
    return check_int("split", o->split, KV_SPLIT_DEFAULT, KV_SPLIT_MASS, e);
}

static int fill_budget(struct kv_options *o, int n_prompt, int64_t slot_bytes, struct err *e)
{
    if (o->budget_bytes != 0) {
        if (o->budget_bytes < slot_bytes * KV_BUDGET_MIN)
            return err_set(e, ERR_INVALID, "budget_bytes is %lld; it is at least %lld bytes",
                           (long long)o->budget_bytes, (long long)(slot_bytes * KV_BUDGET_MIN));
        int64_t slots = o->budget_bytes / slot_bytes;
        o->budget = slots < TOKENS_MOST ? (int)slots : TOKENS_MOST;
    } else if (o->budget_fraction != 0) {
        o->budget = (int)lrint(o->budget_fraction * n_prompt);
        if (o->budget < KV_BUDGET_MIN)
            o->budget = KV_BUDGET_MIN;
    } else if (o->budget == 0) {
        o->budget = KV_BUDGET_DEFAULT;
    }
    if (o->budget_max == 0)
        o->budget_max = o->budget;
    return check_int("budget_max", o->budget_max, o->budget, TOKENS_MOST, e);
}

/* 224 is where the fit stops gaining (KL at 4,096 tokens and budget 128, six samples: .149; with 128 queries .152, with 64
 * .171). What they cost grows with queries times tokens, so long prompts get fewer: at 8,192 tokens 96, 4.5 % of the
 * prefill. */
static int default_queries(int n_prompt)
{
    enum { MOST = 224, LEAST = 96, QUERY_TOKENS = LEAST * 8192 };
    int n = n_prompt > 0 ? QUERY_TOKENS / n_prompt : MOST;
    return n > MOST ? MOST : n > LEAST ? n : LEAST;
}

int kv_options_fill(struct kv_options *o, int n_prompt, int64_t slot_bytes, struct err *e)
{
    if (o->policy == NULL)
        o->policy = kv_policy_list[0];
    TRY(check_ranges(o, n_prompt, e));
    TRY(fill_weight("local", &o->local, o->policy->local > 0 ? o->policy->local : 0.5f, e));
    TRY(fill_weight("phi", &o->phi, o->question0 < o->question1 ? 0.9f : 0.5f, e));
    if (o->lambda == 0)
        o->lambda = 0.02f;
    if (o->queries == 0)
        o->queries = default_queries(n_prompt);
    if (o->merge == KV_MERGE_DEFAULT && o->policy->merge_own == NULL)
        o->merge = o->policy->merge == KV_MERGE_DEFAULT ? KV_MERGE_NONE : o->policy->merge;
    if (o->split == KV_SPLIT_DEFAULT)
        o->split = o->policy->split == KV_SPLIT_DEFAULT ? KV_SPLIT_UNIFORM : o->policy->split;
    if (o->policy->keeps_all) {
        o->budget = o->budget_max = 0;
        return 0;
    }
    TRY(fill_budget(o, n_prompt, slot_bytes, e));
    if (o->tail == 0)
        o->tail = min_int(max_int(o->budget, KV_TAIL_LEAST), KV_TAIL_MOST);
    int most = o->budget / 4; /* so that three quarters are the most that is protected */
    o->sinks = min_int(o->sinks == 0 ? 4 : o->sinks < 0 ? 0 : o->sinks, most);
    o->window = min_int(o->window == 0 ? 32 : o->window, most);
    o->protect = min_int(o->protect, most);
    return 0;
}

/* In the order of messages. */
#define MERGES(X)                                                                                  \
    X(FIT, "fit") X(VOTES, "votes") X(VALUES, "values") X(MEAN, "mean") X(NONE, "none")
#define SPLITS(X)        X(UNIFORM, "uniform") X(PYRAMID, "pyramid") X(ADA, "ada") X(MASS, "mass")
#define LISTED(id, name) ", " name

enum kv_merge kv_merge_find(const char *name)
{
#define IS(id, word)                                                                               \
    if (strcmp(name, word) == 0)                                                                   \
        return KV_MERGE_##id;
    MERGES(IS)
#undef IS
    return KV_MERGE_DEFAULT;
}

enum kv_split kv_split_find(const char *name)
{
#define IS(id, word)                                                                               \
    if (strcmp(name, word) == 0)                                                                   \
        return KV_SPLIT_##id;
    SPLITS(IS)
#undef IS
    return KV_SPLIT_DEFAULT;
}

const char *kv_merge_names(void)
{
    static const char names[] = MERGES(LISTED);
    return names + 2;
}

const char *kv_split_names(void)
{
    static const char names[] = SPLITS(LISTED);
    return names + 2;
}
