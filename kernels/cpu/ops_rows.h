/* Row ops, rotation and the cache's writer, written once for every vector width.
 *
 * Included by ops_<isa>.c after its vec_<isa>.h. All but swiglu (whose exp is a polynomial here) give the bits of
 * ref.c: products and sums are rounded separately and in its order.
 */
#ifndef WRING_KERNELS_CPU_OPS_ROWS_H
#define WRING_KERNELS_CPU_OPS_ROWS_H

#include "kernels/cpu/cpu.h"

struct rows {
    float *y, *x;
    const float *a, *w;
    int dim;
    float eps;
};

/* x + y into x; the sum of squares of the result in 16 parts, as in ref.c. y may be NULL. */
VEC_FN float square_sum(float *x, const float *y, int dim)
{
    VEC part[16 / VEC_N];
    for (int j = 0; j < 16 / VEC_N; j++)
        part[j] = vec_zero();
    for (int i = 0; i < dim; i += 16) {
        for (int j = 0; j < 16 / VEC_N; j++) {
            int at = i + j * VEC_N, n = dim - at;
            VEC v = vec_load_head(x + at, n);
            if (y) {
                v = vec_add(v, vec_load_head(y + at, n));
                vec_store_head(x + at, n, v);
            }
            part[j] = vec_add(part[j], vec_mul(v, v));
        }
    }
    for (int j = 1; j < 16 / VEC_N; j++)
        part[0] = vec_add(part[0], part[j]);
    return vec_sum_of(part[0]);
}

VEC_FN void norm_row(float *y, float *x, const float *add, const float *w, int dim, float eps)
{
    float s = 1.0f / sqrtf(square_sum(x, add, dim) / (float)dim + eps);
    for (int i = 0; i < dim; i += VEC_N) {
        VEC v = vec_mul(vec_load_head(x + i, dim - i), vec_set(s));
        vec_store_head(y + i, dim - i, vec_mul(v, vec_load_head(w + i, dim - i)));
    }
}

static void norm_rows(void *arg, int first, int last, int i_thread)
{
    const struct rows *t = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)t->dim;
        norm_row(t->y + at, t->x + at, t->a ? t->a + at : NULL, t->w, t->dim, t->eps);
    }
}

static void rmsnorm(struct be *be, float *y, float *x, const float *add, const float *w, int n,
                    int dim, float eps)
{
    struct rows t = { .y = y, .x = x, .a = add, .w = w, .dim = dim, .eps = eps };
    cpu_for(be, n, 0, (size_t)n * (size_t)dim * 2, norm_rows, &t);
}

static void add_rows(void *arg, int first, int last, int i_thread)
{
    const struct rows *t = arg;
    (void)i_thread;
    size_t at = (size_t)first * (size_t)t->dim, end = (size_t)last * (size_t)t->dim;
    for (; at + VEC_N <= end; at += VEC_N)
        vec_store(t->x + at, vec_add(vec_load(t->x + at), vec_load(t->a + at)));
    for (; at < end; at++)
        t->x[at] += t->a[at];
}

static void add(struct be *be, float *x, const float *y, int n, int dim)
{
    struct rows t = { .x = x, .a = y, .dim = dim };
    cpu_for(be, n, 0, (size_t)n * (size_t)dim * 2, add_rows, &t);
}

static void swiglu_rows(void *arg, int first, int last, int i_thread)
{
    const struct rows *t = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)t->dim;
        for (int i = 0; i < t->dim; i += VEC_N) {
            int n = t->dim - i;
            VEC g = vec_load_head(t->a + at + i, n), u = vec_load_head(t->w + at + i, n);
            VEC e = vec_exp2(vec_mul(g, vec_set(-VEC_LOG2E)));
            vec_store_head(t->y + at + i, n, vec_mul(vec_div(g, vec_add(vec_set(1.0f), e)), u));
        }
    }
}

static void swiglu(struct be *be, float *y, const float *gate, const float *up, int n, int dim)
{
    struct rows t = { .y = y, .a = gate, .w = up, .dim = dim };
    cpu_for(be, n, 0, (size_t)n * (size_t)dim * 8, swiglu_rows, &t);
}

/* ---- position ------------------------------------------------------------------------------------------------ */

struct rope {
    float *x;
    const float *cos, *sin, *norm;
    float eps;
    int n_heads, head_dim, half;
    bool half_split;
};

VEC_FN void rotate_split(float *x, const float *cos, const float *sin, int half)
{
    for (int i = 0; i < half; i += VEC_N) {
        int n = half - i;
        VEC a = vec_load_head(x + i, n), b = vec_load_head(x + half + i, n);
        VEC c = vec_load_head(cos + i, n), s = vec_load_head(sin + i, n);
        vec_store_head(x + i, n, vec_sub(vec_mul(a, c), vec_mul(b, s)));
        vec_store_head(x + half + i, n, vec_add(vec_mul(a, s), vec_mul(b, c)));
    }
}

VEC_FN void rotate_pairs(float *x, const float *cos, const float *sin, int half)
{
    int i = 0;
    for (; i + VEC_N / 2 <= half; i += VEC_N / 2) {
        VEC v = vec_load(x + 2 * i), c = vec_load_twice(cos + i), s = vec_load_twice(sin + i);
        vec_store(x + 2 * i, vec_sub_add(vec_mul(v, c), vec_mul(vec_swap_pairs(v), s)));
    }
    for (; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cos[i] - b * sin[i];
        x[2 * i + 1] = a * sin[i] + b * cos[i];
    }
}

static void rope_rows(void *arg, int first, int last, int i_thread)
{
    const struct rope *t = arg;
    (void)i_thread;
    for (int r = first; r < last; r++) {
        const float *cos = t->cos + (size_t)r * (size_t)t->half;
        const float *sin = t->sin + (size_t)r * (size_t)t->half;
        for (int h = 0; h < t->n_heads; h++) {
            float *x = t->x + ((size_t)r * (size_t)t->n_heads + (size_t)h) * (size_t)t->head_dim;
            if (t->norm)
                norm_row(x, x, NULL, t->norm, t->head_dim, t->eps);
            if (t->half_split)
                rotate_split(x, cos, sin, t->half);
            else
                rotate_pairs(x, cos, sin, t->half);
        }
    }
}

static void rope(struct be *be, float *x, const float *cos, const float *sin, const float *norm,
                 float eps, int n, int n_heads, int head_dim, int half, bool half_split)
{
    struct rope t = { .x = x,
                      .cos = cos,
                      .sin = sin,
                      .norm = norm,
                      .eps = eps,
                      .n_heads = n_heads,
                      .head_dim = head_dim,
                      .half = half,
                      .half_split = half_split };
    cpu_for(be, n, 0, (size_t)n * (size_t)(n_heads * head_dim) * 2, rope_rows, &t);
}

/* ---- cache ----------------------------------------------------------------------------------------------------- */

struct append {
    const struct be_kv *kv;
    const struct be_seq *seq;
    const float *k, *v;
};

/* n floats to 16 bits; dst has room up to a multiple of VEC_N. */
VEC_FN void narrow_row(enum kv_type type, uint16_t *dst, const float *src, int n)
{
    for (int i = 0; i < n; i += VEC_N) {
        VEC x = vec_load_head(src + i, n - i);
        if (type == KV_F16)
            vec_store_f16(dst + i, x);
        else
            vec_store_bf16(dst + i, x);
    }
}

VEC_FN void put_16(char *block, enum kv_type type, const float *k, const float *v, int dim,
                   int slot, bool last)
{
    uint16_t half[BE_HEAD_DIM_MAX];
    uint32_t *key = (uint32_t *)(void *)block;
    uint16_t *value = (uint16_t *)(void *)(block + kv_block_bytes(type, dim) / 2);
    narrow_row(type, half, k, dim);
    for (int i = 0; i < dim; i += 2) {
        uint32_t pair;
        __builtin_memcpy(&pair, half + i, sizeof(pair));
        key[kv_k_index(slot, i) / 2] = pair;
    }
    narrow_row(type, half, v, dim);
    for (int i = 0; i < dim; i++)
        value[kv_v_index(slot, i, dim)] = half[i];
    if (last && slot % 2 == 0)
        for (int i = 0; i < dim; i++)
            value[kv_v_index(slot + 1, i, dim)] = 0;
}

static void put_32(char *block, const float *k, const float *v, int dim, int slot, bool last)
{
    float *key = (float *)(void *)block, *value = key + KV_PAGE * dim;
    for (int i = 0; i < dim; i++) {
        key[kv_k_index(slot, i)] = k[i];
        value[kv_v_index(slot, i, dim)] = v[i];
        if (last && slot % 2 == 0)
            value[kv_v_index(slot + 1, i, dim)] = 0;
    }
}

static void append_rows(void *arg, int first, int end, int i_thread)
{
    const struct append *t = arg;
    const struct be_kv *kv = t->kv;
    (void)i_thread;
    for (int r = first; r < end; r++) {
        int at = t->seq->pos0 + r - t->seq->kv.wide_pos0, slot = at % KV_PAGE;
        size_t page = (size_t)t->seq->kv.wide[at / KV_PAGE], n_heads = (size_t)kv->n_kv_heads;
        bool last = r == t->seq->n_rows - 1;
        for (size_t h = 0; h < n_heads; h++) {
            char *block =
                (char *)kv->pool + (page * n_heads + h) * kv_block_bytes(kv->type, kv->head_dim);
            size_t row = ((size_t)(t->seq->row0 + r) * n_heads + h) * (size_t)kv->head_dim;
            if (kv->type == KV_F32)
                put_32(block, t->k + row, t->v + row, kv->head_dim, slot, last);
            else
                put_16(block, kv->type, t->k + row, t->v + row, kv->head_dim, slot, last);
        }
    }
}

static void kv_append(struct be *be, const struct be_kv *kv, const float *k, const float *v)
{
    for (int s = 0; s < kv->n_seqs; s++) {
        struct append t = { .kv = kv, .seq = &kv->seqs[s], .k = k, .v = v };
        size_t n = (size_t)t.seq->n_rows;
        cpu_for(be, t.seq->n_rows, 0, n * (size_t)(kv->n_kv_heads * kv->head_dim) * 8, append_rows,
                &t);
    }
}

static void fill_rows(struct be_ops *ops)
{
    ops->rmsnorm = rmsnorm;
    ops->add = add;
    ops->swiglu = swiglu;
    ops->rope = rope;
    ops->kv_append = kv_append;
}

#endif
