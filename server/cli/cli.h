/* The subcommands: one file each, argv without the program's and the subcommand's name, the exit code as result.
 *
 * Results go to stdout, everything else to stderr. Exit codes: 0 done; 2 it was asked for what cannot be, and the sentence says
 * which option, word or value is wrong; 1 it failed otherwise.
 */
#ifndef WRING_SERVER_CLI_CLI_H
#define WRING_SERVER_CLI_CLI_H

#include <stdio.h>

#include "kernels/backend.h"
#include "server/base/table.h"
#include "server/config.h"
#include "server/engine/engine.h"
#include "server/model/model.h"

struct cmd {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *usage, *help;
};
extern const struct cmd cmd_list[]; /* ends with a NULL name */

int cmd_serve(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_import(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_quantize(int argc, char **argv);
int cmd_pull(int argc, char **argv);

/* "wring: <sentence>" on stderr; returns the exit code: 2 for ERR_INVALID, else 1. */
int cli_fail(const struct err *e);
/* The same with a sentence of one's own; returns 2. */
int cli_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Prints a text to stdout; returns 0 or 1 (with a message). */
int cli_text(const char *s);
/* For a table that could not be opened: says so, and returns 1. */
int cli_no_table(void);
/* Prints the table to stdout and closes it; returns 0 or 1 (with a message). */
int cli_table(struct table *t, bool json);

/* Writes a model's text for a terminal, which it must not steer: control characters other than line feeds and tabs become
 * U+FFFD. The text is whole UTF-8. */
void cli_show(FILE *to, const char *text, size_t n);

/* Whether one of a command's words is --help or -h: for those without a config. */
bool cli_asks_help(int argc, char **argv);

struct cli_list {
    int v[32];
    int n;
};
/* "1,2,8": whole numbers from min to max; "" is none. ERR_INVALID names the option. */
int cli_numbers(const char *option, const char *text, int min, int max, struct cli_list *out,
                struct err *e) WARN_UNUSED;
/* Puts v[n] in rising order. */
void cli_sort(double *v, int n);

/* ---- for the commands that run a model ------------------------------------------------------------------------- */

/* Parses argv, answers --help (then *done is set and the result is the exit code), sets up the log. n_words is how many
 * words the command wants; usage is shown when there are others. On success the config is the caller's to free. */
int cli_config(struct config *c, enum config_command command, const char *usage, int n_words,
               int argc, char **argv, bool *done) WARN_UNUSED;

struct session {
    struct be *be;
    struct model *model;
};
/* Backend and model as the config says; model is a path or the name of a recipe. --device auto takes the first GPU and,
 * where there is none or it has no room, the CPU; the log says which and why. */
int session_open(struct session *s, const struct config *c, const char *model, bool progress,
                 struct err *e) WARN_UNUSED;
/* The same with an engine on top, which must fit too. max_seqs: 0 as the config says. */
int session_engine(struct session *s, struct engine **en, const struct config *c, int max_seqs,
                   bool progress, struct err *e) WARN_UNUSED;
void session_close(struct session *s); /* a zeroed one is accepted */
/* A line in the log where a context is longer than what a model was trained for. */
void session_check_ctx(int64_t ctx, int trained);
/* The backend alone, for models that come from no file. */
int session_device(struct be **out, const struct config *c, const char *device,
                   struct err *e) WARN_UNUSED;
int session_options(struct model_options *o, const struct config *c, const struct be *be,
                    bool progress, struct err *e) WARN_UNUSED;
enum kv_type cli_kv_type(const struct config *c, const struct be *be);
enum kv_narrow cli_kv_narrow(const struct config *c, enum kv_type type);

#endif
