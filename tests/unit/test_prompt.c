/* What a policy is told of a chat prompt: where the question ends and how far the system message reaches, in tokens. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/http_internal.h"

/* ChatML, trimmed as many templates do; a system message of its own where the request has none. */
static const char chatml[] =
    "{% if messages[0].role != 'system' %}<|system|>\nBe kind.\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}";
static const char bare[] = "{% for m in messages %}{{ m.content }}{% endfor %}";

static struct model model;
static struct http front;

static int open_tokenizer(void **state)
{
    struct err e;
    (void)state;
    front.model = &model;
    return tok_open_llama2c(&model.tok, "tests/golden/models/tok512.bin", 512, &e);
}

static int close_tokenizer(void **state)
{
    (void)state;
    tok_close(model.tok);
    return 0;
}

/* Tokens and marks of a chat request; ids are the caller's. */
static int32_t *marks_of(const char *template, const char *messages, struct prompt_marks *m, int *n)
{
    const struct api_limits lim = { .n_vocab = 512 };
    struct api_request req;
    struct api_error e = { .status = 0 };
    char body[4096];
    int32_t *ids = NULL;

    assert_int_equal(tmpl_open(&model.tmpl, template, strlen(template), NULL), 0);
    snprintf(body, sizeof body, "{\"messages\":[%s]}", messages);
    *m = (struct prompt_marks){ 0 };
    if (api_request_parse(&req, API_CHAT, body, strlen(body), &lim, &e) < 0 ||
        prompt_tokens(&front, &req, 0, INT_MAX, &ids, n, m, &e) < 0)
        fail_msg("%s: %s", body, e.message);
    api_request_free(&req);
    tmpl_close(model.tmpl);
    model.tmpl = NULL;
    return ids;
}

static void check(const char *template, const char *messages, const char *question,
                  const char *system)
{
    struct prompt_marks m;
    struct buf text;
    int n;
    int32_t *ids = marks_of(template, messages, &m, &n);

    buf_init(&text, 1 << 16);
    assert_true(m.question0 >= 0 && m.question0 <= m.question1 && m.question1 <= n);
    assert_true(m.question1 - m.question0 <= KV_WINDOW_QUERIES && m.system <= n);
    for (int i = m.question0; i < m.question1; i++)
        assert_int_equal(buf_adds(&text, tok_text(model.tok, ids[i])), 0);
    if (strcmp(buf_str(&text), question) != 0)
        fail_msg("%s: the question is \"%s\"", messages, buf_str(&text));
    buf_clear(&text);
    for (int i = 0; i < m.system; i++)
        assert_int_equal(buf_adds(&text, tok_text(model.tok, ids[i])), 0);
    if (strcmp(buf_str(&text), system) != 0)
        fail_msg("%s: what is protected is \"%s\"", messages, buf_str(&text));
    buf_free(&text);
    mem_free(ids);
}

#define SYSTEM(text) "{\"role\":\"system\",\"content\":\"" text "\"}"
#define USER(text)   "{\"role\":\"user\",\"content\":\"" text "\"}"
#define ANSWER(text) "{\"role\":\"assistant\",\"content\":\"" text "\"}"

static void finds_question_and_system(void **state)
{
    (void)state;
    check(chatml, USER("Who are you?"), "Who are you?", "");
    check(chatml, USER("  Who are you?\\n\\n"), "Who are you?", "");
    check(chatml, SYSTEM("Be brief.") "," USER("Who?"), "Who?", " <|system|>\nBe brief.");
    check(chatml, "{\"role\":\"developer\",\"content\":\"Be brief.\"}," USER("Who?"), "Who?",
          " <|system|>\nBe brief.");
    /* The last user message, although its text stands in others too. */
    check(chatml, SYSTEM("a") "," USER("b") "," ANSWER("a b c") "," USER("b"), "b",
          " <|system|>\na");
    check(chatml, USER("one") "," ANSWER("two") "," USER("three") "," ANSWER("one three"), "three",
          "");
    /* Words of the template are nobody's question. */
    check(chatml, USER("kind"), "kind", "");
    check(chatml, USER("user"), "user", "");
    /* A system message further back is not the leading one. */
    check(chatml, USER("x") "," SYSTEM("y") "," USER("z"), "z", "");
    /* Blanks only: no question. */
    check(chatml, USER(" "), "", "");
}

/* Requests with tools are written by the template for them, where there is one. */
static void tools_have_their_template(void **state)
{
    static const char tool[] = "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}";
    const struct api_limits lim = { .n_vocab = 512 };
    (void)state;
    assert_int_equal(tmpl_open(&model.tmpl, "plain", 5, NULL), 0);
    for (int i = 0; i < 4; i++) { /* i & 1: with tools; i & 2: the model has the template */
        struct api_request req;
        struct api_error e = { .status = 0 };
        struct prompt_marks m = { 0 };
        char body[256];
        int32_t *ids = NULL;
        int n;
        snprintf(body, sizeof body, "{\"messages\":[" USER("a") "],\"tools\":[%s]}",
                 i & 1 ? tool : "");
        if (i == 2)
            assert_int_equal(tmpl_open(&model.tool_tmpl, "a much longer one", 17, NULL), 0);
        assert_int_equal(api_request_parse(&req, API_CHAT, body, strlen(body), &lim, &e), 0);
        assert_int_equal(prompt_tokens(&front, &req, 0, INT_MAX, &ids, &n, &m, &e), 0);
        struct buf text;
        buf_init(&text, 256);
        assert_int_equal(tok_decode(model.tok, ids, n, true, &text), 0);
        assert_string_equal(buf_str(&text), i == 3 ? "a much longer one" : "plain");
        buf_free(&text);
        api_request_free(&req);
        mem_free(ids);
    }
    tmpl_close(model.tool_tmpl);
    tmpl_close(model.tmpl);
    model.tool_tmpl = model.tmpl = NULL;
}

static void long_questions_are_cut(void **state)
{
    struct prompt_marks m;
    int n;
    (void)state;
    int32_t *ids = marks_of(
        chatml,
        USER("Once upon a time there was a little girl who went to the park with her big red ball "
             "and her mum, and she saw a dog that was so happy that it ran and ran"),
        &m, &n);
    assert_int_equal(m.question1 - m.question0, KV_WINDOW_QUERIES);
    mem_free(ids);
}

/* Without any words of a template, messages run into each other. */
static void lives_without_a_border(void **state)
{
    (void)state;
    check(bare, SYSTEM("Be brief. ") "," USER("Who?"), "Who?", " Be brief.");
}

/* To count, no token at all is a fine answer; to go on from, it is none. */
static void nothing_has_no_tokens(void **state)
{
    static const char *const bodies[] = { "{\"content\":\"\"}",
                                          "{\"prompt\":\"\",\"add_special_tokens\":false}",
                                          "{\"messages\":[" USER("a") "]}" };
    static const char empty[] = "{# says nothing #}";
    struct api_error e;
    (void)state;
    assert_int_equal(tmpl_open(&model.tmpl, empty, strlen(empty), NULL), 0);
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        struct api_tokenize t;
        int32_t *ids = NULL;
        int n = -1;
        assert_int_equal(api_tokenize_parse(&t, bodies[i], strlen(bodies[i]), &e), 0);
        assert_int_equal(prompt_tokenize(&front, &t, &ids, &n, &e), 0);
        assert_int_equal(n, 0);
        mem_free(ids);
        if (t.is_chat) {
            assert_true(prompt_tokens(&front, &t.chat, 0, INT_MAX, &ids, &n, NULL, &e) < 0);
            assert_string_equal(e.param, "messages");
        } else {
            assert_string_equal(t.param, i == 0 ? "content" : "prompt");
        }
        api_tokenize_free(&t);
    }
    tmpl_close(model.tmpl);
    model.tmpl = NULL;
}

/* Every allocation fails once: no crash, no leak, and the marks or an error. */
static void memory_may_run_out(void **state)
{
    const struct api_limits lim = { .n_vocab = 512 };
    static const char body[] = "{\"messages\":[" SYSTEM("a") "," USER("b") "]}";
    struct mem_stats before, after;
    (void)state;
    assert_int_equal(tmpl_open(&model.tmpl, chatml, strlen(chatml), NULL), 0);
    mem_stats(&before);
    int failures = 0, rc = -1;
    for (uint64_t at = 1; at < 200; at++) {
        struct api_request req;
        struct api_error e;
        struct prompt_marks m = { 0 };
        int32_t *ids = NULL;
        int n = 0;
        assert_int_equal(api_request_parse(&req, API_CHAT, body, strlen(body), &lim, &e), 0);
        mem_fail_at(at);
        rc = prompt_tokens(&front, &req, 0, INT_MAX, &ids, &n, &m, &e);
        mem_fail_at(0);
        failures += rc < 0;
        assert_true(rc < 0 || (m.question1 > m.question0 && m.system > 0));
        mem_free(ids);
        api_request_free(&req);
    }
    assert_true(failures > 3 && rc == 0); /* in the end there were enough */
    mem_stats(&after);
    assert_int_equal(before.blocks, after.blocks);
    tmpl_close(model.tmpl);
    model.tmpl = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_question_and_system), cmocka_unit_test(tools_have_their_template),
        cmocka_unit_test(long_questions_are_cut),    cmocka_unit_test(lives_without_a_border),
        cmocka_unit_test(nothing_has_no_tokens),     cmocka_unit_test(memory_may_run_out),
    };
    return cmocka_run_group_tests_name("prompt", tests, open_tokenizer, close_tokenizer);
}
