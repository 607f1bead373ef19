/* Inside the reader and the writer of tokenizer.json. */
#ifndef WRING_TEXT_TOKEN_JSON_H
#define WRING_TEXT_TOKEN_JSON_H

#include <jansson.h>

#include "server/base/mem.h"
#include "server/text/token_internal.h"

#define SPM_SPACE "\xE2\x96\x81" /* U+2581, which stands for a space */

/* The files as JSON; NULL: not there. */
struct json_files {
    json_t *tokenizer, *tokenizer_config, *generation_config, *config;
};

/* A vocabulary being read. v is what tok_open wants; its pointers go into the arrays below and into the JSON, which must
 * stay. */
struct json_vocab {
    struct tok_vocab v;
    const char **text, **merge;
    size_t *len, *merge_len;
    uint8_t *kind;
    int32_t *eog;
    struct arena joined; /* merges that the file has as pairs */
};
void json_vocab_free(struct json_vocab *j);

/* The string at key; NULL: none there. v may be NULL or anything. */
const char *json_text(const json_t *v, const char *key);
/* The flag at key. */
bool json_flag(const json_t *v, const char *key, bool otherwise);

/* ---- token_json_steps.c: normalizer and pre_tokenizer ---- */
/* Step i of a stage of the file: one step, or a Sequence of them under key. NULL: no more. */
const json_t *json_step(const json_t *stage, const char *key, size_t i);
bool json_step_is(const json_t *step, const char *type);
int json_step_unknown(const char *stage, const json_t *step, struct err *e);
/* Sets model, pre, nfc and what SPM does about spaces. */
int json_read_steps(struct tok_vocab *v, const json_t *tokenizer, struct err *e) WARN_UNUSED;

/* ---- token_json_vocab.c: model and added_tokens ---- */
/* Whether the model is a BPE without what is not supported. */
int json_check_model(const json_t *tokenizer, struct err *e) WARN_UNUSED;
/* Sets the tokens, their kinds, the merges and unk; v.model is known. */
int json_read_vocab(struct json_vocab *j, const json_t *tokenizer, struct err *e) WARN_UNUSED;

/* ---- token_json_ends.c: post_processor and the files beside tokenizer.json ---- */
/* Sets bos, eos, eog and whether bos and eos are added; the tokens are known. */
int json_read_ends(struct json_vocab *j, const struct json_files *f, struct err *e) WARN_UNUSED;

/* ---- token_json_merges.c ---- */
/* The merges of t as an array of "left right", best first. NULL: no memory. */
json_t *json_merges(const struct tokenizer *t) WARN_UNUSED;
/* The text of a token as model.vocab has it; appends. */
int json_token_text(const struct tokenizer *t, int32_t id, struct buf *out) WARN_UNUSED;

#endif
