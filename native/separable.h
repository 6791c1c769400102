// Separable convolutions, some rows at a time: what lies between the depthwise and the 1x1 part, and what BatchNorm
// and ReLU make of the input, exists only for those rows, in the core's own caches.
#pragma once

#include <algorithm>

#include "conv.h"
#include "depthwise.h"
#include "kernels.h"
#include "moments.h"
#include "rows.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

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

// A 1x1 convolution of `pixels` neighbouring pixels, to some of its tiles. `inputs`: channels, or pairs of them.
template <class P>
void pointwise(const Tiles& tiles, const Part& part, int inputs, const float* from, int64_t channel,
               const float* packed, const Epilogue& epilogue, float* to, int64_t output_channel, int pixels) {
    static constexpr Tap here[] = {{0, 0}};
    const auto all = std::make_integer_sequence<int, MOST_OUTPUTS>{};
    for (int t = part.first(tiles.tiles); t < part.end(tiles.tiles); ++t) {
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
    const int end = a.part.end(g.output.height);
    for (int first = a.part.first(g.output.height); first < end; first += l.rows) {
        const int rows = std::min(l.rows, end - first), pixels = rows * pass.width;
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
            pointwise<P>(tiles, Part{}, pass.vectors(channels), plain ? a.x + start : middle,
                         plain ? pass.input_plane : l.plane, a.packed, epilogue, y + start, pass.output_plane, pixels);
        for (int row = first; moments && row < first + rows; ++row) moments_row(g.output, y, row, state);
    }
    if (moments) moments_end(g.output, state, images, moments);
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
          first_channel(input_tiles.first(a.part.first(input_tiles.tiles))),
          end_channel(input_tiles.first(a.part.end(input_tiles.tiles))),
          first_output(g.pointwise ? 0 : first_channel),
          end_output(g.pointwise ? outputs : end_channel),
          sums_output(d.bias && first_channel < end_channel && (first_channel == 0 || !g.pointwise)),
          output_tiles(outputs, GRADIENT_OUTPUTS),
          stream_tiles(end_channel - first_channel, GRADIENT_STREAMS) {
        if (first_channel == end_channel) return;
        std::memset(at(l.zeros_at), 0, static_cast<size_t>(l.floats - l.zeros_at) * sizeof(float));
        for (int c = first_channel; l.border && c < end_channel; ++c)
            for (int row = 0; row < l.gradient_rows; ++row) {
                float* to = at(l.gradient_at) + c * l.gradient + row * gradient_row();
                for (float* side : {to, to + (l.border + width) * LANES})
                    std::memset(side, 0, static_cast<size_t>(l.border) * LANES * sizeof(float));
            }
    }

    void run() {
        if (first_channel == end_channel) return;
        for (first = 0; first < g.output.height; first += l.rows) {
            rows = std::min(l.rows, g.output.height - first);
            last = first + l.rows >= g.output.height;
            read_output_gradient();
            middle_gradient();
            for (int c = first_channel; c < end_channel; ++c) channel(c);
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
        for (int o = first_output; o < end_output; ++o) {
            const float* from = d.dy ? d.dy + start() + o * output_plane : nullptr;
            if (d.norm) {
                float* const to = P::ROUNDED ? at(l.raw_at) + o % 2 * l.plane : at(l.output_at) + o * l.plane;
                gradient_rows(*d.norm, o, d.y + o * output_plane, d.da + o * da_plane, first, rows, to);
                from = to;
            }
            for (int r = 0; sums_output && r < rows; ++r)
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
                pointwise<P>(input_tiles, a.part, Base::vectors(outputs), dy + static_cast<int64_t>(r) * width * LANES,
                             dy_channel, a.packed, Epilogue{},
                             g.kernel ? gradient_of(0, first + r) : at(l.gradient_at), l.gradient, together * width);
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
            for (int i = 0; i < size; ++i) streams[i] = (first_channel + stream_tiles.first(s) + i) * channel;
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
        const int mine = end_channel - first_channel, taps = g.kernel * g.kernel, first_tap = first_channel * taps;
        if (g.kernel) lane_sums(at(l.taps_at) + first_tap * LANES, mine * taps, d.depthwise + first_tap);
        if (d.middle_bias) lane_sums(middle_sums(first_channel), mine, d.middle_bias + first_channel);
        if (sums_output) lane_sums(output_sums(first_output), end_output - first_output, d.bias + first_output);
        const float* kept = at(l.tiles_at);
        for (int s = 0; g.pointwise && s < stream_tiles.tiles; ++s)
            for (int t = 0; t < output_tiles.tiles; ++t) {
                const int count = output_tiles.size(t), size = stream_tiles.size(s);
                float totals[GRADIENT_OUTPUTS * GRADIENT_STREAMS];
                lane_sums(kept, count * size, totals);
                kept += static_cast<int64_t>(count) * size * LANES;
                for (int o = 0; o < count; ++o)
                    for (int i = 0; i < size; ++i)
                        d.pointwise[static_cast<int64_t>(output_tiles.first(t) + o) * channels + first_channel +
                                    stream_tiles.first(s) + i] = totals[o * size + i];
            }
        for (int c = first_channel; a.norm && d.dx && c < end_channel; ++c) {
            d.sums[2 * c] = sum(load(input_sums(c)));
            d.sums[2 * c + 1] = sum(load(input_sums(c) + LANES));
        }
    }

    const SeparableGradients& d;
    const Tiles input_tiles;
    const int first_channel, end_channel;  // of the input and the middle: the part's whole tiles
    const int first_output, end_output;    // that these need
    const bool sums_output;                // all parts may need all outputs; one sums them up
    const Tiles output_tiles, stream_tiles;
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
