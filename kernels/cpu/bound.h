/* What this machine can do at best, measured: the number that a speed is put next to.
 *
 * Both use all threads of the backend and take about 0.3 s. Reading is the median of nine passes, arithmetic the best of
 * eighteen. Called by benchmarks, not by ops.
 */
#ifndef WRING_KERNELS_CPU_BOUND_H
#define WRING_KERNELS_CPU_BOUND_H

#include "kernels/backend.h"

/* Elements of a dot product. A level without an instruction for a kind is measured with what it has instead: f32 for
 * bf16, 16-bit multiply-adds for int8. */
enum bound_dot { BOUND_F32, BOUND_BF16, BOUND_I8, BOUND_DOT_N };

/* Reading memory that is in no cache: 1e9 bytes a second; 0 when there is no memory for it. */
double bound_read_gbs(struct be *be);
/* Products and sums each count as one: 1e9 a second. */
double bound_dot_gops(struct be *be, enum bound_dot kind);

/* One loop per instruction set: `rounds` dot-product instructions on each of ten sums; returns operations done. */
double bound_loop_ref(enum bound_dot kind, long rounds);
double bound_loop_avx2(enum bound_dot kind, long rounds);
double bound_loop_avx512(enum bound_dot kind, long rounds);
double bound_loop_bf16(enum bound_dot kind, long rounds);

#endif
