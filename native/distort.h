// Random distortion of a batch of uint8 images: which map each image gets, from counter-based
// random numbers. The same numbers, in the same order, as smidgen.data.augment draws.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "threads.h"

namespace smidgen {

struct Distortion {
    double rotation = 0.0;  // degrees; this and the next four are half-widths of uniform distributions
    double translation = 0.0;  // of the side
    double scale = 0.0, shear = 0.0;
    double elastic = 0.0;  // root-mean-square displacement, pixels; smoothed by a Gaussian of this s.d.:
    double smoothness = 4.0;
    double flip = 0.0;  // share of images mirrored left to right
    bool nearest = false;
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

// Loads batches of distorted images.
struct Loader {
    const uint8_t* images;  // [available][channels][height][width]
    const int64_t* labels;  // [available], or null
    int64_t available;
    Shape shape;
    Distortion distortion;
    uint64_t seed, purpose;
    float scale, shift;
    const Kernels* kernels;

    // picks: which images, in order. out: float32 [channels][height][width][room], the image
    // innermost: scale * pixel + shift. chosen: their labels, or null. Raises std::out_of_range for a
    // pick that is not there.
    void load(Team&, const int64_t* picks, int64_t count, uint64_t epoch, uint64_t step, float* out, int64_t room,
              int64_t* chosen) const;
};

}  // namespace smidgen
