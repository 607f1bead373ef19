/* wring quantize --pareto: the table says what folders made one by one are, points are not measured twice, a run goes on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"
#include "tests/tools/eval_fixture.h"
#include "tests/tools/printed.h"
#include "tests/tools/quantize_fixture.h"
#include "tests/tools/scratch.h"
#include "tests/tools/toy.h"

#define PLANES "--codec=planes"

static char forms[300];     /* --forms=root/bank */
static char calibrate[300]; /* --calibrate=root/text.txt */

static int open_group(void **state)
{
    struct err e;
    if (eval_open(state) < 0)
        return -1;
    snprintf(forms, sizeof forms, "--forms=%s/bank", root);
    snprintf(calibrate, sizeof calibrate, "--calibrate=%s/text.txt", root);
    return toy_write(in_root("toy.gguf"), 3, &e);
}

/* Prints the table of root/out for some budgets; the exit code. */
static int sweep(const char *out, const char *budgets, const char *way, struct buf *text)
{
    char pareto[64];
    snprintf(pareto, sizeof pareto, "--pareto=%s", budgets);
    const char *argv[] = { in_root("toy.gguf"),
                           in_root(out),
                           PLANES,
                           pareto,
                           way,
                           calibrate,
                           forms,
                           "--tokens=256",
                           "--context=64",
                           "--threads=2",
                           "--generations=2",
                           "--json",
                           "--log-level=error" };
    return printed(cmd_quantize, sizeof argv / sizeof *argv, argv, text);
}

/* The lines of the table: "asked" of each is checked by find(). */
static json_t *find(const struct buf *text, const char *asked)
{
    for (const char *at = buf_str(text); *at != 0;) {
        size_t n = strcspn(at, "\n");
        json_t *v = json_loadb(at, n, 0, NULL);
        assert_non_null(v);
        if (strcmp(json_string_value(json_object_get(v, "asked")), asked) == 0)
            return v;
        json_decref(v);
        at += n + (at[n] != 0);
    }
    fail_msg("no %s in %s", asked, buf_str(text));
    return NULL;
}

/* The mean divergence of a folder on every sequence that calibration leaves. */
static double held_out(const char *folder)
{
    struct session s[2];
    struct sequences text;
    struct sequences rest;
    struct judge j;
    struct err e;
    double kl[32], mean = 0;
    struct quantize q = { 0 };
    open_session(&s[0], "toy.gguf");
    open_session(&s[1], folder);
    q.session = s[0];
    q.model = s[0].model;
    const char *list = in_root("text.txt");
    assert_int_equal(sequences_open(&text, q.model->tok, list, 256, 64, &e), 0);
    assert_int_equal(sequences_rest(&rest, &text, q.model->tok, list, 32, &e), 0);
    assert_int_equal(quantize_runner(&q.run, q.model, 64, &e), 0);
    assert_int_equal(judge_open(&j, &q, &rest, 32, 64, s[1].model, &e), 0);
    assert_int_equal(judge_run(&j, 0, 32, kl, &e), 0);
    for (int i = 0; i < 32; i++)
        mean += kl[i] / 32;
    judge_close(&j);
    runner_close(&q.run);
    sequences_close(&rest);
    sequences_close(&text);
    session_close(&s[0]);
    session_close(&s[1]);
    return mean;
}

static double field(const json_t *v, const char *key)
{
    assert_true(json_is_number(json_object_get(v, key)));
    return json_number_value(json_object_get(v, key));
}

static void says_what_folders_are(void **state)
{
    static const char *const one[] = { PLANES, "--bits=2.7", NULL };
    static const char *const form[] = { "--codec=planes3", NULL };
    static const char *const name[] = { "2.7", "planes3" };
    struct buf text;
    (void)state;
    assert_int_equal(sweep("points", "4,2.7", "--allocate=dp", &text), 0);
    press_toy("out0", one);
    press_toy("out1", form);
    for (int i = 0; i < 2; i++) {
        char folder[16];
        snprintf(folder, sizeof folder, "out%d", i);
        json_t *v = find(&text, name[i]);
        double kl = held_out(folder);
        json_t *index = json_load_file(joined(folder, "model.safetensors.index.json"), 0, NULL);
        assert_true(fabs(field(v, "bits") - bits_of(folder)) < 1e-3);
        assert_true(field(v, "bytes") == field(json_object_get(index, "metadata"), "total_size"));
        assert_true(fabs(field(v, "kl") - kl) < 1e-3 * kl + 1e-4);
        assert_true(field(v, "kl_error") > 0 && field(v, "kl_error") < kl);
        json_decref(index);
        json_decref(v);
        fetch_remove(in_root(folder));
    }
    buf_free(&text);
}

/* The files hold the points, budgets in rising order, and a plot. */
static void writes_its_files(void **state)
{
    struct buf csv;
    struct buf md;
    struct buf png;
    (void)state;
    read_file(&csv, "points/pareto.csv");
    read_file(&md, "points/pareto.md");
    read_file(&png, "points/pareto.png");
    const char *low = strstr(buf_str(&csv), "\ndp,2.7,");
    const char *high = strstr(buf_str(&csv), "\ndp,4,");
    assert_true(low != NULL && high != NULL && low < high);
    assert_non_null(strstr(buf_str(&csv), "\nuniform,planes8,"));
    assert_non_null(strstr(buf_str(&md), "| dp | 2.7 | 2."));
    assert_true(png.len > 1000 && memcmp(png.data, "\x89PNG", 4) == 0);
    buf_free(&csv);
    buf_free(&md);
    buf_free(&png);
}

/* What the notes have is taken as it is, true or not; what they lack is measured as before. */
static void measures_nothing_twice(void **state)
{
    struct buf text[2];
    (void)state;
    assert_int_equal(sweep("points", "4,2.7", "--allocate=dp", &text[0]), 0);
    json_t *notes = notes_of("points");
    json_t *points = map_of(notes, "points");
    json_object_set_new(json_object_get(points, "4"), "kl", json_real(77));
    json_object_del(points, "2.7");
    json_object_del(points, "planes5");
    assert_int_equal(json_dump_file(notes, joined("points", "quantize.json"), 0), 0);
    json_decref(notes);
    assert_int_equal(sweep("points", "4,2.7,3", "--allocate=dp", &text[1]), 0);
    static const char *const same[] = { "2.7", "planes5", "planes2" };
    for (int i = 0; i < 3; i++) {
        json_t *a = find(&text[0], same[i]);
        json_t *b = find(&text[1], same[i]);
        assert_true(json_equal(a, b));
        json_decref(a);
        json_decref(b);
    }
    json_t *v = find(&text[1], "4");
    assert_true(field(v, "kl") == 77);
    json_decref(v);
    json_decref(find(&text[1], "3"));
    buf_free(&text[0]);
    buf_free(&text[1]);
}

/* Every budget has a search of its own. */
static void sweeps_searches(void **state)
{
    struct buf text;
    (void)state;
    assert_int_equal(sweep("evo", "2.7,3.5", "--allocate=evopress", &text), 0);
    json_t *a = find(&text, "2.7");
    json_t *b = find(&text, "3.5");
    assert_true(field(a, "bits") > 2.6 && field(a, "bits") <= 2.7);
    assert_true(field(b, "bits") > 3.4 && field(b, "bits") <= 3.5);
    assert_true(field(b, "kl") < field(a, "kl"));
    json_decref(a);
    json_decref(b);
    buf_free(&text);
}

static void says_what_is_wrong(void **state)
{
    static const struct {
        const char *more[4], *says;
    } bad[] = {
        { { PLANES, "--pareto=2.5,x", forms, NULL }, "pareto: \"2.5,x\" is not a list" },
        { { PLANES, "--pareto=2.5,0", forms, NULL }, "is not a list" },
        { { PLANES, "--pareto=2.5,", forms, NULL }, "is not a list" },
        { { PLANES, "--pareto=0.5,3", forms, NULL }, "0.5 bits a weight are too few" },
        { { "--codec=q4", "--pareto=3", forms, NULL }, "pareto: q4 is one form" },
        { { PLANES, "--pareto=3", "--bits=3", NULL }, "one of them says" },
        { { PLANES, "--pareto=3", "--tokens=99999", NULL }, "give more text, fewer --tokens or" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e;
        assert_int_equal(run_on("toy.gguf", "wrong", bad[i].more, &e), ERR_INVALID);
        if (strstr(e.text, bad[i].says) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", e.text, bad[i].says);
        assert_false(there(in_root("wrong")));
    }
}

/* Other options want another folder, or --force; a bank that is kept is not the run's to remove. */
static void starts_over(void **state)
{
    const char *more[] = { PLANES, "--pareto=3", "--head=f16", NULL };
    const char *force[] = { PLANES, "--pareto=3", "--head=f16", "--force", NULL };
    const char *bank[] = { PLANES, "--pareto=3", "--head=f16", "--force", forms, NULL };
    struct err e;
    (void)state;
    assert_int_equal(run_on("toy.gguf", "points", more, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "was begun with head \"q8\", now it is \"f16\""));
    assert_int_equal(run_on("toy.gguf", "points", force, &e), 0);
    assert_false(there(in_root("points.forms")));
    json_t *notes = notes_of("points");
    assert_null(json_object_get(map_of(notes, "points"), "2.7"));
    json_decref(notes);
    assert_int_equal(run_on("toy.gguf", "points", bank, &e), ERR_INVALID);
    assert_true(strncmp(e.text, "forms: ", 7) == 0 && there(in_root("bank/planes1")));
}

static void survives_lack_of_memory(void **state)
{
    const char *more[] = { PLANES, "--pareto=3", forms, NULL };
    struct mem_stats before;
    struct mem_stats after;
    struct err e;
    int failed = 0;
    (void)state;
    mem_stats(&before);
    assert_int_equal(run_on("toy.gguf", "rich", more, &e), 0);
    mem_stats(&after);
    uint64_t calls = after.calls - before.calls;
    for (uint64_t k = 1; k < 12; k++) {
        mem_stats(&before);
        mem_fail_at(calls * k / 12);
        failed += run_on("toy.gguf", "poor", more, &e) < 0;
        mem_fail_at(0);
        mem_stats(&after);
        if (after.blocks != before.blocks)
            fail_msg("allocation %llu: a block is left", (unsigned long long)(calls * k / 12));
    }
    assert_true(failed >= 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_folders_are),   cmocka_unit_test(writes_its_files),
        cmocka_unit_test(measures_nothing_twice),  cmocka_unit_test(sweeps_searches),
        cmocka_unit_test(says_what_is_wrong),      cmocka_unit_test(starts_over),
        cmocka_unit_test(survives_lack_of_memory),
    };
    log_setup(&(struct log_config){ .level = LOG_E });
    return cmocka_run_group_tests(tests, open_group, scratch_close);
}
