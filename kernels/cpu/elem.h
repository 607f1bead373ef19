/* One element of the KV cache, whatever its type: for plain C. */
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
    case KV_F16: ((uint16_t *)p)[i] = half_to_f16(f); return;
    case KV_BF16: ((uint16_t *)p)[i] = half_to_bf16(f); return;
    case KV_F32:
    case KV_TYPE_N: break;
    }
    ((float *)p)[i] = f;
}

#endif
