/* The contract of every op: what a machine must be able to do to run a model.
 *
 * A backend is one folder here and one const table of function pointers. kernels/cpu/ref.c is the definition of every
 * op in plain C; a faster file replaces single slots and is tested against it (tests/ops). A NULL slot, where a slot
 * says that it may be NULL, means "not accelerated".
 *
 * Rules for all ops:
 *   - pointers are backend memory (be->ops->alloc); on the CPU that is ordinary memory;
 *   - float data is row-major and dense: x[n][dim] has a row stride of dim;
 *   - outputs do not overlap inputs unless the slot says so;
 *   - ops cannot fail: sizes were checked when the model was opened. NaN and infinities pass through;
 *   - a row's result depends on that row alone, bit for bit, never on n or on the other rows (batch invariance):
 *     every sum has one order, fixed by the row's own shape and position;
 *   - one thread (the engine's) calls them; they spread work over be->par themselves; they allocate nothing.
 */
#ifndef WRING_KERNELS_BACKEND_H
#define WRING_KERNELS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/base/err.h"
#include "server/base/par.h"

/* CPU instruction sets, each including those before it; a kernel file's suffix names its level. */
enum cpu_isa {
    CPU_REF,    /* plain C: the definition */
    CPU_AVX2,   /* AVX2, FMA, F16C */
    CPU_AVX512, /* AVX-512 F BW DQ VL VNNI */
    CPU_BF16,   /* the same and AVX512-BF16 */
    CPU_ISA_N
};

struct be_config {
    const char *device; /* "cpu" or NULL */
    int n_threads;      /* 0: as many as the process may use */
    const char
        *isa; /* "auto" or NULL, "ref", "avx2", "avx512", "bf16": an upper limit for the kernels */
};

/* An opened backend. Open structure so that codecs and ops can see the pool and the ISA; nobody writes it after open. */
struct be {
    const struct be_ops *ops;
    struct par *par;
    enum cpu_isa isa;
    void *state; /* the backend's own: scratch per thread, ... */
};

/* Opens the backend named by c->device. The error says which ISA the machine lacks or which name is unknown. */
int be_open(struct be **out, const struct be_config *c, struct err *e) WARN_UNUSED;
void be_close(struct be *be); /* NULL is accepted */
const char *cpu_isa_name(enum cpu_isa isa);
enum cpu_isa cpu_isa_best(void); /* what this machine can do */

/* ---- KV cache layout ------------------------------------------------------------------------------------------
 *
 * The pool is one array of equal blocks. A block holds KV_PAGE tokens of one KV head of one layer, keys then values:
 *
 *      key   element i of slot t:  k[(i / 2) * KV_PAGE * 2 + t * 2 + i % 2]      pairs of dims, tokens side by side
 *      value element i of slot t:  v[(t / 2) * head_dim * 2 + i * 2 + t % 2]     pairs of tokens, dims side by side
 *
 * Pairs because that is what a two-element dot product (VDPBF16PS and its relatives) eats: scores need no transposition
 * and the value sum needs none either. A *wide page* w is the n_kv_heads consecutive blocks w * n_kv_heads + h; a
 * *narrow page* is one block. head_dim is even and at most BE_HEAD_DIM_MAX. */
enum { KV_PAGE = 32 };

enum kv_type { KV_F16, KV_BF16, KV_F32, KV_TYPE_N };
size_t kv_elem_bytes(enum kv_type t);
const char *kv_type_name(enum kv_type t);
static inline size_t kv_block_bytes(enum kv_type t, int head_dim)
{
    return 2 * (size_t)KV_PAGE * (size_t)head_dim * (t == KV_F32 ? 4 : 2);
}
static inline size_t kv_k_index(int slot, int i)
{
    return (size_t)(i / 2) * KV_PAGE * 2 + (size_t)slot * 2 + (size_t)(i % 2);
}
static inline size_t kv_v_index(int slot, int i, int head_dim)
{
    return (size_t)(slot / 2) * (size_t)head_dim * 2 + (size_t)i * 2 + (size_t)(slot % 2);
}

/* What one sequence sees in one layer: narrow slots first (per head, may be absent), then the wide tail. */
struct kv_view {
    const int32_t *wide; /* wide page ids, enough for every token up to the last row's */
    int wide_pos0; /* logical position of slot 0 of wide[0]; a multiple of KV_PAGE; 0 for a full cache */
    const int32_t *const *narrow; /* [n_kv_heads] block ids, or NULL when nothing was compacted */
    const int32_t *n_narrow;      /* [n_kv_heads] slots used */
};

/* The rows of one sequence inside a batch: n_rows consecutive tokens from logical position pos0. */
struct be_seq {
    int row0, n_rows;
    int pos0;
    struct kv_view kv;
};

/* Everything about the cache that an op needs; filled once a layer. */
struct be_kv {
    void *pool; /* block 0 */
    const float *
        beta; /* [blocks][KV_PAGE] logit bias of narrow slots (log of votes); NULL without narrow pages */
    enum kv_type type;
    int n_kv_heads, head_dim;
    int n_seqs;
    const struct be_seq *seqs;
};

struct be_attend {
    struct be_kv kv;
    const float *q; /* [n_rows][n_heads][head_dim], rotated */
    float *out;     /* [n_rows][n_heads][head_dim] */
    float *lse;     /* [n_rows][n_heads] log-sum-exp of the scaled logits, or NULL */
    int n_heads; /* query heads; a multiple of n_kv_heads; head h reads KV head h / (n_heads / n_kv_heads) */
    float scale; /* 1 / sqrt(head_dim) for every architecture so far */
    int window;  /* sliding window: a row at position p sees positions > p - window; 0: all */
};

struct be_ops {
    const char *name;

    /* ---- memory -------------------------------------------------------------------------------------------- */
    /* Zeroed, 64-byte aligned, untouched until used; NULL when there is none. Free with the same size. */
    void *(*alloc)(struct be *be, size_t bytes);
    void (*free)(struct be *be, void *p, size_t bytes);
    void (*upload)(struct be *be, void *dst, const void *src, size_t bytes); /* host to backend */
    void (*download)(struct be *be, void *dst, const void *src,
                     size_t bytes); /* backend to host; waits */
    int (*sync)(struct be *be,
                struct err *e);        /* waits for all work; ERR_DEVICE when the device is lost */
    void (*step_begin)(struct be *be); /* brackets one forward pass of a batch */
    void (*step_end)(struct be *be);
    void (*close)(struct be *be); /* frees the backend; be is invalid afterwards */

    /* ---- rows ---------------------------------------------------------------------------------------------- */
    /* y[r][i] = x[r][i] / sqrt(mean_i(x[r][i]^2) + eps) * w[i]        (arXiv 1910.07467, eq. 4)
     * With add != NULL first x[r][i] += add[r][i] (the residual), written back to x. y may be x when add is NULL.
     * The sum of squares is taken in 16 interleaved f32 partial sums, combined pairwise. */
    void (*rmsnorm)(struct be *be, float *y, float *x, const float *add, const float *w, int n,
                    int dim, float eps);
    /* x[r][i] += y[r][i] */
    void (*add)(struct be *be, float *x, const float *y, int n, int dim);
    /* y[r] = x[row[r]] for r < n: the rows that go on. */
    void (*gather)(struct be *be, float *y, const float *x, const int32_t *row, int n, int dim);
    /* y[r][i] = silu(gate[r][i]) * up[r][i], silu(a) = a / (1 + exp(-a)). y may be gate. (arXiv 2002.05202, SwiGLU) */
    void (*swiglu)(struct be *be, float *y, const float *gate, const float *up, int n, int dim);

    /* ---- position ------------------------------------------------------------------------------------------ */
    /* cos[r][i], sin[r][i] of pos[r] * inv_freq[i], times mscale; i < half. Made once a step for all layers. */
    void (*rope_table)(struct be *be, float *cos, float *sin, const int32_t *pos,
                       const float *inv_freq, float mscale, int n, int half);
    /* Rotates x[n][n_heads][head_dim] in place (arXiv 2104.09864). Pairs are (2i, 2i+1), or (i, i + half) when
     * half_split; dims from 2 * half on stay. With norm != NULL each head's vector is RMS-normalised with weights
     * norm[head_dim] first (Qwen3). */
    void (*rope)(struct be *be, float *x, const float *cos, const float *sin, const float *norm,
                 float eps, int n, int n_heads, int head_dim, int half, bool half_split);

    /* ---- attention ----------------------------------------------------------------------------------------- */
    /* Writes k, v [n_rows][n_kv_heads][head_dim] into the wide pages of their rows, rounded to the cache's type
     * (round to nearest even). Bytes moved: what it writes. */
    void (*kv_append)(struct be *be, const struct be_kv *kv, const float *k, const float *v);
    /* Causal attention of every row over its sequence's narrow slots and wide tail (which already holds the rows' own
     * keys): out = sum_j softmax_j(q.k_j * scale + beta_j) v_j.
     * Order: narrow slots are cut by their slot number, wide slots by their logical position, into spans of ATTEND_SPAN
     * and tiles of ATTEND_TILE; a span is an online softmax (arXiv 2205.14135) over its tiles; spans are merged in
     * rising order, narrow ones first. The cut depends on nothing else and a slot that a row does not see adds exactly
     * nothing, so decode, prefill and any chunking agree bit for bit. Never a full score matrix. A row that sees
     * nothing gives 0 with lse = -inf. The window does not apply to narrow slots. Levels with a bf16 dot product round
     * q and the weights to bf16 when the cache is bf16.
     * Values of slots that nobody sees must be finite where they share a pair with a visible slot: kv_append zeroes
     * the partner of a last even slot, and whoever writes narrow slots does the same.
     * Bytes moved: every key and value once per 64 rows or fewer of a group. */
    void (*attend)(struct be *be, const struct be_attend *a);
};
enum { ATTEND_TILE = 64, ATTEND_SPAN = 512, BE_HEAD_DIM_MAX = 512 };

#endif
