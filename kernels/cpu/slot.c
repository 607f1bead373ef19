/* Whole slots: read as floats, and written to pages (kernels/probe.h).
 *
 * A slot's elements lie apart, those of its key in pairs between its neighbours' pairs, those of its value between the elements
 * of one neighbour. So rows are picked up and put down by themselves and converted side by side, which is vector code: asking
 * each element where and what it is took a fifth of a pressing during decode.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/elem.h"
#include "kernels/probe.h"

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* elem, the bytes of an element, and page, its slots, are constants where this is called: a pair is one move. */
static inline void pick_key(void *row, const struct kv_slot_at *s, int page, size_t elem)
{
    const char *at = (const char *)s->block + (size_t)s->slot * 2 * elem;
    for (int i = 0; i < s->dim; i += 2, at += (size_t)page * 2 * elem)
        memcpy((char *)row + (size_t)i * elem, at, 2 * elem);
}

/* The first element of a slot's value: element i is 2 i further. */
static const void *value_of(const struct kv_slot_at *s, size_t elem)
{
    const char *values = (const char *)s->block + kv_block_bytes(s->type, s->dim) / 2;
    return values + kv_v_index(s->slot, 0, s->dim) * elem;
}

static void read_q8(const struct kv_slot_at *s, float *k, float *v)
{
    int8_t row[BE_HEAD_DIM_MAX];
    const int8_t *value = value_of(s, 1);
    float k_scale = s->side[KV_PAGE_Q8 + s->slot], v_scale = s->side[2 * KV_PAGE_Q8 + s->slot];
    if (k != NULL)
        pick_key(row, s, KV_PAGE_Q8, 1);
    for (int i = 0; k != NULL && i < s->dim; i++)
        k[i] = (float)row[i] * k_scale;
    for (int i = 0; v != NULL && i < s->dim; i++)
        v[i] = (float)value[2 * i] * v_scale;
}

static void read_halves(const struct kv_slot_at *s, float *k, float *v)
{
    uint16_t row[BE_HEAD_DIM_MAX];
    const uint16_t *value = value_of(s, 2);
    if (k != NULL) {
        pick_key(row, s, KV_PAGE, 2);
        probe_floats(s->type, k, row, s->dim);
    }
    if (v != NULL) {
        for (int i = 0; i < s->dim; i++)
            row[i] = value[2 * i];
        probe_floats(s->type, v, row, s->dim);
    }
}

static void read_f32(const struct kv_slot_at *s, float *k, float *v)
{
    const float *value = value_of(s, 4);
    if (k != NULL)
        pick_key(k, s, KV_PAGE, 4);
    for (int i = 0; v != NULL && i < s->dim; i++)
        v[i] = value[2 * i];
}

void kv_slot_floats(const struct kv_slot_at *s, float *k, float *v)
{
    if (s->side != NULL)
        read_q8(s, k, v);
    else if (s->type == KV_F32)
        read_f32(s, k, v);
    else
        read_halves(s, k, v);
}

void probe_floats(enum kv_type type, float *to, const void *from, int n)
{
    const uint16_t *half = from;
    if (type == KV_F32)
        memcpy(to, from, (size_t)n * sizeof *to);
    else if (type == KV_F16)
        for (int i = 0; i < n; i++)
            to[i] = half_from_f16(half[i]);
    else
        for (int i = 0; i < n; i++)
            to[i] = half_from_bf16(half[i]);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static inline void put_key(void *keys, int slot, const void *row, int dim, int page, size_t elem)
{
    char *at = (char *)keys + (size_t)slot * 2 * elem;
    for (int i = 0; i < dim; i += 2, at += (size_t)page * 2 * elem)
        memcpy(at, (const char *)row + (size_t)i * elem, 2 * elem);
}

static void to_halves(enum kv_type type, uint16_t *to, const float *from, int n)
{
    if (type == KV_F16)
        for (int i = 0; i < n; i++)
            to[i] = half_to_f16(from[i]);
    else
        for (int i = 0; i < n; i++)
            to[i] = half_to_bf16(from[i]);
}

static void write_halves(uint16_t *block, enum kv_type type, int dim, const float *k,
                         const float *v, int n)
{
    uint16_t *value = block + (size_t)KV_PAGE * (size_t)dim, row[BE_HEAD_DIM_MAX];
    for (int t = 0; t < n; t++) {
        size_t from = (size_t)t * (size_t)dim;
        to_halves(type, row, k + from, dim);
        put_key(block, t, row, dim, KV_PAGE, 2);
        to_halves(type, row, v + from, dim);
        for (int i = 0; i < dim; i++)
            value[kv_v_index(t, i, dim)] = row[i];
    }
}

static void write_f32(float *block, int dim, const float *k, const float *v, int n)
{
    float *value = block + (size_t)KV_PAGE * (size_t)dim;
    for (int t = 0; t < n; t++) {
        size_t from = (size_t)t * (size_t)dim;
        put_key(block, t, k + from, dim, KV_PAGE, 4);
        for (int i = 0; i < dim; i++)
            value[kv_v_index(t, i, dim)] = v[from + (size_t)i];
    }
}

void probe_write(void *block, enum kv_type type, int dim, const float *k, const float *v, int n)
{
    memset(block, 0, kv_block_bytes(type, dim));
    if (type == KV_F32)
        write_f32(block, dim, k, v, n);
    else
        write_halves(block, type, dim, k, v, n);
}

/* |x| as a whole number, which compares as |x| does, with NaN above infinity. */
static int32_t size_bits(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & INT32_MAX;
}

/* The scale of n elements, see probe_write_q8. Maxima side by side, which the compiler keeps in registers. */
static float scale_of(const float *x, int n)
{
    enum { LANES = 8 };
    union {
        float f;
        int32_t bits;
    } s = { 0 };
    int32_t most[LANES] = { 0 };
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            most[j] = size_bits(x[i + j]) > most[j] ? size_bits(x[i + j]) : most[j];
    for (; i < n; i++)
        most[0] = size_bits(x[i]) > most[0] ? size_bits(x[i]) : most[0];
    for (int j = 0; j < LANES; j++)
        s.bits = most[j] > s.bits ? most[j] : s.bits;
    if (!(s.f < INFINITY))
        return NAN;
    s.f /= 127;
    s.bits = (s.bits + 0xff) & ~0xff;
    return s.f;
}

/* out[n] = x / scale, rounded to nearest even; 0 where there is nothing to tell apart, or NaN by its scale. */
static void numbers_of(int8_t *out, const float *x, float scale, int n)
{
    const float whole = 0x1.8p23f; /* beside it a float has no fraction */
    for (int i = 0; i < n; i++) {
        float r = x[i] / scale + whole - whole;
        out[i] = (int8_t)(fabsf(r) <= 127 ? r : 0);
    }
}

void probe_write_q8(void *block, float *side, int dim, const float *k, const float *v, int n)
{
    int8_t *values = (int8_t *)block + (size_t)KV_PAGE_Q8 * (size_t)dim, row[BE_HEAD_DIM_MAX];
    memset(side, 0, kv_side_floats(KV_NARROW_Q8) * sizeof *side);
    memset(block, 0, 2 * (size_t)KV_PAGE_Q8 * (size_t)dim);
    for (int t = 0; t < n; t++) {
        const float *kt = k + (size_t)t * (size_t)dim, *vt = v + (size_t)t * (size_t)dim;
        float ks = side[KV_PAGE_Q8 + t] = scale_of(kt, dim);
        float vs = side[2 * KV_PAGE_Q8 + t] = scale_of(vt, dim);
        numbers_of(row, kt, ks, dim);
        put_key(block, t, row, dim, KV_PAGE_Q8, 1);
        numbers_of(row, vt, vs, dim);
        for (int i = 0; i < dim; i++)
            values[kv_v_index(t, i, dim)] = row[i];
    }
}
