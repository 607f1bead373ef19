/* The command's part of tuning: which sequences, how many steps of what size, when it is enough, and the shards.
 *
 * Some sequences are held out: steps are judged by their loss, and the factors that were best on them are the result. They are
 * read from the folder as the server will read it, and what is noted is the loss with the scales as they will be stored. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/cli/fetch.h"
#include "server/model/folder.h"
#include "server/quantize/quantize.h"
#include "server/tune/tune.h"

enum {
    STEP_TOKENS = 1024, /* of a step, at least one sequence */
    HELD_PART = 8,      /* one sequence of so many is held out, */
    HELD_TOKENS = 8192, /* no more than so many tokens */
    LOOKS = 8,          /* so often the loss on them is looked at, */
    PATIENCE = 3        /* and so often without gain before the steps end */
};
static const float RATE = .01f; /* of the largest step, in logarithms of factors */

struct tuning {
    struct quantize *q;
    struct tune *tune;
    int *order; /* [text.n] sequences to learn from, the held-out ones behind them */
    int n_learn, n_batch, n;
    float *log, *best; /* [n] */
    double *grad;      /* [n] */
    int best_step;
    double before, least, after; /* KL on the held-out sequences, nats a token */
    struct progress bar;
};

/* ---- sequences --------------------------------------------------------------------------------------------------- */

static int common_divisor(int a, int b)
{
    while (b != 0) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Held-out sequences are evenly spread. The others follow each other in strides of about .618 of them, so that those of a
 * step are from all over the texts. */
static void order_sequences(struct tuning *t)
{
    int n = t->q->text.n;
    int held = (n + HELD_PART - 1) / HELD_PART;
    held = held * t->q->text.len > HELD_TOKENS ? HELD_TOKENS / t->q->text.len : held;
    held = held > 1 ? held : 1;
    t->n_learn = n - held;
    int stride = (int)(t->n_learn * .618) + 1;
    while (common_divisor(stride, t->n_learn) > 1)
        stride++;
    for (int i = 0, learn = 0, out = 0; i < n; i++) {
        if (out < held && i == (int)((2 * (int64_t)out + 1) * n / (2 * (int64_t)held)))
            t->order[t->n_learn + out++] = i;
        else
            t->order[(int)((int64_t)learn++ * stride % t->n_learn)] = i;
    }
    t->n_batch = STEP_TOKENS / t->q->text.len;
    t->n_batch = t->n_batch < 1 ? 1 : t->n_batch > t->n_learn ? t->n_learn : t->n_batch;
}

static struct tune_text text_of(const struct tuning *t, int i)
{
    const struct quantize *q = t->q;
    size_t at = (size_t)t->order[i] * (size_t)q->text.len;
    return (struct tune_text){ q->text.token + at, q->x + at * (size_t)q->model->config.dim,
                               q->text.len };
}

static int cancelled(struct err *e)
{
    return fetch_cancelled() ? err_set(e, ERR_CANCELLED, "stopped") : 0;
}

/* The mean loss over the held-out sequences after so many steps. */
static int look(struct tuning *t, int step, double *kl, struct err *e)
{
    int n = t->q->text.n - t->n_learn;
    *kl = 0;
    for (int i = 0; i < n; i++) {
        struct tune_text text = text_of(t, t->n_learn + i);
        *kl += tune_loss(t->tune, &text, NULL) / ((double)n * text.len);
        TRY(cancelled(e));
        progress_add(&t->bar, (uint64_t)text.len);
    }
    LOG(D, "tuned", "step=%d kl=%.4f", step, *kl);
    return 0;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

/* A tenth of the steps upwards, then down a cosine. */
static float rate_of(int step, int steps)
{
    int warm = (steps + 9) / 10;
    if (step < warm)
        return RATE * (float)(step + 1) / (float)warm;
    return RATE * .5f * (1 + cosf(3.14159265f * (float)(step - warm) / (float)(steps - warm)));
}

static int learn(struct tuning *t, struct adam *a, int step, struct err *e)
{
    int len = t->q->text.len;
    memset(t->grad, 0, (size_t)t->n * sizeof *t->grad);
    for (int i = 0; i < t->n_batch; i++) {
        int64_t at = (int64_t)step * t->n_batch + i;
        struct tune_text text = text_of(t, (int)(at % t->n_learn));
        tune_loss(t->tune, &text, t->grad);
        TRY(cancelled(e));
        progress_add(&t->bar, (uint64_t)len);
    }
    for (int i = 0; i < t->n; i++)
        t->grad[i] /= (double)t->n_batch * len;
    adam_step(a, t->grad, rate_of(step, (int)t->q->config->tune), t->log);
    tune_set(t->tune, t->log);
    return 0;
}

static int steps_between(int steps)
{
    return steps / LOOKS > 0 ? steps / LOOKS : 1;
}

/* Tokens of all steps and of all looks: before the first step, at times, behind the last one, and at what was settled. */
static uint64_t tokens_of(const struct tuning *t)
{
    int steps = (int)t->q->config->tune;
    int every = steps_between(steps);
    int looks = (steps + every - 1) / every + 2;
    int64_t sequences = (int64_t)steps * t->n_batch + (int64_t)looks * (t->q->text.n - t->n_learn);
    return (uint64_t)sequences * (uint64_t)t->q->text.len;
}

static int take_steps(struct tuning *t, struct adam *a, struct err *e)
{
    int steps = (int)t->q->config->tune;
    int every = steps_between(steps);
    TRY(look(t, 0, &t->before, e));
    if (!isfinite(t->before))
        return err_set(e, ERR_INVALID, "the pressed model's outputs are no numbers");
    t->least = t->before;
    for (int step = 1, in_vain = 0; step <= steps && in_vain < PATIENCE; step++) {
        double kl;
        TRY(learn(t, a, step - 1, e));
        if (step % every != 0 && step != steps)
            continue;
        TRY(look(t, step, &kl, e));
        in_vain = kl < t->least ? 0 : in_vain + 1;
        if (in_vain > 0)
            continue;
        t->least = kl;
        t->best_step = step;
        memcpy(t->best, t->log, (size_t)t->n * sizeof *t->best);
    }
    tune_set(t->tune, t->best);
    tune_settle(t->tune);
    return look(t, t->best_step, &t->after, e);
}

static int open_tuning(struct tuning *t, struct model *student, struct err *e)
{
    struct quantize *q = t->q;
    t->n = tune_count_all(student);
    t->order = mem_alloc((size_t)q->text.n * sizeof *t->order);
    t->log = mem_zalloc((size_t)t->n, sizeof *t->log);
    t->best = mem_zalloc((size_t)t->n, sizeof *t->best);
    t->grad = mem_zalloc((size_t)t->n, sizeof *t->grad);
    if (t->order == NULL || t->log == NULL || t->best == NULL || t->grad == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d factors", t->n);
    order_sequences(t);
    return tune_open(&t->tune, student, q->model, q->text.len, e);
}

static void close_tuning(struct tuning *t)
{
    tune_close(t->tune);
    mem_free(t->grad);
    mem_free(t->best);
    mem_free(t->log);
    mem_free(t->order);
}

static int run_tuning(struct tuning *t, struct err *e)
{
    struct adam a;
    TRY(adam_open(&a, t->n, e));
    progress_start(&t->bar, "tune", "tok", tokens_of(t));
    int rc = take_steps(t, &a, e);
    progress_end(&t->bar);
    adam_close(&a);
    return rc;
}

/* ---- what was found ---------------------------------------------------------------------------------------------- */

static void hash_of(char out[HF_MARK], const void *p, size_t n)
{
    snprintf(out, HF_MARK, "%016llx", (unsigned long long)XXH3_64bits(p, n));
}

/* The factors are there before the note says so. */
static int keep(const struct tuning *t, struct err *e)
{
    char path[FOLDER_PATH];
    char mark[HF_MARK];
    float *factor = t->best;
    size_t bytes = (size_t)t->n * sizeof *factor;
    for (int i = 0; i < t->n; i++)
        factor[i] = expf(t->best[i]);
    hash_of(mark, factor, bytes);
    TRY(folder_path(path, hf_write_folder(t->q->out), QUANTIZE_FACTORS, e));
    TRY(file_write_atomic(path, factor, bytes, e));
    return quantize_state_tune(t->q,
                               json_pack("{s:i, s:f, s:f, s:s}", "step", t->best_step, "before",
                                         t->before, "after", t->after, "factors", mark),
                               e);
}

static int find(struct quantize *q, struct model *student, struct err *e)
{
    struct tuning t = { .q = q };
    int rc = open_tuning(&t, student, e);
    if (rc == 0)
        rc = run_tuning(&t, e);
    if (rc == 0)
        rc = keep(&t, e);
    close_tuning(&t);
    return rc;
}

/* ---- the folder -------------------------------------------------------------------------------------------------- */

/* The model that the shards make. */
static int open_student(const struct quantize *q, struct model **out, struct err *e)
{
    struct model_options o;
    TRY(session_options(&o, q->config, q->session.be, false, e));
    o.int8 = false;
    return model_open(out, hf_write_folder(q->out), &o, q->session.be, e);
}

static int read_factors(const struct quantize *q, const struct model *student, struct buf *b,
                        struct err *e)
{
    char mark[HF_MARK];
    const char *noted = json_string_value(json_object_get(quantize_state_tuned(q), "factors"));
    TRY(folder_read(b, hf_write_folder(q->out), QUANTIZE_FACTORS, e));
    hash_of(mark, b->data, b->len);
    if (b->len == (size_t)tune_count_all(student) * sizeof(float) && noted != NULL &&
        strcmp(noted, mark) == 0)
        return 0;
    return err_set(e, ERR_FORMAT, "%s/%s is damaged; start over with --force",
                   hf_write_folder(q->out), QUANTIZE_FACTORS);
}

static int write_slot(struct quantize *q, const struct slot *s, const float *factor, struct err *e)
{
    tune_apply(s, factor);
    if (s->v != NULL)
        return *s->v != NULL ? hf_write_vector(q->out, s->name, *s->v, s->rows, e) : 0;
    return s->w->codec != NULL ? hf_write_weight(q->out, s->name, s->w, e) : 0;
}

/* The shard of a layer, or of what belongs to none (-1), with the factors in it. */
static int write_tuned(struct quantize *q, const struct model *student, int layer,
                       const float *factor, const char *mark, struct err *e)
{
    hf_write_shard_begin(q->out, layer + 1);
    hf_write_shard_mark(q->out, mark);
    for (int i = 0; i < student->n_slots; i++) {
        const struct slot *s = &student->slot[i];
        int rc = quantize_layer_of(s->name) == layer ? write_slot(q, s, factor, e) : 0;
        if (rc < 0) {
            hf_write_shard_drop(q->out);
            return rc;
        }
        factor += tune_count(s);
    }
    return hf_write_shard_end(q->out, e);
}

static int write_shards(struct quantize *q, const struct model *student, const float *factor,
                        struct err *e)
{
    const char *mark = json_string_value(json_object_get(quantize_state_tuned(q), "factors"));
    for (int l = -1; l < student->config.n_layers; l++) {
        if (hf_write_has_mark(q->out, l + 1, mark))
            continue;
        TRY(write_tuned(q, student, l, factor, mark, e));
        TRY(cancelled(e));
    }
    return 0;
}

/* Reads the folder's model and puts the factors into its shards. */
static int apply(struct quantize *q, struct err *e)
{
    struct model *student;
    struct buf factors;
    TRY(open_student(q, &student, e));
    int rc = read_factors(q, student, &factors, e);
    if (rc == 0)
        rc = write_shards(q, student, (const float *)(const void *)factors.data, e);
    buf_free(&factors);
    model_close(student);
    return rc;
}

bool quantize_tune_due(const struct quantize *q)
{
    return q->config->tune > 0 && quantize_state_tuned(q) == NULL;
}

int quantize_tune(struct quantize *q, struct err *e)
{
    struct model *student;
    if (q->config->tune == 0)
        return 0;
    TRY(hf_write_rest(q->out, e));
    if (quantize_tune_due(q)) {
        TRY(open_student(q, &student, e));
        int rc = find(q, student, e);
        model_close(student);
        TRY(rc);
    }
    return apply(q, e);
}
