/* wring quantize --allocate: what hawq, baq, lgreco and evopress know of matrices and forms is what they say it is, their choices
 * keep the budget, and a search that was stopped goes on. */
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

static char forms[300]; /* --forms=root/bank */

static int open_group(void **state)
{
    struct err e;
    if (eval_open(state) < 0)
        return -1;
    snprintf(forms, sizeof forms, "--forms=%s/bank", root);
    return toy_write(in_root("toy.gguf"), 3, &e);
}

static const struct slot *slot_of(const struct model *m, const char *name)
{
    for (int i = 0; i < m->n_slots; i++)
        if (strcmp(m->slot[i].name, name) == 0)
            return &m->slot[i];
    fail_msg("no %s", name);
    return NULL;
}

static void keeps_the_budget(void **state)
{
    static const char *const ways[] = { "--allocate=hawq", "--allocate=baq", "--allocate=lgreco",
                                        "--allocate=evopress" };
    static const char *const bits[] = { "--bits=2.2", "--bits=3.3", "--bits=6" };
    (void)state;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 3; k++) {
            const char *more[] = { PLANES, bits[k], ways[i], forms, "--generations=2", NULL };
            double most = strtod(bits[k] + 7, NULL);
            press_toy("out", more);
            assert_true(bits_of("out") <= most);
            assert_true(bits_of("out") > most - .1); /* a twelfth, and a little for groups */
            fetch_remove(in_root("out"));
        }
}

/* ---- what they measure ------------------------------------------------------------------------------------------- */

/* Signs of one size in the place of a matrix's error, written out: the curvature is the divergence over their t^2; and with
 * other signs it is the same within what a matrix of 4096 numbers allows. */
static void add_signs(struct session *s, const struct slot *t, uint64_t seed)
{
    struct err e;
    struct weight w;
    double sum = 0;
    assert_int_equal(weight_open_form(&w, s->be, "f32", false, t->rows, t->cols, &e), 0);
    float *x = mem_zalloc((size_t)t->rows * 3 * (size_t)t->cols, sizeof *x);
    assert_non_null(x);
    float *noise = x + (ptrdiff_t)t->rows * t->cols;
    for (int i = 0; i < t->rows; i++)
        weight_row(t->w, i, x + (ptrdiff_t)i * t->cols);
    for (int i = 0; i < t->rows * t->cols; i++)
        sum += (double)x[i] * (double)x[i];
    float size = (float)sqrt(.005 * sum / t->rows / t->cols);
    for (int i = 0; i < t->rows; i++) {
        gauss_fill(noise, t->cols, seed, (uint64_t)i);
        for (int k = 0; k < t->cols; k++)
            x[i * t->cols + k] += noise[k] < 0 ? -size : size;
    }
    weight_fill(&w, 0, t->rows, DT_F32, x, noise);
    mem_free(x);
    weight_close(t->w, s->be);
    *t->w = w;
}

static void measures_curvature(void **state)
{
    static const char *const names[] = { "blk.0.ffn_up.weight", "blk.1.attn_v.weight" };
    static const char *const more[] = { PLANES, "--bits=3", "--allocate=hawq", NULL };
    (void)state;
    press_toy("hawq", more);
    json_t *notes = notes_of("hawq");
    for (int k = 0; k < 4; k++) {
        struct session s[2];
        for (int i = 0; i < 2; i++)
            open_session(&s[i], "toy.gguf");
        const struct slot *t = slot_of(s[1].model, names[k / 2]);
        add_signs(&s[1], t, (uint64_t)(t - s[1].model->slot) + (k % 2 == 0 ? 0 : 1000));
        double want = divergence_of(s[0].model, s[1].model, 2) / .005;
        double got = number(map_of(notes, "curvature"), names[k / 2]);
        if (!(want > 0 && fabs(got - want) < (k % 2 == 0 ? .01 : .3) * want))
            fail_msg("%s: curvature %g, by whole passes %g", names[k / 2], got, want);
        session_close(&s[0]);
        session_close(&s[1]);
    }
    json_decref(notes);
}

static void measures_rounding(void **state)
{
    enum { ROWS = 37, COLS = 128 };
    static float x[2][ROWS * COLS];
    struct be *be;
    struct weight w;
    struct err e;
    double t2, lost = 0, all = 0;
    (void)state;
    assert_int_equal(be_open(&be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    assert_int_equal(weight_open_form(&w, be, "planes3", false, ROWS, COLS, &e), 0);
    gauss_fill(x[0], ROWS * COLS, 1, 1);
    assert_int_equal(rounding_error(&w, x[0], x[1], &t2, &e), 0);
    for (int r = 0; r < ROWS; r++) {
        weight_row(&w, r, x[1]);
        for (int i = 0; i < COLS; i++) {
            double was = (double)x[0][r * COLS + i];
            lost += ((double)x[1][i] - was) * ((double)x[1][i] - was);
            all += was * was;
        }
    }
    assert_true(lost > 0 && fabs(t2 - lost / all) < 1e-6 * t2);
    weight_close(&w, be);
    be_close(be);
}

/* The variance of each input that those behind it do not explain, by elimination from the last: 1 / U_jj^2. Their sum. */
static double unexplained(double *h, int n)
{
    double sum = 0;
    for (int j = n - 1; j >= 0; j--) {
        double d = h[j * n + j];
        sum += d;
        for (int r = 0; r < j; r++)
            for (int c = 0; c < j; c++)
                h[r * n + c] -= h[r * n + j] * h[j * n + c] / d;
    }
    return sum;
}

/* From sums s of layer 0, for matrix t, whose codec does not rotate. */
static double spread_of(const struct sums *s, const struct slot *t, double damp)
{
    static double h[TOY_DIM * TOY_DIM];
    static float w[TOY_DIM];
    int n = t->cols;
    double mean = 0, energy = 0, squares = 0;
    for (int r = 0; r < n; r++)
        for (int c = 0; c < n; c++)
            h[r * n + c] =
                (double)s->h[t->reads][r < c ? r * n + c : c * n + r] / (double)s->n_rows;
    for (int r = 0; r < t->rows; r++) {
        weight_row(t->w, r, w);
        for (int i = 0; i < n; i++) {
            squares += (double)w[i] * (double)w[i];
            for (int k = 0; k < n; k++)
                energy += (double)w[i] * h[i * n + k] * (double)w[k];
        }
    }
    for (int i = 0; i < n; i++)
        mean += h[i * n + i] / n;
    for (int i = 0; i < n; i++)
        h[i * n + i] += damp * mean;
    return squares / n * unexplained(h, n) / energy;
}

static void measures_spread(void **state)
{
    static const char *const names[] = { "blk.0.attn_v.weight", "blk.0.attn_output.weight",
                                         "blk.0.ffn_up.weight" };
    static const char *const more[] = { PLANES, "--bits=3", "--allocate=baq", "--damp=.02", NULL };
    struct quantize q;
    struct config c;
    struct sums s;
    struct err e;
    (void)state;
    assert_int_equal(run_open(&q, &c, "toy.gguf", "baq", more, &e), 0);
    json_t *notes = notes_of("baq");
    assert_int_equal(sums_open(&s, q.model, 0, &e), 0);
    assert_int_equal(quantize_run_layer(&q, 0, &s, &e), 0);
    for (int k = 0; k < 3; k++) {
        double want = spread_of(&s, slot_of(q.model, names[k]), .02);
        double got = number(map_of(notes, "spread"), names[k]);
        if (!(want > 0 && fabs(got - want) < .002 * want))
            fail_msg("%s: spread %g, written out %g", names[k], got, want);
    }
    sums_close(&s);
    json_decref(notes);
    quantize_close(&q);
    config_free(&c);
}

/* The sum of the errors that the bank noted for the forms of a folder. */
static double bank_cost(const char *folder)
{
    json_t *made = notes_of(folder);
    const char *name;
    const json_t *word;
    double sum = 0;
    json_object_foreach(map_of(made, "choice"), name, word)
    {
        char path[64];
        snprintf(path, sizeof path, "bank/%s", json_string_value(word));
        json_t *form = notes_of(path);
        const json_t *m = json_object_get(json_object_get(form, "matrices"), name);
        assert_true(json_is_real(json_object_get(m, "error")));
        sum += json_number_value(json_object_get(m, "error"));
        json_decref(form);
    }
    json_decref(made);
    return sum;
}

/* lgreco's choice has the least sum of real errors; nothing that another way chose has less. */
static void prefers_what_loses_least(void **state)
{
    static const char *const ways[] = { "--allocate=lgreco", "--allocate=dp", "--allocate=baq",
                                        "--allocate=uniform" };
    double cost[4];
    (void)state;
    for (int i = 0; i < 4; i++) {
        const char *more[] = { PLANES, "--bits=3.3", ways[i], forms, NULL };
        press_toy("out", more);
        cost[i] = bank_cost("out");
        assert_true(cost[i] >= cost[0]);
        fetch_remove(in_root("out"));
    }
    assert_true(cost[0] < .95 * cost[3]);
}

/* ---- trials ------------------------------------------------------------------------------------------------------ */

/* What evopress says of its last parent is what whole passes of the folder that came out say; more generations, less of it. */
static void judges_what_comes_out(void **state)
{
    static const char *const count[] = { "--generations=1", "--generations=12" };
    double kl[3];
    (void)state;
    for (int k = 0; k < 3; k++) {
        struct session s[2];
        const char *more[] = { PLANES,
                               "--bits=2.7",
                               forms,
                               k == 0 ? "--allocate=dp" : "--allocate=evopress",
                               k == 0 ? NULL : count[k - 1],
                               NULL };
        press_toy("out", more);
        open_session(&s[0], "toy.gguf");
        open_session(&s[1], "out");
        kl[k] = divergence_of(s[0].model, s[1].model, 4);
        json_t *notes = notes_of("out");
        if (k > 0 && fabs(number(map_of(notes, "score"), "kl") - kl[k]) > 1e-4 * kl[k])
            fail_msg("noted %g, by whole passes %g", number(map_of(notes, "score"), "kl"), kl[k]);
        assert_true(k == 0 || kl[k] <= kl[k - 1]);
        json_decref(notes);
        session_close(&s[0]);
        session_close(&s[1]);
        fetch_remove(in_root("out"));
    }
    assert_true(kl[2] < kl[0]);
}

/* Forms of a bank are what is made of them alone, where rows count differently as well. */
static void weighs_rows_of_its_bank(void **state)
{
    char bank[300];
    snprintf(bank, sizeof bank, "--forms=%s/weighed", root);
    const char *more[] = { "--codec=lowrank16+trellis", "--bits=30", "--allocate=lgreco", bank,
                           NULL };
    const char *form[] = { "--codec=lowrank16+trellis3", NULL };
    (void)state;
    press_toy("out", more);
    press_toy("form", form);
    same_folders("weighed/lowrank16+trellis3", "form");
    fetch_remove(in_root("out"));
    fetch_remove(in_root("form"));
    fetch_remove(in_root("weighed/lowrank16+trellis2"));
    fetch_remove(in_root("weighed/lowrank16+trellis3"));
    fetch_remove(in_root("weighed/lowrank16+trellis4"));
    assert_int_equal(rmdir(in_root("weighed")), 0);
}

/* A bank that is there is used as it is, whatever is done with what comes of it, and only for what it was made for. */
static void keeps_its_bank(void **state)
{
    const char *more[] = { PLANES, "--bits=3.3", "--allocate=lgreco", forms, NULL };
    const char *other[] = { PLANES, "--bits=3.3", "--allocate=lgreco", forms, "--damp=.1", NULL };
    const char *moved[] = {
        PLANES, "--bits=3.3", "--allocate=lgreco", forms, "--tune-codes=1", NULL
    };
    const char *own[] = { PLANES, "--bits=3.3", "--allocate=lgreco", NULL };
    (void)state;
    struct buf before;
    struct buf after;
    const char *shard = shard_name("bank/planes3", 1, TOY_LAYERS);
    press_toy("out", more);
    read_file(&before, shard + strlen(root) + 1);
    struct err e;
    assert_int_equal(run_on("toy.gguf", "other", other, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "damp"));
    read_file(&after, "bank/planes3/model-00002-of-00003.safetensors");
    assert_int_equal(before.len, after.len);
    press_toy("moved", moved);
    fetch_remove(in_root("moved"));
    press_toy("own", own);
    assert_false(there(in_root("own.forms")));
    assert_true(there(in_root("bank")));
    fetch_remove(in_root("out"));
    fetch_remove(in_root("other.part"));
    buf_free(&before);
    buf_free(&after);
}

static bool has_form(const void *none)
{
    (void)none;
    return there(in_root("cut.forms/planes2"));
}

static bool has_score(const void *none)
{
    (void)none;
    json_t *notes = json_load_file(joined("cut.part", "quantize.json"), 0, NULL);
    json_t *all = json_object_get(notes, "allocation");
    bool has = json_object_get(json_object_get(all, "score"), "kl") != NULL;
    json_decref(notes);
    return has;
}

/* It is stopped in the middle of the bank, or of its generations. */
static void goes_on(void **state)
{
    static const char *const more[] = {
        PLANES, "--bits=2.7", "--allocate=evopress", "--generations=6", "--threads=1", NULL
    };
    static const char *const two[] = {
        PLANES, "--bits=2.7", "--allocate=evopress", "--generations=6", "--threads=2", NULL
    };
    static const int how[] = { SIGINT, SIGKILL, SIGKILL };
    int stopped = 0;
    (void)state;
    press_toy("whole", two);
    for (int i = 0; i < 3; i++) {
        stopped +=
            run_stopped("toy.gguf", "cut", more, how[i], i == 2 ? has_form : has_score, NULL);
        if (!there(in_root("cut"))) {
            assert_true(there(in_root("cut.forms")));
            press_toy("cut", more);
        }
        same_folders("whole", "cut");
        assert_false(there(in_root("cut.forms")));
        fetch_remove(in_root("cut"));
    }
    assert_true(stopped > 0);
}

static void survives_lack_of_memory(void **state)
{
    static const char *const ways[] = { "--allocate=hawq", "--allocate=baq",
                                        "--allocate=evopress" };
    (void)state;
    for (int i = 0; i < 3; i++) {
        const char *more[] = { PLANES, "--bits=3.3", ways[i], forms, "--generations=1", NULL };
        survives_poverty("toy.gguf", more, 10, 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_the_budget),
        cmocka_unit_test(measures_curvature),
        cmocka_unit_test(measures_rounding),
        cmocka_unit_test(measures_spread),
        cmocka_unit_test(prefers_what_loses_least),
        cmocka_unit_test(judges_what_comes_out),
        cmocka_unit_test(weighs_rows_of_its_bank),
        cmocka_unit_test(keeps_its_bank),
        cmocka_unit_test(goes_on),
        cmocka_unit_test(survives_lack_of_memory),
    };
    log_setup(&(struct log_config){ .level = LOG_E });
    return cmocka_run_group_tests(tests, open_group, scratch_close);
}
