/* Inside the reader and the writer of Hugging Face folders: what the files hf*.c and safetensors.c share. */
#ifndef WRING_SERVER_MODEL_HF_H
#define WRING_SERVER_MODEL_HF_H

#include <jansson.h>

#include "server/base/mem.h"
#include "server/model/source_internal.h"

enum { HF_NAME = 192 }; /* room for a tensor's name */

/* Appends the tensors of one file to s->tensor under canonical names, which live in a. Errors begin with the path. */
int safetensors_add(struct source *s, struct arena *a, const char *path, struct err *e) WARN_UNUSED;

/* The header of an open file, a JSON object for json_decref(), and where the data begins. */
int safetensors_header(const struct source_file *f, json_t **out, uint64_t *data0,
                       struct err *e) WARN_UNUSED;

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
    /* The way back: whether it has words for these forms, {module: word}, and "quantization_config" with them; tensors has
     * the names of all of the folder's as its keys. NULL: no memory. */
    bool (*takes)(json_t *forms);
    json_t *(*config)(json_t *forms, json_t *tensors);
};
/* Models pressed by AQLM: hf_aqlm.c. */
int hf_aqlm_forms(struct source *s, struct arena *a, const json_t *q, struct err *e) WARN_UNUSED;
bool hf_aqlm_takes(json_t *forms);
json_t *hf_aqlm_config(json_t *forms, json_t *tensors);
/* The method of config.json v; NULL: nothing is pressed. ERR_UNSUPPORTED: a method that is not known. */
int hf_method(const struct hf_method **out, const json_t *v, struct err *e) WARN_UNUSED;

/* "quantization_config" by the first method that takes the forms. Folders of a method other than ours are for programs that
 * want one type for all numbers: *dtype is its name, else NULL. NULL: no memory. */
json_t *hf_forms_config(json_t *forms, json_t *tensors, const char **dtype);

#endif
