/* Inside the writer of Hugging Face folders: what hf_write.c needs of config.json and the text files. */
#ifndef WRING_SERVER_MODEL_HF_WRITE_INTERNAL_H
#define WRING_SERVER_MODEL_HF_WRITE_INTERNAL_H

#include "server/model/folder.h"
#include "server/model/source.h"

/* ERR_UNSUPPORTED: config.json has no words for c. */
int hf_write_check(const struct model_config *c, struct err *e) WARN_UNUSED;
/* config.json from c, the first and last ids of src or its tokenizer t, and the forms, {module: word}; tensors: the names of all
 * as keys. */
int hf_write_config(const char *folder, const struct model_config *c, const struct source *src,
                    const struct tokenizer *t, json_t *forms, json_t *tensors,
                    struct err *e) WARN_UNUSED;

/* The tokenizer's files, copied where src is a folder, and the chat templates. */
int hf_write_text(const char *folder, const struct source *src, const struct tokenizer *t,
                  struct err *e) WARN_UNUSED;
/* Whether an entry of the folder is what a killed hf_write_config() or hf_write_text() left of a file of theirs. */
bool hf_write_is_rest(const char *entry);

#endif
