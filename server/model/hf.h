/* Inside the reader and the writer of Hugging Face folders: what the files hf*.c and safetensors.c share. */
#ifndef WRING_SERVER_MODEL_HF_H
#define WRING_SERVER_MODEL_HF_H

#include <jansson.h>

#include "server/base/mem.h"
#include "server/model/source_internal.h"

enum { HF_PATH = 4096, HF_NAME = 192 };

/* folder/name. ERR_LIMIT when that is too long. */
int hf_path(char out[HF_PATH], const char *folder, const char *name, struct err *e) WARN_UNUSED;

/* Appends the tensors of one file to s->tensor under canonical names, which live in a. Errors begin with the path. */
int safetensors_add(struct source *s, struct arena *a, const char *path, struct err *e) WARN_UNUSED;

/* The numbers of config.json. ERR_FORMAT, ERR_UNSUPPORTED name the key. */
int hf_config(struct model_config *c, const json_t *v, struct err *e) WARN_UNUSED;

/* Our name of a tensor, in a; tensors that are not the family's keep their own. NULL: no memory. */
const char *hf_canonical(struct arena *a, const char *name);
/* The way back. */
int hf_name(char out[HF_NAME], const char *canonical, struct err *e) WARN_UNUSED;

/* How folders with one "quant_method" say which matrices are pressed, and how. */
struct hf_method {
    const char *name;
    /* Calls source_add_form() for every pressed matrix; q is "quantization_config", the tensors of s are known (not yet
     * sorted). What must outlive the call goes into a. */
    int (*forms)(struct source *s, struct arena *a, const json_t *q, struct err *e);
};
/* The method of config.json v; NULL: nothing is pressed. ERR_UNSUPPORTED: a method that is not known. */
int hf_method(const struct hf_method **out, const json_t *v, struct err *e) WARN_UNUSED;

#endif
