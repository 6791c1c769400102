// Passes over values that do little arithmetic: BatchNorm, activations, pooling, dropout, copies.
#pragma once

#include <algorithm>
#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "moments.h"
#include "random.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

// dy = 0 where y, which a ReLU gave, is not above 0.
inline void relu_mask(const float* y, float* dy, int64_t pixels) {
    for (int64_t i = 0; i < pixels * LANES; i += LANES)
        store(dy + i, where_greater(load(y + i), zero(), load(dy + i), zero()));
}

inline Vec lane_mask(int images) {
    float lanes[LANES];
    for (int i = 0; i < LANES; ++i) lanes[i] = i < images ? 1.0f : 0.0f;
    Vec v;
    std::memcpy(&v, lanes, sizeof lanes);
    return v;
}

// The four z of a pooling window, and the greatest.
struct Quad {
    Vec y[4], z[4], most;
    SMIDGEN_INLINE Quad(const float* from, int64_t row, float scale, float shift) {
        y[0] = load(from);
        y[1] = load(from + LANES);
        y[2] = load(from + row);
        y[3] = load(from + row + LANES);
        for (int i = 0; i < 4; ++i) z[i] = y[i] * scale + splat(shift);
        most = max(max(z[0], z[1]), max(z[2], z[3]));
    }
};

// One channel of `norm_forward` with dropout.
inline void norm_dropout(const NormArgs& n, int channel, const float* y, float* a) {
    const int plane = n.shape.plane(), draws = (plane + 7) / 8;
    const float scale = n.scale[channel], more = kept_scale(n.dropped);
    const Vec shift = splat(n.shift[channel]), floor = splat(n.relu ? 0.0f : -INFINITY);
    uint16_t* kept = n.kept + static_cast<int64_t>(channel) * plane;
    const auto value = [&](int i) SMIDGEN_LAMBDA { return max(load(y + i * LANES) * scale + shift, floor) * more; };
    if (n.again) {
        for (int i = 0; i < plane; ++i) store(a + i * LANES, where_bits(kept[i], value(i)));
        return;
    }
    const Words least = static_cast<uint32_t>(n.dropped) - Words{};
    for (int first = 0; first < plane; first += 8) {
        VecWords words[4];
        philox(n.key, static_cast<uint32_t>(channel * draws + first / 8), static_cast<uint32_t>(n.first_image),
               static_cast<uint32_t>(n.layer), words);
        const auto one = [&](int i) SMIDGEN_LAMBDA {
            Ints keep[PARTS];
            decide(words, i, least, keep);
            kept[first + i] = bits_of(keep);
            store(a + (first + i) * LANES, where_kept(keep, value(first + i)));
        };
        if (plane - first >= 8)
            SMIDGEN_UNROLL for (int i = 0; i < 8; ++i) one(i);
        else
            for (int i = 0; i < plane - first; ++i) one(i);
    }
}

inline void norm_forward(const NormArgs& n, const float* y, float* a) {
    const int width = n.shape.width, height = n.shape.height, plane = n.shape.plane();
    for (int c = 0; c < n.shape.channels; ++c, y += static_cast<int64_t>(plane) * LANES) {
        const float scale = n.scale[c];
        const Vec shift = splat(n.shift[c]), floor = splat(n.relu ? 0.0f : -INFINITY);
        if (n.pool) {
            const int64_t row = static_cast<int64_t>(width) * LANES;
            for (int v = 0; v + 1 < height; v += 2)
                for (int u = 0; u + 1 < width; u += 2, a += LANES)
                    store(a, max(Quad(y + v * row + u * LANES, row, scale, n.shift[c]).most, floor));
        } else if (n.dropped) {
            norm_dropout(n, c, y, a);
            a += static_cast<int64_t>(plane) * LANES;
        } else if (n.relu) {
            for (int i = 0; i < plane; ++i, a += LANES) store(a, max(load(y + i * LANES) * scale + shift, zero()));
        } else {
            for (int i = 0; i < plane; ++i, a += LANES) store(a, load(y + i * LANES) * scale + shift);
        }
    }
}

inline void norm_sums(const NormArgs& n, const float* y, const float* da, double* sums) {
    const float more = kept_scale(n.dropped);
    const int width = n.shape.width, height = n.shape.height, plane = n.shape.plane();
    const int64_t row = static_cast<int64_t>(width) * LANES;
    for (int c = 0; c < n.shape.channels; ++c, y += static_cast<int64_t>(plane) * LANES) {
        const float scale = n.scale[c];
        const Vec shift = splat(n.shift[c]), mean = splat(n.mean[c]);
        const Vec floor = splat(n.relu ? 0.0f : -INFINITY);
        const uint16_t* kept = n.kept + static_cast<int64_t>(c) * plane;
        Vec plain = zero(), product = zero();
        if (n.pool) {
            for (int v = 0; v + 1 < height; v += 2) {
                Vec row_plain = zero(), row_product = zero();
                for (int u = 0; u + 1 < width; u += 2, da += LANES) {
                    const Quad q(y + v * row + u * LANES, row, scale, n.shift[c]);
                    const Vec g = where_greater(q.most, floor, load(da), zero());
                    // The first of the greatest, as in PyTorch.
                    Vec at = q.y[3];
                    for (int i = 2; i >= 0; --i) at = where_greater(q.most, q.z[i], at, q.y[i]);
                    row_plain += g;
                    row_product += g * (at - mean);
                }
                plain += row_plain;
                product += row_product;
            }
        } else {
            for (int v = 0; v < height; ++v) {
                Vec plains[4] = {zero(), zero(), zero(), zero()}, products[4] = {zero(), zero(), zero(), zero()};
                const float* from = y + v * row;
                in_turn(width, [&](int u, int k) SMIDGEN_LAMBDA {
                    const Vec value = load(from + u * LANES);
                    Vec g = load(da + u * LANES);
                    if (n.dropped) g = where_bits(kept[v * width + u], g * more);
                    if (n.relu) g = where_greater(value * scale + shift, zero(), g, zero());
                    plains[k] += g;
                    products[k] += g * (value - mean);
                });
                da += row;
                plain += joined(plains);
                product += joined(products);
            }
        }
        sums[2 * c] = sum(plain);
        sums[2 * c + 1] = sum(product);
    }
}

inline void norm_backward(const NormArgs& n, const float* y, const float* da, float* dy, bool add) {
    const int width = n.shape.width, height = n.shape.height, plane = n.shape.plane();
    const int64_t row = static_cast<int64_t>(width) * LANES;
    const bool partial = n.images < LANES;
    const Vec valid = lane_mask(n.images);
    const float more = kept_scale(n.dropped);
    for (int c = 0; c < n.shape.channels; ++c) {
        const float scale = n.scale[c], slope = n.slope[c];
        const Vec shift = splat(n.shift[c]), offset = splat(n.offset[c]), floor = splat(n.relu ? 0.0f : -INFINITY);
        const auto put = [&](const float* value, float* to, Vec d) SMIDGEN_LAMBDA {
            if (n.input_relu) d = where_greater(load(value), zero(), d, zero());
            if (partial) d = d * valid;
            store(to, add ? load(to) + d : d);
        };
        if (n.pool) {
            for (int v = 0; v + 1 < height; v += 2)
                for (int u = 0; u + 1 < width; u += 2, da += LANES) {
                    const int64_t at = v * row + u * LANES;
                    const Quad q(y + at, row, scale, n.shift[c]);
                    Vec left = where_greater(q.most, floor, load(da), zero()) * scale;
                    for (int i = 0; i < 4; ++i) {
                        const Vec mine = where_greater(q.most, q.z[i], zero(), left);
                        left = left - mine;
                        const int64_t place = at + (i / 2) * row + (i % 2) * LANES;
                        put(y + place, dy + place, q.y[i] * slope + offset + mine);
                    }
                }
            // What no window covers.
            for (int v = 0; v < height; ++v)
                for (int u = v < height / 2 * 2 ? width / 2 * 2 : 0; u < width; ++u) {
                    const int64_t place = v * row + u * LANES;
                    put(y + place, dy + place, load(y + place) * slope + offset);
                }
        } else if (n.dropped) {
            const uint16_t* kept = n.kept + static_cast<int64_t>(c) * plane;
            for (int64_t i = 0; i < plane; ++i, da += LANES) {
                const Vec value = load(y + i * LANES);
                Vec g = where_bits(kept[i], load(da) * more);
                if (n.relu) g = where_greater(value * scale + shift, zero(), g, zero());
                put(y + i * LANES, dy + i * LANES, g * scale + (value * slope + offset));
            }
        } else if (n.relu && !partial && !add && !n.input_relu) {
            for (int64_t i = 0; i < static_cast<int64_t>(plane) * LANES; i += LANES, da += LANES) {
                const Vec value = load(y + i);
                const Vec g = where_greater(value * scale + shift, zero(), load(da), zero());
                store(dy + i, g * scale + (value * slope + offset));
            }
        } else {
            for (int64_t i = 0; i < static_cast<int64_t>(plane) * LANES; i += LANES, da += LANES) {
                const Vec value = load(y + i);
                Vec g = load(da);
                if (n.relu) g = where_greater(value * scale + shift, zero(), g, zero());
                put(y + i, dy + i, g * scale + (value * slope + offset));
            }
        }
        y += static_cast<int64_t>(plane) * LANES;
        dy += static_cast<int64_t>(plane) * LANES;
    }
}

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

SMIDGEN_INLINE Vec sigmoid(const Vec& x) { return splat(1.0f) / (splat(1.0f) + exponential(x * -1.0f)); }

SMIDGEN_INLINE Vec hyperbolic_tangent(const Vec& x) { return sigmoid(x * 2.0f) * 2.0f - splat(1.0f); }

// The value of an activation and its derivative.
template <Activation A>
SMIDGEN_INLINE Vec activation(const ActivationKind& k, const Vec& x) {
    if constexpr (A == Activation::Relu) return max(x, zero());
    if constexpr (A == Activation::LeakyRelu) return where_greater(x, zero(), x, x * k.low);
    if constexpr (A == Activation::Clamp) return min(max(x, splat(k.low)), splat(k.high));
    if constexpr (A == Activation::HardSwish)
        return x * min(max(x + splat(3.0f), zero()), splat(6.0f)) * (1.0f / 6.0f);
    if constexpr (A == Activation::Gelu) {
        const Vec inner = (x + x * x * x * 0.044715f) * 0.7978845608028654f;
        return x * sigmoid(inner * 2.0f);  // (1 + tanh t) / 2 is sigmoid(2 t)
    }
    if constexpr (A == Activation::Silu) return x * sigmoid(x);
    if constexpr (A == Activation::Sigmoid) return sigmoid(x);
    if constexpr (A == Activation::Tanh) return hyperbolic_tangent(x);
    return x;
}

template <Activation A>
SMIDGEN_INLINE Vec activation_slope(const ActivationKind& k, const Vec& x) {
    const Vec one = splat(1.0f);
    if constexpr (A == Activation::Relu) return where_greater(x, zero(), one, zero());
    if constexpr (A == Activation::LeakyRelu) return where_greater(x, zero(), one, splat(k.low));
    if constexpr (A == Activation::Clamp)
        return where_greater(x, splat(k.low), where_greater(splat(k.high), x, one, zero()), zero());
    if constexpr (A == Activation::HardSwish) {
        const Vec middle = (x * 2.0f + splat(3.0f)) * (1.0f / 6.0f);
        return where_greater(x, splat(-3.0f), where_greater(splat(3.0f), x, middle, one), zero());
    }
    if constexpr (A == Activation::Gelu) {
        const Vec inner = (x + x * x * x * 0.044715f) * 0.7978845608028654f;
        const Vec slope = (one + x * x * (3.0f * 0.044715f)) * (2.0f * 0.7978845608028654f);
        const Vec s = sigmoid(inner * 2.0f);
        return s + x * s * (one - s) * slope;
    }
    if constexpr (A == Activation::Silu) {
        const Vec s = sigmoid(x);
        return s * (one + x * (one - s));
    }
    if constexpr (A == Activation::Sigmoid) {
        const Vec s = sigmoid(x);
        return s * (one - s);
    }
    if constexpr (A == Activation::Tanh) {
        const Vec t = hyperbolic_tangent(x);
        return one - t * t;
    }
    return one;
}

template <Activation A>
void each_activation(const ActivationKind& k, const float* x, const float* dy, float* to, int64_t pixels, bool add) {
    for (int64_t i = 0; i < pixels * LANES; i += LANES) {
        Vec v = dy ? activation_slope<A>(k, load(x + i)) * load(dy + i) : activation<A>(k, load(x + i));
        if (add) v += load(to + i);
        store(to + i, v);
    }
}

inline void any_activation(ActivationKind k, const float* x, const float* dy, float* to, int64_t pixels, bool add) {
    switch (k.which) {
        case Activation::None: return each_activation<Activation::None>(k, x, dy, to, pixels, add);
        case Activation::Relu: return each_activation<Activation::Relu>(k, x, dy, to, pixels, add);
        case Activation::LeakyRelu: return each_activation<Activation::LeakyRelu>(k, x, dy, to, pixels, add);
        case Activation::Clamp: return each_activation<Activation::Clamp>(k, x, dy, to, pixels, add);
        case Activation::HardSwish: return each_activation<Activation::HardSwish>(k, x, dy, to, pixels, add);
        case Activation::Gelu: return each_activation<Activation::Gelu>(k, x, dy, to, pixels, add);
        case Activation::Silu: return each_activation<Activation::Silu>(k, x, dy, to, pixels, add);
        case Activation::Sigmoid: return each_activation<Activation::Sigmoid>(k, x, dy, to, pixels, add);
        case Activation::Tanh: return each_activation<Activation::Tanh>(k, x, dy, to, pixels, add);
    }
}

inline void activation_forward(ActivationKind k, const float* x, float* y, int64_t pixels) {
    any_activation(k, x, nullptr, y, pixels, false);
}

inline void activation_backward(ActivationKind k, const float* x, const float* dy, float* dx, int64_t pixels,
                                bool add) {
    any_activation(k, x, dy, dx, pixels, add);
}

// Calls f(output pixel, first row, end row, first column, end column) for each window, within a plane.
template <class F>
SMIDGEN_INLINE void each_window(const Pool& p, F f) {
    for (int y = 0; y < p.output.height; ++y) {
        const int top = y * p.stride_height - p.padding_height;
        const int first_row = std::max(top, 0), end_row = std::min(top + p.kernel_height, p.input.height);
        for (int x = 0; x < p.output.width; ++x) {
            const int left = x * p.stride_width - p.padding_width;
            f(y * p.output.width + x, first_row, end_row, std::max(left, 0),
              std::min(left + p.kernel_width, p.input.width));
        }
    }
}

inline void clear(float* to, int64_t pixels) { std::memset(to, 0, static_cast<size_t>(pixels) * LANES * sizeof(float)); }

inline void max_forward(const Pool& p, const float* x, float* y) {
    for (int c = 0; c < p.input.channels; ++c) {
        each_window(p, [&](int to, int first_row, int end_row, int first_column, int end_column) {
            Vec most = splat(-INFINITY);
            for (int v = first_row; v < end_row; ++v)
                for (int u = first_column; u < end_column; ++u)
                    most = max_or_nan(most, load(x + (v * p.input.width + u) * LANES));
            store(y + to * LANES, most);
        });
        x += static_cast<int64_t>(p.input.plane()) * LANES;
        y += static_cast<int64_t>(p.output.plane()) * LANES;
    }
}

// Windows that neither overlap nor leave the image: each gradient is written once.
inline bool tiles_image(const Pool& p) {
    return p.stride_height == p.kernel_height && p.stride_width == p.kernel_width && !p.padding_height &&
           !p.padding_width && p.output.height * p.kernel_height == p.input.height &&
           p.output.width * p.kernel_width == p.input.width;
}

inline void max_backward(const Pool& p, const float* x, const float* dy, float* dx, bool add) {
    if (tiles_image(p) && !add && p.kernel_height == 2 && p.kernel_width == 2) {
        const int64_t row = static_cast<int64_t>(p.input.width) * LANES;
        for (int y = 0; y < p.input.channels * p.output.height; ++y, x += 2 * row, dx += 2 * row)
            for (int u = 0; u < p.output.width; ++u, dy += LANES) {
                const Quad q(x + 2 * u * LANES, row, 1.0f, 0.0f);
                Vec left = load(dy);
                SMIDGEN_UNROLL for (int i = 0; i < 4; ++i) {
                    const Vec mine = where_greater(q.most, q.y[i], zero(), left);
                    left = left - mine;
                    store(dx + (i / 2) * row + (2 * u + i % 2) * LANES, mine);
                }
            }
        return;
    }
    if (!add) clear(dx, p.input.pixels());
    for (int c = 0; c < p.input.channels; ++c) {
        each_window(p, [&](int from, int first_row, int end_row, int first_column, int end_column) {
            Vec most = splat(-INFINITY);
            for (int v = first_row; v < end_row; ++v)
                for (int u = first_column; u < end_column; ++u)
                    most = max_or_nan(most, load(x + (v * p.input.width + u) * LANES));
            // The gradient goes to the first of the greatest, as in PyTorch.
            Vec left = load(dy + from * LANES);
            for (int v = first_row; v < end_row; ++v)
                for (int u = first_column; u < end_column; ++u) {
                    const int at = (v * p.input.width + u) * LANES;
                    const Vec mine = where_greater(most, load(x + at), zero(), left);
                    left = left - mine;
                    store(dx + at, load(dx + at) + mine);
                }
        });
        x += static_cast<int64_t>(p.input.plane()) * LANES;
        dx += static_cast<int64_t>(p.input.plane()) * LANES;
        dy += static_cast<int64_t>(p.output.plane()) * LANES;
    }
}

inline float window_share(const Pool& p, int rows, int columns) {
    return 1.0f / static_cast<float>(p.count_padding ? p.kernel_height * p.kernel_width : rows * columns);
}

inline void average_forward(const Pool& p, const float* x, float* y) {
    for (int c = 0; c < p.input.channels; ++c) {
        each_window(p, [&](int to, int first_row, int end_row, int first_column, int end_column) {
            Vec total = zero();
            for (int v = first_row; v < end_row; ++v) {
                Vec row = zero();
                for (int u = first_column; u < end_column; ++u) row += load(x + (v * p.input.width + u) * LANES);
                total += row;
            }
            store(y + to * LANES, total * window_share(p, end_row - first_row, end_column - first_column));
        });
        x += static_cast<int64_t>(p.input.plane()) * LANES;
        y += static_cast<int64_t>(p.output.plane()) * LANES;
    }
}

inline void average_backward(const Pool& p, const float* dy, float* dx, bool add) {
    if (!add) clear(dx, p.input.pixels());
    for (int c = 0; c < p.input.channels; ++c) {
        each_window(p, [&](int from, int first_row, int end_row, int first_column, int end_column) {
            const Vec g = load(dy + from * LANES) * window_share(p, end_row - first_row, end_column - first_column);
            for (int v = first_row; v < end_row; ++v)
                for (int u = first_column; u < end_column; ++u) {
                    float* at = dx + (v * p.input.width + u) * LANES;
                    store(at, load(at) + g);
                }
        });
        dx += static_cast<int64_t>(p.input.plane()) * LANES;
        dy += static_cast<int64_t>(p.output.plane()) * LANES;
    }
}

inline void sum_values(const float* a, const float* b, float* y, int64_t pixels) {
    for (int64_t i = 0; i < pixels * LANES; i += LANES) store(y + i, load(a + i) + load(b + i));
}

inline void copy_values(const float* x, float* y, int64_t pixels, bool add) {
    if (add) return sum_values(x, y, y, pixels);
    std::memcpy(y, x, static_cast<size_t>(pixels) * LANES * sizeof(float));
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
