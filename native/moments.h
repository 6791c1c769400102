// Statistics for BatchNorm.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

// Calls f(i, accumulator) for i below count, with accumulators 0 to 3 in turn, so that additions do
// not wait for one another.
template <class F>
SMIDGEN_INLINE void in_turn(int count, const F& f) {
    int i = 0;
    for (; i + 4 <= count; i += 4) SMIDGEN_UNROLL for (int k = 0; k < 4; ++k) f(i + k, k);
    for (; i < count; ++i) f(i, i & 3);
}

SMIDGEN_INLINE Vec joined(const Vec (&v)[4]) { return (v[0] + v[2]) + (v[1] + v[3]); }

// Mean and variance of each channel over a block. `state` is [channel] of two Vec: each lane's mean and sum of squared
// differences from it so far, joined row by row (Chan, Golub and LeVeque 1979), so that no sum in one float is long.
// Within a row the sums are of differences from the mean so far, or in the first row from its first value: what they
// lose to rounding is small against what that difference itself adds to the sum of squares.
inline void moments_row(const Shape& shape, const float* y, int row, float* state) {
    const int width = shape.width;
    const float columns = static_cast<float>(width), rows = static_cast<float>(row + 1);
    const float share = 1.0f / columns, row_share = 1.0f / rows, between = columns * static_cast<float>(row) / rows;
    y += static_cast<int64_t>(row) * width * LANES;
    for (int c = 0; c < shape.channels; ++c, y += static_cast<int64_t>(shape.plane()) * LANES, state += MOMENTS) {
        const Vec mean = load(row ? state : y), squares = row ? load(state + LANES) : zero();
        Vec totals[4] = {zero(), zero(), zero(), zero()}, spreads[4] = {zero(), zero(), zero(), zero()};
        in_turn(width, [&](int x, int k) SMIDGEN_LAMBDA {
            const Vec d = load(y + x * LANES) - mean;
            totals[k] += d;
            spreads[k] += d * d;
        });
        const Vec total = joined(totals), step = total * share;
        const Vec spread = max(joined(spreads) - step * total, zero());
        store(state, mean + step * row_share);
        store(state + LANES, squares + spread + step * step * between);
    }
}

// Joins the lanes of the block's images.
inline void moments_end(const Shape& shape, const float* state, int images, Moments* out) {
    for (int c = 0; c < shape.channels; ++c, state += MOMENTS) {
        double middle = 0.0, sum_of_squares = 0.0;
        for (int i = 0; i < images; ++i) middle += state[i];
        middle /= images;
        for (int i = 0; i < images; ++i) {
            const double d = state[i] - middle;
            sum_of_squares += state[LANES + i] + d * d * static_cast<double>(shape.plane());
        }
        out[c] = {middle, sum_of_squares};
    }
}

inline void moments(const Shape& shape, const float* y, int images, Moments* out, float* state) {
    for (int row = 0; row < shape.height; ++row) moments_row(shape, y, row, state);
    moments_end(shape, state, images, out);
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
