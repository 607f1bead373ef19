/* Texts that a command reads: files, folders of them, recipes. */
#ifndef WRING_SERVER_CLI_TEXTS_H
#define WRING_SERVER_CLI_TEXTS_H

#include "server/base/buf.h"

struct texts {
    struct buf *text; /* [n] */
    int n;
};
/* list: comma separated; a file, a folder (its .txt files by name), or a recipe that has been pulled. ERR_NOTFOUND, ERR_LIMIT
 * (64 texts of 64 MiB), ERR_INVALID: none. On failure t needs no close. */
int texts_open(struct texts *t, const char *list, struct err *e) WARN_UNUSED;
void texts_close(struct texts *t); /* a zeroed one is accepted */

#endif
