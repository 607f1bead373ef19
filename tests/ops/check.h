/* checkops: every slot of every backend, and every form of weights, against the plain C definition.
 *
 * A check is one file check_*.c. It runs the same function on two backends, the definition (c->ref) and the one under test
 * (c->be), with the same numbers, and hands what came back to check_near() or check_same() under the name of a rule. The
 * rules, with the tolerance of each and why it is what it is, are one table in checkops.c. Device memory is reached through
 * the ops only, index arrays and page tables through step_begin, so the same code runs on the CPU, on simt and on a GPU.
 */
#ifndef WRING_TESTS_OPS_CHECK_H
#define WRING_TESTS_OPS_CHECK_H

#include "kernels/backend.h"
#include "server/base/mem.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

/* What is measured, each with a line of its own in the table of rules and in the report. */
enum check_id {
    CHECK_MEMORY,
    CHECK_RMSNORM,
    CHECK_ADD,
    CHECK_GATHER,
    CHECK_SWIGLU,
    CHECK_ROPE_TABLE,
    CHECK_ROPE,
    CHECK_KV_APPEND,
    CHECK_ROPE_APPEND,
    CHECK_QUERY_KEEP,
    CHECK_ATTEND_F16, /* in the order of enum kv_type */
    CHECK_ATTEND_BF16,
    CHECK_ATTEND_F32,
    CHECK_COMPANY,
    CHECK_PROBE_F16, /* in the order of enum kv_type */
    CHECK_PROBE_BF16,
    CHECK_PROBE_F32,
    CHECK_PRESS_COPY,
    CHECK_PRESS_F16, /* in the order of enum kv_type */
    CHECK_PRESS_BF16,
    CHECK_PRESS_F32,
    CHECK_HEAD,
    CHECK_ROTATE,
    CHECK_PLANES,
    CHECK_WEIGHT_ROWS,
    CHECK_MUL_F32, /* in the order of enum prep */
    CHECK_MUL_I8,
    CHECK_MUL_BF16,
    CHECK_MUL_BF16X3,
    CHECK_MUL_BLAS,
    CHECK_STEP,
    CHECK_N
};

/* Columns of tolerances: CPU levels that compute as the definition does, the one that multiplies in bf16, and CUDA. */
enum check_kind { KIND_CPU, KIND_CPU_BF16, KIND_CUDA, KIND_N };

struct check_rule {
    const char *name;
    double tol[KIND_N];    /* 0: the same bits; below 0: does not happen here */
    const char *how, *why; /* how an error is measured, and why it may be that large */
};
extern const struct check_rule check_rules[CHECK_N];

struct check_result {
    long n_compared, n_bad;
    double worst;    /* in units of the rule's measure */
    char first[256]; /* what went wrong first */
};

struct check_block {
    struct be *be;
    void *p;
    size_t bytes;
};

enum { CHECK_BLOCKS = 256 };

struct check {
    struct be *be, *ref;
    bool small;
    enum check_kind kind;
    uint64_t hash; /* of everything that came back from be */
    struct check_result result[CHECK_N];
    /* the case under way: */
    char now[120];
    struct arena arena;
    struct check_block block[CHECK_BLOCKS];
    int n_blocks;
    uintptr_t n_steps;
};

/* ---- a case ---------------------------------------------------------------------------------------------------- */

/* Names the case, for messages. */
void check_case(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Ends the case: frees what the functions below gave; a write behind a block counts against rule id. */
void check_close(struct check *c, enum check_id id);
/* Host memory: zeros, or even in [-scale, scale). */
void *check_host(struct check *c, size_t bytes);
float *check_floats(struct check *c, size_t n, float scale);
/* Memory of a backend: all bits set (NaN), or a copy of src. */
void *check_room(struct check *c, struct be *be, size_t bytes);
void *check_put(struct check *c, struct be *be, const void *src, size_t bytes);
/* Back to the host. */
void check_get(struct check *c, struct be *be, void *dst, const void *src, size_t bytes);

/* The step of these sequences, one layer: tokens are 0, positions those of the sequences, all rows are wanted. */
struct be_step check_step(struct check *c, const struct be_seq *seqs, int n_seqs, int n_kv_heads);
/* The same for rows whose sequence does not matter. pos may be NULL. */
struct be_step check_plain_step(struct check *c, int n_rows, const int32_t *pos);
/* step_begin under a name of its own, so that nothing recorded is replayed. */
void check_begin(struct check *c, struct be *be, struct be_step *s);
int check_padded(int n); /* rows for which buffers of a step need room: the next power of two */

/* ---- comparing -------------------------------------------------------------------------------------------------- */

/* Error of an element: |got - want| / scale, or / |want| with scale 0. A tolerance of 0 asks for the same bits. What is
 * not finite must be the same; one NaN is as good as another. */
void check_near(struct check *c, enum check_id id, const float *got, const float *want, size_t n,
                double scale);
/* The same bits, whatever the rule. */
void check_same(struct check *c, enum check_id id, const char *what, const void *got,
                const void *want, size_t bytes);
/* NaN of n bytes of the cache's elements: one is as good as another. */
void check_canonical(enum kv_type type, void *p, size_t bytes);
/* One error by itself, or a plain fact. */
void check_error(struct check *c, enum check_id id, const char *what, double error);
void check_that(struct check *c, enum check_id id, bool ok, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- the checks ------------------------------------------------------------------------------------------------- */

void check_memory(struct check *c);
void check_rows(struct check *c);
void check_rope(struct check *c);
void check_cache(struct check *c);
void check_keep(struct check *c);
void check_attend(struct check *c);
void check_company(struct check *c);
void check_head(struct check *c);
void check_probe(struct check *c);
void check_press(struct check *c);
void check_rotate(struct check *c);
void check_codec(struct check *c);
void check_blas(struct check *c); /* of a backend opened with cublas */
void check_steps(struct check *c);

/* Rows of an op that works on each row by itself: x, y are [n][dim], w is [dim]. fn() runs the op on be and leaves its
 * result, [n][dim], in out. check_each_row() compares it with the definition, each of some rows alone with the row
 * among others, and the rows beside one that is not finite. */
struct rows {
    float *x, *y, *w;
    int n, dim;
    const void *more; /* what else the op needs, of row0 on */
    int row0;         /* this is row 0 of it */
};
typedef void rows_fn(struct check *c, struct be *be, const struct rows *t, float *out);
void check_each_row(struct check *c, enum check_id id, rows_fn *fn, const struct rows *t,
                    double scale);

/* Speed: check_bench.c. Prints a table, or a JSON object a line. */
int check_bench(struct be *be, bool json);

#endif
