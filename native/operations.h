// The operations of a network: one struct a kind.
//
// Values (the images, and what lies between operations) are numbered, 0 being the images. Parameters and buffers
// are named by their position among the tensors that a pass is given; NO_TENSOR: the operation has none.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "activations.h"
#include "geometry.h"

namespace smidgen {

constexpr int NO_TENSOR = -1;

struct OperationBase {
    std::string name;         // the layer's, for messages
    std::vector<int> inputs;  // values
    int output = 0;           // value
};

// BatchNorm by running statistics, as an affine map within a convolution.
struct FoldedNorm {
    int weight = NO_TENSOR, bias = NO_TENSOR, running_mean = NO_TENSOR, running_var = NO_TENSOR;
    float epsilon = 0.0f;
};

// What makes sums of products, and then something of them.
struct Products : OperationBase {
    int bias = NO_TENSOR;
    bool relu = false;        // applies ReLU to its sums
    bool input_relu = false;  // the BatchNorm that reads its output does the gradient of that ReLU
    std::optional<FoldedNorm> before, after;  // the ReLU; only without a backward pass
};

struct Convolution : Products {
    int weight = NO_TENSOR;
    ConvGeometry geometry;
};

// A depthwise convolution, a 1x1 convolution, or the second after the first.
struct Separable : Products {
    int depthwise = NO_TENSOR, middle_bias = NO_TENSOR, pointwise = NO_TENSOR;
    SeparableGeometry geometry;
};

struct Norm : OperationBase {
    int weight = NO_TENSOR, bias = NO_TENSOR, running_mean = NO_TENSOR, running_var = NO_TENSOR;
    int batches = NO_TENSOR;  // counts the batches whose statistics were gathered
    float momentum = 0.0f, epsilon = 0.0f;
    bool batch = false;       // normalizes by the batch's statistics, not the running ones
    bool relu = false;        // then ReLU
    PoolKind pool = PoolKind::None;  // then 2x2 pooling with stride 2
    int dropped = 0;          // or then dropout, of 65,536
    bool input_relu = false;  // the convolution before it applied ReLU, whose gradient this operation does
};

struct Activation : OperationBase {
    ActivationFunction function = ActivationFunction::relu;
    ActivationLimits limits;
};

struct Pool : OperationBase {
    PoolKind kind = PoolKind::Max;
    PoolGeometry geometry;
};

struct Dropout : OperationBase {
    int dropped = 0;  // of 65,536
};

struct Add : OperationBase {};

struct Concatenate : OperationBase {};

using Operation = std::variant<Convolution, Separable, Norm, Activation, Pool, Dropout, Add, Concatenate>;

// What all operations have.
inline const OperationBase& base(const Operation& operation) {
    return std::visit([](const auto& op) -> const OperationBase& { return op; }, operation);
}

// An operation as what makes sums of products; null: it is no such operation.
inline const Products* products_of(const Operation& operation) {
    if (const auto* conv = std::get_if<Convolution>(&operation)) return conv;
    return std::get_if<Separable>(&operation);
}

// Whether the gradient by its output must be passed through its ReLU first.
inline bool masks(const Products& products) { return products.relu && !products.input_relu; }

// Whether threads can share the work on a block; the others are done whole.
inline bool has_parts(const Operation& operation) {
    return products_of(operation) || std::holds_alternative<Norm>(operation);
}

// How many of 65,536 values an operation drops.
inline int dropped(const Operation& operation) {
    if (const auto* norm = std::get_if<Norm>(&operation)) return norm->dropped;
    if (const auto* dropout = std::get_if<Dropout>(&operation)) return dropout->dropped;
    return 0;
}

// A network: what its operations are, and the values and tensors that they name.
struct Network {
    std::vector<Shape> shapes;           // of the values
    std::vector<Operation> operations;   // in the order in which they run
    std::vector<int64_t> tensor_sizes;   // scalars of each parameter and buffer
    int output = 0;                      // value
};

// Completes the operations' geometry from the shapes.
//
// Raises std::invalid_argument, which names the operation, where a value or tensor does not exist, a number is out
// of its range, or shapes contradict each other or the tensors' sizes. `backward`: there will be a backward pass.
void complete(Network&, bool backward);

}  // namespace smidgen
