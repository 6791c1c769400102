// Passes over all blocks of a batch.
#include "program.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>

#include "loss.h"

namespace smidgen {

namespace {

constexpr int MOST_PARTS = 8;
constexpr double LEAST_GAIN = 1.25;  // measured: docs/native-engine.md

// Bytes of a core's own cache.
int64_t second_level_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
    if (const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) return bytes;
#endif
    return int64_t{512} << 10;
}

}  // namespace

Program::Program(Network network, const Options& options, const Kernels& kernels)
    : network_(std::move(network)), options_(options), kernels_(kernels) {
    if (options.bfloat16 && !kernels.products16)
        throw std::invalid_argument(std::string("instruction level '") + kernels.name + "' has no bfloat16 products");
    complete(network_, options.keep);
    plan_ = make_plan(network_, options.keep, options.input_gradient);
    const int64_t cache = options.cache > 0 ? options.cache : second_level_cache();
    for (Operation& operation : network_.operations)
        if (auto* separable = std::get_if<Separable>(&operation))
            products().separable_prepare(separable->geometry, cache);
    for (const Operation& operation : network_.operations) {
        packed_offset_.push_back(packed_floats_);
        int64_t packed = 0, scratch = 0;
        if (const auto* conv = std::get_if<Convolution>(&operation)) {
            packed = products().packed_floats(conv->geometry);
            scratch = products().scratch_floats(conv->geometry);
        } else if (const auto* separable = std::get_if<Separable>(&operation)) {
            packed = separable->geometry.pointwise ? products().packed_floats(separable->geometry.pixel) : 0;
            scratch = products().separable_scratch(separable->geometry);
        }
        packed_floats_ += (packed + 15) / 16 * 16;
        scratch_floats_ = std::max(scratch_floats_, (scratch + 15) / 16 * 16);
    }
}

// How many parts the work on each block has, so that threads have equal work as far as can be. Parts cost barriers, and
// some work is done again in each: the gain, if all work could be cut, must be worth it.
int Program::parts(const Team& team, const State& s) const {
    const auto time = [&](int parts) {
        return static_cast<double>((s.blocks * parts + team.threads() - 1) / team.threads()) / parts;
    };
    int best = 1;
    for (int parts = 2; parts <= MOST_PARTS; ++parts)
        if (time(parts) < time(best)) best = parts;
    return time(best) * LEAST_GAIN <= time(1) ? best : 1;
}

int Program::owners(const Team& team, const State& s) const {
    return std::max(team.threads(), parts(team, s) > 1 ? s.blocks : 0);
}

void Program::reserve_forward(const Team& team, State& s) {
    const size_t channels = static_cast<size_t>(plan_.max_channels);
    s.scales.resize(static_cast<size_t>(plan_.scales));
    s.values.reserve(plan_.block_values * (plan_.values_in_thread ? owners(team, s) : s.blocks));
    packed_.reserve(packed_floats_);
    scratch_.reserve(scratch_floats_ * team.threads());
    thread_values_.reserve(plan_.thread_values * owners(team, s));
    moments_.resize(channels * s.blocks);
    moment_state_.reserve(static_cast<int64_t>(plan_.max_channels) * MOMENTS * team.threads());
    timer_.reserve(team.threads(), network_.operations.size());
}

void Program::reserve_backward(const Team& team, const State& s) {
    packed_.reserve(packed_floats_);
    scratch_.reserve(scratch_floats_ * team.threads());
    block_gradients_.reserve(plan_.block_gradients * s.blocks);
    thread_gradients_.reserve(plan_.thread_gradients * owners(team, s));
    partials_.reserve(plan_.block_partials * s.blocks);
    sums_.resize(static_cast<size_t>(plan_.block_sums * s.blocks));
    timer_.reserve(team.threads(), network_.operations.size());
}

void Program::run_step(const Step& step, const Task& task) {
    Task t = task;
    t.operation = step.operation;
    if (t.backward) return run_backward(step, t);
    timer_.time(t.operation, step.kind == Step::Moments ? Statistics : Forward, t.thread, [&] { run_forward(step, t); });
}

// Takes all blocks through a phase's steps: each block by one thread; or, in parts, a step after the other by all
// threads. `like`: a task of this thread. begin(task) and end(task) are for each block before the first and after the
// last step of a pass, then() for one thread at the phase's end.
template <class Begin, class End, class Then>
void Program::run_phase(Team& team, const std::vector<Phase>& pass, const Phase& phase, int parts, const Task& like,
                        const Begin& begin, const End& end, const Then& then) {
    const bool is_first = &phase == &pass.front(), is_last = &phase == &pass.back();
    const int thread = like.thread, blocks = like.state.blocks;
    const auto task = [&](int block) {
        Task t = like;
        t.block = block;
        t.owner = parts > 1 ? block : thread;
        return t;
    };
    if (parts == 1)
        return team.phase(
            thread, blocks,
            [&](int block) {
                const Task t = task(block);
                if (is_first) begin(t);
                for (const Step& step : phase.steps) run_step(step, t);
                if (is_last) end(t);
            },
            then);
    if (is_first) team.phase(thread, blocks, [&](int block) { begin(task(block)); }, [] {});
    const Step* const last = is_last || phase.steps.empty() ? nullptr : &phase.steps.back();
    for (const Step& step : phase.steps)
        team.phase(
            thread, blocks * parts,
            [&](int piece) {
                Task t = task(piece / parts);
                t.part = {piece % parts, parts};
                run_step(step, t);
            },
            [&] {
                if (&step == last) then();
            });
    if (!last) team.phase(thread, blocks, [&](int block) { if (is_last) end(task(block)); }, then);
}

// Brings a block of the images to value 0; returns whether they are finite. Blocks are read where they lie.
bool Program::read_images(const Images& images, const Task& task) {
    if (!images.strides) return true;
    const float* first = images.data + static_cast<int64_t>(task.block) * BLOCK * images.strides->image;
    return kernels_.gather_block(first, *images.strides, shape(0), images_of(task.block, task.state), value(0, task));
}

void Program::forward(Team& team, const Images& images, float* const* tensors, uint64_t key, State& s, float* output) {
    if (!images.strides && !is_aligned(images.data))
        throw std::invalid_argument("input: the blocks of images are not aligned to 64 bytes");
    s.images = images.count;
    s.blocks = static_cast<int>((images.count + BLOCK - 1) / BLOCK);
    s.key = key;
    s.input = images.strides ? nullptr : images.data;
    reserve_forward(team, s);
    failure_.clear();
    const int operations = static_cast<int>(network_.operations.size());
    std::atomic<bool> non_finite{false};
    const int parts = this->parts(team, s);
    in_parts_ = parts > 1;
    const std::vector<Phase>& phases = in_parts_ ? plan_.parted_forward : plan_.forward;
    team.run([&](int thread) {
        team.phase(thread, operations, [&](int i) { prepare_forward(i, s, tensors); }, [] {});
        for (const Phase& phase : phases) {
            run_phase(
                team, phases, phase, parts, Task{0, 0, thread, thread, {}, s, tensors, false},
                [&](const Task& task) {
                    if (!read_images(images, task)) non_finite.store(true, std::memory_order_relaxed);
                },
                [&](const Task& task) {
                    const Shape& last = shape(network_.output);
                    kernels_.scatter_block(value(network_.output, task), last, images_of(task.block, s),
                                           output + static_cast<int64_t>(task.block) * BLOCK * last.pixels());
                },
                [&] {
                    if (non_finite.load()) failure_ = "input: an image holds a value that is not finite";
                    if (phase.normalization >= 0 && failure_.empty()) join_moments(phase.normalization, s, tensors);
                });
            if (!failure_.empty()) return;
        }
    });
    if (!failure_.empty()) throw std::runtime_error(failure_);
}

void Program::backward(Team& team, const float* output_gradient, float* const* tensors, State& s,
                       float* const* gradients, float* input_gradient) {
    if (!options_.keep) throw std::logic_error("the program keeps nothing for a backward pass");
    reserve_backward(team, s);
    for (size_t i = 0; i < network_.tensor_sizes.size(); ++i)
        if (gradients[i]) std::fill(gradients[i], gradients[i] + network_.tensor_sizes[i], 0.0f);
    const int operations = static_cast<int>(network_.operations.size());
    const int parts = this->parts(team, s);
    const std::vector<Phase>& phases = parts > 1 ? plan_.parted_backward : plan_.backward;
    team.run([&](int thread) {
        team.phase(thread, operations, [&](int i) { prepare_backward(i, tensors); }, [] {});
        for (const Phase& phase : phases)
            run_phase(
                team, phases, phase, parts, Task{0, 0, thread, thread, {}, s, tensors, true},
                [&](const Task& task) {
                    const Shape& last = shape(network_.output);
                    const int64_t pixels = last.pixels();
                    kernels_.gather_block(output_gradient + static_cast<int64_t>(task.block) * BLOCK * pixels,
                                          {pixels, last.plane(), last.width, 1}, last, images_of(task.block, s),
                                          gradient(network_.output, task));
                },
                [&](const Task& task) {
                    if (input_gradient && options_.input_gradient)
                        kernels_.scatter_block(
                            gradient(0, task), shape(0), images_of(task.block, s),
                            input_gradient + static_cast<int64_t>(task.block) * BLOCK * shape(0).pixels());
                },
                [&] {
                    if (phase.normalization >= 0) join_sums(phase.normalization, s, gradients);
                });
        // Partial gradients are added always in the order of the blocks, and operations that share a parameter
        // one after another.
        team.phase(
            thread, operations,
            [&](int i) {
                if (!plan_.shares_parameters) add_partials(i, s, gradients);
            },
            [&] {
                for (int i = 0; plan_.shares_parameters && i < operations; ++i) add_partials(i, s, gradients);
            });
    });
}

double Program::step(Team& team, const Images& images, const int64_t* labels, double smoothing, float* const* tensors,
                     uint64_t key, State& s, float* const* gradients, int64_t* correct) {
    const int classes = shape(network_.output).pixels();
    for (int64_t i = 0; i < images.count; ++i)
        if (labels[i] < 0 || labels[i] >= classes) throw std::out_of_range("a label is not among the classes");
    scores_.resize(static_cast<size_t>(images.count * classes));
    forward(team, images, tensors, key, s, scores_.data());
    const double loss = cross_entropy(scores_.data(), labels, images.count, classes, smoothing, correct);
    // NaN would spread to all gradients.
    if (std::isfinite(loss)) backward(team, scores_.data(), tensors, s, gradients, nullptr);
    return loss;
}

}  // namespace smidgen
