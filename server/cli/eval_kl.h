/* wring eval kl: how far a model with pressed weights is from the unpressed one.
 *
 * Both read the same text, cut into chunks as for eval ppl (server/cli/chunks.h). Where that judges the second half of a chunk,
 * here every position counts, so that divergences can be put beside those of papers on quantisation: KL(ref || model) in nats
 * and the equality of first choices at each of the ctx positions of a chunk, perplexity at the ctx - 1 whose next token is in the
 * chunk. A chunk is one sample: errors are standard errors over chunks, those of the ratio of perplexities of its logarithm.
 */
#ifndef WRING_SERVER_CLI_EVAL_KL_H
#define WRING_SERVER_CLI_EVAL_KL_H

#include "server/cli/cli.h"

struct estimate {
    double mean, error; /* error: NaN for one chunk */
};

/* One of the two models. */
struct kl_side {
    double ppl, byte_bits; /* bits per byte of the tokens that perplexity is of */
    double layer_bits;     /* bits per weight of the matrices in the layers */
    double bits;           /* of weight_bytes per parameter: what codecs pad counts */
    size_t bytes;          /* weight_bytes of the model */
};

struct kl_result {
    int n_chunks, ctx;
    struct estimate kl, top1, ratio; /* ratio: of perplexities, the model's over the reference's */
    double kl95;                     /* 95th percentile over positions */
    struct kl_side model, ref;
};

/* Measures on the text of a file, as --ctx, --chunks, --separator and --kv-type say; both models have the same cache. The
 * models have backends of their own. ERR_INVALID: another vocabulary, other tokens for the text, too short a text. */
int kl_measure(const struct model *model, const struct model *ref, const struct config *c,
               const char *path, struct kl_result *out, struct err *e) WARN_UNUSED;
/* The table to stdout; returns an exit code. */
int kl_print(const struct kl_result *r, bool json);

#endif
