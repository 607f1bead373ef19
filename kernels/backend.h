/* The contract of every op: what a machine must be able to do to run a model.
 *
 * A backend is one folder here and one const table of function pointers. kernels/cpu/ref.c is the definition of every
 * op in plain C; a faster file replaces single slots and is tested against it (tests/ops). A NULL slot, where a slot
 * says that it may be NULL, means "not accelerated".
 *
 * Rules for all ops:
 *   - pointers are backend memory (be->ops->alloc) unless a slot says host; on the CPU that is ordinary memory;
 *   - numbers that the host decides step by step (tokens, positions, page tables) come to the ops through step_begin;
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
    CPU_BF16,   /* the same, AVX512-BF16 and VBMI */
    CPU_ISA_N
};

struct be_config {
    const char *device; /* "cpu" or NULL, "cuda" (the first GPU), "cuda:N" */
    int n_threads;      /* 0: as many as the process may use */
    const char
        *isa; /* "auto" or NULL, "ref", "avx2", "avx512", "bf16": an upper limit for the kernels */
    bool
        cublas; /* GPU: hundreds of rows are multiplied by cuBLASLt: faster, but no longer batch-invariant */
};

/* An opened backend. Open structure so that codecs and ops can see the pool and the ISA; nobody writes it after open. */
struct be {
    const struct be_ops *ops;
    struct par
        *par; /* the host's workers: every backend has them (pressing weights, sampling, ...) */
    enum cpu_isa isa; /* of the host's kernels */
    bool host;        /* its memory is ordinary memory, which the CPU may read and write as it is */
    char device[96];  /* for messages: "cpu", "cuda:0 (NVIDIA H200)" */
    void *state;      /* the backend's own: scratch per thread, ... */
};

/* Opens the backend named by c->device. The error says which ISA the machine lacks, which name is unknown, or why there
 * is no GPU (ERR_UNSUPPORTED: not in this build; ERR_DEVICE: no driver, no such device). */
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
 * *narrow page* is one block. head_dim is even and at most BE_HEAD_DIM_MAX.
 *
 * A narrow page may hold its elements as q8: whole numbers of -127 ... 127, one byte each, times a scale that a slot's key
 * has and one that its value has. In the bytes of a block of 16-bit elements lie KV_PAGE_Q8 = 2 * KV_PAGE slots then, in the
 * same order of pairs:
 *
 *      bytes      0                          64 * head_dim                 128 * head_dim
 *      16 bits    | keys of 32 slots         | values of 32 slots          |
 *      q8         | keys of 64 slots         | values of 64 slots          |
 *
 *      key   element i of slot t:  k[(i / 2) * KV_PAGE_Q8 * 2 + t * 2 + i % 2]
 *      value element i of slot t:  as above
 *
 * What a narrow slot has beside its elements, its *side*, lies in an array of its own, floats of each block:
 *
 *      as the cache    bias[KV_PAGE]
 *      q8              bias[KV_PAGE_Q8], scale of keys[KV_PAGE_Q8], scale of values[KV_PAGE_Q8] */
enum { KV_PAGE = 32, KV_PAGE_Q8 = 64 };

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

/* What the elements of narrow pages are: the cache's type, or q8 (in a cache of 16-bit elements only). */
enum kv_narrow { KV_NARROW_SAME, KV_NARROW_Q8, KV_NARROW_N };
const char *kv_narrow_name(enum kv_narrow n);       /* "same", "q8" */
static inline int kv_narrow_slots(enum kv_narrow n) /* of a page */
{
    return n == KV_NARROW_Q8 ? KV_PAGE_Q8 : KV_PAGE;
}
static inline size_t kv_side_floats(enum kv_narrow n) /* of a page */
{
    return n == KV_NARROW_Q8 ? 3 * (size_t)KV_PAGE_Q8 : (size_t)KV_PAGE;
}
static inline size_t kv_k_index_q8(int slot, int i)
{
    return (size_t)(i / 2) * KV_PAGE_Q8 * 2 + (size_t)slot * 2 + (size_t)(i % 2);
}

/* A record holds the query of one token in one layer, as attention saw it, for policies that score slots by it: n_heads *
 * head_dim elements of the cache's type (rotated, unscaled), then, 16-byte aligned, n_heads floats: the log-sum-exp of
 * that row of attention over all that it saw. */
static inline size_t kv_record_lse(enum kv_type t, int n_heads, int head_dim)
{
    size_t bytes = (size_t)n_heads * (size_t)head_dim * (t == KV_F32 ? 4 : 2);
    return (bytes + 15) / 16 * 16;
}
static inline size_t kv_record_bytes(enum kv_type t, int n_heads, int head_dim)
{
    return kv_record_lse(t, n_heads, head_dim) + ((size_t)n_heads * sizeof(float) + 15) / 16 * 16;
}

/* Where the query of a row is kept: records in backend memory, NULL: nowhere. */
struct be_keep {
    void *sample, *window;
};

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

/* What the host decides for one forward pass. In: host memory. After step_begin: backend memory, ready for the ops. */
struct be_step {
    int n_rows, n_seqs, n_out, n_layers, n_kv_heads;
    enum kv_narrow narrow_type; /* of the cache, as in be_kv */
    const int32_t *token, *pos; /* [n_rows] */
    const int32_t *out_row;     /* [n_out] rows whose logits are wanted, rising */
    const struct be_seq *seqs;  /* [n_layers][n_seqs]: be_kv.seqs of each layer */
    const struct be_keep *keep; /* [n_layers][n_rows], or NULL: no query is kept */
};

/* Everything about the cache that an op needs; filled once a layer. */
struct be_kv {
    void *pool; /* block 0 */
    /* [blocks][kv_side_floats] of narrow slots: logit bias (log of votes) and, for q8, scales; NULL without narrow pages. Of
     * KV_NARROW_SAME with narrow pages NULL says that no slot has a bias. */
    const float *beta;
    enum kv_type type;
    enum kv_narrow narrow_type;
    int n_kv_heads, head_dim;
    int n_seqs;
    const struct be_seq *seqs; /* of this layer, from struct be_step after step_begin */
};

/* q and k as the projections left them, on their way to the cache: rope() of both and kv_append() in one pass. */
struct be_rope_append {
    float *q;                     /* [n][n_heads][head_dim], rotated in place */
    const float *k, *v;           /* [n][n_kv_heads][head_dim]; k is rotated on its way */
    const float *cos, *sin;       /* [n][half] */
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    float eps;
    int n, n_heads, half;
    bool half_split;
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

/* ---- pressing a cache -------------------------------------------------------------------------------------------- */

/* What kept queries make of the slots of KV heads, of all layers at once; kernels/probe.h defines it for one head. A head's
 * candidates are its narrow slots, then n_wide wide ones; n_tail slots more, in the page behind those, are seen by the
 * references but are no candidates. Pointers are host memory, pool, beta and records backend memory. */
enum { BE_PROBE_SETS = 3 };
struct be_probe {
    struct be_kv kv; /* sequences are not looked at */
    int n_layers, n_heads;
    float scale;
    int n_wide, n_tail;
    const int32_t *wide; /* [n_layers][pages of n_wide, and the tail's if there is one] page ids */
    const int32_t *narrow;   /* [n_layers][n_kv_heads][narrow_pages] block ids */
    const int32_t *n_narrow; /* [n_layers][n_kv_heads] slots; NULL: none */
    int narrow_pages;
    /* Records: those of set 0, 1, ... and then n_ref references. Query i of a set sees all narrow slots and wide slots below
     * see[i], rising within the set. References are turned on, pair i of reference r by the angle of cos[r][i], sin[r][i]. */
    const void *const *record; /* [n_layers][n_records] */
    int n_records, n_set[BE_PROBE_SETS], n_ref;
    const int32_t *see;     /* of the sets' records */
    const float *cos, *sin; /* [n_ref][half] */
    int half;
    bool half_split;          /* as for rope */
    struct be_probe_out *out; /* [n_layers][n_kv_heads] */
};

/* Of one KV head; the host's. c: candidates; r: rows, which are references times query heads of the group.
 *   set       [c] the attention that the set's queries give, mean over queries and group
 *   mean, rms [c] of the rows' attention, over candidates and tail: mean, root mean square
 *   beta      [c] the logit bias; 0: of wide slots
 *   lse       [r] the log-sum-exp over the candidates
 *   tail_lse  [r] over the tail alone; -inf: without one */
struct be_probe_out {
    float *set[BE_PROBE_SETS], *mean, *rms, *beta;
    float *lse, *tail_lse;
};

/* What is kept of the heads that were probed, and how it is fitted to what the rows get from all candidates. Host memory.
 * Tables of heads are those of all heads side by side, in the order of be_probe_out; a head's slots are in the order in which
 * they will lie. */
struct be_press {
    const struct be_probe *asked; /* its sets and `out` are not looked at */
    const int32_t *n_keep;        /* [n_layers][n_kv_heads] slots that a head keeps */
    const int32_t *keep;          /* [n_keep] of each head: candidates, rising */
    const bool *exact;            /* [n_keep] the value stays */
    const int32_t *
        block; /* narrow pages for n_keep slots of each head; they may be those that hold its candidates */
    const float *low,
        *high;           /* [n_keep] the least and the most that a slot's votes are multiplied by */
    const float *weight; /* [n_layers][n_kv_heads][rows] what a row counts, mean 1 */
    int rounds;          /* of the fit of votes; 0: they stay; `low` and `high` are not read */
    bool values;         /* are fitted. With neither `weight` is not read */
    float lambda;        /* the ridge of values */
};

/* ---- the head -------------------------------------------------------------------------------------------------- */

enum { BE_HEAD_TOP = 256, BE_VOCAB_MAX = 512 << 10 /* of the head op */ };

/* What a request does to its row of logits before a token is chosen (order and formulas: server/engine/sample.h), and
 * what it asks of the row then. Host memory. Everything 0 or NULL, and repetition 1: the row as it is. */
struct be_head_row {
    const int32_t *bias_id; /* [n_bias] each once */
    const float *bias;      /* [n_bias] added */
    const int32_t *seen_id; /* [n_seen] tokens of prompt and output, each once */
    const uint32_t *count;  /* [n_seen] how often each was chosen */
    int n_bias, n_seen;
    float repetition, presence, frequency;
    float temperature; /* of warm_sum; 0: none */
    bool draw;    /* pick the id that u draws: the first one, by rising id, up to which the warm
                        * exponentials sum to more than u * warm_sum; where there are none: `pick` */
    double u;     /* [0, 1) */
    int32_t pick; /* without draw: the id whose logit is wanted */
};

/* What is left of a row: enough for greedy choice and for plain sampling, and for top_k, min_p and nucleus sampling as
 * long as what they keep is among the BE_HEAD_TOP largest. Host memory. */
struct be_head_out {
    double sum; /* of exp(logit - max); 0 when max is infinite */
    double
        warm_sum; /* of exp((logit - max) / temperature); 0 when max is infinite or temperature 0 */
    float max;    /* largest logit; -inf when there is none */
    float pick_logit;
    int32_t pick;
    int n; /* entries below: the largest logits, falling, ties by rising id; never NaN or -inf; behind them 0 */
    int32_t id[BE_HEAD_TOP];
    float logit[BE_HEAD_TOP];
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
    /* Waits for all work. ERR_DEVICE when the device is lost, from then on for ever. */
    int (*sync)(struct be *be, struct err *e);
    /* Bytes that alloc can still give, and all there are. 0, 0 when nobody knows (the CPU). */
    void (*memory)(struct be *be, size_t *free_bytes, size_t *total);
    /* What the machine can do at best, measured now: copying (1e9 bytes a second, those read and those written) and bf16
     * products (1e9 operations a second; a multiply-add is two). 0: nobody knows. NULL: the CPU, see
     * kernels/cpu/bound.h. */
    void (*bounds)(struct be *be, double *copy_gbs, double *dot_gops);
    void (*close)(struct be *be); /* frees the backend; be is invalid afterwards */

    /* ---- a step: one forward pass of a batch ------------------------------------------------------------------ */
    /* Brings s to the backend: its pointers afterwards are backend memory, valid until step_end. Counts may have been
     * raised: the rows, sequences and outputs added have no effect and nobody reads their results; the caller's
     * activations have room, at most up to the next power of two. `owner` NULL: a part of a pass, which nothing is recorded
     * or raised for.
     * Returns true when the backend runs the whole pass by itself, as it recorded it earlier: then the caller calls
     * step_end and no op. `owner` names what else the pass depends on (the workspace): passes of one owner and equal
     * counts, both with or both without `keep`, call the same ops with the same pointers. */
    bool (*step_begin)(struct be *be, struct be_step *s, const void *owner);
    void (*step_end)(struct be *be);

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

    /* Both ropes and the append at once, with the bits of the three ops. NULL: the caller calls the three. */
    void (*rope_append)(struct be *be, const struct be_rope_append *r, const struct be_kv *kv);

    /* ---- attention ----------------------------------------------------------------------------------------- */
    /* Writes k, v [n_rows][n_kv_heads][head_dim] into the wide pages of their rows, rounded to the cache's type
     * (round to nearest even); what f16 cannot hold, infinities too, becomes +-65504: the weight 0 of a slot that a row
     * does not see, times infinity, would be NaN. Bytes moved: what it writes. */
    void (*kv_append)(struct be *be, const struct be_kv *kv, const float *k, const float *v);
    /* Causal attention of every row over its sequence's narrow slots and wide tail (which already holds the rows' own
     * keys): out = sum_j softmax_j(q.k_j * scale + beta_j) v_j.
     * Order: narrow slots are cut by their slot number, wide slots by their logical position, into spans of ATTEND_SPAN
     * and tiles of ATTEND_TILE; a span is an online softmax (arXiv 2205.14135) over its tiles; spans are merged in
     * rising order, narrow ones first. The cut depends on nothing else and a slot that a row does not see adds exactly
     * nothing, so decode, prefill and any chunking agree bit for bit. Never a full score matrix. A row that sees
     * nothing gives 0 with lse = -inf. The window does not apply to narrow slots. Levels with a bf16 dot product round
     * q and the weights to bf16 when the cache is bf16. Elements of q8 slots (number times scale) are rounded to what the
     * level multiplies: not at all, or as q and the weights.
     * Values of slots that nobody sees must be finite where they share a pair with a visible slot: kv_append zeroes
     * the partner of a last even slot, and whoever writes narrow slots does the same.
     * Bytes moved: every key and value once per 64 rows or fewer of a group. */
    void (*attend)(struct be *be, const struct be_attend *a);

    /* Writes the records of n rows: keep[n] of this layer, from struct be_step after step_begin; q [n][n_heads][head_dim]
     * as attend read it, lse [n][n_heads] as attend wrote it. Rounds to nearest even.
     * Bytes moved: 4 read for each element of a query, and the records. */
    void (*query_keep)(struct be *be, const struct be_keep *keep, const float *q, const float *lse,
                       enum kv_type type, int n, int n_heads, int head_dim);

    /* ---- pressing a cache --------------------------------------------------------------------------------------- */
    /* Fills p->out. Waits, so that it can be read on return, unless sync() then tells of an error. Rounds queries and weights
     * as attend does. Returns how many slots `press` can keep of a head beside these references; 0: a head that long does not
     * fit the backend's scratch, nothing was done. NULL: the host brings pages to itself and does what kernels/probe.h says.
     * Products: 4 * rows * slots * head_dim FLOP a head for the references' attention, 2 for each column sum of a row. */
    int (*probe)(struct be *be, const struct be_probe *p);
    /* Writes the narrow pages of what is kept, with their sides: what probe_gather reads and probe_write or probe_write_q8
     * (kernels/probe.h) writes, and between the two kv_fit (kvcache/fit.h) with the references of probe_attend. As there a fit
     * with results that are not finite changes nothing. No head keeps more slots than probe returned. NULL where probe is.
     * Products: those of probe's references again, and for R rows, N slots kept and M values fitted of a head 4 * R * N *
     * head_dim + R * M * (M + 2 * head_dim) + M^2 * (M / 3 + 2 * head_dim) FLOP. */
    void (*press)(struct be *be, const struct be_press *p);

    /* ---- the head ------------------------------------------------------------------------------------------ */
    /* logits[n][vocab] as row[n] (host) says, changed in place; what is left of each row to out[n] (host). Waits, so
     * that out can be read on return, unless sync() then tells of an error. NaN has no weight. Sums are right to 1e-6
     * of themselves, summed in an order fixed by vocab. */
    void (*head)(struct be *be, float *logits, int n, int vocab, const struct be_head_row *row,
                 struct be_head_out *out);
};
enum { ATTEND_TILE = 64, ATTEND_SPAN = 512, BE_HEAD_DIM_MAX = 512 };

#endif
