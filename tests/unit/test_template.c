/* Chat templates against Python's jinja2 (tests/golden/templates), and what only we have: limits, marks, faults. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/text/template.h"

#define GOLDEN     "tests/golden/templates"
#define JSON_FLAGS JSON_ALLOW_NUL

static json_t *load(const char *path)
{
    json_error_t e;
    json_t *j = json_load_file(path, JSON_FLAGS, &e);
    if (!j)
        fail_msg("%s: %s", path, e.text);
    return j;
}

/* Segments cover the text, in order, alternating. */
static void check_segments(const struct tmpl_output *o)
{
    size_t at = 0;
    for (int i = 0; i < o->n_seg; i++) {
        assert_int_equal(o->seg[i].start, at);
        assert_true(o->seg[i].len > 0);
        if (i)
            assert_true(o->seg[i].user != o->seg[i - 1].user);
        at += o->seg[i].len;
    }
    assert_int_equal(at, o->text.len);
}

static int compare(const char *what, const char *src, size_t n, const struct tmpl_input *in,
                   const json_t *want)
{
    struct tmpl *t = NULL;
    struct tmpl_output o = { 0 };
    struct err e = { 0 };
    const json_t *text = json_object_get(want, "text");
    int rc = tmpl_open(&t, src, n, &e);
    if (!rc)
        rc = tmpl_render(t, in, NULL, &o, &e);
    int bad = 0;
    if (!rc != (text != NULL)) {
        print_error("%s: %s, Python: %s\n", what, rc ? e.text : "no error",
                    text ? "a text" : json_string_value(json_object_get(want, "error")));
        bad = 1;
    } else if (text) {
        check_segments(&o);
        const char *w = json_string_value(text);
        size_t k = 0;
        while (k < o.text.len && k < json_string_length(text) && o.text.data[k] == w[k])
            k++;
        if (k < o.text.len || k < json_string_length(text)) {
            size_t from = k > 40 ? k - 40 : 0;
            print_error("%s differs at byte %zu:\n  ours   ...%.120s\n  python ...%.120s\n", what,
                        k, buf_str(&o.text) + from, w + from);
            bad = 1;
        }
    }
    tmpl_output_free(&o);
    tmpl_close(t);
    return bad;
}

static int compare_file(const char *name, const json_t *cases)
{
    char path[512], what[512];
    struct buf src;
    size_t i;
    json_t *want, *all = json_object_get(cases, "cases");
    int bad = 0;
    buf_init(&src, 1 << 20);
    snprintf(path, sizeof path, GOLDEN "/%s.jinja", name);
    assert_int_equal(buf_read_file(&src, path, NULL), 0);
    snprintf(path, sizeof path, GOLDEN "/expect/%s.json", name);
    json_t *expect = load(path);
    assert_int_equal(json_array_size(expect), json_array_size(all));
    json_array_foreach(expect, i, want)
    {
        const json_t *c = json_array_get(all, i);
        struct tmpl_input in = {
            .messages = json_object_get(c, "messages"),
            .tools = json_object_get(c, "tools"),
            .kwargs = json_object_get(c, "kwargs"),
            .add_generation_prompt = json_is_true(json_object_get(c, "add_generation_prompt")),
            .bos_token = "<s>",
            .eos_token = "</s>",
            .now_unix = json_integer_value(json_object_get(cases, "now")),
        };
        snprintf(what, sizeof what, "%s / %s", name,
                 json_string_value(json_object_get(want, "case")));
        bad += compare(what, buf_str(&src), src.len, &in, want);
    }
    json_decref(expect);
    buf_free(&src);
    return bad;
}

static void models_render_as_in_python(void **state)
{
    (void)state;
    json_t *cases = load(GOLDEN "/cases.json");
    DIR *d = opendir(GOLDEN "/expect");
    int bad = 0, n = 0;
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        char name[256];
        const char *dot = strrchr(f->d_name, '.');
        if (!dot || strcmp(dot, ".json") != 0)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(dot - f->d_name), f->d_name);
        bad += compare_file(name, cases);
        n++;
    }
    closedir(d);
    json_decref(cases);
    assert_true(n >= 12);
    assert_int_equal(bad, 0);
}

static char *unescape(const char *s)
{
    char *out = mem_strdup(s), *w = out;
    assert_non_null(out);
    for (; *s; s++) {
        bool nl = s[0] == '\\' && s[1] == 'n';
        *w++ = nl ? '\n' : *s;
        s += nl;
    }
    *w = 0;
    return out;
}

static void expressions_are_python_s(void **state)
{
    (void)state;
    json_t *all = load(GOLDEN "/expressions.json"), *messages = json_array(), *want;
    size_t i;
    int bad = 0;
    struct tmpl_input in = { .messages = messages,
                             .kwargs = json_object_get(all, "vars"),
                             .now_unix = 1750000000 };
    json_array_foreach(json_object_get(all, "expressions"), i, want)
    {
        const char *src = json_string_value(json_object_get(want, "case"));
        char *text = unescape(src);
        bad += compare(src, text, strlen(text), &in, want);
        mem_free(text);
    }
    json_decref(messages);
    json_decref(all);
    assert_int_equal(bad, 0);
}

struct rendered {
    int rc;
    struct err e;
    struct tmpl_output o;
};

static struct rendered render(const char *src, const char *messages, const struct tmpl_limits *lim)
{
    struct rendered r = { 0 };
    struct tmpl *t = NULL;
    json_t *m = json_loads(messages, 0, NULL);
    struct tmpl_input in = { .messages = m, .bos_token = "<s>", .eos_token = "</s>" };
    assert_non_null(m);
    r.rc = tmpl_open(&t, src, strlen(src), &r.e);
    if (!r.rc)
        r.rc = tmpl_render(t, &in, lim, &r.o, &r.e);
    tmpl_close(t);
    json_decref(m);
    return r;
}

/* Marks of a rendering: user bytes as they are, the template's as dots. */
static void check_marks(const char *src, const char *messages, const char *want)
{
    struct rendered r = render(src, messages, NULL);
    char got[512];
    if (r.rc)
        fail_msg("%s: %s", src, r.e.text);
    assert_true(r.o.text.len < sizeof got);
    for (int i = 0; i < r.o.n_seg; i++)
        for (size_t k = r.o.seg[i].start; k < r.o.seg[i].start + r.o.seg[i].len; k++)
            got[k] = r.o.seg[i].user ? r.o.text.data[k] : '.';
    got[r.o.text.len] = 0;
    assert_string_equal(got, want);
    check_segments(&r.o);
    tmpl_output_free(&r.o);
}

static void marks_follow_the_user(void **state)
{
    (void)state;
    static const char m[] =
        "[{\"role\": \"user\", \"content\": \" a<|x|>b \", \"k\": {\"q\": \"w\"}},"
        " {\"role\": \"<|r|>\", \"content\": \"A-B-C\"}]";
    static const struct {
        const char *src, *want;
    } t[] = {
        { "<|u|>{{ messages[0].role }}{{ messages[1].role }}", ".........<|r|>" },
        { "[{{ messages[0].content }}]", ". a<|x|>b ." },
        { "{{ messages[0].content | trim }}", "a<|x|>b" },
        { "{{ '<|s|>' + messages[0].content.strip() + '<|e|>' }}", ".....a<|x|>b....." },
        { "{{ messages[0].content[1:4] ~ 'z' ~ 1 }}", "a<|.." },
        { "{{ messages[1].content | replace('-', '<|sep|>') }}", "A.......B.......C" },
        { "{{ 'x-y' | replace('-', messages[1].content) }}", ".A-B-C." },
        { "{{ messages[1].content.split('-') | join('+') }}", "A.B.C" },
        { "{{ messages[1].content | lower | upper }}", "A-B-C" },
        { "{{ (messages[0].content ~ '.') | tojson }}", "\" a<|x|>b .\"" },
        { "{{ messages[0].k | tojson }}", "{\"q\": \"w\"}" },
        { "{{ {'a': 1} | tojson }}{{ [1, 'b'] }}", "................" },
        { "{{ '%s|%s' | format('lit', messages[1].content) }}", "....A-B-C" },
        { "{{ '<{}>{}'.format(messages[1].content, 'lit') }}", ".A-B-C...." },
        { "{% for k, v in messages[0].k.items() %}{{ k }}={{ v }}{% endfor %}", "q.w" },
        { "{% set x %}[{{ messages[1].content }}]{% endset %}{{ x }}{{ x[1:-2] }}", ".A-B-C.A-B-" },
        { "{% macro f(a) %}<{{ a }}>{% endmacro %}{{ f(messages[1].content) | upper }}",
          ".A-B-C." },
        { "{% filter indent(1) %}x\n{{ messages[1].content }}{% endfilter %}", "...A-B-C" },
        { "{{ messages[1].content | list | reverse | join }}", "C-B-A" },
        { "{{ bos_token }}{{ messages[1].content | length }}{{ eos_token }}", "........" },
        { "{{ messages[1].content if 1 else 'b' }}{{ ('a' ~ messages[1].content)[0] }}", "A-B-C." },
        { "{{ messages[1].content | map('upper') | join('|') }}", "A.-.B.-.C" },
    };
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++)
        check_marks(t[i].src, m, t[i].want);
}

static void check_error(const char *src, int code, const char *part, const struct tmpl_limits *lim)
{
    struct rendered r = render(src, "[]", lim);
    if (r.rc != code || !strstr(r.e.text, part))
        fail_msg("%.80s: %s '%s', expected %s '%s'", src, err_name(r.rc), r.e.text, err_name(code),
                 part);
    assert_null(r.o.seg);
}

static void errors_say_where(void **state)
{
    (void)state;
    check_error("a\n{{ 1 + }}", ERR_FORMAT, "line 2 column 8", NULL);
    check_error("{% if x %}", ERR_FORMAT, "endif", NULL);
    check_error("{% endfor %}", ERR_FORMAT, "unexpected tag 'endfor'", NULL);
    check_error("{% include 'x' %}", ERR_UNSUPPORTED, "line 1 column 4: unsupported tag 'include'",
                NULL);
    check_error("{{ x | frob }}", ERR_UNSUPPORTED, "unsupported filter 'frob'", NULL);
    check_error("{{ x is frob }}", ERR_UNSUPPORTED, "unsupported test 'frob'", NULL);
    check_error("{% if true %}{{ 1 | frob }}{% endif %}", ERR_INVALID, "unsupported filter", NULL);
    check_error("{{ 'abc }}", ERR_FORMAT, "string is not closed", NULL);
    check_error("{# abc", ERR_FORMAT, "comment is not closed", NULL);
    check_error("{{ (1] }}", ERR_FORMAT, "closing bracket", NULL);
    check_error("\xff", ERR_FORMAT, "not UTF-8 at byte 0", NULL);
    check_error("{% break %}", ERR_FORMAT, "outside of a loop", NULL);
    check_error("{{ 99999999999999999999 }}", ERR_UNSUPPORTED, "too large", NULL);
    check_error("\n\n{{ raise_exception('no!') }}", ERR_INVALID, "line 3: no!", NULL);
    check_error("{{ a.b }}", ERR_INVALID, "'a' is undefined", NULL);
    check_error("{{ 9223372036854775807 + 1 }}", ERR_INVALID, "overflow", NULL);
}

static void limits_hold(void **state)
{
    (void)state;
    static const struct tmpl_limits small = { .steps = 10000,
                                              .output_bytes = 5000,
                                              .memory_bytes = 2 << 20 };
    check_error(
        "{% for i in range(100) %}{% for j in range(100) %}{% for k in range(100) %}{% endfor %}"
        "{% endfor %}{% endfor %}",
        ERR_LIMIT, "steps", &small);
    check_error("{% for i in range(1000) %}0123456789{% endfor %}", ERR_LIMIT, "text grows",
                &small);
    check_error("{{ 'ab' * 1000000000 }}", ERR_LIMIT, "", &small);
    check_error("{{ 'x'.ljust(100000000) }}", ERR_LIMIT, "", &small);
    check_error("{{ 'x'.ljust(3000000000, '') }}", ERR_INVALID, "exactly one character", NULL);
    check_error("{% set n = namespace(t=1) %}{% for i in range(40) %}{% set n.t = (n.t, n.t) %}{% "
                "endfor %}{{ {n.t: 1} }}",
                ERR_LIMIT, "steps", NULL);
    check_error("{{ [1] * 1000000000 }}", ERR_LIMIT, "", &small);
    check_error("{{ range(1000000000) }}", ERR_LIMIT, "range", NULL);
    check_error("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x "
                "%}{% endfor %}",
                ERR_LIMIT, "", NULL);
    check_error("{% set n = namespace(x=[]) %}{% for i in range(9000) %}{% set n.x = [n.x] %}{% "
                "endfor %}{{ n.x }}",
                ERR_LIMIT, "nested", NULL);
    check_error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ERR_LIMIT, "nested", NULL);
    check_error("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", ERR_LIMIT, "nested",
                NULL);
    check_error("{{ '%99999d' % 1 }}", ERR_INVALID, "width", NULL);
    char deep[4096];
    memset(deep, '(', sizeof deep);
    memcpy(deep, "{{ ", 3);
    deep[sizeof deep - 1] = 0;
    check_error(deep, ERR_LIMIT, "nested too deeply", NULL);
    for (size_t i = 3; i < sizeof deep - 1; i++)
        deep[i] = '-';
    check_error(deep, ERR_FORMAT, "", NULL);
    memcpy(deep + sizeof deep - 5, "1 }}", 5);
    check_error(deep, ERR_LIMIT, "nested too deeply", NULL);
}

static void sum_of_many_terms(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_int_equal(buf_adds(&b, "{{ 1"), 0);
    for (int i = 0; i < 2000; i++)
        assert_int_equal(buf_adds(&b, " + 1"), 0);
    assert_int_equal(buf_adds(&b, " }}"), 0);
    check_error(buf_str(&b), ERR_LIMIT, "nested", NULL);
    buf_free(&b);
}

/* Every allocation fails once: an error each time, nothing leaks. */
static void every_allocation_may_fail(void **state)
{
    (void)state;
    static const char src[] = "{% macro f(a) %}<{{ a | upper }}>{% endmacro %}{% for m in messages "
                              "%}{{ f(m.content) ~ (m | tojson) }}"
                              "{{ messages | map(attribute='role') | join(',') }}{{ "
                              "m.content.split() | sort }}{% endfor %}"
                              "{{ 'x' * 40000 }}";
    struct mem_stats before, after;
    json_t *m = json_loads("[{\"role\": \"user\", \"content\": \"a b c\"}]", 0, NULL);
    struct tmpl_input in = { .messages = m, .bos_token = "<s>", .eos_token = "</s>" };
    mem_stats(&before);
    for (uint64_t n = 1, done = 0; !done; n++) {
        struct tmpl *t = NULL;
        struct tmpl_output o = { 0 };
        struct err e = { 0 };
        mem_fail_at(n);
        int rc = tmpl_open(&t, src, strlen(src), &e);
        if (!rc)
            rc = tmpl_render(t, &in, NULL, &o, &e);
        mem_fail_at(0);
        done = rc == 0;
        if (rc)
            assert_int_equal(rc, ERR_NOMEM);
        assert_true(n < 1000);
        tmpl_output_free(&o);
        tmpl_close(t);
        mem_stats(&after);
        assert_int_equal(after.blocks, before.blocks);
    }
    json_decref(m);
}

static void arguments_cannot_replace_messages(void **state)
{
    (void)state;
    struct tmpl *t;
    struct tmpl_output o;
    json_t *m = json_array(), *kw = json_pack("{s:[]}", "messages");
    struct tmpl_input in = { .messages = m, .kwargs = kw };
    assert_int_equal(tmpl_open(&t, "{{ messages }}", 14, NULL), 0);
    assert_int_equal(tmpl_render(t, &in, NULL, &o, NULL), ERR_INVALID);
    tmpl_close(t);
    json_decref(m);
    json_decref(kw);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_render_as_in_python),
        cmocka_unit_test(expressions_are_python_s),
        cmocka_unit_test(marks_follow_the_user),
        cmocka_unit_test(errors_say_where),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(sum_of_many_terms),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(arguments_cannot_replace_messages),
    };
    setenv("TZ", "UTC", 1); /* the goldens' clock */
    tzset();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
