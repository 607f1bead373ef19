/* wring eval kv: its statistics, words, files and reports, on data made up here. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/cli/bootstrap.h"
#include "server/cli/eval_kv.h"
#include "server/cli/plot.h"
#include "tests/tools/pressing.h"
#include "tests/tools/scratch.h"

/* ---- statistics -------------------------------------------------------------------------------------------------- */

static void bootstraps(void **state)
{
    (void)state;
    double d[400];
    struct interval a;
    struct interval b;
    for (int i = 0; i < 400; i++) /* even on [0, 1): mean .49875, deviation .2887 */
        d[i] = i * .0025;
    assert_int_equal(bootstrap_mean(d, 400, &a), 0);
    double half = 1.96 * .2887 / 20;
    assert_true(fabs(a.mean - .49875) < 1e-9);
    assert_true(fabs(a.low - (a.mean - half)) < .1 * half);
    assert_true(fabs(a.high - (a.mean + half)) < .1 * half);
    assert_int_equal(bootstrap_mean(d, 400, &b), 0);
    assert_memory_equal(&a, &b, sizeof a);
    for (int i = 0; i < 400; i++)
        d[i] = -2;
    assert_int_equal(bootstrap_mean(d, 400, &a), 0);
    assert_true(a.mean == -2 && a.low == -2 && a.high == -2);
    assert_int_equal(bootstrap_mean(d, 0, &a), 0);
    assert_true(isnan(a.mean) && isnan(a.low) && isnan(a.high));
    mem_fail_at(1);
    assert_int_equal(bootstrap_mean(d, 400, &a), ERR_NOMEM);
}

/* ---- words ------------------------------------------------------------------------------------------------------- */

static void splits_lists(void **state)
{
    (void)state;
    const char *list = "a,b:x=1,y=2,c,d:z=0";
    static const char *const want[] = { "a", "b:x=1,y=2", "c", "d:z=0" };
    char word[KV_WORD];
    for (int i = 0; i < 4; i++) {
        assert_true(kv_variant_next(&list, word));
        assert_string_equal(word, want[i]);
    }
    assert_false(kv_variant_next(&list, word));
}

static void parses_variants(void **state)
{
    (void)state;
    struct kv_variant v;
    struct err e;
    char word[KV_WORD];
    const char *name = pressing(0)->name;
    snprintf(word, sizeof word, "%s:merge=none,phi=0,pool=5,lambda=0.5,seed=7,split=uniform", name);
    assert_int_equal(kv_variant_parse(&v, word, &e), 0);
    assert_ptr_equal(v.opt.policy, pressing(0));
    assert_string_equal(v.word, word);
    assert_int_equal(v.opt.merge, KV_MERGE_NONE);
    assert_int_equal(v.opt.split, KV_SPLIT_UNIFORM);
    assert_true(v.opt.phi == -1 && v.opt.pool == 5 && v.opt.lambda == .5f && v.opt.seed == 7);
    static const char *const wrong[] = { "phi",         "phi=",     "phi=x",    "phi=-2",
                                         "phi=nan",     "pool=nan", "pool=1.5", "seed=inf",
                                         "merge=maybe", "nope=1" };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        snprintf(word, sizeof word, "%s:%s", name, wrong[i]);
        assert_int_equal(kv_variant_parse(&v, word, &e), ERR_INVALID);
    }
    assert_int_equal(kv_variant_parse(&v, "nosuch", &e), ERR_INVALID);
    assert_non_null(strstr(e.text, name)); /* the ones there are */
}

/* ---- a grid made up here ----------------------------------------------------------------------------------------- */

enum { SAMPLES = 20 };

static void open_grid(struct kv_grid *g, struct config *c)
{
    struct err e;
    char policies[256];
    char base[64];
    const char *name = pressing(0)->name;
    snprintf(policies, sizeof policies, "--policies=%s,%s:phi=0", name, name);
    snprintf(base, sizeof base, "--base=%s", name);
    const char *argv[] = { policies, base, "--tasks=continue,number", "--budgets=32,64" };
    assert_int_equal(config_parse(c, CONFIG_EVAL_KV, 4, (char **)(uintptr_t)argv, &e), 0);
    if (kv_grid_open(g, c, "16", SAMPLES, &e) < 0)
        fail_msg("%s", e.text);
    g->settings = 42;
    assert_int_equal(g->n_tasks, 2);
    assert_int_equal(g->n_variants, 2);
    assert_true(g->variant[0].base && !g->variant[1].base);
}

/* The second variant's divergence is .1 less, it differs two tokens later, and it answers all, where the first answers half. */
static void fill_grid(struct kv_grid *g)
{
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < SAMPLES; s++)
            for (int v = -1; v < 2; v++)
                for (int b = 0; b < (v < 0 ? 1 : 2); b++)
                    *kv_grid_at(g, t, s, v, b) =
                        (struct kv_cell){ .have = true,
                                          .tokens = 5,
                                          .answers = 1,
                                          .exact = v == 0 ? s % 2 : 1,
                                          .kl = v < 0 ? 0 : .3 + .01 * s - .1 * v,
                                          .kl95 = 1.0 / 3,
                                          .attn = v < 0 ? 0 : .25,
                                          .top1 = .75,
                                          .nll = v < 0 ? 1 : 1.5,
                                          .nll_full = 1,
                                          .first = 10 + 2 * v,
                                          .mass = .9,
                                          .pressings = 3,
                                          .bytes = v < 0 ? 1 << 20 : 1 << (16 + b),
                                          .press_ms = 2,
                                          .prefill_ms = 100,
                                          .depth = t == 0 ? -1 : (s + .5) / SAMPLES };
}

static void write_report(const struct kv_grid *g, struct buf *md, struct buf *csv)
{
    struct err e;
    assert_int_equal(kv_report_md(g, "title", in_root("r.md"), &e), 0);
    assert_int_equal(kv_report_csv(g, in_root("r.csv"), &e), 0);
    read_file(md, "r.md");
    read_file(csv, "r.csv");
}

static void averages(void **state)
{
    (void)state;
    struct config c;
    struct kv_grid g;
    struct kv_means m;
    open_grid(&g, &c);
    fill_grid(&g);
    kv_grid_at(&g, 1, 3, 0, 0)->have = false;
    kv_grid_means(&g, 1, 0, 0, &m);
    assert_int_equal(m.n, SAMPLES - 1);
    assert_true(fabs(m.exact - 9.0 / 19) < 1e-12);
    assert_true(fabs(m.ppl_ratio - exp(.5)) < 1e-12);
    assert_true(fabs(m.share - .0625) < 1e-12);
    assert_true(fabs(m.attn - .25) < 1e-12);
    assert_true(fabs(m.press_share - .02) < 1e-12);
    assert_true(m.first == 10 && m.pressings == 3);
    g.task[1] = kv_task_find(
        "stream"); /* whose prefill is not what its pressings are to be compared with */
    kv_grid_means(&g, 1, 0, 0, &m);
    assert_true(isnan(m.press_share) && fabs(m.press_ms - 2) < 1e-12);
    kv_grid_at(&g, 0, 0, 0, 0)->have = false;
    for (int s = 0; s < SAMPLES; s++)
        kv_grid_at(&g, 0, s, 1, 1)->have = false;
    kv_grid_means(&g, 0, 1, 1, &m);
    assert_int_equal(m.n, 0);
    assert_true(isnan(m.kl));
    kv_grid_close(&g);
    config_free(&c);
}

static void reports(void **state)
{
    (void)state;
    struct config c;
    struct kv_grid g;
    struct buf md;
    struct buf csv;
    open_grid(&g, &c);
    fill_grid(&g);
    write_report(&g, &md, &csv);
    const char *name = pressing(0)->name;
    char want[256];
    snprintf(want, sizeof want,
             "| `%s:phi=0` | 64 | 131072 | 12.5 | 20 | 0.2950 | 0.333 | 25.0 | 75.0 | 1.649 | "
             "100.0 | 1.500 | 12.0 | 0.900 | 3.0 | 2.0 | 2.0 |",
             name);
    assert_non_null(strstr(buf_str(&md), want));
    /* against the base: every pair differs by the same */
    snprintf(want, sizeof want,
             "| `%s:phi=0` | 32 | 20 | -0.1000 [-0.1000, -0.1000] | - | +0.000 [+0.000, +0.000] | "
             "+2.0 [+2.0, +2.0] |",
             name);
    assert_non_null(strstr(buf_str(&md), want));
    snprintf(want, sizeof want, "| `%s:phi=0` | 32 | 20 | -0.1000 [-0.1000, -0.1000] | +50.0 [+",
             name);
    assert_non_null(strstr(buf_str(&md), want));
    snprintf(want, sizeof want, "| `%s` | 32 | 50 | 50 | 50 | 50 | 50 |", name); /* by depth */
    assert_non_null(strstr(buf_str(&md), want));
    snprintf(want, sizeof want, "\nnumber,\"%s\",32,20,65536,0.0625,0.395,", name);
    assert_non_null(strstr(buf_str(&csv), want));
    /* the whole cache comes first */
    assert_true(strstr(buf_str(&md), "## The whole cache") < strstr(buf_str(&md), "## continue"));
    buf_free(&md);
    buf_free(&csv);
    kv_grid_close(&g);
    config_free(&c);
}

static void save_grid(const struct kv_grid *g, int fd)
{
    struct err e;
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < SAMPLES; s++)
            for (int v = -1; v < 2; v++)
                for (int b = 0; b < (v < 0 ? 1 : 2); b++)
                    assert_int_equal(kv_grid_save(g, fd, t, s, v, b, &e), 0);
}

static void comes_back(void **state)
{
    (void)state;
    struct config c;
    struct config c2;
    struct kv_grid g;
    struct kv_grid h;
    struct buf md[2];
    struct buf csv[2];
    struct err e;
    open_grid(&g, &c);
    fill_grid(&g);
    int fd = open(in_root("r.jsonl"), O_WRONLY | O_CREAT | O_APPEND, 0644);
    assert_true(fd >= 0);
    save_grid(&g, fd);
    g.settings = 43; /* the same places under other settings: not to be taken */
    kv_grid_at(&g, 0, 0, 0, 0)->kl = 99;
    save_grid(&g, fd);
    kv_grid_at(&g, 0, 0, 0, 0)->kl = .3;
    static const char cut[] = "{\"settings\":\"000000000000002a\",\"task\":\"cont";
    assert_int_equal(write(fd, cut, strlen(cut)), strlen(cut));
    close(fd);
    open_grid(&h, &c2);
    assert_int_equal(kv_grid_load(&h, in_root("r.jsonl"), &e), 0);
    write_report(&g, &md[0], &csv[0]);
    write_report(&h, &md[1], &csv[1]);
    assert_string_equal(buf_str(&md[0]), buf_str(&md[1]));
    assert_string_equal(buf_str(&csv[0]), buf_str(&csv[1]));
    for (int i = 0; i < 2; i++) {
        buf_free(&md[i]);
        buf_free(&csv[i]);
    }
    kv_grid_close(&g);
    kv_grid_close(&h);
    config_free(&c);
    config_free(&c2);
}

/* What a line does not say is not known: neither read as 0 nor written. */
static void lacks_numbers(void **state)
{
    (void)state;
    static const char line[] =
        "{\"settings\":\"000000000000002a\",\"task\":\"number\",\"sample\":1,"
        "\"tokens\":4,\"answers\":1,\"kl\":0.5}\n";
    struct config c;
    struct kv_grid g;
    struct buf b;
    struct err e;
    open_grid(&g, &c);
    assert_int_equal(file_write_atomic(in_root("l.jsonl"), line, strlen(line), &e), 0);
    assert_int_equal(kv_grid_load(&g, in_root("l.jsonl"), &e), 0);
    const struct kv_cell *x = kv_grid_at(&g, 1, 1, -1, 0);
    assert_true(x->have && x->tokens == 4 && x->kl == .5 && isnan(x->first));
    int fd = open(in_root("m.jsonl"), O_WRONLY | O_CREAT, 0644);
    assert_true(fd >= 0);
    assert_int_equal(kv_grid_save(&g, fd, 1, 1, -1, 0, &e), 0);
    close(fd);
    read_file(&b, "m.jsonl");
    assert_non_null(strstr(buf_str(&b), "\"kl\":0.5"));
    assert_null(strstr(buf_str(&b), "first"));
    buf_free(&b);
    kv_grid_close(&g);
    config_free(&c);
}

/* A file system that takes only a part of a line stands for a full one. */
static void tells_of_full_disks(void **state)
{
    (void)state;
    struct config c;
    struct kv_grid g;
    struct rlimit old;
    struct err e;
    open_grid(&g, &c);
    fill_grid(&g);
    int fd = open(in_root("f.jsonl"), O_WRONLY | O_CREAT | O_APPEND, 0644);
    assert_true(fd >= 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    struct rlimit small = { 20, old.rlim_max };
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    errno = ENOTTY; /* of something else, long ago */
    int rc = kv_grid_save(&g, fd, 0, 0, -1, 0, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(rc, ERR_IO);
    assert_string_equal(e.text, "cannot write: File too large");
    close(fd);
    kv_grid_close(&g);
    config_free(&c);
}

static void plots(void **state)
{
    (void)state;
    struct buf b;
    struct err e;
    struct plot_series s[] = { { "a", { 1, 2, 4 }, { .3, NAN, .1 }, 3 },
                               { "none", { 0 }, { 0 }, 0 } };
    struct plot p = { "title", "x", "y", s, 2 };
    assert_int_equal(plot_write(&p, in_root("p.png"), &e), 0);
    read_file(&b, "p.png");
    assert_true(b.len > 1000);
    assert_memory_equal(b.data, "\x89PNG\r\n", 6);
    buf_free(&b);
    assert_int_equal(plot_write(&p, in_root("absent/p.png"), &e), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bootstraps),      cmocka_unit_test(splits_lists),
        cmocka_unit_test(parses_variants), cmocka_unit_test(averages),
        cmocka_unit_test(reports),         cmocka_unit_test(comes_back),
        cmocka_unit_test(lacks_numbers),   cmocka_unit_test(tells_of_full_disks),
        cmocka_unit_test(plots),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
