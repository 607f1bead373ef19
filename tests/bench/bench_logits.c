/* Logits of a device next to the CPU's: the same model, the same tokens, both ways. Usage:
 * bench_logits DEVICE MODEL...      DEVICE: cuda, cuda:N; MODEL: a path, or SHAPE:FORM as `wring bench --synthetic` takes.
 *
 * The CPU writes TOKENS tokens, each time the most likely one; the device gets the first half as one prompt and the rest
 * token by token. "exact": inputs of products and the cache in f32 on both sides, where only the order of sums differs.
 * "served": as a server runs by default, int8 inputs on the CPU and bf16 on a GPU, a bf16 cache on both. One line a model
 * and way; the last line says how many passed, and the exit code is 1 when any failed.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "server/base/mem.h"
#include "server/cli/runner.h"
#include "server/model/synthetic.h"

enum { TOKENS = 128, HALF = TOKENS / 2, BOS = 1 };

struct way {
    const char *name;
    bool rounded;
    enum kv_type kv;
    double most_kl; /* nats, mean over the tokens */
};
/* Measured on tests/simt, tiny shapes and stories260K: 1e-12 at most where only the order of sums differs, 1.1e-4 at most
 * with rounding. */
static const struct way ways[] = { { "exact", false, KV_F32, 1e-9 },
                                   { "served", true, KV_BF16, 0.01 } };

struct side {
    struct be *be;
    struct model *model;
    struct runner run;
    float *logits; /* [TOKENS][vocab] */
};

static int open_side(struct side *s, const char *device, const char *model, const struct way *w,
                     struct err *e)
{
    struct stat st;
    struct model_options o = { .weights = "auto", .int8 = w->rounded };
    *s = (struct side){ 0 };
    TRY(be_open(&s->be, &(struct be_config){ .device = device }, e));
    if (strchr(model, ':') != NULL && stat(model, &st) < 0)
        TRY(synthetic_open(&s->model, model, &o, s->be, e));
    else
        TRY(model_open(&s->model, model, &o, s->be, e));
    s->logits = mem_zalloc((size_t)TOKENS * (size_t)s->model->config.vocab, sizeof(float));
    if (s->logits == NULL)
        return err_set(e, ERR_NOMEM, "no memory for logits");
    return runner_open(&s->run, s->model, w->kv, 1, TOKENS, HALF, HALF, e);
}

static void close_side(struct side *s)
{
    runner_close(&s->run);
    mem_free(s->logits);
    model_close(s->model);
    be_close(s->be);
}

static int largest(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* n more tokens in one step, the logits of all to row `at`. */
static int append(struct side *s, const int32_t *token, int at, int n, struct err *e)
{
    size_t vocab = (size_t)s->model->config.vocab;
    const float *logits;
    TRY(runner_append(&s->run, 0, token + at, n, n, &logits, e));
    memcpy(s->logits + (size_t)at * vocab, logits, (size_t)n * vocab * sizeof *logits);
    return 0;
}

static int write_tokens(struct side *s, int32_t *token, struct err *e)
{
    const int vocab = s->model->config.vocab;
    token[0] = BOS;
    for (int i = 0; i < TOKENS; i++) {
        TRY(append(s, token, i, 1, e));
        if (i + 1 < TOKENS)
            token[i + 1] = largest(s->logits + (size_t)i * (size_t)vocab, vocab);
    }
    return 0;
}

static int read_tokens(struct side *s, const int32_t *token, struct err *e)
{
    TRY(append(s, token, 0, HALF, e));
    for (int i = HALF; i < TOKENS; i++)
        TRY(append(s, token, i, 1, e));
    return 0;
}

static double log_sum_exp(const float *x, int n)
{
    double max = (double)x[largest(x, n)];
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return max + log(sum);
}

struct difference {
    double kl, error; /* mean nats; root of the mean square next to the logits' own */
    int same;         /* of TOKENS: the same token is the most likely one */
};

static void compare(const struct side *a, const struct side *b, struct difference *d)
{
    const int vocab = a->model->config.vocab;
    double square = 0;
    double off = 0;
    *d = (struct difference){ 0 };
    for (int r = 0; r < TOKENS; r++) {
        const float *x = a->logits + (size_t)r * (size_t)vocab;
        const float *y = b->logits + (size_t)r * (size_t)vocab;
        double zx = log_sum_exp(x, vocab);
        double zy = log_sum_exp(y, vocab);
        d->same += largest(x, vocab) == largest(y, vocab);
        for (int i = 0; i < vocab; i++) {
            double p = (double)x[i] - zx;
            double q = (double)y[i] - zy;
            d->kl += exp(p) * (p - q) / TOKENS;
            square += (double)x[i] * (double)x[i];
            off += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        }
    }
    d->error = sqrt(off / square);
}

/* True when the device's logits are near enough; NaN never is. */
static bool run_model(const char *device, const char *model, const struct way *w, struct err *e)
{
    struct side cpu = { 0 };
    struct side dev = { 0 };
    int32_t token[TOKENS];
    int rc = open_side(&cpu, "cpu", model, w, e);
    if (rc == 0)
        rc = open_side(&dev, device, model, w, e);
    if (rc == 0)
        rc = write_tokens(&cpu, token, e);
    if (rc == 0)
        rc = read_tokens(&dev, token, e);
    bool ok = false;
    if (rc == 0) {
        struct difference d;
        compare(&cpu, &dev, &d);
        ok = d.kl < w->most_kl && d.error < 1;
        printf("%-24s %-8s %12.3g %12.3g %9d/%d  %s\n", model, w->name, d.error, d.kl, d.same,
               TOKENS, ok ? "ok" : "FAILED");
    } else {
        printf("%-24s %-8s FAILED: %s\n", model, w->name, e->text);
    }
    fflush(stdout);
    close_side(&dev);
    close_side(&cpu);
    return ok;
}

int main(int argc, char **argv)
{
    int passed = 0;
    int failed = 0;
    struct err e;
    if (argc < 3) {
        fprintf(stderr, "usage: bench_logits DEVICE MODEL...\n");
        return 2;
    }
    printf("%-24s %-8s %12s %12s %13s\n", "model", "way", "error", "KL", "same token");
    for (int i = 2; i < argc; i++)
        for (size_t k = 0; k < sizeof ways / sizeof ways[0]; k++) {
            bool ok = run_model(argv[1], argv[i], &ways[k], &e);
            passed += ok;
            failed += !ok;
        }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
