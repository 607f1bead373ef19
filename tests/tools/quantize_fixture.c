#include "tests/tools/quantize_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/model/arch.h"
#include "server/quantize/allocate.h"
#include "tests/tools/scratch.h"

enum { MAX_ARGS = 16, CONTEXT = 64 };

static void options(struct config *c, const char *model, const char *out, const char *const *more)
{
    static char calibrate[512];
    static const char *argv[MAX_ARGS] = { 0 };
    struct err e;
    int n = 0;
    snprintf(calibrate, sizeof calibrate, "--calibrate=%s", in_root("text.txt"));
    argv[n++] = in_root(model);
    argv[n++] = in_root(out);
    argv[n++] = "--codec=q4";
    argv[n++] = "--tokens=256";
    argv[n++] = "--context=64";
    argv[n++] = "--threads=2";
    argv[n++] = calibrate;
    for (int i = 0; more != NULL && more[i] != NULL; i++)
        argv[n++] = more[i];
    if (config_parse(c, CONFIG_QUANTIZE, n, (char **)(uintptr_t)argv, &e) < 0)
        fail_msg("%s", e.text);
}

int run_open(struct quantize *q, struct config *c, const char *model, const char *out,
             const char *const *more, struct err *e)
{
    options(c, model, out, more);
    return quantize_run(q, c, e);
}

int run_on(const char *model, const char *out, const char *const *more, struct err *e)
{
    struct config c;
    struct quantize q;
    int rc = run_open(&q, &c, model, out, more, e);
    if (rc == 0)
        quantize_close(&q);
    config_free(&c);
    return rc;
}

int run(const char *out, const char *const *more, struct err *e)
{
    return run_on("model", out, more, e);
}

void must_run(const char *out, const char *const *more)
{
    struct err e;
    if (run(out, more, &e) < 0)
        fail_msg("%s", e.text);
}

void must_fail(const char *out, const char *const *more, int code, const char *says)
{
    struct err e = { 0 };
    int rc = run(out, more, &e);
    if (rc != code)
        fail_msg("%s is not %s: %s", err_name(rc), err_name(code), e.text);
    if (strstr(e.text, says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

const char *joined(const char *a, const char *b)
{
    char name[256];
    snprintf(name, sizeof name, "%s/%s", a, b);
    return in_root(name);
}

void same_folders(const char *a, const char *b)
{
    char name[256];
    int n[2] = { 0 };
    for (int i = 0; i < 2; i++) {
        DIR *d = opendir(in_root(i == 0 ? a : b));
        assert_non_null(d);
        for (const struct dirent *f; (f = readdir(d)) != NULL;)
            n[i] += f->d_name[0] != '.';
        closedir(d);
    }
    assert_true(n[0] > 3 && n[0] == n[1]); /* two shards, config, notes at the least */
    DIR *d = opendir(in_root(a));
    assert_non_null(d);
    for (const struct dirent *f; (f = readdir(d)) != NULL;) {
        struct buf x[2];
        if (f->d_name[0] == '.')
            continue;
        for (int i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "%s/%.200s", i == 0 ? a : b, f->d_name);
            read_file(&x[i], name);
        }
        if (x[0].len != x[1].len || memcmp(x[0].data, x[1].data, x[0].len) != 0)
            fail_msg("%s differs", f->d_name);
        buf_free(&x[0]);
        buf_free(&x[1]);
    }
    closedir(d);
}

const char *shard_name(const char *folder, int i, int layers)
{
    char name[256];
    snprintf(name, sizeof name, "%s/model-%05d-of-%05d.safetensors", folder, i + 1, layers + 1);
    return in_root(name);
}

bool there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* ---- what came out ----------------------------------------------------------------------------------------------- */

bool run_stopped(const char *model, const char *out, const char *const *more, int sig,
                 bool (*now)(const void *arg), const void *arg)
{
    enum { WELL = 0, BADLY = 1, STOPPED = 3 };
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct err e;
        fetch_catch_signals();
        int rc = run_on(model, out, more, &e);
        _exit(rc == ERR_CANCELLED ? STOPPED : rc < 0 ? BADLY : WELL);
    }
    int status = 0;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now(arg) || there(in_root(out)))
            (void)kill(pid, sig);
        (void)usleep(200);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == WELL)
        return false;
    if (sig == SIGKILL)
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    else
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == STOPPED);
    return true;
}

void press_toy(const char *out, const char *const *more)
{
    struct err e;
    if (run_on("toy.gguf", out, more, &e) < 0)
        fail_msg("%s", e.text);
}

void open_session(struct session *s, const char *name)
{
    struct err e;
    struct model_options o = { .weights = "auto" };
    assert_int_equal(be_open(&s->be, &(struct be_config){ .n_threads = 1 }, &e), 0);
    if (model_open(&s->model, in_root(name), &o, s->be, &e) < 0)
        fail_msg("%s", e.text);
}

/* Bits a weight in the matrices of the layers of a folder. */
double bits_of(const char *name)
{
    struct session s;
    double bytes = 0, weights = 0;
    open_session(&s, name);
    for (int i = 0; i < s.model->n_slots; i++) {
        const struct slot *t = &s.model->slot[i];
        if (t->w == NULL || quantize_layer_of(t->name) < 0)
            continue;
        bytes += (double)weight_bytes(t->w);
        weights += (double)t->rows * t->cols;
    }
    session_close(&s);
    return 8 * bytes / weights;
}

json_t *notes_of(const char *folder)
{
    json_t *notes = json_load_file(joined(folder, "quantize.json"), 0, NULL);
    assert_non_null(notes);
    return notes;
}

json_t *map_of(const json_t *notes, const char *key)
{
    json_t *map = json_object_get(json_object_get(notes, "allocation"), key);
    assert_non_null(map);
    return map;
}

double number(const json_t *map, const char *key)
{
    const json_t *v = json_object_get(map, key);
    if (!json_is_number(v))
        fail_msg("%s has no number", key);
    return json_number_value(v);
}

static double log_sum(const float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i]);
    return log(sum);
}

/* The logits of a whole pass over sequence i. */
static const float *logits_of(struct runner *r, const struct model *m, const struct sequences *text,
                              int i)
{
    struct err e;
    const float *x;
    assert_int_equal(runner_open(r, m, KV_F32, 1, CONTEXT, CONTEXT, CONTEXT, &e), 0);
    const int32_t *token = text->token + (ptrdiff_t)i * CONTEXT;
    assert_int_equal(runner_append(r, 0, token, CONTEXT, CONTEXT, &x, &e), 0);
    return x;
}

/* Of b's outputs from a's, in nats a token, written out. */
double divergence_of(const struct model *a, const struct model *b, int n)
{
    struct sequences text;
    struct err e;
    double sum = 0;
    int vocab = a->config.vocab;
    assert_int_equal(sequences_open(&text, a->tok, in_root("text.txt"), 256, CONTEXT, &e), 0);
    for (int i = 0; i < n; i++) {
        struct runner r[2];
        const float *p = logits_of(&r[0], a, &text, i);
        const float *q = logits_of(&r[1], b, &text, i);
        for (int row = 0; row < CONTEXT; row++, p += vocab, q += vocab) {
            double zp = log_sum(p, vocab), zq = log_sum(q, vocab);
            for (int v = 0; v < vocab; v++)
                sum += exp((double)p[v] - zp) * ((double)p[v] - zp - (double)q[v] + zq);
        }
        runner_close(&r[0]);
        runner_close(&r[1]);
    }
    sequences_close(&text);
    return sum / (n * CONTEXT);
}

void survives_poverty(const char *model, const char *const *more, int parts, int least)
{
    struct mem_stats before;
    struct mem_stats after;
    struct err e;
    int failed = 0;
    mem_stats(&before);
    assert_int_equal(run_on(model, "rich", more, &e), 0);
    mem_stats(&after);
    uint64_t calls = after.calls - before.calls;
    for (int k = 1; k <= parts; k++) {
        if (there(in_root("poor")))
            fetch_remove(in_root("poor"));
        mem_fail_at(k < parts ? calls * (uint64_t)k / (uint64_t)parts : 0);
        failed += run_on(model, "poor", more, &e) < 0;
        mem_fail_at(0);
        mem_stats(&after);
        assert_int_equal(after.blocks, before.blocks);
        if (there(in_root("poor")))
            same_folders("rich", "poor");
    }
    assert_true(there(in_root("poor"))); /* the last run had all it wanted */
    assert_true(failed >= least);
    fetch_remove(in_root("poor"));
    fetch_remove(in_root("rich"));
}
