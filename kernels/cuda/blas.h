/* Dense products by cuBLASLt, for many rows at once. Opt-in: its sums have another order than gemv.cuh and gemm.cuh, and
 * an order that depends on n, so results are no longer batch-invariant.
 *
 * The library is opened at run time (libcublasLt.so.13, .12 or any): a program built with its header runs without it.
 * One owner, the engine's thread; work goes to the state's stream.
 */
#ifndef WRING_KERNELS_CUDA_BLAS_H
#define WRING_KERNELS_CUDA_BLAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/base/err.h"

struct cu_state;
struct cu_blas;

enum { BLAS_ROWS_MIN = 256 }; /* rows of x from which unpacking a matrix first pays */

/* ERR_UNSUPPORTED: built without cublasLt.h, or no such library; ERR_NOMEM: no device memory for its scratch. */
int blas_open(struct cu_blas **out, struct cu_state *s, struct err *e) WARN_UNUSED;
void blas_close(struct cu_blas *b); /* NULL is accepted; waits for the device */

/* Device memory of BLAS_SCRATCH bytes in which callers unpack a matrix, slice by slice. */
#define BLAS_SCRATCH ((size_t)64 << 20)
uint16_t *blas_scratch(struct cu_blas *b);

/* y[r * ldy + i] = sum_k w[i][k] x[r][k] (+ bias[i] when not NULL) for r < n, i < rows: bf16 w[rows][cols] and x[n][cols],
 * f32 sums, y and bias. cols is a multiple of 8; w and x are 16-byte aligned. False when the library refused: nothing
 * was started and y is as it was. */
bool blas_matmul(struct cu_blas *b, const uint16_t *x, const uint16_t *w, const float *bias,
                 float *y, int n, int rows, int cols, int ldy);

#endif
