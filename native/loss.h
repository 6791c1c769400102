// Cross-entropy of a batch of scores.
#pragma once

#include <cstdint>

namespace smidgen {

// Mean over the images of the cross-entropy with smoothed labels. `scores` [images][classes] are replaced by the
// gradient; `correct` takes how many images have their highest score at their label. Labels must be classes.
double cross_entropy(float* scores, const int64_t* labels, int64_t images, int classes, double smoothing,
                     int64_t* correct);

}  // namespace smidgen
