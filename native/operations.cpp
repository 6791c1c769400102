#include "operations.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace smidgen {

namespace {

constexpr int64_t MAX_PIXELS = int64_t{1} << 26;  // of a value; offsets within a plane are 32-bit counts of floats
constexpr int MAX_WINDOW = 1 << 15;               // kernel, stride, padding or dilation

std::string text(const Shape& s) {
    return std::to_string(s.channels) + "x" + std::to_string(s.height) + "x" + std::to_string(s.width);
}

bool same(const Shape& a, const Shape& b) {
    return a.channels == b.channels && a.height == b.height && a.width == b.width;
}

class Checker {
public:
    Checker(Network& network, bool backward) : network_(network), backward_(backward) {}

    void check() {
        const int values = static_cast<int>(network_.shapes.size());
        if (!values) throw std::invalid_argument("input: the network has no values");
        for (int v = 0; v < values; ++v) check_shape(v);
        writer_.assign(values, nullptr);
        for (Operation& operation : network_.operations) {
            const OperationBase& op = base(operation);
            name_ = op.name;
            check_values(op);
            std::visit([&](auto& kind) { check_kind(kind); }, operation);
            writer_[op.output] = &operation;
        }
        name_ = "output";
        require(network_.output > 0 && network_.output < values && writer_[network_.output],
                "no operation writes value " + std::to_string(network_.output));
        check_input_relu();
    }

private:
    void require(bool met, const std::string& failure) const {
        if (!met) throw std::invalid_argument(name_ + ": " + failure);
    }

    void check_shape(int value) {
        name_ = "value " + std::to_string(value);
        const Shape& s = network_.shapes[value];
        require(s.channels > 0 && s.height > 0 && s.width > 0, "its shape " + text(s) + " is not positive");
        require(static_cast<double>(s.channels) * s.height * s.width <= static_cast<double>(MAX_PIXELS),
                "its shape " + text(s) + " is too large");
    }

    void check_values(const OperationBase& op) const {
        const int values = static_cast<int>(network_.shapes.size());
        for (const int input : op.inputs) {
            require(input >= 0 && input < values, "it reads value " + std::to_string(input) + ", which does not exist");
            require(input == 0 || writer_[input],
                    "it reads value " + std::to_string(input) + ", which no operation before it writes");
        }
        require(op.output > 0 && op.output < values,
                "it cannot write value " + std::to_string(op.output) + "; allowed: 1 to " + std::to_string(values - 1));
        require(!writer_[op.output], "it writes value " + std::to_string(op.output) + ", which was written before");
    }

    void require_inputs(const OperationBase& op, size_t count) const {
        require(op.inputs.size() == count,
                "it has " + std::to_string(op.inputs.size()) + " inputs, not " + std::to_string(count));
    }

    const Shape& input(const OperationBase& op) const { return network_.shapes[op.inputs[0]]; }
    const Shape& output(const OperationBase& op) const { return network_.shapes[op.output]; }

    void require_output(const OperationBase& op, const Shape& expected) const {
        require(same(output(op), expected), "its output is " + text(output(op)) + ", not " + text(expected));
    }

    void require_tensor(const char* role, int tensor, int64_t size, bool optional = true) const {
        if (tensor == NO_TENSOR && optional) return;
        require(tensor >= 0 && tensor < static_cast<int>(network_.tensor_sizes.size()),
                std::string(role) + " is tensor " + std::to_string(tensor) + ", which does not exist");
        require(network_.tensor_sizes[tensor] == size,
                std::string(role) + " has " + std::to_string(network_.tensor_sizes[tensor]) + " values, not " +
                    std::to_string(size));
    }

    void require_between(const char* role, int value, int least, int most) const {
        require(value >= least && value <= most, std::string(role) + " is " + std::to_string(value) + "; allowed: " +
                                                     std::to_string(least) + " to " + std::to_string(most));
    }

    template <size_t N>
    void require_one_of(const char* role, int value, const int (&allowed)[N]) const {
        std::string all;
        bool found = false;
        for (const int each : allowed) {
            all += (all.empty() ? "" : ", ") + std::to_string(each);
            found = found || each == value;
        }
        require(found, std::string(role) + " is " + std::to_string(value) + "; allowed: " + all);
    }

    template <class Geometry>
    void check_window(const Geometry& g) const {
        for (const int side : {g.kernel_height, g.kernel_width}) require_between("kernel", side, 1, MAX_WINDOW);
        for (const int side : {g.stride_height, g.stride_width}) require_between("stride", side, 1, MAX_WINDOW);
        for (const int side : {g.padding_height, g.padding_width}) require_between("padding", side, 0, MAX_WINDOW);
    }

    // How many outputs a window has along one axis, 0 or less where it does not fit.
    static int outputs(int side, int kernel, int stride, int padding, int dilation) {
        const int64_t room = int64_t{side} + 2 * padding - int64_t{dilation} * (kernel - 1) - 1;
        return room < 0 ? 0 : static_cast<int>(room / stride + 1);
    }

    void check_folded(const std::optional<FoldedNorm>& norm, int channels) const {
        if (!norm) return;
        require(!backward_, "a folded normalization has no backward pass");
        require_tensor("weight of a folded normalization", norm->weight, channels);
        require_tensor("bias of a folded normalization", norm->bias, channels);
        require_tensor("running_mean of a folded normalization", norm->running_mean, channels, false);
        require_tensor("running_var of a folded normalization", norm->running_var, channels, false);
        check_epsilon(norm->epsilon);
    }

    void check_epsilon(float epsilon) const {
        require(std::isfinite(epsilon) && epsilon >= 0.0f, "epsilon is not a finite number at least 0");
    }

    void check_products(const Products& op) const {
        const int channels = output(op).channels;
        require_tensor("bias", op.bias, channels);
        require(op.relu || !op.input_relu, "input_relu without relu");
        check_folded(op.before, channels);
        check_folded(op.after, channels);
    }

    void check_kind(Separable& op) const {
        require_inputs(op, 1);
        SeparableGeometry& g = op.geometry;
        g.input = input(op);
        g.output = output(op);
        g.pointwise = op.pointwise != NO_TENSOR;
        require(g.pointwise || op.depthwise != NO_TENSOR, "it has neither a depthwise nor a 1x1 part");
        require(g.pointwise || g.output.channels == g.input.channels,
                "its output has " + std::to_string(g.output.channels) + " channels, not " +
                    std::to_string(g.input.channels));
        require((op.depthwise != NO_TENSOR) == (g.kernel != 0), "its kernel and its depthwise weights contradict");
        Shape expected{g.output.channels, g.input.height, g.input.width};
        if (g.kernel) {
            require_one_of("kernel", g.kernel, DEPTHWISE_KERNELS);
            require_one_of("stride", g.stride, DEPTHWISE_STRIDES);
            for (const int side : {g.padding_height, g.padding_width})
                require_between("padding", side, 0, g.kernel - 1);
            expected.height = outputs(g.input.height, g.kernel, g.stride, g.padding_height, 1);
            expected.width = outputs(g.input.width, g.kernel, g.stride, g.padding_width, 1);
            require_tensor("depthwise", op.depthwise, int64_t{g.input.channels} * g.kernel * g.kernel);
        }
        require_output(op, expected);
        const double weights = static_cast<double>(g.input.channels) * g.output.channels;
        require(weights <= static_cast<double>(MAX_PIXELS), "it has too many weights");
        require_tensor("pointwise", op.pointwise, int64_t{g.input.channels} * g.output.channels);
        require_tensor("middle_bias", op.middle_bias, g.input.channels);
        require(op.middle_bias == NO_TENSOR || (g.kernel && g.pointwise), "middle_bias without two parts");
        check_products(op);
    }

    void check_kind(Convolution& op) const {
        require_inputs(op, 1);
        ConvGeometry& g = op.geometry;
        g.input = input(op);
        g.output = output(op);
        check_window(g);
        for (const int side : {g.dilation_height, g.dilation_width}) require_between("dilation", side, 1, MAX_WINDOW);
        require(g.groups > 0 && g.input.channels % g.groups == 0 && g.output.channels % g.groups == 0,
                std::to_string(g.groups) + " groups do not divide " + std::to_string(g.input.channels) + " and " +
                    std::to_string(g.output.channels) + " channels");
        require_output(
            op, {g.output.channels,
                 outputs(g.input.height, g.kernel_height, g.stride_height, g.padding_height, g.dilation_height),
                 outputs(g.input.width, g.kernel_width, g.stride_width, g.padding_width, g.dilation_width)});
        const int64_t taps = int64_t{g.kernel_height} * g.kernel_width;
        const double weights = static_cast<double>(taps) * g.output.channels * (g.input.channels / g.groups);
        require(weights <= static_cast<double>(MAX_PIXELS), "it has too many weights");
        require_tensor("weight", op.weight, taps * g.output.channels * (g.input.channels / g.groups), false);
        check_products(op);
    }

    void check_kind(const Norm& op) const {
        require_inputs(op, 1);
        const Shape& s = input(op);
        require_output(op, op.pool != PoolKind::None ? Shape{s.channels, s.height / 2, s.width / 2} : s);
        require_tensor("weight", op.weight, s.channels);
        require_tensor("bias", op.bias, s.channels);
        require_tensor("running_mean", op.running_mean, s.channels, op.batch);
        require_tensor("running_var", op.running_var, s.channels, op.batch);
        require((op.running_mean == NO_TENSOR) == (op.running_var == NO_TENSOR),
                "it has only one of running_mean and running_var");
        require_tensor("batches", op.batches, 1);
        require(std::isfinite(op.momentum), "momentum is not a finite number");
        check_epsilon(op.epsilon);
        require_between("dropped", op.dropped, 0, 65535);
        require(op.pool == PoolKind::None || !op.dropped, "it has both pooling and dropout");
    }

    void check_kind(const Activation& op) const {
        require_inputs(op, 1);
        require_output(op, input(op));
    }

    void check_kind(Pool& op) const {
        require_inputs(op, 1);
        require(op.kind != PoolKind::None, "it pools nothing");
        PoolGeometry& g = op.geometry;
        g.input = input(op);
        g.output = output(op);
        check_window(g);
        require(2 * g.padding_height <= g.kernel_height && 2 * g.padding_width <= g.kernel_width,
                "padding is more than half of the kernel");
        require_output(op, {g.input.channels,
                            outputs(g.input.height, g.kernel_height, g.stride_height, g.padding_height, 1),
                            outputs(g.input.width, g.kernel_width, g.stride_width, g.padding_width, 1)});
    }

    void check_kind(const Dropout& op) const {
        require_inputs(op, 1);
        require_output(op, input(op));
        require_between("dropped", op.dropped, 1, 65535);
    }

    void check_kind(const Add& op) const {
        require_inputs(op, 2);
        require_output(op, input(op));
        require_output(op, network_.shapes[op.inputs[1]]);
    }

    void check_kind(const Concatenate& op) const {
        require(!op.inputs.empty(), "it has no inputs");
        Shape expected{0, input(op).height, input(op).width};
        for (const int part : op.inputs) {
            const Shape& s = network_.shapes[part];
            require(s.height == expected.height && s.width == expected.width,
                    "its inputs are " + text(input(op)) + " and " + text(s));
            expected.channels += s.channels;
        }
        require_output(op, expected);
    }

    // A ReLU's gradient that a convolution leaves to the BatchNorm after it is done exactly once.
    void check_input_relu() {
        std::vector<int> readers(network_.shapes.size(), 0);
        readers[network_.output] = 1;
        for (const Operation& operation : network_.operations)
            for (const int v : base(operation).inputs) ++readers[v];
        std::vector<bool> done(network_.shapes.size(), false);
        for (const Operation& operation : network_.operations)
            if (const auto* norm = std::get_if<Norm>(&operation); norm && norm->input_relu) {
                name_ = norm->name;
                const Operation* writer = writer_[norm->inputs[0]];
                const Products* conv = writer ? products_of(*writer) : nullptr;
                require(conv && conv->input_relu && readers[conv->output] == 1,
                        "input_relu, but it does not read, alone, a convolution with input_relu");
                done[conv->output] = true;
            }
        for (const Operation& operation : network_.operations)
            if (const Products* conv = products_of(operation); conv && conv->input_relu) {
                name_ = conv->name;
                require(done[conv->output], "input_relu, but no normalization with input_relu reads its output");
            }
    }

    Network& network_;
    bool backward_;
    std::vector<const Operation*> writer_;  // of each value; null: none so far
    std::string name_;                      // of what is being checked
};

}  // namespace

void complete(Network& network, bool backward) {
    Checker(network, backward).check();
    for (Operation& operation : network.operations)
        if (auto* conv = std::get_if<Convolution>(&operation))
            conv->geometry.prepare();
        else if (auto* separable = std::get_if<Separable>(&operation))
            separable->geometry.prepare();
}

}  // namespace smidgen
