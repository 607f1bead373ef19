#include "tests/tools/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "server/base/mem.h"
#include "server/cli/fetch.h"

char root[256];

int scratch_open(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/wring-test.XXXXXX", tmp != NULL && *tmp != 0 ? tmp : "/tmp");
    return mkdtemp(root) == NULL ? -1 : 0;
}

int scratch_close(void **state)
{
    (void)state;
    struct mem_stats m;
    fetch_remove(root);
    mem_stats(&m);
    return m.blocks == 0 ? 0 : -1;
}

const char *in_root(const char *name)
{
    static char path[8][512];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", root, name);
    return path[next];
}

void read_file(struct buf *b, const char *name)
{
    struct err e;
    buf_init(b, 16 << 20);
    if (buf_read_file(b, in_root(name), &e) < 0)
        fail_msg("%s", e.text);
}
