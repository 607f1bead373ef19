/* Options: one table from which the command line, the config file, --help, the sample config and the README come.
 *
 * Precedence: defaults, then the file of --config, then the environment (WRING_API_KEY only, unless it is empty), then
 * the command line.
 * A config file is YAML: one flat mapping of option names to values; a null leaves the option as it is. It belongs to one
 * command: an option that this one does not take is refused, as on the command line.
 * Thread: filled by main before any other thread starts, read-only afterwards. The only file that reads the environment.
 */
#ifndef WRING_SERVER_CONFIG_H
#define WRING_SERVER_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/base/buf.h"
#include "server/base/err.h"

/* Which subcommand an option belongs to; of bench and eval, what they measure. */
enum config_command {
    CONFIG_SERVE = 1,
    CONFIG_CHAT = 2,
    CONFIG_BENCH_SPEED = 4,
    CONFIG_BENCH_KV = 8,
    CONFIG_EVAL_PPL = 16,
    CONFIG_EVAL_KL = 32,
    CONFIG_EVAL_TASKS = 64,
    CONFIG_EVAL_KV = 128,
    CONFIG_QUANTIZE = 256,
    CONFIG_ENGINE = CONFIG_SERVE | CONFIG_CHAT,
    CONFIG_BENCH = CONFIG_BENCH_SPEED | CONFIG_BENCH_KV,
    CONFIG_EVAL = CONFIG_EVAL_PPL | CONFIG_EVAL_KL | CONFIG_EVAL_TASKS | CONFIG_EVAL_KV,
    CONFIG_RUN = CONFIG_ENGINE | CONFIG_BENCH | CONFIG_EVAL, /* a model as the user wants it run */
    CONFIG_ALL = CONFIG_RUN | CONFIG_QUANTIZE
};

struct config {
    /* words without a dash, in order; the first is the model */
    const char *word[4];
    int n_words;
    bool help;
    /* the machine */
    char *device, *isa;
    int64_t threads;
    /* the model */
    char *weights, *activations, *io, *synthetic;
    bool cublas;
    /* the engine */
    char *kv_type, *kv_narrow;
    int64_t ctx, kv_size, max_seqs, max_batch, max_queue, kv_samples, layer_major;
    bool prefix_cache;
    char *kv_policy, *kv_budget, *kv_budget_max;
    double kv_mass_floor;
    /* the front */
    char *host, *api_key, *alias;
    int64_t port, max_body, max_connections, http_threads, drain_timeout;
    /* the log */
    char *log_level, *log_format;
    bool log_prompts;
    /* measuring */
    bool json;
    int64_t chunks, repeat;
    char *tests, *batches, *depths;
    bool kv;
    int64_t length, samples, seed;
    char *policies, *budgets, *tasks, *text, *base, *out, *separator;
    /* quantize */
    char *codec, *head, *calibrate, *allocate, *forms, *align, *pareto;
    int64_t tokens, context, fisher, tune, tune_codes, size, generations;
    double bits, damp;
    bool force;
    /* chat */
    char *system;
    double temperature, top_p;
    int64_t max_tokens;
};

/* Fills c for one subcommand from argv (after the subcommand's name); for several at once, as CONFIG_EVAL, with what any of them
 * takes. The error names the option or the line of the file
 * and what would be right. Strings belong to c until config_free. */
int config_parse(struct config *c, enum config_command command, int argc, char **argv,
                 struct err *e) WARN_UNUSED;
void config_free(struct config *c);
/* The text of a config file for one subcommand, on top of what c holds already. */
int config_read(struct config *c, enum config_command command, const char *text, size_t n,
                struct err *e) WARN_UNUSED;

/* The table as text. */
int config_help(enum config_command command, struct buf *out) WARN_UNUSED; /* for --help */
int config_sample(struct buf *out) WARN_UNUSED;   /* a config file with every default of serve */
int config_markdown(struct buf *out) WARN_UNUSED; /* for the README */

/* $XDG_DATA_HOME, else ~/.local/share; ERR_NOTFOUND when there is no home either. */
int config_data_home(char *out, size_t n, struct err *e) WARN_UNUSED;

#endif
