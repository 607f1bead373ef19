/* cuBLASLt behind blas.h. tests/simt/blas.cc is the host twin.
 *
 * The library reads matrices column by column, so y[n][rows] is its D, rows x n, w its transposed A and x its B. Which
 * kernel is best for a shape it answers from a cache of its own, so it is asked every time.
 *
 * Bytes moved: at best w, x and y once each.
 */
#include "kernels/cuda/state.cuh"

extern "C" {
#include "kernels/cuda/blas.h"
}

#ifndef WRING_SIMT
#    if __has_include(<cublasLt.h>)

#        include <cublasLt.h>
#        include <dlfcn.h>

namespace
{

const char *const LIBRARY[] = { "libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so" };
const size_t WORKSPACE = (size_t)32 << 20; /* what NVIDIA recommends on Hopper */

#        define BLAS_SYMBOLS(X)                                                                    \
            X(cublasLtCreate)                                                                      \
            X(cublasLtDestroy)                                                                     \
            X(cublasLtMatmul)                                                                      \
            X(cublasLtMatmulAlgoGetHeuristic)                                                      \
            X(cublasLtMatmulDescCreate)                                                            \
            X(cublasLtMatmulDescDestroy)                                                           \
            X(cublasLtMatmulDescSetAttribute)                                                      \
            X(cublasLtMatmulPreferenceCreate)                                                      \
            X(cublasLtMatmulPreferenceDestroy)                                                     \
            X(cublasLtMatmulPreferenceSetAttribute)                                                \
            X(cublasLtMatrixLayoutCreate)                                                          \
            X(cublasLtMatrixLayoutDestroy)                                                         \
            X(cublasLtMatrixLayoutSetAttribute)

} // namespace

struct cu_blas {
    struct cu_state *s;
    void *library;
#        define BLAS_POINTER_(name) decltype(&::name) name;
    BLAS_SYMBOLS(BLAS_POINTER_)
#        undef BLAS_POINTER_
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulPreference_t wish;
    uint16_t *scratch;
    void *workspace;
};

namespace
{

/* One library and its handle. A version that the driver is too old for loads, but gives no handle. */
bool try_library(struct cu_blas *b, const char *name, struct err *e)
{
    b->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (b->library == NULL) {
        err_set(e, ERR_UNSUPPORTED, "cuBLAS is not there: %s", dlerror());
        return false;
    }
    const char *missing = NULL;
#        define BLAS_LOAD_(name)                                                                   \
            b->name = (decltype(b->name))dlsym(b->library, #name);                                 \
            missing = b->name == NULL ? #name : missing;
    BLAS_SYMBOLS(BLAS_LOAD_)
#        undef BLAS_LOAD_
    if (missing == NULL && b->cublasLtCreate(&b->handle) == CUBLAS_STATUS_SUCCESS)
        return true;
    err_set(e, ERR_UNSUPPORTED, "%s %s%s", name,
            missing != NULL ? "has no " : "does not work with this driver",
            missing != NULL ? missing : "");
    b->handle = NULL;
    dlclose(b->library);
    b->library = NULL;
    return false;
}

bool load_library(struct cu_blas *b, struct err *e)
{
    for (const char *name : LIBRARY)
        if (try_library(b, name, e))
            return true;
    return false;
}

bool set_wish(struct cu_blas *b, cublasLtMatmulPreferenceAttributes_t which, const void *value,
              size_t bytes)
{
    return b->cublasLtMatmulPreferenceSetAttribute(b->wish, which, value, bytes) ==
           CUBLAS_STATUS_SUCCESS;
}

/* What is the same for every product. */
bool describe(struct cu_blas *b)
{
    cublasOperation_t turned = CUBLAS_OP_T;
    uint32_t aligned = 16;
    const cublasLtMatmulPreferenceAttributes_t alignment[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
    };
    bool ok = b->cublasLtMatmulDescCreate(&b->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) ==
                  CUBLAS_STATUS_SUCCESS &&
              b->cublasLtMatmulDescSetAttribute(b->product, CUBLASLT_MATMUL_DESC_TRANSA, &turned,
                                                sizeof turned) == CUBLAS_STATUS_SUCCESS &&
              b->cublasLtMatrixLayoutCreate(&b->w, CUDA_R_16BF, 8, 8, 8) == CUBLAS_STATUS_SUCCESS &&
              b->cublasLtMatrixLayoutCreate(&b->x, CUDA_R_16BF, 8, 8, 8) == CUBLAS_STATUS_SUCCESS &&
              b->cublasLtMatrixLayoutCreate(&b->y, CUDA_R_32F, 8, 8, 8) == CUBLAS_STATUS_SUCCESS &&
              b->cublasLtMatmulPreferenceCreate(&b->wish) == CUBLAS_STATUS_SUCCESS &&
              set_wish(b, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE, sizeof WORKSPACE);
    for (cublasLtMatmulPreferenceAttributes_t which : alignment)
        ok = ok && set_wish(b, which, &aligned, sizeof aligned);
    return ok;
}

bool set_shape(struct cu_blas *b, cublasLtMatrixLayout_t m, uint64_t rows, uint64_t cols,
               int64_t ld)
{
    return b->cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_ROWS, &rows,
                                               sizeof rows) == CUBLAS_STATUS_SUCCESS &&
           b->cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_COLS, &cols,
                                               sizeof cols) == CUBLAS_STATUS_SUCCESS &&
           b->cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_LD, &ld, sizeof ld) ==
               CUBLAS_STATUS_SUCCESS;
}

bool set_bias(struct cu_blas *b, const float *bias)
{
    cublasLtEpilogue_t end = bias != NULL ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    return b->cublasLtMatmulDescSetAttribute(b->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &end,
                                             sizeof end) == CUBLAS_STATUS_SUCCESS &&
           b->cublasLtMatmulDescSetAttribute(b->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                             sizeof bias) == CUBLAS_STATUS_SUCCESS;
}

} // namespace

int blas_open(struct cu_blas **out, struct cu_state *s, struct err *e)
{
    struct cu_blas *b = (struct cu_blas *)mem_zalloc(1, sizeof *b);
    if (b == NULL)
        return err_set(e, ERR_NOMEM, "no memory for cuBLAS's state");
    b->s = s;
    struct err why = {};
    if (!load_library(b, &why))
        goto fail;
    if (cudaMalloc((void **)&b->scratch, BLAS_SCRATCH) != cudaSuccess ||
        cudaMalloc(&b->workspace, WORKSPACE) != cudaSuccess) {
        (void)cudaGetLastError(); /* nothing is lost but this */
        err_set(&why, ERR_NOMEM, "no %zu MiB of GPU memory for cuBLAS",
                (BLAS_SCRATCH + WORKSPACE) >> 20);
        goto fail;
    }
    if (!describe(b)) {
        err_set(&why, ERR_UNSUPPORTED, "cuBLAS does not start on this GPU");
        goto fail;
    }
    *out = b;
    return 0;
fail:
    blas_close(b);
    return err_set(e, why.code, "%s", why.text);
}

void blas_close(struct cu_blas *b)
{
    if (b == NULL)
        return;
    cudaStreamSynchronize(b->s->stream);
    if (b->wish != NULL)
        b->cublasLtMatmulPreferenceDestroy(b->wish);
    for (cublasLtMatrixLayout_t m : { b->w, b->x, b->y })
        if (m != NULL)
            b->cublasLtMatrixLayoutDestroy(m);
    if (b->product != NULL)
        b->cublasLtMatmulDescDestroy(b->product);
    if (b->handle != NULL)
        b->cublasLtDestroy(b->handle);
    cudaFree(b->workspace);
    cudaFree(b->scratch);
    if (b->library != NULL)
        dlclose(b->library);
    mem_free(b);
}

uint16_t *blas_scratch(struct cu_blas *b)
{
    return b->scratch;
}

bool blas_matmul(struct cu_blas *b, const uint16_t *x, const uint16_t *w, const float *bias,
                 float *y, int n, int rows, int cols, int ldy)
{
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    const float one = 1, zero = 0;
    return set_shape(b, b->w, (uint64_t)cols, (uint64_t)rows, cols) &&
           set_shape(b, b->x, (uint64_t)cols, (uint64_t)n, cols) &&
           set_shape(b, b->y, (uint64_t)rows, (uint64_t)n, ldy) && set_bias(b, bias) &&
           b->cublasLtMatmulAlgoGetHeuristic(b->handle, b->product, b->w, b->x, b->y, b->y, b->wish,
                                             1, &best, &found) == CUBLAS_STATUS_SUCCESS &&
           found == 1 &&
           b->cublasLtMatmul(b->handle, b->product, &one, w, b->w, x, b->x, &zero, y, b->y, y, b->y,
                             &best.algo, b->workspace, WORKSPACE,
                             b->s->stream) == CUBLAS_STATUS_SUCCESS;
}

#    else

int blas_open(struct cu_blas **out, struct cu_state *s, struct err *e)
{
    (void)out;
    (void)s;
    return err_set(e, ERR_UNSUPPORTED,
                   "this program was built without cuBLAS's header; `make deps CUDA=1` gets it");
}

void blas_close(struct cu_blas *b)
{
    (void)b;
}

uint16_t *blas_scratch(struct cu_blas *b)
{
    (void)b;
    return NULL;
}

bool blas_matmul(struct cu_blas *b, const uint16_t *x, const uint16_t *w, const float *bias,
                 float *y, int n, int rows, int cols, int ldy)
{
    (void)b, (void)x, (void)w, (void)bias, (void)y, (void)n, (void)rows, (void)cols, (void)ldy;
    return false;
}

#    endif
#endif
