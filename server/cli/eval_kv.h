/* wring eval kv: what pressing the KV cache does to what a model says.
 *
 * A *task* makes cases from texts; a *case* is a prompt and what is fed after it, with the tokens that are judged. A case
 * is prefilled once; every *variant* (a policy with its options) and budget gets a copy of that cache, presses it, and is
 * judged by teacher forcing against what the whole cache says. What came out is one cell of a grid, and one line of
 * DIR/kv.jsonl, from which a later run goes on. Reports and plots read the grid alone.
 */
#ifndef WRING_SERVER_CLI_EVAL_KV_H
#define WRING_SERVER_CLI_EVAL_KV_H

#include "server/cli/cli.h"
#include "server/cli/runner.h"
#include "server/cli/texts.h"

/* ---- cases ----------------------------------------------------------------------------------------------------- */

enum {
    KV_RUN = 8192,     /* most tokens of a stream's run */
    KV_PROBE = KV_RUN, /* most tokens of a case that follow its prompt */
    KV_FED = 384,      /* the same, of any other task */
    KV_JUDGED = 96,    /* tokens whose divergence is measured: their logits are kept */
    KV_GREEDY = 64,    /* tokens that the whole cache chooses */
    KV_STREAM = 65536, /* tokens of all runs of a stream */
    KV_ANSWERS = 8
};

struct kv_case {
    struct tok_ids prompt;    /* in the cache when it is pressed */
    int question0, question1; /* tokens of the prompt that ask; equal: none do */
    int32_t probe[KV_PROBE];  /* fed after it */
    uint8_t answer[KV_PROBE]; /* 0: not judged; k: a token of answer k */
    int n_probe, n_answers;
    double depth; /* of the answer in the text, 0 to 1; -1: in several places, or nowhere */
};

/* A sentence planted in the text. */
struct kv_fact {
    char text[128];
    double depth; /* 0 to 1 */
};

/* Makes cases: texts, what the model's template puts around them, and chance. */
struct kv_maker {
    const struct tokenizer *tok;
    struct tok_ids head, tail; /* before and after a user's text */
    struct texts texts;
    struct tok_ids body; /* the text of the case under way */
    int next;            /* the first token of body that is not in its prompt */
    int length;          /* tokens of a prompt without its question */
    int run;             /* tokens of a stream's run, its prompt included */
    int sample;
    uint64_t key, n_drawn;
};
/* texts: as --text. ctx: most tokens of a stream's run; 0: the model's. Neither goes beyond those or KV_RUN. */
int kv_maker_open(struct kv_maker *m, const struct model *model, const char *texts, int length,
                  int ctx, struct err *e) WARN_UNUSED;
void kv_maker_close(struct kv_maker *m); /* a zeroed one is accepted */
/* Chance from here on depends on these three alone. */
void kv_maker_seed(struct kv_maker *m, uint64_t seed, const char *task, int sample);
int kv_draw(struct kv_maker *m, int n);     /* 0 to n - 1 */
double kv_draw_depth(struct kv_maker *m);   /* .05 to .9 */
double kv_sample_depth(struct kv_maker *m); /* its tenth goes round with the samples */
void kv_draw_some(struct kv_maker *m, int *out, int k, int n); /* k different ones of n */
/* Starts the case: a prompt of m->length tokens of a text with the facts planted at the ends of sentences. ERR_NOMEM;
 * ERR_INVALID: a text is too short. */
int kv_maker_context(struct kv_maker *m, const struct kv_fact *fact, int n_facts, struct kv_case *c,
                     struct err *e) WARN_UNUSED;
/* The same for a prompt of n tokens without facts; n_after more tokens of the text follow, at m->next of m->body. */
int kv_maker_text(struct kv_maker *m, int n, int n_after, struct kv_case *c,
                  struct err *e) WARN_UNUSED;
/* Appends to what is fed after the prompt; answer as in struct kv_case. */
int kv_maker_feed(struct kv_maker *m, struct kv_case *c, const char *text, int answer,
                  struct err *e) WARN_UNUSED;
int kv_maker_feed_ids(struct kv_case *c, const int32_t *id, int n, int answer,
                      struct err *e) WARN_UNUSED;
/* A question of the user's and the first words of the answer to it. */
int kv_maker_ask(struct kv_maker *m, struct kv_case *c, const char *question, const char *lead,
                 struct err *e) WARN_UNUSED;
/* What was fed so far, all but its last token, goes to the prompt as its question: it is seen when the cache is pressed. */
int kv_maker_show(struct kv_case *c, struct err *e) WARN_UNUSED;

enum kv_kind {
    KV_TEXT,   /* text goes on, and what is said is compared with what the whole cache says */
    KV_ANSWER, /* right or wrong, judged where the whole cache is right */
    KV_CHOICE, /* as text, but what goes on is what the whole cache chooses, KV_GREEDY times */
    KV_LONG    /* as text, in a run that is pressed whenever that is due */
};
struct kv_task {
    const char *name, *title;
    enum kv_kind kind;
    int (*make)(struct kv_maker *m, struct kv_case *c, struct err *e);
};
extern const struct kv_task kv_fact_tasks[], kv_recall_tasks[]; /* end with a NULL name */
extern const struct kv_task *const kv_families[];               /* NULL-terminated: these lists */
const struct kv_task *kv_task_find(const char *name);
/* How many of n samples are taken: of a stream, runs until they have KV_STREAM tokens. */
int kv_task_samples(const struct kv_task *t, const struct kv_maker *m, int n);

/* ---- what is compared ------------------------------------------------------------------------------------------ */

enum { KV_WORD = 96 };

struct kv_variant {
    char word[KV_WORD]; /* as it was asked for */
    struct kv_options opt;
    bool base; /* others are compared with it */
};
struct kv_cell {
    bool have;
    int tokens;   /* judged */
    int answers;  /* judged; of the whole cache: asked for */
    double exact; /* share of answers that came out to the letter */
    /* Against the whole cache: mean and 95th percentile, share of equal choices. */
    double kl, kl95, top1;
    double
        attn; /* relative error of what attention gives, the mean over layers; NaN: a device does not show it */
    double nll, nll_full; /* mean of the judged tokens, and the whole cache's of the same ones */
    double first;         /* judged tokens up to the first whose choice is not the whole cache's */
    double mass;          /* of kv_report, of the first pressing */
    double bytes;         /* after the first pressing; of a stream: the most after any step */
    double pressings;     /* how often it was pressed */
    double press_ms, prefill_ms;
    double depth;
};
struct kv_grid {
    const struct kv_task **task;
    struct kv_variant *variant;
    struct cli_list budget;
    int n_tasks, n_variants, n_samples;
    struct kv_cell *cell;
    uint64_t settings; /* hash of all that a cell depends on beside its place */
};
/* Reads tasks, variants, budgets (where none are given, those of the list) and bases out of the options; ERR_INVALID says
 * what is wrong with which. */
int kv_grid_open(struct kv_grid *g, const struct config *c, const char *budgets, int n_samples,
                 struct err *e) WARN_UNUSED;
void kv_grid_close(struct kv_grid *g); /* a zeroed one is accepted */
/* variant -1: the whole cache, which has no budget. */
struct kv_cell *kv_grid_at(const struct kv_grid *g, int task, int sample, int variant, int budget);
/* "name" or "name:option=value,..." */
int kv_variant_parse(struct kv_variant *v, const char *word, struct err *e) WARN_UNUSED;
/* Lists of words, split at commas; "option=value" belongs to the word before it. Returns the next word in out[KV_WORD], false
 * at the end; *list moves on. */
bool kv_variant_next(const char **list, char out[KV_WORD]);
/* Fills in what DIR/kv.jsonl holds with these settings, and the reverse for one cell, whose errors do not name the file. */
int kv_grid_load(struct kv_grid *g, const char *path, struct err *e) WARN_UNUSED;
int kv_grid_save(const struct kv_grid *g, int fd, int task, int sample, int variant, int budget,
                 struct err *e) WARN_UNUSED;

/* ---- judging --------------------------------------------------------------------------------------------------- */

struct kv_row {
    double kl, nll, attn; /* kl, attn: of every stride-th row */
    int best;             /* the first choice */
    bool hit;             /* it is the answer */
    int answer;
};
struct kv_judge {
    struct runner *run;
    float *truth; /* [KV_JUDGED][vocab] logits of the whole cache, of every stride-th row */
    float *
        attn; /* [KV_JUDGED][layers][cols] the same of what attention gave; NULL: a device does not show it */
    struct observer observer;           /* of that */
    struct kv_row *of_whole, *of_other; /* [KV_PROBE] */
    int n_rows, stride;
    bool solved[KV_ANSWERS + 1]; /* by the whole cache */
    /* of the sequence under way */
    struct kv_row *row; /* one of the two above */
    struct kv_report report;
    double mass;
    size_t bytes;
    /* of the step under way */
    const float *logits;
    const int32_t *target;
    int at;
    int layer; /* that attends next */
};
int kv_judge_open(struct kv_judge *j, struct runner *run, struct err *e) WARN_UNUSED;
void kv_judge_close(struct kv_judge *j);
/* Presses a sequence that holds the case's prompt, where that is due, and feeds the probe to it: the whole cache first, then
 * the others. Fills all of out but prefill_ms and depth. The whole cache adds its choices to the probe of a KV_CHOICE. */
int kv_judge_whole(struct kv_judge *j, int i_seq, const struct kv_task *t, struct kv_case *c,
                   struct kv_cell *out, struct err *e) WARN_UNUSED;
int kv_judge_other(struct kv_judge *j, int i_seq, const struct kv_task *t, const struct kv_case *c,
                   struct kv_cell *out, struct err *e) WARN_UNUSED;

/* ---- results --------------------------------------------------------------------------------------------------- */

/* DIR/kv.csv and kv.md, and a DIR/kv-TASK.png for each task; title: what was measured. */
int kv_report_csv(const struct kv_grid *g, const char *path, struct err *e) WARN_UNUSED;
int kv_report_md(const struct kv_grid *g, const char *title, const char *path,
                 struct err *e) WARN_UNUSED;
int kv_report_plots(const struct kv_grid *g, const char *dir, struct err *e) WARN_UNUSED;

/* Means over the samples of one task, variant and budget that have a cell there; variant -1: the whole cache. */
struct kv_means {
    int n;
    double exact; /* of a task without answers: NaN */
    double kl, kl95, attn, top1, ppl_ratio, nll, first, mass, bytes, share, pressings, press_ms;
    double press_share; /* of the prefill; of a stream, whose prefill is short: NaN */
};
void kv_grid_means(const struct kv_grid *g, int task, int variant, int budget,
                   struct kv_means *out);

#endif
