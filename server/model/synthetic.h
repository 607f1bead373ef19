/* Models with the shape of a known one and made-up weights: to measure speed where no file is at hand.
 *
 * Weights are normally distributed with a deviation of 1 / sqrt(cols), so that activations keep the size they have in a
 * trained model; never zeros, on which a GPU is faster than on data. The same spec gives the same weights on every machine
 * and with any number of threads. Nothing is downloaded or read.
 */
#ifndef WRING_SERVER_MODEL_SYNTHETIC_H
#define WRING_SERVER_MODEL_SYNTHETIC_H

#include "server/model/model.h"

/* spec: "SHAPE:FORM" as "llama-3.1-8b:q4"; FORM is a word of --weights and replaces o->weights. The model has a tokenizer
 * that writes any text byte by byte, and no chat template. ERR_INVALID lists the known shapes; ERR_UNSUPPORTED for one
 * that this program cannot run; else errors as of model_open. Close with model_close. */
int synthetic_open(struct model **out, const char *spec, const struct model_options *o,
                   struct be *be, struct err *e) WARN_UNUSED;
const char *synthetic_shapes(void); /* "llama-3.1-8b, ...": for messages */

#endif
