/* Texts that a command reads: files, folders of them, recipes. */
#ifndef WRING_SERVER_CLI_TEXTS_H
#define WRING_SERVER_CLI_TEXTS_H

#include "server/base/buf.h"
#include "server/text/token.h"

struct texts {
    struct buf *text; /* [n] */
    int n;
};
/* list: comma separated; a file, a folder (its .txt files by name), or a recipe that has been pulled. ERR_NOTFOUND, ERR_LIMIT
 * (64 texts of 64 MiB), ERR_INVALID: none. On failure t needs no close. */
int texts_open(struct texts *t, const char *list, struct err *e) WARN_UNUSED;
/* The same errors of what is not there or may not be read, without reading it: before work that takes long. */
int texts_check(const char *list, struct err *e) WARN_UNUSED;
void texts_close(struct texts *t); /* a zeroed one is accepted */

/* Appends the tokens of a text, which begins with BOS where the vocabulary asks for that. So does every document of it when
 * there is a separator (not ""): the text is cut there, line ends that follow go, and special tokens are known by their names. A
 * vocabulary that has the separator as a token was trained on it, and gets it. ERR_NOMEM, ERR_LIMIT (over 2^30 tokens). */
int texts_encode(const struct tokenizer *tok, const struct buf *text, const char *separator,
                 struct tok_ids *out) WARN_UNUSED;

#endif
