/* The list of backends and the facts they share. */
#include "kernels/backend.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#ifdef WRING_CUDA
#    include "kernels/cuda/cuda.h"

static int open_cuda(struct be **out, const struct be_config *c, struct err *e)
{
    const char *number = c->device + strlen("cuda");
    char *end = NULL;
    long device = *number == ':' ? strtol(number + 1, &end, 10) : 0;
    if (*number != 0 &&
        (end == NULL || end == number + 1 || *end != 0 || device < 0 || device > 255))
        return err_set(e, ERR_INVALID, "device '%s': cuda, or cuda:N with a GPU's number",
                       c->device);
    return cuda_open(out, c, (int)device, e);
}
#else
static int open_cuda(struct be **out, const struct be_config *c, struct err *e)
{
    (void)out;
    return err_set(e, ERR_UNSUPPORTED, "device '%s': this program was built without CUDA",
                   c->device);
}
#endif

int be_open(struct be **out, const struct be_config *c, struct err *e)
{
    if (!c->device || !strcmp(c->device, "cpu"))
        return cpu_open(out, c, e);
    if (!strncmp(c->device, "cuda", 4) && (c->device[4] == 0 || c->device[4] == ':'))
        return open_cuda(out, c, e);
    return err_set(e, ERR_INVALID, "unknown device '%s': known are cpu, cuda and cuda:N",
                   c->device);
}

void be_close(struct be *be)
{
    if (be)
        be->ops->close(be);
}

size_t kv_elem_bytes(enum kv_type t)
{
    return t == KV_F32 ? 4 : 2;
}

const char *kv_type_name(enum kv_type t)
{
    static const char *const name[KV_TYPE_N] = { "f16", "bf16", "f32" };
    return (unsigned)t < KV_TYPE_N ? name[t] : "unknown";
}

const char *kv_narrow_name(enum kv_narrow n)
{
    static const char *const name[KV_NARROW_N] = { "same", "q8" };
    return (unsigned)n < KV_NARROW_N ? name[n] : "unknown";
}

const char *cpu_isa_name(enum cpu_isa isa)
{
    static const char *const name[CPU_ISA_N] = { "ref", "avx2", "avx512", "bf16" };
    return (unsigned)isa < CPU_ISA_N ? name[isa] : "unknown";
}
