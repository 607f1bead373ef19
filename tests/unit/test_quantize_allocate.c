/* wring quantize --bits, --size: budgets are met, probes measure what they say, a run that goes on ends with the same bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"
#include "tests/tools/eval_fixture.h"
#include "tests/tools/quantize_fixture.h"
#include "tests/tools/scratch.h"
#include "tests/tools/toy.h"

#define PLANES "--codec=planes"

/* All shapes of this model fit every form of planes; those of "model" do not. */
static int open_group(void **state)
{
    struct err e;
    return eval_open(state) < 0 ? -1 : toy_write(in_root("toy.gguf"), 3, &e);
}

/* ---- what came out ----------------------------------------------------------------------------------------------- */

/* The sum of alpha t^2 that the folder `priced` knows for the forms that the folder `made` has. */
static double cost(const char *made, const char *priced)
{
    json_t *a = notes_of(made);
    json_t *b = notes_of(priced);
    const char *name;
    const json_t *alpha;
    double sum = 0;
    json_object_foreach(map_of(b, "alpha"), name, alpha)
    {
        const json_t *m = json_object_get(json_object_get(a, "matrices"), name);
        const char *form = json_string_value(json_object_get(m, "form"));
        assert_non_null(form);
        sum += json_number_value(alpha) * number(map_of(b, "forms"), form);
    }
    json_decref(a);
    json_decref(b);
    return sum;
}

static void keeps_the_budget(void **state)
{
    static const char *const bits[] = { "--bits=2", "--bits=2.7", "--bits=3.3", "--bits=5",
                                        "--bits=6.9" };
    int better = 0;
    (void)state;
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        const char *dp[] = { PLANES, bits[i], NULL };
        const char *uniform[] = { PLANES, bits[i], "--allocate=uniform", NULL };
        double most = strtod(bits[i] + 7, NULL);
        press_toy("dp", dp);
        press_toy("uniform", uniform);
        assert_true(bits_of("dp") <= most && bits_of("uniform") <= most);
        assert_true(bits_of("dp") > most - .1); /* one matrix's step is at most a twelfth of all */
        assert_true(cost("dp", "dp") <= cost("uniform", "dp"));
        better += cost("dp", "dp") < .9 * cost("uniform", "dp");
        fetch_remove(in_root("dp"));
        fetch_remove(in_root("uniform"));
    }
    assert_true(better >= 2);
}

/* Bytes of all tensors of a folder, as its index has them. */
static long long size_of(const char *folder)
{
    json_t *index = json_load_file(joined(folder, "model.safetensors.index.json"), 0, NULL);
    const json_t *all = json_object_get(json_object_get(index, "metadata"), "total_size");
    assert_true(json_is_integer(all));
    long long size = json_integer_value(all);
    json_decref(index);
    return size;
}

/* Head and norms count; what is left over is less than a step of one matrix. */
static void keeps_the_size(void **state)
{
    static const int kib[] = { 53, 64, 80, 100 };
    static const char *const heads[] = { "--head=q8", "--head=f32" };
    (void)state;
    for (size_t i = 0; i < 2 * sizeof kib / sizeof *kib; i++) {
        char size[32];
        long long most = 1024LL * kib[i / 2] + (i % 2 == 0 ? 0 : 1024LL * 110);
        snprintf(size, sizeof size, "--size=%lld", most);
        const char *more[] = { PLANES, size, heads[i % 2], NULL };
        press_toy("sized", more);
        assert_in_range(size_of("sized"), most - TOY_FFN * TOY_DIM / 8, most);
        fetch_remove(in_root("sized"));
    }
}

/* Forms that do not fit a shape are counted as what takes their place. */
static void counts_what_does_not_fit(void **state)
{
    static const char *const more[] = { "--codec=q", "--bits=14", NULL };
    (void)state;
    must_run("odd", more);
    double bits = bits_of("odd");
    assert_true(bits <= 14 && bits > 13.5);
    json_t *notes = notes_of("odd");
    assert_null(json_object_get(map_of(notes, "alpha"), "blk.0.ffn_down.weight"));
    assert_true(number(map_of(notes, "alpha"), "blk.0.ffn_up.weight") > 0);
    json_decref(notes);
}

/* With room for all the widest is what --codec alone gives: the probes left the model as it was. */
static void leaves_the_model_alone(void **state)
{
    static const char *const wide[] = { PLANES, "--bits=16", NULL };
    static const char *const plain[] = { "--codec=planes8", NULL };
    struct buf x[2];
    (void)state;
    press_toy("wide", wide);
    press_toy("plain", plain);
    for (int i = 0; i <= TOY_LAYERS; i++) {
        for (int k = 0; k < 2; k++) {
            const char *name = shard_name(k == 0 ? "wide" : "plain", i, TOY_LAYERS);
            read_file(&x[k], name + strlen(root) + 1);
        }
        assert_int_equal(x[0].len, x[1].len);
        assert_memory_equal(x[0].data, x[1].data, x[0].len);
        buf_free(&x[0]);
        buf_free(&x[1]);
    }
}

/* ---- what is measured -------------------------------------------------------------------------------------------- */

static void makes_gaussian_numbers(void **state)
{
    enum { N = 100000 };
    static float x[N];
    float y[7];
    double sum[5] = { 0 };
    (void)state;
    gauss_fill(x, N, 5, 9);
    for (int i = 0; i < N; i++)
        for (int k = 1; k <= 4; k++)
            sum[k] += pow((double)x[i], k) / N;
    assert_true(fabs(sum[1]) < .015 && fabs(sum[2] - 1) < .02);
    assert_true(fabs(sum[3]) < .04 && fabs(sum[4] - 3) < .15);
    gauss_fill(y, 7, 5, 9);
    assert_memory_equal(x, y, sizeof y);
    gauss_fill(y, 7, 5, 10);
    assert_true(x[0] != y[0]);
    gauss_fill(y, 7, 6, 9);
    assert_true(x[0] != y[0]);
}

/* No code beats the rate-distortion bound of 4^-bits, and each bit is worth about a factor of 4. */
static void measures_forms(void **state)
{
    struct be *be;
    struct err e;
    double last = 1;
    (void)state;
    assert_int_equal(be_open(&be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    for (int bits = 1; bits <= 8; bits++) {
        char form[24];
        double t2;
        snprintf(form, sizeof form, "planes%d", bits);
        assert_int_equal(gauss_error(be, form, &t2, &e), 0);
        assert_true(t2 > pow(4, -bits) && t2 < 4 * pow(4, -bits) && t2 < last / 2);
        last = t2;
    }
    double q4;
    assert_int_equal(gauss_error(be, "q4m", &q4, &e), 0);
    assert_true(q4 > 1 / 256. && q4 < .02);
    assert_int_equal(gauss_error(be, "nothing", &q4, &e), ERR_UNSUPPORTED);
    be_close(be);
}

/* W with noise of t^2 = 0.05, in the matrix's place. */
static void add_noise(struct session *s, const struct slot *t)
{
    struct err e;
    struct weight w;
    assert_int_equal(weight_open_form(&w, s->be, "f32", false, t->rows, t->cols, &e), 0);
    float *x = mem_zalloc((size_t)CODEC_PANEL * 3 * (size_t)t->cols, sizeof *x);
    assert_non_null(x);
    float *noise = x + (ptrdiff_t)CODEC_PANEL * t->cols;
    for (int row = 0; row < t->rows; row++) {
        float *to = x + (ptrdiff_t)(row % CODEC_PANEL) * t->cols;
        double sum = 0;
        weight_row(t->w, row, to);
        gauss_fill(noise, t->cols, (uint64_t)(t - s->model->slot), (uint64_t)row);
        for (int i = 0; i < t->cols; i++)
            sum += (double)to[i] * (double)to[i];
        for (int i = 0; i < t->cols; i++)
            to[i] += (float)sqrt(.05 * sum / t->cols) * noise[i];
        if (row % CODEC_PANEL == CODEC_PANEL - 1)
            weight_fill(&w, row + 1 - CODEC_PANEL, CODEC_PANEL, DT_F32, x,
                        x + (ptrdiff_t)2 * CODEC_PANEL * t->cols);
    }
    mem_free(x);
    weight_close(t->w, s->be);
    *t->w = w;
}

/* alpha is the divergence of whole passes over t^2. */
static void measures_alpha(void **state)
{
    static const char *const names[] = { "blk.0.attn_v.weight", "blk.1.ffn_down.weight" };
    static const char *const more[] = { PLANES, "--bits=3", NULL };
    (void)state;
    press_toy("probed", more);
    json_t *notes = notes_of("probed");
    for (int k = 0; k < 2; k++) {
        struct session s[2];
        for (int i = 0; i < 2; i++)
            open_session(&s[i], "toy.gguf");
        for (int i = 0; i < s[1].model->n_slots; i++)
            if (strcmp(s[1].model->slot[i].name, names[k]) == 0)
                add_noise(&s[1], &s[1].model->slot[i]);
        double want = divergence_of(s[0].model, s[1].model, 2) / .05;
        double got = number(map_of(notes, "alpha"), names[k]);
        if (!(want > 0 && fabs(got - want) < .01 * want))
            fail_msg("%s: alpha %g, by whole passes %g", names[k], got, want);
        session_close(&s[0]);
        session_close(&s[1]);
    }
    json_decref(notes);
}

/* ---- going on ---------------------------------------------------------------------------------------------------- */

/* The folder "again" as if no shard had been done; its notes. */
static json_t *undo(void)
{
    assert_int_equal(rename(in_root("again"), in_root("again.part")), 0);
    for (int i = 0; i <= TOY_LAYERS; i++)
        assert_int_equal(unlink(shard_name("again.part", i, TOY_LAYERS)), 0);
    return notes_of("again.part");
}

static void save_notes(const char *folder, json_t *notes)
{
    assert_int_equal(json_dump_file(notes, joined(folder, "quantize.json"), 0), 0);
    json_decref(notes);
}

/* As if stopped: no shards, no choice, alphas of the first layer only. */
static void goes_on(void **state)
{
    static const char *const more[] = { PLANES, "--bits=3.3", "--threads=1", NULL };
    static const char *const two[] = { PLANES, "--bits=3.3", "--threads=2", NULL };
    (void)state;
    press_toy("whole", more);
    press_toy("again", two);
    same_folders("whole", "again");
    for (int k = 0; k < 3; k++) {
        json_t *notes = undo();
        json_object_clear(json_object_get(notes, "matrices"));
        const char *name;
        void *next;
        json_t *v;
        if (k > 0)
            json_object_clear(map_of(notes, "choice"));
        if (k > 1)
            json_object_foreach_safe(map_of(notes, "alpha"), next, name, v)
            {
                if (quantize_layer_of(name) > 0)
                    json_object_del(map_of(notes, "alpha"), name);
            }
        save_notes("again.part", notes);
        press_toy("again", more);
        same_folders("whole", "again");
    }
}

/* What was measured is not measured again: an alpha from the notes, true or not, is what counts. */
static void keeps_its_probes(void **state)
{
    static const char *const more[] = { PLANES, "--bits=3.3", NULL };
    static const char name[] = "blk.0.attn_k.weight";
    (void)state;
    json_t *notes = undo();
    json_object_clear(map_of(notes, "choice"));
    json_object_set_new(map_of(notes, "alpha"), name, json_real(1e6));
    save_notes("again.part", notes);
    press_toy("again", more);
    notes = notes_of("again");
    assert_string_equal(json_string_value(json_object_get(map_of(notes, "choice"), name)),
                        "planes8");
    json_decref(notes);
}

static bool has_probes(const void *none)
{
    (void)none;
    json_t *notes = json_load_file(joined("cut.part", "quantize.json"), 0, NULL);
    bool has = json_object_get(notes, "allocation") != NULL;
    json_decref(notes);
    return has;
}

/* Probes of a layer are on the disk. */
static void survives_signals(void **state)
{
    static const char *const more[] = { PLANES, "--bits=3.3", NULL };
    int stopped = 0;
    (void)state;
    for (int i = 0; i < 2; i++) {
        int sig = i == 0 ? SIGINT : SIGKILL;
        stopped += run_stopped("toy.gguf", "cut", more, sig, has_probes, NULL);
        if (!there(in_root("cut")))
            press_toy("cut", more);
        same_folders("whole", "cut");
        fetch_remove(in_root("cut"));
    }
    assert_true(stopped > 0);
}

static void survives_lack_of_memory(void **state)
{
    static const char *const more[] = { PLANES, "--bits=3.3", NULL };
    (void)state;
    survives_poverty("toy.gguf", more, 24, 12);
}

/* ---- what it refuses --------------------------------------------------------------------------------------------- */

static void says_what_is_wrong(void **state)
{
    static const char *const no_bits[] = { PLANES, NULL };
    static const char *const one_form[] = { "--codec=q4", "--bits=5", NULL };
    static const char *const one_sized[] = { "--codec=q4", "--size=1M", NULL };
    static const char *const both[] = { PLANES, "--bits=3", "--size=1M", NULL };
    static const char *const tuned[] = { "--codec=planes", "--pareto=3", "--tune=2", NULL };
    static const char *const nothing[] = { "--codec=nothing", "--bits=5", NULL };
    static const char *const unshared[] = { "--codec=q4", "--allocate=hawq", NULL };
    static const char *const unchosen[] = { "--codec=q4", "--forms=bank", NULL };
    static const char *const no_way[] = { PLANES, "--bits=3", "--allocate=fair", NULL };
    struct config c;
    struct err e;
    (void)state;
    must_fail("x", no_bits, ERR_INVALID, "codec: planes is a family of forms");
    must_fail("x", one_sized, ERR_INVALID, "size: q4 is one form for all matrices");
    must_fail("x", both, ERR_INVALID, "bits, size, pareto: one of them");
    must_fail("x", tuned, ERR_INVALID, "tune: a sweep judges models as they are pressed");
    must_fail("x", one_form, ERR_INVALID, "bits: q4 is one form for all matrices");
    must_fail("x", unshared, ERR_INVALID, "allocate: there is nothing to share out without --bits");
    must_fail("x", unchosen, ERR_INVALID, "forms: there is nothing to choose from without --bits");
    must_fail("x", nothing, ERR_INVALID, "codec: \"nothing\" is no form of weights");
    assert_true(config_parse(&c, CONFIG_QUANTIZE, 3, (char **)(uintptr_t)no_way, &e) < 0);
    assert_non_null(strstr(e.text, "allocate: \"fair\" is not one of: dp uniform"));
    config_free(&c);
    assert_false(there(in_root("x")) || there(in_root("x.part")));
}

/* The least that the message names is enough, and a hair less is not. */
static void names_the_least(void **state)
{
    static const char *const ways[] = { "--allocate=dp", "--allocate=uniform" };
    (void)state;
    for (int i = 0; i < 2; i++) {
        const char *more[] = { PLANES, "--bits=0.5", ways[i], NULL };
        char bits[32];
        struct err e;
        assert_int_equal(run_on("toy.gguf", "least", more, &e), ERR_INVALID);
        const char *is = strstr(e.text, "can do here is ");
        assert_non_null(is);
        double least = strtod(is + 15, NULL);
        assert_true(least > 1 && least < 2);
        more[1] = bits;
        snprintf(bits, sizeof bits, "--bits=%.4f", least - .0002);
        assert_int_equal(run_on("toy.gguf", "least", more, &e), ERR_INVALID);
        assert_false(there(in_root("least.part")));
        snprintf(bits, sizeof bits, "--bits=%.4f", least);
        press_toy("least", more);
        assert_true(bits_of("least") <= least && bits_of("least") > least - .0002);
        fetch_remove(in_root("least"));
    }
}

/* So do bytes: what the message names is enough, and what it takes; one less is not, even less than nothing else needs. */
static void names_the_least_size(void **state)
{
    static const char *const ways[] = { "--allocate=dp", "--allocate=uniform" };
    (void)state;
    for (int i = 0; i < 2; i++) {
        const char *more[] = { PLANES, "--size=1K", ways[i], NULL };
        char size[32];
        struct err e;
        assert_int_equal(run_on("toy.gguf", "least", more, &e), ERR_INVALID);
        const char *is = strstr(e.text, "can do here is ");
        assert_non_null(is);
        long long least = strtoll(is + 15, NULL, 10);
        more[1] = size;
        snprintf(size, sizeof size, "--size=%lld", least - 1);
        assert_int_equal(run_on("toy.gguf", "least", more, &e), ERR_INVALID);
        assert_false(there(in_root("least.part")));
        snprintf(size, sizeof size, "--size=%lld", least);
        press_toy("least", more);
        assert_int_equal(size_of("least"), least);
        fetch_remove(in_root("least"));
    }
}

static void keeps_to_its_options(void **state)
{
    static const char *const more[] = { PLANES, "--bits=3", NULL };
    static const char *const way[] = { PLANES, "--bits=3.3", "--allocate=uniform", NULL };
    struct err e;
    (void)state;
    assert_int_equal(rename(in_root("whole"), in_root("w2.part")), 0);
    assert_int_equal(run_on("toy.gguf", "w2", more, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "was begun with bits 3.3, now it is 3"));
    assert_int_equal(run_on("toy.gguf", "w2", way, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "was begun with allocate \"dp\", now it is \"uniform\""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_the_budget),         cmocka_unit_test(keeps_the_size),
        cmocka_unit_test(counts_what_does_not_fit), cmocka_unit_test(leaves_the_model_alone),
        cmocka_unit_test(makes_gaussian_numbers),   cmocka_unit_test(measures_forms),
        cmocka_unit_test(measures_alpha),           cmocka_unit_test(goes_on),
        cmocka_unit_test(keeps_its_probes),         cmocka_unit_test(survives_signals),
        cmocka_unit_test(survives_lack_of_memory),  cmocka_unit_test(says_what_is_wrong),
        cmocka_unit_test(names_the_least),          cmocka_unit_test(names_the_least_size),
        cmocka_unit_test(keeps_to_its_options),
    };
    log_setup(&(struct log_config){ .level = LOG_E });
    return cmocka_run_group_tests(tests, open_group, scratch_close);
}
