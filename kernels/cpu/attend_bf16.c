/* Attention over a bf16 cache with VDPBF16PS: q and the weights are rounded to bf16, sums are f32.
 *
 * A key page holds pairs of dims with the tokens side by side, so 16 tokens are one register and a pair of q is
 * broadcast from memory; a value page holds pairs of tokens with the dims side by side, so 16 dims are one register and
 * a pair of weights is broadcast. Six rows at a time: 24 sums in registers, 4 for keys or values.
 */
#include <immintrin.h>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/vec_avx512.h"

enum { ROWS = 6, VECS = ATTEND_TILE / 16 };

#define INLINE static inline __attribute__((always_inline))

static void pack(void *dst, const float *q, float scale, int dim, int pitch)
{
    uint16_t *d = dst;
    for (int i = 0; i < pitch; i += 16) {
        __m512 x = vec_mul(vec_load_head(q + i, dim - i), vec_set(scale));
        _mm256_storeu_si256((void *)(d + i), (__m256i)_mm512_cvtneps_pbh(x));
    }
}

INLINE __m512bh load_bh(const void *p)
{
    return (__m512bh)_mm512_loadu_si512(p);
}

INLINE __m512bh pair_bh(const uint32_t *p)
{
    return (__m512bh)_mm512_set1_epi32((int)*p);
}

/* s[r][i] = q[r] . k of tokens 16 * i ... */
INLINE void scores(const struct attend_rows *a, const struct attend_tile *t, int row0, const int n,
                   const bool fetch, __m512 s[ROWS][VECS])
{
    const uint32_t *q[ROWS];
    const char *k0 = t->k[0], *k1 = t->k[1], *f0 = t->next_k[0], *f1 = t->next_k[1];
    for (int r = 0; r < n; r++) {
        q[r] = (const uint32_t *)a->q + (size_t)(row0 + r) * (size_t)a->pitch;
        for (int i = 0; i < VECS; i++)
            s[r][i] = _mm512_setzero_ps();
    }
    for (int d = 0; d < a->dim / 2; d++) {
        size_t at = (size_t)d * KV_PAGE * 4;
        __m512bh k[VECS] = { load_bh(k0 + at), load_bh(k0 + at + 64), load_bh(k1 + at),
                             load_bh(k1 + at + 64) };
        if (fetch) {
            _mm_prefetch(f0 + at, _MM_HINT_T1);
            _mm_prefetch(f0 + at + 64, _MM_HINT_T1);
            _mm_prefetch(f1 + at, _MM_HINT_T1);
            _mm_prefetch(f1 + at + 64, _MM_HINT_T1);
        }
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            __m512bh x = pair_bh(q[r] + d);
#pragma GCC unroll 4
            for (int i = 0; i < VECS; i++)
                s[r][i] = _mm512_dpbf16_ps(s[r][i], x, k[i]);
        }
    }
}

/* Turns the logits of a row into bf16 weights and folds them into m and l; returns the factor for what was there. */
INLINE float weigh(const struct attend_rows *a, const struct attend_tile *t, int row, __m512 *s,
                   uint16_t *p)
{
    if (t->beta[0])
        for (int i = 0; i < VECS; i++)
            s[i] = vec_fma(vec_load(t->beta[i / 2] + i % 2 * 16), vec_set(VEC_LOG2E), s[i]);
    if (t->masked) {
        uint64_t seen = attend_seen(t->lo[row], t->hi[row]);
        for (int i = 0; i < VECS; i++)
            s[i] = vec_hide(s[i], seen >> i * 16);
    }
    float old = a->m[row];
    float top = vec_max_of(vec_max(vec_max(s[0], s[1]), vec_max(s[2], s[3])));
    top = top <= old ? old : top; /* NaN stays */
    float base = top == -INFINITY ? 0.0f : top;
    __m512 sum = vec_zero();
    for (int i = 0; i < VECS; i += 2) {
        __m512 lo = vec_exp2(vec_sub(s[i], vec_set(base)));
        __m512 hi = vec_exp2(vec_sub(s[i + 1], vec_set(base)));
        __m512i b = (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
        _mm512_store_si512((void *)(p + i * 16), b);
        /* What is summed is what multiplies the values: weights stay a convex combination. */
        sum = vec_add(sum, (__m512)_mm512_slli_epi32(b, 16));
        sum = vec_add(sum, (__m512)_mm512_and_si512(b, _mm512_set1_epi32((int)0xffff0000)));
    }
    float f = vec_exp2_one(old - base);
    float *l = a->l + (size_t)row * ATTEND_LANES;
    vec_store(l, vec_add(vec_mul(vec_load(l), vec_set(f)), sum));
    a->m[row] = top;
    return f;
}

/* o[r][dims from d0 on] of nv registers; the last one may be short. */
INLINE void values(const struct attend_rows *a, const struct attend_tile *t, int row0, const int n,
                   const int nv, const bool fetch, int d0, const uint16_t (*p)[ATTEND_TILE],
                   const float *f)
{
    __m512 o[ROWS][VECS];
    __mmask16 last = vec_head(a->dim - d0 - (nv - 1) * 16);
    size_t row_bytes = (size_t)a->dim * 4;
    for (int r = 0; r < n; r++)
        for (int i = 0; i < nv; i++)
            o[r][i] = vec_mul(
                vec_load(a->o + (size_t)(row0 + r) * 2 * (size_t)a->pitch + (size_t)(d0 + i * 16)),
                vec_set(f[r]));
    for (int j = t->lo_all / 2; j < (t->hi_all + 1) / 2; j++) {
        size_t at = (size_t)(j % (KV_PAGE / 2)) * row_bytes + (size_t)d0 * 4;
        const char *v = (const char *)t->v[j / (KV_PAGE / 2)] + at;
        __m512bh x[VECS];
        for (int i = 0; i < nv; i++)
            x[i] = i < nv - 1 ? load_bh(v + i * 64)
                              : (__m512bh)_mm512_maskz_loadu_epi32(last, v + i * 64);
        if (fetch)
            for (int i = 0; i < nv; i++)
                _mm_prefetch((const char *)t->next_v[j / (KV_PAGE / 2)] + at + i * 64, _MM_HINT_T1);
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            __m512bh w = pair_bh((const uint32_t *)(const void *)p[r] + j);
#pragma GCC unroll 4
            for (int i = 0; i < nv; i++)
                o[r][i] = _mm512_dpbf16_ps(o[r][i], w, x[i]);
        }
    }
    for (int r = 0; r < n; r++)
        for (int i = 0; i < nv; i++)
            vec_store(a->o + (size_t)(row0 + r) * 2 * (size_t)a->pitch + (size_t)(d0 + i * 16),
                      o[r][i]);
}

INLINE void rows_tile(const struct attend_rows *a, const struct attend_tile *t, int row0,
                      const int n, const bool fetch)
{
    __m512 s[ROWS][VECS];
    uint16_t p[ROWS][ATTEND_TILE] __attribute__((aligned(64)));
    float f[ROWS];
    scores(a, t, row0, n, fetch, s);
#pragma GCC unroll 6
    for (int r = 0; r < n; r++)
        f[r] = weigh(a, t, row0 + r, s[r], p[r]);
    int d = 0;
    for (; d + 48 < a->dim; d += 64)
        values(a, t, row0, n, 4, fetch, d, (const uint16_t(*)[ATTEND_TILE])p, f);
    for (; d + 16 < a->dim; d += 32)
        values(a, t, row0, n, 2, fetch, d, (const uint16_t(*)[ATTEND_TILE])p, f);
    if (d < a->dim)
        values(a, t, row0, n, 1, fetch, d, (const uint16_t(*)[ATTEND_TILE])p, f);
}

#define ROWS_FN(n)                                                                                 \
    static void rows_##n(const struct attend_rows *a, const struct attend_tile *t, int row0)       \
    {                                                                                              \
        rows_tile(a, t, row0, n, n <= 4);                                                          \
    }
ROWS_FN(1)
ROWS_FN(2)
ROWS_FN(3)
ROWS_FN(4)
ROWS_FN(5)
ROWS_FN(6)

static void tile(const struct attend_rows *a, const struct attend_tile *t)
{
    int r = 0;
    for (; r + ROWS <= a->n; r += ROWS)
        rows_6(a, t, r);
    switch (a->n - r) {
    case 1: rows_1(a, t, r); break;
    case 2: rows_2(a, t, r); break;
    case 3: rows_3(a, t, r); break;
    case 4: rows_4(a, t, r); break;
    case 5: rows_5(a, t, r); break;
    default: break;
    }
}

static void finish(const struct attend_rows *a, int row, float *l, float *o)
{
    *l = vec_sum_of(vec_load(a->l + (size_t)row * ATTEND_LANES));
    const float *sum = a->o + (size_t)row * 2 * (size_t)a->pitch;
    for (int i = 0; i < a->dim; i++)
        o[i] = sum[i];
}

const struct attend_kernel attend_kernel_bf16 = { pack, tile, finish };
