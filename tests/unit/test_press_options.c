/* From a request's "compression" and the server's options to the options of a cache. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/press_options.h"
#include "tests/tools/pressing.h"

enum { PROMPT = 1000, SLOT = 1024 };

static struct press_rules rules(void)
{
    return (struct press_rules){ .policy = pressing(0), .budget = { .tokens = 64 }, .samples = 4 };
}

/* The options for fields of "compression.kv" as JSON; fails with the error's code. */
static int options(const char *kv, const struct press_rules *r, struct kv_options *out,
                   struct api_error *e)
{
    const struct api_limits lim = { .n_vocab = 10 };
    struct api_request req;
    char body[512];
    snprintf(body, sizeof body, "{\"prompt\":\"a\",\"compression\":{\"kv\":{%s}}}", kv);
    if (api_request_parse(&req, API_COMPLETION, body, strlen(body), &lim, e) < 0)
        fail_msg("%s: %s", body, e->message);
    int rc = press_options(out, r, &req.compression, e);
    if (rc == 0)
        rc = press_fit(out, r, &req.compression, PROMPT, SLOT, e);
    api_request_free(&req);
    return rc;
}

static struct kv_options good(const char *kv, const struct press_rules *r)
{
    struct kv_options o;
    struct api_error e;
    if (options(kv, r, &o, &e) < 0)
        fail_msg("%s: %s", kv, e.message);
    return o;
}

static void check_bad(const char *kv, const struct press_rules *r, const char *param,
                      const char *says)
{
    struct kv_options o;
    struct api_error e;
    if (options(kv, r, &o, &e) == 0)
        fail_msg("%s: accepted", kv);
    assert_int_equal(e.status, 400);
    if (strcmp(e.param, param) != 0 || strstr(e.message, says) == NULL)
        fail_msg("%s: %s: %s", kv, e.param, e.message);
}

static void defaults_are_the_servers(void **state)
{
    (void)state;
    struct press_rules r = rules();
    struct kv_options o = good("", &r);
    assert_ptr_equal(o.policy, pressing(0));
    assert_int_equal(o.budget, 64);
    assert_int_equal(o.budget_max, 0);
    r.mass_floor = 0.75;
    o = good("", &r);
    assert_true(o.mass_floor == 0.75f);
    assert_int_equal(o.budget_max, 128);
    o = good("\"policy\":\"full\"", &r);
    assert_true(o.policy->keeps_all);
    /* Without any rules nothing is pressed. */
    o = good("", &(struct press_rules){ .policy = NULL });
    assert_true(o.policy->keeps_all);
}

static void fields_become_options(void **state)
{
    (void)state;
    const struct press_rules r = rules();
    struct kv_options o =
        good("\"policy\":\"window\",\"budget\":0.1,\"budget_max\":\"200KiB\","
             "\"mass_floor\":0.5,\"merge\":\"votes\",\"split\":\"ada\",\"seed\":9,"
             "\"sinks\":2,\"window\":8,\"tail\":40,\"pool\":3,\"phi\":0.25,"
             "\"lambda\":0.5,\"queries\":32,\"stride\":16,\"local\":0.75",
             &r);
    assert_string_equal(o.policy->name, "window");
    assert_int_equal(o.budget, 100);
    assert_true(o.budget_fraction == 0 && o.budget_bytes == 0);
    assert_int_equal(o.budget_max, 200);
    assert_true(o.mass_floor == 0.5f && o.phi == 0.25f && o.lambda == 0.5f && o.local == 0.75f);
    assert_int_equal(o.merge, KV_MERGE_VOTES);
    assert_int_equal(o.split, KV_SPLIT_ADA);
    assert_true(o.seed == 9 && o.sinks == 2 && o.window == 8 && o.tail == 40);
    assert_true(o.pool == 3 && o.queries == 32 && o.stride == 16);
    /* 0 is a value of its own there: kv_options writes it -1. */
    o = good("\"sinks\":0,\"pool\":0,\"phi\":0,\"local\":0,\"mass_floor\":0", &r);
    assert_true(o.sinks == -1 && o.pool == -1 && o.phi == -1 && o.local == -1);
    assert_true(o.mass_floor == 0 && o.window == 0 && o.tail == 0 && o.lambda == 0);
    assert_int_equal(good("\"budget\":\"32KiB\"", &r).budget, 32);
    assert_int_equal(good("\"budget\":0.001", &r).budget, KV_BUDGET_MIN);
}

static void bad_ones_are_named(void **state)
{
    (void)state;
    const struct press_rules r = rules();
    check_bad("\"policy\":\"magic\"", &r, "compression.kv.policy", kv_policy_names());
    check_bad("\"policy\":\"\"", &r, "compression.kv.policy", "not one of");
    check_bad("\"preset\":\"best\"", &r, "compression.kv.preset", "quality, balanced, extreme");
    check_bad("\"merge\":\"glue\"", &r, "compression.kv.merge", "fit, votes, values, mean, none");
    check_bad("\"split\":\"fair\"", &r, "compression.kv.split", "uniform, pyramid, ada, mass");
    check_bad("\"policy\":\"full\",\"budget\":64", &r, "compression.kv.budget", "keeps everything");
    static const char *const pressing_fields[] = {
        "\"budget_max\":64", "\"mass_floor\":0", "\"merge\":\"fit\"", "\"split\":\"ada\"",
        "\"sinks\":0",       "\"window\":1",     "\"tail\":1",        "\"local\":0",
        "\"pool\":0",        "\"phi\":0",        "\"lambda\":1",      "\"queries\":1",
        "\"stride\":1",
    };
    for (size_t i = 0; i < sizeof pressing_fields / sizeof pressing_fields[0]; i++) {
        const char *field = pressing_fields[i];
        char kv[64], param[64];
        snprintf(kv, sizeof kv, "\"policy\":\"full\",%s", field);
        snprintf(param, sizeof param, "compression.kv.%.*s", (int)strcspn(field + 1, "\""),
                 field + 1);
        check_bad(kv, &r, param, "keeps everything");
        check_bad(field, &(struct press_rules){ .samples = 4 }, param, "keeps everything");
    }
    (void)good("\"policy\":\"full\",\"seed\":1,\"protect_system\":false,\"recompute\":true,"
               "\"detail\":true",
               &r);
    check_bad("\"budget\":\"8KiB\"", &r, "compression.kv.budget", "8192");
    check_bad("\"budget\":64,\"mass_floor\":0.9,\"budget_max\":32", &r, "compression.kv.budget_max",
              "less than the budget 64");
    check_bad("\"queries\":32,\"budget\":64", &(struct press_rules){ .policy = pressing(0) },
              "compression.kv.policy", "keeps none");
    check_bad("\"stride\":12", &r, "compression.kv.stride", "the query of every 8 tokens");
    check_bad("\"preset\":\"extreme\"", &(struct press_rules){ .policy = NULL },
              "compression.kv.preset", "keeps none");
    check_bad("\"policy\":\"window\"", &(struct press_rules){ .policy = NULL },
              "compression.kv.policy", "keeps none");
}

static void ceiling_holds(void **state)
{
    (void)state;
    struct press_rules r = rules();
    r.ceiling = (struct api_budget){ .fraction = 0.1 };
    assert_int_equal(good("\"budget\":100", &r).budget, 100);
    check_bad("\"budget\":101", &r, "compression.kv.budget", "ceiling is 100");
    check_bad("\"budget\":\"101KiB\"", &r, "compression.kv.budget", "ceiling is 100");
    check_bad("\"preset\":\"quality\"", &r, "compression.kv.preset", "ceiling is 100");
    check_bad("\"policy\":\"full\"", &r, "compression.kv.policy", "ceiling");
    check_bad("\"tail\":129", &r, "compression.kv.tail", "ceiling is 100");
    assert_int_equal(good("\"tail\":128", &r).tail, 128);
    check_bad("\"budget_max\":101,\"mass_floor\":1", &r, "compression.kv.budget_max", "ceiling");
    /* The guard's own limit and the server's own default bow to it. */
    assert_int_equal(good("\"mass_floor\":1", &r).budget_max, 100);
    r.budget.tokens = 500;
    assert_int_equal(good("", &r).budget, 100);
    r = rules();
    assert_int_equal(good("\"budget\":1073741824,\"mass_floor\":1", &r).budget_max, 1 << 30);
}

/* Budgets in bytes are known to be too small once a slot has a size, also beside a policy that keeps everything. */
static void budgets_can_be_met(void **state)
{
    (void)state;
    struct err e;
    struct press_rules r = { .policy = kv_policy_list[0], .ceiling = { .bytes = 1024 } };
    assert_int_equal(press_rules_check(&r, 64, &e), 0);
    assert_int_equal(press_rules_check(&r, 65, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "kv-budget-max"));
    r.budget = r.ceiling;
    assert_int_equal(press_rules_check(&r, 65, &e), ERR_INVALID);
    assert_null(strstr(e.text, "kv-budget-max"));
}

/* A preset of a request is the profile of the same name. */
static void presets_are_profiles(void **state)
{
    static const char *const names[] = { "quality", "balanced", "extreme" };
    (void)state;
    for (int i = 0; i < 3; i++) {
        char arg[64], kv[64];
        char *argv[] = { arg };
        struct config c;
        struct press_rules r;
        struct err e;
        snprintf(arg, sizeof arg, "--config=configs/kv-%s.yaml", names[i]);
        assert_int_equal(config_parse(&c, CONFIG_SERVE, 1, argv, &e), 0);
        assert_int_equal(press_rules_read(&r, &c, &e), 0);
        config_free(&c);
        snprintf(kv, sizeof kv, "\"preset\":\"%s\"", names[i]);
        const struct press_rules none = { .samples = 4 };
        struct kv_options profile = good("", &r), preset = good(kv, &none);
        assert_false(profile.policy->keeps_all);
        assert_ptr_equal(profile.policy, preset.policy);
        assert_int_equal(profile.budget, preset.budget);
        assert_int_equal(profile.budget_max, preset.budget_max);
        assert_true(profile.mass_floor == preset.mass_floor);
        /* What stands beside a preset goes before it. */
        snprintf(kv, sizeof kv, "\"preset\":\"%s\",\"budget\":77,\"policy\":\"window\"", names[i]);
        preset = good(kv, &none);
        assert_int_equal(preset.budget, 77);
        assert_string_equal(preset.policy->name, "window");
    }
}

static void options_are_checked(void **state)
{
    static const struct {
        const char *arg, *says;
    } bad[] = {
        { "--kv-policy=magic", "kv-policy: \"magic\" is not one of: full, " },
        { "--kv-budget=15", "kv-budget: \"15\"" },
        { "--kv-budget-max=lots", "kv-budget-max: \"lots\"" },
    };
    struct config c;
    struct press_rules r;
    struct err e;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char arg[64];
        char *argv[] = { arg };
        snprintf(arg, sizeof arg, "%s", bad[i].arg);
        assert_int_equal(config_parse(&c, CONFIG_SERVE, 1, argv, &e), 0);
        assert_int_equal(press_rules_read(&r, &c, &e), ERR_INVALID);
        if (strstr(e.text, bad[i].says) == NULL)
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].arg, e.text, bad[i].says);
        config_free(&c);
    }
    char samples[] = "--kv-samples=0", policy[] = "--kv-policy=window";
    char *argv[] = { samples, policy };
    assert_int_equal(config_parse(&c, CONFIG_SERVE, 1, argv, &e), 0);
    assert_int_equal(press_rules_read(&r, &c, &e), 0);
    assert_true(r.policy->keeps_all && r.samples == 0 && r.budget.tokens == 256);
    config_free(&c);
    assert_int_equal(config_parse(&c, CONFIG_SERVE, 2, argv, &e), 0);
    assert_int_equal(press_rules_read(&r, &c, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "kv-samples"));
    config_free(&c);
}

/* What /v1/models lists is what is not refused for its name. */
static void policies_are_those_that_may_be_asked_for(void **state)
{
    const struct press_rules none = { .samples = 0 };
    struct press_rules r = rules();
    (void)state;
    r.ceiling = (struct api_budget){ 0 };
    assert_string_equal(press_policies(&r, false), kv_policy_names());
    assert_string_equal(press_policies(&r, true), "full");
    assert_string_equal(press_policies(&none, false), "full");
    r.ceiling.tokens = 96;
    const char *names = press_policies(&r, false);
    assert_ptr_equal(names, strstr(names, kv_policy_list[1]->name));
    assert_null(strstr(names, "full"));
}

/* What a ceiling would not bind is refused, not served. */
static void ceiling_binds_the_silent(void **state)
{
    static const struct {
        const char *policy, *budget, *ceiling, *says; /* NULL: good */
    } cases[] = {
        { "full", "256", "512", "kv-budget-max: requests that say nothing" },
        { "window", "256", "512", NULL },
        { "window", "256", "256", NULL },
        { "window", "256", "255", NULL }, /* the server's own bows to the ceiling */
        { "window", "0.3", "0.2", NULL },
        { "window", "8MiB", "4MiB", NULL },
        { "window", "0.3", "16", NULL },
        { "window", "4000", "0.2", NULL },
        { "window", "4GiB", "16", NULL },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char arg[3][64];
        char *argv[] = { arg[0], arg[1], arg[2] };
        struct config c;
        struct press_rules r;
        struct err e = { 0 };
        snprintf(arg[0], sizeof arg[0], "--kv-policy=%s", cases[i].policy);
        snprintf(arg[1], sizeof arg[1], "--kv-budget=%s", cases[i].budget);
        snprintf(arg[2], sizeof arg[2], "--kv-budget-max=%s", cases[i].ceiling);
        assert_int_equal(config_parse(&c, CONFIG_SERVE, 3, argv, &e), 0);
        int rc = press_rules_read(&r, &c, &e);
        config_free(&c);
        assert_int_equal(rc, cases[i].says != NULL ? ERR_INVALID : 0);
        if (rc < 0 && strstr(e.text, cases[i].says) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", e.text, cases[i].says);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_the_servers),
        cmocka_unit_test(fields_become_options),
        cmocka_unit_test(bad_ones_are_named),
        cmocka_unit_test(ceiling_holds),
        cmocka_unit_test(budgets_can_be_met),
        cmocka_unit_test(presets_are_profiles),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(ceiling_binds_the_silent),
        cmocka_unit_test(policies_are_those_that_may_be_asked_for),
    };
    return cmocka_run_group_tests_name("press options", tests, NULL, NULL);
}
