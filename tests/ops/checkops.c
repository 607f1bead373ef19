/* checkops: see check.h. Usage:
 *
 *   checkops [--device cpu|cuda[:N]] [--isa LEVEL] [--small] [--seeds N] [--bench] [--json]
 *
 * Without --device: the CPU at every level of this machine, and cuda when this build and this machine have it. --small:
 * fewer and smaller shapes, for simt and for compute-sanitizer. --seeds N (simt): everything again with N orders of threads
 * and blocks; all of them must give the same bits. --bench: speed instead, of one device (check_bench.c);
 * --json: as one object a line.
 * One line for each thing checked, then "N passed, N failed"; exit status 1 when something failed, 2 for a bad command line.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/base/clock.h"
#include "tests/ops/check.h"
#include "tests/tools/levels.h"

#ifdef WRING_SIMT
#    include "tests/simt/simt.h"
#endif

/* Tolerances: the CPU's levels, its level bf16, CUDA. */
static const char bits[] = "same bits";
static const char plain[] = "absolute";
static const char sums[] = "sums: relative; logits: relative to 8";
static const char each[] = "relative to the element";
static const char rms[] = "relative to the rms of the row; lse: absolute";
static const char probes[] = "columns: relative; rows: relative to their rms; lse: absolute";
static const char fits[] = "values: relative to the largest of a slot; biases: absolute";
static const char terms[] = "relative to the root of the sum of (w x)^2";

/* clang-format off */
const struct check_rule check_rules[CHECK_N] = {
    [CHECK_MEMORY]      = { "memory",         { 0, 0, 0 },          bits,  "bytes are bytes" },
    [CHECK_RMSNORM]     = { "rmsnorm",        { 0, 0, 2e-6 },       each,  "three roundings; the squares in another fixed order" },
    [CHECK_ADD]         = { "add",            { 0, 0, 0 },          bits,  "one rounding" },
    [CHECK_GATHER]      = { "gather",         { 0, 0, 0 },          bits,  "a copy" },
    [CHECK_SWIGLU]      = { "swiglu",         { 1e-5, 1e-5, 1e-5 }, each,  "exp(-g): the rounding of g * log2(e), 6e-8 times |g| < 100" },
    [CHECK_ROPE_TABLE]  = { "rope_table",     { 1e-6, 1e-6, 1e-6 }, plain, "sine and cosine within 2 ulp of 1, times 1.25" },
    [CHECK_ROPE]        = { "rope",           { 0, 0, 1e-5 },       plain, "numbers up to 2, normalised ones up to 16: their last bit" },
    [CHECK_KV_APPEND]   = { "kv_append",      { 0, 0, 0 },          bits,  "rounding to nearest even is defined" },
    [CHECK_ROPE_APPEND] = { "rope_append",    { 0, 0, 0 },          bits,  "the bits of the three ops" },
    [CHECK_QUERY_KEEP]  = { "query_keep",     { 0, 0, 0 },          bits,  "rounding to nearest even is defined; the rest is a copy" },
    [CHECK_ATTEND_F16]  = { "attend f16",     { 3e-5, 3e-5, 5e-3 }, rms,   "CUDA takes q and weights in f16: 2^-11 of each, logits up to 8" },
    [CHECK_ATTEND_BF16] = { "attend bf16",    { 3e-5, 4e-2, 4e-2 }, rms,   "CUDA and VDPBF16PS take q and weights in bf16: 2^-8 of each" },
    [CHECK_ATTEND_F32]  = { "attend f32",     { 3e-5, 3e-5, 3e-5 }, rms,   "f32 logits up to 8 are off by 1e-6, weights by as much" },
    [CHECK_COMPANY]     = { "attend company", { 0, 0, 0 },          bits,  "batch invariance" },
    [CHECK_PROBE_F16]   = { "probe f16",      { -1, -1, 5e-3 },     probes, "as attend f16; a share is off by what its logit is" },
    [CHECK_PROBE_BF16]  = { "probe bf16",     { -1, -1, 4e-2 },     probes, "as attend bf16; a share is off by what its logit is" },
    [CHECK_PROBE_F32]   = { "probe f32",      { -1, -1, 3e-5 },     probes, "as attend f32" },
    [CHECK_PRESS_COPY]  = { "press copies",   { 0, 0, 0 },          bits,  "what is read as f32 is written with the same bits" },
    [CHECK_PRESS_F16]   = { "press f16",      { -1, -1, 2.5e-2 },   fits,  "as probe f16, five times: the ridge; a step of q8" },
    [CHECK_PRESS_BF16]  = { "press bf16",     { -1, -1, 8e-2 },     fits,  "as probe bf16, twice: the ridge; a step of q8" },
    [CHECK_PRESS_F32]   = { "press f32",      { -1, -1, 2e-4 },     fits,  "f32 sums in another order, times the condition of the system" },
    [CHECK_HEAD]        = { "head",           { 1e-6, 1e-6, 1e-6 }, sums,  "the contract" },
    [CHECK_ROTATE]      = { "rotate",         { 0, 0, 0 },          bits,  "nothing is fused, one order of sums" },
    [CHECK_PLANES]      = { "weight planes",  { 0, 0, 0 },          bits,  "one format for all machines" },
    [CHECK_WEIGHT_ROWS] = { "weight_rows",    { 0, 0, 1e-6 },       each,  "a fused multiply-add rounds once less" },
    [CHECK_MUL_F32]     = { "matmul f32",     { 1e-5, 1e-5, -1 },   terms, "2048 f32 additions; between CPU levels the same bits" },
    [CHECK_MUL_I8]      = { "matmul int8",    { 4e-2, 4e-2, -1 },   terms, "inputs to 1/254 of the largest of 16: 8 deviations of 0.005" },
    [CHECK_MUL_BF16]    = { "matmul bf16",    { -1, -1, 1.2e-2 },   terms, "inputs rounded to bf16: 7 deviations of 0.0016" },
    [CHECK_MUL_BF16X3]  = { "matmul bf16x3",  { -1, -1, 1e-5 },     terms, "three bf16 numbers are the f32 number: as matmul f32" },
    [CHECK_MUL_BLAS]    = { "matmul cublas",  { -1, -1, 1.6e-2 },   terms, "inputs and weights rounded to bf16: 7 deviations of 0.0023" },
    [CHECK_STEP]        = { "step replay",    { 3e-5, 3e-5, 3e-5 }, plain, "as attend f32" },
};
/* clang-format on */

struct options {
    const char *device, *isa;
    bool small, bench, json;
    long seeds;
};

struct totals {
    int passed, failed;
};

/* ---- one backend ------------------------------------------------------------------------------------------------- */

typedef void part_fn(struct check *c);
static part_fn *const parts[] = { check_memory, check_rows,    check_rope,  check_cache,
                                  check_attend, check_company, check_head,  check_codec,
                                  check_steps,  check_keep,    check_probe, check_rotate,
                                  check_press };

/* All parts, or `only` one. */
static void run_parts(struct check *c, part_fn *only)
{
    struct err e = { 0 };
    int n = only != NULL ? 1 : COUNT(parts), rc = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        rnd_seed((uint32_t)i + 1); /* a part has the same numbers whatever ran before */
        (only != NULL ? only : parts[i])(c);
        rc = c->be->ops->sync(c->be, &e);
        check_that(c, CHECK_MEMORY, rc == 0, "after part %d: %s", i,
                   e.text); /* the device is lost */
    }
}

static void report(const struct check *c, const char *where, struct totals *sum)
{
    for (int i = 0; i < CHECK_N; i++) {
        const struct check_rule *rule = &check_rules[i];
        const struct check_result *r = &c->result[i];
        if (r->n_compared == 0)
            continue;
        double tol = rule->tol[c->kind];
        sum->passed += r->n_bad == 0;
        sum->failed += r->n_bad != 0;
        printf("  %s %-15s %-10s", r->n_bad == 0 ? "ok  " : "FAIL", rule->name, where);
        if (tol > 0)
            printf(" worst %-8.2g of %-6.2g %s\n", r->worst, tol, rule->how);
        else
            printf(" %s\n", bits);
        if (r->n_bad != 0)
            printf("       | %s\n       | and %ld more; allowed because: %s\n", r->first,
                   r->n_bad - 1, rule->why);
    }
    (void)fflush(stdout);
}

static enum check_kind kind_of(const struct be *be)
{
    if (!be->host)
        return KIND_CUDA;
    return be->isa == CPU_BF16 ? KIND_CPU_BF16 : KIND_CPU;
}

/* The hash of all results in *hash. */
static void check_backend(struct be *be, struct be *ref, const struct options *o, part_fn *only,
                          struct totals *sum, uint64_t *hash)
{
    static struct check c;
    uint64_t from = clock_ns();
    const char *where = be->host ? cpu_isa_name(be->isa) : "cuda";
    memset(&c, 0, sizeof c);
    c.be = be;
    c.ref = ref;
    c.small = o->small || (be->host && be->isa == CPU_REF); /* the definition against itself */
    c.kind = kind_of(be);
    arena_init(&c.arena, (size_t)4 << 30);
    run_parts(&c, only);
    arena_clear(&c.arena);
    report(&c, where, sum);
    printf("  --   %s, %s%s: %.1f s, hash %016llx\n", be->device, cpu_isa_name(be->isa),
           c.small ? ", small" : "", (double)(clock_ns() - from) * 1e-9,
           (unsigned long long)c.hash);
    (void)fflush(stdout);
    *hash = c.hash;
}

/* All seeds must leave the same bits. */
static void check_seeds(struct be *be, struct be *ref, const struct options *o, struct totals *sum)
{
    uint64_t first = 0, hash;
    check_backend(be, ref, o, NULL, sum, &first);
#ifdef WRING_SIMT
    for (long seed = 1; seed < o->seeds && !be->host; seed++) {
        simt_seed((uint64_t)seed);
        check_backend(be, ref, o, NULL, sum, &hash);
        sum->passed += hash == first;
        sum->failed += hash != first;
        printf("  %s thread order %ld\n", hash == first ? "ok  " : "FAIL", seed);
    }
    simt_seed(0);
#else
    (void)hash;
#endif
}

/* ---- all of them ------------------------------------------------------------------------------------------------- */

static int open_one(struct be **be, const char *device, const char *isa, bool cublas, struct err *e)
{
    struct be_config c = { .device = device, .n_threads = 3, .isa = isa, .cublas = cublas };
    return be_open(be, &c, e);
}

static bool is_cpu(const char *device)
{
    return device == NULL || strcmp(device, "cpu") == 0;
}

/* A GPU once more, with cuBLAS where there is one. */
static void check_cublas(const char *device, struct be *ref, const struct options *o,
                         struct totals *sum)
{
    struct be *be = NULL;
    struct err e = { 0 };
    uint64_t hash;
    if (open_one(&be, device, NULL, true, &e) < 0) {
        printf("  -    %s\n", e.text);
        return;
    }
    check_backend(be, ref, o, check_blas, sum, &hash);
    be_close(be);
}

static void check_device(const char *device, const char *isa, struct be *ref,
                         const struct options *o, struct totals *sum)
{
    struct be *be = NULL;
    struct err e = { 0 };
    if (open_one(&be, device, isa, false, &e) < 0) {
        bool wanted = o->device != NULL || is_cpu(device);
        printf("  %s %s\n", wanted ? "FAIL" : "-   ", e.text);
        sum->failed += wanted;
        return;
    }
    bool host = be->host;
    check_seeds(be, ref, o, sum);
    be_close(be);
    if (!host)
        check_cublas(device, ref, o, sum);
}

static void check_all(const struct options *o, struct totals *sum)
{
    struct be *ref = NULL;
    struct err e = { 0 };
    if (open_one(&ref, "cpu", "ref", false, &e) < 0) {
        printf("  FAIL %s\n", e.text);
        sum->failed++;
        return;
    }
    if (o->isa != NULL && is_cpu(o->device))
        check_device("cpu", o->isa, ref, o, sum);
    for (int i = 0; o->isa == NULL && is_cpu(o->device) && i <= (int)cpu_isa_best(); i++)
        check_device("cpu", cpu_isa_name(i), ref, o, sum);
    if (o->device == NULL && o->isa == NULL)
        check_device("cuda", NULL, ref, o, sum);
    else if (!is_cpu(o->device))
        check_device(o->device, o->isa, ref, o, sum);
    be_close(ref);
}

static int bench(const struct options *o)
{
    struct be *be = NULL;
    struct err e = { 0 };
    struct be_config c = { .device = o->device, .isa = o->isa };
    int rc = be_open(&be, &c, &e);
    if (rc < 0) {
        printf("%s\n", e.text);
        return 1;
    }
#ifdef WRING_SIMT
    if (!be->host) {
        printf("a simulated device has no speed\n");
        be_close(be);
        return 1;
    }
#endif
    rc = check_bench(be, o->json);
    be_close(be);
    return rc < 0;
}

/* ---- command line ------------------------------------------------------------------------------------------------ */

static bool parse(int argc, char **argv, struct options *o)
{
    *o = (struct options){ .seeds = 1 };
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        char *end = NULL;
        if (strcmp(a, "--small") == 0)
            o->small = true;
        else if (strcmp(a, "--bench") == 0)
            o->bench = true;
        else if (strcmp(a, "--json") == 0)
            o->json = true;
        else if (value == NULL)
            return false;
        else if (strcmp(a, "--device") == 0)
            o->device = argv[++i];
        else if (strcmp(a, "--isa") == 0)
            o->isa = argv[++i];
        else if (strcmp(a, "--seeds") == 0 && (o->seeds = strtol(argv[++i], &end, 10)) > 0 &&
                 *end == 0)
            continue;
        else
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct options o;
    struct totals sum = { 0, 0 };
    if (!parse(argc, argv, &o)) {
        printf("usage: checkops [--device cpu|cuda[:N]] [--isa LEVEL] [--small] [--seeds N] "
               "[--bench] [--json]\n");
        return 2;
    }
#ifndef WRING_SIMT
    if (o.seeds > 1) {
        printf("checkops: --seeds orders the threads of tests/simt; this build has none\n");
        return 2;
    }
#endif
    if (o.bench)
        return bench(&o);
    check_all(&o, &sum);
    struct mem_stats m;
    mem_stats(&m);
    if (m.blocks != 0) {
        printf("  FAIL %llu blocks of memory were left behind\n", (unsigned long long)m.blocks);
        sum.failed++;
    }
    printf("%d passed, %d failed\n", sum.passed, sum.failed);
    return sum.failed != 0 || sum.passed == 0;
}
