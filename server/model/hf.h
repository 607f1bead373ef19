/* Inside the reader of Hugging Face folders: what hf.c, hf_config.c and safetensors.c share. */
#ifndef WRING_SERVER_MODEL_HF_H
#define WRING_SERVER_MODEL_HF_H

#include <jansson.h>

#include "server/base/mem.h"
#include "server/model/source_internal.h"

/* Appends the tensors of one file to s->tensor under canonical names, which live in a. Errors begin with the path. */
int safetensors_add(struct source *s, struct arena *a, const char *path, struct err *e) WARN_UNUSED;

/* The numbers of config.json. ERR_FORMAT, ERR_UNSUPPORTED name the key. */
int hf_config(struct model_config *c, const json_t *v, struct err *e) WARN_UNUSED;

#endif
