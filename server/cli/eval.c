/* wring eval: finds the kind that is asked for. */
#include "server/cli/eval.h"

#include <string.h>

#include "server/cli/cli.h"

int cmd_eval(int argc, char **argv)
{
    static const char usage[] = "eval ppl MODEL TEXT | eval kv MODEL [options]";
    struct config c;
    struct err e;
    bool done;
    /* Read for the kind alone, which may stand behind options; what is wrong with them is said below. */
    bool has_kind = config_parse(&c, CONFIG_EVAL, argc, argv, &e) == 0 && c.n_words > 0;
    const char *kind = has_kind ? c.word[0] : "";
    config_free(&c);
    if (strcmp(kind, "ppl") == 0)
        return eval_ppl(argc, argv);
    if (strcmp(kind, "kv") == 0)
        return eval_kv(argc, argv);
    int code = cli_config(&c, CONFIG_EVAL, usage, 0, argc, argv, &done);
    if (done)
        return code;
    config_free(&c);
    return cli_usage("usage: wring %s; --help lists the options", usage);
}
