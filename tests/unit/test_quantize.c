/* wring quantize: a small model is pressed, loaded again, stopped and gone on with; what it says when it cannot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/quantize/quantize.h"
#include "tests/tools/eval_fixture.h"
#include "tests/tools/quantize_fixture.h"
#include "tests/tools/scratch.h"
#include "tests/tools/small.h"
#include "tests/tools/toy.h"

enum { LAYERS = 5 };

/* ---- the result -------------------------------------------------------------------------------------------------- */

static const int32_t prompt[] = { 1, 263, 287, 261, 278, 292, 290, 270, 281, 42, 5 };
enum { PROMPT = sizeof prompt / sizeof prompt[0] };

/* The logits of the prompt's last token; the caller frees them. */
static float *logits_of(const char *model, const char *weights, int *vocab)
{
    struct be *be;
    struct model *m;
    struct runner r;
    struct err e;
    const float *x;
    struct model_options o = { .weights = weights };
    assert_int_equal(be_open(&be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    if (model_open(&m, in_root(model), &o, be, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(runner_open(&r, m, KV_F32, 1, PROMPT, PROMPT, 1, &e), 0);
    assert_int_equal(runner_append(&r, 0, prompt, PROMPT, 1, &x, &e), 0);
    *vocab = m->config.vocab;
    float *copy = mem_alloc((size_t)*vocab * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, x, (size_t)*vocab * sizeof *copy);
    runner_close(&r);
    model_close(m);
    be_close(be);
    return copy;
}

/* The folder is the model as it would have been pressed at load. */
static void is_loaded_again(void **state)
{
    static const char *const q8[] = { "--codec=q8", NULL };
    static const struct {
        const char *out, *word;
        const char *const *more;
    } made[] = { { "q4", "q4", NULL }, { "q8", "q8", q8 } };
    (void)state;
    for (int i = 0; i < 2; i++) {
        int n;
        must_run(made[i].out, made[i].more);
        float *want = logits_of("model", made[i].word, &n);
        float *got = logits_of(made[i].out, "auto", &n);
        assert_memory_equal(want, got, (size_t)n * sizeof *want);
        mem_free(got);
        mem_free(want);
    }
    assert_int_not_equal(access(in_root("q4.part"), F_OK), 0);
}

/* A llama's GGUF file has other rows in q and k, and other sums in attention: nearly the same logits. */
static void reads_gguf(void **state)
{
    static const char *const q8[] = { "--codec=q8", NULL };
    struct err e;
    int n;
    (void)state;
    assert_int_equal(toy_write(in_root("toy.gguf"), 3, &e), 0);
    if (run_on("toy.gguf", "toy", q8, &e) < 0)
        fail_msg("%s", e.text);
    float *want = logits_of("toy.gguf", "q8", &n);
    float *got = logits_of("toy", "auto", &n);
    double off = 0, size = 0;
    for (int i = 0; i < n; i++) {
        off += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        size += (double)want[i] * (double)want[i];
    }
    assert_true(off < 1e-8 * size);
    mem_free(got);
    mem_free(want);
}

static double noted(const json_t *notes, const char *name, const char *key)
{
    const json_t *m = json_object_get(json_object_get(notes, "matrices"), name);
    const json_t *v = json_object_get(m, key);
    assert_true(json_is_number(v));
    return json_number_value(v);
}

static void notes_what_was_lost(void **state)
{
    (void)state;
    json_t *a = json_load_file(joined("q4", "quantize.json"), 0, NULL);
    json_t *b = json_load_file(joined("q8", "quantize.json"), 0, NULL);
    assert_true(a != NULL && b != NULL);
    assert_string_equal(json_string_value(json_object_get(json_object_get(a, "options"), "codec")),
                        "q4");
    for (int l = 0; l < LAYERS; l++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%d.ffn_gate.weight", l);
        double four = noted(a, name, "error");
        double eight = noted(b, name, "error");
        assert_true(four > 1e-4 && four < .03); /* 16 levels, then 256 in the same groups */
        assert_true(eight > 0 && eight < four / 50);
        assert_true(noted(a, name, "bits") < 6 && noted(b, name, "bits") > 8);
    }
    assert_true(noted(a, "token_embd.weight", "error") == noted(b, "token_embd.weight", "error"));
    json_decref(a);
    json_decref(b);
}

/* ---- going on ---------------------------------------------------------------------------------------------------- */

/* What a run leaves that was stopped before some shards were done. */
static void goes_on(void **state)
{
    /* by bits; and half of a file that was being written */
    static const unsigned lacks[] = { 0x3f, 0x3e, 0x20, 0x01, 0x14, 0 };
    (void)state;
    must_run("whole", NULL);
    must_run("again", NULL);
    same_folders("whole", "again");
    for (size_t k = 0; k < sizeof lacks / sizeof *lacks; k++) {
        assert_int_equal(rename(in_root("again"), in_root("again.part")), 0);
        for (int i = 0; i <= LAYERS; i++)
            if (lacks[k] >> i & 1)
                assert_int_equal(unlink(shard_name("again.part", i, LAYERS)), 0);
        assert_int_equal(unlink(joined("again.part", "config.json")), 0);
        assert_int_equal(
            file_write_atomic(joined("again.part", "quantize.json.Ab3xYz"), "{", 1, NULL), 0);
        must_run("again", NULL);
        same_folders("whole", "again");
    }
}

/* Of small checks none is pressed twice: what goes on from it gives its logits. */
static void press_to(const char *option)
{
    const char *more[] = { option, NULL };
    int n;
    must_run("form", more);
    float *want = logits_of("form", "auto", &n);
    for (int i = 0; i < n; i++)
        assert_true(isfinite(want[i]));
    if (!check_small())
        must_run("form2", more);
    assert_int_equal(rename(in_root(check_small() ? "form" : "form2"), in_root("form2.part")), 0);
    assert_int_equal(unlink(shard_name("form2.part", 3, LAYERS)), 0);
    must_run("form2", more);
    if (!check_small()) {
        same_folders("form", "form2");
        fetch_remove(in_root("form"));
    }
    float *got = logits_of("form2", "auto", &n);
    assert_memory_equal(want, got, (size_t)n * sizeof *want);
    mem_free(got);
    mem_free(want);
    fetch_remove(in_root("form2"));
}

/* Every form that a codec of this build makes, where checks are small the first of one codec's with rising bits: pressed
 * with moments where the codec takes them, the same again after a stop, and loaded by the server. */
static void presses_to_every_form(void **state)
{
    const char *p = codec_names(), *last = "";
    size_t last_len = 0;
    (void)state;
    for (size_t len; *p != 0; p += len + strspn(p + len, ", ")) {
        len = strcspn(p, ",");
        bool rises =
            len == last_len && memcmp(p, last, len - 1) == 0 && p[len - 1] == last[len - 1] + 1;
        last = p;
        last_len = len;
        if (check_small() && rises)
            continue;
        char option[64];
        snprintf(option, sizeof option, "--codec=%.*s", (int)len, p);
        press_to(option);
    }
    press_to("--codec=aqlm2x4g8"); /* learned from whole matrices */
}

static json_t *method_of(const char *out)
{
    json_t *config = json_load_file(joined(out, "config.json"), 0, NULL);
    json_t *q = json_incref(json_object_get(config, "quantization_config"));
    assert_non_null(q);
    json_decref(config);
    return q;
}

static bool lists(const json_t *list, const char *word)
{
    size_t i;
    const json_t *x;
    json_array_foreach(list, i, x) if (strcmp(json_string_value(x), word) == 0) return true;
    return false;
}

/* What transformers wants of an AQLM folder; with a head that only this program reads it is one of our own. It is pressed
 * as above, so that races were looked for there: 93 CPU seconds under the thread sanitizer. */
static void makes_folders_for_others(void **state)
{
    static const char *const more[] = { "--codec=aqlm2x4g8", NULL };
    static const char *const ours[][3] = { { "--codec=aqlm2x4g8", "--head=q8", NULL },
                                           { "--codec=aqlm2x4g8", "--head=aqlm2x4g8", NULL } };
    static const char *const plain[] = { "lm_head.weight",
                                         "lm_head",
                                         "model.embed_tokens.weight",
                                         "model.norm.weight",
                                         "model.layers.4.mlp.down_proj.weight",
                                         "model.layers.4.mlp.down_proj" };
    (void)state;
    if (check_races())
        skip();
    must_run("others", more);
    json_t *q = method_of("others");
    const json_t *list = json_object_get(q, "linear_weights_not_to_quantize");
    assert_string_equal(json_string_value(json_object_get(q, "quant_method")), "aqlm");
    assert_int_equal(json_integer_value(json_object_get(q, "num_codebooks")), 2);
    assert_int_equal(json_integer_value(json_object_get(q, "nbits_per_codebook")), 4);
    assert_int_equal(json_integer_value(json_object_get(q, "in_group_size")), 8);
    assert_int_equal(json_integer_value(json_object_get(q, "out_group_size")), 1);
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (!lists(list, plain[i])) /* down_proj: 172 inputs are no multiple of 32 */
            fail_msg("%s is not listed", plain[i]);
    assert_false(lists(list, "model.layers.4.mlp.up_proj"));
    assert_false(lists(list, "model.layers.4.mlp.up_proj.codes"));
    json_decref(q);
    fetch_remove(in_root("others"));
    for (int i = check_small(); i < 2; i++) {
        int n;
        must_run("ours", ours[i]);
        q = method_of("ours");
        assert_string_equal(json_string_value(json_object_get(q, "quant_method")), "wring");
        mem_free(logits_of("ours", "auto", &n));
        json_decref(q);
        fetch_remove(in_root("ours"));
    }
}

/* Factors of a matrix are found before its rows are pressed, in every space. */
static void presses_sums(void **state)
{
    (void)state;
    press_to("--codec=lowrank16+planes2");
    press_to("--codec=lowrank16+trellis2");
}

static double asked_fisher(const char *out)
{
    json_t *notes = notes_of(out);
    double n = number(json_object_get(notes, "options"), "fisher");
    json_decref(notes);
    return n;
}

/* How much a row counts makes other factors, and is noted where it is asked for. */
static void weighs_rows(void **state)
{
    static const char *const alike[] = { "--codec=lowrank16+planes2", "--fisher=0", NULL };
    static const char *const weighed[] = { "--codec=lowrank16+planes2", "--fisher=300", NULL };
    static const char *const other[] = { "--codec=planes2", NULL };
    static const char *const family[] = { "--codec=lowrank16+planes", "--bits=30", "--fisher=300",
                                          "--allocate=uniform", NULL };
    int n;
    (void)state;
    must_run("family", family);
    assert_true(asked_fisher("family") == 300);
    fetch_remove(in_root("family"));
    must_run("alike", alike);
    must_run("weighed", weighed);
    must_run("other", other);
    assert_true(asked_fisher("alike") == 0);
    assert_true(asked_fisher("weighed") == 300);
    assert_true(asked_fisher("other") == 0);
    float *a = logits_of("alike", "auto", &n);
    float *b = logits_of("weighed", "auto", &n);
    assert_memory_not_equal(a, b, (size_t)n * sizeof *a);
    mem_free(b);
    mem_free(a);
    fetch_remove(in_root("alike"));
    fetch_remove(in_root("weighed"));
    fetch_remove(in_root("other"));
}

/* So many shards are done. */
static bool shards_done(const void *n)
{
    return there(shard_name("cut.part", *(const int *)n - 1, LAYERS));
}

static void survives_signals(void **state)
{
    int stopped = 0;
    (void)state;
    for (int i = 0; i < 4; i++) {
        int n = 1 + i;
        stopped +=
            run_stopped("model", "cut", NULL, i % 2 == 0 ? SIGKILL : SIGINT, shards_done, &n);
        if (!there(in_root("cut")))
            must_run("cut", NULL);
        same_folders("whole", "cut");
        fetch_remove(in_root("cut"));
    }
    assert_true(stopped > 0);
}

/* ---- what it refuses --------------------------------------------------------------------------------------------- */

/* Fewer tokens than a sequence has are one short sequence. */
static void takes_no_more_tokens(void **state)
{
    static const char *const few[] = { "--tokens=40", "--context=64", NULL };
    (void)state;
    must_run("few", few);
    json_t *notes = notes_of("few");
    assert_true(number(json_object_get(notes, "options"), "tokens") == 40);
    json_decref(notes);
    fetch_remove(in_root("few"));
}

static void keeps_to_its_options(void **state)
{
    static const char *const other[][2] = {
        { "--codec=q8", "codec" },     { "--head=q4", "head" },   { "--tokens=128", "tokens" },
        { "--context=32", "context" }, { "--damp=0.02", "damp" },
    };
    static const char *const forced[] = { "--codec=q8", "--force", NULL };
    (void)state;
    assert_int_equal(rename(in_root("whole"), in_root("w2.part")), 0);
    assert_int_equal(unlink(shard_name("w2.part", 2, LAYERS)), 0);
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        const char *more[] = { other[i][0], NULL };
        char says[64];
        snprintf(says, sizeof says, "was begun with %s ", other[i][1]);
        must_fail("w2", more, ERR_INVALID, says);
        must_fail("w2", more, ERR_INVALID, "--force");
    }
    /* what the tensors do not say of the model is an option as well */
    struct err e;
    json_t *config = json_load_file(joined("model", "config.json"), 0, NULL);
    assert_int_equal(rename(joined("model", "config.json"), joined("model", "kept")), 0);
    assert_int_equal(json_object_set_new(config, "rope_theta", json_real(5e5)), 0);
    assert_int_equal(json_dump_file(config, joined("model", "config.json"), 0), 0);
    assert_int_equal(run("w2", NULL, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "was begun with config "));
    assert_int_equal(rename(joined("model", "kept"), joined("model", "config.json")), 0);
    json_decref(config);
    /* not the folder of a run that is at work */
    int fd = open(in_root("w2.part"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    must_fail("w2", forced, ERR_BUSY, "another run");
    assert_true(there(shard_name("w2.part", 1, LAYERS)));
    close(fd);
    must_run("w2", forced);
    same_folders("q8", "w2");
}

/* No model that looks sound is made of a damaged one. */
static void refuses_no_numbers(void **state)
{
    static const char *const codec[] = { "--codec=q4", "--codec=planes2g32", "--codec=aqlm1x8g8",
                                         "--codec=lowrank16+trellis2" };
    struct err e;
    (void)state;
    assert_int_equal(toy_write(in_root("bad.gguf"), 3, &e), 0);
    toy_spoil(in_root("bad.gguf"), "blk.1.ffn_up.weight");
    for (size_t i = 0; i < sizeof codec / sizeof *codec; i++) {
        const char *const more[] = { codec[i], "--force", NULL };
        assert_int_equal(run_on("bad.gguf", "bad", more, &e), ERR_FORMAT);
        if (strstr(e.text, "blk.1.ffn_up.weight: row 0 has a weight that is no number") == NULL)
            fail_msg("%s: %s", codec[i], e.text);
    }
    fetch_remove(in_root("bad.part"));
}

/* The word for whoever does not care which. */
static void chooses_a_codec(void **state)
{
    static const char *const any[] = { "--codec=auto", NULL };
    static const char *const budget[] = { "--codec=auto", "--bits=11", NULL };
    (void)state;
    must_run("any", any);
    json_t *notes = notes_of("any");
    const json_t *options = json_object_get(notes, "options");
    assert_string_equal(json_string_value(json_object_get(options, "codec")), "trellis2");
    json_decref(notes);
    must_run("budget", budget);
    assert_true(bits_of("budget") <= 11 && bits_of("budget") > 9);
    fetch_remove(in_root("any"));
    fetch_remove(in_root("budget"));
}

static void says_what_is_wrong(void **state)
{
    static const char *const no_txt[] = { "--calibrate=empty", NULL };
    static const char *const bad_codec[] = { "--codec=q4x", NULL };
    static const char *const bad_head[] = { "--head=", NULL };
    static const char *const slow[] = { "--codec=aqlm1x16g8", NULL };
    static const char *const much[] = { "--tokens=100000", NULL };
    static const char *const no_text[] = { "--calibrate=/nonexistent/text", NULL };
    (void)state;
    must_fail("x", bad_codec, ERR_INVALID, "codec: \"q4x\" is no form of weights");
    must_fail("x", bad_head, ERR_INVALID, "head: \"\" is no form of weights");
    must_fail("x", slow, ERR_UNSUPPORTED, "to learn it would take too long");
    must_fail("x", much, ERR_INVALID, "1562 sequences of 64 are asked for");
    must_fail("x", no_text, ERR_NOTFOUND, "/nonexistent/text");
    must_fail("q8", NULL, ERR_INVALID, "q8"); /* it is there */
    must_fail("text.txt/x", NULL, ERR_INVALID, "text.txt/x");
    /* a folder of the working directory, without a slash in its name */
    char was[4096];
    assert_non_null(getcwd(was, sizeof was));
    assert_int_equal(mkdir(in_root("empty"), 0755), 0);
    assert_int_equal(chdir(in_root(".")), 0);
    must_fail("x", no_txt, ERR_NOTFOUND, "empty holds no .txt file");
    assert_int_equal(chdir(was), 0);
    assert_false(there(in_root("x")) || there(in_root("x.part")));
    /* a folder with shards of another making is not touched, forced or not */
    static const char *const forced[] = { "--force", NULL };
    assert_int_equal(rename(in_root("q8"), in_root("y.part")), 0);
    assert_int_equal(unlink(joined("y.part", "quantize.json")), 0);
    must_fail("y", NULL, ERR_INVALID, "did not begin");
    must_fail("y", forced, ERR_INVALID, "did not begin");
    assert_true(there(shard_name("y.part", 0, LAYERS)));
    /* damaged notes are not guessed */
    assert_int_equal(file_write_atomic(joined("y.part", "quantize.json"), "{}", 2, NULL), 0);
    must_fail("y", NULL, ERR_FORMAT, "is damaged");
}

/* Wherever memory runs out, the next run goes on. */
static void survives_lack_of_memory(void **state)
{
    (void)state;
    survives_poverty("model", NULL, 16, 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_loaded_again),
        cmocka_unit_test(reads_gguf),
        cmocka_unit_test(notes_what_was_lost),
        cmocka_unit_test(goes_on),
        cmocka_unit_test(presses_to_every_form),
        cmocka_unit_test(makes_folders_for_others),
        cmocka_unit_test(presses_sums),
        cmocka_unit_test(weighs_rows),
        cmocka_unit_test(survives_signals),
        cmocka_unit_test(takes_no_more_tokens),
        cmocka_unit_test(keeps_to_its_options),
        cmocka_unit_test(refuses_no_numbers),
        cmocka_unit_test(chooses_a_codec),
        cmocka_unit_test(says_what_is_wrong),
        cmocka_unit_test(survives_lack_of_memory),
    };
    log_setup(&(struct log_config){ .level = LOG_E });
    return cmocka_run_group_tests(tests, eval_open, scratch_close);
}
