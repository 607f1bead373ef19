/* From tensors on disk to weights in memory: what model_open does with the bytes. */
#ifndef WRING_SERVER_MODEL_LOAD_H
#define WRING_SERVER_MODEL_LOAD_H

#include "server/model/arch.h"

/* Finds every slot's tensor, checks its shape, makes the weights and fills them while the file is being read.
 * Sets m->weight_bytes and m->io. On error what was made stays in m for model_close(). ERR_UNSUPPORTED: a layer has a tensor
 * that no slot wants. */
int load_slots(struct model *m, const struct source *src, const struct slot *slot, int n,
               const struct model_options *o, struct err *e) WARN_UNUSED;

/* What --weights WORD means for a tensor: the embedding and the head keep at least 8 bits, for they are what a 4-bit code
 * hurts most. */
const char *load_word(const char *tensor, const char *word);

/* Makes the matrix or vector that a slot names, empty, for data of this type; adds to m->weight_bytes. */
int load_slot(struct model *m, const struct slot *s, enum dtype type, const struct model_options *o,
              struct err *e) WARN_UNUSED;

/* The tensors that hold the parts of w, the pressed matrix of this canonical name, in the order of weight_parts(); the number
 * of parts. ERR_FORMAT: one is missing or not as w needs it (tensor, found, expected). */
int load_parts(const struct source *src, const char *matrix, const struct weight *w,
               const struct tensor *out[CODEC_PARTS], struct err *e) WARN_UNUSED;

/* Makes a model of this config: architecture, layers and slots; then fill() brings weights and text, then come the rope
 * frequencies. An error of fill closes the model. */
typedef int model_fill_fn(struct model *m, void *arg, struct err *e);
int model_build(struct model **out, const struct model_config *c, struct be *be,
                model_fill_fn *fill, void *arg, struct err *e) WARN_UNUSED;

#endif
