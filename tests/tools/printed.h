/* What a command prints. */
#ifndef WRING_TESTS_TOOLS_PRINTED_H
#define WRING_TESTS_TOOLS_PRINTED_H

#include "server/base/buf.h"

/* Runs it with stdout going to a file of the scratch folder (tests/tools/scratch.h), which out then holds; its exit code. */
int printed(int (*command)(int argc, char **argv), int argc, const char *const *argv,
            struct buf *out);

#endif
