/* Real models for tests: where `wring pull` put them, or where WRING_MODELS says. */
#ifndef WRING_TESTS_TOOLS_MODELS_H
#define WRING_TESTS_TOOLS_MODELS_H

#include <stdbool.h>
#include <stddef.h>

/* The path of a model (a file's or folder's name as `wring pull` writes it); false when it was not pulled. */
bool model_path(const char *name, char *out, size_t size);

#endif
