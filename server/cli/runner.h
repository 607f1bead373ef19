/* Runs a model without the engine: sequences and steps in the hands of bench and eval. */
#ifndef WRING_SERVER_CLI_RUNNER_H
#define WRING_SERVER_CLI_RUNNER_H

#include "kvcache/compact.h"
#include "server/model/model.h"

/* Queries kept with every page: 256 of a prompt of 2,048 tokens, enough for the 224 that a policy asks for by default. */
enum { RUNNER_SAMPLES = 4 };

struct runner {
    const struct model *model;
    struct workspace *ws;
    struct kv_pool *pool;
    struct kv_compactor *press; /* NULL: its sequences keep everything */
    struct kv_seq *seq;         /* [n_seqs], empty */
    int n_seqs, ctx, max_rows, max_out;
    int32_t *pos;     /* [max_rows] scratch */
    int32_t *out_row; /* [max_out] scratch */
    struct batch_seq *batch_seq;
};

int runner_open(struct runner *r, const struct model *m, enum kv_type type, int n_seqs, int ctx,
                int max_rows, int max_out, struct err *e) WARN_UNUSED;
/* The same for sequences that may be pressed: `samples` queries are kept with every page (struct kv_shape). */
int runner_open_kv(struct runner *r, const struct model *m, enum kv_type type,
                   enum kv_narrow narrow, int n_seqs, int ctx, int max_rows, int max_out,
                   int samples, struct err *e) WARN_UNUSED;
void runner_close(struct runner *r); /* a zeroed one is accepted */
void runner_reset(struct runner *r); /* empties every sequence; all of them keep everything */

/* Empties seq[i_seq], for a prompt of n_prompt tokens under these options. */
int runner_begin(struct runner *r, int i_seq, const struct kv_options *opt, int n_prompt,
                 struct err *e) WARN_UNUSED;
/* seq[to] becomes what seq[from] holds, under other options (kv_seq_fork). */
int runner_fork(struct runner *r, int to, int from, const struct kv_options *opt,
                struct err *e) WARN_UNUSED;
/* Presses seq[i_seq] where it is due and adds to *report. */
int runner_press(struct runner *r, int i_seq, struct kv_report *report, struct err *e) WARN_UNUSED;

/* One step of one sequence: n tokens (at most max_rows) appended to seq[i_seq]; the logits of the last n_out of them, in
 * host memory. logits NULL: they are made and left where they are. */
int runner_append(struct runner *r, int i_seq, const int32_t *token, int n, int n_out,
                  const float **logits, struct err *e) WARN_UNUSED;
/* n tokens in steps of at most max_rows, no logits wanted but the last token's. */
int runner_prefill(struct runner *r, int i_seq, const int32_t *token, int n,
                   struct err *e) WARN_UNUSED;
/* One step of one token for each of the first n sequences, with all logits (NULL: as above). */
int runner_decode(struct runner *r, const int32_t *token, int n, const float **logits,
                  struct err *e) WARN_UNUSED;

#endif
