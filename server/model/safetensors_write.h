/* Writing one safetensors file (the format is in safetensors.c). */
#ifndef WRING_SERVER_MODEL_SAFETENSORS_WRITE_H
#define WRING_SERVER_MODEL_SAFETENSORS_WRITE_H

#include <jansson.h>

#include "quant/codec.h"

/* A tensor to be written; everything is borrowed. */
struct safetensors_out {
    const char *name; /* as it will be in the file */
    struct codec_part part;
    const struct weight *w; /* where its bytes come from: part i_part of w, */
    int i_part;
    const float *v; /* or, where w is NULL, these numbers */
};

/* Writes path: the tensors in the order of the format's own writer (wide types first, then by name; t is sorted so) and
 * metadata, an object of strings, as the header's "__metadata__". The file appears whole, and is on the disk, or not at all;
 * path.tmp is where it is until then. ERR_IO, ERR_NOMEM. */
int safetensors_write(const char *path, struct safetensors_out *t, int n, json_t *metadata,
                      struct err *e) WARN_UNUSED;

#endif
