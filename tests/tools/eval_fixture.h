/* What tests of `wring eval kv` share: a small real model and a text, as "model" and "text.txt" in the scratch folder. */
#ifndef WRING_TESTS_TOOLS_EVAL_FIXTURE_H
#define WRING_TESTS_TOOLS_EVAL_FIXTURE_H

#include "server/cli/cli.h"

int eval_open(void **state); /* a cmocka group's setup, whose end is scratch_close */
/* The model, on the CPU with one thread. */
void eval_model(struct session *s);

#endif
