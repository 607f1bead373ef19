/* Opening a GPU: which one, its memory, its stream; what an error becomes.
 *
 * Copies go through one pinned buffer, so that the caller's memory is free again when upload() returns and download()
 * never waits for the driver to pin pages. Bytes moved: what is copied, once over the bus.
 */
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/state.cuh"

extern "C" {
#include "kernels/cuda/blas.h"
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

bool cu_check(struct cu_state *s, cudaError_t rc, const char *call, const char *file, int line)
{
    if (rc == cudaSuccess)
        return true;
    if (s->error.code == 0)
        err_set(&s->error, ERR_DEVICE, "GPU %d failed: %s (%s:%d, %.80s)", s->device,
                cudaGetErrorString(rc), file, line, call);
    return false;
}

static int cuda_sync(struct be *be, struct err *e)
{
    struct cu_state *s = cu_of(be);
    if (cu_ok(s))
        CU_CHECK(s, cudaStreamSynchronize(s->stream));
    return cu_ok(s) ? 0 : err_set(e, s->error.code, "%s", s->error.text);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

bool cu_on_device(struct cu_state *s)
{
    return cu_ok(s) && CU_CHECK(s, cudaSetDevice(s->device));
}

static void *cuda_alloc(struct be *be, size_t bytes)
{
    struct cu_state *s = cu_of(be);
    void *p = NULL;
    if (bytes == 0 || !cu_on_device(s))
        return NULL;
    if (cudaMalloc(&p, bytes) != cudaSuccess) {
        cudaGetLastError(); /* out of memory is the caller's to tell, not the device's end */
        return NULL;
    }
    if (CU_CHECK(s, cudaMemsetAsync(p, 0, bytes, s->stream)))
        return p;
    cudaFree(p);
    return NULL;
}

static void cuda_free(struct be *be, void *p, size_t bytes)
{
    struct cu_state *s = cu_of(be);
    (void)bytes;
    if (p == NULL)
        return;
    if (cu_ok(s))
        CU_CHECK(s, cudaStreamSynchronize(s->stream));
    cu_graphs_drop(s); /* recorded kernels may point there */
    cudaFree(p);
}

static void cuda_memory(struct be *be, size_t *free_bytes, size_t *total)
{
    struct cu_state *s = cu_of(be);
    *free_bytes = *total = 0;
    if (cu_on_device(s))
        CU_CHECK(s, cudaMemGetInfo(free_bytes, total));
}

/* Uploads lie side by side in the buffer, which is waited for only when it is full: pressing a cache writes thousands of
 * pages. */
static void cuda_upload(struct be *be, void *dst, const void *src, size_t bytes)
{
    struct cu_state *s = cu_of(be);
    for (size_t at = 0; at < bytes && cu_ok(s); at += CU_PINNED_BYTES) {
        size_t n = bytes - at < CU_PINNED_BYTES ? bytes - at : CU_PINNED_BYTES;
        if (n > CU_PINNED_BYTES - s->pinned_used) {
            CU_CHECK(s, cudaStreamSynchronize(s->stream));
            s->pinned_used = 0;
        }
        char *from = s->pinned + s->pinned_used;
        memcpy(from, (const char *)src + at, n);
        CU_CHECK(s, cudaMemcpyAsync((char *)dst + at, from, n, cudaMemcpyHostToDevice, s->stream));
        s->pinned_used += (n + 63) / 64 * 64;
    }
}

/* On a lost device what arrives is zeros: the caller learns it from sync(). */
static void cuda_download(struct be *be, void *dst, const void *src, size_t bytes)
{
    struct cu_state *s = cu_of(be);
    for (size_t at = 0; at < bytes; at += CU_PINNED_BYTES) {
        size_t n = bytes - at < CU_PINNED_BYTES ? bytes - at : CU_PINNED_BYTES;
        bool ok = cu_ok(s) &&
                  CU_CHECK(s, cudaMemcpyAsync(s->pinned, (const char *)src + at, n,
                                              cudaMemcpyDeviceToHost, s->stream)) &&
                  CU_CHECK(s, cudaStreamSynchronize(s->stream));
        if (ok)
            memcpy((char *)dst + at, s->pinned, n);
        else
            memset((char *)dst + at, 0, n);
    }
}

/* ---- open and close ---------------------------------------------------------------------------------------------- */

static void cuda_close(struct be *be)
{
    struct cu_state *s = cu_of(be);
    if (s != NULL) {
        cu_head_close(be);
        cu_graphs_close(be);
        blas_close(s->blas);
        cudaFree(s->partial);
        if (s->pinned != NULL)
            cudaFreeHost(s->pinned);
        if (s->stream != NULL)
            cudaStreamDestroy(s->stream);
        mem_free(s);
    }
    par_close(be->par);
    mem_free(be);
}

/* Why there is no GPU to be had. */
static int no_device(cudaError_t rc, struct err *e)
{
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (rc == cudaErrorInsufficientDriver && driver > 0)
        return err_set(e, ERR_DEVICE,
                       "the NVIDIA driver is for CUDA %d.%d; this program needs one for CUDA %d.%d",
                       driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                       CUDART_VERSION % 1000 / 10);
    if (rc == cudaErrorInsufficientDriver || rc == cudaSuccess)
        return err_set(e, ERR_DEVICE, "no NVIDIA GPU here");
    return err_set(e, ERR_DEVICE, "no NVIDIA GPU here: %s", cudaGetErrorString(rc));
}

/* Which of this file's codes the driver took speaks for all files: each is compiled for the same architectures. The most
 * threads it allows tell what no other attribute does, code for sm_90a from that for sm_90. */
enum { CODE_PLAIN = 32, CODE_WGMMA = 1024 };
static __global__ void __launch_bounds__(CU_WGMMA ? CODE_WGMMA : CODE_PLAIN) which_code(void)
{
}

/* Code for sm_90 and up waits for the kernel ahead where it must. What a newer GPU makes of the PTX of sm_80 does not, so it
 * must not begin early. */
static int load_code(struct cu_state *s, const struct cudaDeviceProp *prop, struct err *e)
{
    struct cudaFuncAttributes code;
    if (!CU_CHECK(s, cudaFuncGetAttributes(&code, (const void *)which_code)))
        return err_set(
            e, ERR_DEVICE,
            "GPU %d, %s, is sm_%d%d: its driver takes no code of this program (%s); a newer "
            "driver may, or a build with CUDA_ARCHS=%d%d",
            s->device, prop->name, prop->major, prop->minor, s->error.text, prop->major,
            prop->minor);
    s->overlaps = code.ptxVersion >= 90;
    s->wgmma = code.maxThreadsPerBlock == CODE_WGMMA;
    return 0;
}

static int pick_device(struct be *be, struct cu_state *s, int device, struct err *e)
{
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess || n == 0)
        return no_device(rc, e);
    if (device >= n)
        return err_set(e, ERR_DEVICE, "no GPU %d: this machine has %d, numbered from 0", device, n);
    struct cudaDeviceProp prop;
    if (!CU_CHECK(s, cudaSetDevice(device)) || !CU_CHECK(s, cudaGetDeviceProperties(&prop, device)))
        return err_set(e, ERR_DEVICE, "%s", s->error.text);
    if (prop.major < 8)
        return err_set(e, ERR_DEVICE, "GPU %d, %s, is sm_%d%d; sm_80 or newer is needed", device,
                       prop.name, prop.major, prop.minor);
    snprintf(be->device, sizeof be->device, "cuda:%d (%.72s)", device, prop.name);
    s->device = device;
    s->n_sm = prop.multiProcessorCount;
    s->l2_bytes = (size_t)prop.l2CacheSize;
    return load_code(s, &prop, e);
}

static void fill_slots(struct be_ops *ops)
{
    ops->name = "cuda";
    ops->alloc = cuda_alloc;
    ops->free = cuda_free;
    ops->upload = cuda_upload;
    ops->download = cuda_download;
    ops->sync = cuda_sync;
    ops->memory = cuda_memory;
    ops->close = cuda_close;
    cu_ops_bound(ops);
    cu_ops_step(ops);
    cu_ops_rows(ops);
    cu_ops_rope(ops);
    cu_ops_attend(ops);
    cu_ops_head(ops);
    cu_ops_probe(ops);
    cu_ops_press(ops);
}

static int open_state(struct be *be, const struct be_config *c, int device, struct err *e)
{
    struct cu_state *s = (struct cu_state *)mem_zalloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the CUDA backend");
    be->state = s;
    s->device = device;
    TRY(pick_device(be, s, device, e));
    fill_slots(&s->ops);
    be->ops = &s->ops;
    void *partial = NULL, *pinned = NULL;
    if (cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking) != cudaSuccess ||
        cudaMalloc(&partial, CU_PARTIAL_BYTES) != cudaSuccess ||
        cudaMallocHost(&pinned, CU_PINNED_BYTES) != cudaSuccess) {
        cudaError_t rc = cudaGetLastError();
        cudaFree(partial);
        return err_set(e, ERR_NOMEM, "%s has no room for the backend's own %zu MiB: %s", be->device,
                       (CU_PARTIAL_BYTES + CU_PINNED_BYTES) >> 20, cudaGetErrorString(rc));
    }
    s->partial = (float *)partial;
    s->pinned = (char *)pinned;
    s->wgmma = s->wgmma && cu_wide_works(s);
    if (!cu_ok(s))
        return err_set(e, s->error.code, "%s", s->error.text);
    if (!cu_graphs_open(s))
        return err_set(e, ERR_NOMEM, "no memory for the CUDA backend");
    return c->cublas ? blas_open(&s->blas, s, e) : 0;
}

int cuda_open(struct be **out, const struct be_config *c, int device, struct err *e)
{
    struct be *be = (struct be *)mem_zalloc(1, sizeof *be);
    if (be == NULL)
        return err_set(e, ERR_NOMEM, "no memory for the CUDA backend");
    be->isa = cpu_isa_best();
    int rc = par_open(&be->par, c->n_threads, e);
    if (rc == 0)
        rc = open_state(be, c, device, e);
    if (rc < 0) {
        cuda_close(be);
        return rc;
    }
    *out = be;
    return 0;
}
