/* Which form each matrix gets, by trial: a parent's offspring differ from it in few forms and take no more bytes; who does best
 * on real data is the next parent.
 *
 * Source: EvoPress (arXiv 2410.14649): level-switch mutations, 1 to 3 of them and more often few; survivors of each
 * round of selection are judged on more data. There the pairs that are switched have one size; here what was raised is paid
 * for by lowering as many others as that takes, and what is left over is spent.
 */
#ifndef WRING_QUANT_EVOLVE_H
#define WRING_QUANT_EVOLVE_H

#include <stdint.h>

#include "quant/allocate.h"

enum { EVOLVE_ROUNDS = 3, EVOLVE_OFFSPRING = 16 };

struct evolve {
    const struct allocate_item *item; /* errors are not looked at */
    int n;
    size_t budget; /* not below what a parent takes */
    uint64_t seed;
    /* How bad choice[n] is, less is better. round: 0 to EVOLVE_ROUNDS - 1; data grows with it, and that of the last round is the
     * same for every generation. */
    int (*judge)(void *arg, const int *choice, int generation, int round, double *loss,
                 struct err *e);
    void *arg;
};

/* One generation: 16 offspring of choice[n], of which round 0 leaves 4, round 1 leaves 1, and that takes the parent's place if
 * the last round finds it better than *loss, which is the parent's. A function of its arguments alone, for a judge that is
 * one. ERR_NOMEM, errors of judge. */
int evolve_generation(const struct evolve *v, int generation, int *choice, double *loss,
                      struct err *e) WARN_UNUSED;

#endif
