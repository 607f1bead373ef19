/* Inside the two readers of model files: what gguf.c and hf.c share. */
#ifndef WRING_SERVER_MODEL_SOURCE_INTERNAL_H
#define WRING_SERVER_MODEL_SOURCE_INTERNAL_H

#include "server/model/source.h"

/* What a format must be able to do; one table each. */
struct source_format {
    const char *name;
    int (*tokenizer)(const struct source *s, struct tokenizer **out, struct err *e);
    void (*close)(struct source *s); /* the format's own state */
};
extern const struct source_format source_gguf, source_hf;

int gguf_open(struct source *s, const char *path, struct err *e) WARN_UNUSED;
int hf_open(struct source *s, const char *folder, struct err *e) WARN_UNUSED;

/* Opens path and appends it to s->file; the index, or an error. */
int source_add_file(struct source *s, const char *path, struct err *e) WARN_UNUSED;
/* Says that a matrix (canonical name) is kept in the parts of a form. Both strings must live as long as s. */
int source_add_form(struct source *s, const char *matrix, const char *word,
                    struct err *e) WARN_UNUSED;
/* Sorts the tensors and forms; checks that no two tensors share a name or bytes of a file, no two forms a matrix. */
int source_finish(struct source *s, struct err *e) WARN_UNUSED;
/* Checks dims and type of t and sets its size; file_size and data0 are where its bytes may lie. */
int tensor_check(struct tensor *t, uint64_t file_size, struct err *e) WARN_UNUSED;

#endif
