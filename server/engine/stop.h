/* Stop strings over a stream of text: what may go out, and what must wait because a stop string may have begun.
 *
 * The text ends where the first stop string to be complete begins (of two that are complete at the same byte, the longer
 * one). The outcome does not depend on how the text was cut into pieces. One owner; allocates on opening only.
 */
#ifndef WRING_SERVER_ENGINE_STOP_H
#define WRING_SERVER_ENGINE_STOP_H

#include <stdbool.h>
#include <stddef.h>

#include "server/base/err.h"

struct stop_string;
struct stop {
    struct stop_string *str;
    int n;
    int *fail;      /* all failure tables, one after the other */
    size_t scanned; /* bytes at the front of the text that were looked at: those held back */
    bool hit;       /* a stop string is complete; nothing more may be pushed */
};

/* Strings are borrowed; empty ones are ignored. */
int stop_open(struct stop *s, const char *const *str, int n) WARN_UNUSED;
void stop_close(struct stop *s); /* a zeroed one is accepted */
/* text[0, n): the bytes held back so far, followed by new ones. Returns how many of them may go out now; the caller takes
 * them away from the front, the others are held back. After a hit the others are not part of the answer. */
size_t stop_push(struct stop *s, const char *text, size_t n);

#endif
