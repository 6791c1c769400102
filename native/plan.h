// The order in which a network's operations run on blocks of 16 images, and where their values lie in memory.
// No kernels and no pointers: a plan holds numbers only, offsets and sizes in floats.
#pragma once

#include <cstdint>
#include <vector>

#include "operations.h"

namespace smidgen {

struct Step {
    // Moments: statistics of an operation's input. Sums: sums for BatchNorm's gradient. Recompute: a value that was
    // not stored is computed once more for the backward pass.
    // Mask: the gradient by the output of an operation with a ReLU is passed through it; in parts only, else Run does it.
    enum Kind { Run, Moments, Sums, Recompute, Mask } kind;
    int operation;
};

// Steps that a thread takes with one block after another; what is said to be a thread's belongs to a block where threads
// share blocks. Then all threads wait, and one joins the blocks'
// statistics of a normalization.
struct Phase {
    std::vector<Step> steps;
    int normalization = -1;  // the operation; -1: none
};

struct ValuePlan {
    Shape shape;
    // A recomputed value is cheap to compute from stored values, and needed only in the phase that computes it: it
    // lies in a thread's memory, and the backward pass recomputes it. That saves writing it to, and reading it
    // from, memory beyond the core's own cache.
    bool recomputed = false;
    // A normalized value that its only reader makes itself, as it reads: nobody stores it.
    bool deferred = false;
    int alias;                     // the value whose memory it shares; itself if none
    int64_t offset = 0;            // in a block's stored values, or in a thread's recomputed values
    int64_t recompute_offset = 0;  // in a thread's memory of the backward pass
    bool needs_gradient = false;
    bool gradient_in_thread = false;  // no other phase needs its gradient
    int64_t gradient_offset = 0;
};

struct OperationPlan {
    int64_t scales = 0;            // offset of its per-channel scales
    int64_t partials = 0;          // offset of its partial gradients among a block's
    int64_t sums = 0;              // offset of a normalization's sums among a block's
    int64_t mask = 0;              // offset of its dropout mask among a block's values
    bool gathers_moments = false;  // a convolution that gathers its output's statistics row by row
    // Of a separable convolution: the normalization that it applies as it reads its input, and the one whose gradient
    // by its input it makes as it reads the gradient by its output; -1: none.
    int applies = -1, undoes = -1;
    // Of a normalization: the operations that do so for it.
    int applied_by = -1, undone_by = -1;
    bool in_backward = false;
    std::vector<bool> accumulates;  // whether its gradient for each input is added to others'
};

// The per-channel scales of a convolution with folded normalizations, and of a normalization.
enum ConvolutionScale { BeforeScale, BeforeShift, AfterScale, AfterShift, CONVOLUTION_SCALES };
enum NormScale { Scale, Shift, Mean, Slope, Offset, InverseDeviation, NORM_SCALES };

struct Plan {
    std::vector<Phase> forward, backward;
    // The same where threads share the work on a block: steps that must be complete before another one's parts begin
    // are steps of their own.
    std::vector<Phase> parted_forward, parted_backward;
    std::vector<ValuePlan> values;
    std::vector<OperationPlan> operations;
    bool values_in_thread = false;  // stored values belong to a thread, not to a block
    bool shares_parameters = false; // two convolutions have a parameter in common
    int max_channels = 1;
    int64_t scales = 0;             // of the whole network
    int64_t block_values = 0;       // a block's stored values and masks
    int64_t thread_values = 0;      // a thread's recomputed values in the forward pass
    int64_t block_gradients = 0;    // a block's gradients that outlive a phase
    int64_t thread_gradients = 0;   // a thread's gradients and recomputed values in the backward pass
    int64_t block_partials = 0;     // a block's gradients by the convolutions' parameters
    int64_t block_sums = 0;         // a block's sums for the normalizations' gradients, doubles
};

inline int64_t block_floats(const Shape& s) { return static_cast<int64_t>(s.pixels()) * BLOCK; }

// `keep`: values are stored for a backward pass. `input_gradient`: that pass goes down to the images.
Plan make_plan(const Network&, bool keep, bool input_gradient);

}  // namespace smidgen
