#include "tests/tools/elem.h"

#include <string.h>

#include "kernels/half.h"

void elem_store(enum kv_type type, void *at, size_t i, float x)
{
    uint16_t u = type == KV_BF16 ? half_to_bf16(x) : half_to_f16(x);
    size_t bytes = kv_elem_bytes(type);
    memcpy((char *)at + i * bytes, type == KV_F32 ? (void *)&x : (void *)&u, bytes);
}

float elem_load(enum kv_type type, const void *at, size_t i)
{
    float x;
    uint16_t u;
    memcpy(&u, (const char *)at + i * 2, sizeof u);
    if (type == KV_F32)
        memcpy(&x, (const char *)at + i * 4, sizeof x);
    else
        x = type == KV_BF16 ? half_from_bf16(u) : half_from_f16(u);
    return x;
}

float elem_rounded(enum kv_type type, float x)
{
    float y;
    elem_store(type, &y, 0, x);
    return elem_load(type, &y, 0);
}
