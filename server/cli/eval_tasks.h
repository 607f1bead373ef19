/* wring eval tasks: questions with four endings, in the form of llama-perplexity's --hellaswag.
 *
 * A task is six lines of a text file: a context, which ending is right (0 to 3), four endings. Each ending is judged by the sum of
 * the log-likelihoods of its tokens behind "CONTEXT ": the model is right where that of the right ending is the largest
 * (accuracy), or the largest per byte of the ending ("acc_norm" of other harnesses). The tokens of an ending are those behind
 * the ones that the context and all four texts begin with, so that a token across the border is judged as a whole.
 */
#ifndef WRING_SERVER_CLI_EVAL_TASKS_H
#define WRING_SERVER_CLI_EVAL_TASKS_H

#include "server/cli/cli.h"

enum { TASK_ENDINGS = 4, TASK_CTX = 1024 };

struct task {
    const char *context, *ending[TASK_ENDINGS]; /* in the file's text */
    int right;
    int line; /* of the context; the first of a file is 1 */
};
struct tasks {
    struct buf text;
    struct task *task; /* [n] in the order in which they are asked */
    int n;
};
/* All tasks of a file of at most 64 MiB, in an order that depends on seed and on their number alone. ERR_FORMAT says which line is
 * wrong and how; ERR_UNSUPPORTED: the file is packed; errors of buf_read_file. On failure t needs no close. */
int tasks_open(struct tasks *t, const char *path, uint64_t seed, struct err *e) WARN_UNUSED;
void tasks_close(struct tasks *t); /* a zeroed one is accepted */

/* Shares of tasks, with their standard errors (NaN for one task). */
struct tasks_result {
    int n;
    double acc, acc_err, norm, norm_err;
};
/* Asks the first --samples of them, in a cache as --kv-type says. A task may have --ctx tokens (0: what the model was trained for,
 * at most TASK_CTX): else ERR_LIMIT, which names its line. */
int tasks_measure(const struct model *m, const struct tasks *t, const struct config *c,
                  struct tasks_result *out, struct err *e) WARN_UNUSED;

#endif
