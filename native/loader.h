// Batches from uint8 images: augmented, normalized, and laid out in blocks. Which map each image gets follows from
// counter-based random numbers, the same numbers in the same order as smidgen.data.augment draws.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "threads.h"

namespace smidgen {

struct Augmentation {
    double rotation = 0.0;     // degrees; this and the next three are half-widths of uniform distributions
    double translation = 0.0;  // of the side
    double scale = 0.0, shear = 0.0;
    double elastic = 0.0;             // root-mean-square displacement, pixels
    double elastic_smoothness = 1.0;  // s.d. in pixels of the Gaussian that smooths it
    double flip = 0.0;                // share of images mirrored left to right
    bool nearest = false;             // interpolation by the nearest pixel instead of bilinear
    bool affine() const {
        return rotation != 0.0 || translation != 0.0 || scale != 0.0 || shear != 0.0 || flip != 0.0;
    }
};

// Philox4x64-10 (Salmon et al. 2011): word `index` of the stream that numpy's Philox gives for this
// key and counter.
struct Stream {
    uint64_t key[2];
    uint64_t counter[4];
    void words(int64_t first, int64_t count, uint64_t* out) const;
};

struct Loader {
    const uint8_t* images;  // [available][channels][height][width]
    const int64_t* labels;  // [available], or null
    int64_t available;
    Shape shape;
    Augmentation augmentation;
    uint64_t seed;
    uint64_t affine_purpose, elastic_purpose;  // of their random streams
    float scale, shift;  // a pixel p becomes scale * p + shift
    const Kernels* kernels;

    // picks: which images, in order. blocks: float32 [blocks][channels][height][width][16], zeros in the unused
    // lanes of the last. picked_labels: where their labels go, or null. Raises std::out_of_range for a pick that
    // does not exist.
    void load(Team&, const int64_t* picks, int64_t count, uint64_t epoch, uint64_t step, float* blocks,
              int64_t* picked_labels) const;
};

}  // namespace smidgen
