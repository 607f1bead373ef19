/* The list of backends and the facts they share. */
#include "kernels/backend.h"

#include <string.h>

#include "kernels/cpu/cpu.h"

int be_open(struct be **out, const struct be_config *c, struct err *e)
{
    if (!c->device || !strcmp(c->device, "cpu"))
        return cpu_open(out, c, e);
    return err_set(e, ERR_INVALID, "unknown device '%s': this build has cpu", c->device);
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

const char *cpu_isa_name(enum cpu_isa isa)
{
    static const char *const name[CPU_ISA_N] = { "ref", "avx2", "avx512", "bf16" };
    return (unsigned)isa < CPU_ISA_N ? name[isa] : "unknown";
}
