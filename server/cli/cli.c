#include "server/cli/cli.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/base/log.h"

const struct cmd cmd_list[] = {
    { "serve", cmd_serve, "serve MODEL [options]", "answer the OpenAI API over HTTP" },
    { "chat", cmd_chat, "chat MODEL [options]", "talk to a model in the terminal" },
    { "pull", cmd_pull, "pull NAME", "fetch a model by its recipe" },
    { "import", cmd_import, "import llama2c MODEL.bin TOKENIZER.bin FOLDER",
      "turn a llama2.c model into a Hugging Face-style folder" },
    { "quantize", cmd_quantize, "quantize MODEL OUT [options]",
      "press a model's weights into a Hugging Face-style folder" },
    { "inspect", cmd_inspect, "inspect MODEL [options]",
      "show what is in a model and what it will take" },
    { "bench", cmd_bench, "bench MODEL | --synthetic SHAPE:FORM [options]",
      "measure prefill and decode against the machine's bounds" },
    { "eval", cmd_eval, "eval ppl | kl | tasks | kv MODEL ... [options]",
      "measure perplexity, what pressing weights or the KV cache costs, right answers" },
    { NULL, NULL, NULL, NULL },
};

int cli_fail(const struct err *e)
{
    log_text("wring: %s\n", e->text);
    return e->code == ERR_INVALID ? 2 : 1;
}

int cli_usage(const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    log_text("wring: %s\n", text);
    return 2;
}

int cli_text(const char *s)
{
    struct err e;
    if (fputs(s, stdout) != EOF && fflush(stdout) == 0)
        return 0;
    err_errno(&e, ERR_IO, "stdout");
    return cli_fail(&e);
}

int cli_no_table(void)
{
    return cli_fail(&(struct err){ ERR_NOMEM, "no memory for the table" });
}

int cli_table(struct table *t, bool json)
{
    struct buf b;
    buf_init(&b, 64u << 20);
    int rc = table_print(t, json, &b);
    if (rc == 0)
        rc = cli_text(buf_str(&b));
    else
        cli_usage("the table could not be printed: %s", err_name(rc));
    buf_free(&b);
    table_close(t);
    return rc == 0 ? 0 : 1;
}

/* Bytes of the control character at s, 0 when there is none. U+0080 to U+009F are two. */
static size_t control_len(const char *s, size_t n)
{
    unsigned char c = (unsigned char)s[0], next = n > 1 ? (unsigned char)s[1] : 0;
    if (c == 0xC2 && next >= 0x80 && next <= 0x9F)
        return 2;
    return (c < 0x20 && c != '\n' && c != '\t') || c == 0x7F;
}

void cli_show(FILE *to, const char *text, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t k = control_len(text + i, n - i);
        fwrite(k > 0 ? "\xEF\xBF\xBD" : text + i, 1, k > 0 ? 3 : 1, to);
        i += k > 0 ? k : 1;
    }
}

bool cli_asks_help(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

int cli_numbers(const char *option, const char *text, int min, int max, struct cli_list *out,
                struct err *e)
{
    enum { MOST = sizeof out->v / sizeof out->v[0] };
    out->n = 0;
    for (const char *p = text; *p != 0;) {
        char *end;
        long v = strtol(p, &end, 10);
        bool more = *end == ',' && end[1] != 0;
        if (end == p || (*end != 0 && !more) || v < min || v > max || out->n == MOST)
            return err_set(e, ERR_INVALID,
                           "%s: \"%s\" is not a list of at most %d numbers from %d to %d, as 1,2,8",
                           option, text, (int)MOST, min, max);
        out->v[out->n++] = (int)v;
        p = more ? end + 1 : end;
    }
    return 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

void cli_sort(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
}

static void setup_log(const struct config *c)
{
    enum log_level level = strcmp(c->log_level, "error") == 0  ? LOG_E
                           : strcmp(c->log_level, "warn") == 0 ? LOG_W
                           : strcmp(c->log_level, "info") == 0 ? LOG_I
                                                               : LOG_D;
    log_setup(&(struct log_config){
        .level = level, .json = strcmp(c->log_format, "json") == 0, .prompts = c->log_prompts });
}

static int print_help(enum config_command command, const char *usage)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    buf_addf(&b, "Usage: wring %s\n", usage);
    int rc = config_help(command, &b);
    if (rc == 0)
        rc = cli_text(buf_str(&b));
    buf_free(&b);
    return rc == 0 ? 0 : 1;
}

int cli_config(struct config *c, enum config_command command, const char *usage, int n_words,
               int argc, char **argv, bool *done)
{
    struct err e;
    int code = 0;
    *done = true;
    if (config_parse(c, command, argc, argv, &e) < 0)
        code = cli_usage("%s", e.text);
    else if (c->help)
        code = print_help(command, usage);
    else if (c->synthetic[0] != 0 && c->n_words > 0)
        code =
            cli_usage("--synthetic takes the place of MODEL \"%s\": give one of them", c->word[0]);
    else if (c->synthetic[0] == 0 && c->n_words != n_words)
        code = cli_usage("usage: wring %s; --help lists the options", usage);
    else
        *done = false;
    if (*done)
        config_free(c);
    else
        setup_log(c);
    if (!*done && c->synthetic[0] != 0)
        c->word[c->n_words++] = c->synthetic;
    return code;
}
