/* Architectures: what a family of models looks like on disk and how it runs. One file each, one line in the list. */
#ifndef WRING_SERVER_MODEL_ARCH_H
#define WRING_SERVER_MODEL_ARCH_H

#include "server/model/model.h"

/* A tensor that an architecture wants, and where it goes. Exactly one of w (a matrix) and v (a vector) is set. */
struct slot {
    const char *name;
    struct weight *w;
    float **v;
    int rows, cols; /* expected shape; a vector has cols == 0 */
    bool optional;
    enum layer_input reads; /* of a layer's matrix */
};

struct arch {
    const char *const *names; /* values of model_config.arch, NULL-terminated */
    /* Checks and completes the config (derived values, limits); ERR_UNSUPPORTED says which number and why. */
    int (*check)(struct model_config *c, struct err *e);
    /* Names the tensors of the whole model: writes at most max slots, returns how many there are (call with max 0 to
     * count). layer[] is allocated; name[] is room for max names, which out[] points into. */
    int (*slots)(struct model *m, struct slot *out, char (*name)[SLOT_NAME], int max);
    /* A pass is begin, every layer in rising order, and end where n_out > 0. They call ops between step_begin and step_end;
     * s is as step_begin left it. Which ops, with which pointers, depends on the counts of s, and on whether it has `keep`,
     * alone. ws->x is the residual stream, ws->delta what the layer before has still to add to it, unless ws->settled, as begin
     * leaves it. The last layer leaves n_out rows. */
    void (*begin)(const struct model *m, struct workspace *ws, const struct be_step *s);
    void (*layer)(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                  const struct be_step *s, int layer);
    void (*end)(const struct model *m, struct workspace *ws, const struct be_step *s);
};

extern const struct arch *const arch_list[]; /* NULL-terminated */
const struct arch *arch_find(const char *name);

#endif
