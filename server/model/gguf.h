/* Inside the reader of GGUF files: gguf.c reads the header, gguf_model.c makes sense of its metadata. */
#ifndef WRING_SERVER_MODEL_GGUF_H
#define WRING_SERVER_MODEL_GGUF_H

#include "server/base/buf.h"
#include "server/model/source_internal.h"

enum gguf_type {
    G_U8,
    G_I8,
    G_U16,
    G_I16,
    G_U32,
    G_I32,
    G_F32,
    G_BOOL,
    G_STRING,
    G_ARRAY,
    G_U64,
    G_I64,
    G_F64,
    G_TYPES
};

/* Bytes of one element; 0: a string. */
extern const uint8_t gguf_type_bytes[G_TYPES];

struct str {
    const char *p;
    size_t n;
};

/* A value: type says what at points to; an array has the type of its elements and their number. */
struct pair {
    struct str key;
    enum gguf_type type;
    bool array;
    uint64_t n;
    const uint8_t *at;
};

struct gguf {
    struct buf head;
    struct pair *pair; /* sorted by key once the header is whole */
    uint64_t n_pairs;
    char *names; /* the tensors' names, NUL-terminated */
};

/* The metadata called key, or NULL. */
const struct pair *gguf_find(const struct gguf *g, const char *key);
/* Element i as a double; false when there is none or it is no number. */
bool gguf_number(const struct pair *p, uint64_t i, double *out);
/* A string; false for other types and NULL. */
bool gguf_text(const struct pair *p, struct str *out);

int gguf_config(struct source *s, struct err *e) WARN_UNUSED;
int gguf_tokenizer(const struct source *s, struct tokenizer **out, struct err *e) WARN_UNUSED;

#endif
