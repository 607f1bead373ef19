/* wring eval: finds the kind that is asked for. */
#include "server/cli/eval.h"

#include <string.h>

#include "server/cli/cli.h"

int cmd_eval(int argc, char **argv)
{
    static const char usage[] = "eval ppl MODEL TEXT | eval kv MODEL [options]";
    const char *kind = argc > 0 ? argv[0] : "";
    if (strcmp(kind, "ppl") == 0)
        return eval_ppl(argc, argv);
    if (strcmp(kind, "kv") == 0)
        return eval_kv(argc, argv);
    struct config c;
    bool done;
    int code = cli_config(&c, CONFIG_EVAL, usage, 0, argc, argv, &done);
    if (done)
        return code;
    config_free(&c);
    return cli_usage("usage: wring %s; --help lists the options", usage);
}
