/* A loaded model: weights, tokenizer, template, and the forward pass over a batch.
 *
 * Immutable after model_open: any thread may read config, tokenizer and template; model_forward is called by one thread
 * at a time (the engine's) because the workspace is.
 */
#ifndef WRING_SERVER_MODEL_MODEL_H
#define WRING_SERVER_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "kvcache/kv.h"
#include "quant/codec.h"
#include "server/base/err.h"
#include "server/base/table.h"
#include "server/model/io.h"
#include "server/model/source.h"
#include "server/text/template.h"
#include "server/text/token.h"

struct arch;
struct slot;
enum { SLOT_NAME = 64 };

/* The matrices and vectors of one layer; absent ones have codec NULL or are NULL. Vectors are f32. */
struct layer {
    struct weight q, k, v, o, gate, up, down;
    float *attn_norm, *ffn_norm;     /* [dim] */
    float *q_bias, *k_bias, *v_bias; /* [rows of q, k, v] or NULL */
    float *q_norm, *k_norm;          /* [head_dim] or NULL */
};

struct model {
    struct model_config config;
    const struct arch *arch;
    struct be *be;
    struct tokenizer *tok;
    struct tmpl *tmpl;       /* NULL: no chat template */
    struct tmpl *tool_tmpl;  /* the one for requests with tools; NULL: the same */
    struct weight embd, out; /* out.codec is NULL when the head is tied */
    float *out_norm;         /* [dim] */
    float *
        rope_factor; /* [rope_dim / 2] divisors of the frequencies that come with the file, or NULL */
    float *inv_freq;     /* [rope_dim / 2], scaling applied */
    struct kv_rope rope; /* the same frequencies in host memory, for policies */
    float attn_scale;    /* 1 / sqrt(head_dim) */
    struct layer *layer; /* [n_layers] */
    struct slot *slot;   /* what was loaded where: model_close() walks it */
    char (*slot_name)[SLOT_NAME];
    int n_slots;
    size_t weight_bytes; /* everything above in backend memory */
    struct io_report io; /* how the file was read */
    double load_seconds;
};

struct model_options {
    const char *weights; /* "auto" or a codec's word */
    bool int8;           /* kernels may round activations: to int8 on a CPU, to bf16 on a GPU */
    enum io_method io;
    bool progress; /* show it on a terminal */
};

/* path: a .gguf file or a folder. Errors as source_open's, plus ERR_NOMEM, ERR_FORMAT for missing or misshapen
 * tensors (name, shape found, shape expected) and ERR_UNSUPPORTED for one of a layer that nothing would read. */
int model_open(struct model **out, const char *path, const struct model_options *o, struct be *be,
               struct err *e) WARN_UNUSED;
void model_close(struct model *m);
/* Of the names and numbers of all that was loaded, in the form that it is kept in; the same on every backend. */
uint64_t model_hash(const struct model *m);
/* samples: queries kept with every page (struct kv_shape). */
void model_kv_shape(const struct model *m, enum kv_type type, enum kv_narrow narrow, int samples,
                    struct kv_shape *out);

/* ---- one step ------------------------------------------------------------------------------------------------- */
/* n_rows tokens of n_seqs sequences; the rows of a sequence are consecutive and its pages are reserved. Logits are
 * computed for the rows in out_row only. */
struct batch_seq {
    struct kv_seq *kv;
    int row0, n_rows, pos0;
};
struct batch {
    int n_rows, n_seqs, n_out;
    const int32_t *token; /* [n_rows] */
    const int32_t *pos;   /* [n_rows] logical positions */
    const struct batch_seq *seq;
    const int32_t *out_row; /* [n_out], rising */
};

/* Activations of one step, sized once: at most max_rows rows and max_out rows of logits. */
struct workspace;
int workspace_open(struct workspace **out, const struct model *m, int max_rows, int max_seqs,
                   int max_out, struct err *e) WARN_UNUSED;
void workspace_close(struct workspace *ws);
size_t workspace_bytes(const struct workspace *ws);

/* Runs the batch: appends keys and values to the pages (and raises kv->n_tokens), leaves logits [n_out][vocab] in
 * *logits, backend memory, valid until the next call. ERR_DEVICE only; with n_out > 0 a device may still be at work on
 * return, and what went wrong comes out of the sync() that the caller needs anyway. Allocates nothing. */
int model_forward(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                  const struct batch *b, float **logits, struct err *e) WARN_UNUSED;
/* The same pass one layer at a time, for sequences whose caches go layer by layer (kv.h): layer 0 first, for every token in
 * any number of batches, then layer 1, and so on, with the bits of model_forward. x [n_rows][dim], backend memory of the
 * caller's: the residual stream of these rows between the layers. Layer 0 does not read it, the last one leaves nothing in it.
 * Only the last layer has out rows. kv->n_tokens is raised as by model_forward. */
int model_forward_layer(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                        const struct batch *b, int layer, float *x, float **logits,
                        struct err *e) WARN_UNUSED;
/* The first n rows of the last pass's logits as host memory, valid until the next call. ERR_DEVICE only. */
int model_logits(const struct model *m, struct workspace *ws, int n, const float **logits,
                 struct err *e) WARN_UNUSED;

/* ---- what layers read ------------------------------------------------------------------------------------------- */

/* What the matrices of a layer read; those that read the same stand together. */
enum layer_input {
    INPUT_OF_NONE,
    INPUT_OF_QKV,
    INPUT_OF_O,
    INPUT_OF_GATE_UP,
    INPUT_OF_DOWN,
    LAYER_INPUTS
};

/* Is shown x [n][cols], in host memory for the length of the call, before matrices are multiplied with it. It may use
 * be->par. */
struct observer {
    void (*see)(void *arg, enum layer_input what, const float *x, int n, int cols);
    void *arg;
};
/* Shows it what model_forward's layers read from now on, one after the other; the last one's rows behind attention are the out
 * rows. NULL: nothing more. ERR_UNSUPPORTED: the backend's memory is not the host's. */
int workspace_observe(struct workspace *ws, const struct observer *o, struct err *e) WARN_UNUSED;

/* ---- a pass layer by layer: for pressing weights ---------------------------------------------------------------- */

/* Runs one layer for all rows of the batch (out_row is not looked at), on a backend whose memory is the host's. x [n_rows][dim]
 * is what the layer before left, in host memory, and becomes what this one leaves, with the bits of model_forward; layer 0
 * does not read it. Keys and values of that layer are written; kv->n_tokens stays. Allocates nothing. ERR_UNSUPPORTED. */
int model_layer(const struct model *m, struct workspace *ws, struct kv_pool *pool,
                const struct batch *b, int layer, const struct observer *o, float *x,
                struct err *e) WARN_UNUSED;
/* What comes behind the last layer: the logits [n][vocab] of x [n][dim] as that left it, for at most max_out rows of the
 * workspace. They are host memory, valid until the next call. ERR_UNSUPPORTED as above. */
int model_head(const struct model *m, struct workspace *ws, const float *x, int n,
               const float **logits, struct err *e) WARN_UNUSED;

/* What the memory will be used for, as a table: weights, KV pool, workspace and, unless 0, the residual stream of a prompt that
 * goes layer by layer. */
int model_plan(const struct model *m, const struct workspace *ws, const struct kv_pool *pool,
               size_t stream_bytes, struct table **out) WARN_UNUSED;

#endif
