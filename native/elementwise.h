// Passes over values that do little arithmetic: BatchNorm, pooling, sums, copies.
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

SMIDGEN_INLINE Vec quad_mean(const float* from, int64_t row, float scale, const Vec& shift, const Vec& floor) {
    const auto z = [&](int64_t at) SMIDGEN_LAMBDA { return max(load(from + at) * scale + shift, floor); };
    return ((z(0) + z(LANES)) + (z(row) + z(row + LANES))) * 0.25f;
}

// One channel of `norm_forward` with dropout.
inline void norm_dropout(const NormArgs& n, int channel, const float* y, float* a) {
    const int plane = n.shape.plane(), draws = (plane + 7) / 8;
    const float scale = n.scale[channel], more = kept_scale(n.dropped);
    const Vec shift = splat(n.shift[channel]), floor = splat(n.relu ? 0.0f : -INFINITY);
    uint16_t* mask = n.mask + static_cast<int64_t>(channel) * plane;
    const auto value = [&](int i) SMIDGEN_LAMBDA { return max(load(y + i * LANES) * scale + shift, floor) * more; };
    if (n.recompute) {
        for (int i = 0; i < plane; ++i) store(a + i * LANES, where_bits(mask[i], value(i)));
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
            mask[first + i] = bits_of(keep);
            store(a + (first + i) * LANES, where_kept(keep, value(first + i)));
        };
        if (plane - first >= 8)
            SMIDGEN_UNROLL for (int i = 0; i < 8; ++i) one(i);
        else
            for (int i = 0; i < plane - first; ++i) one(i);
    }
}

// Floats of a channel after pooling.
inline int64_t result_plane(const NormArgs& n) {
    const int64_t pixels = n.pool == PoolKind::None ? n.shape.plane() : (n.shape.height / 2) * (n.shape.width / 2);
    return pixels * LANES;
}

inline void norm_forward(const NormArgs& n, const float* y, float* a) {
    const int width = n.shape.width, height = n.shape.height, plane = n.shape.plane();
    y += n.first_channel * int64_t{plane} * LANES, a += n.first_channel * result_plane(n);
    for (int c = n.first_channel; c < n.end_channel; ++c, y += static_cast<int64_t>(plane) * LANES) {
        const float scale = n.scale[c];
        const Vec shift = splat(n.shift[c]), floor = splat(n.relu ? 0.0f : -INFINITY);
        if (n.pool != PoolKind::None) {
            const int64_t row = static_cast<int64_t>(width) * LANES;
            for (int v = 0; v + 1 < height; v += 2)
                for (int u = 0; u + 1 < width; u += 2, a += LANES) {
                    const float* at = y + v * row + u * LANES;
                    store(a, n.pool == PoolKind::Max ? max(Quad(at, row, scale, n.shift[c]).most, floor)
                                                     : quad_mean(at, row, scale, shift, floor));
                }
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
    y += n.first_channel * int64_t{plane} * LANES, da += n.first_channel * result_plane(n);
    for (int c = n.first_channel; c < n.end_channel; ++c, y += static_cast<int64_t>(plane) * LANES) {
        const float scale = n.scale[c];
        const Vec shift = splat(n.shift[c]), mean = splat(n.mean[c]);
        const Vec floor = splat(n.relu ? 0.0f : -INFINITY);
        const uint16_t* mask = n.mask + static_cast<int64_t>(c) * plane;
        Vec plain = zero(), product = zero();
        if (n.pool == PoolKind::Average) {
            for (int v = 0; v + 1 < height; v += 2) {
                Vec plains[4] = {zero(), zero(), zero(), zero()}, products[4] = {zero(), zero(), zero(), zero()};
                for (int u = 0; u + 1 < width; u += 2, da += LANES) {
                    const Vec share = load(da) * 0.25f;
                    SMIDGEN_UNROLL for (int i = 0; i < 4; ++i) {
                        const Vec value = load(y + (v + i / 2) * row + (u + i % 2) * LANES);
                        const Vec g = where_greater(value * scale + shift, floor, share, zero());
                        plains[i] += g;
                        products[i] += g * (value - mean);
                    }
                }
                plain += joined(plains);
                product += joined(products);
            }
        } else if (n.pool == PoolKind::Max) {
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
                    if (n.dropped) g = where_bits(mask[v * width + u], g * more);
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

// The gradient by the input of rows `first` to `end` of one channel, whose planes y and da are. put(place, value of
// y, gradient) takes each.
template <class Put>
SMIDGEN_INLINE void norm_gradient(const NormArgs& n, int channel, const float* y, const float* da, int first, int end,
                                  const Put& put) {
    const int width = n.shape.width, height = n.shape.height, plane = n.shape.plane();
    const int64_t row = static_cast<int64_t>(width) * LANES;
    const float scale = n.scale[channel], slope = n.slope[channel];
    const Vec shift = splat(n.shift[channel]), offset = splat(n.offset[channel]);
    const Vec floor = splat(n.relu ? 0.0f : -INFINITY);
    const auto give = [&](int64_t at, const Vec& value, const Vec& g) SMIDGEN_LAMBDA {
        put(at, value, g * scale + (value * slope + offset));
    };
    if (n.pool != PoolKind::None) {
        for (int v = first; v < end; ++v) {
            const bool covered = v < height / 2 * 2;
            const float* from = da + static_cast<int64_t>(v / 2) * (width / 2) * LANES;
            int u = 0;
            if (covered && n.pool == PoolKind::Average) {
                for (; u + 1 < width; u += 2, from += LANES) {
                    const Vec share = load(from) * 0.25f;
                    SMIDGEN_UNROLL for (int i = 0; i < 2; ++i) {
                        const int64_t at = v * row + (u + i) * LANES;
                        const Vec value = load(y + at);
                        give(at, value, where_greater(value * scale + shift, floor, share, zero()));
                    }
                }
            } else if (covered) {
                for (; u + 1 < width; u += 2, from += LANES) {
                    const int64_t at = v / 2 * 2 * row + u * LANES;
                    const Quad q(y + at, row, scale, n.shift[channel]);
                    Vec left = where_greater(q.most, floor, load(from), zero());
                    for (int i = 0; i < 4; ++i) {
                        const Vec mine = where_greater(q.most, q.z[i], zero(), left);
                        left = left - mine;
                        if (i / 2 == v % 2) give(at + (i / 2) * row + (i % 2) * LANES, q.y[i], mine);
                    }
                }
            }
            for (; u < width; ++u) give(v * row + u * LANES, load(y + v * row + u * LANES), zero());
        }
    } else if (n.dropped) {
        const uint16_t* mask = n.mask + static_cast<int64_t>(channel) * plane;
        const float more = kept_scale(n.dropped);
        for (int64_t i = first * width; i < end * width; ++i) {
            const Vec value = load(y + i * LANES);
            Vec g = where_bits(mask[i], load(da + i * LANES) * more);
            if (n.relu) g = where_greater(value * scale + shift, zero(), g, zero());
            give(i * LANES, value, g);
        }
    } else if (n.relu) {
        for (int64_t i = first * row; i < end * row; i += LANES) {
            const Vec value = load(y + i);
            give(i, value, where_greater(value * scale + shift, zero(), load(da + i), zero()));
        }
    } else {
        for (int64_t i = first * row; i < end * row; i += LANES) give(i, load(y + i), load(da + i));
    }
}

inline void norm_backward(const NormArgs& n, const float* y, const float* da, float* dy, bool add) {
    const int64_t plane = static_cast<int64_t>(n.shape.plane()) * LANES;
    const int64_t pooled = result_plane(n);
    const bool partial = n.images < LANES, plain = !partial && !add && !n.input_relu;
    const Vec valid = lane_mask(n.images);
    y += n.first_channel * plane, da += n.first_channel * pooled, dy += n.first_channel * plane;
    for (int c = n.first_channel; c < n.end_channel; ++c, y += plane, da += pooled, dy += plane) {
        if (plain) {
            norm_gradient(n, c, y, da, 0, n.shape.height,
                          [&](int64_t at, const Vec&, const Vec& d) SMIDGEN_LAMBDA { store(dy + at, d); });
            continue;
        }
        norm_gradient(n, c, y, da, 0, n.shape.height, [&](int64_t at, const Vec& value, Vec d) SMIDGEN_LAMBDA {
            if (n.input_relu) d = where_greater(value, zero(), d, zero());
            if (partial) d = d * valid;
            store(dy + at, add ? load(dy + at) + d : d);
        });
    }
}

// Calls f(output pixel, first row, end row, first column, end column) for each window, within a plane.
template <class F>
SMIDGEN_INLINE void each_window(const PoolGeometry& p, F f) {
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

inline void max_forward(const PoolGeometry& p, const float* x, float* y) {
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
inline bool tiles_image(const PoolGeometry& p) {
    return p.stride_height == p.kernel_height && p.stride_width == p.kernel_width && !p.padding_height &&
           !p.padding_width && p.output.height * p.kernel_height == p.input.height &&
           p.output.width * p.kernel_width == p.input.width;
}

inline void max_backward(const PoolGeometry& p, const float* x, const float* dy, float* dx, bool add) {
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

inline float window_share(const PoolGeometry& p, int rows, int columns) {
    return 1.0f / static_cast<float>(p.count_padding ? p.kernel_height * p.kernel_width : rows * columns);
}

inline void average_forward(const PoolGeometry& p, const float* x, float* y) {
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

inline void average_backward(const PoolGeometry& p, const float* dy, float* dx, bool add) {
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
