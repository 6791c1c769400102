// Depthwise convolutions of rows: forward and both gradients. Each row of the input is loaded once for all the columns of
// a row of the kernel.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

// Neighbouring outputs of the depthwise part that are computed together.
#if defined(__AVX512F__)
constexpr int DEPTHWISE_COLUMNS = 8;
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int DEPTHWISE_COLUMNS = 2;
#else
constexpr int DEPTHWISE_COLUMNS = 1;
#endif

// The rows that a row of a kernel of side K reads.
template <int K>
struct Lines {
    const float* line[K];
};

// X neighbouring outputs, whose inputs begin `at` floats after the lines' first; `put(i, sum)` takes each.
template <int K, int S, int X, class Put>
SMIDGEN_INLINE void depthwise_tile(const Lines<K>& from, int64_t at, const float* weights, const Put& put) {
    Vec sums[X];
    SMIDGEN_UNROLL for (int i = 0; i < X; ++i) sums[i] = zero();
    SMIDGEN_UNROLL for (int v = 0; v < K; ++v) {
        constexpr int READ = (X - 1) * S + K;
        Vec x[READ];
        const float* line = apart(from.line[v] + at);
        _Pragma("GCC unroll 32") for (int u = 0; u < READ; ++u) {
            x[u] = load(line + u * LANES);
            in_registers(x[u]);
        }
        SMIDGEN_UNROLL for (int u = 0; u < K; ++u)
            SMIDGEN_UNROLL for (int i = 0; i < X; ++i) sums[i] += x[i * S + u] * weights[v * K + u];
    }
    SMIDGEN_UNROLL for (int i = 0; i < X; ++i) put(i, sums[i]);
}

// One row of outputs; `put(column, i, sum)` takes each, `i` being its place in the tile.
template <int K, int S, class Put>
SMIDGEN_INLINE void depthwise_row(const Lines<K>& from, const float* weights, int width, const Put& put) {
    int x = 0;
    const auto tiles = [&]<int X>() SMIDGEN_LAMBDA {
        for (; x + X <= width; x += X)
            depthwise_tile<K, S, X>(from, x * S * LANES, weights,
                                    [&](int i, const Vec& v) SMIDGEN_LAMBDA { put(x + i, i, v); });
    };
    if constexpr (DEPTHWISE_COLUMNS >= 8) tiles.template operator()<8>();
    if constexpr (DEPTHWISE_COLUMNS >= 4) tiles.template operator()<4>();
    if constexpr (DEPTHWISE_COLUMNS >= 2) tiles.template operator()<2>();
    tiles.template operator()<1>();
}

// Calls f with the kernel's side and stride as constants.
template <class F>
SMIDGEN_INLINE void with_kernel(const SeparableGeometry& g, const F& f) {
    if (g.kernel == 3)
        g.stride == 1 ? f.template operator()<3, 1>() : f.template operator()<3, 2>();
    else
        g.stride == 1 ? f.template operator()<5, 1>() : f.template operator()<5, 2>();
}

template <int K, int S>
__attribute__((noinline)) void depthwise_rows(Rows from, const float* weights, int rows, int width,
                                              const Epilogue& epilogue, int channel, float* to, const float* soon) {
    const bool plain = epilogue.plain();
    for (int r = 0; r < rows; ++r, to += static_cast<int64_t>(width) * LANES) {
        Lines<K> lines;
        for (int v = 0; v < K; ++v) lines.line[v] = from.first + (r * S + v) * from.next;
        if (plain)
            depthwise_row<K, S>(lines, weights, width, [&](int x, int, const Vec& v) SMIDGEN_LAMBDA {
                store(to + x * LANES, v);
                read_soon(soon);
                soon += LANES;
            });
        else
            depthwise_row<K, S>(lines, weights, width, [&](int x, int, const Vec& v) SMIDGEN_LAMBDA {
                store(to + x * LANES, finished(epilogue, v, channel));
            });
    }
}

// The gradient by the depthwise weights of one channel, added to `taps` [K][K] of Vec.
template <int K, int S, class Gradient>
__attribute__((noinline)) void depthwise_gradient(Rows made, const Gradient& gradient, int rows, int width, float* taps,
                                                  const float* soon) {
    // As many kernel rows at a time as there are registers for.
    constexpr int ROWS = WIDTH == LANES ? K : 1;
    for (int top = 0; top < K; top += ROWS) {
        Vec sums[ROWS * K];
        _Pragma("GCC unroll 32") for (int t = 0; t < ROWS * K; ++t) sums[t] = load(taps + (top * K + t) * LANES);
        for (int r = 0; r < rows; ++r) {
            const float* from = made.first + (r * S + top) * made.next;
            const float* g = gradient(r);
            const float* lines[ROWS];
            SMIDGEN_UNROLL for (int v = 0; v < ROWS; ++v) lines[v] = from + v * made.next;
            for (int x = 0; x < width; ++x, g += LANES) {
                const Vec d = load(g);
                write_soon(soon);
                soon += LANES;
                SMIDGEN_UNROLL for (int v = 0; v < ROWS; ++v) {
                    SMIDGEN_UNROLL for (int u = 0; u < K; ++u) sums[v * K + u] += d * load(lines[v] + u * LANES);
                    lines[v] = apart(lines[v] + S * LANES);
                }
            }
        }
        _Pragma("GCC unroll 32") for (int t = 0; t < ROWS * K; ++t) store(taps + (top * K + t) * LANES, sums[t]);
    }
}

// Rows `first` to `end` of the gradient by the input of one channel. `middle(row)`: that row of the middle's gradient,
// whatever row it is. `flipped`: the kernel, turned around.
template <int K, int S, class Middle>
__attribute__((noinline)) void depthwise_input_gradient(const SeparableGeometry& g, const InputGradient& in,
                                                        const Middle& middle, const float* flipped, int first, int end,
                                                        const float* x, float* dx) {
    const int width = g.input.width;
    for (int v = first; v < end; ++v) {
        const int64_t at = static_cast<int64_t>(v) * width * LANES;
        input_gradient_row(in, x + at, dx + at, [&](const auto& put) SMIDGEN_LAMBDA {
            if constexpr (S == 1) {
                Lines<K> lines;
                for (int k = 0; k < K; ++k) lines.line[k] = middle(v + g.padding_height - (K - 1) + k);
                depthwise_row<K, 1>(lines, flipped, width, put);
            } else {
                for (int u = 0; u < width; ++u) {
                    Vec sum = zero();
                    for (int a = (v + g.padding_height) % S; a < K; a += S) {
                        const int row = (v + g.padding_height - a) / S;
                        if (v + g.padding_height < a || row >= g.output.height) continue;
                        for (int b = (u + g.padding_width) % S; b < K; b += S) {
                            const int column = (u + g.padding_width - b) / S;
                            if (u + g.padding_width < b || column >= g.output.width) continue;
                            sum += load(middle(row) + column * LANES) * flipped[(K - 1 - a) * K + (K - 1 - b)];
                        }
                    }
                    put(u, u, sum);
                }
            }
        });
    }
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
