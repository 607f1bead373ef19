/* The command's part of tuning: which sequences, how many steps of what size, when it is enough, and the shards.
 *
 * Some sequences are held out: steps are judged by their loss, and the factors that were best on them are the result. They are
 * read from the folder as the server will read it, and what is noted is the loss with the scales as they will be stored.
 *
 * Then codes move. A step of theirs is judged alone: what does not lessen the loss on what is held out is unmade. */
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
    PATIENCE = 3,       /* and so often without gain before the steps end */
    CODES_TOKENS = 8192 /* of a step that moves codes */
};
/* Of the largest step, in logarithms of factors, where the loss is FULL or more. What a step can gain and the noise of slopes
 * shrink with the root of the loss, what the step's length costs does not: so the step shrinks with it, too. Steps of .01 made
 * SmolLM2-135M in trellis3 (a loss of .18) worse, each of them. */
static const float RATE = .01f, FULL = .5f;
/* How much more the loss bends than tune.h's formula has it, and what that is multiplied by after a step that was no good.
 * stories15M in planes2g32, one step by the slopes of 28,672 tokens: from a KL of .669 on what is held out 415 leads to .668
 * (116 moves), 138 to .601 (16,006), 41 to 7.9 (541,149). */
static const float CAUTION = 160, WARIER = 2;

struct tuning {
    struct quantize *q;
    struct tune *tune;
    int *order; /* [text.n] sequences to learn from, the held-out ones behind them */
    int n_learn, n_batch, n;
    int n_codes;       /* sequences of a step that moves codes */
    float *log, *best; /* [n] */
    double *grad;      /* [n] */
    struct buf moves;  /* struct tune_move, those that stay made */
    float bold;        /* what RATE is multiplied by */
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

static int batch_of(const struct tuning *t, int tokens)
{
    int n = tokens / t->q->text.len;
    return n < 1 ? 1 : n > t->n_learn ? t->n_learn : n;
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
    t->n_batch = batch_of(t, STEP_TOKENS);
    t->n_codes = batch_of(t, CODES_TOKENS);
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

/* The gradient of the step's batch of n sequences, summed up. */
static int read_batch(struct tuning *t, int step, int n, struct err *e)
{
    memset(t->grad, 0, (size_t)t->n * sizeof *t->grad);
    for (int i = 0; i < n; i++) {
        int64_t at = (int64_t)step * n + i;
        struct tune_text text = text_of(t, (int)(at % t->n_learn));
        tune_loss(t->tune, &text, t->grad);
        TRY(cancelled(e));
        progress_add(&t->bar, (uint64_t)text.len);
    }
    return 0;
}

static int learn(struct tuning *t, struct adam *a, int step, struct err *e)
{
    int len = t->q->text.len;
    TRY(read_batch(t, step, t->n_batch, e));
    for (int i = 0; i < t->n; i++)
        t->grad[i] /= (double)t->n_batch * len;
    adam_step(a, t->grad, t->bold * rate_of(step, (int)t->q->config->tune), t->log);
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
    int codes = (int)t->q->config->tune_codes;
    int64_t sequences = (int64_t)steps * t->n_batch + (int64_t)codes * t->n_codes +
                        ((int64_t)looks + codes) * (t->q->text.n - t->n_learn);
    return (uint64_t)sequences * (uint64_t)t->q->text.len;
}

/* From the best factors so far on, half as far. The slopes' means stay: most of them were taken there. */
static void go_back(struct tuning *t)
{
    memcpy(t->log, t->best, (size_t)t->n * sizeof *t->log);
    tune_set(t->tune, t->log);
    t->bold /= 2;
}

/* Scales are stored rounded: where that takes more than the steps gained, all stays as it was. Codes, which move next, have f16
 * scales, where it takes next to nothing. */
static int settle(struct tuning *t, struct err *e)
{
    tune_set(t->tune, t->best);
    tune_settle(t->tune);
    TRY(look(t, t->best_step, &t->after, e));
    if (t->best_step == 0 || t->after < t->before || t->q->config->tune_codes > 0)
        return 0;
    memset(t->best, 0, (size_t)t->n * sizeof *t->best);
    t->best_step = 0;
    t->after = t->before;
    return 0;
}

static int take_steps(struct tuning *t, struct adam *a, struct err *e)
{
    int steps = (int)t->q->config->tune;
    int every = steps_between(steps);
    TRY(look(t, 0, &t->before, e));
    if (!isfinite(t->before))
        return err_set(e, ERR_FORMAT, "the pressed model's outputs are no numbers");
    t->least = t->before;
    t->bold = t->before < (double)FULL ? sqrtf((float)t->before / FULL) : 1;
    for (int step = 1, in_vain = 0; step <= steps && in_vain < PATIENCE; step++) {
        double kl;
        TRY(learn(t, a, step - 1, e));
        if (step % every != 0 && step != steps)
            continue;
        TRY(look(t, step, &kl, e));
        in_vain = kl < t->least ? 0 : in_vain + 1;
        if (in_vain > 0) {
            go_back(t);
            continue;
        }
        t->least = kl;
        t->best_step = step;
        memcpy(t->best, t->log, (size_t)t->n * sizeof *t->best);
    }
    return settle(t, e);
}

/* ---- codes ------------------------------------------------------------------------------------------------------- */

/* One step, judged; what it read is of use for the next one where it was too bold. */
static int move_codes(struct tuning *t, int step, float caution, bool *good, struct err *e)
{
    size_t had = t->moves.len;
    double kl;
    TRY(tune_codes_move(t->tune, caution, &t->moves, e));
    TRY(look(t, step, &kl, e));
    *good = kl < t->after;
    if (*good) {
        t->after = kl;
        return 0;
    }
    if (t->moves.len > had) {
        const struct tune_move *made = (const void *)(t->moves.data + had);
        tune_codes_undo(t->tune, made, (t->moves.len - had) / sizeof *made);
        t->moves.len = had;
    }
    return 0;
}

static int take_code_steps(struct tuning *t, struct err *e)
{
    float caution = CAUTION;
    bool good = true;
    int in_vain = 0;
    if (t->q->config->tune_codes == 0)
        return 0;
    TRY(tune_codes_open(t->tune, e));
    for (int step = 0, batch = 0; step < t->q->config->tune_codes && in_vain < PATIENCE; step++) {
        if (good) {
            tune_codes_clear(t->tune);
            TRY(read_batch(t, batch++, t->n_codes, e));
        }
        TRY(move_codes(t, step + 1, caution, &good, e));
        caution *= good ? 1 : WARIER;
        in_vain = good ? 0 : in_vain + 1;
    }
    return 0;
}

static int open_tuning(struct tuning *t, struct model *student, struct err *e)
{
    struct quantize *q = t->q;
    buf_init(&t->moves, SIZE_MAX);
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
    buf_free(&t->moves);
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
    if (rc == 0)
        rc = take_code_steps(t, e);
    progress_end(&t->bar, rc == 0);
    adam_close(&a);
    return rc;
}

/* ---- what was found ---------------------------------------------------------------------------------------------- */

static void hash_of(char out[HF_MARK], const void *p, size_t n)
{
    snprintf(out, HF_MARK, "%016llx", (unsigned long long)XXH3_64bits(p, n));
}

/* Factors and moves are there before the note says so. */
static int write_found(const struct tuning *t, struct buf *found, struct err *e)
{
    char path[FOLDER_PATH];
    char mark[HF_MARK];
    for (int i = 0; i < t->n; i++) {
        float factor = expf(t->best[i]);
        (void)buf_add(found, &factor, sizeof factor);
    }
    if (t->moves.len > 0)
        (void)buf_add(found, t->moves.data, t->moves.len);
    if (found->bad < 0)
        return err_set(e, found->bad, "no memory for what was found");
    hash_of(mark, found->data, found->len);
    TRY(folder_path(path, hf_write_folder(t->q->out), QUANTIZE_TUNED, e));
    TRY(file_write_atomic(path, found->data, found->len, e));
    json_int_t moves = (json_int_t)(t->moves.len / sizeof(struct tune_move));
    return quantize_state_tune(t->q,
                               json_pack("{s:i, s:f, s:f, s:I, s:s}", "step", t->best_step,
                                         "before", t->before, "after", t->after, "moves", moves,
                                         "found", mark),
                               e);
}

static int keep(const struct tuning *t, struct err *e)
{
    struct buf found;
    buf_init(&found, SIZE_MAX);
    int rc = write_found(t, &found, e);
    buf_free(&found);
    return rc;
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

static const char *found_mark(const struct quantize *q)
{
    return json_string_value(json_object_get(quantize_state_tuned(q), "found"));
}

/* Into b: factors for tune_count_all(student), and moves behind them. */
static int read_found(const struct quantize *q, const struct model *student, struct buf *b,
                      struct err *e)
{
    char path[FOLDER_PATH];
    char mark[HF_MARK];
    const char *noted = found_mark(q);
    json_int_t moves = json_integer_value(json_object_get(quantize_state_tuned(q), "moves"));
    buf_init(b, SIZE_MAX); /* 20 bytes a move: large models have hundreds of megabytes */
    TRY(folder_path(path, hf_write_folder(q->out), QUANTIZE_TUNED, e));
    TRY(buf_read_file(b, path, e));
    hash_of(mark, b->data, b->len);
    if (b->len == (size_t)tune_count_all(student) * sizeof(float) +
                      (size_t)moves * sizeof(struct tune_move) &&
        noted != NULL && strcmp(noted, mark) == 0)
        return 0;
    return err_set(e, ERR_FORMAT, "%s/%s is damaged; start over with --force",
                   hf_write_folder(q->out), QUANTIZE_TUNED);
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
    const char *mark = found_mark(q);
    for (int l = -1; l < student->config.n_layers; l++) {
        if (hf_write_has_mark(q->out, l + 1, mark))
            continue;
        TRY(write_tuned(q, student, l, factor, mark, e));
        TRY(cancelled(e));
    }
    return 0;
}

/* Reads the folder's model and puts factors and moves into its shards. Moves that a shard has already change nothing. */
static int apply(struct quantize *q, struct err *e)
{
    struct model *student;
    struct buf found;
    TRY(open_student(q, &student, e));
    int rc = read_found(q, student, &found, e);
    if (rc == 0) {
        const float *factor = (const void *)found.data;
        size_t n = (size_t)tune_count_all(student);
        const struct tune_move *move = (const void *)(factor + n);
        tune_codes_make(student, move, (found.len - n * sizeof *factor) / sizeof *move);
        rc = write_shards(q, student, factor, e);
    }
    buf_free(&found);
    model_close(student);
    return rc;
}

bool quantize_tunes(const struct config *c)
{
    return c->tune > 0 || c->tune_codes > 0;
}

bool quantize_tune_due(const struct quantize *q)
{
    return quantize_tunes(q->config) && quantize_state_tuned(q) == NULL;
}

int quantize_tune(struct quantize *q, struct err *e)
{
    struct model *student;
    if (!quantize_tunes(q->config))
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
