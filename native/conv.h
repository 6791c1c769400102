// Convolutions: forward, gradient by the input, gradient by the weights; all in float32.
#pragma once

#include <algorithm>
#include <utility>

#include "kernels.h"
#include "moments.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

// How many output channels a tile has, and how many sums in all: with the inputs and a weight they
// stay in registers.
#if defined(__AVX512F__)
constexpr int MOST_OUTPUTS = 14, MOST_SUMS = 28;
constexpr int GRADIENT_OUTPUTS = 5, GRADIENT_STREAMS = 5;
#elif defined(__AVX__)
constexpr int MOST_OUTPUTS = 6, MOST_SUMS = 6;
constexpr int GRADIENT_OUTPUTS = 2, GRADIENT_STREAMS = 3;
#elif defined(__aarch64__)
constexpr int MOST_OUTPUTS = 6, MOST_SUMS = 6;
constexpr int GRADIENT_OUTPUTS = 2, GRADIENT_STREAMS = 2;
#else
constexpr int MOST_OUTPUTS = 2, MOST_SUMS = 2;
constexpr int GRADIENT_OUTPUTS = 1, GRADIENT_STREAMS = 2;
#endif

// The tiles of `count` channels: as few as fit, of nearly the same size.
struct Tiles {
    int count, tiles;
    explicit Tiles(int count, int most = MOST_OUTPUTS) : count(count), tiles((count + most - 1) / most) {}
    int first(int tile) const { return tile * count / tiles; }
    int size(int tile) const { return first(tile + 1) - first(tile); }
};

struct TileArgs {
    const float* input;   // of the first place, first channel
    int64_t channel;      // floats from one input channel to the next
    int channels;
    const Tap* taps;
    int tap_count;
    int positions;
    const float* weights;  // [channel][position][O]
    int64_t step;          // floats from a place's input to the next one's
    float* output;         // of the first place, first channel
    int64_t output_channel;
    bool add;
    bool plain;            // neither `add` nor an epilogue
    Epilogue epilogue;     // from the tile's first output channel on
};

SMIDGEN_INLINE Vec finished(const Epilogue& e, Vec v, int o) {
    if (e.before_scale) v = v * e.before_scale[o];
    if (e.before_shift) v = v + e.before_shift[o];
    if (e.relu) v = max(v, zero());
    if (e.after_scale) v = v * e.after_scale[o] + splat(e.after_shift[o]);
    return v;
}

// How a tile multiplies: float32 here, bfloat16 in conv16.h. A pixel is 64 bytes either way.
struct Products32 {
    static SMIDGEN_INLINE void add(Vec& sum, const Vec& x, const float* weight) { sum += x * *weight; }
};

// A tile takes several neighbouring places at once if the registers suffice: one weight then serves
// them all, and there are more sums that do not wait for one another.
constexpr int places_of(int outputs) {
    return 4 * outputs < MOST_SUMS ? 4 : 3 * outputs <= MOST_SUMS ? 3 : 2 * outputs <= MOST_SUMS ? 2 : 1;
}

// O output channels at P neighbouring places.
template <class Products, int O, int P>
__attribute__((noinline)) void tile(const TileArgs& a) {
    Vec sums[O][P];
    SMIDGEN_UNROLL for (int o = 0; o < O; ++o)
        SMIDGEN_UNROLL for (int i = 0; i < P; ++i) sums[o][i] = zero();
    const float* input = a.input;
    const float* weights = a.weights;
    const auto multiply = [&](const float* from, const float* weight) SMIDGEN_LAMBDA {
        Vec x[P];
        SMIDGEN_UNROLL for (int i = 0; i < P; ++i) x[i] = load(from + i * a.step);
        SMIDGEN_UNROLL for (int o = 0; o < O; ++o)
            SMIDGEN_UNROLL for (int i = 0; i < P; ++i) Products::add(sums[o][i], x[i], weight + o);
    };
    if (a.tap_count == 1) {
        input += static_cast<int64_t>(a.taps[0].input) * LANES;
        weights += a.taps[0].position * O;
        for (int c = 0; c < a.channels; ++c, input += a.channel, weights += a.positions * O) multiply(input, weights);
    } else {
        for (int c = 0; c < a.channels; ++c, input += a.channel, weights += a.positions * O)
            for (int t = 0; t < a.tap_count; ++t)
                multiply(input + static_cast<int64_t>(a.taps[t].input) * LANES, weights + a.taps[t].position * O);
    }
    if (a.plain) {
        SMIDGEN_UNROLL for (int o = 0; o < O; ++o)
            SMIDGEN_UNROLL for (int i = 0; i < P; ++i)
                store(a.output + o * a.output_channel + i * LANES, sums[o][i]);
        return;
    }
    SMIDGEN_UNROLL for (int o = 0; o < O; ++o)
        SMIDGEN_UNROLL for (int i = 0; i < P; ++i) {
            float* to = a.output + o * a.output_channel + i * LANES;
            const Vec v = finished(a.epilogue, sums[o][i], o);
            store(to, a.add ? load(to) + v : v);
        }
}

using TileFunction = void (*)(const TileArgs&);

template <class Products, int... I>
TileFunction tile_function(int outputs, bool single, std::integer_sequence<int, I...>) {
    static constexpr TileFunction one[] = {tile<Products, I + 1, 1>...};
    static constexpr TileFunction several[] = {tile<Products, I + 1, places_of(I + 1)>...};
    return single ? one[outputs - 1] : several[outputs - 1];
}

// `inputs`: vectors that a group reads at a pixel: its channels, or pairs of them.
// `row_done(row)` is called as soon as a row of the output is there, while the core's cache has it.
template <class Products, class RowDone>
void gather(const Gather& g, int inputs, const float* input, const float* packed, const Epilogue& epilogue,
            float* output, bool add, int width, const Part& part, const RowDone& row_done) {
    const int rows = g.output_plane / width, begin = part.first(rows) * width, end = part.end(rows) * width;
    const Tiles tiles(g.outputs, MOST_OUTPUTS);
    const auto all = std::make_integer_sequence<int, MOST_OUTPUTS>{};
    for (int group = 0; group < g.groups; ++group) {
        const float* x = input + static_cast<int64_t>(group) * inputs * g.input_plane * LANES;
        const float* weights = packed + static_cast<int64_t>(group) * g.outputs * inputs * g.positions;
        for (const Places& places : g.places) {
            if (places.output < begin || places.output >= end) continue;
            for (int t = 0; t < tiles.tiles; ++t) {
                const int first = tiles.first(t), size = tiles.size(t), channel = group * g.outputs + first;
                TileArgs a;
                a.input = x + static_cast<int64_t>(places.input) * LANES;
                a.channel = static_cast<int64_t>(g.input_plane) * LANES;
                a.channels = inputs;
                a.taps = g.taps[places.taps].data();
                a.tap_count = static_cast<int>(g.taps[places.taps].size());
                a.positions = g.positions;
                a.weights = weights + static_cast<int64_t>(first) * inputs * g.positions;
                a.step = static_cast<int64_t>(places.step) * LANES;
                a.output_channel = static_cast<int64_t>(g.output_plane) * LANES;
                a.output = output + (static_cast<int64_t>(channel) * g.output_plane + places.output) * LANES;
                a.add = add;
                a.epilogue = epilogue.from(channel);
                a.plain = !add && epilogue.plain();
                const int several = places_of(size);
                const TileFunction one = tile_function<Products>(size, true, all);
                const TileFunction many = tile_function<Products>(size, false, all);
                int i = 0;
                for (; i + several <= places.count; i += several) {
                    many(a);
                    a.input += several * a.step;
                    a.output += several * LANES;
                }
                for (; i < places.count; ++i) {
                    one(a);
                    a.input += a.step;
                    a.output += LANES;
                }
            }
            const int next = places.output + places.count;
            if (next % width == 0 && group == g.groups - 1) row_done(next / width - 1);
        }
    }
}

// A convolution forward, and its output's statistics if `moments` is not null.
template <class Products>
void gather_forward(const ConvGeometry& c, int inputs, const float* input, const float* packed,
                    const Epilogue& epilogue, float* y, const Part& part, int images, Moments* moments, float* state) {
    gather<Products>(c.forward, inputs, input, packed, epilogue, y, false, c.output.width, part, [&](int row) {
        if (moments) moments_row(c.output, y, row, state);
    });
    if (moments) moments_end(c.output, state, images, moments);
}

template <class Products>
void gather_backward(const ConvGeometry& c, int inputs, const float* dy, const float* packed, float* dx, bool add,
                     const Part& part) {
    gather<Products>(c.backward, inputs, dy, packed, Epilogue{}, dx, add, c.input.width, part, [](int) {});
}

inline int64_t packed_floats(const ConvGeometry& c) { return c.weights(); }

// [output][input][position] to [group][tile][input][position][output of the tile].
inline void pack_forward(const ConvGeometry& c, const float* weights, float* packed) {
    const int outputs = c.forward.outputs, row = c.forward.inputs * c.positions();
    const Tiles tiles(outputs);
    for (int group = 0; group < c.groups; ++group)
        for (int t = 0; t < tiles.tiles; ++t) {
            const int size = tiles.size(t);
            const float* from = weights + static_cast<int64_t>(group * outputs + tiles.first(t)) * row;
            for (int o = 0; o < size; ++o)
                for (int i = 0; i < row; ++i) packed[i * size + o] = from[o * row + i];
            packed += size * row;
        }
}

// [output][input][position] to [group][tile][output][position][input of the tile].
inline void pack_backward(const ConvGeometry& c, const float* weights, float* packed) {
    const int outputs = c.forward.outputs, inputs = c.forward.inputs, positions = c.positions();
    const Tiles tiles(inputs);
    for (int group = 0; group < c.groups; ++group)
        for (int t = 0; t < tiles.tiles; ++t) {
            const int size = tiles.size(t);
            for (int o = 0; o < outputs; ++o) {
                const float* from =
                    weights + (static_cast<int64_t>(group * outputs + o) * inputs + tiles.first(t)) * positions;
                for (int i = 0; i < size; ++i)
                    for (int p = 0; p < positions; ++p) packed[p * size + i] = from[i * positions + p];
                packed += size * positions;
            }
        }
}

inline void conv_forward(const ConvGeometry& c, const float* x, const float* packed, const Epilogue& epilogue, float* y,
                         float*, const Part& part, int images, Moments* moments, float* state) {
    gather_forward<Products32>(c, c.forward.inputs, x, packed, epilogue, y, part, images, moments, state);
}

inline void conv_backward(const ConvGeometry& c, const float* dy, const float* packed, float* dx, bool add, float*,
                          const Part& part) {
    gather_backward<Products32>(c, c.backward.inputs, dy, packed, dx, add, part);
}

// The sums over lanes of several vectors at once. The order of additions is that of `sum`.
inline void lane_sums(const float* vectors, int count, float* sums) {
    typedef float Four __attribute__((vector_size(16), aligned(4)));
    for (int i = 0; i < count; ++i) {
        const Four* v = reinterpret_cast<const Four*>(vectors + i * LANES);
        const Four four = (v[0] + v[2]) + (v[1] + v[3]);
        sums[i] = (four[0] + four[2]) + (four[1] + four[3]);
    }
}

struct StreamArgs {
    const float* gradient;  // dy of the first output channel at the window's first output
    int64_t channel;        // floats from one output channel to the next
    const float* input;
    const int64_t* streams;  // floats from `input` to each stream's first value
    int rows, columns;
    int64_t gradient_row, input_row, input_step;
    float* sums;             // [O][S]
    float* kept;             // [O][S] of Vec, to which the products are added instead; null: none
};

// Products of O output channels' gradients with S streams of inputs, summed over rows and columns.
template <int O, int S>
__attribute__((noinline)) void stream_tile(const StreamArgs& a) {
    Vec sums[O][S];
    SMIDGEN_UNROLL for (int o = 0; o < O; ++o)
        SMIDGEN_UNROLL for (int s = 0; s < S; ++s)
            sums[o][s] = a.kept ? load(a.kept + (o * S + s) * LANES) : zero();
    int64_t offset[S];
    SMIDGEN_UNROLL for (int s = 0; s < S; ++s) offset[s] = a.streams[s];
    for (int row = 0; row < a.rows; ++row) {
        const float* gradient = a.gradient + row * a.gradient_row;
        const float* input = a.input + row * a.input_row;
        for (int i = 0; i < a.columns; ++i, gradient += LANES, input += a.input_step) {
            Vec g[O];
            SMIDGEN_UNROLL for (int o = 0; o < O; ++o) g[o] = load(gradient + o * a.channel);
            SMIDGEN_UNROLL for (int s = 0; s < S; ++s) {
                const Vec x = load(input + offset[s]);
                SMIDGEN_UNROLL for (int o = 0; o < O; ++o) sums[o][s] += g[o] * x;
            }
        }
    }
    alignas(64) float lanes[O * S * LANES];
    float* to = a.kept ? a.kept : lanes;
    SMIDGEN_UNROLL for (int o = 0; o < O; ++o)
        SMIDGEN_UNROLL for (int s = 0; s < S; ++s) store(to + (o * S + s) * LANES, sums[o][s]);
    if (!a.kept) lane_sums(lanes, O * S, a.sums);
}

using StreamFunction = void (*)(const StreamArgs&);

struct Streams32 {
    static constexpr int PIXEL = LANES;  // floats
    template <int O, int S>
    static void tile(const StreamArgs& a) {
        stream_tile<O, S>(a);
    }
};

template <class Streams, int... I>
StreamFunction stream_function(int outputs, int streams, std::integer_sequence<int, I...>) {
    static constexpr StreamFunction all[] = {
        Streams::template tile<I / GRADIENT_STREAMS + 1, I % GRADIENT_STREAMS + 1>...};
    return all[(outputs - 1) * GRADIENT_STREAMS + streams - 1];
}

inline void channel_sums(const Shape& shape, const float* values, float* sums) {
    for (int c = 0; c < shape.channels; ++c) {
        Vec total = zero();
        for (int y = 0; y < shape.height; ++y) {
            Vec row = zero();
            for (int x = 0; x < shape.width; ++x, values += LANES) row += load(values);
            total += row;
        }
        sums[c] = sum(total);
    }
}

template <class Streams>
void gradient_by_weights(const ConvGeometry& c, const float* x, const float* dy, float* dw, const Part& part) {
    constexpr int PIXEL = Streams::PIXEL;
    const int positions = c.positions(), inputs = c.forward.inputs, outputs = c.forward.outputs;
    const int64_t input_plane = static_cast<int64_t>(c.input.plane()) * PIXEL;
    const int64_t output_plane = static_cast<int64_t>(c.output.plane()) * PIXEL;
    const auto all = std::make_integer_sequence<int, GRADIENT_OUTPUTS * GRADIENT_STREAMS>{};
    const Tiles output_tiles(outputs, GRADIENT_OUTPUTS);
    for (const Window& window : c.windows) {
        const int taps = static_cast<int>(window.taps.size());
        const Tiles stream_tiles(inputs * taps, GRADIENT_STREAMS);
        const int all_tiles = c.groups * stream_tiles.tiles;
        for (int group = 0; group < c.groups; ++group) {
            const int before = group * stream_tiles.tiles;
            const int begin = std::max(part.first(all_tiles) - before, 0);
            const int end = std::min(part.end(all_tiles) - before, stream_tiles.tiles);
            for (int s = begin; s < end; ++s) {
                int64_t streams[GRADIENT_STREAMS];
                int places[GRADIENT_STREAMS];  // in a row of weights
                const int size = stream_tiles.size(s);
                for (int i = 0; i < size; ++i) {
                    const int stream = stream_tiles.first(s) + i, channel = stream / taps;
                    const Tap& tap = window.taps[stream % taps];
                    streams[i] = (group * inputs + channel) * input_plane + static_cast<int64_t>(tap.input) * PIXEL;
                    places[i] = channel * positions + tap.position;
                }
                for (int t = 0; t < output_tiles.tiles; ++t) {
                    const int first = group * outputs + output_tiles.first(t), count = output_tiles.size(t);
                    float sums[GRADIENT_OUTPUTS * GRADIENT_STREAMS];
                    StreamArgs a;
                    a.gradient = dy + first * output_plane + static_cast<int64_t>(window.output) * PIXEL;
                    a.channel = output_plane;
                    a.input = x;
                    a.streams = streams;
                    a.rows = window.rows;
                    a.columns = window.columns;
                    a.gradient_row = static_cast<int64_t>(c.output.width) * PIXEL;
                    a.input_row = static_cast<int64_t>(c.stride_height) * c.input.width * PIXEL;
                    a.input_step = static_cast<int64_t>(c.stride_width) * PIXEL;
                    a.sums = sums;
                    a.kept = nullptr;
                    stream_function<Streams>(count, size, all)(a);
                    for (int o = 0; o < count; ++o)
                        for (int i = 0; i < size; ++i)
                            dw[static_cast<int64_t>(first + o) * inputs * positions + places[i]] = sums[o * size + i];
                }
            }
        }
    }
}

inline void conv_weights(const ConvGeometry& c, const float* x, const float* dy, float* dw, float* db, float*,
                         const Part& part) {
    gradient_by_weights<Streams32>(c, x, dy, dw, part);
    if (db && !part.index) channel_sums(c.output, dy, db);
}

inline int64_t scratch_floats(const ConvGeometry&) { return 0; }

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
