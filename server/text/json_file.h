/* The text of a model folder's JSON files as values. */
#ifndef WRING_TEXT_JSON_FILE_H
#define WRING_TEXT_JSON_FILE_H

#include <jansson.h>

#include "server/base/buf.h"

/* name: the file's, as "config.json". In tokenizer_config.json whole numbers that no 64 bits hold make all of the file's whole
 * numbers reals. ERR_FORMAT "name:line: what is wrong": not JSON, a key is there twice. */
int json_file_parse(json_t **out, const char *name, const struct buf *text,
                    struct err *e) WARN_UNUSED;

#endif
