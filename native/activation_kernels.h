// The activations: value and slope of each, and the passes over values that apply them.
#pragma once

#include <cmath>

#include "kernels.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

// e**v to about 2 units in the last place: 2**n times a polynomial on [-ln 2 / 2, ln 2 / 2]
// (coefficients of Cephes' expf).
SMIDGEN_INLINE Vec exponential(const Vec& v) {
    Vec out;
    SMIDGEN_EACH {
        Floats x = v.part[p];
        x = x > 88.0f ? 88.0f - Floats{} : x;
        x = x < -87.0f ? -87.0f - Floats{} : x;
        const Floats scaled = x * 1.44269504088896341f;
        const Floats half = scaled < 0.0f ? -0.5f - Floats{} : 0.5f - Floats{};
        const Ints n = __builtin_convertvector(scaled + half, Ints);
        const Floats whole = __builtin_convertvector(n, Floats);
        const Floats r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
        Floats poly = r * 1.9875691500e-4f + 1.3981999507e-3f;
        poly = poly * r + 8.3334519073e-3f;
        poly = poly * r + 4.1665795894e-2f;
        poly = poly * r + 1.6666665459e-1f;
        poly = poly * r + 5.0000001201e-1f;
        poly = poly * (r * r) + r + 1.0f;
        const Ints power = (n + 127) << 23;
        Floats factor;
        std::memcpy(&factor, &power, sizeof factor);
        out.part[p] = poly * factor;
    }
    return out;
}

SMIDGEN_INLINE Vec logistic(const Vec& x) { return splat(1.0f) / (splat(1.0f) + exponential(x * -1.0f)); }

SMIDGEN_INLINE Vec hyperbolic_tangent(const Vec& x) { return logistic(x * 2.0f) * 2.0f - splat(1.0f); }

// One struct for each row of SMIDGEN_ACTIVATIONS: the function, and its derivative by x.
namespace activation {

struct relu {
    static SMIDGEN_INLINE Vec value(const ActivationLimits&, const Vec& x) { return max(x, zero()); }
    static SMIDGEN_INLINE Vec slope(const ActivationLimits&, const Vec& x) {
        return where_greater(x, zero(), splat(1.0f), zero());
    }
};

struct leaky_relu {
    static SMIDGEN_INLINE Vec value(const ActivationLimits& l, const Vec& x) {
        return where_greater(x, zero(), x, x * l.low);
    }
    static SMIDGEN_INLINE Vec slope(const ActivationLimits& l, const Vec& x) {
        return where_greater(x, zero(), splat(1.0f), splat(l.low));
    }
};

struct clamp {
    static SMIDGEN_INLINE Vec value(const ActivationLimits& l, const Vec& x) {
        return min(max(x, splat(l.low)), splat(l.high));
    }
    static SMIDGEN_INLINE Vec slope(const ActivationLimits& l, const Vec& x) {
        return where_greater(x, splat(l.low), where_greater(splat(l.high), x, splat(1.0f), zero()), zero());
    }
};

struct hardswish {
    static SMIDGEN_INLINE Vec value(const ActivationLimits&, const Vec& x) {
        return x * min(max(x + splat(3.0f), zero()), splat(6.0f)) * (1.0f / 6.0f);
    }
    static SMIDGEN_INLINE Vec slope(const ActivationLimits&, const Vec& x) {
        const Vec middle = (x * 2.0f + splat(3.0f)) * (1.0f / 6.0f);
        return where_greater(x, splat(-3.0f), where_greater(splat(3.0f), x, middle, splat(1.0f)), zero());
    }
};

// GELU by tanh: x (1 + tanh t) / 2, and (1 + tanh t) / 2 is logistic(2 t).
struct gelu {
    static SMIDGEN_INLINE Vec inner(const Vec& x) { return (x + x * x * x * 0.044715f) * 0.7978845608028654f; }
    static SMIDGEN_INLINE Vec value(const ActivationLimits&, const Vec& x) { return x * logistic(inner(x) * 2.0f); }
    static SMIDGEN_INLINE Vec slope(const ActivationLimits&, const Vec& x) {
        const Vec one = splat(1.0f);
        const Vec inner_slope = (one + x * x * (3.0f * 0.044715f)) * (2.0f * 0.7978845608028654f);
        const Vec s = logistic(inner(x) * 2.0f);
        return s + x * s * (one - s) * inner_slope;
    }
};

struct silu {
    static SMIDGEN_INLINE Vec value(const ActivationLimits&, const Vec& x) { return x * logistic(x); }
    static SMIDGEN_INLINE Vec slope(const ActivationLimits&, const Vec& x) {
        const Vec one = splat(1.0f), s = logistic(x);
        return s * (one + x * (one - s));
    }
};

struct sigmoid {
    static SMIDGEN_INLINE Vec value(const ActivationLimits&, const Vec& x) { return logistic(x); }
    static SMIDGEN_INLINE Vec slope(const ActivationLimits&, const Vec& x) {
        const Vec s = logistic(x);
        return s * (splat(1.0f) - s);
    }
};

struct tanh {
    static SMIDGEN_INLINE Vec value(const ActivationLimits&, const Vec& x) { return hyperbolic_tangent(x); }
    static SMIDGEN_INLINE Vec slope(const ActivationLimits&, const Vec& x) {
        const Vec t = hyperbolic_tangent(x);
        return splat(1.0f) - t * t;
    }
};

}  // namespace activation

template <class A>
void apply_forward(const ActivationLimits& limits, const float* x, float* y, int64_t pixels) {
    for (int64_t i = 0; i < pixels * LANES; i += LANES) store(y + i, A::value(limits, load(x + i)));
}

template <class A>
void apply_backward(const ActivationLimits& limits, const float* x, const float* dy, float* dx, int64_t pixels,
                    bool add) {
    for (int64_t i = 0; i < pixels * LANES; i += LANES) {
        Vec v = A::slope(limits, load(x + i)) * load(dy + i);
        if (add) v += load(dx + i);
        store(dx + i, v);
    }
}

inline void activation_forward(ActivationFunction function, const ActivationLimits& limits, const float* x, float* y,
                               int64_t pixels) {
    switch (function) {
#define SMIDGEN_CASE(name) \
    case ActivationFunction::name: return apply_forward<activation::name>(limits, x, y, pixels);
        SMIDGEN_ACTIVATIONS(SMIDGEN_CASE)
#undef SMIDGEN_CASE
    }
}

inline void activation_backward(ActivationFunction function, const ActivationLimits& limits, const float* x,
                                const float* dy, float* dx, int64_t pixels, bool add) {
    switch (function) {
#define SMIDGEN_CASE(name) \
    case ActivationFunction::name: return apply_backward<activation::name>(limits, x, dy, dx, pixels, add);
        SMIDGEN_ACTIVATIONS(SMIDGEN_CASE)
#undef SMIDGEN_CASE
    }
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
