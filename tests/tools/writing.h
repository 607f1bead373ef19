/* Pressed models for tests: any model, written as a folder of one form, one shard for its own tensors and one a layer.
 * Whatever cannot be at all fails the test. */
#ifndef WRING_TESTS_TOOLS_WRITING_H
#define WRING_TESTS_TOOLS_WRITING_H

#include "server/model/hf_write.h"
#include "server/model/model.h"

enum { WRITING_MATRICES = 16 };

/* A model that is being written. */
struct writing {
    struct source *src;
    struct model *m; /* its numbers, as f32 */
    const char *form;
    struct hf_writer *w;                     /* NULL: none is open */
    struct weight pressed[WRITING_MATRICES]; /* of the shard under way */
    int n_pressed;
};

/* path: a model, of whatever format. be: the host's, as in all of these. */
void writing_open(struct writing *x, struct be *be, const char *path, const char *form);
void writing_close(struct writing *x);
int writing_shards(const struct writing *x);
/* hf_write_open() for x->w, and its end. */
int writing_begin(struct writing *x, const char *out, struct err *e) WARN_UNUSED;
void writing_stop(struct writing *x);
int writing_shard(struct writing *x, int shard, struct err *e) WARN_UNUSED;
/* The shards that are not there, from last to first. */
int writing_rest(struct writing *x, struct err *e) WARN_UNUSED;

/* All of it: out becomes the model at path. */
void writing_model(struct be *be, const char *path, const char *form, const char *out);

#endif
