#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <stdexcept>

namespace smidgen {

namespace {

constexpr int ARRAYS = 6;  // of a normalization: scale, shift, mean, slope, offset, 1 / s.d.

int64_t floats_of(const Shape& s) { return static_cast<int64_t>(s.pixels()) * BLOCK; }

// The first free offset for each span, so that spans that overlap in time do not overlap in memory.
int64_t place_spans(std::vector<Span>& spans) {
    int64_t end = 0;
    for (size_t i = 0; i < spans.size(); ++i) {
        std::vector<std::pair<int64_t, int64_t>> taken;
        for (size_t j = 0; j < i; ++j)
            if (spans[j].first <= spans[i].last && spans[i].first <= spans[j].last)
                taken.emplace_back(spans[j].offset, spans[j].offset + spans[j].floats);
        std::sort(taken.begin(), taken.end());
        int64_t offset = 0;
        for (const auto& [begin, finish] : taken)
            if (offset + spans[i].floats > begin) offset = std::max(offset, finish);
        spans[i].offset = offset;
        end = std::max(end, offset + spans[i].floats);
    }
    return end;
}

float* aligned_floats(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, std::max<size_t>(bytes, 64));
    if (!memory) throw std::bad_alloc();
    return static_cast<float*>(memory);
}

}  // namespace

State::~State() { std::free(values); }

Program::Memory::~Memory() { std::free(at); }

void Program::Memory::need(int64_t floats) {
    if (floats <= room) return;
    std::free(at);
    at = nullptr;
    room = 0;
    at = aligned_floats(floats);
    room = floats;
}

Program::Program(std::vector<Value> values, std::vector<Operation> operations, std::vector<int64_t> parameter_sizes,
                 int output, bool keep, bool input_gradient, bool bfloat16, const Kernels& kernels)
    : values_(std::move(values)),
      operations_(std::move(operations)),
      parameter_sizes_(std::move(parameter_sizes)),
      output_(output),
      keep_(keep),
      input_gradient_(input_gradient),
      bfloat16_(bfloat16),
      kernels_(kernels) {
    for (Operation& op : operations_) {
        packed_offset_.push_back(packed_floats_);
        scale_offset_.push_back(scale_floats_);
        partial_offset_.push_back(partial_floats_);
        if (op.kind == Kind::Conv) {
            op.conv.prepare();
            packed_floats_ += (products().packed_room(op.conv) + 15) / 16 * 16;
            scratch_floats_ = std::max(scratch_floats_, products().scratch_room(op.conv));
            scale_floats_ += 4 * op.conv.output.channels;
            partial_floats_ += (op.conv.weights() + op.conv.output.channels + 15) / 16 * 16;
        } else if (op.kind == Kind::Norm) {
            scale_floats_ += ARRAYS * values_[op.inputs[0]].shape.channels;
        }
    }
    for (size_t i = 0; i < operations_.size(); ++i)
        for (size_t j = 0; j < i; ++j) {
            const Operation &a = operations_[i], &b = operations_[j];
            if (a.kind == Kind::Conv && b.kind == Kind::Conv && (a.weight == b.weight || (a.bias >= 0 && a.bias == b.bias)))
                shares_weights_ = true;
        }
    scratch_floats_ = (scratch_floats_ + 15) / 16 * 16;
    plan_forward();
    if (keep_) plan_backward();
}

void Program::plan_forward() {
    forward_.emplace_back();
    gathers_moments_.assign(operations_.size(), false);
    for (const Value& v : values_) most_channels_ = std::max(most_channels_, v.shape.channels);
    for (int i = 0; i < static_cast<int>(operations_.size()); ++i) {
        const Operation& op = operations_[i];
        if (op.kind == Kind::Norm && op.batch) {
            std::vector<Step>& steps = forward_.back().steps;
            const int before = steps.empty() || steps.back().what != Step::Run ? -1 : steps.back().operation;
            if (before >= 0 && operations_[before].kind == Kind::Conv && operations_[before].output == op.inputs[0])
                gathers_moments_[before] = true;
            else
                steps.push_back({Step::Moments, i});
            forward_.back().finish = i;
            forward_.emplace_back();
        }
        forward_.back().steps.push_back({Step::Run, i});
    }
    shared_ = !keep_ && forward_.size() == 1;
    find_passing_values();
    // Where a thread takes a block through the whole network, values share memory as they come and
    // go; so do passing values.
    const int count = static_cast<int>(values_.size()), end = static_cast<int>(operations_.size());
    std::vector<int> first(count, -1), last(count, -1);
    for (int i = 0; i < end; ++i) {
        const Operation& op = operations_[i];
        if (same_[op.output] == op.output) first[op.output] = i;
        last[same_[op.output]] = i;
        for (const int input : op.inputs) last[same_[input]] = i;
    }
    last[same_[output_]] = end;
    std::vector<Span> lasting, passing;
    value_offset_.assign(count, 0);
    for (int v = 0; v < count; ++v) {
        if (same_[v] != v) continue;
        const int64_t floats = floats_of(values_[v].shape);
        if (passing_[v])
            passing.push_back({v, first[v], last[v], floats});
        else if (shared_)
            lasting.push_back({v, first[v], last[v], floats});
        else
            lasting.push_back({v, -1, end, floats});
    }
    block_floats_ = place_spans(lasting);
    thread_floats_ = place_spans(passing);
    for (const auto& spans : {lasting, passing})
        for (const Span& span : spans) value_offset_[span.value] = span.offset;
    for (int v = 0; v < count; ++v) value_offset_[v] = value_offset_[same_[v]];
    for (const Operation& op : operations_) {
        kept_offset_.push_back(block_floats_);
        if (op.dropped) block_floats_ += (values_[op.output].shape.pixels() + 31) / 32 * 16;
    }
}

void Program::find_passing_values() {
    const int count = static_cast<int>(values_.size());
    passing_.assign(count, false);
    same_.resize(count);
    for (int v = 0; v < count; ++v) same_[v] = v;
    if (!keep_) return;
    std::vector<int> made(count, -1), first(count, 1 << 30), last(count, -1), readers(count, 0);
    int phase = 0;
    for (const Phase& p : forward_) {
        for (const Step& step : p.steps) {
            const Operation& op = operations_[step.operation];
            for (const int input : op.inputs) {
                first[input] = std::min(first[input], phase);
                last[input] = std::max(last[input], phase);
                if (step.what == Step::Run) ++readers[input];
            }
            if (step.what != Step::Run) continue;
            const bool cheap = op.kind == Kind::Norm || op.kind == Kind::Activation || op.kind == Kind::Dropout;
            if (cheap) made[op.output] = phase;
        }
        ++phase;
    }
    for (int v = 0; v < count; ++v)
        passing_[v] = made[v] >= 0 && v != output_ && last[v] >= 0 && first[v] == made[v] && last[v] == made[v];
    for (const Operation& op : operations_) {
        const int input = op.inputs[0];
        if (op.kind == Kind::Dropout && passing_[input] && passing_[op.output] && readers[input] == 1)
            same_[op.output] = same_[input];
    }
}

// The values, not gradients, that an operation's backward pass reads.
std::vector<int> Program::read_by_gradient(const Operation& op) const {
    switch (op.kind) {
        case Kind::Conv:
            if (op.relu && !op.input_relu) return {op.inputs[0], op.output};
            return {op.inputs[0]};
        case Kind::Norm:
        case Kind::Activation:
        case Kind::MaxPool: return {op.inputs[0]};
        default: return {};
    }
}

void Program::plan_backward() {
    const int count = static_cast<int>(values_.size());
    needs_gradient_.assign(count, false);
    needs_gradient_[0] = input_gradient_;
    for (const Operation& op : operations_) {
        bool needs = op.weight >= 0 || op.bias >= 0;
        for (const int input : op.inputs) needs = needs || needs_gradient_[input];
        needs_gradient_[op.output] = needs;
    }
    std::vector<int> first_step(count, -1), last_step(count, -1), first_phase(count, -1), last_phase(count, -1);
    std::vector<bool> written(count, false);
    const auto touch = [&](int v, int step, int phase) {
        if (first_step[v] < 0) first_step[v] = step, first_phase[v] = phase;
        last_step[v] = step, last_phase[v] = phase;
    };
    backward_.emplace_back();
    adds_.resize(operations_.size());
    goes_back_.assign(operations_.size(), false);
    int step = 0;
    std::vector<int> writer(count, -1), made_in(count, -1), made_at(count, -1), read_at(count, -1);
    for (int i = 0; i < static_cast<int>(operations_.size()); ++i) writer[operations_[i].output] = i;
    // Makes a passing value again in this phase, and before it those that it is made from.
    const std::function<void(int)> make = [&](int v) {
        if (!passing_[v]) return;
        const int phase = static_cast<int>(backward_.size()) - 1, root = same_[v];
        if (made_in[v] != phase) {
            for (const int input : operations_[writer[v]].inputs) make(input);
            backward_.back().steps.push_back({Step::Again, writer[v]});
            made_in[v] = phase;
            if (made_at[root] < 0) made_at[root] = step;
            ++step;
        }
        read_at[root] = step;
    };
    touch(output_, step++, 0);
    written[output_] = true;
    for (int i = static_cast<int>(operations_.size()) - 1; i >= 0; --i) {
        const Operation& op = operations_[i];
        adds_[i].assign(op.inputs.size(), false);
        if (!needs_gradient_[op.output] || !written[op.output]) continue;
        goes_back_[i] = true;
        const auto phase = [&] { return static_cast<int>(backward_.size()) - 1; };
        if (op.kind == Kind::Norm) {
            for (const int v : read_by_gradient(op)) make(v);
            backward_.back().steps.push_back({Step::Sums, i});
            touch(op.output, step++, phase());
            backward_.back().finish = i;
            backward_.emplace_back();
            if (!needs_gradient_[op.inputs[0]]) continue;
        }
        for (const int v : read_by_gradient(op)) make(v);
        backward_.back().steps.push_back({Step::Run, i});
        touch(op.output, step, phase());
        for (size_t k = 0; k < op.inputs.size(); ++k) {
            const int input = op.inputs[k];
            if (!needs_gradient_[input]) continue;
            adds_[i][k] = written[input];
            written[input] = true;
            touch(input, step, phase());
        }
        ++step;
    }
    if (input_gradient_) touch(0, step, static_cast<int>(backward_.size()) - 1);
    std::vector<Span> local, lasting;
    gradient_offset_.assign(count, 0);
    gradient_local_.assign(count, false);
    for (int v = 0; v < count; ++v) {
        if (first_step[v] < 0) continue;
        gradient_local_[v] = first_phase[v] == last_phase[v];
        (gradient_local_[v] ? local : lasting).push_back({v, first_step[v], last_step[v], floats_of(values_[v].shape)});
    }
    const size_t gradients = local.size();
    for (int v = 0; v < count; ++v)
        if (made_at[v] >= 0) local.push_back({v, made_at[v], read_at[v], floats_of(values_[v].shape)});
    thread_gradients_ = place_spans(local);
    block_gradients_ = place_spans(lasting);
    again_offset_.assign(count, 0);
    for (size_t i = 0; i < local.size(); ++i)
        (i < gradients ? gradient_offset_ : again_offset_)[local[i].value] = local[i].offset;
    for (const Span& span : lasting) gradient_offset_[span.value] = span.offset;
    for (int v = 0; v < count; ++v) again_offset_[v] = again_offset_[same_[v]];
}

int Program::images_of(int block, const State& s) const {
    return static_cast<int>(std::min<int64_t>(BLOCK, s.images - static_cast<int64_t>(block) * BLOCK));
}

float* Program::value(int id, int block, int thread, const State& s, bool again) const {
    if (passing_[id])
        return again ? local_.at + thread * thread_gradients_ + again_offset_[id]
                     : passing_values_.at + thread * thread_floats_ + value_offset_[id];
    return s.values + (shared_ ? thread : block) * block_floats_ + value_offset_[id];
}

float* Program::gradient(int id, int block, int thread) const {
    return gradient_local_[id] ? local_.at + thread * thread_gradients_ + gradient_offset_[id]
                               : gradients_.at + block * block_gradients_ + gradient_offset_[id];
}

uint16_t* Program::kept(int operation, int block, int thread, const State& s) const {
    return reinterpret_cast<uint16_t*>(s.values + (shared_ ? thread : block) * block_floats_ + kept_offset_[operation]);
}

float* Program::scratch(int thread) const { return scratch_.at + thread * scratch_floats_; }

float* Program::moment_state(int thread) const {
    return moment_state_.at + static_cast<int64_t>(thread) * most_channels_ * MOMENTS;
}

float* Program::scales(int operation, const State& s, int array) const {
    const int channels = values_[operations_[operation].output].shape.channels;
    return const_cast<float*>(s.scales.data()) + scale_offset_[operation] + static_cast<int64_t>(array) * channels;
}

NormArgs Program::norm_args(int operation, int block, int thread, const State& s, bool again) const {
    const Operation& op = operations_[operation];
    NormArgs a{};
    a.shape = values_[op.inputs[0]].shape;
    a.relu = op.relu;
    a.pool = op.pool;
    a.input_relu = op.input_relu;
    a.images = images_of(block, s);
    a.scale = scales(operation, s, 0);
    a.shift = scales(operation, s, 1);
    a.mean = scales(operation, s, 2);
    a.slope = scales(operation, s, 3);
    a.offset = scales(operation, s, 4);
    a.dropped = op.dropped;
    a.again = again;
    a.kept = kept(operation, block, thread, s);
    a.key = s.key;
    a.layer = operation;
    a.first_image = static_cast<int64_t>(block) * BLOCK;
    return a;
}

void Program::fold(const Operation& norm, int channels, float* const* pointers, float* scale, float* shift) const {
    for (int c = 0; c < channels; ++c) {
        const double inverse = 1.0 / std::sqrt(static_cast<double>(pointers[norm.running_var][c]) + norm.epsilon);
        const double s = inverse * (norm.weight >= 0 ? pointers[norm.weight][c] : 1.0f);
        scale[c] = static_cast<float>(s);
        shift[c] = static_cast<float>((norm.bias >= 0 ? pointers[norm.bias][c] : 0.0f) -
                                      s * pointers[norm.running_mean][c]);
    }
}

// What a pass needs before its first block: packed weights, and maps that do not depend on the batch.
void Program::prepare_operation(int i, State& s, float* const* pointers, bool backward) {
    const Operation& op = operations_[i];
    const int channels = values_[op.output].shape.channels;
    if (op.kind == Kind::Conv) {
        float* packed = packed_.at + packed_offset_[i];
        if (backward) {
            if (needs_gradient_[op.inputs[0]]) products().pack_backward(op.conv, pointers[op.weight], packed);
            return;
        }
        products().pack_forward(op.conv, pointers[op.weight], packed);
        if (op.before) {
            fold(*op.before, channels, pointers, scales(i, s, 0), scales(i, s, 1));
            if (op.bias >= 0)
                for (int c = 0; c < channels; ++c) scales(i, s, 1)[c] += pointers[op.bias][c] * scales(i, s, 0)[c];
        }
        if (op.after) fold(*op.after, channels, pointers, scales(i, s, 2), scales(i, s, 3));
    } else if (op.kind == Kind::Norm && !op.batch && !backward) {
        fold(op, channels, pointers, scales(i, s, 0), scales(i, s, 1));
        for (int c = 0; c < channels; ++c) {
            scales(i, s, 2)[c] = pointers[op.running_mean][c];
            scales(i, s, 5)[c] = static_cast<float>(
                1.0 / std::sqrt(static_cast<double>(pointers[op.running_var][c]) + op.epsilon));
        }
    }
}

// Joins the blocks' moments in their order (Chan, Golub and LeVeque 1979).
void Program::finish_forward(int i, State& s, float* const* pointers) {
    const Operation& op = operations_[i];
    const Shape& shape = values_[op.inputs[0]].shape;
    const double total = static_cast<double>(s.images) * shape.plane();
    if (total < 2) {
        trouble_ = op.name + ": normalization in training needs more than one value a channel";
        return;
    }
    for (int c = 0; c < shape.channels; ++c) {
        double mean = 0.0, squares = 0.0, seen = 0.0;
        for (int b = 0; b < s.blocks; ++b) {
            const Moments& m = moments_[static_cast<size_t>(b) * shape.channels + c];
            const double count = static_cast<double>(images_of(b, s)) * shape.plane(), step = m.mean - mean;
            squares += m.squares + step * step * seen * count / (seen + count);
            mean += step * count / (seen + count);
            seen += count;
        }
        const double variance = squares / total, inverse = 1.0 / std::sqrt(variance + op.epsilon);
        if (!std::isfinite(mean) || !std::isfinite(variance)) {
            trouble_ = op.name + ": what it normalizes is no longer finite numbers";
            return;
        }
        const double scale = inverse * (op.weight >= 0 ? pointers[op.weight][c] : 1.0f);
        scales(i, s, 0)[c] = static_cast<float>(scale);
        scales(i, s, 1)[c] = static_cast<float>((op.bias >= 0 ? pointers[op.bias][c] : 0.0f) - scale * mean);
        scales(i, s, 2)[c] = static_cast<float>(mean);
        scales(i, s, 5)[c] = static_cast<float>(inverse);
        if (op.running_mean >= 0) {
            float &m = pointers[op.running_mean][c], &v = pointers[op.running_var][c];
            m += op.momentum * (static_cast<float>(mean) - m);
            v += op.momentum * (static_cast<float>(squares / (total - 1)) - v);
        }
    }
    if (op.batches >= 0) ++*reinterpret_cast<int64_t*>(pointers[op.batches]);
}

void Program::finish_backward(int i, State& s, float* const* gradients) {
    const Operation& op = operations_[i];
    const Shape& shape = values_[op.inputs[0]].shape;
    const double total = static_cast<double>(s.images) * shape.plane();
    for (int c = 0; c < shape.channels; ++c) {
        double plain = 0.0, product = 0.0;
        for (int b = 0; b < s.blocks; ++b) {
            plain += sums_[(static_cast<size_t>(b) * shape.channels + c) * 2];
            product += sums_[(static_cast<size_t>(b) * shape.channels + c) * 2 + 1];
        }
        const double scale = scales(i, s, 0)[c], mean = scales(i, s, 2)[c], inverse = scales(i, s, 5)[c];
        const double slope = op.batch ? -scale * inverse * inverse * product / total : 0.0;
        scales(i, s, 3)[c] = static_cast<float>(slope);
        scales(i, s, 4)[c] = static_cast<float>(op.batch ? -scale * plain / total - slope * mean : 0.0);
        if (op.weight >= 0 && gradients[op.weight]) gradients[op.weight][c] += static_cast<float>(inverse * product);
        if (op.bias >= 0 && gradients[op.bias]) gradients[op.bias][c] += static_cast<float>(plain);
    }
}

void Program::run_forward(const Step& step, int block, int thread, State& s, float* const* pointers, bool again) {
    const Operation& op = operations_[step.operation];
    const int input = op.inputs[0];
    const float* x = value(input, block, thread, s, again);
    float* y = value(op.output, block, thread, s, again);
    const Shape& shape = values_[input].shape;
    if (step.what == Step::Moments)
        return kernels_.moments(shape, x, images_of(block, s),
                                moments_.data() + static_cast<size_t>(block) * shape.channels, moment_state(thread));
    switch (op.kind) {
        case Kind::Conv: {
            Epilogue e;
            if (op.before) {
                e.before_scale = scales(step.operation, s, 0);
                e.before_shift = scales(step.operation, s, 1);
            } else if (op.bias >= 0) {
                e.before_shift = pointers[op.bias];
            }
            e.relu = op.relu;
            if (op.after) {
                e.after_scale = scales(step.operation, s, 2);
                e.after_shift = scales(step.operation, s, 3);
            }
            return products().conv_forward(op.conv, x, packed_.at + packed_offset_[step.operation], e, y,
                                           scratch(thread), images_of(block, s),
                                           gathers_moments_[step.operation]
                                               ? moments_.data() + static_cast<size_t>(block) * op.conv.output.channels
                                               : nullptr,
                                           moment_state(thread));
        }
        case Kind::Norm: return kernels_.norm_forward(norm_args(step.operation, block, thread, s, again), x, y);
        case Kind::Activation: return kernels_.activation_forward(op.activation, x, y, shape.pixels());
        case Kind::MaxPool: return kernels_.max_forward(op.window, x, y);
        case Kind::AveragePool: return kernels_.average_forward(op.window, x, y);
        case Kind::Dropout:
            if (again)
                return kernels_.dropout_backward(op.dropped, kept(step.operation, block, thread, s), x, y,
                                                 shape.pixels(), false);
            return kernels_.dropout_forward(s.key, step.operation, static_cast<int64_t>(block) * BLOCK, op.dropped, x,
                                            y, kept(step.operation, block, thread, s), shape.pixels());
        case Kind::Add: return kernels_.sum(x, value(op.inputs[1], block, thread, s), y, shape.pixels());
        case Kind::Concat:
            for (const int part : op.inputs) {
                kernels_.copy(value(part, block, thread, s), y, values_[part].shape.pixels(), false);
                y += floats_of(values_[part].shape);
            }
            return;
    }
}

void Program::run_backward(const Step& step, int block, int thread, State& s, float* const* pointers) {
    const int i = step.operation;
    const Operation& op = operations_[i];
    const int input = op.inputs[0];
    if (step.what == Step::Again) return run_forward(step, block, thread, s, pointers, true);
    const float* x = value(input, block, thread, s, true);
    float* dy = gradient(op.output, block, thread);
    const Shape& shape = values_[input].shape;
    if (step.what == Step::Sums)
        return kernels_.norm_sums(norm_args(i, block, thread, s, true), x, dy,
                                  sums_.data() + static_cast<size_t>(block) * shape.channels * 2);
    float* dx = needs_gradient_[input] ? gradient(input, block, thread) : nullptr;
    const bool add = adds_[i][0];
    switch (op.kind) {
        case Kind::Conv: {
            if (op.relu && !op.input_relu)
                kernels_.relu_mask(value(op.output, block, thread, s, true), dy, values_[op.output].shape.pixels());
            float* partial = partial_.at + block * partial_floats_ + partial_offset_[i];
            clock(i, WeightGradient, thread, [&] {
                products().conv_weights(op.conv, x, dy, partial, op.bias >= 0 ? partial + op.conv.weights() : nullptr,
                                        scratch(thread));
            });
            if (dx)
                clock(i, InputGradient, thread, [&] {
                    products().conv_backward(op.conv, dy, packed_.at + packed_offset_[i], dx, add, scratch(thread));
                });
            return;
        }
        case Kind::Norm: return kernels_.norm_backward(norm_args(i, block, thread, s, true), x, dy, dx, add);
        case Kind::Activation: return kernels_.activation_backward(op.activation, x, dy, dx, shape.pixels(), add);
        case Kind::MaxPool: return kernels_.max_backward(op.window, x, dy, dx, add);
        case Kind::AveragePool: return kernels_.average_backward(op.window, dy, dx, add);
        case Kind::Dropout:
            return kernels_.dropout_backward(op.dropped, kept(i, block, thread, s), dy, dx, shape.pixels(), add);
        case Kind::Add:
        case Kind::Concat:
            for (size_t k = 0; k < op.inputs.size(); ++k) {
                const int part = op.inputs[k];
                if (needs_gradient_[part])
                    kernels_.copy(dy, gradient(part, block, thread), values_[part].shape.pixels(), adds_[i][k]);
                if (op.kind == Kind::Concat) dy += floats_of(values_[part].shape);
            }
            return;
    }
}

template <class F>
void Program::clock(int operation, Pass pass, int thread, const F& work) {
    if (!timed_) return work();
    const auto began = std::chrono::steady_clock::now();
    work();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    seconds_[(static_cast<size_t>(thread) * operations_.size() + operation) * PASSES + pass] += seconds;
}

void Program::start(Team& team, State& s, bool backward) {
    const int operations = static_cast<int>(operations_.size());
    const size_t channels = static_cast<size_t>(most_channels_);
    packed_.need(packed_floats_);
    scratch_.need(scratch_floats_ * team.threads());
    if (backward) {
        gradients_.need(block_gradients_ * s.blocks);
        local_.need(thread_gradients_ * team.threads());
        partial_.need(partial_floats_ * s.blocks);
        sums_.resize(channels * 2 * s.blocks);
    } else {
        passing_values_.need(thread_floats_ * team.threads());
        moments_.resize(channels * s.blocks);
        moment_state_.need(static_cast<int64_t>(most_channels_) * MOMENTS * team.threads());
    }
    seconds_.resize(static_cast<size_t>(team.threads()) * operations * PASSES);
    trouble_.clear();
}

void Program::forward(Team& team, const Input& input, int64_t images, float* const* pointers, uint64_t key, State& s,
                      float* output) {
    s.images = images;
    s.blocks = static_cast<int>((images + BLOCK - 1) / BLOCK);
    s.key = key;
    s.scales.resize(static_cast<size_t>(scale_floats_));
    const int64_t room = block_floats_ * (shared_ ? team.threads() : s.blocks);
    if (room > s.room) {
        std::free(s.values);
        s.values = nullptr;
        s.room = 0;
        s.values = aligned_floats(room);
        s.room = room;
    }
    start(team, s, false);
    const int operations = static_cast<int>(operations_.size());
    std::atomic<bool> strange{false};
    const auto nothing = [] {};
    team.run([&](int thread) {
        team.phase(thread, operations, [&](int i) { prepare_operation(i, s, pointers, false); }, nothing);
        for (const Phase& phase : forward_) {
            const bool is_first = &phase == &forward_.front(), is_last = &phase == &forward_.back();
            team.phase(
                thread, s.blocks,
                [&](int block) {
                    if (is_first) {
                        const float* from = input.data + static_cast<int64_t>(block) * BLOCK * input.image_stride;
                        if (!kernels_.gather_block(from, input.image_stride, input.channel_stride, input.row_stride,
                                                   input.column_stride, values_[0].shape, images_of(block, s),
                                                   value(0, block, thread, s)))
                            strange.store(true, std::memory_order_relaxed);
                    }
                    for (const Step& step : phase.steps)
                        clock(step.operation, step.what == Step::Moments ? Statistics : Forward, thread,
                              [&] { run_forward(step, block, thread, s, pointers, false); });
                    if (is_last) {
                        const Shape& shape = values_[output_].shape;
                        kernels_.scatter_block(value(output_, block, thread, s), shape, images_of(block, s),
                                               output + static_cast<int64_t>(block) * BLOCK * shape.pixels());
                    }
                },
                [&] {
                    if (strange.load() && trouble_.empty()) trouble_ = "input: an image holds a value that is no finite number";
                    if (phase.finish >= 0 && trouble_.empty()) finish_forward(phase.finish, s, pointers);
                });
            if (!trouble_.empty()) return;
        }
    });
    if (!trouble_.empty()) throw std::runtime_error(trouble_);
}

void Program::backward(Team& team, const float* output_gradient, float* const* pointers, State& s, float* const* gradients,
                       float* input_gradient) {
    if (!keep_) throw std::logic_error("the program keeps nothing for a backward pass");
    start(team, s, true);
    for (size_t i = 0; i < parameter_sizes_.size(); ++i)
        if (gradients[i]) std::fill(gradients[i], gradients[i] + parameter_sizes_[i], 0.0f);
    const int operations = static_cast<int>(operations_.size());
    const auto nothing = [] {};
    team.run([&](int thread) {
        team.phase(thread, operations, [&](int i) { prepare_operation(i, s, pointers, true); }, nothing);
        for (const Phase& phase : backward_) {
            const bool is_first = &phase == &backward_.front(), is_last = &phase == &backward_.back();
            team.phase(
                thread, s.blocks,
                [&](int block) {
                    const int images = images_of(block, s);
                    if (is_first) {
                        const Shape& shape = values_[output_].shape;
                        const int64_t pixels = shape.pixels();
                        kernels_.gather_block(output_gradient + static_cast<int64_t>(block) * BLOCK * pixels,
                                              pixels, shape.plane(), shape.width, 1, shape, images,
                                              gradient(output_, block, thread));
                    }
                    for (const Step& step : phase.steps) {
                        if (operations_[step.operation].kind == Kind::Conv)
                            run_backward(step, block, thread, s, pointers);
                        else
                            clock(step.operation, step.what == Step::Sums ? Statistics : step.what == Step::Again ? Forward : InputGradient, thread,
                                  [&] { run_backward(step, block, thread, s, pointers); });
                    }
                    if (is_last && input_gradient && input_gradient_) {
                        const Shape& shape = values_[0].shape;
                        kernels_.scatter_block(
                            gradient(0, block, thread), shape, images,
                            input_gradient + static_cast<int64_t>(block) * BLOCK * shape.pixels());
                    }
                },
                [&] {
                    if (phase.finish >= 0) finish_backward(phase.finish, s, gradients);
                });
        }
        // The blocks' sums, always in the order of the blocks.
        team.phase(
            thread, operations,
            [&](int i) {
                const Operation& op = operations_[i];
                if (op.kind != Kind::Conv || !goes_back_[i] || shares_weights_) return;
                add_partials(i, s, gradients);
            },
            [&] {
                for (int i = 0; shares_weights_ && i < operations; ++i)
                    if (operations_[i].kind == Kind::Conv && goes_back_[i]) add_partials(i, s, gradients);
            });
    });
}

void Program::add_partials(int i, const State& s, float* const* gradients) const {
    const Operation& op = operations_[i];
    const int64_t weights = op.conv.weights(), channels = op.conv.output.channels;
    float* dw = gradients[op.weight];
    for (int b = 0; b < s.blocks; ++b) {
        const float* partial = partial_.at + b * partial_floats_ + partial_offset_[i];
        if (dw)
            for (int64_t k = 0; k < weights; ++k) dw[k] += partial[k];
        if (op.bias >= 0 && gradients[op.bias])
            for (int64_t k = 0; k < channels; ++k) gradients[op.bias][k] += partial[weights + k];
    }
}

double Program::step(Team& team, const Input& input, int64_t images, const int64_t* labels, double smoothing,
                     float* const* pointers, uint64_t key, State& s, float* const* gradients, int64_t* correct) {
    const int classes = output_shape().pixels();
    for (int64_t i = 0; i < images; ++i)
        if (labels[i] < 0 || labels[i] >= classes) throw std::out_of_range("a label is not among the classes");
    scores_.resize(static_cast<size_t>(images * classes));
    forward(team, input, images, pointers, key, s, scores_.data());
    double loss = 0.0;
    int64_t hits = 0;
    for (int64_t i = 0; i < images; ++i) {
        float* row = scores_.data() + i * classes;
        const int64_t best = std::max_element(row, row + classes) - row;
        const double most = row[best];
        double total = 0.0, plain = 0.0;
        for (int k = 0; k < classes; ++k) total += std::exp(row[k] - most), plain += row[k];
        const double log_total = most + std::log(total);
        loss += log_total - (1.0 - smoothing) * row[labels[i]] - smoothing * plain / classes;
        hits += best == labels[i];
        for (int k = 0; k < classes; ++k) {
            const double target = (k == labels[i] ? 1.0 - smoothing : 0.0) + smoothing / classes;
            row[k] = static_cast<float>((std::exp(row[k] - log_total) - target) / static_cast<double>(images));
        }
    }
    *correct = hits;
    loss /= static_cast<double>(images);
    // What is no number any more would only spread.
    if (std::isfinite(loss)) backward(team, scores_.data(), pointers, s, gradients, nullptr);
    return loss;
}

std::vector<Timing> Program::timings() const {
    std::vector<Timing> found;
    const size_t threads = seconds_.size() / std::max<size_t>(1, operations_.size() * PASSES);
    for (size_t i = 0; i < operations_.size(); ++i)
        for (int pass = 0; pass < PASSES; ++pass) {
            double seconds = 0.0;
            for (size_t t = 0; t < threads; ++t) seconds += seconds_[(t * operations_.size() + i) * PASSES + pass];
            if (seconds == 0.0) continue;
            double products = 0.0;
            const Operation& op = operations_[i];
            if (op.kind == Kind::Conv && pass != Statistics)
                for (const Places& places : op.conv.forward.places)
                    products += static_cast<double>(places.count) * op.conv.forward.taps[places.taps].size() *
                                op.conv.forward.inputs * op.conv.output.channels;
            found.push_back({op.name, pass, seconds, products});
        }
    return found;
}

void Program::set_timed(bool on) {
    timed_ = on;
    std::fill(seconds_.begin(), seconds_.end(), 0.0);
}

}  // namespace smidgen
