/* A sentencepiece-style vocabulary in memory, on its way from one file format to a tokenizer or another format. */
#ifndef WRING_TEXT_VOCAB_H
#define WRING_TEXT_VOCAB_H

#include "server/text/token.h"

struct vocab {
    int n;
    const char **text; /* [n] into file, or static */
    size_t *len;
    float *score;
    uint8_t *kind; /* enum tok_kind */
    struct buf file;
    char byte_name[256][8]; /* "<0x00>" and so on, where the file has the bytes themselves */
};

int vocab_alloc(struct vocab *v, int n, struct err *e) WARN_UNUSED; /* the arrays, zeroed */
void vocab_free(struct vocab *v);
/* ids 0, 1, 2 as <unk>, <s>, </s>; BOS and the space in front are added. */
int vocab_open(const struct vocab *v, struct tokenizer **out, struct err *e) WARN_UNUSED;
int vocab_read_llama2c(struct vocab *v, const char *path, int n, struct err *e) WARN_UNUSED;

#endif
