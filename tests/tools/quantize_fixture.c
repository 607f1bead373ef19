#include "tests/tools/quantize_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <unistd.h>

#include "server/cli/quantize.h"
#include "tests/tools/scratch.h"

enum { MAX_ARGS = 16 };

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

int run_on(const char *model, const char *out, const char *const *more, struct err *e)
{
    struct config c;
    struct quantize q;
    options(&c, model, out, more);
    int rc = quantize_run(&q, &c, e);
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
