// One operation on one block, forward and backward, and what must be done before the first block and after the last.
#include <algorithm>
#include <cmath>

#include "program.h"

namespace smidgen {

// Memory.

int Program::images_of(int block, const State& s) {
    return static_cast<int>(std::min<int64_t>(BLOCK, s.images - static_cast<int64_t>(block) * BLOCK));
}

float* Program::value(int id, const Task& t) const {
    const ValuePlan& v = plan_.values[id];
    if (v.recomputed)
        return t.backward ? thread_gradients_.data() + t.owner * plan_.thread_gradients + v.recompute_offset
                          : thread_values_.data() + t.owner * plan_.thread_values + v.offset;
    return t.state.values.data() + (plan_.values_in_thread ? t.owner : t.block) * plan_.block_values + v.offset;
}

const float* Program::input_value(int id, const Task& t) const {
    if (id == 0 && t.state.input) return t.state.input + t.block * block_floats(shape(0));
    return value(id, t);
}

float* Program::gradient(int id, const Task& t) const {
    const ValuePlan& v = plan_.values[id];
    return v.gradient_offset + (v.gradient_in_thread
                                    ? thread_gradients_.data() + t.owner * plan_.thread_gradients
                                    : block_gradients_.data() + t.block * plan_.block_gradients);
}

float* Program::input_gradient(int id, const Task& t) const {
    return plan_.values[id].needs_gradient ? gradient(id, t) : nullptr;
}

float* Program::scales(int operation, State& s, int array) const {
    const int channels = shape(op(operation).output).channels;
    return s.scales.data() + plan_.operations[operation].scales + static_cast<int64_t>(array) * channels;
}

uint16_t* Program::mask(int operation, const Task& t) const {
    float* values = t.state.values.data() + (plan_.values_in_thread ? t.owner : t.block) * plan_.block_values;
    return reinterpret_cast<uint16_t*>(values + plan_.operations[operation].mask);
}

float* Program::moment_state(int thread) const {
    return moment_state_.data() + static_cast<int64_t>(thread) * plan_.max_channels * MOMENTS;
}

NormArgs Program::norm_args(int normalization, const Task& t) const {
    const Norm& norm = std::get<Norm>(network_.operations[normalization]);
    const Shape& input = shape(norm.inputs[0]);
    return {.shape = input,
            .first_channel = t.part.first(input.channels),
            .end_channel = t.part.end(input.channels),
            .relu = norm.relu,
            .pool = norm.pool,
            .input_relu = norm.input_relu,
            .images = images_of(t.block, t.state),
            .scale = scales(normalization, t.state, Scale),
            .shift = scales(normalization, t.state, Shift),
            .mean = scales(normalization, t.state, Mean),
            .slope = scales(normalization, t.state, Slope),
            .offset = scales(normalization, t.state, Offset),
            .dropped = norm.dropped,
            .recompute = t.backward,
            .mask = mask(normalization, t),
            .key = t.state.key,
            .layer = normalization,
            .first_image = static_cast<int64_t>(t.block) * BLOCK};
}

// Before the first block: packed weights, and affine maps that do not depend on the batch.

namespace {

// BatchNorm by running statistics as scale * x + shift.
template <class N>
void fold(const N& norm, int channels, float* const* tensors, float* scale, float* shift) {
    for (int c = 0; c < channels; ++c) {
        const double inverse = 1.0 / std::sqrt(static_cast<double>(tensors[norm.running_var][c]) + norm.epsilon);
        const double s = inverse * (norm.weight >= 0 ? tensors[norm.weight][c] : 1.0f);
        scale[c] = static_cast<float>(s);
        shift[c] = static_cast<float>((norm.bias >= 0 ? tensors[norm.bias][c] : 0.0f) -
                                      s * tensors[norm.running_mean][c]);
    }
}

}  // namespace

void Program::prepare_forward(int i, State& s, float* const* tensors) {
    const int channels = shape(op(i).output).channels;
    if (const auto* conv = std::get_if<Convolution>(&network_.operations[i]))
        products().pack_forward(conv->geometry, tensors[conv->weight], packed_.data() + packed_offset_[i]);
    if (const auto* separable = std::get_if<Separable>(&network_.operations[i]); separable && separable->pointwise >= 0)
        products().pack_forward(separable->geometry.pixel, tensors[separable->pointwise],
                                         packed_.data() + packed_offset_[i]);
    if (const Products* products = products_of(network_.operations[i])) {
        if (products->before) {
            float *scale = scales(i, s, BeforeScale), *shift = scales(i, s, BeforeShift);
            fold(*products->before, channels, tensors, scale, shift);
            if (products->bias >= 0)
                for (int c = 0; c < channels; ++c) shift[c] += tensors[products->bias][c] * scale[c];
        }
        if (products->after)
            fold(*products->after, channels, tensors, scales(i, s, AfterScale), scales(i, s, AfterShift));
    } else if (const auto* norm = std::get_if<Norm>(&network_.operations[i]); norm && !norm->batch) {
        fold(*norm, channels, tensors, scales(i, s, Scale), scales(i, s, Shift));
        for (int c = 0; c < channels; ++c) {
            scales(i, s, Mean)[c] = tensors[norm->running_mean][c];
            scales(i, s, InverseDeviation)[c] = static_cast<float>(
                1.0 / std::sqrt(static_cast<double>(tensors[norm->running_var][c]) + norm->epsilon));
        }
    }
}

void Program::prepare_backward(int i, float* const* tensors) {
    const auto* conv = std::get_if<Convolution>(&network_.operations[i]);
    if (conv && plan_.values[conv->inputs[0]].needs_gradient)
        products().pack_backward(conv->geometry, tensors[conv->weight], packed_.data() + packed_offset_[i]);
    if (const auto* separable = std::get_if<Separable>(&network_.operations[i]); separable && separable->pointwise >= 0)
        products().pack_backward(separable->geometry.pixel, tensors[separable->pointwise],
                                          packed_.data() + packed_offset_[i]);
}

// Forward.

void Program::run_forward(const Step& step, const Task& t) {
    if (step.kind == Step::Moments) {
        const int input = op(step.operation).inputs[0];
        Shape s = shape(input);
        const int channels = s.channels, first = t.part.first(channels);
        s.channels = t.part.end(channels) - first;
        return kernels_.moments(s, input_value(input, t) + first * int64_t{s.plane()} * BLOCK,
                                images_of(t.block, t.state), moments(t.block, channels) + first,
                                moment_state(t.thread));
    }
    const Operation& operation = network_.operations[step.operation];
    if (t.part.index && !has_parts(operation)) return;
    std::visit([&](const auto& kind) { compute(kind, t); }, operation);
}

// For the gradient by a normalization's input. What applied it has passed the gradient through its ReLU.
NormArgs Program::norm_backward_args(int normalization, const Task& t) const {
    NormArgs args = norm_args(normalization, t);
    if (plan_.operations[normalization].applied_by >= 0) args.relu = false;
    return args;
}

Epilogue Program::epilogue(const Products& products, const Task& t) const {
    Epilogue e;
    if (products.before) {
        e.before_scale = scales(t.operation, t.state, BeforeScale);
        e.before_shift = scales(t.operation, t.state, BeforeShift);
    } else if (products.bias >= 0) {
        e.before_shift = t.tensors[products.bias];
    }
    e.relu = products.relu;
    if (products.after) {
        e.after_scale = scales(t.operation, t.state, AfterScale);
        e.after_shift = scales(t.operation, t.state, AfterShift);
    }
    return e;
}

void Program::compute(const Convolution& conv, const Task& t) {
    const bool gathers = plan_.operations[t.operation].gathers_moments && t.part.count == 1;
    products().conv_forward(conv.geometry, input_value(conv.inputs[0], t),
                            packed_.data() + packed_offset_[t.operation], epilogue(conv, t), value(conv.output, t),
                            scratch(t.thread), t.part, images_of(t.block, t.state),
                            gathers ? moments(t.block, conv.geometry.output.channels) : nullptr,
                            moment_state(t.thread));
}

// `applied` takes what the result refers to.
SeparableArgs Program::separable_args(const Separable& separable, const Task& t, NormArgs* applied) const {
    const int norm = plan_.operations[t.operation].applies;
    if (norm >= 0) *applied = norm_args(norm, t);
    return {.geometry = &separable.geometry,
            .x = input_value(norm >= 0 ? op(norm).inputs[0] : separable.inputs[0], t),
            .norm = norm >= 0 ? applied : nullptr,
            .depthwise = separable.depthwise >= 0 ? t.tensors[separable.depthwise] : nullptr,
            .middle_bias = separable.middle_bias >= 0 ? t.tensors[separable.middle_bias] : nullptr,
            .packed = packed_.data() + packed_offset_[t.operation],
            .scratch = scratch(t.thread),
            .part = t.part};
}

void Program::compute(const Separable& separable, const Task& t) {
    NormArgs applied;
    const bool gathers = plan_.operations[t.operation].gathers_moments && t.part.count == 1;
    products().separable_forward(separable_args(separable, t, &applied), epilogue(separable, t),
                               value(separable.output, t), images_of(t.block, t.state),
                               gathers ? moments(t.block, separable.geometry.output.channels) : nullptr,
                               moment_state(t.thread));
}

void Program::compute(const Norm& norm, const Task& t) {
    kernels_.norm_forward(norm_args(t.operation, t), input_value(norm.inputs[0], t), value(norm.output, t));
}

void Program::compute(const Activation& activation, const Task& t) {
    kernels_.activation_forward(activation.function, activation.limits, input_value(activation.inputs[0], t),
                                value(activation.output, t), shape(activation.output).pixels());
}

void Program::compute(const Pool& pool, const Task& t) {
    const auto kernel = pool.kind == PoolKind::Max ? kernels_.max_forward : kernels_.average_forward;
    kernel(pool.geometry, input_value(pool.inputs[0], t), value(pool.output, t));
}

void Program::compute(const Dropout& dropout, const Task& t) {
    const float* x = input_value(dropout.inputs[0], t);
    const int64_t pixels = shape(dropout.output).pixels();
    if (t.backward)  // recomputed by the mask that was drawn
        kernels_.dropout_backward(dropout.dropped, mask(t.operation, t), x, value(dropout.output, t), pixels, false);
    else
        kernels_.dropout_forward(t.state.key, t.operation, static_cast<int64_t>(t.block) * BLOCK, dropout.dropped, x,
                                 value(dropout.output, t), mask(t.operation, t), pixels);
}

void Program::compute(const Add& add, const Task& t) {
    kernels_.sum(input_value(add.inputs[0], t), input_value(add.inputs[1], t), value(add.output, t),
                 shape(add.output).pixels());
}

void Program::compute(const Concatenate& concatenate, const Task& t) {
    float* y = value(concatenate.output, t);
    for (const int part : concatenate.inputs) {
        kernels_.copy(input_value(part, t), y, shape(part).pixels(), false);
        y += block_floats(shape(part));
    }
}

// Joins the blocks' moments in their order (Chan, Golub and LeVeque 1979).
void Program::join_moments(int i, State& s, float* const* tensors) {
    const Norm& norm = std::get<Norm>(network_.operations[i]);
    const Shape& input = shape(norm.inputs[0]);
    const double total = static_cast<double>(s.images) * input.plane();
    if (total < 2) {
        failure_ = norm.name + ": normalization in training needs more than one value a channel";
        return;
    }
    for (int c = 0; c < input.channels; ++c) {
        double mean = 0.0, squares = 0.0, seen = 0.0;
        for (int b = 0; b < s.blocks; ++b) {
            const Moments& m = moments(b, input.channels)[c];
            const double count = static_cast<double>(images_of(b, s)) * input.plane(), step = m.mean - mean;
            squares += m.squares + step * step * seen * count / (seen + count);
            mean += step * count / (seen + count);
            seen += count;
        }
        const double variance = squares / total, inverse = 1.0 / std::sqrt(variance + norm.epsilon);
        if (!std::isfinite(mean) || !std::isfinite(variance)) {
            failure_ = norm.name + ": what it normalizes is not finite";
            return;
        }
        const double scale = inverse * (norm.weight >= 0 ? tensors[norm.weight][c] : 1.0f);
        scales(i, s, Scale)[c] = static_cast<float>(scale);
        scales(i, s, Shift)[c] = static_cast<float>((norm.bias >= 0 ? tensors[norm.bias][c] : 0.0f) - scale * mean);
        scales(i, s, Mean)[c] = static_cast<float>(mean);
        scales(i, s, InverseDeviation)[c] = static_cast<float>(inverse);
        if (norm.running_mean >= 0) {
            float &m = tensors[norm.running_mean][c], &v = tensors[norm.running_var][c];
            m += norm.momentum * (static_cast<float>(mean) - m);
            v += norm.momentum * (static_cast<float>(squares / (total - 1)) - v);
        }
    }
    if (norm.batches >= 0) ++*reinterpret_cast<int64_t*>(tensors[norm.batches]);
}

// Backward.

void Program::run_backward(const Step& step, const Task& t) {
    const Operation& operation = network_.operations[step.operation];
    if (t.part.index && !has_parts(operation)) return;
    if (step.kind == Step::Mask) {
        timer_.time(t.operation, mask_pass(operation), t.thread, [&] { mask_gradient(t); });
    } else if (step.kind == Step::Sums) {
        const Norm& norm = std::get<Norm>(operation);
        timer_.time(t.operation, Statistics, t.thread, [&] {
            kernels_.norm_sums(norm_args(t.operation, t), input_value(norm.inputs[0], t), gradient(norm.output, t),
                               sums(t.operation, t.block));
        });
    } else if (step.kind == Step::Recompute) {
        timer_.time(t.operation, Forward, t.thread, [&] { run_forward(step, t); });
    } else if (const auto* conv = std::get_if<Convolution>(&operation)) {
        differentiate(*conv, t);  // takes the time of each of its two gradients
    } else {
        timer_.time(t.operation, std::holds_alternative<Separable>(operation) ? Backward : InputGradient, t.thread,
                    [&] { std::visit([&](const auto& kind) { differentiate(kind, t); }, operation); });
    }
}

// Passes the gradient by an operation's output through its ReLU.
void Program::mask_gradient(const Task& t) {
    const int output = op(t.operation).output, pixels = shape(output).pixels(), first = t.part.first(pixels);
    const int64_t from = int64_t{first} * BLOCK;
    kernels_.relu_mask(value(output, t) + from, gradient(output, t) + from, t.part.end(pixels) - first);
}

void Program::differentiate(const Convolution& conv, const Task& t) {
    if (masks(conv) && t.part.count == 1)
        timer_.time(t.operation, WeightGradient, t.thread, [&] { mask_gradient(t); });
    const float* dy = gradient(conv.output, t);
    const OperationPlan& place = plan_.operations[t.operation];
    float* partial = partials_.data() + t.block * plan_.block_partials + place.partials;
    timer_.time(t.operation, WeightGradient, t.thread, [&] {
        products().conv_weights(conv.geometry, input_value(conv.inputs[0], t), dy, partial,
                                conv.bias >= 0 ? partial + conv.geometry.weights() : nullptr, scratch(t.thread),
                                t.part);
    });
    if (float* dx = input_gradient(conv.inputs[0], t))
        timer_.time(t.operation, InputGradient, t.thread, [&] {
            products().conv_backward(conv.geometry, dy, packed_.data() + packed_offset_[t.operation], dx,
                                     place.accumulates[0], scratch(t.thread), t.part);
        });
}

void Program::differentiate(const Separable& separable, const Task& t) {
    const OperationPlan& place = plan_.operations[t.operation];
    const SeparableGeometry& g = separable.geometry;
    NormArgs applied, undone;
    const SeparableArgs args = separable_args(separable, t, &applied);
    float* partial = partials_.data() + t.block * plan_.block_partials + place.partials;
    SeparableGradients d{};
    if (place.undoes >= 0) {
        undone = norm_backward_args(place.undoes, t);
        d.norm = &undone;
        d.y = value(separable.output, t);
        d.da = gradient(op(place.undoes).output, t);
    } else {
        if (masks(separable) && t.part.count == 1) mask_gradient(t);
        d.dy = gradient(separable.output, t);
    }
    d.dx = input_gradient(separable.inputs[0], t);
    d.add = place.accumulates[0];
    d.sums = place.applies >= 0 ? sums(place.applies, t.block) : nullptr;
    d.depthwise = partial;
    d.middle_bias = separable.middle_bias >= 0 ? partial + g.depthwise_weights() : nullptr;
    d.pointwise = partial + g.depthwise_weights() + g.input.channels;
    d.bias = separable.bias >= 0 ? d.pointwise + g.pointwise_weights() : nullptr;
    products().separable_backward(args, d);
}

void Program::differentiate(const Norm& norm, const Task& t) {
    kernels_.norm_backward(norm_backward_args(t.operation, t), input_value(norm.inputs[0], t), gradient(norm.output, t),
                           input_gradient(norm.inputs[0], t), plan_.operations[t.operation].accumulates[0]);
}

void Program::differentiate(const Activation& activation, const Task& t) {
    kernels_.activation_backward(activation.function, activation.limits, input_value(activation.inputs[0], t),
                                 gradient(activation.output, t), input_gradient(activation.inputs[0], t),
                                 shape(activation.output).pixels(), plan_.operations[t.operation].accumulates[0]);
}

void Program::differentiate(const Pool& pool, const Task& t) {
    const float* dy = gradient(pool.output, t);
    float* dx = input_gradient(pool.inputs[0], t);
    const bool add = plan_.operations[t.operation].accumulates[0];
    if (pool.kind == PoolKind::Max)
        kernels_.max_backward(pool.geometry, input_value(pool.inputs[0], t), dy, dx, add);
    else
        kernels_.average_backward(pool.geometry, dy, dx, add);
}

void Program::differentiate(const Dropout& dropout, const Task& t) {
    kernels_.dropout_backward(dropout.dropped, mask(t.operation, t), gradient(dropout.output, t),
                              input_gradient(dropout.inputs[0], t), shape(dropout.output).pixels(),
                              plan_.operations[t.operation].accumulates[0]);
}

void Program::differentiate(const Add& add, const Task& t) {
    for (size_t k = 0; k < add.inputs.size(); ++k)
        if (float* dx = input_gradient(add.inputs[k], t))
            kernels_.copy(gradient(add.output, t), dx, shape(add.output).pixels(),
                          plan_.operations[t.operation].accumulates[k]);
}

void Program::differentiate(const Concatenate& concatenate, const Task& t) {
    const float* dy = gradient(concatenate.output, t);
    for (size_t k = 0; k < concatenate.inputs.size(); ++k) {
        const Shape& part = shape(concatenate.inputs[k]);
        if (float* dx = input_gradient(concatenate.inputs[k], t))
            kernels_.copy(dy, dx, part.pixels(), plan_.operations[t.operation].accumulates[k]);
        dy += block_floats(part);
    }
}

void Program::join_sums(int i, State& s, float* const* gradients) {
    const Norm& norm = std::get<Norm>(network_.operations[i]);
    const Shape& input = shape(norm.inputs[0]);
    const double total = static_cast<double>(s.images) * input.plane();
    for (int c = 0; c < input.channels; ++c) {
        double plain = 0.0, product = 0.0;
        for (int b = 0; b < s.blocks; ++b) {
            plain += sums(i, b)[2 * c];
            product += sums(i, b)[2 * c + 1];
        }
        const double scale = scales(i, s, Scale)[c], mean = scales(i, s, Mean)[c];
        const double inverse = scales(i, s, InverseDeviation)[c];
        const double slope = norm.batch ? -scale * inverse * inverse * product / total : 0.0;
        scales(i, s, Slope)[c] = static_cast<float>(slope);
        scales(i, s, Offset)[c] = static_cast<float>(norm.batch ? -scale * plain / total - slope * mean : 0.0);
        if (norm.weight >= 0 && gradients[norm.weight])
            gradients[norm.weight][c] += static_cast<float>(inverse * product);
        if (norm.bias >= 0 && gradients[norm.bias]) gradients[norm.bias][c] += static_cast<float>(plain);
    }
}

// Adds the blocks' gradients by an operation's parameters, in the order of the blocks.
void Program::add_partials(int i, const State& s, float* const* gradients) const {
    if (!plan_.operations[i].in_backward) return;
    const auto add = [&](int tensor, int64_t at, int64_t count) {
        if (tensor < 0 || !gradients[tensor]) return;
        float* to = gradients[tensor];
        for (int b = 0; b < s.blocks; ++b) {
            const float* partial = partials_.data() + b * plan_.block_partials + plan_.operations[i].partials + at;
            for (int64_t k = 0; k < count; ++k) to[k] += partial[k];
        }
    };
    if (const auto* conv = std::get_if<Convolution>(&network_.operations[i])) {
        const int64_t weights = conv->geometry.weights();
        add(conv->weight, 0, weights);
        add(conv->bias, weights, conv->geometry.output.channels);
    } else if (const auto* separable = std::get_if<Separable>(&network_.operations[i])) {
        const SeparableGeometry& g = separable->geometry;
        const int64_t depthwise = g.depthwise_weights(), middle = depthwise + g.input.channels;
        add(separable->depthwise, 0, depthwise);
        add(separable->middle_bias, depthwise, g.input.channels);
        add(separable->pointwise, middle, g.pointwise_weights());
        add(separable->bias, middle + g.pointwise_weights(), g.output.channels);
    }
}

}  // namespace smidgen
