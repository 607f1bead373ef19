/* The program: finds the subcommand and runs it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/log.h"
#include "server/cli/cli.h"
#include "server/version.h"

static const struct text {
    const char *name;
    int (*make)(struct buf *);
    const char *help;
} texts[] = {
    { "sample-config", config_sample, "print a config file with every default of serve" },
    { "options", config_markdown, "print all options as a table in Markdown" },
};
enum { N_TEXTS = sizeof texts / sizeof *texts };

static int usage(FILE *to)
{
    static const char line[] = "  wring %-48s %s\n";
    fprintf(to, "wring %s: serves pressed language models over the OpenAI API\n\nUsage:\n",
            WRING_VERSION);
    for (const struct cmd *c = cmd_list; c->name != NULL; c++)
        fprintf(to, line, c->usage, c->help);
    for (int i = 0; i < N_TEXTS; i++)
        fprintf(to, line, texts[i].name, texts[i].help);
    fprintf(to, line, "version", "print the version");
    fprintf(to, line, "help [COMMAND]", "print this, or a command's options");
    fprintf(to, "\n`wring COMMAND --help` lists a command's options.\n"
                "Exit codes: 0 done; 1 failed; 2 asked for what cannot be: an option, a word or a "
                "value is wrong.\n");
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

static int no_command(const char *name)
{
    fprintf(stderr, "wring: there is no command \"%s\"\n\n", name);
    return usage(stderr);
}

static int no_words(const char *name, const char *word)
{
    fprintf(stderr, "wring %s: takes no \"%s\", nor anything else\n", name, word);
    return 2;
}

static const struct text *find_text(const char *name)
{
    for (int i = 0; i < N_TEXTS; i++)
        if (strcmp(name, texts[i].name) == 0)
            return &texts[i];
    return NULL;
}

static const struct cmd *find(const char *name)
{
    for (const struct cmd *c = cmd_list; c->name != NULL; c++)
        if (strcmp(c->name, name) == 0)
            return c;
    return NULL;
}

/* Of the command that is named; of those without options all there is. */
static int help(int argc, char **argv)
{
    char option[] = "--help";
    const struct cmd *c = argc > 0 ? find(argv[0]) : NULL;
    if (c != NULL)
        return c->run(1, (char *[]){ option, NULL });
    bool known = argc == 0 || strcmp(argv[0], "version") == 0 || strcmp(argv[0], "help") == 0 ||
                 find_text(argv[0]) != NULL;
    return known ? usage(stdout) : no_command(argv[0]);
}

static int run(int argc, char **argv)
{
    if (argc < 2)
        return usage(stderr);
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0)
        return help(argc - 2, argv + 2);
    bool version = strcmp(name, "--version") == 0 || strcmp(name, "version") == 0;
    const struct text *text = find_text(name);
    if ((version || text != NULL) && argc > 2)
        return no_words(name, argv[2]);
    if (version)
        return printf("wring %s\n", WRING_VERSION) < 0;
    if (text != NULL)
        return print_text(text->make);
    const struct cmd *c = find(name);
    return c != NULL ? c->run(argc - 2, argv + 2) : no_command(name);
}

int main(int argc, char **argv)
{
    return end(run(argc, argv));
}
