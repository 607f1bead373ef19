/* wring eval: its kinds, each a command of its own. */
#ifndef WRING_SERVER_CLI_EVAL_H
#define WRING_SERVER_CLI_EVAL_H

enum { EVAL_OUT = 128 }; /* rows of logits a step: some 60 MB where a vocabulary is large */

int eval_ppl(int argc, char **argv);
int eval_kl(int argc, char **argv);
int eval_tasks(int argc, char **argv);
int eval_kv(int argc, char **argv);

#endif
