// A network as a list of operations, run forward and backward on blocks of 16 images.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace smidgen {

enum class Kind { Conv, Norm, Activation, MaxPool, AveragePool, Dropout, Add, Concat };

// Parameters and buffers are named by their position in the list of pointers that a run is given;
// -1: the operation has none.
struct Operation {
    Kind kind = Kind::Conv;
    std::string name;         // the layer's, for messages
    std::vector<int> inputs;  // values
    int output = 0;

    Conv conv;
    int weight = -1, bias = -1;

    // BatchNorm. `batch` says whether it normalizes by the batch's statistics.
    int running_mean = -1, running_var = -1, batches = -1;
    float momentum = 0.1f, epsilon = 1e-5f;
    bool batch = false, pool = false;
    // The convolution before it applied ReLU, and this operation does the gradient of that. Of a
    // convolution: the next operation does.
    bool input_relu = false;

    // For a convolution: ReLU after the sums. For BatchNorm: ReLU after it.
    bool relu = false;
    // In evaluation: BatchNorm folded into the convolution before or after its ReLU, as operations
    // of their own that are not run.
    std::shared_ptr<Operation> before, after;

    ActivationKind activation;
    Pool window;
    int dropped = 0;  // of 65,536, by dropout; of BatchNorm: by dropout after it
};

struct Value {
    Shape shape;
};

// Where an interval of steps needs memory.
struct Span {
    int value, first, last;
    int64_t floats;
    int64_t offset = 0;
};

// What a gradient needs from the forward pass; one for each forward pass whose backward pass may
// still come.
struct State {
    int64_t images = 0;
    int blocks = 0;
    uint64_t key = 0;
    std::vector<float> scales;  // per channel of each normalization: scale, shift, mean, slope, offset
    float* values = nullptr;    // [block][floats of a block]
    int64_t room = 0;
    ~State();
};

enum Pass { Forward, Statistics, InputGradient, WeightGradient, PASSES };

// Time of one pass of one operation.
struct Timing {
    std::string name;
    int pass;
    double seconds;   // added over threads
    double products;  // multiply-adds of one image, for a convolution; else 0
};

class Program {
public:
    // `keep`: values are kept for a backward pass. `input_gradient`: that pass goes down to the
    // images. `bfloat16`: convolutions with bfloat16 products.
    Program(std::vector<Value> values, std::vector<Operation> operations, std::vector<int64_t> parameter_sizes,
            int output, bool keep, bool input_gradient, bool bfloat16, const Kernels& kernels);

    struct Input {
        const float* data;
        int64_t image_stride, channel_stride, row_stride, column_stride;
    };

    // Raises std::runtime_error that names the layer where a value is no longer a finite number.
    void forward(Team&, const Input&, int64_t images, float* const* pointers, uint64_t key, State&, float* output);
    // `gradients`: where each parameter's goes, null for buffers; `input_gradient` may be null.
    void backward(Team&, const float* output_gradient, float* const* pointers, State&, float* const* gradients,
                  float* input_gradient);

    // Forward, mean cross-entropy (labels smoothed), backward. Gives the loss; `correct` takes how many
    // images have their highest score at their label. Where the loss is no finite number there are no
    // gradients. Raises std::out_of_range for a label that is no class.
    double step(Team&, const Input&, int64_t images, const int64_t* labels, double smoothing, float* const* pointers,
                uint64_t key, State&, float* const* gradients, int64_t* correct);

    const Shape& input_shape() const { return values_.front().shape; }
    const Shape& output_shape() const { return values_[output_].shape; }
    size_t pointers() const { return parameter_sizes_.size(); }

    // With `on`, time is taken for each operation's passes from now on.
    void set_timed(bool on);
    std::vector<Timing> timings() const;

private:
    struct Step {
        // Again: a value that was not kept is made again for the backward pass.
        enum What { Run, Moments, Sums, Again } what;
        int operation;
    };
    // Steps that a thread takes with one block after another; then all threads wait, and one joins
    // the blocks' statistics of a normalization.
    struct Phase {
        std::vector<Step> steps;
        int finish = -1;
    };
    // Memory of the passes, made when first needed and kept.
    struct Memory {
        float* at = nullptr;
        int64_t room = 0;
        Memory() = default;
        Memory(const Memory&) = delete;
        ~Memory();
        void need(int64_t floats);
    };

    void plan_forward();
    void find_passing_values();
    void plan_backward();
    std::vector<int> read_by_gradient(const Operation&) const;
    void start(Team&, State&, bool backward);
    void prepare_operation(int operation, State&, float* const* pointers, bool backward);
    void run_forward(const Step&, int block, int thread, State&, float* const* pointers, bool again);
    void run_backward(const Step&, int block, int thread, State&, float* const* pointers);
    void finish_forward(int operation, State&, float* const* pointers);
    void finish_backward(int operation, State&, float* const* gradients);
    void add_partials(int operation, const State&, float* const* gradients) const;
    void fold(const Operation& norm, int channels, float* const* pointers, float* scale, float* shift) const;
    template <class F>
    void clock(int operation, Pass pass, int thread, const F& work);
    NormArgs norm_args(int operation, int block, int thread, const State&, bool again) const;
    int images_of(int block, const State&) const;
    float* value(int id, int block, int thread, const State&, bool again = false) const;
    float* gradient(int id, int block, int thread) const;
    float* scratch(int thread) const;
    float* moment_state(int thread) const;
    uint16_t* kept(int operation, int block, int thread, const State&) const;
    float* scales(int operation, const State&, int array) const;
    const Convolutions& products() const { return bfloat16_ ? *kernels_.products16 : kernels_.products32; }

    std::vector<Value> values_;
    std::vector<Operation> operations_;
    std::vector<int64_t> parameter_sizes_;
    int output_;
    bool keep_, input_gradient_, bfloat16_;
    bool shared_ = false;  // values' memory belongs to a thread, not to a block
    bool shares_weights_ = false;
    const Kernels& kernels_;

    std::vector<Phase> forward_, backward_;
    std::vector<bool> gathers_moments_;  // convolutions whose output's statistics are gathered as it is made
    // Floats: of a block's values, its gradients that outlive a phase, a thread's gradients.
    int64_t block_floats_ = 0, thread_floats_ = 0, block_gradients_ = 0, thread_gradients_ = 0;
    int64_t scratch_floats_ = 0, packed_floats_ = 0, scale_floats_ = 0, partial_floats_ = 0;
    std::vector<int64_t> value_offset_, gradient_offset_, packed_offset_, scale_offset_, partial_offset_, kept_offset_;
    std::vector<bool> needs_gradient_, gradient_local_;
    std::vector<bool> goes_back_;  // operations that the backward pass comes to
    // A passing value is cheap to make from values that are kept, and needed only in the phase that
    // makes it: it lies in a thread's memory, and the backward pass makes it again. That saves
    // writing it to, and reading it from, memory beyond the core's own cache.
    std::vector<bool> passing_;
    std::vector<int> same_;  // the value whose memory a value shares, itself if none
    std::vector<int64_t> again_offset_;
    std::vector<std::vector<bool>> adds_;  // whether an operation's gradient for an input is added to others

    Memory packed_, gradients_, local_, passing_values_, scratch_, moment_state_, partial_;
    std::vector<Moments> moments_;  // [block][channel] of the normalization at hand
    std::vector<double> sums_;      // likewise, two a channel
    std::vector<double> seconds_;   // [thread][operation][pass]
    int most_channels_ = 1;
    bool timed_ = false;
    std::vector<float> scores_;
    std::string trouble_;
};

}  // namespace smidgen
