/* What tests of ops share: every instruction set of this machine, opened, and numbers that repeat.
 */
#ifndef WRING_TESTS_TOOLS_LEVELS_H
#define WRING_TESTS_TOOLS_LEVELS_H

#include "kernels/backend.h"

extern struct be *level[CPU_ISA_N]; /* the CPU backend; NULL where the machine lacks the level */
int levels_open(void **state);      /* a cmocka group's setup: -1 when one does not open */
int levels_close(void **state);     /* its end: -1 when memory is left behind */

/* One sequence of numbers for the whole program. */
void rnd_seed(uint32_t seed);
uint32_t rnd_bits(void);                        /* 24 bits */
float rnd_unit(void);                           /* even in [-1, 1) */
float rnd_normal(void);                         /* close to a normal distribution of variance 1 */
void rnd_fill(float *x, size_t n, float scale); /* of rnd_unit */
void rnd_fill_normal(float *x, size_t n, float scale);

#endif
