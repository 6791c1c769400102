#include "operations_binding.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "operations.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace smidgen {

namespace {

using Pair = std::pair<int, int>;  // height, width

ActivationFunction activation_named(const std::string& name) {
    int i = 0;
    for (const char* known : ACTIVATION_NAMES) {
        if (name == known) return static_cast<ActivationFunction>(i);
        ++i;
    }
    throw std::invalid_argument("no activation '" + name + "'");
}

PoolKind pool_kind_named(const std::string& name) {
    if (name == "none") return PoolKind::None;
    if (name == "max") return PoolKind::Max;
    if (name == "average") return PoolKind::Average;
    throw std::invalid_argument("pooling is '" + name + "'; allowed: none, max, average");
}

}  // namespace

void bind_operations(nb::module_& m) {
    m.def("activations", [] {
        return std::vector<std::string>(std::begin(ACTIVATION_NAMES), std::end(ACTIVATION_NAMES));
    });

    nb::class_<FoldedNorm>(m, "FoldedNorm")
        .def("__init__",
             [](FoldedNorm* self, int weight, int bias, int running_mean, int running_var, float epsilon) {
                 new (self) FoldedNorm{weight, bias, running_mean, running_var, epsilon};
             },
             nb::kw_only(), "weight"_a, "bias"_a, "running_mean"_a, "running_var"_a, "epsilon"_a);

    nb::class_<Convolution>(m, "Convolution")
        .def("__init__",
             [](Convolution* self, std::string name, std::vector<int> inputs, int output, int weight, int bias,
                Pair kernel, Pair stride, Pair padding, Pair dilation, int groups, bool relu, bool input_relu,
                std::optional<FoldedNorm> before, std::optional<FoldedNorm> after) {
                 ConvGeometry g;
                 std::tie(g.kernel_height, g.kernel_width) = kernel;
                 std::tie(g.stride_height, g.stride_width) = stride;
                 std::tie(g.padding_height, g.padding_width) = padding;
                 std::tie(g.dilation_height, g.dilation_width) = dilation;
                 g.groups = groups;
                 new (self) Convolution{
                     {{std::move(name), std::move(inputs), output}, bias, relu, input_relu, before, after}, weight, g};
             },
             nb::kw_only(), "name"_a, "inputs"_a, "output"_a, "weight"_a, "bias"_a, "kernel"_a, "stride"_a,
             "padding"_a, "dilation"_a, "groups"_a, "relu"_a, "input_relu"_a, "before"_a.none(), "after"_a.none());

    nb::class_<Separable>(m, "Separable")
        .def("__init__",
             [](Separable* self, std::string name, std::vector<int> inputs, int output, int depthwise, int middle_bias,
                int pointwise, int bias, int kernel, int stride, Pair padding, bool relu, bool input_relu,
                std::optional<FoldedNorm> before, std::optional<FoldedNorm> after) {
                 SeparableGeometry g;
                 g.kernel = kernel;
                 g.stride = stride;
                 std::tie(g.padding_height, g.padding_width) = padding;
                 new (self) Separable{
                     {{std::move(name), std::move(inputs), output}, bias, relu, input_relu, before, after},
                     depthwise, middle_bias, pointwise, g};
             },
             nb::kw_only(), "name"_a, "inputs"_a, "output"_a, "depthwise"_a, "middle_bias"_a, "pointwise"_a, "bias"_a,
             "kernel"_a, "stride"_a, "padding"_a, "relu"_a, "input_relu"_a, "before"_a.none(), "after"_a.none());

    nb::class_<Norm>(m, "Norm")
        .def("__init__",
             [](Norm* self, std::string name, std::vector<int> inputs, int output, int weight, int bias,
                int running_mean, int running_var, int batches, float momentum, float epsilon, bool batch, bool relu,
                const std::string& pool, int dropped, bool input_relu) {
                 new (self) Norm{{std::move(name), std::move(inputs), output},
                                 weight, bias, running_mean, running_var, batches, momentum, epsilon,
                                 batch, relu, pool_kind_named(pool), dropped, input_relu};
             },
             nb::kw_only(), "name"_a, "inputs"_a, "output"_a, "weight"_a, "bias"_a, "running_mean"_a, "running_var"_a,
             "batches"_a, "momentum"_a, "epsilon"_a, "batch"_a, "relu"_a, "pool"_a, "dropped"_a, "input_relu"_a);

    nb::class_<Activation>(m, "Activation")
        .def("__init__",
             [](Activation* self, std::string name, std::vector<int> inputs, int output, const std::string& function,
                float low, float high) {
                 new (self) Activation{
                     {std::move(name), std::move(inputs), output}, activation_named(function), {low, high}};
             },
             nb::kw_only(), "name"_a, "inputs"_a, "output"_a, "function"_a, "low"_a, "high"_a);

    nb::class_<Pool>(m, "Pool")
        .def("__init__",
             [](Pool* self, std::string name, std::vector<int> inputs, int output, const std::string& kind, Pair kernel,
                Pair stride, Pair padding, bool count_padding) {
                 PoolGeometry g;
                 std::tie(g.kernel_height, g.kernel_width) = kernel;
                 std::tie(g.stride_height, g.stride_width) = stride;
                 std::tie(g.padding_height, g.padding_width) = padding;
                 g.count_padding = count_padding;
                 new (self) Pool{{std::move(name), std::move(inputs), output}, pool_kind_named(kind), g};
             },
             nb::kw_only(), "name"_a, "inputs"_a, "output"_a, "kind"_a, "kernel"_a, "stride"_a, "padding"_a,
             "count_padding"_a);

    nb::class_<Dropout>(m, "Dropout")
        .def("__init__",
             [](Dropout* self, std::string name, std::vector<int> inputs, int output, int dropped) {
                 new (self) Dropout{{std::move(name), std::move(inputs), output}, dropped};
             },
             nb::kw_only(), "name"_a, "inputs"_a, "output"_a, "dropped"_a);

    nb::class_<Add>(m, "Add").def(
        "__init__",
        [](Add* self, std::string name, std::vector<int> inputs, int output) {
            new (self) Add{{std::move(name), std::move(inputs), output}};
        },
        nb::kw_only(), "name"_a, "inputs"_a, "output"_a);

    nb::class_<Concatenate>(m, "Concatenate")
        .def("__init__",
             [](Concatenate* self, std::string name, std::vector<int> inputs, int output) {
                 new (self) Concatenate{{std::move(name), std::move(inputs), output}};
             },
             nb::kw_only(), "name"_a, "inputs"_a, "output"_a);
}

}  // namespace smidgen
