/* wring eval: its two kinds, each a command of its own. */
#ifndef WRING_SERVER_CLI_EVAL_H
#define WRING_SERVER_CLI_EVAL_H

int eval_ppl(int argc, char **argv);
int eval_kv(int argc, char **argv);

#endif
