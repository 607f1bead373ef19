/* A text cut into chunks of equal length, as llama-perplexity does it: what eval ppl and eval kl run over. */
#ifndef WRING_SERVER_CLI_CHUNKS_H
#define WRING_SERVER_CLI_CHUNKS_H

#include "server/config.h"
#include "server/text/token.h"

struct chunks {
    struct tok_ids text;
    int ctx, n; /* tokens of a chunk, chunks */
};
/* The whole chunks of --ctx tokens (0: 512, at most ctx_train), at most --chunks of them, in a file's text; with
 * --separator its documents follow each other as texts_encode() has it. The first token of a chunk is replaced by BOS where the vocabulary asks for one.
 * ERR_INVALID: there is no whole chunk, or it would be too short; errors of buf_read_file. On failure c needs no close. */
int chunks_open(struct chunks *c, const struct config *config, const struct tokenizer *tok,
                int ctx_train, const char *path, struct err *e) WARN_UNUSED;
void chunks_close(struct chunks *c); /* a zeroed one is accepted */
/* [ctx] */
const int32_t *chunks_at(const struct chunks *c, int i);

#endif
