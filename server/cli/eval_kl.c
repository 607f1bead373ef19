#include "server/cli/eval_kl.h"

#include <math.h>
#include <string.h>

#include "server/base/mem.h"
#include "server/base/progress.h"
#include "server/cli/chunks.h"
#include "server/cli/eval.h"
#include "server/cli/logits.h"
#include "server/cli/runner.h"
#include "server/model/arch.h"

static const char usage[] = "eval kl MODEL REF TEXT [options]";

enum { MODEL, REF, SIDES };

/* What is known of a position and, as means, of a chunk. */
enum value {
    DIVERGENCE, /* KL(ref || model) */
    SAME,       /* 1 where the first choices are equal */
    NLL,        /* [SIDES] of the token that came */
    NLL_REF,
    LOST, /* the model's nll less the reference's */
    VALUES
};

struct kl {
    const struct model *model[SIDES];
    struct runner run[SIDES];
    struct chunks text;
    double (*chunk)[VALUES]; /* [text.n] */
    double *kl;              /* [text.n * text.ctx] */
    /* of the step under way */
    const float *logits[SIDES];
    const int32_t *next; /* the tokens that came: one less than rows at the end of a chunk */
    int n_next;
    double row[EVAL_OUT][VALUES];
};

/* ---- the same tokens ------------------------------------------------------------------------------------------------ */

/* Ids that one of the two has no text for (gaps of a tokenizer.json) may be anything in the other. */
static int same_vocabulary(const struct kl *k, struct err *e)
{
    const struct tokenizer *a = k->model[MODEL]->tok;
    const struct tokenizer *b = k->model[REF]->tok;
    int vocab = k->model[MODEL]->config.vocab;
    if (vocab != k->model[REF]->config.vocab)
        return err_set(e, ERR_INVALID,
                       "the models have vocabularies of %d and %d tokens; the same one is needed",
                       vocab, k->model[REF]->config.vocab);
    for (int32_t i = 0; i < vocab; i++) {
        int n = 0;
        int m = 0;
        const char *x = tok_piece(a, i, &n);
        const char *y = tok_piece(b, i, &m);
        if (n > 0 && m > 0 && (n != m || memcmp(x, y, (size_t)n) != 0))
            return err_set(e, ERR_INVALID,
                           "token %d is \"%s\" in one model and \"%s\" in the other; the same "
                           "vocabulary is needed",
                           (int)i, x, y);
    }
    return 0;
}

/* Tokens that both were trained for. */
static int trained(const struct kl *k)
{
    int a = k->model[MODEL]->config.ctx_train, b = k->model[REF]->config.ctx_train;
    return a < b ? a : b;
}

static int same_text(const struct kl *k, const struct config *c, const char *path, struct err *e)
{
    struct chunks other;
    TRY(chunks_open(&other, c, k->model[REF]->tok, trained(k), path, e));
    const struct tok_ids *a = &k->text.text;
    const struct tok_ids *b = &other.text;
    int i = 0;
    while (i < a->n && i < b->n && a->id[i] == b->id[i])
        i++;
    int rc = 0;
    if (i < a->n || i < b->n)
        rc = err_set(e, ERR_INVALID,
                     "the models' tokenizers give other tokens for %s, from token %d on", path, i);
    chunks_close(&other);
    return rc;
}

/* ---- a chunk -------------------------------------------------------------------------------------------------------- */

static void judge_rows(void *arg, int first, int last, int i_thread)
{
    struct kl *k = arg;
    int vocab = k->model[REF]->config.vocab;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        const float *x[SIDES];
        struct peak peak[SIDES];
        double *row = k->row[r];
        for (int s = 0; s < SIDES; s++) {
            x[s] = k->logits[s] + (ptrdiff_t)r * vocab;
            peak[s] = logits_peak(x[s], vocab);
            row[NLL + s] = r < k->n_next ? peak[s].lse - (double)x[s][k->next[r]] : 0;
        }
        row[DIVERGENCE] = logits_kl(x[REF], x[MODEL], vocab, peak[REF].lse, peak[MODEL].lse);
        row[SAME] = isfinite(row[DIVERGENCE]) ? peak[REF].best == peak[MODEL].best : NAN;
        row[LOST] = row[NLL] - row[NLL_REF];
    }
}

/* Adds n rows, the first at position i, to the means of a chunk. */
static void add_rows(struct kl *k, int i_chunk, int i, int n)
{
    int ctx = k->text.ctx;
    double *kl = k->kl + (ptrdiff_t)i_chunk * ctx + i;
    for (int r = 0; r < n; r++) {
        kl[r] = k->row[r][DIVERGENCE];
        for (int v = 0; v < VALUES; v++)
            k->chunk[i_chunk][v] += k->row[r][v] / (v < NLL ? ctx : ctx - 1);
    }
}

static int judge_chunk(struct kl *k, int i_chunk, struct err *e)
{
    int ctx = k->text.ctx;
    const int32_t *token = chunks_at(&k->text, i_chunk);
    runner_reset(&k->run[MODEL]);
    runner_reset(&k->run[REF]);
    for (int i = 0; i < ctx; i += EVAL_OUT) {
        int n = ctx - i < EVAL_OUT ? ctx - i : EVAL_OUT;
        for (int s = 0; s < SIDES; s++)
            TRY(runner_append(&k->run[s], 0, token + i, n, n, &k->logits[s], e));
        k->next = token + i + 1;
        k->n_next = i + n < ctx ? n : n - 1;
        par_for(k->model[REF]->be->par, n, 1, judge_rows, k);
        add_rows(k, i_chunk, i, n);
    }
    return 0;
}

static int judge_text(struct kl *k, struct err *e)
{
    struct progress bar;
    const struct chunks *t = &k->text;
    progress_start(&bar, "divergence", "tok", (uint64_t)t->n * (uint64_t)t->ctx);
    int rc = 0;
    for (int i = 0; rc == 0 && i < t->n; i++) {
        rc = judge_chunk(k, i, e);
        progress_add(&bar, (uint64_t)t->ctx);
    }
    progress_end(&bar, rc == 0);
    return rc;
}

/* ---- sums ----------------------------------------------------------------------------------------------------------- */

static struct estimate over_chunks(const struct kl *k, enum value v)
{
    int n = k->text.n;
    double mean = 0;
    double squares = 0;
    for (int i = 0; i < n; i++)
        mean += k->chunk[i][v] / n;
    for (int i = 0; i < n; i++)
        squares += (k->chunk[i][v] - mean) * (k->chunk[i][v] - mean);
    return (struct estimate){ mean, n > 1 ? sqrt(squares / (n - 1) / n) : NAN };
}

/* Bytes of the tokens that perplexity is of; special tokens are not text. */
static double text_bytes(const struct kl *k)
{
    const struct tokenizer *tok = k->model[REF]->tok;
    double bytes = 0;
    for (int c = 0; c < k->text.n; c++)
        for (int i = 1; i < k->text.ctx; i++) {
            int32_t id = chunks_at(&k->text, c)[i];
            int n = 0;
            if (!tok_is_special(tok, id) && tok_piece(tok, id, &n) != NULL)
                bytes += n;
        }
    return bytes;
}

/* Bits per weight of the matrices in the layers; *n_all: parameters of the whole model. */
static double layer_bits(const struct model *m, double *n_all)
{
    double bytes = 0;
    double n = 0;
    *n_all = 0;
    for (int i = 0; i < m->n_slots; i++) {
        const struct slot *s = &m->slot[i];
        bool here = s->w != NULL ? s->w->codec != NULL : *s->v != NULL;
        double size = here ? (double)s->rows * (s->w != NULL ? s->cols : 1) : 0;
        *n_all += size;
        if (s->reads == INPUT_OF_NONE || !here)
            continue;
        bytes += (double)weight_bytes(s->w);
        n += size;
    }
    return 8 * bytes / n;
}

static struct kl_side sum_up_side(const struct kl *k, int side)
{
    const struct model *m = k->model[side];
    double nll = over_chunks(k, (enum value)(NLL + side)).mean;
    double tokens = (double)k->text.n * (k->text.ctx - 1);
    double n;
    struct kl_side out = { .ppl = exp(nll),
                           .byte_bits = nll / log(2) * tokens / text_bytes(k),
                           .layer_bits = layer_bits(m, &n),
                           .bytes = m->weight_bytes };
    out.bits = 8 * (double)m->weight_bytes / n;
    return out;
}

static void sum_up(struct kl *k, struct kl_result *out)
{
    int n = k->text.n * k->text.ctx;
    struct estimate lost = over_chunks(k, LOST);
    cli_sort(k->kl, n);
    *out = (struct kl_result){ .n_chunks = k->text.n,
                               .ctx = k->text.ctx,
                               .kl = over_chunks(k, DIVERGENCE),
                               .top1 = over_chunks(k, SAME),
                               .ratio = { exp(lost.mean), exp(lost.mean) * lost.error },
                               .kl95 = k->kl[(int64_t)(n - 1) * 95 / 100],
                               .model = sum_up_side(k, MODEL),
                               .ref = sum_up_side(k, REF) };
}

/* ---- the command ---------------------------------------------------------------------------------------------------- */

static int measure(struct kl *k, const struct config *c, const char *path, struct err *e)
{
    TRY(same_vocabulary(k, e));
    TRY(chunks_open(&k->text, c, k->model[MODEL]->tok, trained(k), path, e));
    session_check_ctx(k->text.ctx, trained(k));
    TRY(same_text(k, c, path, e));
    enum kv_type type = cli_kv_type(c, k->model[MODEL]->be);
    for (int s = 0; s < SIDES; s++)
        TRY(runner_open(&k->run[s], k->model[s], type, 1, k->text.ctx, EVAL_OUT, EVAL_OUT, e));
    k->chunk = mem_zalloc((size_t)k->text.n, sizeof *k->chunk);
    k->kl = mem_zalloc((size_t)k->text.n * (size_t)k->text.ctx, sizeof *k->kl);
    if (k->chunk == NULL || k->kl == NULL)
        return err_set(e, ERR_NOMEM, "no memory for %d chunks of %d tokens", k->text.n,
                       k->text.ctx);
    return judge_text(k, e);
}

int kl_measure(const struct model *model, const struct model *ref, const struct config *c,
               const char *path, struct kl_result *out, struct err *e)
{
    struct kl k = { .model = { model, ref } };
    int rc = measure(&k, c, path, e);
    if (rc == 0)
        sum_up(&k, out);
    mem_free(k.kl);
    mem_free(k.chunk);
    runner_close(&k.run[MODEL]);
    runner_close(&k.run[REF]);
    chunks_close(&k.text);
    return rc;
}

/* Exact weights, products with nothing rounded; all else as the user says. */
static int open_ref(struct session *s, const struct config *c, struct err *e)
{
    char weights[] = "auto";
    char activations[] = "f32";
    struct config exact = *c;
    exact.weights = weights;
    exact.activations = activations;
    return session_open(s, &exact, c->word[2], true, e);
}

static int run(struct session s[SIDES], const struct config *c, struct kl_result *out,
               struct err *e)
{
    TRY(file_check(c->word[3], e)); /* read in no time, models are not */
    TRY(session_open(&s[MODEL], c, c->word[1], true, e));
    TRY(open_ref(&s[REF], c, e));
    return kl_measure(s[MODEL].model, s[REF].model, c, c->word[3], out, e);
}

int eval_kl(int argc, char **argv)
{
    struct config c;
    struct err e;
    bool done;
    int code = cli_config(&c, CONFIG_EVAL_KL, usage, 4, argc, argv, &done);
    if (done)
        return code;
    struct session s[SIDES] = { 0 };
    struct kl_result r;
    code = run(s, &c, &r, &e) < 0 ? cli_fail(&e) : kl_print(&r, c.json);
    session_close(&s[MODEL]);
    session_close(&s[REF]);
    config_free(&c);
    return code;
}
