/* The activations of one step: carved once, reused by every step. Backend memory except where said otherwise. */
#ifndef WRING_SERVER_MODEL_WORKSPACE_H
#define WRING_SERVER_MODEL_WORKSPACE_H

#include "server/model/model.h"

struct workspace {
    struct be *be;
    int max_rows, max_seqs, max_out;
    float *x;             /* [max_rows][dim] the residual stream */
    float *xn;            /* [max_rows][dim] normalised */
    float *q, *k, *v;     /* [max_rows][heads * head_dim], [max_rows][kv heads * head_dim] twice */
    float *att;           /* [max_rows][heads * head_dim] */
    float *lse;           /* [max_rows][heads] of attention, for the queries that are kept */
    float *delta;         /* [max_rows][dim] what a block adds to x */
    bool settled;         /* nothing of delta is still to be added to x */
    float *gate, *up;     /* [max_rows][ffn] */
    float *cos, *sin;     /* [max_rows][rope_dim / 2] */
    float *logits;        /* [max_out][vocab] */
    void *input;          /* prepared inputs */
    struct be_seq *seq;   /* [n_layers][max_seqs], host */
    struct be_keep *keep; /* [n_layers][max_rows], host */
    float *
        fetched; /* [max_out][vocab], host: logits that were asked for; NULL where logits is host memory */
    const struct observer *observer; /* of the passes, or NULL */
    size_t bytes, used;              /* of the one block below */
    char *block;
};

#endif
