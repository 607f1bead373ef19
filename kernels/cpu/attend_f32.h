/* Attention with f32 arithmetic for any cache type, written once for every vector width.
 *
 * Included by attend_<isa>.c after its vec_<isa>.h, with VECS defined: six rows of VECS registers of sums are worked on
 * together, as many as there are registers for. A tile of a 16-bit cache is converted once for all rows of the unit.
 * Pairs stay side by side: even and odd dims (of a logit) and even and odd tokens (of an output) have sums of their own
 * that are added at the end.
 */
#ifndef WRING_KERNELS_CPU_ATTEND_F32_H
#define WRING_KERNELS_CPU_ATTEND_F32_H

#include "kernels/cpu/attend.h"

enum { ROWS = 6, FLOATS = VECS * VEC_N };

static void pack(void *dst, const float *q, float scale, int dim, int pitch)
{
    float *d = dst;
    for (int i = 0; i < pitch; i += VEC_N)
        vec_store(d + i, vec_mul(vec_load_head(q + i, dim - i), vec_set(scale)));
}

/* s[r][slot0 ...] = q[r] . k for one page */
VEC_FN void page_scores(const struct attend_rows *a, const float *k, int row0, const int n,
                        float (*s)[ATTEND_TILE], int slot0)
{
    const float *q[ROWS];
    for (int r = 0; r < n; r++)
        q[r] = (const float *)a->q + (size_t)(row0 + r) * (size_t)a->pitch;
    for (int at = 0; at < 2 * KV_PAGE; at += FLOATS) {
        VEC sum[ROWS][VECS];
        for (int r = 0; r < n; r++)
            for (int i = 0; i < VECS; i++)
                sum[r][i] = vec_zero();
        for (int d = 0; d < a->dim / 2; d++) {
            const float *p = k + d * 2 * KV_PAGE + at;
            VEC x[VECS];
            for (int i = 0; i < VECS; i++)
                x[i] = vec_load(p + i * VEC_N);
#pragma GCC unroll 6
            for (int r = 0; r < n; r++) {
                VEC w = vec_pair(q[r] + 2 * d);
#pragma GCC unroll 4
                for (int i = 0; i < VECS; i++)
                    sum[r][i] = vec_fma(w, x[i], sum[r][i]);
            }
        }
        for (int r = 0; r < n; r++)
            for (int i = 0; i < VECS; i += 2)
                vec_store(s[r] + slot0 + at / 2 + i / 2 * VEC_N,
                          vec_pair_sums(sum[r][i], sum[r][i + 1]));
    }
}

/* Turns the logits of a row into weights and folds them into m and l; returns the factor for what was there. */
VEC_FN float weigh(const struct attend_rows *a, const struct attend_tile *t, int row, float *s)
{
    uint64_t seen = attend_seen(t->lo[row], t->hi[row]);
    VEC max = vec_set(-INFINITY);
    for (int i = 0; i < ATTEND_TILE; i += VEC_N) {
        VEC x = vec_load(s + i);
        if (t->beta[0])
            x = vec_fma(vec_load(t->beta[i / KV_PAGE] + i % KV_PAGE), vec_set(VEC_LOG2E), x);
        if (t->masked)
            x = vec_hide(x, seen >> i);
        vec_store(s + i, x);
        max = vec_max(max, x);
    }
    float old = a->m[row], top = vec_max_of(max);
    top = top <= old ? old : top; /* NaN stays */
    float base = top == -INFINITY ? 0.0f : top;
    float *l = a->l + (size_t)row * ATTEND_LANES;
    float f = vec_exp2_one(old - base);
    VEC sum = vec_mul(vec_load(l), vec_set(f));
    for (int i = 0; i < ATTEND_TILE; i += VEC_N) {
        VEC p = vec_exp2(vec_sub(vec_load(s + i), vec_set(base)));
        vec_store(s + i, p);
        sum = vec_add(sum, p);
    }
    vec_store(l, sum);
    a->m[row] = top;
    return f;
}

/* o[r][at ...] of nv registers, in pairs (even tokens, odd tokens) a dim; the last one may be short. */
VEC_FN void values(const struct attend_rows *a, const struct attend_tile *t,
                   const float *const *page, int row0, const int n, const int nv, int at,
                   float (*p)[ATTEND_TILE], const float *f)
{
    VEC o[ROWS][VECS];
    int last = 2 * a->dim - at - (nv - 1) * VEC_N;
    for (int r = 0; r < n; r++)
        for (int i = 0; i < nv; i++)
            o[r][i] = vec_mul(vec_load(a->o + (size_t)(row0 + r) * 2 * (size_t)a->pitch +
                                       (size_t)(at + i * VEC_N)),
                              vec_set(f[r]));
    for (int j = t->lo_all / 2; j < (t->hi_all + 1) / 2; j++) {
        const float *v =
            page[j / (KV_PAGE / 2)] + (size_t)(j % (KV_PAGE / 2)) * 2 * (size_t)a->dim + (size_t)at;
        VEC x[VECS];
        for (int i = 0; i < nv - 1; i++)
            x[i] = vec_load(v + i * VEC_N);
        x[nv - 1] = vec_load_head(v + (nv - 1) * VEC_N, last);
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            VEC w = vec_pair(p[r] + 2 * j);
#pragma GCC unroll 4
            for (int i = 0; i < nv; i++)
                o[r][i] = vec_fma(w, x[i], o[r][i]);
        }
    }
    for (int r = 0; r < n; r++)
        for (int i = 0; i < nv; i++)
            vec_store(a->o + (size_t)(row0 + r) * 2 * (size_t)a->pitch + (size_t)(at + i * VEC_N),
                      o[r][i]);
}

/* One page of n elements to f32, fetching the page that comes next. */
static const float *page_f32(enum kv_type type, const void *src, const void *next, float *dst,
                             int n)
{
    const uint16_t *p = src;
    for (int i = 0; i < n; i += 32) { /* a cache line; n is a multiple of 2 * KV_PAGE */
        _mm_prefetch((const char *)next + i * (type == KV_F32 ? 4 : 2), _MM_HINT_T1);
        if (type == KV_F32)
            _mm_prefetch((const char *)next + i * 4 + 64, _MM_HINT_T1);
        else if (type == KV_F16)
            for (int j = i; j < i + 32; j += VEC_N)
                vec_store(dst + j, vec_load_f16(p + j));
        else
            for (int j = i; j < i + 32; j += VEC_N)
                vec_store(dst + j, vec_load_bf16(p + j));
    }
    return type == KV_F32 ? src : dst;
}

/* A tile's pages, each converted just before its first use or (ready) long before. */
struct pages {
    bool ready;
    const float *k[ATTEND_PAGES], *v[ATTEND_PAGES];
};

VEC_FN void rows_tile(const struct attend_rows *a, const struct attend_tile *t, struct pages *g,
                      int row0, const int n)
{
    float s[ROWS][ATTEND_TILE] __attribute__((aligned(64)));
    float f[ROWS], *dst = (float *)(void *)a->tile;
    int page = KV_PAGE * a->dim;
    for (int i = 0; i < ATTEND_PAGES; i++) {
        if (!g->ready)
            g->k[i] = page_f32(a->type, t->k[i], t->next_k[i], dst, page);
        page_scores(a, g->k[i], row0, n, s, i * KV_PAGE);
    }
    for (int r = 0; r < n; r++)
        f[r] = weigh(a, t, row0 + r, s[r]);
    for (int i = 0; i < ATTEND_PAGES && !g->ready; i++)
        g->v[i] = page_f32(a->type, t->v[i], t->next_v[i], dst + i * page, page);
    int at = 0;
    for (; at + FLOATS - VEC_N < 2 * a->dim; at += FLOATS)
        values(a, t, g->v, row0, n, VECS, at, s, f);
    for (; at + VEC_N < 2 * a->dim; at += 2 * VEC_N)
        values(a, t, g->v, row0, n, 2, at, s, f);
    if (at < 2 * a->dim)
        values(a, t, g->v, row0, n, 1, at, s, f);
}

#define ROWS_FN(n)                                                                                 \
    static void rows_##n(const struct attend_rows *a, const struct attend_tile *t,                 \
                         struct pages *g, int row0)                                                \
    {                                                                                              \
        rows_tile(a, t, g, row0, n);                                                               \
    }
ROWS_FN(1)
ROWS_FN(2)
ROWS_FN(3)
ROWS_FN(4)
ROWS_FN(5)
ROWS_FN(6)

typedef void rows_fn(const struct attend_rows *a, const struct attend_tile *t, struct pages *g,
                     int row0);
static rows_fn *const rows_of[ROWS + 1] = { NULL, rows_1, rows_2, rows_3, rows_4, rows_5, rows_6 };

static void tile(const struct attend_rows *a, const struct attend_tile *t)
{
    struct pages g = { .ready = a->n > ROWS };
    int n = KV_PAGE * a->dim;
    float *dst = (float *)(void *)a->tile;
    for (int i = 0; i < ATTEND_PAGES && g.ready; i++) {
        g.k[i] = page_f32(a->type, t->k[i], t->next_k[i], dst + 2 * i * n, n);
        g.v[i] = page_f32(a->type, t->v[i], t->next_v[i], dst + (2 * i + 1) * n, n);
    }
    for (int r = 0; r < a->n; r += ROWS)
        rows_of[a->n - r < ROWS ? a->n - r : ROWS](a, t, &g, r);
}

static void finish(const struct attend_rows *a, int row, float *l, float *o)
{
    *l = vec_sum_of(vec_load(a->l + (size_t)row * ATTEND_LANES));
    const float *sum = a->o + (size_t)row * 2 * (size_t)a->pitch;
    for (int i = 0; i < a->dim; i++)
        o[i] = sum[2 * i] + sum[2 * i + 1];
}

#endif
