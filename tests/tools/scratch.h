/* A folder of a test program's own below $TMPDIR or /tmp, and paths in it. */
#ifndef WRING_TESTS_TOOLS_SCRATCH_H
#define WRING_TESTS_TOOLS_SCRATCH_H

#include "server/base/buf.h"

extern char root[256]; /* the folder */

int scratch_open(void **state);  /* a cmocka group's setup: -1 when there can be none */
int scratch_close(void **state); /* its end: -1 when memory is left behind */

/* root/name, until seven more were asked for. */
const char *in_root(const char *name);
/* Opens b with what root/name holds. */
void read_file(struct buf *b, const char *name);

#endif
