/* The option table: the command line, the config file, and what is generated from it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/config.h"

static int parse(struct config *c, struct err *e, int argc, ...)
{
    char *argv[16];
    va_list ap;
    va_start(ap, argc);
    for (int i = 0; i < argc; i++)
        argv[i] = va_arg(ap, char *);
    va_end(ap);
    return config_parse(c, CONFIG_SERVE, argc, argv, e);
}

static void takes_defaults_and_words(void **state)
{
    struct config c;
    struct err e;
    (void)state;
    assert_int_equal(parse(&c, &e, 4, "model.gguf", "--port", "9000", "--kv-size=1.5G"), 0);
    assert_string_equal(c.word[0], "model.gguf");
    assert_int_equal(c.port, 9000);
    assert_int_equal(c.kv_size, 3LL << 29);
    assert_int_equal(c.max_seqs, 64);
    assert_int_equal(c.kv_samples, 4);
    assert_string_equal(c.kv_policy, "full");
    assert_true(c.prefix_cache);
    config_free(&c);
    assert_int_equal(parse(&c, &e, 1, "--no-prefix-cache"), 0);
    assert_false(c.prefix_cache);
    config_free(&c);
}

static void says_what_is_wrong(void **state)
{
    static const struct {
        const char *arg, *says;
    } bad[] = {
        { "--port=70000", "port: \"70000\"" },
        { "--port=1.5", "whole number" },
        { "--port=x", "whole number" },
        { "--weights=q3", "not one of: auto f32" },
        { "--nothing=1", "no option --nothing" },
        { "--port", "--port needs a value" },
        { "--kv-size=2X", "a size" },
        { "--kv-samples=3", "not one of: 0 1 2 4 8" },
        { "--kv-mass-floor=1.5", "a number from 0 to 1" },
        { "--prefix-cache=maybe", "neither" },
        { "--no-port", "no option --no-port" },
        { "--chunks=3", "serve has no option \"chunks\"; these have: eval ppl, eval kl" },
        { "--config=/nonexistent/x.yaml", "/nonexistent/x.yaml" },
        { "--config", "--config needs a value" },
        { "--config=", "--config needs a value" },
        { "-p", "no option -p here" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct config c;
        struct err e = { 0 };
        assert_true(parse(&c, &e, 1, bad[i].arg) < 0);
        if (strstr(e.text, bad[i].says) == NULL)
            fail_msg("%s: \"%s\" does not say \"%s\"", bad[i].arg, e.text, bad[i].says);
        config_free(&c);
    }
    struct config c;
    struct err e = { 0 };
    assert_true(parse(&c, &e, 3, "--config", "configs/wring.yaml", "--config=b.yaml") < 0);
    assert_string_equal(e.text, "--config is given twice: configs/wring.yaml and b.yaml");
    config_free(&c);
}

static void reads_yaml(void **state)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        { "port: [1]", "line 1: \"option: value\"" },
        { "a: 1", "line 1: there is no option \"a\"" },
        { "host: x\nport: abc\n", "line 2: port" },
        { "- 1", "a mapping" },
        { "port: {", "not YAML" },
        { "port: 1\nhost: localhost\nport: 2\n", "line 3: port is there twice" },
        { "port: 1\n---\napi-key: a\n", "line 3: the file has more than one document" },
        { "port: 1\n---\n[", "not YAML" },
    };
    struct config c;
    struct err e = { 0 };
    (void)state;
    assert_int_equal(parse(&c, &e, 0), 0);
    const char *good = "port: 81\nprefix-cache: no\nkv-size: 2G\nalias: \"my model\"\n";
    assert_int_equal(config_read(&c, CONFIG_SERVE, good, strlen(good), &e), 0);
    assert_int_equal(c.port, 81);
    assert_false(c.prefix_cache);
    assert_string_equal(c.alias, "my model");
    const char *nulls = "port:\nalias: null\nhost: ~\napi-key: Null\nkv-size: NULL\nlog-format: \n";
    assert_int_equal(config_read(&c, CONFIG_SERVE, nulls, strlen(nulls), &e), 0);
    assert_int_equal(c.port, 81);
    assert_string_equal(c.alias, "my model");
    assert_string_equal(c.host, "127.0.0.1");
    assert_string_equal(c.api_key, "");
    assert_string_equal(c.log_format, "logfmt");
    const char *quoted = "api-key: \"null\"\nalias: ''\n";
    assert_int_equal(config_read(&c, CONFIG_SERVE, quoted, strlen(quoted), &e), 0);
    assert_string_equal(c.api_key, "null");
    assert_string_equal(c.alias, "");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_true(config_read(&c, CONFIG_SERVE, bad[i].text, strlen(bad[i].text), &e) < 0);
        if (strstr(e.text, bad[i].says) == NULL)
            fail_msg("\"%s\": \"%s\" does not say \"%s\"", bad[i].text, e.text, bad[i].says);
    }
    config_free(&c);
}

/* An option that only other commands read is named, with the file, its line, and the commands that have it. */
static void a_file_belongs_to_a_command(void **state)
{
    static const char text[] = "threads: 2\ntemperature: 0\n";
    char path[512], word[528], says[640];
    char *argv[] = { word };
    const char *tmp = getenv("TMPDIR");
    struct config c;
    struct err e = { 0 };
    (void)state;
    snprintf(path, sizeof path, "%s/wring-config-%d.yaml", tmp != NULL ? tmp : "/tmp", getpid());
    snprintf(word, sizeof word, "--config=%s", path);
    snprintf(says, sizeof says, "%s: line 2: serve has no option \"temperature\"; these have: chat",
             path);
    assert_int_equal(file_write_atomic(path, text, strlen(text), &e), 0);
    assert_int_equal(config_parse(&c, CONFIG_SERVE, 1, argv, &e), ERR_INVALID);
    assert_string_equal(e.text, says);
    config_free(&c);
    assert_int_equal(config_parse(&c, CONFIG_CHAT, 1, argv, &e), 0);
    assert_true(c.temperature == 0);
    config_free(&c);
    assert_int_equal(unlink(path), 0);
    static const char kv[] = "kv-narrow: same\n";
    assert_int_equal(config_parse(&c, CONFIG_CHAT, 0, NULL, &e), 0);
    assert_int_equal(config_read(&c, CONFIG_CHAT, kv, strlen(kv), &e), ERR_INVALID);
    assert_string_equal(e.text, "line 1: chat has no option \"kv-narrow\"; these have: serve, "
                                "bench --kv, eval kv");
    config_free(&c);
}

/* What would be read by nobody is not taken, and it is said who reads it. */
static void a_measurement_has_its_own_options(void **state)
{
    static const struct {
        enum config_command command;
        const char *word, *says;
    } bad[] = {
        { CONFIG_BENCH_KV, "--prompts=3",
          "bench --kv has no option \"prompts\"; these have: bench without --kv" },
        { CONFIG_BENCH_SPEED, "--policies=ems",
          "bench without --kv has no option \"policies\"; these have: bench --kv, eval kv" },
        { CONFIG_EVAL_KL, "--seed=3",
          "eval kl has no option \"seed\"; these have: eval tasks, eval kv" },
        { CONFIG_EVAL_KV, "--chunks=3",
          "eval kv has no option \"chunks\"; these have: eval ppl, eval kl" },
        { CONFIG_SERVE, "--json",
          "serve has no option \"json\"; these have: bench, eval, quantize" },
        { CONFIG_SERVE, "--no-json",
          "serve has no option \"json\"; these have: bench, eval, quantize" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct config c;
        struct err e;
        char *argv[] = { (char *)(uintptr_t)bad[i].word };
        assert_int_equal(config_parse(&c, bad[i].command, 1, argv, &e), ERR_INVALID);
        assert_string_equal(e.text, bad[i].says);
        config_free(&c);
    }
    struct config c;
    struct err e;
    char *argv[] = { (char *)(uintptr_t) "--chunks=3", (char *)(uintptr_t) "--tasks=copy" };
    assert_int_equal(config_parse(&c, CONFIG_EVAL, 2, argv, &e), 0);
    assert_int_equal(c.chunks, 3);
    assert_string_equal(c.tasks, "copy");
    config_free(&c);
    char *once[] = { (char *)(uintptr_t) "--config=/dev/null" };
    assert_int_equal(config_parse(&c, CONFIG_SERVE, 1, once, &e), 0);
    config_free(&c);
    assert_int_equal(config_parse(&c, CONFIG_BENCH, 1, once, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "/dev/null is read twice"));
    config_free(&c);
}

static void help_shows_the_file(void **state)
{
    static const enum config_command all[] = { CONFIG_SERVE,    CONFIG_CHAT,       CONFIG_BENCH,
                                               CONFIG_BENCH_KV, CONFIG_EVAL,       CONFIG_EVAL_PPL,
                                               CONFIG_EVAL_KL,  CONFIG_EVAL_TASKS, CONFIG_EVAL_KV,
                                               CONFIG_QUANTIZE };
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct buf b;
        buf_init(&b, 1 << 20);
        assert_int_equal(config_help(all[i], &b), 0);
        assert_non_null(strstr(buf_str(&b), "--config FILE"));
        buf_free(&b);
    }
}

/* The sample has an empty key: it must not open what the environment closes. Nor must an empty variable. */
static void the_environment_goes_over_the_file(void **state)
{
    static const char file[] = "--config=configs/wring.yaml";
    struct config c;
    struct err e;
    (void)state;
    assert_int_equal(setenv("WRING_API_KEY", "secret", 1), 0);
    assert_int_equal(parse(&c, &e, 1, file), 0);
    assert_string_equal(c.api_key, "secret");
    config_free(&c);
    assert_int_equal(parse(&c, &e, 2, file, "--api-key=other"), 0);
    assert_string_equal(c.api_key, "other");
    config_free(&c);
    static const char keyed[] = "api-key: filed\n";
    const char *tmp = getenv("TMPDIR");
    char path[512], word[528];
    snprintf(path, sizeof path, "%s/wring-config-%d.yaml", tmp != NULL ? tmp : "/tmp", getpid());
    snprintf(word, sizeof word, "--config=%s", path);
    assert_int_equal(file_write_atomic(path, keyed, strlen(keyed), &e), 0);
    assert_int_equal(setenv("WRING_API_KEY", "", 1), 0);
    assert_int_equal(parse(&c, &e, 1, word), 0);
    assert_string_equal(c.api_key, "filed");
    config_free(&c);
    assert_int_equal(unsetenv("WRING_API_KEY"), 0);
    assert_int_equal(unlink(path), 0);
}

/* The file in configs/ and the table in the README come from the option table: `wring sample-config`, `wring options`. */
static void is_what_the_documents_show(void **state)
{
    struct buf made;
    struct buf file;
    struct config c;
    struct err e;
    (void)state;
    buf_init(&made, 1 << 20);
    buf_init(&file, 1 << 20);
    assert_int_equal(config_sample(&made), 0);
    assert_int_equal(buf_read_file(&file, "configs/wring.yaml", &e), 0);
    assert_string_equal(buf_str(&made), buf_str(&file));
    assert_int_equal(parse(&c, &e, 1, "--config=configs/wring.yaml"), 0);
    config_free(&c);
    buf_clear(&made);
    buf_clear(&file);
    assert_int_equal(config_markdown(&made), 0);
    assert_int_equal(buf_read_file(&file, "README.md", &e), 0);
    assert_non_null(strstr(buf_str(&file), buf_str(&made)));
    buf_free(&made);
    buf_free(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_defaults_and_words),
        cmocka_unit_test(says_what_is_wrong),
        cmocka_unit_test(reads_yaml),
        cmocka_unit_test(a_file_belongs_to_a_command),
        cmocka_unit_test(a_measurement_has_its_own_options),
        cmocka_unit_test(help_shows_the_file),
        cmocka_unit_test(the_environment_goes_over_the_file),
        cmocka_unit_test(is_what_the_documents_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
