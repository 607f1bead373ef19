/* The files of a folder: paths, and JSON in and out. Errors begin with the path. */
#ifndef WRING_SERVER_MODEL_FOLDER_H
#define WRING_SERVER_MODEL_FOLDER_H

#include <jansson.h>
#include <stdbool.h>

#include "server/base/buf.h"

enum { FOLDER_PATH = 4096, FOLDER_MAX_TEXT = 64 << 20 };

/* folder/name. ERR_LIMIT when that is too long. */
int folder_path(char out[FOLDER_PATH], const char *folder, const char *name,
                struct err *e) WARN_UNUSED;
/* The path of a folder, without slashes behind it, and what is to stand there instead, as ".part". ERR_INVALID: the root, or
 * nothing; ERR_LIMIT. */
int folder_beside(char out[FOLDER_PATH], const char *folder, const char *suffix,
                  struct err *e) WARN_UNUSED;
/* The last part of a path, of "." and ".." the name of what they are; cut where it does not fit. */
void folder_name(char *out, size_t size, const char *path);
bool folder_has(const char *folder, const char *name);

/* Opens b with what the file holds, at most FOLDER_MAX_TEXT bytes; on failure b is empty. */
int folder_read(struct buf *b, const char *folder, const char *name, struct err *e) WARN_UNUSED;
int folder_read_json(json_t **out, const char *folder, const char *name, struct err *e) WARN_UNUSED;
/* Takes v over (NULL: there was no memory for it). Keys sorted, so that the same v gives the same bytes; the file appears
 * whole or not at all. Reals have nine digits, enough for any f32. */
int folder_write_json(const char *folder, const char *name, json_t *v, struct err *e) WARN_UNUSED;

#endif
