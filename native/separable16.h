// Separable convolutions whose 1x1 part has bfloat16 products and float32 sums.
#pragma once

#include "conv16.h"
#include "separable.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

struct Rounded {
    using Products = Products16;
    using Streams = Streams16;
    static constexpr bool ROUNDED = true;

    // Two channels' pixels, zeros for the second where it is null, to one vector a pixel.
    static void to_pair(const float* first, const float* second, int pixels, float* to) {
        channels_to_pair(first, second, static_cast<int64_t>(pixels) * LANES, to);
    }

    // A channel's rows to two pixels a vector. Rows have an even number of pixels, the last of them zeros: which
    // pixels share a vector must not depend on how many rows are worked on together.
    static void to_streams(const float* from, int rows, int width, float* to) {
        for (int r = 0; r < rows; ++r, from += width * LANES, to += (width + 1) / 2 * LANES) {
            to_planes(from, width, to);
            if (width % 2)
                _mm256_store_si256(reinterpret_cast<__m256i*>(to + width * (LANES / 2)), _mm256_setzero_si256());
        }
    }
};

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
