/* What tests of `wring quantize` share: runs on text.txt in the scratch folder, where eval_open put it beside "model". */
#ifndef WRING_TESTS_TOOLS_QUANTIZE_FIXTURE_H
#define WRING_TESTS_TOOLS_QUANTIZE_FIXTURE_H

#include <stdbool.h>

#include "server/quantize/quantize.h"

/* Presses root/model to root/out: to q4 with 256 tokens in sequences of 64 unless `more` says otherwise, a NULL-terminated
 * list of options, or NULL. */
int run_on(const char *model, const char *out, const char *const *more, struct err *e) WARN_UNUSED;
/* The same, with what it leaves open: for quantize_close() on success, and always config_free(). */
int run_open(struct quantize *q, struct config *c, const char *model, const char *out,
             const char *const *more, struct err *e) WARN_UNUSED;
/* Presses "toy.gguf" and must not fail. */
void press_toy(const char *out, const char *const *more);
/* The same with the model "model". */
int run(const char *out, const char *const *more, struct err *e) WARN_UNUSED;
void must_run(const char *out, const char *const *more);
/* The run fails with this code and a message that holds `says`. */
void must_fail(const char *out, const char *const *more, int code, const char *says);

/* A child presses as run_on() does, and gets the signal as soon as now(arg) says so or the folder is there. It ends well by
 * itself or as that signal ends it, which is true; all else fails the test. */
bool run_stopped(const char *model, const char *out, const char *const *more, int sig,
                 bool (*now)(const void *arg), const void *arg);

/* Presses `model` to "rich", then to "poor" with memory that runs out at each of `parts` places: no block is left behind, at
 * least `least` of the runs fail, what one left another goes on with, and "poor" ends as "rich" is. Both are gone then. */
void survives_poverty(const char *model, const char *const *more, int parts, int least);

/* root/a/b, as in_root. */
const char *joined(const char *a, const char *b);
/* Shard i of a pressed model with so many layers. */
const char *shard_name(const char *folder, int i, int layers);
bool there(const char *path);
/* The model root/name on a backend of its own. */
void open_session(struct session *s, const char *name);
/* Bits a weight in the matrices of the layers of a folder. */
double bits_of(const char *name);
/* folder/quantize.json, and the map of that name in its notes on allocation. */
json_t *notes_of(const char *folder);
json_t *map_of(const json_t *notes, const char *key);
double number(const json_t *map, const char *key);
/* Of b's outputs from a's on the first n calibration sequences, in nats a token, written out. */
double divergence_of(const struct model *a, const struct model *b, int n);
/* The folders hold the same files with the same bytes. */
void same_folders(const char *a, const char *b);

#endif
