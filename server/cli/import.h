/* Turning a foreign model format into a folder that serve opens. */
#ifndef WRING_SERVER_CLI_IMPORT_H
#define WRING_SERVER_CLI_IMPORT_H

#include "server/base/err.h"

/* llama2.c's model file (version 0: seven ints, then f32 tensors) and tokenizer.bin into the folder out, which must not
 * exist: config.json, model.safetensors (F32, as transformers lays it out), tokenizer.model. The folder appears whole or
 * not at all. ERR_FORMAT, ERR_IO, ERR_NOMEM, ERR_INVALID. */
int import_llama2c(const char *model, const char *tokenizer, const char *out,
                   struct err *e) WARN_UNUSED;

#endif
