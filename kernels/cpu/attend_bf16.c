/* Attention over a bf16 cache with VDPBF16PS: q and the weights are rounded to bf16, sums are f32.
 *
 * A key page holds pairs of dims with the tokens side by side, so 16 tokens are one register and a pair of q is
 * broadcast from memory; a value page holds pairs of tokens with the dims side by side, so 16 dims are one register and
 * a pair of weights is broadcast. Six rows at a time: 24 sums in registers, 4 for keys or values. A tile of q8 slots becomes
 * bf16 first, once for all rows.
 */
#include <immintrin.h>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/vec_avx512.h"

enum { ROWS = 6, VECS = ATTEND_TILE / 16 };

#define INLINE static inline __attribute__((always_inline))

INLINE void store_bh(uint16_t *p, __m512 x)
{
    _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(x));
}

static void pack(void *dst, const float *q, float scale, int dim, int pitch)
{
    uint16_t *d = dst;
    for (int i = 0; i < pitch; i += 16) {
        store_bh(d + i, vec_mul(vec_load_head(q + i, dim - i), vec_set(scale)));
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

/* ---- q8 slots ---------------------------------------------------------------------------------------------------- */

/* Keys: 2 * KV_PAGE_Q8 numbers of each pair of dims, of which KV_PAGE slots go to a page. */
static void keys_q8(const struct attend_rows *a, const struct attend_pages *from,
                    uint16_t *to[ATTEND_PAGES])
{
    enum { N = 2 * KV_PAGE / 16 };
    const int8_t *p = from->k[0];
    for (int page = 0; page < ATTEND_PAGES; page++) {
        __m512 scale[N];
        for (int i = 0; i < N; i++)
            scale[i] = vec_load_twice(from->scale + page * KV_PAGE + i * 8);
        for (int d = 0; d < a->dim / 2; d++)
            for (int i = 0; i < N; i++)
                store_bh(to[page] + d * 2 * KV_PAGE + i * 16,
                         vec_mul(vec_load_i8(p + d * 2 * KV_PAGE_Q8 + page * 2 * KV_PAGE + i * 16),
                                 scale[i]));
    }
}

/* Values: rows of 2 * dim numbers, two scales a row; what the last register of a row stores too much, the next row writes
 * over. */
static void values_q8(const struct attend_rows *a, const struct attend_pages *from, uint16_t *to)
{
    int n = 2 * a->dim;
    for (int j = 0; j < KV_PAGE_Q8 / 2; j++) {
        const int8_t *p = (const int8_t *)from->v[0] + (size_t)j * (size_t)n;
        __m512 scale = vec_pair(from->scale + KV_PAGE_Q8 + 2 * j);
        int i = 0;
        for (; i + 16 <= n; i += 16)
            store_bh(to + j * n + i, vec_mul(vec_load_i8(p + i), scale));
        if (i < n)
            store_bh(to + j * n + i, vec_mul(vec_load_i8_head(p + i, n - i), scale));
    }
}

/* The same tile in bf16, in the scratch of the rows. */
static struct attend_tile unpack_q8(const struct attend_rows *a, const struct attend_tile *t)
{
    struct attend_tile u = *t;
    uint16_t *dst = (uint16_t *)(void *)a->tile, *k[ATTEND_PAGES];
    int page = KV_PAGE * a->dim;
    for (int i = 0; i < ATTEND_PAGES; i++) {
        u.at.k[i] = k[i] = dst + i * page;
        u.at.v[i] = dst + (ATTEND_PAGES + i) * page;
    }
    keys_q8(a, &t->at, k);
    values_q8(a, &t->at, dst + ATTEND_PAGES * page);
    return u;
}

/* ---- a tile ------------------------------------------------------------------------------------------------------ */

/* s[r][i] = q[r] . k of tokens 16 * i ... */
INLINE void scores(const struct attend_rows *a, const struct attend_tile *t, int row0, const int n,
                   const bool fetch, __m512 s[ROWS][VECS])
{
    const uint32_t *q[ROWS];
    const char *k0 = t->at.k[0], *k1 = t->at.k[1], *f0 = t->next.k[0], *f1 = t->next.k[1];
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

/* 2^x within 3e-6, much finer than bf16; otherwise as vec_exp2. */
INLINE __m512 exp2_rough(__m512 x)
{
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = vec_set(0.013426684f);
    p = vec_fma(p, r, vec_set(0.052242473f));
    p = vec_fma(p, r, vec_set(0.2412802f));
    p = vec_fma(p, r, vec_set(0.69304484f));
    p = vec_fma(p, r, vec_set(1.0f));
    return _mm512_scalef_ps(p, x);
}

INLINE __m512 max_lo_hi_ps(__m512 a, __m512 b)
{
    return vec_max(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}

INLINE __m512 max_lo_hi_pd(__m512 a, __m512 b)
{
    __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return vec_max(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                   _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

/* Lane r of the result is the largest lane of x[r]; lanes from n on are anything. */
INLINE __m512 row_maxima(const __m512 *x, const int n)
{
    __m512 a[4];
    for (int i = 0; i < 4; i++)
        a[i] = max_lo_hi_ps(x[2 * i < n ? 2 * i : 0], x[2 * i + 1 < n ? 2 * i + 1 : 0]);
    __m512 lo = max_lo_hi_pd(a[0], a[1]), hi = max_lo_hi_pd(a[2], a[3]);
    __m512 y = vec_max(_mm512_shuffle_f32x4(lo, hi, 0x88), _mm512_shuffle_f32x4(lo, hi, 0xdd));
    y = vec_max(y, _mm512_shuffle_f32x4(y, y, 0xb1));
    return _mm512_shuffle_f32x4(y, y, 0x08);
}

/* Adds beta to the logits of a row and hides what it does not see; returns the lane-wise maximum. */
INLINE __m512 mask_row(const struct attend_tile *t, int row, __m512 *s)
{
    if (t->at.beta[0])
        for (int i = 0; i < VECS; i++)
            s[i] = vec_fma(vec_load(t->at.beta[i / 2] + i % 2 * 16), vec_set(VEC_LOG2E), s[i]);
    if (t->masked) {
        uint64_t seen = attend_seen(t->lo[row], t->hi[row]);
        for (int i = 0; i < VECS; i++)
            s[i] = vec_hide(s[i], seen >> i * 16);
    }
    return vec_max(vec_max(s[0], s[1]), vec_max(s[2], s[3]));
}

/* Logits of a row less `base` to bf16 weights; their sum to l. */
INLINE void weigh_row(const __m512 *s, float base, float f, uint16_t *p, float *l)
{
    const __m512bh one = (__m512bh)_mm512_set1_epi16(0x3f80);
    __m512 sum = vec_mul(vec_load(l), vec_set(f));
    for (int i = 0; i < VECS; i += 2) {
        __m512 lo = exp2_rough(vec_sub(s[i], vec_set(base)));
        __m512 hi = exp2_rough(vec_sub(s[i + 1], vec_set(base)));
        __m512bh b = _mm512_cvtne2ps_pbh(hi, lo);
        _mm512_store_si512((void *)(p + i * 16), (__m512i)b);
        /* What is summed is what multiplies the values: weights stay a convex combination. */
        sum = _mm512_dpbf16_ps(sum, b, one);
    }
    vec_store(l, sum);
}

/* Turns logits into weights and folds them into m and l; f[r] becomes the factor for what was there. */
INLINE void weigh(const struct attend_rows *a, const struct attend_tile *t, int row0, const int n,
                  __m512 s[ROWS][VECS], uint16_t (*p)[ATTEND_TILE], float f[16])
{
    __m512 most[ROWS];
    float base[16] __attribute__((aligned(64)));
#pragma GCC unroll 6
    for (int r = 0; r < n; r++)
        most[r] = mask_row(t, row0 + r, s[r]);
    __m512 old = vec_load_head(a->m + row0, n), top = vec_max(row_maxima(most, n), old);
    __mmask16 none = _mm512_cmp_ps_mask(top, vec_set(-INFINITY), _CMP_EQ_OQ);
    __m512 safe = _mm512_mask_blend_ps(none, top, vec_zero());
    vec_store_head(a->m + row0, n, top);
    vec_store(base, safe);
    vec_store(f, vec_exp2(vec_sub(old, safe)));
#pragma GCC unroll 6
    for (int r = 0; r < n; r++)
        weigh_row(s[r], base[r], f[r], p[r], a->l + (size_t)(row0 + r) * ATTEND_LANES);
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
        const char *v = (const char *)t->at.v[j / (KV_PAGE / 2)] + at;
        __m512bh x[VECS];
        for (int i = 0; i < nv; i++)
            x[i] = i < nv - 1 ? load_bh(v + i * 64)
                              : (__m512bh)_mm512_maskz_loadu_epi32(last, v + i * 64);
        if (fetch)
            for (int i = 0; i < nv; i++)
                _mm_prefetch((const char *)t->next.v[j / (KV_PAGE / 2)] + at + i * 64, _MM_HINT_T1);
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
    float f[16] __attribute__((aligned(64)));
    scores(a, t, row0, n, fetch, s);
    weigh(a, t, row0, n, s, p, f);
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
    struct attend_tile unpacked;
    int r = 0;
    if (t->at.scale) {
        unpacked = unpack_q8(a, t);
        t = &unpacked;
    }
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

/* ---- column sums -------------------------------------------------------------------------------------------------- */

INLINE void rows_sums(const struct attend_rows *a, const struct attend_tile *t, int row0,
                      const int n, const bool fetch, const float *weight, float *sum, float *square)
{
    __m512 s[ROWS][VECS];
    scores(a, t, row0, n, fetch, s);
#pragma GCC unroll 6
    for (int r = 0; r < n; r++)
        mask_row(t, row0 + r, s[r]);
#pragma GCC unroll 4
    for (int i = 0; i < VECS; i++) {
        __m512 p1 = vec_load(sum + i * 16), p2 = vec_load(square + i * 16);
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            __m512 p = exp2_rough(vec_sub(s[r][i], vec_set(a->m[row0 + r])));
            __m512 wp = vec_mul(p, vec_set(weight[row0 + r]));
            p1 = vec_add(p1, wp);
            p2 = vec_fma(wp, p, p2);
        }
        vec_store(sum + i * 16, p1);
        vec_store(square + i * 16, p2);
    }
}

#define SUMS_FN(n)                                                                                 \
    static void sums_##n(const struct attend_rows *a, const struct attend_tile *t, int row0,       \
                         const float *weight, float *sum, float *square)                           \
    {                                                                                              \
        rows_sums(a, t, row0, n, n <= 4, weight, sum, square);                                     \
    }
SUMS_FN(1)
SUMS_FN(2)
SUMS_FN(3)
SUMS_FN(4)
SUMS_FN(5)
SUMS_FN(6)

static void sums(const struct attend_rows *a, const struct attend_tile *t, const float *weight,
                 float *sum, float *square)
{
    struct attend_tile unpacked;
    int r = 0;
    if (t->at.scale) {
        unpacked = unpack_q8(a, t);
        t = &unpacked;
    }
    for (; r + ROWS <= a->n; r += ROWS)
        sums_6(a, t, r, weight, sum, square);
    switch (a->n - r) {
    case 1: sums_1(a, t, r, weight, sum, square); break;
    case 2: sums_2(a, t, r, weight, sum, square); break;
    case 3: sums_3(a, t, r, weight, sum, square); break;
    case 4: sums_4(a, t, r, weight, sum, square); break;
    case 5: sums_5(a, t, r, weight, sum, square); break;
    default: break;
    }
}

const struct attend_kernel attend_kernel_bf16 = { pack, tile, finish, sums };
