/* Words and types of CUDA C++: what marks functions, and small vectors with the alignment they have on a GPU. */
#ifndef WRING_TESTS_SIMT_TYPES_CUH
#define WRING_TESTS_SIMT_TYPES_CUH

#include <stddef.h>
#include <stdint.h>

#define __global__
#define __grid_constant__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n)    __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))

/* SIMT_VECTOR2(int2, int): the type int2 and make_int2(). */
#define SIMT_VECTOR2(name, type)                                                                   \
    struct alignas(2 * sizeof(type)) name {                                                        \
        type x, y;                                                                                 \
    };                                                                                             \
    static inline name make_##name(type x, type y)                                                 \
    {                                                                                              \
        return name{ x, y };                                                                       \
    }
#define SIMT_VECTOR3(name, type)                                                                   \
    struct name {                                                                                  \
        type x, y, z;                                                                              \
    };                                                                                             \
    static inline name make_##name(type x, type y, type z)                                         \
    {                                                                                              \
        return name{ x, y, z };                                                                    \
    }
#define SIMT_VECTOR4(name, type)                                                                   \
    struct alignas(sizeof(type) < 4 ? 4 * sizeof(type) : 16) name {                                \
        type x, y, z, w;                                                                           \
    };                                                                                             \
    static inline name make_##name(type x, type y, type z, type w)                                 \
    {                                                                                              \
        return name{ x, y, z, w };                                                                 \
    }

SIMT_VECTOR2(char2, signed char)
SIMT_VECTOR2(uchar2, unsigned char)
SIMT_VECTOR2(short2, short)
SIMT_VECTOR2(ushort2, unsigned short)
SIMT_VECTOR2(int2, int)
SIMT_VECTOR2(uint2, unsigned)
SIMT_VECTOR2(float2, float)
SIMT_VECTOR2(double2, double)
SIMT_VECTOR2(longlong2, long long)
SIMT_VECTOR2(ulonglong2, unsigned long long)
SIMT_VECTOR3(int3, int)
SIMT_VECTOR3(uint3, unsigned)
SIMT_VECTOR3(float3, float)
SIMT_VECTOR4(char4, signed char)
SIMT_VECTOR4(uchar4, unsigned char)
SIMT_VECTOR4(short4, short)
SIMT_VECTOR4(ushort4, unsigned short)
SIMT_VECTOR4(int4, int)
SIMT_VECTOR4(uint4, unsigned)
SIMT_VECTOR4(float4, float)

#undef SIMT_VECTOR2
#undef SIMT_VECTOR3
#undef SIMT_VECTOR4

struct dim3 {
    unsigned x, y, z;

    constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz)
    {
    }
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z)
    {
    }
    constexpr operator uint3() const
    {
        return uint3{ x, y, z };
    }
};

#endif
