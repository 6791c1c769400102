// Sixteen floats, one for each image of a block: the only data type of the kernels.
//
// On a CPU with shorter registers they are several native vectors. A single 64-byte GCC vector
// would do in theory, but where the CPU lacks such registers GCC keeps it in memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "geometry.h"

#define SMIDGEN_INLINE inline __attribute__((always_inline))
#define SMIDGEN_LAMBDA __attribute__((always_inline))
#define SMIDGEN_UNROLL _Pragma("GCC unroll 16")

namespace smidgen {

constexpr int LANES = BLOCK;

namespace SMIDGEN_LEVEL {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int PARTS = LANES / WIDTH;

typedef float Floats __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t Words __attribute__((vector_size(WIDTH * 4)));

struct Vec {
    Floats part[PARTS];
};

#define SMIDGEN_EACH _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; ++p)

SMIDGEN_INLINE Vec load(const float* from) {
    Vec v;
    SMIDGEN_EACH v.part[p] = *reinterpret_cast<const Floats*>(from + p * WIDTH);
    return v;
}
SMIDGEN_INLINE void store(float* to, const Vec& v) {
    SMIDGEN_EACH *reinterpret_cast<Floats*>(to + p * WIDTH) = v.part[p];
}
SMIDGEN_INLINE Vec splat(float x) {
    Vec v;
    SMIDGEN_EACH v.part[p] = x - Floats{};
    return v;
}
SMIDGEN_INLINE Vec zero() { return splat(0.0f); }

#define SMIDGEN_BINARY(op)                                        \
    SMIDGEN_INLINE Vec operator op(const Vec& a, const Vec& b) {  \
        Vec v;                                                    \
        SMIDGEN_EACH v.part[p] = a.part[p] op b.part[p];          \
        return v;                                                 \
    }                                                             \
    SMIDGEN_INLINE Vec operator op(const Vec& a, float b) {       \
        Vec v;                                                    \
        SMIDGEN_EACH v.part[p] = a.part[p] op b;                  \
        return v;                                                 \
    }
SMIDGEN_BINARY(+)
SMIDGEN_BINARY(-)
SMIDGEN_BINARY(*)
SMIDGEN_BINARY(/)
#undef SMIDGEN_BINARY

SMIDGEN_INLINE Vec& operator+=(Vec& a, const Vec& b) { return a = a + b; }
SMIDGEN_INLINE Vec& operator*=(Vec& a, const Vec& b) { return a = a * b; }

// a > b ? x : y, lane by lane.
SMIDGEN_INLINE Vec where_greater(const Vec& a, const Vec& b, const Vec& x, const Vec& y) {
    Vec v;
    SMIDGEN_EACH v.part[p] = a.part[p] > b.part[p] ? x.part[p] : y.part[p];
    return v;
}
// Where `a` is NaN the result is NaN.
SMIDGEN_INLINE Vec max(const Vec& a, const Vec& b) { return where_greater(b, a, b, a); }
// Where either is NaN the result is NaN.
SMIDGEN_INLINE Vec max_or_nan(const Vec& a, const Vec& b) {
    Vec v = max(a, b);
    SMIDGEN_EACH v.part[p] = b.part[p] == b.part[p] ? v.part[p] : b.part[p];
    return v;
}
SMIDGEN_INLINE Vec min(const Vec& a, const Vec& b) { return where_greater(a, b, b, a); }

// Keeps a value in registers: the compiler would rather load it again for each use.
SMIDGEN_INLINE void in_registers(Vec& v) {
#if defined(__AVX512F__)
    SMIDGEN_EACH asm("" : "+v"(v.part[p]));
#elif defined(__x86_64__)
    SMIDGEN_EACH asm("" : "+x"(v.part[p]));
#elif defined(__aarch64__)
    SMIDGEN_EACH asm("" : "+w"(v.part[p]));
#else
    (void)v;
#endif
}
// An address of its own: the compiler would rather derive many from one another, and runs out of registers for them.
SMIDGEN_INLINE const float* apart(const float* address) {
    asm("" : "+r"(address));
    return address;
}

// Added in a fixed order, so the sum is the same on every instruction level.
SMIDGEN_INLINE float sum(const Vec& v) {
    float lane[LANES];
    std::memcpy(lane, &v, sizeof lane);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
