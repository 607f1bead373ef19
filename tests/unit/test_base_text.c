/* Errors, tables, log lines and progress: what a person or a program reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/base/buf.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/base/progress.h"
#include "server/base/table.h"
#include "server/cli/cli.h"

/* stderr goes to a file between these two. */
static FILE *caught;
static int real_stderr;

static void catch_start(void)
{
    caught = tmpfile();
    assert_non_null(caught);
    fflush(stderr);
    real_stderr = dup(STDERR_FILENO);
    dup2(fileno(caught), STDERR_FILENO);
}

static const char *catch_end(void)
{
    static char text[65536];
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    rewind(caught);
    size_t n = fread(text, 1, sizeof text - 1, caught);
    text[n] = 0;
    fclose(caught);
    return text;
}

static void test_err(void **state)
{
    (void)state;
    struct err e = { 0 };
    assert_string_equal(err_name(0), "ok");
    assert_string_equal(err_name(ERR_NOMEM), "out_of_memory");
    assert_string_equal(err_name(ERR_DEVICE), "device");
    assert_string_equal(err_name(ERR_DEVICE + 1), "unknown");
    assert_string_equal(err_name(-10000), "unknown");
    assert_string_equal(err_name(5), "unknown");
    assert_int_equal(err_set(&e, ERR_FORMAT, "tensor %d is short", 3), ERR_FORMAT);
    assert_string_equal(e.text, "tensor 3 is short");
    assert_int_equal(err_prefix(&e, "%s", "a.gguf"), ERR_FORMAT);
    assert_string_equal(e.text, "a.gguf: tensor 3 is short");
    assert_int_equal(err_set(NULL, ERR_IO, "x"), ERR_IO);
    assert_int_equal(err_prefix(NULL, "x"), ERR_INVALID);
    errno = ENOENT;
    assert_int_equal(err_errno(&e, ERR_IO, "cannot open %s", "f"), ERR_IO);
    assert_string_equal(e.text, "cannot open f: No such file or directory");
    for (int i = 0; i < 100; i++)
        err_prefix(&e, "%0*d", 40, i); /* far more than fits */
    assert_true(strlen(e.text) < sizeof e.text);
    assert_int_equal(e.code, ERR_IO);
}

static void test_log_quote(void **state)
{
    (void)state;
    char out[64];
    assert_string_equal(LOG_STR("plain"), "\"plain\"");
    assert_string_equal(LOG_STR(""), "\"\"");
    assert_string_equal(LOG_STR("a \"b\" \\ \n"), "\"a \\\"b\\\" \\\\ \\u000a\"");
    /* Whatever is cut stays a JSON string of whole code points, and says so. */
    for (int lead = 0; lead < 12; lead++) {
        static const char *const unit[] = { "x", "\xC3\xA9", "\xF0\x9F\x8D\x8B", "\n", "\"" };
        for (int u = 0; u < 5; u++) {
            struct buf b;
            buf_init(&b, 4096);
            for (int i = 0; i < lead; i++)
                buf_addc(&b, 'a');
            for (int i = 0; i < 100; i++)
                buf_adds(&b, unit[u]);
            log_quote(out, sizeof out, buf_str(&b));
            assert_true(strlen(out) < sizeof out);
            assert_string_equal(out + strlen(out) - 4, "...\"");
            json_t *v = json_loads(out, JSON_DECODE_ANY, NULL);
            assert_non_null(v);
            json_decref(v);
            buf_free(&b);
        }
    }
}

static void test_log_line(void **state)
{
    (void)state;
    catch_start();
    LOG(I, "listening", "addr=%s port=%d", "127.0.0.1", 8080);
    LOG(D, "hidden", "x=1");
    LOG(W, "bare", "%s", "");
    const char *text = catch_end();
    assert_non_null(strstr(text, " level=info event=listening addr=127.0.0.1 port=8080\n"));
    assert_non_null(strstr(text, " level=warn event=bare\n"));
    assert_null(strstr(text, "hidden"));
    assert_int_equal(strncmp(text, "ts=20", 5), 0);
}

static json_t *logged(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static json_t *logged(const char *fmt, ...)
{
    char pairs[8192];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(pairs, sizeof pairs, fmt, ap);
    va_end(ap);
    catch_start();
    log_line(LOG_I, "e", "%s", pairs);
    const char *text = catch_end();
    assert_int_equal(text[strlen(text) - 1], '\n');
    json_error_t why;
    json_t *v = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    if (v == NULL)
        fail_msg("not JSON: %s: %s", why.text, text);
    return v;
}

static void test_log_json(void **state)
{
    (void)state;
    struct log_config c = { .level = LOG_I, .json = true };
    log_setup(&c);
    json_t *v = logged("n=12 f=-1.5e3 v=007 s=a.b q=%s t=1. u=- e=", LOG_STR("a \"b\" = c"));
    assert_int_equal(json_integer_value(json_object_get(v, "n")), 12);
    assert_true(json_real_value(json_object_get(v, "f")) == -1500);
    assert_string_equal(json_string_value(json_object_get(v, "v")), "007");
    assert_string_equal(json_string_value(json_object_get(v, "s")), "a.b");
    assert_string_equal(json_string_value(json_object_get(v, "q")), "a \"b\" = c");
    assert_string_equal(json_string_value(json_object_get(v, "t")), "1.");
    assert_string_equal(json_string_value(json_object_get(v, "u")), "-");
    assert_string_equal(json_string_value(json_object_get(v, "e")), "");
    json_decref(v);
    /* Records that do not fit are cut, and stay JSON. */
    for (int n = 1900; n < 2100; n++) {
        char *long_text = malloc((size_t)n + 1);
        assert_non_null(long_text);
        memset(long_text, 'x', (size_t)n);
        long_text[n] = 0;
        json_decref(logged("a=1 b=\"%s\" c=2", long_text));
        json_decref(logged("a=1 %s=3 c=2", long_text));
        memset(long_text, '"', (size_t)n);
        json_decref(logged("a=1 b=x%s c=2", long_text));
        free(long_text);
    }
    c = (struct log_config){ .level = LOG_I };
    log_setup(&c);
    assert_false(log_prompts());
}

/* Text of every byte, far longer than a line, comes back whole from either form. */
static void test_log_whole(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1 << 16);
    for (int i = 0; i < 40; i++) {
        for (char c = 0; c < 0x7f; c++)
            buf_addc(&b, c);
        buf_adds(&b, "\xC3\xA9\xF0\x9F\x8D\x8B");
    }
    for (int json = 0; json < 2; json++) {
        log_setup(&(struct log_config){ .level = LOG_I, .json = json != 0 });
        catch_start();
        log_whole(LOG_I, "answer", "text", &b, "id=%s index=%d", "a", 3);
        log_whole(LOG_D, "hidden", "text", &b, "id=%s", "b");
        const char *line = catch_end();
        const char *end = strchr(line, '\n');
        assert_true(end != NULL && end[1] == 0);
        const char *value =
            strstr(line, json ? "\"index\":3,\"text\":\"" : " id=a index=3 text=\"");
        assert_non_null(value);
        value = json ? line : strstr(value, "\"");
        json_t *v = json_loads(value, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        const json_t *text = json ? json_object_get(v, "text") : v;
        assert_int_equal(json_string_length(text), b.len);
        assert_memory_equal(json_string_value(text), b.data, b.len);
        json_decref(v);
    }
    log_setup(&(struct log_config){ .level = LOG_I });
    buf_free(&b);
}

/* No sequence of the model's reaches a terminal, in seven bits or in eight; words do. */
static void test_show(void **state)
{
    (void)state;
    static const char text[] = "a\tb\n\x1B[2J\x1B]0;x\x07\r\x7F\0\xC2\x9B"
                               "1m\xC2\xA0\xC3\x9B\xE2\x82\xAC\xC2\x80";
    char *shown = NULL;
    size_t n = 0;
    FILE *to = open_memstream(&shown, &n);
    assert_non_null(to);
    cli_show(to, text, sizeof text - 1);
    fclose(to);
#define BAD "\xEF\xBF\xBD"
    assert_string_equal(shown, "a\tb\n" BAD "[2J" BAD "]0;x" BAD BAD BAD BAD BAD
                               "1m\xC2\xA0\xC3\x9B\xE2\x82\xAC" BAD);
    free(shown);
}

static void test_table(void **state)
{
    (void)state;
    static const struct table_col col[] = {
        { "name", "name" }, { "n", "count" }, { "r", NULL }, { NULL, "%" }, { "x", NULL }
    };
    struct table *t;
    struct buf b;
    buf_init(&b, 65536);
    assert_int_equal(table_open(&t, col, 5), 0);
    table_str(t, "\xC3\xA9t\xC3\xA9 \"x\"");
    table_int(t, -7);
    table_num(t, 0.5, 2);
    table_num(t, 99.94, 1);
    table_real(t, 1e-5);
    table_str(t, "a\x1B[m\xC2\x9B\xFF");
    table_int(t, 123456);
    table_num(t, NAN, 2);
    table_num(t, INFINITY, 1);
    table_real(t, 1e20);
    assert_int_equal(table_print(t, false, &b), 0);
    assert_string_equal(buf_str(&b), "name      count     %\n"
                                     "\xC3\xA9t\xC3\xA9 \"x\"      -7  99.9\n"
                                     "a?[m???  123456     -\n");
    buf_clear(&b);
    assert_int_equal(table_print(t, true, &b), 0);
    assert_string_equal(
        buf_str(&b), "{\"name\":\"\xC3\xA9t\xC3\xA9 \\\"x\\\"\",\"n\":-7,\"r\":0.50,\"x\":1e-05}\n"
                     "{\"name\":\"a?[m???\",\"n\":123456,\"r\":null,\"x\":1e+20}\n");
    buf_free(&b);
    buf_init(&b, 10);
    assert_int_equal(table_print(t, false, &b), ERR_LIMIT);
    buf_free(&b);
    table_close(t);
    table_close(NULL);
}

static void test_progress(void **state)
{
    (void)state;
    struct progress p;
    catch_start();
    progress_start(&p, "loading weights", "B", 100);
    for (int i = 0; i < 1000; i++)
        progress_add(&p, 1);
    progress_end(&p, true);
    const char *text = catch_end();
    assert_non_null(strstr(text, "event=finished stage=\"loading weights\" done=1000 unit=B"));
    assert_ptr_equal(strchr(text, '\n'),
                     text + strlen(text) - 1); /* one line: no terminal, no bar */
    /* The bar of a terminal, past its total and without one. */
    for (uint64_t total = 0; total < 2; total++) {
        catch_start();
        progress_start(&p, "s", "B", total);
        p.tty = true;
        p.drawn_ns = 0;
        progress_add(&p, 1000000);
        progress_end(&p, false);
        text = catch_end();
        assert_non_null(strstr(text, "event=stopped stage=\"s\" done=1000000"));
        assert_non_null(strstr(text, total > 0 ? "[##############################]" : "1.0M"));
    }
}

static void test_clock(void **state)
{
    (void)state;
    uint64_t a = clock_ns();
    uint64_t b = clock_ns();
    assert_true(b >= a);
    assert_true(fabs(clock_s() - (double)b / 1e9) < 5);
    assert_true(llabs(clock_wall_s() - (int64_t)(clock_wall_ns() / 1000000000u)) <= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err),       cmocka_unit_test(test_log_quote),
        cmocka_unit_test(test_log_line),  cmocka_unit_test(test_log_json),
        cmocka_unit_test(test_log_whole), cmocka_unit_test(test_show),
        cmocka_unit_test(test_table),     cmocka_unit_test(test_progress),
        cmocka_unit_test(test_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
