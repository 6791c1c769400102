// What Python sees: programs, and the loading of images. Pointers come as integers from tensors whose
// type, shape and layout the Python side (smidgen/engines/native) has checked.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "loader.h"
#include "operations_binding.h"
#include "program.h"
#include "soap_optimizer.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace smidgen;

namespace {

// One job at a time: a team's threads and a program's memory serve one caller.
std::mutex running;

Team& team_of(int threads) {
    if (threads < 1) throw std::invalid_argument("there must be at least one thread");
    static std::map<int, Team*>* teams = new std::map<int, Team*>;
    static pid_t owner = getpid();
    if (owner != getpid()) {  // after a fork the child has none of the threads
        teams = new std::map<int, Team*>;
        owner = getpid();
    }
    Team*& team = (*teams)[threads];
    if (!team) team = new Team(threads);
    return *team;
}

const Kernels& kernels_of(const std::string& level) {
    for (const Kernels* const* k = available_kernels(); *k; ++k)
        if (level == (*k)->name) return **k;
    throw std::invalid_argument("no instruction level '" + level + "' here");
}

using Triple = std::array<int, 3>;  // channels, height, width

Shape shape_of(const Triple& s) { return {s[0], s[1], s[2]}; }

Images images_of(uintptr_t data, const std::optional<std::array<int64_t, 4>>& strides, int64_t count) {
    Images images{reinterpret_cast<const float*>(data), std::nullopt, count};
    if (strides) images.strides = Strides{(*strides)[0], (*strides)[1], (*strides)[2], (*strides)[3]};
    return images;
}

// A strength of an augmentation: finite and not negative.
double strength(const char* name, double value) {
    if (!std::isfinite(value) || value < 0.0)
        throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; it must be at least 0");
    return value;
}

std::vector<float*> pointers_of(const std::vector<uintptr_t>& addresses) {
    std::vector<float*> pointers;
    pointers.reserve(addresses.size());
    for (const uintptr_t address : addresses) pointers.push_back(reinterpret_cast<float*>(address));
    return pointers;
}

}  // namespace

NB_MODULE(_core, m) {
    nb::set_leak_warnings(false);  // a network may well live until the interpreter ends
    m.doc() = "The native engine's kernels; use smidgen.engines.native.";
    bind_operations(m);
    nb::class_<State>(m, "State").def(nb::init<>());
    nb::class_<Program>(m, "Program")
        .def("__init__",
             [](Program* self, const std::vector<Triple>& shapes, std::vector<Operation> operations,
                std::vector<int64_t> tensor_sizes, int output, bool keep, bool input_gradient, bool bfloat16,
                int64_t cache, const std::string& level) {
                 Network network{{}, std::move(operations), std::move(tensor_sizes), output};
                 for (const Triple& shape : shapes) network.shapes.push_back(shape_of(shape));
                 // Program holds memory and cannot be moved: it is built in place.
                 new (self) Program(std::move(network), {keep, input_gradient, bfloat16, cache}, kernels_of(level));
             },
             nb::kw_only(), "shapes"_a, "operations"_a, "tensor_sizes"_a, "output"_a, "keep"_a, "input_gradient"_a,
             "bfloat16"_a, "cache"_a = 0, "level"_a)
        // strides: in floats, of [count, channels, height, width]; None: blocks, 64-byte aligned, which must stay
        // as they are until the backward pass is done.
        .def("forward",
             [](Program& self, uintptr_t images, const std::optional<std::array<int64_t, 4>>& strides, int64_t count,
                const std::vector<uintptr_t>& tensors, uint64_t key, State& state, uintptr_t output, int threads) {
                 const std::vector<float*> pointers = pointers_of(tensors);
                 nb::gil_scoped_release release;
                 std::lock_guard<std::mutex> hold(running);
                 self.forward(team_of(threads), images_of(images, strides, count), pointers.data(), key, state,
                              reinterpret_cast<float*>(output));
             },
             "images"_a, "strides"_a.none(), "count"_a, "tensors"_a, "key"_a, "state"_a, "output"_a, "threads"_a)
        .def("backward",
             [](Program& self, uintptr_t output_gradient, const std::vector<uintptr_t>& tensors, State& state,
                const std::vector<uintptr_t>& gradients, uintptr_t input_gradient, int threads) {
                 const std::vector<float*> pointers = pointers_of(tensors);
                 const std::vector<float*> gradient_pointers = pointers_of(gradients);
                 nb::gil_scoped_release release;
                 std::lock_guard<std::mutex> hold(running);
                 self.backward(team_of(threads), reinterpret_cast<const float*>(output_gradient), pointers.data(),
                               state, gradient_pointers.data(), reinterpret_cast<float*>(input_gradient));
             },
             "output_gradient"_a, "tensors"_a, "state"_a, "gradients"_a, "input_gradient"_a, "threads"_a)
        .def("step",
             [](Program& self, uintptr_t images, const std::optional<std::array<int64_t, 4>>& strides, int64_t count,
                uintptr_t labels, double smoothing, const std::vector<uintptr_t>& tensors, uint64_t key, State& state,
                const std::vector<uintptr_t>& gradients, int threads) {
                 const std::vector<float*> pointers = pointers_of(tensors);
                 const std::vector<float*> gradient_pointers = pointers_of(gradients);
                 int64_t correct = 0;
                 nb::gil_scoped_release release;
                 std::lock_guard<std::mutex> hold(running);
                 const double loss = self.step(team_of(threads), images_of(images, strides, count),
                                               reinterpret_cast<const int64_t*>(labels), smoothing, pointers.data(),
                                               key, state, gradient_pointers.data(), &correct);
                 return std::make_pair(loss, correct);
             },
             "images"_a, "strides"_a.none(), "count"_a, "labels"_a, "smoothing"_a, "tensors"_a, "key"_a, "state"_a,
             "gradients"_a, "threads"_a)
        .def("set_timed", [](Program& self, bool on) { self.timer().set(on); })
        // Of the passes that took time: operation, pass, seconds (added over threads), and, of one image,
        // multiply-adds, bytes that are moved, and bytes that must be.
        .def("timings", [](Program& self) {
            std::vector<std::tuple<std::string, std::string, double, double, double, double>> found;
            const auto all = self.work();
            for (size_t i = 0; i < self.operations().size(); ++i)
                for (int pass = 0; pass < PASSES; ++pass)
                    if (const double seconds = self.timer().seconds(i, pass); seconds > 0.0) {
                        const Work& work = all[i][static_cast<size_t>(pass)];
                        found.emplace_back(base(self.operations()[i]).name, PASS_NAMES[pass], seconds, work.products,
                                           sizeof(float) * work.moved, sizeof(float) * work.least);
                    }
            return found;
        });
    m.def("levels", [] {
        std::vector<std::pair<std::string, bool>> found;
        for (const Kernels* const* k = available_kernels(); *k; ++k)
            found.emplace_back((*k)->name, (*k)->products16 != nullptr);
        return found;
    });
    nb::class_<Augmentation>(m, "Augmentation")
        .def("__init__",
             [](Augmentation* self, double rotation, double translation, double scale, double shear, double elastic,
                double elastic_smoothness, double flip, bool nearest) {
                 if (!(elastic_smoothness > 0.0)) throw std::invalid_argument("elastic_smoothness must be above 0");
                 new (self) Augmentation{.rotation = strength("rotation", rotation),
                                         .translation = strength("translation", translation),
                                         .scale = strength("scale", scale),
                                         .shear = strength("shear", shear),
                                         .elastic = strength("elastic", elastic),
                                         .elastic_smoothness = strength("elastic_smoothness", elastic_smoothness),
                                         .flip = strength("flip", flip),
                                         .nearest = nearest};
             },
             nb::kw_only(), "rotation"_a, "translation"_a, "scale"_a, "shear"_a, "elastic"_a, "elastic_smoothness"_a,
             "flip"_a, "nearest"_a);
    nb::class_<Loader>(m, "Loader")
        // labels: None where there are none. A pixel p becomes scale * p + shift.
        .def("__init__",
             [](Loader* self, uintptr_t images, std::optional<uintptr_t> labels, int64_t count, const Triple& shape,
                const Augmentation& augmentation, uint64_t seed, uint64_t affine_purpose, uint64_t elastic_purpose,
                float scale, float shift, const std::string& level) {
                 if (!std::isfinite(scale) || !std::isfinite(shift))
                     throw std::invalid_argument("scale and shift must be finite");
                 new (self) Loader{.images = reinterpret_cast<const uint8_t*>(images),
                                   .labels = reinterpret_cast<const int64_t*>(labels.value_or(0)),
                                   .available = count,
                                   .shape = shape_of(shape),
                                   .augmentation = augmentation,
                                   .seed = seed,
                                   .affine_purpose = affine_purpose,
                                   .elastic_purpose = elastic_purpose,
                                   .scale = scale,
                                   .shift = shift,
                                   .kernels = &kernels_of(level)};
             },
             nb::kw_only(), "images"_a, "labels"_a.none(), "count"_a, "shape"_a, "augmentation"_a, "seed"_a,
             "affine_purpose"_a, "elastic_purpose"_a, "scale"_a, "shift"_a, "level"_a)
        .def("load",
             [](const Loader& self, uintptr_t picks, int64_t count, uint64_t epoch, uint64_t step, uintptr_t blocks,
                std::optional<uintptr_t> labels, int threads) {
                 float* to = reinterpret_cast<float*>(blocks);
                 if (!is_aligned(to)) throw std::invalid_argument("blocks: they are not aligned to 64 bytes");
                 if (labels && !self.labels) throw std::invalid_argument("labels: the loader has none");
                 nb::gil_scoped_release release;
                 std::lock_guard<std::mutex> hold(running);
                 self.load(team_of(threads), reinterpret_cast<const int64_t*>(picks), count, epoch, step, to,
                           reinterpret_cast<int64_t*>(labels.value_or(0)));
             },
             "picks"_a, "count"_a, "epoch"_a, "step"_a, "blocks"_a, "labels"_a.none(), "threads"_a);
    m.def("sgd", [](uintptr_t weights, uintptr_t gradients, uintptr_t momenta, int64_t count, float rate,
                    float momentum, bool nesterov, float decay) {
        float* w = reinterpret_cast<float*>(weights);
        float* v = reinterpret_cast<float*>(momenta);
        const float* g = reinterpret_cast<const float*>(gradients);
        for (int64_t i = 0; i < count; ++i) {
            const float d = g[i] + decay * w[i];
            v[i] = momentum * v[i] + d;
            w[i] -= rate * (nesterov ? d + momentum * v[i] : v[i]);
        }
    });
    nb::class_<SoapSteps>(m, "SoapSteps")
        // Of each matrix: rows, columns, and the addresses in the order of SoapMatrix, 0 for axes that it lacks; of
        // each vector: how many, and its addresses.
        .def("__init__",
             [](SoapSteps* self, const std::vector<std::tuple<int, int, std::array<uintptr_t, 8>>>& matrices,
                const std::vector<std::pair<int, std::array<uintptr_t, 4>>>& vectors, const std::string& level) {
                 const auto at = [](uintptr_t address) { return reinterpret_cast<float*>(address); };
                 std::vector<SoapMatrix> ours;
                 for (const auto& [rows, columns, a] : matrices) {
                     if (rows < 1 || columns < 1) throw std::invalid_argument("a matrix has no values");
                     ours.push_back({rows, columns, at(a[0]), at(a[1]), at(a[2]), at(a[3]), at(a[4]), at(a[5]),
                                     at(a[6]), at(a[7]), nullptr, nullptr});
                 }
                 std::vector<SoapVector> others;
                 for (const auto& [count, a] : vectors)
                     others.push_back({count, at(a[0]), at(a[1]), at(a[2]), at(a[3])});
                 new (self) SoapSteps(kernels_of(level), std::move(ours), std::move(others));
             },
             "matrices"_a, "vectors"_a, "level"_a)
        .def("renewed", &SoapSteps::renewed)
        .def("step",
             [](SoapSteps& self, float rate, float beta1, float beta2, float correction2, float epsilon,
                float decay, int threads) {
                 nb::gil_scoped_release release;
                 std::lock_guard<std::mutex> hold(running);
                 self.step(team_of(threads), {rate, beta1, beta2, correction2, epsilon, decay});
             },
             "rate"_a, "beta1"_a, "beta2"_a, "correction2"_a, "epsilon"_a, "decay"_a, "threads"_a);
    m.def("average", [](uintptr_t means, uintptr_t values, int64_t count, float weight) {
        float* m = reinterpret_cast<float*>(means);
        const float* v = reinterpret_cast<const float*>(values);
        for (int64_t i = 0; i < count; ++i) m[i] += weight * (v[i] - m[i]);
    });
    m.def("peak", [](int threads, bool bfloat16, int64_t rounds, const std::string& level) {
        const Kernels& kernels = kernels_of(level);
        std::vector<double> found(static_cast<size_t>(threads));
        nb::gil_scoped_release release;
        std::lock_guard<std::mutex> hold(running);
        team_of(threads).run([&](int thread) { found[thread] = kernels.peak(bfloat16, rounds); });
        double total = 0.0;
        for (const double one : found) total += one;
        return total;
    });
}
