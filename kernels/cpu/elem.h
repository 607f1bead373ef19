/* One element of the KV cache, or all of a slot's, whatever their type: for plain C. */
#ifndef WRING_KERNELS_CPU_ELEM_H
#define WRING_KERNELS_CPU_ELEM_H

#include "kernels/backend.h"
#include "kernels/half.h"

static inline float kv_get(enum kv_type type, const void *p, size_t i)
{
    switch (type) {
    case KV_F16: return half_from_f16(((const uint16_t *)p)[i]);
    case KV_BF16: return half_from_bf16(((const uint16_t *)p)[i]);
    case KV_F32:
    case KV_TYPE_N: break;
    }
    return ((const float *)p)[i];
}

static inline void kv_put(enum kv_type type, void *p, size_t i, float f)
{
    switch (type) {
    case KV_F16: ((uint16_t *)p)[i] = half_to_f16(half_within_f16(f)); return;
    case KV_BF16: ((uint16_t *)p)[i] = half_to_bf16(f); return;
    case KV_F32:
    case KV_TYPE_N: break;
    }
    ((float *)p)[i] = f;
}

/* A slot's elements, wherever it lies. */
struct kv_slot_at {
    const void *block;
    const float *side; /* of a q8 page; NULL: elements are of the cache's type */
    enum kv_type type;
    int slot, dim; /* slot of the page */
};

static inline float kv_key_at(const struct kv_slot_at *s, int i)
{
    if (s->side == NULL)
        return kv_get(s->type, s->block, kv_k_index(s->slot, i));
    return (float)((const int8_t *)s->block)[kv_k_index_q8(s->slot, i)] *
           s->side[KV_PAGE_Q8 + s->slot];
}

static inline float kv_value_at(const struct kv_slot_at *s, int i)
{
    size_t at = kv_v_index(s->slot, i, s->dim);
    const char *value = (const char *)s->block + kv_block_bytes(s->type, s->dim) / 2;
    if (s->side == NULL)
        return kv_get(s->type, value, at);
    return (float)((const int8_t *)value)[at] * s->side[2 * KV_PAGE_Q8 + s->slot];
}

/* A slot's key and value, [dim] each; either may be NULL. The same numbers as element by element. */
void kv_slot_floats(const struct kv_slot_at *s, float *k, float *v);

#endif
