/* wring quantize: presses the matrices of a model, knowing what each of them reads.
 *
 * The model runs a calibration text, nothing rounded, one layer at a time: what a layer leaves of every sequence waits in host
 * memory, so that besides the model one layer's sums are held and no more. What the matrices of a layer read is summed up as
 * H = sum of x x^T, one H for those that read the same (quant/moments.h); with it they are pressed, and written as one shard
 * of the folder OUT. So the work consists of layers that are done or not: a run that was killed goes on where it was, and
 * ends with the bytes of one that was not. It runs through the layers that are done again, which costs little beside
 * pressing them.
 *
 * Before that, where the matrices share a number of bits, it is settled what form each of them gets: allocate.h.
 *
 * quantize.c is the command; text.c makes sequences of the text, layer.c runs a layer, press.c presses and writes a shard,
 * fisher.c says what rows are worth, loss.c measures what that lost, tune.c tunes the whole (server/tune/tune.h), state.c
 * remembers, report.c tells.
 *
 * Thread: the command's; loops inside spread over the backend's workers.
 */
#ifndef WRING_SERVER_QUANTIZE_QUANTIZE_H
#define WRING_SERVER_QUANTIZE_QUANTIZE_H

#include <jansson.h>

#include "server/base/progress.h"
#include "server/cli/cli.h"
#include "server/cli/runner.h"
#include "server/model/hf_write.h"

/* ---- the calibration text ---------------------------------------------------------------------------------------- */

struct sequences {
    int32_t *token; /* [n][len] */
    int *chunk;     /* [n] rising: which of the text's chunks of len tokens */
    int n, len;
};
/* Whether the texts of a list can be read (texts_check()); a recipe that is not here yet is pulled. */
int quantize_fetch_texts(const char *list, struct err *e) WARN_UNUSED;
/* n_tokens / len sequences (at least one), evenly spread over the texts of the list (server/cli/texts.h; a recipe is pulled
 * where it is not here yet). A sequence begins with BOS where the vocabulary asks for it. <|endoftext|> parts documents.
 * ERR_INVALID: the texts are too short; errors of texts_open and pull_recipe. */
int sequences_open(struct sequences *s, const struct tokenizer *tok, const char *list,
                   int64_t n_tokens, int len, struct err *e) WARN_UNUSED;
/* The same number of those that are most like the texts of the list `target` (server/quantize/align.h); "": evenly spread. */
int sequences_aligned(struct sequences *s, const struct tokenizer *tok, const char *list,
                      const char *target, int64_t n_tokens, int len, struct par *par,
                      struct err *e) WARN_UNUSED;
/* At most n of the sequences that `of`, which is of the same list, left, evenly spread. ERR_INVALID: it left none. */
int sequences_rest(struct sequences *s, const struct sequences *of, const struct tokenizer *tok,
                   const char *list, int n, struct err *e) WARN_UNUSED;
/* [len] */
static inline const int32_t *sequences_at(const struct sequences *s, int i)
{
    return s->token + (size_t)i * (size_t)s->len;
}
void sequences_close(struct sequences *s); /* a zeroed one is accepted */

/* ---- the run ----------------------------------------------------------------------------------------------------- */

enum { PROBE_COLS = 128 }; /* columns that fit every form: a word is tried on so many */

enum { QUANTIZE_OUT = 64, QUANTIZE_ROWS = 128 }; /* rows of logits; rows that stand for a matrix */
#define QUANTIZE_NOTES "quantize.json"

/* Beside quantize.json, what tuning found: factors in f32, as tune.h orders them, behind them every struct tune_move. */
#define QUANTIZE_TUNED "quantize.tune"

struct quantize {
    const struct config *config;
    struct session session; /* the teacher, on the CPU */
    const struct model *model;
    struct source *src;
    struct hf_writer *out;
    struct sequences text;
    struct runner run; /* one sequence, QUANTIZE_OUT rows of logits */
    float *x;          /* [text.n][text.len][dim] what the last layer left */
    float *share;      /* of rows, fisher.c, for forms of a bank too; NULL: alike */
    json_t *state;     /* OUT.part/quantize.json */
    struct progress bar;
};

/* All that the command does but the tables: words 0 and 1 of the config are MODEL and OUT. On success OUT is there, and q for
 * quantize_report() until quantize_close(). ERR_CANCELLED after a signal that fetch_catch_signals() has caught: OUT.part is
 * left for the next run. */
int quantize_run(struct quantize *q, const struct config *c, struct err *e) WARN_UNUSED;
void quantize_close(struct quantize *q);
/* Its first two parts, for programs that look at what it looks at. The model as the file has it, nothing of it rounded on the
 * way, on the CPU; ERR_INVALID also for a codec or head that is none. */
int quantize_open_model(struct quantize *q, struct err *e) WARN_UNUSED;
/* The sequences that it calibrates with, a runner for them, and x, not filled in yet. */
int quantize_open_text(struct quantize *q, struct err *e) WARN_UNUSED;

/* The same with the model and text that q has opened, for other options: c->word[1] is there afterwards, whole. It may be there
 * before, or a part of it. ERR_INVALID: with other options than c's. */
int quantize_whole(const struct quantize *q, const struct config *c, struct err *e) WARN_UNUSED;
/* The form of the layers' matrices, or the family; never "auto". */
const char *quantize_codec(const struct config *c);
/* The form of the embedding and the head. */
const char *quantize_head(const struct config *c);

/* Finds out how much each row of the layers' matrices counts, if the codec asks for it. Memory: the matrices in f32, the head
 * twice. ERR_NOMEM, ERR_CANCELLED. */
int quantize_fisher(struct quantize *q, struct err *e) WARN_UNUSED;
/* The option, or 0 where the codec does not ask. */
int64_t quantize_fisher_tokens(const struct quantize *q);
/* [rows] of a slot of the model; NULL: alike. */
const float *quantize_shares(const struct quantize *q, const struct slot *s);

/* The layer that a tensor belongs to; -1: none. */
int quantize_layer_of(const char *tensor);

/* Sums over the rows that one layer's matrices read. */
struct sums {
    float *
        h[LAYER_INPUTS]; /* [cols][cols], the upper triangle; NULL: nothing of the layer reads it */
    int cols[LAYER_INPUTS];
    int64_t n_rows;
};
int sums_open(struct sums *s, const struct model *m, int layer, struct err *e) WARN_UNUSED;
void sums_close(struct sums *s); /* a zeroed one is accepted */
/* Runs the layer for every sequence, from q->x to q->x. s NULL: without summing up. ERR_CANCELLED after a signal. */
int quantize_run_layer(struct quantize *q, int layer, struct sums *s, struct err *e) WARN_UNUSED;
/* A runner for quantize_pass() of one sequence of len tokens, with QUANTIZE_OUT rows of logits where there are as many.
 * ERR_LIMIT, ERR_NOMEM. */
int quantize_runner(struct runner *r, const struct model *m, int len, struct err *e) WARN_UNUSED;
/* Runs one layer of the runner's model for len tokens, from x [len][dim] to x. */
int quantize_pass(struct runner *r, int layer, const int32_t *token, int len,
                  const struct observer *o, float *x, struct err *e) WARN_UNUSED;
/* Runs the layer for the first len tokens of sequence i, from x [len][dim] to x. */
int quantize_run_sequence(struct quantize *q, int layer, int i, int len, const struct observer *o,
                          float *x, struct err *e) WARN_UNUSED;

/* One matrix on its way. */
struct pressed {
    const struct slot *slot; /* slot->w is the teacher's */
    struct weight w;
    int end;       /* in the loop under way: items of all matrices up to this one */
    double error;  /* tr(E H E^T) / tr(W H W^T), of some rows */
    double energy; /* tr(W H W^T), the mean of these rows */
};
/* Row `row` of a pressed matrix, in the folder's order, as the teacher has it. */
void quantize_row(const struct quantize *q, const struct pressed *p, int row, float *dst);
/* Presses the matrices of a layer (-1: those of none) as the options say, writes their shard and notes what was lost.
 * s: NULL for layer -1. Errors of weight_press, moments_open and hf_write_*; ERR_CANCELLED after a signal. */
int quantize_shard(struct quantize *q, int layer, const struct sums *s, struct err *e) WARN_UNUSED;

/* Fills in error and energy of p[n]. Their inputs are weighted by s; NULL: all alike. ERR_NOMEM. */
int quantize_loss(const struct quantize *q, struct pressed *p, int n, const struct sums *s,
                  struct err *e) WARN_UNUSED;

/* ---- tuning ------------------------------------------------------------------------------------------------------ */

/* Whether the options ask for tuning, of factors or codes. */
bool quantize_tunes(const struct config *c);
/* And whether that has not been done: then q->x must be what the last layer of the teacher leaves. */
bool quantize_tune_due(const struct quantize *q);
/* All shards are there: tunes the model that they make, as --tune and --tune-codes say, and writes them once more. What was
 * found is settled, and noted, before the first shard is replaced, and a shard that has been replaced bears a mark: wherever a
 * run is stopped, the next one goes on, or tunes again from the same start, to the same bytes. ERR_INVALID: there is but one
 * sequence; ERR_CANCELLED after a signal. */
int quantize_tune(struct quantize *q, struct err *e) WARN_UNUSED;

/* ---- what is remembered ------------------------------------------------------------------------------------------ */

/* Reads OUT.part/quantize.json or begins it. ERR_INVALID: the run that began it had other options, and which. */
int quantize_state_open(struct quantize *q, struct err *e) WARN_UNUSED;
/* Whether a folder was made by a run of q's options. ERR_INVALID: no, and which one differs. */
int quantize_state_same(const struct quantize *q, const char *folder, struct err *e) WARN_UNUSED;
/* Notes a matrix; quantize_state_save() brings the notes to the disk. */
int quantize_state_note(struct quantize *q, const struct pressed *p, struct err *e) WARN_UNUSED;
int quantize_state_save(struct quantize *q, struct err *e) WARN_UNUSED;
/* The map of this name in the notes on allocation, to be read and written; empty at first. ERR_NOMEM. */
int quantize_state_map(struct quantize *q, const char *key, json_t **out,
                       struct err *e) WARN_UNUSED;
/* What tuning found: {"step", "before", "after", "moves": codes moved, "found": the mark of QUANTIZE_TUNED}; NULL: it has not. */
const json_t *quantize_state_tuned(const struct quantize *q);
/* Takes note over and brings it to the disk. */
int quantize_state_tune(struct quantize *q, json_t *note, struct err *e) WARN_UNUSED;
/* What was noted of a matrix; NULL: nothing. */
const json_t *quantize_state_find(const struct quantize *q, const char *name);

/* Prints the tables; returns the exit code. seconds: the whole run. */
int quantize_report(const struct quantize *q, double seconds);

#endif
