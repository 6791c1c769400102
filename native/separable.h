// Separable convolutions, some rows at a time: what lies between the depthwise and the 1x1 part, and what BatchNorm
// and ReLU make of the input, exists only for those rows, in the core's own caches.
#pragma once

#include <algorithm>

#include "conv.h"
#include "elementwise.h"
#include "kernels.h"
#include "moments.h"
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

// What the 1x1 part multiplies: float32 here, bfloat16 in separable16.h, where values are rounded once as they are
// written, for the gathers in pairs of channels, for the gradient by the weights in pairs of images.
struct Exact {
    using Products = Products32;
    using Streams = Streams32;
    static constexpr bool ROUNDED = false;
};

// How a separable convolution lies in scratch memory while some rows of its output are worked on; in floats.
struct SeparableLayout {
    int rows;            // of the output
    int made_width;      // of a row of the input with its padding
    int gradient_rows;   // of the middle's gradient that there is room for: the next rows need the last of these too
    int border;          // zeros on both sides of a row of the middle's gradient
    int gradient_width;  // of such a row
    int streamed_width;  // of a row whose products with another are summed up
    int64_t plane;       // from one channel to the next of what is gathered from; rounded: from one pair of channels
    int64_t gradient;    // likewise, of the middle's gradient
    int64_t streamed;    // likewise, of what is summed up
    // Where each lies: the input's rows; one channel or two before they are rounded; the middle; the gradient by the
    // output; the same two for the gradient by the weights; the middle's gradient; sums.
    int64_t made_at = 0, raw_at = 0, middle_at = 0, output_at = 0, middle_streams_at = 0, output_streams_at = 0;
    int64_t gradient_at = 0, zeros_at = 0, tiles_at = 0, taps_at = 0, sums_at = 0;
    int64_t made_floats, floats = 0;

    SeparableLayout(const SeparableGeometry& g, int rows, bool backward, bool rounded) : rows(rows) {
        const int channels = g.input.channels, outputs = g.output.channels, width = g.output.width;
        made_width = g.kernel ? (width - 1) * g.stride + g.kernel : width;
        gradient_rows = g.kernel ? rows + (g.kernel - 1) / g.stride : rows;
        border = g.kernel && g.stride == 1 ? g.kernel - 1 - g.padding_width : 0;
        gradient_width = width + 2 * border;
        streamed_width = rounded ? (width + 1) / 2 : width;  // in units of LANES floats
        plane = channel_floats(rows * width);
        gradient = channel_floats(gradient_rows * gradient_width);
        streamed = rounded ? channel_floats(rows * streamed_width) : plane;
        const int made_rows = g.kernel ? (rows - 1) * g.stride + g.kernel : rows;
        const auto take = [&](int64_t& at, int64_t count) {
            at = floats;
            floats += count;
        };
        const auto gathered = [&](int count) { return rounded ? (count + 1) / 2 * plane : count * plane; };
        made_floats = static_cast<int64_t>(made_rows) * made_width * LANES;
        take(made_at, made_floats);
        if (rounded) take(raw_at, 2 * plane);
        if (!backward || !rounded) take(middle_at, gathered(channels));
        if (!backward) return;
        take(output_at, gathered(outputs));
        middle_streams_at = middle_at, output_streams_at = output_at;
        if (rounded) take(middle_streams_at, channels * streamed), take(output_streams_at, outputs * streamed);
        take(gradient_at, channels * gradient);
        take(zeros_at, static_cast<int64_t>(gradient_width) * LANES);
        take(tiles_at, static_cast<int64_t>(g.pointwise_weights()) * LANES);
        take(taps_at, static_cast<int64_t>(g.depthwise_weights()) * LANES);
        take(sums_at, static_cast<int64_t>(3 * channels + outputs) * LANES);
    }
};

// As many rows as fit into `bytes`, at least one, and as evenly as possible.
inline int rows_within(const SeparableGeometry& g, bool backward, bool rounded, int64_t bytes) {
    int rows = 1;
    while (rows < g.output.height &&
           SeparableLayout(g, rows + 1, backward, rounded).floats * static_cast<int64_t>(sizeof(float)) <= bytes)
        ++rows;
    const int turns = (g.output.height + rows - 1) / rows;
    return (g.output.height + turns - 1) / turns;
}

// The rest of the cache is for what the rows are read from and written to.
template <class P>
void separable_prepare(SeparableGeometry& g, int64_t cache) {
    g.forward_rows = rows_within(g, false, P::ROUNDED, cache / 4);
    g.backward_rows = rows_within(g, true, P::ROUNDED, cache / 2);
}

template <class P>
int64_t separable_scratch(const SeparableGeometry& g) {
    return std::max(SeparableLayout(g, g.forward_rows, false, P::ROUNDED).floats,
                    SeparableLayout(g, g.backward_rows, true, P::ROUNDED).floats);
}

// The input's rows that `count` rows of the output from `first` on need, with zeros around them.
inline Rows made_rows(const SeparableGeometry& g, const SeparableLayout& l, const Made& made, const float* plane,
                      int first, int count, float* scratch) {
    const int width = g.input.width, top = first * g.stride - g.padding_height;
    if (made.plain && !g.padding_height && !g.padding_width)
        return {const_cast<float*>(plane) + static_cast<int64_t>(top) * width * LANES,
                static_cast<int64_t>(width) * LANES};
    const int64_t next = static_cast<int64_t>(l.made_width) * LANES;
    float* to = scratch + l.made_at;
    const int inner = std::min(width, l.made_width - g.padding_width);
    const int rows = (count - 1) * g.stride + g.kernel;
    if (inner == l.made_width && width == inner && top >= 0 && top + rows <= g.input.height) {
        make_pixels(made, plane + static_cast<int64_t>(top) * width * LANES, to, rows * width);
    } else {
        for (int r = 0; r < rows; ++r) {
            float* row = to + r * next;
            const int v = top + r;
            if (v >= 0 && v < g.input.height)
                make_pixels(made, plane + static_cast<int64_t>(v) * width * LANES, row + g.padding_width * LANES,
                            inner);
            else
                std::memset(row, 0, static_cast<size_t>(next) * sizeof(float));
        }
    }
    return {to, next};
}

// The first of the input's rows that the rows of the output from `first` on are the first to need.
inline const float* fresh_rows(const SeparableGeometry& g, const float* plane, int first) {
    const int row = std::max(0, first * g.stride - g.padding_height + g.kernel - g.stride);
    return plane + static_cast<int64_t>(row) * g.input.width * LANES;
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

// A 1x1 convolution of `pixels` neighbouring pixels. `inputs`: channels, or pairs of them.
template <class P>
void pointwise(const Tiles& tiles, int inputs, const float* from, int64_t channel, const float* packed,
                      const Epilogue& epilogue, float* to, int64_t output_channel, int pixels) {
    static constexpr Tap here[] = {{0, 0}};
    const auto all = std::make_integer_sequence<int, MOST_OUTPUTS>{};
    for (int t = 0; t < tiles.tiles; ++t) {
        const int first = tiles.first(t), size = tiles.size(t), several = places_of(size);
        TileArgs a;
        a.input = from;
        a.channel = channel;
        a.channels = inputs;
        a.taps = here;
        a.tap_count = a.positions = 1;
        a.weights = packed + static_cast<int64_t>(first) * inputs;
        a.step = LANES;
        a.output = to + first * output_channel;
        a.output_channel = output_channel;
        a.add = false;
        a.plain = epilogue.plain();
        a.epilogue = epilogue.from(first);
        const TileFunction one = tile_function<typename P::Products>(size, true, all);
        const TileFunction many = tile_function<typename P::Products>(size, false, all);
        int i = 0;
        for (; i + several <= pixels; i += several, a.input += several * LANES, a.output += several * LANES) many(a);
        for (; i < pixels; ++i, a.input += LANES, a.output += LANES) one(a);
    }
}

// What both passes know of a separable convolution.
template <class P>
struct SeparablePass {
    const SeparableArgs& a;
    const SeparableGeometry& g;
    const SeparableLayout l;
    const int channels, outputs, width;
    const int64_t input_plane, output_plane;
    Epilogue middle_epilogue;

    SeparablePass(const SeparableArgs& a, bool backward)
        : a(a),
          g(*a.geometry),
          l(g, backward ? g.backward_rows : g.forward_rows, backward, P::ROUNDED),
          channels(g.input.channels),
          outputs(g.output.channels),
          width(g.output.width),
          input_plane(static_cast<int64_t>(g.input.plane()) * LANES),
          output_plane(static_cast<int64_t>(g.output.plane()) * LANES) {
        middle_epilogue.before_shift = a.middle_bias;
        std::memset(at(l.made_at), 0, static_cast<size_t>(l.made_floats) * sizeof(float));
    }

    float* at(int64_t offset) const { return a.scratch + offset; }
    static int vectors(int channels) { return P::ROUNDED ? (channels + 1) / 2 : channels; }

    // The input's rows for rows of the output from `first` on.
    Rows made(int channel, int first, int rows) const {
        return made_rows(g, l, Made(a.norm, channel), a.x + channel * input_plane, first, rows, a.scratch);
    }

    // One channel of the middle, in float32: the depthwise part's result, or the input itself.
    void middle(int channel, int first, int rows, const Rows& made, const Epilogue& epilogue, float* to) const {
        if (!g.kernel) {
            const int64_t from = channel * input_plane + static_cast<int64_t>(first) * width * LANES;
            return make_pixels(Made(a.norm, channel), a.x + from, to, rows * width);
        }
        const float* weights = a.depthwise + channel * g.kernel * g.kernel;
        const float* soon = fresh_rows(g, a.x + (channel + 1) * input_plane, first);
        with_kernel(g, [&]<int K, int S>() SMIDGEN_LAMBDA {
            depthwise_rows<K, S>(made, weights, rows, width, epilogue, channel, to, soon);
        });
    }
};

template <class P>
void separable_forward(const SeparableArgs& a, const Epilogue& epilogue, float* y, int images, Moments* moments,
                       float* state) {
    const SeparablePass<P> pass(a, false);
    const SeparableGeometry& g = pass.g;
    const SeparableLayout& l = pass.l;
    const int channels = pass.channels;
    const Tiles tiles(pass.outputs);
    float* const middle = pass.at(l.middle_at);
    for (int first = 0; first < g.output.height; first += l.rows) {
        const int rows = std::min(l.rows, g.output.height - first), pixels = rows * pass.width;
        const int64_t start = static_cast<int64_t>(first) * pass.width * LANES;
        // The input itself, where nothing is made of it.
        const bool plain = !g.kernel && !a.norm && !P::ROUNDED;
        for (int c = 0; !plain && c < channels; ++c) {
            const Rows made = g.kernel ? pass.made(c, first, rows) : Rows{};
            if (!g.pointwise) {
                pass.middle(c, first, rows, made, epilogue, y + start + c * pass.output_plane);
            } else if constexpr (P::ROUNDED) {
                float* const raw = pass.at(l.raw_at) + c % 2 * l.plane;
                pass.middle(c, first, rows, made, pass.middle_epilogue, raw);
                if (c % 2 || c + 1 == channels)
                    P::to_pair(pass.at(l.raw_at), c % 2 ? raw : nullptr, pixels, middle + c / 2 * l.plane);
            } else {
                pass.middle(c, first, rows, made, pass.middle_epilogue, middle + c * l.plane);
            }
        }
        if (g.pointwise)
            pointwise<P>(tiles, pass.vectors(channels), plain ? a.x + start : middle,
                         plain ? pass.input_plane : l.plane, a.packed, epilogue, y + start, pass.output_plane, pixels);
        for (int row = first; moments && row < first + rows; ++row) moments_row(g.output, y, row, state);
    }
    if (moments) moments_end(g.output, state, images, moments);
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

template <class P>
class SeparableBackward : SeparablePass<P> {
    using Base = SeparablePass<P>;
    using Base::a, Base::g, Base::l, Base::channels, Base::outputs, Base::width, Base::at;
    using Base::input_plane, Base::output_plane;

public:
    SeparableBackward(const SeparableArgs& args, const SeparableGradients& gradients)
        : Base(args, true),
          d(gradients),
          input_tiles(channels),
          output_tiles(outputs, GRADIENT_OUTPUTS),
          stream_tiles(channels, GRADIENT_STREAMS) {
        std::memset(at(l.zeros_at), 0, static_cast<size_t>(l.floats - l.zeros_at) * sizeof(float));
        for (int c = 0; l.border && c < channels; ++c)
            for (int row = 0; row < l.gradient_rows; ++row) {
                float* to = at(l.gradient_at) + c * l.gradient + row * gradient_row();
                for (float* side : {to, to + (l.border + width) * LANES})
                    std::memset(side, 0, static_cast<size_t>(l.border) * LANES * sizeof(float));
            }
    }

    void run() {
        for (first = 0; first < g.output.height; first += l.rows) {
            rows = std::min(l.rows, g.output.height - first);
            last = first + l.rows >= g.output.height;
            read_output_gradient();
            middle_gradient();
            for (int c = 0; c < channels; ++c) channel(c);
            if (g.pointwise) pointwise_weights();
            next_row = end_row();
        }
        finish();
    }

private:
    int64_t start() const { return static_cast<int64_t>(first) * width * LANES; }
    int64_t gradient_row() const { return static_cast<int64_t>(l.gradient_width) * LANES; }
    // A row of the middle's gradient, without its border. Rows share memory in turn.
    float* gradient_of(int channel, int row) const {
        return at(l.gradient_at) + channel * l.gradient + row % l.gradient_rows * gradient_row() + l.border * LANES;
    }
    float* input_sums(int channel) const { return at(l.sums_at) + 2 * channel * LANES; }
    float* middle_sums(int channel) const { return at(l.sums_at) + (2 * channels + channel) * LANES; }
    float* output_sums(int channel) const { return at(l.sums_at) + (3 * channels + channel) * LANES; }
    // Rows of the input up to here have their whole gradient once these rows of the output are done.
    int end_row() const {
        if (last) return g.input.height;
        return g.kernel ? std::clamp((first + rows) * g.stride - g.padding_height, 0, g.input.height) : first + rows;
    }

    // The gradient by these rows of the output: where it lies, or made of the gradient by BatchNorm's output.
    void read_output_gradient() {
        const bool pooled = d.norm && d.norm->pool != PoolKind::None;
        const int64_t da_plane =
            pooled ? static_cast<int64_t>(g.output.height / 2) * (g.output.width / 2) * LANES : output_plane;
        dy = d.dy ? d.dy + start() : at(l.output_at);
        dy_channel = d.dy ? output_plane : l.plane;
        for (int o = 0; o < outputs; ++o) {
            const float* from = d.dy ? d.dy + start() + o * output_plane : nullptr;
            if (d.norm) {
                float* const to = P::ROUNDED ? at(l.raw_at) + o % 2 * l.plane : at(l.output_at) + o * l.plane;
                gradient_rows(*d.norm, o, d.y + o * output_plane, d.da + o * da_plane, first, rows, to);
                from = to;
            }
            for (int r = 0; d.bias && r < rows; ++r)
                add_row(from + static_cast<int64_t>(r) * width * LANES, width, output_sums(o));
            if (!g.pointwise) {
                for (int r = 0; r < rows; ++r)
                    std::memcpy(gradient_of(o, first + r), from + static_cast<int64_t>(r) * width * LANES,
                                static_cast<size_t>(width) * LANES * sizeof(float));
            } else if constexpr (P::ROUNDED) {
                P::to_streams(from, rows, width, at(l.output_streams_at) + o * l.streamed);
                if (o % 2 || o + 1 == outputs)
                    P::to_pair(o % 2 ? before : from, o % 2 ? from : nullptr, rows * width,
                               at(l.output_at) + o / 2 * l.plane);
                before = from;
            }
        }
        if (P::ROUNDED) dy = at(l.output_at), dy_channel = l.plane;
    }

    // The gradient by these rows of the middle.
    void middle_gradient() {
        if (g.pointwise && (g.kernel || d.dx)) {
            const int together = g.kernel ? 1 : rows;  // rows that lie one after another without a border
            for (int r = 0; r < rows; r += together)
                pointwise<P>(input_tiles, Base::vectors(outputs), dy + static_cast<int64_t>(r) * width * LANES,
                             dy_channel, a.packed, Epilogue{}, g.kernel ? gradient_of(0, first + r) : at(l.gradient_at), l.gradient,
                             together * width);
        }
    }

    // One channel of the middle once more, the gradients by its depthwise weights and by its input.
    void channel(int c) {
        const Rows made = g.kernel ? Base::made(c, first, rows) : Rows{};
        if (g.pointwise) {
            if constexpr (P::ROUNDED) {
                Base::middle(c, first, rows, made, Base::middle_epilogue, at(l.raw_at));
                P::to_streams(at(l.raw_at), rows, width, at(l.middle_streams_at) + c * l.streamed);
            } else if (g.kernel || a.norm) {
                Base::middle(c, first, rows, made, Base::middle_epilogue, at(l.middle_at) + c * l.plane);
            }
        }
        for (int r = 0; d.middle_bias && r < rows; ++r) add_row(gradient_of(c, first + r), width, middle_sums(c));
        const float* const x = a.x + c * input_plane;
        float* const dx = d.dx ? d.dx + c * input_plane : nullptr;
        const InputGradient in(a.norm, c, d.add, input_sums(c));
        if (!g.kernel) {
            for (int r = 0; dx && r < rows; ++r) {
                const int64_t row = static_cast<int64_t>(first + r) * width * LANES;
                const float* from = at(l.gradient_at) + c * l.gradient + static_cast<int64_t>(r) * width * LANES;
                input_gradient_row(in, x + row, dx + row, [&](const auto& put) SMIDGEN_LAMBDA {
                    for (int u = 0; u < width; ++u) put(u, u, load(from + u * LANES));
                });
            }
            return;
        }
        const float* weights = a.depthwise + c * g.kernel * g.kernel;
        const float* soon = dx ? dx + input_plane + static_cast<int64_t>(next_row) * g.input.width * LANES : x;
        with_kernel(g, [&]<int K, int S>() SMIDGEN_LAMBDA {
            depthwise_gradient<K, S>(made, [&](int r) { return gradient_of(c, first + r); }, rows, width,
                                     at(l.taps_at) + c * K * K * LANES, soon);
            if (!dx) return;
            float flipped[K * K];
            for (int t = 0; t < K * K; ++t) flipped[t] = weights[K * K - 1 - t];
            const auto middle = [&](int row) -> const float* {
                return row < 0 || row >= g.output.height ? at(l.zeros_at) : gradient_of(c, row) - l.border * LANES;
            };
            depthwise_input_gradient<K, S>(g, in, middle, flipped, next_row, end_row(), x, dx);
        });
    }

    // Adds these rows' part of the gradient by the 1x1 weights.
    void pointwise_weights() {
        const bool plain = !g.kernel && !a.norm && !P::ROUNDED;
        const float* const middle = plain ? a.x + start() : at(l.middle_streams_at);
        const int64_t channel = plain ? input_plane : l.streamed;
        const float* const output = P::ROUNDED ? at(l.output_streams_at) : dy;
        const auto all = std::make_integer_sequence<int, GRADIENT_OUTPUTS * GRADIENT_STREAMS>{};
        float* kept = at(l.tiles_at);
        for (int s = 0; s < stream_tiles.tiles; ++s) {
            int64_t streams[GRADIENT_STREAMS];
            const int size = stream_tiles.size(s);
            for (int i = 0; i < size; ++i) streams[i] = (stream_tiles.first(s) + i) * channel;
            for (int t = 0; t < output_tiles.tiles; ++t) {
                const int count = output_tiles.size(t);
                StreamArgs args;
                args.channel = P::ROUNDED ? l.streamed : dy_channel;
                args.gradient = output + output_tiles.first(t) * args.channel;
                args.input = middle;
                args.streams = streams;
                args.rows = 1;
                args.columns = rows * l.streamed_width * (LANES / P::Streams::PIXEL);
                args.gradient_row = args.input_row = 0;
                args.input_step = P::Streams::PIXEL;
                args.kept = kept;
                args.sums = nullptr;
                stream_function<typename P::Streams>(count, size, all)(args);
                kept += static_cast<int64_t>(count) * size * LANES;
            }
        }
    }

    // Adds up the lanes.
    void finish() {
        if (g.kernel) lane_sums(at(l.taps_at), g.depthwise_weights(), d.depthwise);
        if (d.middle_bias) lane_sums(middle_sums(0), channels, d.middle_bias);
        if (d.bias) lane_sums(output_sums(0), outputs, d.bias);
        const float* kept = at(l.tiles_at);
        for (int s = 0; g.pointwise && s < stream_tiles.tiles; ++s)
            for (int t = 0; t < output_tiles.tiles; ++t) {
                const int count = output_tiles.size(t), size = stream_tiles.size(s);
                float totals[GRADIENT_OUTPUTS * GRADIENT_STREAMS];
                lane_sums(kept, count * size, totals);
                kept += static_cast<int64_t>(count) * size * LANES;
                for (int o = 0; o < count; ++o)
                    for (int i = 0; i < size; ++i)
                        d.pointwise[static_cast<int64_t>(output_tiles.first(t) + o) * channels + stream_tiles.first(s) +
                                    i] = totals[o * size + i];
            }
        for (int c = 0; a.norm && d.dx && c < channels; ++c) {
            d.sums[2 * c] = sum(load(input_sums(c)));
            d.sums[2 * c + 1] = sum(load(input_sums(c) + LANES));
        }
    }

    const SeparableGradients& d;
    const Tiles input_tiles, output_tiles, stream_tiles;
    // The rows of the output that are worked on, and the first row of the input whose gradient is not complete.
    int first = 0, rows = 0, next_row = 0;
    bool last = false;
    const float *dy = nullptr, *before = nullptr;
    int64_t dy_channel = 0;
};

template <class P>
void separable_backward(const SeparableArgs& a, const SeparableGradients& d) {
    SeparableBackward<P>(a, d).run();
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
