/* Inside the tokenizers: the tables that token.c builds and bpe.c and spm.c read. */
#ifndef WRING_TEXT_TOKEN_INTERNAL_H
#define WRING_TEXT_TOKEN_INTERNAL_H

#include "server/text/token.h"

struct pretoken; /* compiled pre-tokeniser: pretoken.c */

struct tok_piece {
    uint32_t at, len; /* bytes in the pool */
};

struct tok_merge {
    int32_t left, right; /* left -1: empty slot */
    int32_t rank, merged;
};

struct tokenizer {
    enum tok_model model;
    int n;
    char *pool; /* all pieces, each NUL-terminated */
    struct tok_piece *piece;
    uint32_t longest; /* bytes of the longest piece; 1 at least */
    uint8_t *kind;
    float *score;
    bool *eog;
    int32_t byte_id[256]; /* the token of a single byte, -1: none */
    /* open addressing, a power of two, at most half full */
    int32_t *slot; /* by bytes, of tokens that text may become; -1: empty */
    uint32_t slot_mask;
    struct tok_merge *merge; /* SPM: NULL: pairs merge by the score of what they make */
    uint32_t merge_mask;
    int32_t *special; /* [n_special] sorted by their names' bytes */
    int n_special;
    int special_first[257]; /* the first one that begins with a byte, or with one behind it */
    struct pretoken *pre;
    bool whole_words; /* a word that is a token is not taken apart (Llama 3) */
    bool gaps;        /* BPE: some byte has no token and is left out of texts */
    bool spaces_lead; /* SPM: in every piece, spaces stand in front only */
    bool nfc;         /* text is put into Unicode's normal form C first (Qwen2) */
    bool add_bos, add_eos, add_space_prefix, prefix_first_only, prefix_if_none;
    int32_t bos, eos, unk, eot;
};

int tok_push(struct tok_ids *out, int32_t id) WARN_UNUSED;
int tok_byte_name(const char *s, size_t n); /* 65 of "<0x41>"; -1: no such name */
const struct tok_merge *tok_merge_find(const struct tokenizer *t, int32_t left, int32_t right);

/* Ids of a run of plain text; spm: first says whether it begins the text or follows a special token. */
int bpe_encode(const struct tokenizer *t, const char *s, size_t n, struct tok_ids *out) WARN_UNUSED;
int spm_encode(const struct tokenizer *t, const char *s, size_t n, bool first,
               struct tok_ids *out) WARN_UNUSED;

/* ---- alphabet.c: GPT-2's alphabet ---- */
enum { ALPHABET = 512 };
void alphabet_bytes(int16_t byte_of[ALPHABET]); /* by code point; -1: not in the alphabet */
/* A text in the alphabet as bytes; false when it has other characters. out: room for n. */
bool alphabet_read(const int16_t byte_of[ALPHABET], const char *s, size_t n, char *out,
                   size_t *len);
int alphabet_add(const char *s, size_t n, struct buf *out) WARN_UNUSED; /* bytes, in the alphabet */

/* ---- nfc.c: normal form C; bytes that are not UTF-8 stay as they are ---- */
bool nfc_may_change(const char *s, size_t n);
int nfc_add(const char *s, size_t n, struct buf *out) WARN_UNUSED; /* appends */

/* ---- pretoken.c: cuts text into words ---- */
typedef int pretoken_fn(void *arg, const char *word, size_t n);
int pretoken_open(struct pretoken **out, const char *name, bool *whole_words, bool *nfc,
                  struct err *e) WARN_UNUSED;
void pretoken_close(struct pretoken *p);
/* Patterns as published. Stage i of p; NULL: no more. */
const char *pretoken_stage(const struct pretoken *p, int i);
/* The name of the pre-tokeniser with these n stages. ERR_UNSUPPORTED says which patterns are known. */
int pretoken_find(const char **name, const char *const *stage, int n, struct err *e) WARN_UNUSED;
extern const char pretoken_gpt2[];   /* GPT-2's pattern, the one that needs no writing down */
extern const char pretoken_digits[]; /* every digit on its own */
/* Calls fn for every word of s in order; words cover s. Stops at the first error of fn. */
int pretoken_run(const struct pretoken *p, const char *s, size_t n, pretoken_fn *fn,
                 void *arg) WARN_UNUSED;

/* A binary heap of merge candidates, best first: bpe.c and spm.c. */
struct cand {
    float key;             /* smaller is better */
    int32_t at, other, id; /* left symbol, right symbol, token they become */
    uint32_t len;          /* spm: bytes of both when pushed, tells a stale candidate */
};
struct cand_heap {
    struct cand *c;
    int n, cap;
};
int cand_push(struct cand_heap *h, struct cand c) WARN_UNUSED;
bool cand_pop(struct cand_heap *h, struct cand *out);

#endif
