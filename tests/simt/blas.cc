// The host twin of kernels/cuda/blas.cu: the same contract, a product in f64 as a kernel on the simulated device, so that
// it is queued, recorded and checked like any other.
#include "kernels/cuda/state.cuh"

extern "C" {
#include "kernels/cuda/blas.h"
}

struct cu_blas {
    struct cu_state *s;
    uint16_t *scratch;
};

static __global__ void reference_matmul(const uint16_t *x, const uint16_t *w, const float *bias,
                                        float *y, int n, int rows, int cols, int ldy)
{
    int row = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (row >= rows)
        return;
    for (int r = 0; r < n; r++) {
        double sum = bias != nullptr ? bias[row] : 0;
        for (int k = 0; k < cols; k++)
            sum += (double)cu_bf16_low(w[(size_t)row * cols + k]) *
                   cu_bf16_low(x[(size_t)r * cols + k]);
        y[(size_t)r * ldy + row] = (float)sum;
    }
}

int blas_open(struct cu_blas **out, struct cu_state *s, struct err *e)
{
    struct cu_blas *b = (struct cu_blas *)mem_zalloc(1, sizeof *b);
    if (b == NULL || cudaMalloc((void **)&b->scratch, BLAS_SCRATCH) != cudaSuccess) {
        (void)cudaGetLastError();
        mem_free(b);
        return err_set(e, ERR_NOMEM, "no GPU memory for cuBLAS");
    }
    b->s = s;
    *out = b;
    return 0;
}

void blas_close(struct cu_blas *b)
{
    if (b == NULL)
        return;
    cudaStreamSynchronize(b->s->stream);
    cudaFree(b->scratch);
    mem_free(b);
}

uint16_t *blas_scratch(struct cu_blas *b)
{
    return b->scratch;
}

bool blas_matmul(struct cu_blas *b, const uint16_t *x, const uint16_t *w, const float *bias,
                 float *y, int n, int rows, int cols, int ldy)
{
    enum { THREADS = 64 };
    CU_LAUNCH(b->s->stream, (unsigned)(rows + THREADS - 1) / THREADS, THREADS, 0, reference_matmul,
              x, w, bias, y, n, rows, cols, ldy);
    return true;
}
