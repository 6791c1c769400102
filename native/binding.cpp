// What Python sees: programs and the images' loading. Pointers come as integers from tensors whose
// type, shape and layout the Python side (smidgen/engines/native) has checked.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "distort.h"
#include "program.h"

namespace nb = nanobind;
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

template <class T>
T get(const nb::dict& from, const char* name, T otherwise) {
    return from.contains(name) ? nb::cast<T>(from[name]) : otherwise;
}

Shape shape_of(const std::vector<int>& s) { return {s.at(0), s.at(1), s.at(2)}; }

std::shared_ptr<Operation> norm_of(const nb::dict& d) {
    auto op = std::make_shared<Operation>();
    op->kind = Kind::Norm;
    op->weight = get(d, "weight", -1);
    op->bias = get(d, "bias", -1);
    op->running_mean = get(d, "running_mean", -1);
    op->running_var = get(d, "running_var", -1);
    op->batches = get(d, "batches", -1);
    op->momentum = get(d, "momentum", 0.1f);
    op->epsilon = get(d, "epsilon", 1e-5f);
    op->batch = get(d, "batch", false);
    op->pool = get(d, "pool", false);
    op->dropped = get(d, "dropped", 0);
    return op;
}

Operation operation_of(const nb::dict& d, const std::vector<Value>& values) {
    const std::string kind = nb::cast<std::string>(d["kind"]);
    Operation op;
    if (kind == "norm") op = *norm_of(d);
    op.name = nb::cast<std::string>(d["name"]);
    op.inputs = nb::cast<std::vector<int>>(d["inputs"]);
    op.output = nb::cast<int>(d["output"]);
    op.input_relu = get(d, "input_relu", false);
    op.relu = get(d, "relu", false);
    const Shape input = values.at(op.inputs.at(0)).shape, output = values.at(op.output).shape;
    const auto pair = [&](const char* name, int otherwise) {
        return get(d, name, std::pair<int, int>(otherwise, otherwise));
    };
    if (kind == "conv") {
        op.kind = Kind::Conv;
        op.weight = nb::cast<int>(d["weight"]);
        op.bias = get(d, "bias", -1);
        Conv& c = op.conv;
        c.input = input;
        c.output = output;
        std::tie(c.kernel_height, c.kernel_width) = pair("kernel", 1);
        std::tie(c.stride_height, c.stride_width) = pair("stride", 1);
        std::tie(c.padding_height, c.padding_width) = pair("padding", 0);
        std::tie(c.dilation_height, c.dilation_width) = pair("dilation", 1);
        c.groups = get(d, "groups", 1);
        if (d.contains("before")) op.before = norm_of(nb::cast<nb::dict>(d["before"]));
        if (d.contains("after")) op.after = norm_of(nb::cast<nb::dict>(d["after"]));
    } else if (kind == "max_pool" || kind == "average_pool") {
        op.kind = kind == "max_pool" ? Kind::MaxPool : Kind::AveragePool;
        Pool& p = op.window;
        p.input = input;
        p.output = output;
        std::tie(p.kernel_height, p.kernel_width) = pair("kernel", 1);
        std::tie(p.stride_height, p.stride_width) = pair("stride", 1);
        std::tie(p.padding_height, p.padding_width) = pair("padding", 0);
        p.count_padding = get(d, "count_padding", true);
    } else if (kind == "activation") {
        op.kind = Kind::Activation;
        op.activation = {static_cast<Activation>(nb::cast<int>(d["which"])), get(d, "low", 0.0f), get(d, "high", 0.0f)};
    } else if (kind == "dropout") {
        op.kind = Kind::Dropout;
        op.dropped = nb::cast<int>(d["dropped"]);
    } else if (kind == "add") {
        op.kind = Kind::Add;
    } else if (kind == "concat") {
        op.kind = Kind::Concat;
    } else if (kind != "norm") {
        throw std::invalid_argument("unknown kind of operation '" + kind + "'");
    }
    return op;
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
    nb::class_<State>(m, "State").def(nb::init<>());
    nb::class_<Program>(m, "Program")
        .def("__init__",
             [](Program* self, const std::vector<std::vector<int>>& shapes, const nb::list& operations,
                const std::vector<int64_t>& sizes, int output, bool keep, bool input_gradient, bool bfloat16,
                const std::string& level) {
                 // Program holds memory and cannot be moved: it is built in place.
                 const Kernels& kernels = kernels_of(level);
                 if (bfloat16 && !kernels.products16)
                     throw std::invalid_argument("instruction level '" + level + "' has no bfloat16 products");
                 std::vector<Value> values;
                 for (const std::vector<int>& shape : shapes) values.push_back({shape_of(shape)});
                 std::vector<Operation> parsed;
                 for (const nb::handle item : operations)
                     parsed.push_back(operation_of(nb::cast<nb::dict>(item), values));
                 new (self) Program(values, parsed, sizes, output, keep, input_gradient, bfloat16, kernels);
             })
        .def("forward",
             [](Program& self, uintptr_t images, const std::vector<int64_t>& strides, int64_t count,
                const std::vector<uintptr_t>& addresses, uint64_t key, State& state, uintptr_t output, int threads) {
                 const std::vector<float*> pointers = pointers_of(addresses);
                 const Program::Input input{reinterpret_cast<const float*>(images), strides.at(0), strides.at(1),
                                            strides.at(2), strides.at(3)};
                 nb::gil_scoped_release release;
                 std::lock_guard<std::mutex> hold(running);
                 self.forward(team_of(threads), input, count, pointers.data(), key, state,
                              reinterpret_cast<float*>(output));
             })
        .def("backward",
             [](Program& self, uintptr_t output_gradient, const std::vector<uintptr_t>& addresses, State& state,
                const std::vector<uintptr_t>& gradient_addresses, uintptr_t input_gradient, int threads) {
                 const std::vector<float*> pointers = pointers_of(addresses);
                 const std::vector<float*> gradients = pointers_of(gradient_addresses);
                 nb::gil_scoped_release release;
                 std::lock_guard<std::mutex> hold(running);
                 self.backward(team_of(threads), reinterpret_cast<const float*>(output_gradient), pointers.data(),
                               state, gradients.data(), reinterpret_cast<float*>(input_gradient));
             })
        .def("step",
             [](Program& self, uintptr_t images, const std::vector<int64_t>& strides, int64_t count, uintptr_t labels,
                double smoothing, const std::vector<uintptr_t>& addresses, uint64_t key, State& state,
                const std::vector<uintptr_t>& gradient_addresses, int threads) {
                 const std::vector<float*> pointers = pointers_of(addresses);
                 const std::vector<float*> gradients = pointers_of(gradient_addresses);
                 const Program::Input input{reinterpret_cast<const float*>(images), strides.at(0), strides.at(1),
                                            strides.at(2), strides.at(3)};
                 int64_t correct = 0;
                 nb::gil_scoped_release release;
                 std::lock_guard<std::mutex> hold(running);
                 const double loss =
                     self.step(team_of(threads), input, count, reinterpret_cast<const int64_t*>(labels), smoothing,
                               pointers.data(), key, state, gradients.data(), &correct);
                 return std::make_pair(loss, correct);
             })
        .def("set_timed", &Program::set_timed)
        .def("timings", [](const Program& self) {
            static const char* passes[] = {"forward", "statistics", "input gradient", "weight gradient"};
            std::vector<std::tuple<std::string, std::string, double, double>> found;
            for (const Timing& t : self.timings()) found.emplace_back(t.name, passes[t.pass], t.seconds, t.products);
            return found;
        });
    m.def("levels", [] {
        std::vector<std::pair<std::string, bool>> found;
        for (const Kernels* const* k = available_kernels(); *k; ++k)
            found.emplace_back((*k)->name, (*k)->products16 != nullptr);
        return found;
    });
    nb::class_<Loader>(m, "Loader")
        .def("__init__",
             [](Loader* self, uintptr_t images, uintptr_t labels, int64_t available, const std::vector<int>& shape,
                const std::vector<double>& strengths, bool nearest, uint64_t seed, uint64_t purpose, float scale,
                float shift, const std::string& level) {
                 new (self) Loader{reinterpret_cast<const uint8_t*>(images),
                                   reinterpret_cast<const int64_t*>(labels),
                                   available,
                                   shape_of(shape),
                                   {strengths.at(0), strengths.at(1), strengths.at(2), strengths.at(3),
                                    strengths.at(4), strengths.at(5), strengths.at(6), nearest},
                                   seed,
                                   purpose,
                                   scale,
                                   shift,
                                   &kernels_of(level)};
             })
        .def("load", [](const Loader& self, uintptr_t picks, int64_t count, uint64_t epoch, uint64_t step,
                        uintptr_t images, int64_t room, uintptr_t labels, int threads) {
            nb::gil_scoped_release release;
            std::lock_guard<std::mutex> hold(running);
            self.load(team_of(threads), reinterpret_cast<const int64_t*>(picks), count, epoch, step,
                      reinterpret_cast<float*>(images), room, reinterpret_cast<int64_t*>(labels));
        });
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
