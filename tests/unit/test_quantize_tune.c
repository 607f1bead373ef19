/* wring quantize --tune and --tune-codes: the model comes nearer, wherever a run is stopped the next one ends with the same bytes, and what it
 * says when it cannot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <signal.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/cli/eval_kl.h"
#include "server/cli/fetch.h"
#include "server/quantize/quantize.h"
#include "tests/tools/eval_fixture.h"
#include "tests/tools/quantize_fixture.h"
#include "tests/tools/scratch.h"
#include "tests/tools/small.h"
#include "tests/tools/toy.h"

enum { LAYERS = 5 };

static const char *const plain[] = { "--codec=planes2", "--tokens=512", NULL };
static const char *const tuned[] = { "--codec=planes2", "--tokens=512", "--tune=6", NULL };

static const char *const moved[] = { "--codec=planes2", "--tokens=512", "--tune=6",
                                     "--tune-codes=3", NULL };

/* ---- the result -------------------------------------------------------------------------------------------------- */

/* What `wring eval kl` says of root/out, against root/ref. */
static double kl_of(const char *out, const char *ref)
{
    static const char *const argv[] = { "--ctx=64", "--chunks=8" };
    const char *const path[2] = { out, ref };
    struct session s[2] = { 0 };
    struct kl_result r;
    struct config c;
    struct err e;
    assert_int_equal(config_parse(&c, CONFIG_EVAL_KL, 2, (char **)(uintptr_t)argv, &e), 0);
    for (int i = 0; i < 2; i++) {
        struct model_options o = { .weights = "auto" };
        assert_int_equal(be_open(&s[i].be, &(struct be_config){ .n_threads = 1 }, &e), 0);
        if (model_open(&s[i].model, in_root(path[i]), &o, s[i].be, &e) < 0)
            fail_msg("%s", e.text);
    }
    if (kl_measure(s[0].model, s[1].model, &c, in_root("text.txt"), &r, &e) < 0)
        fail_msg("%s", e.text);
    session_close(&s[0]);
    session_close(&s[1]);
    config_free(&c);
    return r.kl.mean;
}

static double noted(const char *out, const char *key)
{
    json_t *notes = json_load_file(joined(out, "quantize.json"), 0, NULL);
    const json_t *v = json_object_get(json_object_get(notes, "tune"), key);
    assert_true(json_is_number(v));
    double x = json_number_value(v);
    json_decref(notes);
    return x;
}

static void comes_nearer(void **state)
{
    (void)state;
    must_run("plain", plain);
    must_run("tuned", tuned);
    double before = kl_of("plain", "model");
    double after = kl_of("tuned", "model");
    print_message("KL %.4f, tuned %.4f; held out %.4f, %.4f\n", before, after,
                  noted("tuned", "before"), noted("tuned", "after"));
    assert_true(after < .8 * before);
    assert_true(noted("tuned", "after") < .8 * noted("tuned", "before"));
    assert_true(noted("tuned", "step") >= 1 && noted("tuned", "step") <= 6);
}

/* Codes move where factors have gone as far as they get; and alone, in every form whose codes can. */
static void codes_move(void **state)
{
    static const char *const form[] = { "--codec=aqlm1x8g8", "--codec=planes1",
                                        "--codec=planes3g32" };
    /* under the thread sanitizer planes2 stands for all: rows are shared out in one place, and aqlm takes a minute to press */
    size_t n = check_races() ? 0 : sizeof form / sizeof *form;
    (void)state;
    must_run("moved", moved);
    print_message("%.0f codes moved: KL %.4f; held out %.4f, tuned %.4f\n", noted("moved", "moves"),
                  kl_of("moved", "model"), noted("moved", "after"), noted("tuned", "after"));
    assert_true(noted("moved", "moves") > 0);
    assert_true(noted("moved", "after") < noted("tuned", "after"));
    assert_true(noted("tuned", "moves") == 0);
    for (size_t i = 0; i < n; i++) {
        const char *more[] = { form[i], "--tokens=512", "--tune-codes=4", NULL };
        must_run("form", more);
        print_message("%s: %.0f codes moved, held out %.4f to %.4f\n", form[i],
                      noted("form", "moves"), noted("form", "before"), noted("form", "after"));
        assert_true(noted("form", "after") < noted("form", "before"));
        fetch_remove(in_root("form"));
    }
}

/* A GGUF file has other rows in q and k than the folder. */
static void reads_gguf(void **state)
{
    struct err e;
    (void)state;
    assert_int_equal(toy_write(in_root("toy.gguf"), 3, &e), 0);
    if (run_on("toy.gguf", "toy-plain", plain, &e) < 0 || run_on("toy.gguf", "toy", tuned, &e) < 0)
        fail_msg("%s", e.text);
    assert_true(kl_of("toy", "toy.gguf") < .9 * kl_of("toy-plain", "toy.gguf"));
}

/* Two steps in any form end with no more than they began with. */
static void tunes_every_form(void **state)
{
    static const char *const form[] = { "--codec=trellis2", "--codec=pvq2", "--codec=planes1",
                                        "--codec=q4", "--codec=bf16" };
    (void)state;
    for (size_t i = 0; i < sizeof form / sizeof *form; i++) {
        const char *more[] = { form[i], "--tune=2", NULL };
        must_run("form", more);
        assert_true(noted("form", "after") <= noted("form", "before") * 1.001);
        fetch_remove(in_root("form"));
    }
}

/* ---- going on ---------------------------------------------------------------------------------------------------- */

/* Shards that are pressed again are tuned with the factors and moves that were found. Once under the thread sanitizer, and
 * there with both: this file took 334 seconds. */
static void goes_on_with(const char *whole, const char *const *options)
{
    static const unsigned lacks[] = { 0x3e, 0x01, 0x14, 0 }; /* by bits */
    must_run("again", options);
    same_folders(whole, "again");
    size_t n = check_races() ? 1 : sizeof lacks / sizeof *lacks;
    for (size_t k = 0; k < n; k++) {
        assert_int_equal(rename(in_root("again"), in_root("again.part")), 0);
        for (int i = 0; i <= LAYERS; i++)
            if (lacks[k] >> i & 1)
                assert_int_equal(unlink(shard_name("again.part", i, LAYERS)), 0);
        assert_int_equal(
            file_write_atomic(joined("again.part", "quantize.tune.Ab3xYz"), "x", 1, NULL), 0);
        must_run("again", options);
        same_folders(whole, "again");
    }
}

static void goes_on(void **state)
{
    (void)state;
    if (!check_races()) {
        goes_on_with("tuned", tuned);
        fetch_remove(in_root("again"));
    }
    goes_on_with("moved", moved);
}

static bool has_file(const void *name)
{
    return there(joined("cut.part", name));
}

/* While it tunes, the folder is a model already; when it has settled, the factors are there. */
static void survives_signals(void **state)
{
    static const char *const at[] = { "config.json", "quantize.tune" };
    int stopped = 0;
    (void)state;
    for (int i = 0; i < 4; i += check_small() ? 3 : 1) {
        int sig = i % 2 == 0 ? SIGKILL : SIGINT;
        stopped += run_stopped("model", "cut", moved, sig, has_file, at[i / 2]);
        if (!there(in_root("cut")))
            must_run("cut", moved);
        same_folders("moved", "cut");
        fetch_remove(in_root("cut"));
    }
    assert_true(stopped > 0);
}

/* ---- what it refuses --------------------------------------------------------------------------------------------- */

static void says_what_is_wrong(void **state)
{
    static const char *const one[] = { "--tokens=64", "--tune=2", NULL };
    static const char *const chained[] = { "--codec=trellis2", "--tune-codes=1", NULL };
    static const char *const summed[] = { "--codec=lowrank16+planes2", "--tune-codes=1", NULL };
    static const char *const swept[] = { "--codec=planes", "--pareto=3", "--tune-codes=1", NULL };
    (void)state;
    must_fail("x", chained, ERR_INVALID,
              "tune-codes: the codes of trellis2 do not stand alone; those of planes and aqlm do");
    must_fail("x", summed, ERR_INVALID, "the codes of lowrank16+planes2 do not stand alone");
    must_fail("x", swept, ERR_INVALID, "tune-codes: a sweep judges models as they are pressed");
    must_fail("one", one, ERR_INVALID, "there is but one of 64 tokens");
    assert_int_equal(rename(in_root("again"), in_root("again.part")), 0);
    must_fail("again", plain, ERR_INVALID, "was begun with tune 6");
    assert_int_equal(file_write_atomic(joined("again.part", "quantize.tune"), "x", 1, NULL), 0);
    must_fail("again", moved, ERR_FORMAT, "quantize.tune is damaged; start over with --force");
}

/* Wherever memory runs out, the next run goes on. */
static void survives_lack_of_memory(void **state)
{
    (void)state;
    survives_poverty("model", moved, check_small() ? 3 : 8, check_small() ? 1 : 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comes_nearer),
        cmocka_unit_test(codes_move),
        cmocka_unit_test(reads_gguf),
        cmocka_unit_test(tunes_every_form),
        cmocka_unit_test(goes_on),
        cmocka_unit_test(survives_signals),
        cmocka_unit_test(says_what_is_wrong),
        cmocka_unit_test(survives_lack_of_memory),
    };
    return cmocka_run_group_tests(tests, eval_open, scratch_close);
}
