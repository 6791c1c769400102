// What a network's passes multiply and move, worked out from its plan.
#pragma once

#include <array>
#include <vector>

#include "plan.h"
#include "timing.h"

namespace smidgen {

// Of one image.
struct Work {
    double products = 0;  // multiply-adds, by the textbook: what is worked out twice counts once
    double moved = 0;     // floats of values and gradients that are read or written, but for a few rows at a time
    double least = 0;     // floats that must be: each layer reads its input and the gradient by its output, writes its
                          // output and the gradient by its input, and reads its output where BatchNorm follows; all
                          // else could be done on the way
};

// The pass that is charged with passing the gradient by an operation's output through its ReLU.
inline Pass mask_pass(const Operation& operation) {
    return std::holds_alternative<Convolution>(operation) ? WeightGradient : Backward;
}

// Of each operation's passes.
std::vector<std::array<Work, PASSES>> work_of(const Network&, const Plan&, bool in_parts);

}  // namespace smidgen
