/* Request bodies: what is accepted, what is refused, and which field is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/put.h"
#include "api/request.h"

static const struct api_limits limits = { .n_vocab = 1000 };

#define MSG "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

struct bad_case {
    const char *body, *param;
    const char *code; /* NULL: null */
};

static void expect_bad(enum api_kind kind, const struct bad_case *c, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct api_request r;
        struct api_error e;
        int rc = api_request_parse(&r, kind, c[i].body, strlen(c[i].body), &limits, &e);
        if (rc != ERR_INVALID)
            fail_msg("accepted: %s", c[i].body);
        assert_int_equal(e.status, 400);
        assert_string_equal(e.type, "invalid_request_error");
        if (strcmp(e.param, c[i].param) != 0)
            fail_msg("%s: param '%s', expected '%s' (%s)", c[i].body, e.param, c[i].param,
                     e.message);
        if (c[i].code)
            assert_string_equal(e.code, c[i].code);
        else
            assert_null(e.code);
        assert_true(e.message[0] != 0);
    }
}

static void parse(struct api_request *r, enum api_kind kind, const char *body)
{
    struct api_error e;
    if (api_request_parse(r, kind, body, strlen(body), &limits, &e) < 0)
        fail_msg("refused: %s: %s", body, e.message);
}

static void chat_refuses(void **state)
{
    (void)state;
    static const struct bad_case c[] = {
        { "", "", NULL },
        { "[]", "", NULL },
        { "{", "", NULL },
        { "{\"messages\":[],}", "", NULL },
        { "{" MSG "} x", "", NULL },
        { "{" MSG ",\"n\":1,\"n\":2}", "", NULL },
        { "{" MSG ",\"temperature\":1e400}", "", NULL },
        { "{" MSG ",\"x\":\"\\ud800\"}", "", NULL },
        { "{" MSG ",\"x\":\"\\u0000\"}", "", NULL },
        { "{" MSG ",\"x\":\"\xff\"}", "", NULL },
        { "{" MSG ",\"seed\":99999999999999999999}", "", NULL },
        { "{" MSG ",\"x\":NaN}", "", NULL },
        { "{}", "messages", NULL },
        { "{\"messages\":null}", "messages", NULL },
        { "{\"messages\":[]}", "messages", NULL },
        { "{\"messages\":\"hi\"}", "messages", NULL },
        { "{\"messages\":[1]}", "messages[0]", NULL },
        { "{\"messages\":[{\"content\":\"x\"}]}", "messages[0].role", NULL },
        { "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", "messages[0].role", NULL },
        { "{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content", NULL },
        { "{\"messages\":[{\"role\":\"assistant\",\"content\":null}]}", "messages[0].content",
          NULL },
        { "{\"messages\":[{\"role\":\"user\",\"content\":7}]}", "messages[0].content", NULL },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[3]}]}", "messages[0].content[0]", NULL },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
          "messages[0].content[0].text", NULL },
        { "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
          "{\"type\":\"image_url\"}]}]}",
          "messages[0].content[1].type", NULL },
        { "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"a\"}]}]}",
          "messages[0].tool_calls[0].function", NULL },
        { "{" MSG ",\"model\":3}", "model", NULL },
        { "{" MSG ",\"n\":0}", "n", NULL },
        { "{" MSG ",\"n\":129}", "n", NULL },
        { "{" MSG ",\"n\":1.5}", "n", NULL },
        { "{" MSG ",\"n\":\"1\"}", "n", NULL },
        { "{" MSG ",\"temperature\":-0.1}", "temperature", NULL },
        { "{" MSG ",\"temperature\":2.1}", "temperature", NULL },
        { "{" MSG ",\"temperature\":true}", "temperature", NULL },
        { "{" MSG ",\"top_p\":-0.01}", "top_p", NULL },
        { "{" MSG ",\"top_p\":1.01}", "top_p", NULL },
        { "{" MSG ",\"top_k\":-2}", "top_k", NULL },
        { "{" MSG ",\"min_p\":2}", "min_p", NULL },
        { "{" MSG ",\"presence_penalty\":3}", "presence_penalty", NULL },
        { "{" MSG ",\"frequency_penalty\":-3}", "frequency_penalty", NULL },
        { "{" MSG ",\"repetition_penalty\":0}", "repetition_penalty", NULL },
        { "{" MSG ",\"seed\":1.5}", "seed", NULL },
        { "{" MSG ",\"max_tokens\":0}", "max_tokens", NULL },
        { "{" MSG ",\"max_completion_tokens\":-1}", "max_completion_tokens", NULL },
        { "{" MSG ",\"stop\":[\"a\",\"\"]}", "stop[1]", NULL },
        { "{" MSG ",\"stop\":[1]}", "stop[0]", NULL },
        { "{" MSG ",\"stop\":{}}", "stop", NULL },
        { "{" MSG ",\"stop_token_ids\":[1000]}", "stop_token_ids[0]", NULL },
        { "{" MSG ",\"logit_bias\":[]}", "logit_bias", NULL },
        { "{" MSG ",\"logit_bias\":{\"5\":101}}", "logit_bias.5", NULL },
        { "{" MSG ",\"logit_bias\":{\"foo\":1}}", "logit_bias.foo", NULL },
        { "{" MSG ",\"logit_bias\":{\"1000\":1}}", "logit_bias.1000", NULL },
        { "{" MSG ",\"logit_bias\":{\"-1\":1}}", "logit_bias.-1", NULL },
        { "{" MSG ",\"logit_bias\":{\"7\":1,\"07\":1}}", "logit_bias.07", NULL },
        { "{" MSG ",\"logprobs\":1}", "logprobs", NULL },
        { "{" MSG ",\"top_logprobs\":3}", "top_logprobs", NULL },
        { "{" MSG ",\"logprobs\":true,\"top_logprobs\":21}", "top_logprobs", NULL },
        { "{" MSG ",\"stream\":\"yes\"}", "stream", NULL },
        { "{" MSG ",\"stream_options\":{}}", "stream_options", NULL },
        { "{" MSG ",\"stream\":true,\"stream_options\":{\"include_usage\":1}}",
          "stream_options.include_usage", NULL },
        { "{" MSG ",\"response_format\":{\"type\":\"json_object\"}}", "response_format.type",
          "unsupported_value" },
        { "{" MSG ",\"response_format\":{\"type\":\"xml\"}}", "response_format.type", NULL },
        { "{" MSG ",\"tools\":[{\"type\":\"function\"}]}", "tools[0].function", NULL },
        { "{" MSG ",\"tool_choice\":\"required\"}", "tool_choice", "unsupported_value" },
        { "{" MSG ",\"tool_choice\":\"maybe\"}", "tool_choice", NULL },
        { "{" MSG ",\"compression\":[]}", "compression", NULL },
        { "{" MSG ",\"compression\":{\"kv\":true}}", "compression.kv", NULL },
        { "{" MSG ",\"compression\":{\"experts\":{\"prune\":0.5}}}", "compression.experts.prune",
          "unsupported_value" },
        { "{" MSG ",\"compression\":{\"policy\":\"ems\"}}", "compression.policy", NULL },
        { "{" MSG ",\"compression\":{\"kv\":{\"budgett\":64}}}", "compression.kv.budgett", NULL },
        { "{" MSG ",\"compression\":{\"kv\":{\"x\":null}}}", "compression.kv.x", NULL },
        { "{" MSG ",\"compression\":{\"experts\":{\"keep\":1}}}", "compression.experts.keep",
          NULL },
    };
    expect_bad(API_CHAT, c, sizeof(c) / sizeof(c[0]));
}

/* Every field of "compression.kv" with values that it does not take. */
static void compression_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *key, *values; /* JSON values, separated by ; */
    } bad[] = {
        { "policy", "1;[];true" },
        { "preset", "0;{}" },
        { "merge", "false;2" },
        { "split", "0.5;[]" },
        { "budget", "0;15;-1;1.5;1.0;0.0;-0.5;1e300;1073741825;99999999999;true;[];\"\";\"x\";"
                    "\"15\";\"1.5\";\"4TiB\";\"4Mi\";"
                    "\"4MiBs\";\" 64\";\"-64\";\"0x40\";\"1e3\";\"inf\";\"0K\";\"1..2\"" },
        { "budget_max", "1;{};\"many\"" },
        { "mass_floor", "-0.1;1.1;\"0.5\"" },
        { "local", "-1;1.01;\"x\"" },
        { "phi", "-0.5;2;[]" },
        { "lambda", "0;-1;true" },
        { "sinks", "-1;1.5;\"4\";100000" },
        { "window", "0;-1;true" },
        { "tail", "0;-5;0.5" },
        { "pool", "-1;2000;[]" },
        { "queries", "0;513;\"x\"" },
        { "stride", "0;33;\"exact\"" },
        { "seed", "0.5;\"x\"" },
        { "protect_system", "0;\"yes\"" },
        { "recompute", "1;[]" },
        { "detail", "\"all\";{}" },
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char values[512], body[512], param[64], *rest = NULL;
        snprintf(values, sizeof(values), "%s", bad[i].values);
        for (char *v = strtok_r(values, ";", &rest); v; v = strtok_r(NULL, ";", &rest)) {
            snprintf(body, sizeof(body), "{" MSG ",\"compression\":{\"kv\":{\"%s\":%s}}}",
                     bad[i].key, v);
            snprintf(param, sizeof(param), "compression.kv.%s", bad[i].key);
            expect_bad(API_CHAT, &(struct bad_case){ body, param, NULL }, 1);
        }
    }
}

/* What was given, and a bound that a person would write. */
static void numbers_are_told(void **state)
{
    (void)state;
    static const struct {
        const char *field, *says;
    } c[] = {
        { "\"repetition_penalty\":0",
          "'repetition_penalty': decimal below minimum value. Expected a value > 0, but got 0." },
        { "\"repetition_penalty\":-2", "Expected a value > 0, but got -2." },
        { "\"temperature\":-1", "Expected a value >= 0, but got -1." },
        { "\"compression\":{\"kv\":{\"lambda\":0}}", "Expected a value > 0, but got 0." },
        { "\"compression\":{\"kv\":{\"budget\":1000000000000}}",
          "at most 1073741824 tokens a head, but got 1000000000000." },
        { "\"compression\":{\"kv\":{\"polcy\":\"ems\"}}",
          "no such field; there are: preset, policy, merge, split, budget, budget_max, seed, "
          "protect_system, recompute, detail, mass_floor, local, phi, lambda, sinks, window, tail, "
          "pool, queries, stride." },
    };
    for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        const struct api_limits lim = { .n_vocab = 10 };
        struct api_request r;
        struct api_error e;
        char body[256];
        snprintf(body, sizeof(body), "{" MSG ",%s}", c[i].field);
        assert_int_equal(api_request_parse(&r, API_CHAT, body, strlen(body), &lim, &e),
                         ERR_INVALID);
        if (strstr(e.message, c[i].says) == NULL)
            fail_msg("%s: %s", body, e.message);
    }
}

static void nul_is_told(void **state)
{
    (void)state;
    static const char *const body[] = { "{\"prompt\":\"a\\u0000b\"}", "{\"a\\u0000\":1}" };
    for (int i = 0; i < 2; i++) {
        struct api_request r;
        struct api_error e;
        assert_int_equal(
            api_request_parse(&r, API_COMPLETION, body[i], strlen(body[i]), &limits, &e),
            ERR_INVALID);
        assert_int_equal(e.status, 400);
        assert_non_null(strstr(e.message, "\\u0000 in a string (line 1, column "));
        assert_non_null(strstr(e.message, "without NUL characters"));
    }
}

static void completion_refuses(void **state)
{
    (void)state;
    static const struct bad_case c[] = {
        { "{}", "prompt", NULL },
        { "{\"prompt\":[]}", "prompt", NULL },
        { "{\"prompt\":5}", "prompt", NULL },
        { "{\"prompt\":[[]]}", "prompt[0]", NULL },
        { "{\"prompt\":[1,1000]}", "prompt[1]", NULL },
        { "{\"prompt\":[1,\"a\"]}", "prompt[1]", NULL },
        { "{\"prompt\":[\"a\",{}]}", "prompt[1]", NULL },
        { "{\"prompt\":[[1],[-2]]}", "prompt[1][0]", NULL },
        { "{\"prompt\":\"a\",\"logprobs\":21}", "logprobs", NULL },
        { "{\"prompt\":\"a\",\"logprobs\":true}", "logprobs", NULL },
        { "{\"prompt\":\"a\",\"max_tokens\":-1}", "max_tokens", NULL },
        { "{\"prompt\":\"a\",\"suffix\":\"b\"}", "suffix", "unsupported_value" },
        { "{\"prompt\":\"a\",\"best_of\":3}", "best_of", "unsupported_value" },
        { "{\"prompt\":[\"a\",\"b\"],\"n\":65}", "n", NULL },
        { "{\"prompt\":\"a\",\"echo\":\"yes\"}", "echo", NULL },
    };
    expect_bad(API_COMPLETION, c, sizeof(c) / sizeof(c[0]));
}

/* Asked for in the words of other servers; null is nothing asked, and what says so. */
static void constraints_are_refused(void **state)
{
    (void)state;
    static const char *const field[] = {
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "grammar",
        "json_schema",
        "functions",
        "function_call",
        "continue_final_message",
        "chat_template",
        "min_tokens",
        "include_stop_str_in_output",
        "prompt_logprobs",
    };
    for (size_t i = 0; i < sizeof(field) / sizeof(field[0]); i++) {
        struct api_request r;
        char chat[128], text[128];
        snprintf(chat, sizeof(chat), "{" MSG ",\"%s\":{}}", field[i]);
        snprintf(text, sizeof(text), "{\"prompt\":\"a\",\"%s\":\"x\"}", field[i]);
        expect_bad(API_CHAT, &(struct bad_case){ chat, field[i], "unsupported_value" }, 1);
        expect_bad(API_COMPLETION, &(struct bad_case){ text, field[i], "unsupported_value" }, 1);
        snprintf(chat, sizeof(chat), "{" MSG ",\"%s\":null}", field[i]);
        parse(&r, API_CHAT, chat);
        api_request_free(&r);
    }
    struct api_request r;
    parse(&r, API_CHAT,
          "{" MSG ",\"continue_final_message\":false,\"min_tokens\":0,"
          "\"include_stop_str_in_output\":false}");
    api_request_free(&r);
    expect_bad(API_CHAT,
               &(struct bad_case){ "{" MSG ",\"prompt_logprobs\":0}", "prompt_logprobs",
                                   "unsupported_value" },
               1);
}

static void depth_is_bounded(void **state)
{
    (void)state;
    char body[2048];
    struct api_request r;
    struct api_error e;

    for (int depth = API_MAX_DEPTH - 2; depth <= API_MAX_DEPTH + 1; depth++) {
        size_t n = 0;
        n += (size_t)snprintf(body, sizeof(body), "{" MSG ",\"x\":");
        for (int i = 0; i < depth; i++)
            body[n++] = '[';
        for (int i = 0; i < depth; i++)
            body[n++] = ']';
        body[n++] = '}';
        int rc = api_request_parse(&r, API_CHAT, body, n, &limits, &e);
        assert_int_equal(rc, depth + 1 <= API_MAX_DEPTH ? 0 : ERR_INVALID);
        if (rc == 0)
            api_request_free(&r);
    }
}

static void chat_defaults(void **state)
{
    (void)state;
    struct api_request r;
    parse(&r, API_CHAT,
          "{" MSG ",\"temperature\":null,\"stop\":null,\"tools\":null,\"n\":null,\"user\":5,"
          "\"no_such_field\":{\"a\":[1]},\"logit_bias\":{\"foo\":0}}");
    assert_null(r.model);
    assert_int_equal(r.n, 1);
    assert_false(r.stream);
    assert_true(r.add_generation_prompt);
    assert_null(r.tools);
    assert_true(r.sampling.temperature == 1 && r.sampling.top_p == 1);
    assert_int_equal(r.sampling.max_tokens, -1);
    assert_int_equal(r.sampling.logprobs, -1);
    assert_int_equal(r.sampling.n_bias, 0);
    assert_false(r.sampling.has_seed);
    api_request_free(&r);
}

static void chat_fields(void **state)
{
    (void)state;
    struct api_request r;
    parse(&r, API_CHAT,
          "{" MSG ",\"model\":\"m\",\"n\":2.0,\"temperature\":0,\"top_k\":-1,\"seed\":-5,"
          "\"max_tokens\":3,\"max_completion_tokens\":4,\"stop\":\"END\",\"stop_token_ids\":[7],"
          "\"logit_bias\":{\"50\":-100},\"logprobs\":true,\"top_logprobs\":2,\"stream\":true,"
          "\"stream_options\":{\"include_usage\":true,\"include_obfuscation\":false},"
          "\"ignore_eos\":true,\"compression\":{\"kv\":{\"policy\":\"window\",\"budget\":256}}}");
    assert_string_equal(r.model, "m");
    assert_int_equal(r.n, 2);
    assert_true(r.sampling.temperature == 0);
    assert_int_equal(r.sampling.top_k, 0);
    assert_true(r.sampling.has_seed && r.sampling.seed == -5);
    assert_int_equal(r.sampling.max_tokens, 4);
    assert_int_equal(r.sampling.n_stop, 1);
    assert_string_equal(r.sampling.stop[0].p, "END");
    assert_int_equal(r.sampling.stop_ids[0], 7);
    assert_int_equal(r.sampling.bias[0].id, 50);
    assert_true(r.sampling.bias[0].bias == -100);
    assert_int_equal(r.sampling.logprobs, 2);
    assert_true(r.stream && r.include_usage && r.sampling.ignore_eos);
    assert_string_equal(r.compression.policy, "window");
    assert_int_equal(r.compression.budget.tokens, 256);
    api_request_free(&r);
}

/* As far as OpenAI and vLLM go. */
static void ranges_are_wide(void **state)
{
    (void)state;
    struct api_request r;
    parse(&r, API_CHAT, "{" MSG ",\"n\":128,\"top_p\":0}");
    assert_int_equal(r.n, 128);
    assert_true((float)r.sampling.top_p > 0 && r.sampling.top_p < 1e-30);
    api_request_free(&r);
    parse(&r, API_CHAT, "{" MSG ",\"top_p\":1e-60}"); /* 0 as a float */
    assert_true((float)r.sampling.top_p > 0);
    api_request_free(&r);
    parse(&r, API_COMPLETION, "{\"prompt\":\"a\",\"n\":128,\"best_of\":128,\"logprobs\":20}");
    assert_int_equal(r.n, 128);
    assert_int_equal(r.sampling.logprobs, 20);
    api_request_free(&r);
}

static struct api_budget budget_of(const char *value)
{
    char body[256];
    struct api_request r;
    snprintf(body, sizeof(body), "{" MSG ",\"compression\":{\"kv\":{\"budget\":%s}}}", value);
    parse(&r, API_CHAT, body);
    struct api_budget b = r.compression.budget;
    api_request_free(&r);
    return b;
}

static void budgets_have_three_forms(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        struct api_budget want;
    } c[] = {
        { "null", { 0, 0, 0 } },
        { "16", { 16, 0, 0 } },
        { "512.0", { 512, 0, 0 } },
        { "1073741824", { 1 << 30, 0, 0 } },
        { "0.25", { 0, 0.25, 0 } },
        { "1e-3", { 0, 0.001, 0 } },
        { "\"64\"", { 64, 0, 0 } },
        { "\"0.5\"", { 0, 0.5, 0 } },
        { "\"512KiB\"", { 0, 0, 512 << 10 } },
        { "\"4MiB\"", { 0, 0, 4 << 20 } },
        { "\"1.5M\"", { 0, 0, 3 << 19 } },
        { "\"2GB\"", { 0, 0, 2LL << 30 } },
    };
    for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        struct api_budget got = budget_of(c[i].value);
        if (got.tokens != c[i].want.tokens || got.fraction != c[i].want.fraction ||
            got.bytes != c[i].want.bytes)
            fail_msg("%s: %d tokens, %g of the prompt, %lld bytes", c[i].value, got.tokens,
                     got.fraction, (long long)got.bytes);
    }
}

static void compression_fields(void **state)
{
    (void)state;
    struct api_request r;
    parse(&r, API_CHAT, "{" MSG ",\"compression\":{\"kv\":null,\"experts\":{}}}");
    const struct api_compression *c = &r.compression;
    assert_true(!c->preset && !c->policy && !c->merge && !c->split);
    assert_true(c->mass_floor == -1 && c->local == -1 && c->phi == -1 && c->lambda == -1);
    assert_true(c->sinks == -1 && c->window == -1 && c->tail == -1 && c->pool == -1);
    assert_true(c->queries == -1 && c->stride == -1 && c->seed == 0 && c->protect_system);
    assert_true(!c->recompute && !c->detail);
    api_request_free(&r);
    parse(
        &r, API_CHAT,
        "{" MSG ",\"compression\":{\"kv\":{\"preset\":\"p\",\"policy\":\"q\",\"merge\":\"m\","
        "\"split\":\"s\",\"budget_max\":\"1GiB\",\"mass_floor\":0.5,\"local\":0,\"phi\":1,"
        "\"lambda\":0.25,\"sinks\":0,\"window\":8,\"tail\":64,\"pool\":0,\"queries\":32,"
        "\"stride\":16,\"seed\":-7,\"protect_system\":false,\"recompute\":true,\"detail\":true}}}");
    assert_string_equal(c->preset, "p");
    assert_string_equal(c->policy, "q");
    assert_string_equal(c->merge, "m");
    assert_string_equal(c->split, "s");
    assert_int_equal(c->budget_max.bytes, 1 << 30);
    assert_true(c->mass_floor == 0.5 && c->local == 0 && c->phi == 1 && c->lambda == 0.25);
    assert_true(c->sinks == 0 && c->window == 8 && c->tail == 64 && c->pool == 0);
    assert_true(c->queries == 32 && c->stride == 16 && c->seed == -7 && !c->protect_system);
    assert_true(c->recompute && c->detail);
    api_request_free(&r);
}

static const char *member(const json_t *msg, const char *key)
{
    return json_string_value(json_object_get(msg, key));
}

static void messages_are_normalised(void **state)
{
    (void)state;
    struct api_request r;
    parse(&r, API_CHAT,
          "{\"messages\":[{\"role\":\"developer\",\"content\":\"be brief\"},"
          "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
          "{\"type\":\"text\",\"text\":\"b\"}]},"
          "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\",\"type\":"
          "\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"x\\\":3}\"}}]},"
          "{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"ok\"}],"
          "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}]}");
    assert_string_equal(member(json_array_get(r.messages, 0), "role"), "system");
    assert_string_equal(member(json_array_get(r.messages, 1), "content"), "a\nb");
    assert_string_equal(member(json_array_get(r.messages, 2), "content"), "");
    json_t *call = json_array_get(json_object_get(json_array_get(r.messages, 2), "tool_calls"), 0);
    json_t *args = json_object_get(json_object_get(call, "function"), "arguments");
    assert_int_equal(json_integer_value(json_object_get(args, "x")), 3);
    assert_non_null(r.tools);
    api_request_free(&r);
    parse(&r, API_CHAT,
          "{" MSG ",\"tool_choice\":\"none\",\"tools\":[{\"type\":\"function\",\"function\":"
          "{\"name\":\"f\"}}]}");
    assert_null(r.tools);
    api_request_free(&r);
}

/* As SDKs send an answer back that called nothing, and one that called what takes no arguments. */
static void empty_calls_go(void **state)
{
    static const char *const calls[] = { "null", "[]" };
    static const char *const args[] = { "\"arguments\":\"\"", "\"arguments\":\" \\n\"",
                                        "\"arguments\":null", "\"x\":1" };
    struct api_request r;
    char body[512];
    (void)state;
    for (int i = 0; i < 2; i++) {
        snprintf(body, sizeof body,
                 "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":%s,"
                 "\"refusal\":null,\"function_call\":null}]}",
                 calls[i]);
        parse(&r, API_CHAT, body);
        assert_int_equal(json_object_size(json_array_get(r.messages, 0)), 2);
        assert_string_equal(member(json_array_get(r.messages, 0), "content"), "a");
        api_request_free(&r);
    }
    for (int i = 0; i < 4; i++) {
        snprintf(body, sizeof body,
                 "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":"
                 "\"1\",\"function\":{\"name\":\"f\",%s}}]}]}",
                 args[i]);
        parse(&r, API_CHAT, body);
        json_t *call =
            json_array_get(json_object_get(json_array_get(r.messages, 0), "tool_calls"), 0);
        json_t *got = json_object_get(json_object_get(call, "function"), "arguments");
        assert_true(json_is_object(got) && json_object_size(got) == 0);
        api_request_free(&r);
    }
}

static void prompts_have_four_forms(void **state)
{
    (void)state;
    struct api_request r;

    parse(&r, API_COMPLETION, "{\"prompt\":\"\"}");
    assert_int_equal(r.n_prompts, 1);
    assert_string_equal(r.prompts[0].text.p, "");
    assert_int_equal(r.sampling.max_tokens, 16);
    api_request_free(&r);
    parse(&r, API_COMPLETION,
          "{\"prompt\":[\"a\",\"bc\"],\"echo\":true,\"max_tokens\":0,\"logprobs\":0}");
    assert_int_equal(r.n_prompts, 2);
    assert_int_equal(r.prompts[1].text.n, 2);
    assert_true(r.echo);
    assert_int_equal(r.sampling.max_tokens, 0);
    assert_int_equal(r.sampling.logprobs, 0);
    api_request_free(&r);
    parse(&r, API_COMPLETION, "{\"prompt\":[1,2,999]}");
    assert_int_equal(r.n_prompts, 1);
    assert_int_equal(r.prompts[0].n_ids, 3);
    assert_int_equal(r.prompts[0].ids[2], 999);
    api_request_free(&r);
    parse(&r, API_COMPLETION, "{\"prompt\":[[1],[2,3]],\"n\":8,\"best_of\":8}");
    assert_int_equal(r.n_prompts, 2);
    assert_int_equal(r.prompts[1].ids[1], 3);
    api_request_free(&r);
}

static void token_routes(void **state)
{
    (void)state;
    struct api_tokenize t;
    struct api_detokenize d;
    struct api_error e;
    const char *s = "{\"content\":\"hi\",\"add_special\":true,\"with_pieces\":true}";

    assert_int_equal(api_tokenize_parse(&t, s, strlen(s), &e), 0);
    assert_true(t.add_special && t.parse_special && t.with_pieces && !t.is_chat);
    assert_string_equal(t.text.p, "hi");
    api_tokenize_free(&t);
    s = "{\"prompt\":\"hi\"}";
    assert_int_equal(api_tokenize_parse(&t, s, strlen(s), &e), 0);
    assert_true(t.add_special);
    api_tokenize_free(&t);
    s = "{" MSG "}";
    assert_int_equal(api_tokenize_parse(&t, s, strlen(s), &e), 0);
    assert_true(t.is_chat);
    api_tokenize_free(&t);
    s = "{\"content\":[]}";
    assert_int_equal(api_tokenize_parse(&t, s, strlen(s), &e), ERR_INVALID);
    assert_string_equal(e.param, "content");
    s = "{\"content\":null,\"prompt\":\"hi\"," MSG "}";
    assert_int_equal(api_tokenize_parse(&t, s, strlen(s), &e), ERR_INVALID);
    assert_string_equal(e.param, "messages");
    assert_non_null(strstr(e.message, "'prompt'"));
    s = "{\"content\":\"\",\"prompt\":\"hi\"}";
    assert_int_equal(api_tokenize_parse(&t, s, strlen(s), &e), ERR_INVALID);
    assert_string_equal(e.param, "prompt");
    assert_non_null(strstr(e.message, "'content'"));
    s = "{\"add_special\":true}";
    assert_int_equal(api_tokenize_parse(&t, s, strlen(s), &e), ERR_INVALID);
    assert_string_equal(e.param, "content");
    s = "{\"tokens\":[5,6]}";
    assert_int_equal(api_detokenize_parse(&d, s, strlen(s), &limits, &e), 0);
    assert_int_equal(d.n_ids, 2);
    api_detokenize_free(&d);
    s = "{\"tokens\":[5,6000]}";
    assert_int_equal(api_detokenize_parse(&d, s, strlen(s), &limits, &e), ERR_INVALID);
    assert_string_equal(e.param, "tokens[1]");
}

/* Every allocation of ours fails once: an error or a good parse, never a crash or a leak. */
static void memory_may_run_out(void **state)
{
    (void)state;
    const char *s = "{\"prompt\":[[1],[2,3]],\"stop\":[\"a\"],\"logit_bias\":{\"3\":1}}";
    struct mem_stats before, after;

    mem_stats(&before);
    for (uint64_t n = 1; n < 20; n++) {
        struct api_request r;
        struct api_error e;
        mem_fail_at(n);
        int rc = api_request_parse(&r, API_COMPLETION, s, strlen(s), &limits, &e);
        mem_fail_at(0);
        if (rc == 0)
            api_request_free(&r);
        else
            assert_int_equal(e.status, 500);
    }
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chat_refuses),
        cmocka_unit_test(compression_refuses),
        cmocka_unit_test(numbers_are_told),
        cmocka_unit_test(completion_refuses),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(chat_defaults),
        cmocka_unit_test(ranges_are_wide),
        cmocka_unit_test(constraints_are_refused),
        cmocka_unit_test(nul_is_told),
        cmocka_unit_test(chat_fields),
        cmocka_unit_test(budgets_have_three_forms),
        cmocka_unit_test(compression_fields),
        cmocka_unit_test(messages_are_normalised),
        cmocka_unit_test(empty_calls_go),
        cmocka_unit_test(prompts_have_four_forms),
        cmocka_unit_test(token_routes),
        cmocka_unit_test(memory_may_run_out),
    };
    return cmocka_run_group_tests_name("api parse", tests, NULL, NULL);
}
