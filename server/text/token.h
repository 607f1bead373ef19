/* Tokenizers: text to ids and back, byte for byte.
 *
 * Two kinds: byte-level BPE (GPT-2's alphabet and pre-tokeniser patterns; merges by rank) and sentencepiece-style BPE
 * (merges by score or by rank, spaces as U+2581, byte fallback). A tokenizer is made from a neutral description of the
 * vocabulary (struct tok_vocab), which the readers of file formats fill.
 *
 * Any bytes can be encoded, valid UTF-8 or not, and decoding the ids gives the same bytes back, where the vocabulary can
 * write every byte. Bytes that a BPE vocabulary has no token for (SmolLM2: 0xF1, 0xF2 and some control characters, besides
 * those that UTF-8 has no use for) are left out, as Hugging Face's tokenizers do; and the Qwen2 family puts text into
 * Unicode's normal form C first, as its own tokenizer does.
 * Thread: immutable after tok_open; every function takes scratch of its own, so any thread may encode and decode.
 */
#ifndef WRING_TEXT_TOKEN_H
#define WRING_TEXT_TOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/base/buf.h"
#include "server/base/err.h"
#include "server/text/segment.h"

/* Values as GGUF's tokenizer.ggml.token_type. */
enum tok_kind { TOK_NORMAL = 1, TOK_UNKNOWN, TOK_CONTROL, TOK_USER_DEFINED, TOK_UNUSED, TOK_BYTE };

enum tok_model { TOK_BPE, TOK_SPM };

/* A vocabulary as a file describes it. All pointers are borrowed until tok_open returns. */
struct tok_vocab {
    enum tok_model model;
    int n;
    const char *const *
        text; /* [n] BPE: in GPT-2's printable alphabet; SPM: with U+2581; special tokens as written */
    const size_t *len;        /* [n] bytes of text */
    const float *score;       /* [n] SPM: merge priority; NULL: 0 */
    const uint8_t *kind;      /* [n] enum tok_kind; NULL: all normal */
    int n_merges;             /* BPE; SPM: 0: neighbours that make a piece merge, by its score */
    const char *const *merge; /* [n_merges] "left right", best first */
    const size_t *merge_len;
    const char *pre;      /* BPE: name of the pre-tokeniser, as in GGUF's tokenizer.ggml.pre */
    int nfc, whole_words; /* BPE: 0: as pre has it; 1: yes; -1: no */
    int32_t bos, eos, unk, eot; /* -1: none */
    const int32_t *eog;         /* [n_eog] more tokens that end a generation */
    int n_eog;
    bool add_bos, add_eos;
    bool add_space_prefix;  /* SPM: a space goes in front of every run between special tokens */
    bool prefix_first_only; /* SPM: and only in front of text that begins */
    bool prefix_if_none;    /* SPM: and only where the text has none itself */
};

/* Whether published vocabularies mark the end of a turn by this name: a control token that has it ends a generation. */
bool tok_names_end(const char *name, size_t n);

struct tokenizer;

/* ERR_FORMAT: ids out of range, duplicate or missing pieces, no way to write every byte; ERR_UNSUPPORTED: unknown
 * pre-tokeniser (the message names the known ones); ERR_NOMEM. */
int tok_open(struct tokenizer **out, const struct tok_vocab *v, struct err *e) WARN_UNUSED;
void tok_close(struct tokenizer *t); /* NULL is accepted */

int tok_n(const struct tokenizer *t);
int32_t tok_bos(const struct tokenizer *t); /* -1: none */
int32_t tok_eos(const struct tokenizer *t);
bool tok_adds_bos(const struct tokenizer *t);
bool tok_is_eog(const struct tokenizer *t,
                int32_t id); /* ends a generation: eos, eot, <|im_end|>, ... */
bool tok_is_special(const struct tokenizer *t, int32_t id); /* control or unknown: not text */
/* The bytes a token stands for (SPM: with real spaces), NUL-terminated; a special token's name. NULL: no such id. */
const char *tok_piece(const struct tokenizer *t, int32_t id, int *len);
const char *tok_text(const struct tokenizer *t, int32_t id); /* tok_piece without the length */
int32_t tok_find(const struct tokenizer *t, const char *piece, size_t len); /* -1: none */

struct tok_ids {
    int32_t *id;
    int n, cap;
};
void tok_ids_free(struct tok_ids *ids);

enum tok_flags {
    TOK_ADD_BOS = 1,      /* put BOS (and at the end EOS) where the vocabulary asks for it */
    TOK_PARSE_SPECIAL = 2 /* recognise special tokens by their names */
};
/* Appends the ids of s to out. ERR_NOMEM, ERR_LIMIT (over 2^30 tokens). */
int tok_encode(const struct tokenizer *t, const char *s, size_t n, unsigned flags,
               struct tok_ids *out) WARN_UNUSED;
/* A rendered chat prompt: special tokens are recognised in segments that are not the user's, whatever the user wrote stays
 * text. Text between special tokens is tokenised as one run across segment borders. No BOS is added: templates write it. */
int tok_encode_segments(const struct tokenizer *t, const char *s, const struct text_segment *seg,
                        int n_seg, struct tok_ids *out) WARN_UNUSED;
/* Tokens that s becomes at least, without encoding it: as many as if all were the vocabulary's longest piece, so that a text
 * far too long for a model is told in time linear in its length. */
int64_t tok_at_least(const struct tokenizer *t, const char *s, size_t n);

/* Appends the text of ids; special tokens' names only when asked for. SPM: the space that encoding put in front goes. */
int tok_decode(const struct tokenizer *t, const int32_t *id, int n, bool with_special,
               struct buf *out) WARN_UNUSED;

/* Decoding as tokens come: whole code points only. Bytes that begin a code point wait for the rest; bytes that can
 * never become one are replaced by U+FFFD, as is an incomplete end at detok_flush(). No allocation of its own. */
struct detok {
    char held[4];
    int n_held;
};
void detok_init(struct detok *d);
int detok_push(struct detok *d, const struct tokenizer *t, int32_t id, struct buf *out) WARN_UNUSED;
int detok_flush(struct detok *d, struct buf *out) WARN_UNUSED;

/* ---- vocabularies in files of their own ------------------------------------------------------------------------ */

/* llama2.c's tokenizer.bin: max length, then (score, length, bytes) n times; ids 0..2 are <unk>, <s>, </s>, 3..258 bytes. */
int tok_open_llama2c(struct tokenizer **out, const char *path, int n, struct err *e) WARN_UNUSED;
/* sentencepiece's tokenizer.model (ModelProto) with a BPE model. */
int tok_open_spm(struct tokenizer **out, const char *path, struct err *e) WARN_UNUSED;
/* llama2.c's tokenizer.bin as a tokenizer.model in out. */
int tok_spm_from_llama2c(const char *path, int n, struct buf *out, struct err *e) WARN_UNUSED;

/* ---- Hugging Face's tokenizer.json ------------------------------------------------------------------------------- */

/* The files of a model folder that say what its tokenizer is, as text. Empty: not there. Whoever made them frees them. */
struct tok_json {
    struct buf tokenizer;         /* tokenizer.json: vocabulary, merges, how text is cut */
    struct buf tokenizer_config;  /* tokenizer_config.json: bos, eos; whether bos is added */
    struct buf generation_config; /* generation_config.json: ids that end a generation */
    struct buf config;            /* config.json: the same, where the former has none */
};
void tok_json_init(struct tok_json *f);
void tok_json_free(struct tok_json *f); /* f is as after tok_json_init */

/* A BPE tokenizer, byte-level or sentencepiece-like, from its files' text; tokenizer must not be empty.
 * ERR_FORMAT: not JSON, what is needed is missing or out of range; ERR_UNSUPPORTED: another kind of tokenizer, a
 * pattern or a step that is not known (the message names it); ERR_NOMEM. */
int tok_parse_json(struct tokenizer **out, const struct tok_json *f, struct err *e) WARN_UNUSED;
/* The same from a folder; only tokenizer.json must be there: ERR_NOTFOUND. */
int tok_open_json(struct tokenizer **out, const char *folder, struct err *e) WARN_UNUSED;
/* The files that make t: all but config, appended to what f has, the same bytes every time. The package `tokenizers`
 * and tok_parse_json give the same ids for them as t does, except that
 *   - a vocabulary that merges by score becomes one that merges by rank: where two pieces have the same score, or one
 *     piece is made in two ways that overlap in the text, another pair may come first;
 *   - a U+2581 in the text is a space to `tokenizers`;
 *   - unused tokens and second tokens of the same text are left out: their ids are gaps.
 * ERR_UNSUPPORTED: a token's text is not UTF-8, bos or eos is added but an unused token; ERR_LIMIT, ERR_NOMEM. */
int tok_write_json(const struct tokenizer *t, struct tok_json *f, struct err *e) WARN_UNUSED;

#endif
