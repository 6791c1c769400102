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

void Program::reserve_forward(const Team& team, State& s) {
    const size_t channels = static_cast<size_t>(plan_.max_channels);
    s.scales.resize(static_cast<size_t>(plan_.scales));
    s.values.reserve(plan_.block_values * (plan_.values_in_thread ? team.threads() : s.blocks));
    packed_.reserve(packed_floats_);
    scratch_.reserve(scratch_floats_ * team.threads());
    thread_values_.reserve(plan_.thread_values * team.threads());
    moments_.resize(channels * s.blocks);
    moment_state_.reserve(static_cast<int64_t>(plan_.max_channels) * MOMENTS * team.threads());
    timer_.reserve(team.threads(), network_.operations.size());
}

void Program::reserve_backward(const Team& team, const State& s) {
    packed_.reserve(packed_floats_);
    scratch_.reserve(scratch_floats_ * team.threads());
    block_gradients_.reserve(plan_.block_gradients * s.blocks);
    thread_gradients_.reserve(plan_.thread_gradients * team.threads());
    partials_.reserve(plan_.block_partials * s.blocks);
    sums_.resize(static_cast<size_t>(plan_.block_sums * s.blocks));
    timer_.reserve(team.threads(), network_.operations.size());
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
    team.run([&](int thread) {
        team.phase(thread, operations, [&](int i) { prepare_forward(i, s, tensors); }, [] {});
        for (const Phase& phase : plan_.forward) {
            const bool is_first = &phase == &plan_.forward.front(), is_last = &phase == &plan_.forward.back();
            team.phase(
                thread, s.blocks,
                [&](int block) {
                    Task task{0, block, thread, s, tensors, false};
                    if (is_first && !read_images(images, task)) non_finite.store(true, std::memory_order_relaxed);
                    for (const Step& step : phase.steps) {
                        task.operation = step.operation;
                        timer_.time(step.operation, step.kind == Step::Moments ? Statistics : Forward, thread,
                                    [&] { run_forward(step, task); });
                    }
                    if (!is_last) return;
                    const Shape& last = shape(network_.output);
                    kernels_.scatter_block(value(network_.output, task), last, images_of(block, s),
                                           output + static_cast<int64_t>(block) * BLOCK * last.pixels());
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
    team.run([&](int thread) {
        team.phase(thread, operations, [&](int i) { prepare_backward(i, tensors); }, [] {});
        for (const Phase& phase : plan_.backward) {
            const bool is_first = &phase == &plan_.backward.front(), is_last = &phase == &plan_.backward.back();
            team.phase(
                thread, s.blocks,
                [&](int block) {
                    Task task{0, block, thread, s, tensors, true};
                    const int images = images_of(block, s);
                    if (is_first) {
                        const Shape& last = shape(network_.output);
                        const int64_t pixels = last.pixels();
                        kernels_.gather_block(output_gradient + static_cast<int64_t>(block) * BLOCK * pixels,
                                              {pixels, last.plane(), last.width, 1}, last, images,
                                              gradient(network_.output, task));
                    }
                    for (const Step& step : phase.steps) {
                        task.operation = step.operation;
                        run_backward(step, task);
                    }
                    if (is_last && input_gradient && options_.input_gradient)
                        kernels_.scatter_block(
                            gradient(0, task), shape(0), images,
                            input_gradient + static_cast<int64_t>(block) * BLOCK * shape(0).pixels());
                },
                [&] {
                    if (phase.normalization >= 0) join_sums(phase.normalization, s, gradients);
                });
        }
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
