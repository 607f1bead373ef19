/* Attention on the CPU: what the walk (attend.c) and the kernels per instruction set (attend_*.c) say to each other.
 *
 * The walk owns the cut: which rows share a walk over the keys, which spans they see, in which order spans are merged.
 * A kernel owns the arithmetic of one tile for up to CPU_ATTEND_ROWS rows. For a row it does the same operations in
 * the same order whatever rows are beside it; that, and the cut, make attention batch-invariant.
 *
 * Logits are kept in units of log 2 (q is multiplied by scale * log2(e) once), so that exp2 does.
 */
#ifndef WRING_KERNELS_CPU_ATTEND_H
#define WRING_KERNELS_CPU_ATTEND_H

#include "kernels/cpu/cpu.h"

/* Consecutive (token, query head) rows of one sequence and KV head: row i is token i / group, head i % group. */
struct attend_unit {
    int i_seq, kv_head;
    int row0, n_rows;
    int lo, hi;      /* wide slots that some row sees, by logical position */
    int n_narrow;    /* narrow slots, seen by every row */
    int n_spans;     /* narrow spans, then wide ones */
    int item0;       /* first work item of the unit */
    int64_t partial; /* floats from the start of the partial results; -1: the unit is one item */
};

enum { ATTEND_LANES = 16, ATTEND_PAGES = ATTEND_TILE / KV_PAGE };

/* One span of some rows in the making. Everything is scratch of one thread, 64-byte aligned. */
struct attend_rows {
    enum kv_type type;
    int n;
    int dim;    /* head_dim */
    int pitch;  /* elements from row to row of q: dim rounded up to 32; of o: twice that */
    void *q;    /* [n][pitch] in the kernel's form */
    float *m;   /* [n] largest logit so far */
    float *l;   /* [n][ATTEND_LANES] sum of exp2(logit - m), one part a lane */
    float *o;   /* [n][2 * pitch] sum of exp2(logit - m) v in the kernel's form */
    char *tile; /* room for a converted tile: 2 * ATTEND_TILE * pitch floats */
};

/* Where a tile lies: KV_PAGE slots each, readable even where nobody sees them. A q8 page is a whole tile: k[0] and v[0] are
 * its halves, k[1] and v[1] what comes behind as many bytes as KV_PAGE slots have, to be fetched only. */
struct attend_pages {
    const void *k[ATTEND_PAGES], *v[ATTEND_PAGES];
    const float *beta[ATTEND_PAGES]; /* [KV_PAGE] each; beta[0] NULL: none */
    const float *scale; /* of a q8 page: [KV_PAGE_Q8] of keys, then of values; else NULL */
};
_Static_assert((int)KV_PAGE_Q8 == (int)ATTEND_TILE, "a q8 page is a tile");

static inline void attend_pages_q8(struct attend_pages *p, const char *block, const float *side,
                                   size_t half_bytes)
{
    for (size_t i = 0; i < ATTEND_PAGES; i++) {
        p->k[i] = block + i * half_bytes / ATTEND_PAGES;
        p->v[i] = block + half_bytes + i * half_bytes / ATTEND_PAGES;
        p->beta[i] = side + i * KV_PAGE;
    }
    p->scale = side + KV_PAGE_Q8;
}

struct attend_tile {
    struct attend_pages at, next; /* next: of the next tile, to be fetched */
    const int *lo, *hi;           /* [n] row r sees slots lo[r] <= s < hi[r] of the tile */
    int lo_all, hi_all;           /* union of them; not empty */
    bool masked;                  /* some row does not see all of the tile */
};

struct attend_kernel {
    /* q[dim] * scale in the kernel's form; zero up to the pitch. */
    void (*pack)(void *dst, const float *q, float scale, int dim, int pitch);
    void (*tile)(const struct attend_rows *r, const struct attend_tile *t);
    /* Sums of row i to l and o[dim]. */
    void (*finish)(const struct attend_rows *r, int i, float *l, float *o);
    /* Column sums for kernels/probe.h: adds w p to sum[ATTEND_TILE] and w p^2 to square[ATTEND_TILE], row after row, with
     * w = weight[r] and p = exp2(logit - m[r]), 0 for a slot that row r does not see. m[r] is that row's log2-sum-exp,
     * +inf where it has none. Reads m and q only, and of the tile the keys. */
    void (*sums)(const struct attend_rows *r, const struct attend_tile *t, const float *weight,
                 float *sum, float *square);
};

/* What struct attend_rows takes for CPU_ATTEND_ROWS rows, and its cut from that much scratch. */
static inline size_t attend_rows_floats(int dim)
{
    size_t pitch = (size_t)(dim + 31) / 32 * 32;
    return CPU_ATTEND_ROWS * (3 * pitch + 1 + ATTEND_LANES) + 2 * ATTEND_TILE * pitch;
}
static inline void attend_rows_cut(struct attend_rows *r, void *scratch, enum kv_type type, int dim)
{
    size_t pitch = (size_t)(dim + 31) / 32 * 32;
    float *p = (float *)scratch;
    r->type = type;
    r->n = 0;
    r->dim = dim;
    r->pitch = (int)pitch;
    r->q = p;
    r->m = p += CPU_ATTEND_ROWS * pitch;
    r->l = p += CPU_ATTEND_ROWS;
    r->o = p += CPU_ATTEND_ROWS * ATTEND_LANES;
    r->tile = (char *)(p + CPU_ATTEND_ROWS * 2 * pitch);
}

/* Bits lo ... hi - 1; 0 <= lo <= hi <= 64. */
static inline uint64_t attend_seen(int lo, int hi)
{
    uint64_t below_hi = hi == 64 ? ~(uint64_t)0 : ((uint64_t)1 << hi) - 1;
    return lo == 64 ? 0 : below_hi >> lo << lo;
}

extern const struct attend_kernel attend_kernel_avx2;
extern const struct attend_kernel attend_kernel_avx512;
extern const struct attend_kernel attend_kernel_bf16; /* for a bf16 cache */

/* The kernel of a level; not of CPU_REF, which has none. */
static inline const struct attend_kernel *attend_kernel_of(enum cpu_isa isa, enum kv_type type)
{
    if (isa >= CPU_BF16 && type == KV_BF16)
        return &attend_kernel_bf16;
    return isa >= CPU_AVX512 ? &attend_kernel_avx512 : &attend_kernel_avx2;
}

#endif
