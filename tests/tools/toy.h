/* A toy model for tests: a two-layer llama of random weights with a sentencepiece-style vocabulary, written as a GGUF file
 * and opened like any other model. The same seed gives the same file.
 */
#ifndef WRING_TESTS_TOOLS_TOY_H
#define WRING_TESTS_TOOLS_TOY_H

#include "server/model/model.h"

enum {
    TOY_LAYERS = 2,
    TOY_DIM = 64,
    TOY_HEADS = 4,
    TOY_KV_HEADS = 2,
    TOY_FFN = 96,
    TOY_VOCAB = 300,
    TOY_CTX = 2048
};

struct toy {
    char path[256]; /* the file; removed by toy_close */
    struct be *be;
    struct model *model;
};

/* Writes the file only: ids 0 <unk>, 1 <s>, 2 </s>, 3 to 258 the bytes, then letters and a few merges. */
int toy_write(const char *path, uint64_t seed, struct err *e) WARN_UNUSED;
/* The first number of a tensor of the file becomes NaN. */
void toy_spoil(const char *path, const char *tensor);
/* Writes it below $TMPDIR or /tmp and opens it. isa as in struct be_config, threads 0: all. o NULL: weights as they are. */
int toy_open(struct toy *t, uint64_t seed, const char *isa, int n_threads,
             const struct model_options *o, struct err *e) WARN_UNUSED;
void toy_close(struct toy *t);

#endif
