// Some rows of a channel: of the input, as BatchNorm and ReLU make it; of the gradient by the output, as BatchNorm, ReLU
// and pooling make it; of the gradient by the input, and what BatchNorm needs of it.
#pragma once

#include <cstring>

#include "elementwise.h"
#include "kernels.h"
#include "moments.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

// Rows of one channel: a pixel, and the next row's.
struct Rows {
    float* first;
    int64_t next;  // floats
};

// Asks for a pixel that is read, or written, soon. Where it lies need not exist.
SMIDGEN_INLINE void read_soon(const float* at) { __builtin_prefetch(at, 0); }
SMIDGEN_INLINE void write_soon(const float* at) { __builtin_prefetch(at, 1); }

// An odd number of cache lines: channels so far apart do not compete for the same sets of the cache.
inline int64_t channel_floats(int pixels) { return static_cast<int64_t>(pixels | 1) * LANES; }

// What a row of the input is made of before anything else: BatchNorm and ReLU, if there are.
struct Made {
    bool plain = true;
    bool relu = false;
    float scale = 1.0f, shift = 0.0f;
    Made(const NormArgs* n, int channel) {
        if (!n) return;
        plain = false;
        relu = n->relu;
        scale = n->scale[channel];
        shift = n->shift[channel];
    }
};

inline void make_pixels(const Made& made, const float* from, float* to, int pixels) {
    if (made.plain) {
        std::memcpy(to, from, static_cast<size_t>(pixels) * LANES * sizeof(float));
        return;
    }
    const float scale = made.scale;
    const Vec shift = splat(made.shift);
    if (made.relu)
        for (int i = 0; i < pixels; ++i) store(to + i * LANES, max(load(from + i * LANES) * scale + shift, zero()));
    else
        for (int i = 0; i < pixels; ++i) store(to + i * LANES, load(from + i * LANES) * scale + shift);
}

// Rows of one channel of the gradient by BatchNorm's input. `y`, `da`: the channel's planes.
inline void gradient_rows(const NormArgs& n, int channel, const float* y, const float* da, int first, int rows,
                          float* to) {
    to -= static_cast<int64_t>(first) * n.shape.width * LANES;
    if (n.images < LANES) {
        const Vec valid = lane_mask(n.images);
        norm_gradient(n, channel, y, da, first, first + rows, [&](int64_t at, const Vec&, const Vec& d) SMIDGEN_LAMBDA {
            store(to + at, d * valid);
        });
    } else {
        norm_gradient(n, channel, y, da, first, first + rows, [&](int64_t at, const Vec&, const Vec& d) SMIDGEN_LAMBDA {
            store(to + at, d);
            write_soon(to + at + 16 * LANES);
            read_soon(y + n.shape.plane() * LANES + at);
            if (n.pool == PoolKind::None) read_soon(da + n.shape.plane() * LANES + at);
        });
    }
}

// Adds the sum of a row to `total`.
inline void add_row(const float* from, int width, float* total) {
    Vec partial[4] = {zero(), zero(), zero(), zero()};
    in_turn(width, [&](int x, int k) SMIDGEN_LAMBDA { partial[k] += load(from + x * LANES); });
    store(total, load(total) + joined(partial));
}

// What happens to a channel's gradient by the input: passed through the ReLU that made the input, and summed up for
// the BatchNorm before it; or merely stored or added.
struct InputGradient {
    const NormArgs* norm;
    float scale = 1.0f;
    Vec shift = zero(), mean = zero();
    bool relu = false, add;
    float* sums;  // two Vec

    InputGradient(const NormArgs* n, int channel, bool add, float* sums) : norm(n), add(add), sums(sums) {
        if (!n) return;
        scale = n->scale[channel];
        shift = splat(n->shift[channel]);
        mean = splat(n->mean[channel]);
        relu = n->relu;
    }
};

// One row; `each(put)` calls put(column, i, gradient) for each pixel, i as in `depthwise_row`.
template <class Each>
SMIDGEN_INLINE void input_gradient_row(const InputGradient& in, const float* x, float* dx, const Each& each) {
    if (!in.norm) {
        if (in.add)
            each([&](int u, int, const Vec& v) SMIDGEN_LAMBDA { store(dx + u * LANES, load(dx + u * LANES) + v); });
        else
            each([&](int u, int, const Vec& v) SMIDGEN_LAMBDA { store(dx + u * LANES, v); });
        return;
    }
    Vec plain[2] = {zero(), zero()}, product[2] = {zero(), zero()};
    each([&](int u, int i, const Vec& v) SMIDGEN_LAMBDA {
        const Vec value = load(x + u * LANES);
        const Vec g = in.relu ? where_greater(value * in.scale + in.shift, zero(), v, zero()) : v;
        store(dx + u * LANES, g);
        plain[i & 1] += g;
        product[i & 1] += g * (value - in.mean);
    });
    store(in.sums, load(in.sums) + (plain[0] + plain[1]));
    store(in.sums + LANES, load(in.sums + LANES) + (product[0] + product[1]));
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
