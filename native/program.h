// A network that runs forward and backward on blocks of 16 images.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "plan.h"
#include "threads.h"
#include "timing.h"
#include "work.h"

namespace smidgen {

// A batch of images in memory.
struct Images {
    const float* data;
    std::optional<Strides> strides;  // none: blocks as the kernels read them, [block][channel][row][column][16]
    int64_t count;
};

// What a backward pass needs from its forward pass; one for each forward pass whose backward pass may still come.
struct State {
    int64_t images = 0;
    int blocks = 0;
    uint64_t key = 0;
    const float* input = nullptr;  // images that were given as blocks: the backward pass reads them again
    std::vector<float> scales;     // per-channel scales of each operation
    AlignedFloats values;          // [block or thread][stored values]
};

struct Options {
    bool keep;            // values are stored for a backward pass
    bool input_gradient;  // that pass goes down to the images
    bool bfloat16;        // convolutions with bfloat16 products
    int64_t cache = 0;    // bytes of a core's own cache; 0: what the system says. Of no influence on results
};

class Program {
public:
    // Raises std::invalid_argument for a network that contradicts itself (see `complete`), or options that the
    // kernels do not have.
    Program(Network, const Options&, const Kernels&);

    // Raises std::runtime_error that names the layer where a value is not finite, std::invalid_argument for
    // blocks that are not aligned to 64 bytes. `tensors`: parameters and buffers. `key`: of dropout.
    void forward(Team&, const Images&, float* const* tensors, uint64_t key, State&, float* output);
    // `gradients`: where each parameter's goes, null for buffers; `input_gradient` may be null.
    void backward(Team&, const float* output_gradient, float* const* tensors, State&, float* const* gradients,
                  float* input_gradient);

    // Forward, mean cross-entropy (labels smoothed), backward. Returns the loss; `correct` takes how many
    // images have their highest score at their label. Where the loss is not finite the gradients are left as they
    // were. Raises std::out_of_range for a label that is no class.
    double step(Team&, const Images&, const int64_t* labels, double smoothing, float* const* tensors, uint64_t key,
                State&, float* const* gradients, int64_t* correct);

    const std::vector<Operation>& operations() const { return network_.operations; }
    LayerTimer& timer() { return timer_; }
    // As the last forward pass, and a backward pass with as many threads, did it.
    std::vector<std::array<Work, PASSES>> work() const { return work_of(network_, plan_, in_parts_); }

private:
    // One operation on one block, or on a part of it.
    struct Task {
        int operation, block, thread;
        int owner;  // whose is what a thread keeps while it works on a block: the thread; of blocks in parts, the block
        Part part;
        State& state;
        float* const* tensors;
        bool backward;
    };

    // program.cpp: passes over all blocks.
    int parts(const Team&, const State&) const;
    int owners(const Team&, const State&) const;  // how many there are: see Task
    void reserve_forward(const Team&, State&);
    void reserve_backward(const Team&, const State&);
    template <class Begin, class End, class Then>
    void run_phase(Team&, const std::vector<Phase>&, const Phase&, int parts, const Task& like, const Begin&,
                   const End&, const Then&);
    void run_step(const Step&, const Task&);
    bool read_images(const Images&, const Task&);

    // steps.cpp: one operation.
    void prepare_forward(int operation, State&, float* const* tensors);
    void prepare_backward(int operation, float* const* tensors);
    void run_forward(const Step&, const Task&);
    void run_backward(const Step&, const Task&);
    void mask_gradient(const Task&);
    void compute(const Convolution&, const Task&);
    void compute(const Separable&, const Task&);
    void compute(const Norm&, const Task&);
    void compute(const Activation&, const Task&);
    void compute(const Pool&, const Task&);
    void compute(const Dropout&, const Task&);
    void compute(const Add&, const Task&);
    void compute(const Concatenate&, const Task&);
    void differentiate(const Convolution&, const Task&);
    void differentiate(const Separable&, const Task&);
    void differentiate(const Norm&, const Task&);
    void differentiate(const Activation&, const Task&);
    void differentiate(const Pool&, const Task&);
    void differentiate(const Dropout&, const Task&);
    void differentiate(const Add&, const Task&);
    void differentiate(const Concatenate&, const Task&);
    // Join the blocks' statistics of a normalization.
    void join_moments(int operation, State&, float* const* tensors);
    void join_sums(int operation, State&, float* const* gradients);
    void add_partials(int operation, const State&, float* const* gradients) const;

    NormArgs norm_args(int normalization, const Task&) const;
    NormArgs norm_backward_args(int normalization, const Task&) const;
    Epilogue epilogue(const Products&, const Task&) const;
    SeparableArgs separable_args(const Separable&, const Task&, NormArgs* applied) const;
    double* sums(int normalization, int block) {
        return sums_.data() + block * plan_.block_sums + plan_.operations[normalization].sums;
    }
    static int images_of(int block, const State&);
    const float* input_value(int id, const Task&) const;
    float* value(int id, const Task&) const;
    float* gradient(int id, const Task&) const;
    // Where the gradient for an operation's input goes; null where it is not needed.
    float* input_gradient(int id, const Task&) const;
    float* scales(int operation, State&, int array) const;
    uint16_t* mask(int operation, const Task&) const;
    float* scratch(int thread) const { return scratch_.data() + thread * scratch_floats_; }
    float* moment_state(int thread) const;
    Moments* moments(int block, int channels) { return moments_.data() + static_cast<size_t>(block) * channels; }
    const Shape& shape(int id) const { return plan_.values[id].shape; }
    const OperationBase& op(int operation) const { return base(network_.operations[operation]); }
    const Convolutions& products() const { return options_.bfloat16 ? *kernels_.products16 : kernels_.products32; }

    Network network_;
    Options options_;
    const Kernels& kernels_;
    Plan plan_;
    std::vector<int64_t> packed_offset_;  // of each convolution's packed weights
    int64_t packed_floats_ = 0, scratch_floats_ = 0;

    // Memory of the passes.
    AlignedFloats packed_, scratch_, moment_state_;
    AlignedFloats thread_values_, thread_gradients_, block_gradients_, partials_;
    std::vector<Moments> moments_;  // [block][channel] of the normalization at hand
    std::vector<double> sums_;      // [block][normalization][channel], two each
    std::vector<float> scores_;
    std::string failure_;           // of the forward pass that is running
    bool in_parts_ = false;         // whether threads shared blocks in the last forward pass
    LayerTimer timer_;
};

}  // namespace smidgen
