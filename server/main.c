/* The program: finds the subcommand and runs it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/log.h"
#include "server/cli/cli.h"
#include "server/version.h"

static int usage(FILE *to)
{
    fprintf(to, "wring %s: serves pressed language models over the OpenAI API\n\nUsage:\n",
            WRING_VERSION);
    for (const struct cmd *c = cmd_list; c->name != NULL; c++)
        fprintf(to, "  wring %-48s %s\n", c->usage, c->help);
    fprintf(to, "\n`wring COMMAND --help` lists a command's options.\n");
    return to == stdout ? 0 : 2;
}

static int print_text(int (*make)(struct buf *))
{
    struct buf b;
    buf_init(&b, 1 << 20);
    int rc = make(&b);
    if (rc == 0)
        rc = cli_text(buf_str(&b));
    buf_free(&b);
    return rc == 0 ? 0 : 1;
}

/* What a command printed may still wait in the buffer, and the disk behind it be full. One that failed has said so. */
static int end(int code)
{
    errno = 0;
    if (code != 0 || (fflush(stdout) == 0 && !ferror(stdout)))
        return code;
    log_text("wring: stdout: %s\n", errno != 0 ? strerror(errno) : "not all could be written");
    return 1;
}

static int run(int argc, char **argv)
{
    if (argc < 2)
        return usage(stderr);
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0)
        return usage(stdout);
    if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0)
        return printf("wring %s\n", WRING_VERSION) < 0;
    if (strcmp(name, "sample-config") == 0)
        return print_text(config_sample);
    if (strcmp(name, "options") == 0)
        return print_text(config_markdown);
    for (const struct cmd *c = cmd_list; c->name != NULL; c++)
        if (strcmp(c->name, name) == 0)
            return c->run(argc - 2, argv + 2);
    fprintf(stderr, "wring: there is no command \"%s\"\n\n", name);
    return usage(stderr);
}

int main(int argc, char **argv)
{
    return end(run(argc, argv));
}
