/* wring eval: finds the kind that is asked for. */
#include "server/cli/eval.h"

#include <string.h>

#include "server/cli/cli.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} kinds[] = { { "ppl", eval_ppl }, { "kl", eval_kl }, { "tasks", eval_tasks }, { "kv", eval_kv } };

int cmd_eval(int argc, char **argv)
{
    static const char usage[] = "eval ppl MODEL TEXT | eval kl MODEL REF TEXT | "
                                "eval tasks MODEL FILE | eval kv MODEL [options]";
    struct config c;
    struct err e;
    bool done;
    /* Read for the kind alone, which may stand behind options; what is wrong with them is said below. */
    bool has_kind = config_parse(&c, CONFIG_EVAL, argc, argv, &e) == 0 && c.n_words > 0;
    const char *kind = has_kind ? c.word[0] : "";
    config_free(&c);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kind, kinds[i].name) == 0)
            return kinds[i].run(argc, argv);
    int code = cli_config(&c, CONFIG_EVAL, usage, 0, argc, argv, &done);
    if (done)
        return code;
    config_free(&c);
    return cli_usage("usage: wring %s; --help lists the options", usage);
}
