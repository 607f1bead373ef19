#include "tests/tools/printed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>
#include <fcntl.h>
#include <unistd.h>

#include "tests/tools/scratch.h"

int printed(int (*command)(int argc, char **argv), int argc, const char *const *argv,
            struct buf *out)
{
    fflush(stdout);
    int old = dup(STDOUT_FILENO);
    int fd = open(in_root("stdout"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(old >= 0 && fd >= 0);
    dup2(fd, STDOUT_FILENO);
    int code = command(argc, (char **)(uintptr_t)argv);
    fflush(stdout);
    dup2(old, STDOUT_FILENO);
    close(fd);
    close(old);
    read_file(out, "stdout");
    return code;
}
