// Convolutions with bfloat16 products and float32 sums, on CPUs that have the instruction for it
// (avx512_bf16): each adds two products to a sum.
//
// For the forward pass and the gradient by the input the two are of neighbouring channels, so values
// are brought into pairs of channels: [pair][pixel][image][2]. For the gradient by the weights they
// are of neighbouring images, and a register holds two neighbouring pixels: [channel][pixel][image].
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "conv.h"
#include "kernels.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

SMIDGEN_INLINE __m512 raw(const Vec& v) { return (__m512)v.part[0]; }

struct Products16 {
    static SMIDGEN_INLINE void add(Vec& sum, const Vec& x, const float* weight) {
        const __m512 pair = _mm512_set1_ps(*weight);
        sum.part[0] = (Floats)_mm512_dpbf16_ps(raw(sum), (__m512bh)raw(x), (__m512bh)pair);
    }
};

inline int pairs_of(int channels) { return (channels + 1) / 2; }

// Two channels' float32 pixels to one pixel each of 16 images' pairs; zeros for the second where it is null.
inline void channels_to_pair(const float* first, const float* second, int64_t floats, float* to) {
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 32; ++i) order[i] = static_cast<uint16_t>(i / 2 + (i % 2) * 16);
    const __m512i interleave = _mm512_load_si512(order);
    for (int64_t i = 0; i < floats; i += LANES) {
        const __m512 other = second ? _mm512_load_ps(second + i) : _mm512_setzero_ps();
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(other, _mm512_load_ps(first + i));
        _mm512_store_si512(to + i, _mm512_permutexvar_epi16(interleave, both));
    }
}

// [group][channel][pixel] float32 to [group][pair][pixel] of 16 images' pairs.
inline void to_pairs(const float* from, int groups, int channels, int plane, float* to) {
    const int64_t next = static_cast<int64_t>(plane) * LANES;
    for (int group = 0; group < groups; ++group, from += channels * next)
        for (int c = 0; c < channels; c += 2, to += next)
            channels_to_pair(from + c * next, c + 1 < channels ? from + (c + 1) * next : nullptr, next, to);
}

// float32 pixels to bfloat16 pixels in the same order.
inline void to_planes(const float* from, int64_t pixels, float* to) {
    int64_t i = 0;
    for (; i + 2 <= pixels; i += 2)
        _mm512_store_si512(to + i * (LANES / 2),
                           (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(from + (i + 1) * LANES),
                                                        _mm512_load_ps(from + i * LANES)));
    if (i < pixels)
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + i * (LANES / 2)),
                           (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(from + i * LANES)));
}

inline uint32_t rounded16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (bits >> 16) | 64;  // NaN stays NaN
    return (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
}

inline float weight_pair(float first, float second) {
    const uint32_t bits = rounded16(first) | rounded16(second) << 16;
    float pair;
    std::memcpy(&pair, &bits, sizeof pair);
    return pair;
}

inline int64_t packed_floats16(const ConvGeometry& c) {
    const int64_t forward = static_cast<int64_t>(c.forward.outputs) * pairs_of(c.forward.inputs);
    const int64_t backward = static_cast<int64_t>(c.forward.inputs) * pairs_of(c.forward.outputs);
    return std::max(forward, backward) * c.groups * c.positions();
}

// Weights of one gather, `at(output, input, position)`, to [tile][pair][position][output of the tile].
template <class At>
float* pack_tiles16(int outputs, int inputs, int positions, float* packed, const At& at) {
    const Tiles tiles(outputs, MOST_OUTPUTS);
    for (int t = 0; t < tiles.tiles; ++t)
        for (int i = 0; i < inputs; i += 2)
            for (int p = 0; p < positions; ++p)
                for (int o = tiles.first(t); o < tiles.first(t + 1); ++o)
                    *packed++ = weight_pair(at(o, i, p), i + 1 < inputs ? at(o, i + 1, p) : 0.0f);
    return packed;
}

inline void pack_forward16(const ConvGeometry& c, const float* weights, float* packed) {
    const int outputs = c.forward.outputs, inputs = c.forward.inputs, positions = c.positions();
    for (int group = 0; group < c.groups; ++group, weights += static_cast<int64_t>(outputs) * inputs * positions)
        packed = pack_tiles16(outputs, inputs, positions, packed, [&](int o, int i, int p) {
            return weights[(static_cast<int64_t>(o) * inputs + i) * positions + p];
        });
}

inline void pack_backward16(const ConvGeometry& c, const float* weights, float* packed) {
    const int outputs = c.forward.outputs, inputs = c.forward.inputs, positions = c.positions();
    for (int group = 0; group < c.groups; ++group, weights += static_cast<int64_t>(outputs) * inputs * positions)
        packed = pack_tiles16(inputs, outputs, positions, packed, [&](int i, int o, int p) {
            return weights[(static_cast<int64_t>(o) * inputs + i) * positions + p];
        });
}

inline int64_t scratch_floats16(const ConvGeometry& c) {
    const int64_t input = static_cast<int64_t>(c.groups) * pairs_of(c.forward.inputs) * c.input.plane() * LANES;
    const int64_t output = static_cast<int64_t>(c.groups) * pairs_of(c.forward.outputs) * c.output.plane() * LANES;
    const int64_t planes = (c.input.pixels() + 1) / 2 + (c.output.pixels() + 1) / 2;
    return std::max({input, output, planes * LANES});
}

inline void conv_forward16(const ConvGeometry& c, const float* x, const float* packed, const Epilogue& epilogue,
                           float* y, float* scratch, const Part& part, int images, Moments* moments, float* state) {
    if (part.none_of(c.output.height)) return;
    to_pairs(x, c.groups, c.forward.inputs, c.input.plane(), scratch);
    gather_forward<Products16>(c, pairs_of(c.forward.inputs), scratch, packed, epilogue, y, part, images, moments,
                               state);
}

inline void conv_backward16(const ConvGeometry& c, const float* dy, const float* packed, float* dx, bool add,
                            float* scratch, const Part& part) {
    if (part.none_of(c.input.height)) return;
    to_pairs(dy, c.groups, c.forward.outputs, c.output.plane(), scratch);
    gather_backward<Products16>(c, pairs_of(c.backward.inputs), scratch, packed, dx, add, part);
}

// As `stream_tile`, two pixels at a time.
template <int O, int S>
__attribute__((noinline)) void stream_tile16(const StreamArgs& a) {
    __m512 sums[O][S];
    SMIDGEN_UNROLL for (int o = 0; o < O; ++o)
        SMIDGEN_UNROLL for (int s = 0; s < S; ++s)
            sums[o][s] = a.kept ? _mm512_load_ps(a.kept + (o * S + s) * LANES) : _mm512_setzero_ps();
    int64_t offset[S];
    SMIDGEN_UNROLL for (int s = 0; s < S; ++s) offset[s] = a.streams[s];
    const auto multiply = [&](const float* gradient, const float* input, const auto& fetch) SMIDGEN_LAMBDA {
        __m512bh g[O];
        SMIDGEN_UNROLL for (int o = 0; o < O; ++o) g[o] = (__m512bh)fetch(gradient + o * a.channel);
        SMIDGEN_UNROLL for (int s = 0; s < S; ++s) {
            const __m512bh x = (__m512bh)fetch(input + offset[s]);
            SMIDGEN_UNROLL for (int o = 0; o < O; ++o) sums[o][s] = _mm512_dpbf16_ps(sums[o][s], g[o], x);
        }
    };
    for (int row = 0; row < a.rows; ++row) {
        const float* gradient = a.gradient + row * a.gradient_row;
        const float* input = a.input + row * a.input_row;
        int i = 0;
        for (; i + 2 <= a.columns; i += 2, gradient += LANES, input += LANES)
            multiply(gradient, input, [](const float* p) SMIDGEN_LAMBDA { return _mm512_loadu_si512(p); });
        if (i < a.columns)
            multiply(gradient, input, [](const float* p) SMIDGEN_LAMBDA {
                return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
            });
    }
    alignas(64) float lanes[O * S * LANES];
    float* to = a.kept ? a.kept : lanes;
    SMIDGEN_UNROLL for (int o = 0; o < O; ++o)
        SMIDGEN_UNROLL for (int s = 0; s < S; ++s) _mm512_store_ps(to + (o * S + s) * LANES, sums[o][s]);
    if (!a.kept) lane_sums(lanes, O * S, a.sums);
}

struct Streams16 {
    static constexpr int PIXEL = LANES / 2;
    template <int O, int S>
    static void tile(const StreamArgs& a) {
        stream_tile16<O, S>(a);
    }
};

inline void conv_weights16(const ConvGeometry& c, const float* x, const float* dy, float* dw, float* db,
                           float* scratch, const Part& part) {
    // With a stride, the inputs of neighbouring outputs are not neighbours.
    if (c.stride_width != 1) return conv_weights(c, x, dy, dw, db, scratch, part);
    float* gradient = scratch + static_cast<int64_t>((c.input.pixels() + 1) / 2) * LANES;
    to_planes(x, c.input.pixels(), scratch);
    to_planes(dy, c.output.pixels(), gradient);
    gradient_by_weights<Streams16>(c, scratch, gradient, dw, part);
    if (db && !part.index) channel_sums(c.output, dy, db);
}

inline void peak16(Vec* chain, int chains, int64_t rounds) {
    __m512 sums[12];
    for (int k = 0; k < chains; ++k) sums[k] = raw(chain[k]);
    const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3F803F80), b = (__m512bh)_mm512_set1_epi32(0x00010001);
    for (int64_t i = 0; i < rounds; ++i)
        _Pragma("GCC unroll 12") for (int k = 0; k < 12; ++k) sums[k] = _mm512_dpbf16_ps(sums[k], a, b);
    for (int k = 0; k < chains; ++k) chain[k].part[0] = (Floats)sums[k];
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
