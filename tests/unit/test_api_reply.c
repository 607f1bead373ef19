/* Replies, streams, errors and the JSON writer: exact bytes where clients depend on them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "api/error.h"
#include "api/put.h"
#include "api/reply.h"

#define STR(s) ((struct api_str){ (s), sizeof(s) - 1 })

static void expect_str(const char *in, size_t n, const char *want)
{
    struct buf b;
    buf_init(&b, 4096);
    api_put_str(&b, in, n);
    assert_string_equal(buf_str(&b), want);
    buf_free(&b);
}

static void strings(void **state)
{
    (void)state;
    expect_str("", 0, "\"\"");
    expect_str("a\"b\\c\n\r\t\b\f\x01\x7f", 12, "\"a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\x7f\"");
    expect_str("a\0b", 3, "\"a\\u0000b\"");
    expect_str("h\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 10,
               "\"h\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"");
    /* The examples of the Unicode standard, table 3-8 and around it. */
    expect_str("\xc0\xaf", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");
    expect_str("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    expect_str("\xe2\x82x", 3, "\"\xef\xbf\xbdx\"");
    expect_str("\xf0\x9f\x98", 3, "\"\xef\xbf\xbd\"");
    expect_str("\xf4\x91\x92\x93", 4, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    expect_str("\x80z\xff", 3, "\"\xef\xbf\xbdz\xef\xbf\xbd\"");
}

static void numbers(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 4096);
    api_put_int(&b, INT64_MIN);
    PUT_RAW(&b, " ");
    api_put_int(&b, 0);
    PUT_RAW(&b, " ");
    api_put_num(&b, -0.5);
    PUT_RAW(&b, " ");
    api_put_num(&b, -INFINITY);
    PUT_RAW(&b, " ");
    api_put_num(&b, NAN);
    PUT_RAW(&b, " ");
    api_put_token(&b, "\xf0\x9f", 2);
    assert_string_equal(buf_str(&b),
                        "-9223372036854775808 0 -0.5 -9999.0 null \"bytes:\\\\xf0\\\\x9f\"");
    buf_free(&b);
}

static void expect_error(const struct api_error *e, int status, const char *json)
{
    struct buf b;
    buf_init(&b, 4096);
    api_error_write(e, &b);
    assert_int_equal(e->status, status);
    assert_string_equal(buf_str(&b), json);
    buf_free(&b);
}

static void errors(void **state)
{
    (void)state;
    struct api_error e;

    api_error_bad(&e, "n", "Too \"%s\".", "big");
    expect_error(&e, 400,
                 "{\"error\":{\"message\":\"Too \\\"big\\\".\",\"type\":\"invalid_request_error\","
                 "\"param\":\"n\",\"code\":null}}");
    api_error_context(&e, "messages", 5000, 0, (struct api_room){ 2048, 2048 });
    expect_error(&e, 400,
                 "{\"error\":{\"message\":\"This model's maximum context length is 2048 tokens. "
                 "However, your messages resulted in 5000 tokens. Please reduce the length of the "
                 "messages.\",\"type\":\"invalid_request_error\",\"param\":\"messages\",\"code\":"
                 "\"context_length_exceeded\",\"n_prompt_tokens\":5000,\"n_ctx\":2048}}");
    api_error_context_least(&e, "prompt", 5000, (struct api_room){ 2048, 2048 });
    assert_string_equal(e.message, "This model's maximum context length is 2048 tokens. However, "
                                   "your prompt resulted in at least 5000 tokens. Please reduce "
                                   "the length of the prompt.");
    assert_string_equal(e.code, "context_length_exceeded");
    assert_true(e.n_prompt == 5000 && e.n_ctx == 2048);
    api_error_context(&e, "messages", 500, 200, (struct api_room){ 608, 8192 });
    assert_string_equal(
        e.message, "This server's KV pool holds 608 tokens of a cache that stays whole, fewer "
                   "than the maximum context length of 8192 tokens; compression.kv or a larger "
                   "--kv-size makes room. However, you requested 700 tokens (500 in the "
                   "messages, 200 in the completion). Please reduce the length of the messages "
                   "or completion.");
    assert_string_equal(e.code, "context_length_exceeded");
    assert_true(e.n_prompt == 500 && e.n_ctx == 608);
    /* The longest numbers leave nothing out. */
    api_error_context(&e, "messages", INT64_MAX / 4, INT64_MAX / 4,
                      (struct api_room){ INT64_MAX - 1, INT64_MAX });
    assert_non_null(strstr(e.message, " makes room. However, you requested 4611686018427387902 "));
    assert_non_null(strstr(e.message, "of the messages or completion."));
    api_error_key(&e, true);
    expect_error(&e, 401,
                 "{\"error\":{\"message\":\"Incorrect API key provided.\",\"type\":"
                 "\"invalid_request_error\",\"param\":null,\"code\":\"invalid_api_key\"}}");
    api_error_model(&e, "gpt-9");
    assert_int_equal(e.status, 404);
    assert_string_equal(e.code, "model_not_found");
    api_error_busy(&e, "The queue is full.", 3);
    assert_int_equal(e.status, 429);
    assert_int_equal(e.retry_after_s, 3);
    struct err why = { .code = ERR_DEVICE, .text = "gone" };
    api_error_from(&e, &why, NULL);
    assert_int_equal(e.status, 503);
}

static struct api_head head(enum api_kind kind, bool usage)
{
    return (struct api_head){ .kind = kind,
                              .id = "x-1",
                              .model = "m",
                              .fingerprint = "fp",
                              .created = 7,
                              .include_usage = usage };
}

static void chat_stream(void **state)
{
    (void)state;
    struct api_head h = head(API_CHAT, true);
    struct api_usage u = { .n_prompt = 3, .n_completion = 2, .n_cached = 1 };
    struct api_stream s;
    struct buf b;

    assert_int_equal(api_stream_init(&s, &h), 0);
    buf_init(&b, 1 << 16);
    api_stream_role(&s, 0, &b);
    api_stream_text(&s, 0, "a\n", 2, NULL, &b);
    api_stream_finish(&s, 0, "stop", &b);
    api_stream_usage(&s, &h, &u, &b);
    api_stream_done(&b);
#define P                                                                                          \
    "data: {\"id\":\"x-1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\","    \
    "\"system_fingerprint\":\"fp\",\"choices\":["
    assert_string_equal(
        buf_str(&b),
        P
        "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},"
        "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n" //
        P
        "{\"index\":0,\"delta\":{\"content\":\"a\\n\"},\"logprobs\":null,\"finish_reason\":null}],"
        "\"usage\":null}\n\n" //
        P "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
        "\"usage\":null}\n\n" //
        P "],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5,"
        "\"prompt_tokens_details\":{\"cached_tokens\":1}}}\n\n"
        "data: [DONE]\n\n");
#undef P
    buf_free(&b);
    api_stream_free(&s);
}

static void completion_stream(void **state)
{
    (void)state;
    struct api_head h = head(API_COMPLETION, false);
    struct api_stream s;
    struct buf b;

    assert_int_equal(api_stream_init(&s, &h), 0);
    buf_init(&b, 1 << 16);
    api_stream_text(&s, 1, "a", 1, NULL, &b);
    api_stream_finish(&s, 1, "length", &b);
#define P                                                                                          \
    "data: {\"id\":\"x-1\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\","          \
    "\"system_fingerprint\":\"fp\",\"choices\":["
    assert_string_equal(
        buf_str(&b),
        P "{\"index\":1,\"text\":\"a\",\"logprobs\":null,\"finish_reason\":null}]}\n\n" //
        P "{\"index\":1,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n");
#undef P
    buf_free(&b);
    api_stream_free(&s);
}

static void logprobs_both_forms(void **state)
{
    (void)state;
    const struct api_token t1 = { .text = STR("h\xc3\xa9"), .no_logprob = true };
    const struct api_token t2 = { .text = STR("!"), .logprob = -0.25f };
    const struct api_token top[] = { { .text = STR("!"), .logprob = -0.25f },
                                     { .text = STR("!"), .logprob = -2 },
                                     { .text = STR("\xff"), .logprob = -INFINITY } };
    struct api_logprobs lp;
    struct buf b;

    buf_init(&b, 1 << 16);
    api_logprobs_init(&lp, API_COMPLETION, 1 << 16);
    api_logprobs_write(&lp, &b);
    assert_string_equal(buf_str(&b), "null");
    buf_clear(&b);
    api_logprobs_add(&lp, &t1, NULL, 0);
    api_logprobs_add(&lp, &t2, top, 3);
    api_logprobs_write(&lp, &b);
    assert_string_equal(buf_str(&b),
                        "{\"tokens\":[\"h\xc3\xa9\",\"!\"],\"token_logprobs\":[null,-0.25],"
                        "\"top_logprobs\":[null,{\"!\":-0.25,\"bytes:\\\\xff\":-9999.0}],"
                        "\"text_offset\":[0,2]}");
    api_logprobs_clear(&lp);
    buf_clear(&b);
    api_logprobs_add(&lp, &t2, NULL, 0);
    api_logprobs_write(&lp, &b);
    assert_string_equal(buf_str(&b), "{\"tokens\":[\"!\"],\"token_logprobs\":[-0.25],"
                                     "\"top_logprobs\":[{}],\"text_offset\":[3]}");
    api_logprobs_free(&lp);
    api_logprobs_init(&lp, API_CHAT, 1 << 16);
    buf_clear(&b);
    api_logprobs_add(&lp, &t2, top, 1);
    api_logprobs_write(&lp, &b);
    assert_string_equal(buf_str(&b),
                        "{\"content\":[{\"token\":\"!\",\"logprob\":-0.25,\"bytes\":[33],"
                        "\"top_logprobs\":[{\"token\":\"!\",\"logprob\":-0.25,\"bytes\":[33]}]}],"
                        "\"refusal\":null}");
    api_logprobs_free(&lp);
    buf_free(&b);
}

static void whole_reply(void **state)
{
    (void)state;
    struct api_head h = head(API_CHAT, false);
    struct api_choice c[] = { { .text = STR("yes"), .finish_reason = "stop" } };
    struct api_usage u = {
        .n_prompt = 1,
        .n_completion = 1,
        .kv = { .policy = "full", .bytes = 10, .full_bytes = 10 },
    };
    struct buf b;

    buf_init(&b, 1 << 16);
    api_reply_write(&h, c, 1, &u, &b);
    assert_string_equal(
        buf_str(&b),
        "{\"id\":\"x-1\",\"object\":\"chat.completion\",\"created\":7,\"model\":\"m\","
        "\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,\"message\":{\"role\":"
        "\"assistant\",\"content\":\"yes\",\"refusal\":null},\"logprobs\":null,"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,"
        "\"total_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":0},\"compression\":"
        "{\"kv\":{\"policy\":\"full\",\"bytes\":10,\"full_bytes\":10}}}}");
    buf_clear(&b);
    h.kind = API_COMPLETION;
    api_reply_write(&h, c, 1, &u, &b);
    assert_non_null(strstr(buf_str(&b), "\"object\":\"text_completion\""));
    assert_non_null(strstr(buf_str(&b), "{\"index\":0,\"text\":\"yes\",\"logprobs\":null,"));
    buf_free(&b);
}

static void pressed_usage(void **state)
{
    (void)state;
    struct api_head h = head(API_CHAT, true);
    struct api_usage u = { .kv = { .policy = "p",
                                   .budget = 64,
                                   .bytes = 10,
                                   .full_bytes = 40,
                                   .n_pressed = 2,
                                   .kept = 7,
                                   .merged = 3,
                                   .mass_min = 0.25,
                                   .mass_mean = 0.96875 } };
    struct api_stream s;
    struct buf b;

    buf_init(&b, 1 << 16);
    assert_int_equal(api_stream_init(&s, &h), 0);
    api_stream_usage(&s, &h, &u, &b);
#define KV                                                                                         \
    "\"compression\":{\"kv\":{\"policy\":\"p\",\"budget\":64,\"bytes\":10,\"full_bytes\":40,"      \
    "\"kept\":7,"                                                                                  \
    "\"merged\":3,\"mass_min\":0.25,\"mass_mean\":0.9688"
    assert_non_null(strstr(buf_str(&b), KV "}}}}\n\n"));
    buf_clear(&b);
    u.kv.raised = 128;
    u.kv.detail = STR("{\"slots\":[[1]]}");
    api_stream_usage(&s, &h, &u, &b);
    assert_non_null(strstr(buf_str(&b), KV ",\"raised\":128,\"detail\":{\"slots\":[[1]]}}}}}\n\n"));
#undef KV
    buf_free(&b);
    api_stream_free(&s);
}

static void detail_of_a_cache(void **state)
{
    (void)state;
    struct api_head h = head(API_CHAT, true);
    const int32_t slots[] = { 5, 16, 7, 8, 9, 10 };
    const float survival[] = { 0, 1, 0.5f, 0.0004f, 0.9996f, 1.0f / 3, 0.001f };
    struct api_detail d = {
        .n_layers = 3, .n_heads = 2, .n_prompt = 7, .slots = slots, .survival = survival
    };
    struct api_stream s;
    struct buf b;

    buf_init(&b, 1 << 16);
    assert_int_equal(api_stream_init(&s, &h), 0);
    api_stream_detail(&s, &h, &d, &b);
#define D                                                                                          \
    "\"choices\":[],\"compression\":{\"kv\":{\"detail\":{\"slots\":[[5,16],[7,8],[9,10]],"         \
    "\"survival\":[0,1,0.500,0,1,0.333,0.001]}}}"
    assert_non_null(strstr(buf_str(&b), D ",\"usage\":null}\n\n"));
    s.include_usage = false;
    buf_clear(&b);
    api_stream_detail(&s, &h, &d, &b);
    assert_non_null(strstr(buf_str(&b), D "}\n\n"));
#undef D
    buf_free(&b);
    api_stream_free(&s);
}

static void model_names_its_policies(void **state)
{
    (void)state;
    struct api_model m = { .id = "m", .kv_policies = "a, b-c, d" };
    struct buf b;
    buf_init(&b, 4096);
    api_model_write(&m, &b);
    assert_non_null(strstr(buf_str(&b), "\"kv_policies\":[\"a\",\"b-c\",\"d\"]}}"));
    buf_clear(&b);
    m.kv_policies = NULL;
    api_model_write(&m, &b);
    assert_non_null(strstr(buf_str(&b), "\"kv_policies\":[]}}"));
    buf_free(&b);
}

/* A reply that outgrows its ceiling is remembered as bad, not sent cut. */
static void ceilings_hold(void **state)
{
    (void)state;
    struct api_token t = { .text = STR("abcdef") };
    struct api_logprobs lp;
    struct buf b;

    api_logprobs_init(&lp, API_CHAT, 64);
    for (int i = 0; i < 10; i++)
        api_logprobs_add(&lp, &t, NULL, 0);
    buf_init(&b, 1 << 16);
    api_logprobs_write(&lp, &b);
    assert_int_equal(b.bad, ERR_LIMIT);
    buf_free(&b);
    api_logprobs_free(&lp);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings),
        cmocka_unit_test(numbers),
        cmocka_unit_test(errors),
        cmocka_unit_test(chat_stream),
        cmocka_unit_test(completion_stream),
        cmocka_unit_test(logprobs_both_forms),
        cmocka_unit_test(whole_reply),
        cmocka_unit_test(pressed_usage),
        cmocka_unit_test(detail_of_a_cache),
        cmocka_unit_test(model_names_its_policies),
        cmocka_unit_test(ceilings_hold),
    };
    return cmocka_run_group_tests_name("api reply", tests, NULL, NULL);
}
