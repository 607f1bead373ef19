/* Opening the CPU: which instructions it has, which kernels fill the table, memory. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include "kernels/cpu/attend.h"
#include "server/base/mem.h"

/* ---- instruction sets -------------------------------------------------------------------------------------- */

/* What the machine and the operating system support. F16C is not asked for: whatever has AVX2 has it. */
enum cpu_isa cpu_isa_best(void)
{
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return CPU_REF;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512vnni"))
        return CPU_AVX2;
    bool both = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
    return both ? CPU_BF16 : CPU_AVX512;
}

static int pick_isa(enum cpu_isa *out, const char *word, struct err *e)
{
    enum cpu_isa best = cpu_isa_best();
    if (!word || !strcmp(word, "auto")) {
        *out = best;
        return 0;
    }
    for (int i = 0; i < CPU_ISA_N; i++) {
        if (strcmp(word, cpu_isa_name(i)))
            continue;
        if (i > (int)best)
            return err_set(e, ERR_UNSUPPORTED, "this machine has no %s; its best level is %s", word,
                           cpu_isa_name(best));
        *out = i;
        return 0;
    }
    return err_set(e, ERR_INVALID,
                   "unknown instruction set '%s': use auto, ref, avx2, avx512 or bf16", word);
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

/* From here on blocks come from the system page by page: untouched pages cost nothing. */
enum { MAP_FROM = 1 << 18, ALIGN = 64 };

static void *cpu_alloc(struct be *be, size_t bytes)
{
    (void)be;
    if (bytes >= MAP_FROM)
        return mem_map(bytes);
    char *raw = mem_zalloc(1, bytes + ALIGN);
    if (!raw)
        return NULL;
    /* raw is 16-byte aligned, so at least 16 bytes lie before p: room for the way back. */
    char *p = raw + ALIGN - (uintptr_t)raw % ALIGN;
    memcpy(p - sizeof(raw), &raw, sizeof(raw));
    return p;
}

static void cpu_free(struct be *be, void *p, size_t bytes)
{
    (void)be;
    if (!p)
        return;
    if (bytes >= MAP_FROM) {
        mem_unmap(p, bytes);
        return;
    }
    char *raw;
    memcpy(&raw, (char *)p - sizeof(raw), sizeof(raw));
    mem_free(raw);
}

static void cpu_copy(struct be *be, void *dst, const void *src, size_t bytes)
{
    (void)be;
    memcpy(dst, src, bytes);
}

static int cpu_sync(struct be *be, struct err *e)
{
    (void)be;
    (void)e;
    return 0;
}

static void cpu_memory(struct be *be, size_t *free_bytes, size_t *total)
{
    (void)be;
    *free_bytes = *total = 0;
}

/* Host memory is the CPU's memory: nothing to bring. */
static bool cpu_step_begin(struct be *be, struct be_step *s, const void *owner)
{
    (void)be;
    (void)s;
    (void)owner;
    return false;
}

static void cpu_step_end(struct be *be)
{
    (void)be;
}

void cpu_for(struct be *be, int n, int grain, size_t work, par_fn *fn, void *arg)
{
    /* A barrier costs about as long as one core takes for 16 KiB from the L2 cache. */
    if (n <= 1 || work < 32768 || par_threads(be->par) == 1) {
        if (n > 0)
            fn(arg, 0, n, 0);
    } else {
        par_for(be->par, n, grain, fn, arg);
    }
}

/* ---- open and close ---------------------------------------------------------------------------------------- */

static void cpu_close(struct be *be)
{
    struct cpu_state *s = be->state;
    if (s) {
        cpu_free(be, s->units, s->units_bytes);
        cpu_free(be, s->partial, CPU_PARTIAL_BYTES);
        cpu_free(be, s->scratch, s->scratch_bytes);
        mem_free(s);
    }
    par_close(be->par);
    mem_free(be);
}

static void fill_tables(struct cpu_state *s, enum cpu_isa isa)
{
    struct be_ops *ops = &s->ops;
    ops->name = "cpu";
    ops->alloc = cpu_alloc;
    ops->free = cpu_free;
    ops->upload = cpu_copy;
    ops->download = cpu_copy;
    ops->sync = cpu_sync;
    ops->memory = cpu_memory;
    ops->step_begin = cpu_step_begin;
    ops->step_end = cpu_step_end;
    ops->close = cpu_close;
    cpu_ops_ref(ops);
    cpu_ops_head(ops);
    if (isa >= CPU_AVX2)
        cpu_ops_avx2(ops);
    if (isa >= CPU_AVX512)
        cpu_ops_avx512(ops);
    if (isa == CPU_REF)
        return;
    ops->attend = cpu_attend;
    for (int t = 0; t < KV_TYPE_N; t++)
        s->attend[t] = attend_kernel_of(isa, t);
}

static int open_state(struct be *be, struct err *e)
{
    struct cpu_state *s = mem_zalloc(1, sizeof(*s));
    if (!s)
        return err_set(e, ERR_NOMEM, "no memory for the CPU backend");
    be->state = s;
    fill_tables(s, be->isa);
    be->ops = &s->ops;
    s->units_bytes = CPU_ATTEND_UNITS * sizeof(struct attend_unit);
    s->scratch_bytes = (size_t)par_threads(be->par) * CPU_SCRATCH_BYTES;
    s->units = cpu_alloc(be, s->units_bytes);
    s->partial = cpu_alloc(be, CPU_PARTIAL_BYTES);
    s->scratch = cpu_alloc(be, s->scratch_bytes);
    if (!s->units || !s->partial || !s->scratch)
        return err_set(e, ERR_NOMEM, "no memory for the scratch of %d CPU threads",
                       par_threads(be->par));
    return 0;
}

int cpu_open(struct be **out, const struct be_config *c, struct err *e)
{
    enum cpu_isa isa = CPU_REF;
    TRY(pick_isa(&isa, c->isa, e));
    struct be *be = mem_zalloc(1, sizeof(*be));
    if (!be)
        return err_set(e, ERR_NOMEM, "no memory for the CPU backend");
    be->isa = isa;
    be->host = true;
    memcpy(be->device, "cpu", sizeof "cpu");
    int rc = par_open(&be->par, c->n_threads, e);
    if (rc == 0)
        rc = open_state(be, e);
    if (rc < 0) {
        cpu_close(be);
        return rc;
    }
    *out = be;
    return 0;
}
