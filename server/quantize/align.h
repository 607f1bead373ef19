/* Which parts of a text are most like another one: those that compress best together with it.
 *
 * Source: ZIP-FIT (arXiv 2410.18194): the alignment of x with a text is 1 less the mean of NCD(x, t) over parts t of
 * it, NCD(x, t) = (C(xt) - min(C(x), C(t))) / max(C(x), C(t)) the normalised compression distance (Li et al., 2004), C the
 * length that gzip makes of it. The parts of highest alignment are taken.
 */
#ifndef WRING_SERVER_QUANTIZE_ALIGN_H
#define WRING_SERVER_QUANTIZE_ALIGN_H

#include "server/base/par.h"
#include "server/cli/texts.h"

/* chunk[n]: in rising order, which of the whole chunks of len tokens in ids (at least n) are most like the target; of equal ones
 * the first. Spreads over par; the result does not depend on its threads. ERR_NOMEM, ERR_INVALID: an empty target,
 * ERR_CANCELLED after a signal. */
int align_choose(const struct tok_ids *ids, const struct tokenizer *tok, const struct texts *target,
                 int len, int *chunk, int n, struct par *par, struct err *e) WARN_UNUSED;
/* 1 - NCD of two strings. ERR_NOMEM. */
int align_strings(const char *x, size_t n_x, const char *y, size_t n_y, double *alignment,
                  struct err *e) WARN_UNUSED;

#endif
