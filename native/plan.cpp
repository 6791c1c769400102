#include "plan.h"

#include <algorithm>
#include <functional>
#include <limits>

namespace smidgen {

namespace {

// A value's or gradient's memory, from its first use to its last.
struct Span {
    int value, first, last;
    int64_t floats;
    int64_t offset = 0;
};

// Gives each span the first free offset, so that spans that overlap in time do not overlap in memory. Returns the
// end of the memory.
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

int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

bool has_parameters(const Operation& operation) {
    if (products_of(operation)) return true;
    if (const auto* norm = std::get_if<Norm>(&operation)) return norm->weight >= 0 || norm->bias >= 0;
    return false;
}

// Operations whose output is cheap to compute once more.
bool is_cheap(const Operation& operation) {
    if (const auto* norm = std::get_if<Norm>(&operation)) return norm->pool == PoolKind::None;
    return std::holds_alternative<Activation>(operation) || std::holds_alternative<Dropout>(operation);
}

// How many scalars a gradient by an operation's parameters has, its weights and biases one after another.
int64_t gradient_scalars(const Operation& operation) {
    if (const auto* conv = std::get_if<Convolution>(&operation))
        return conv->geometry.weights() + conv->geometry.output.channels;
    if (const auto* separable = std::get_if<Separable>(&operation)) {
        const SeparableGeometry& g = separable->geometry;
        return g.depthwise_weights() + g.input.channels + g.pointwise_weights() + g.output.channels;
    }
    return 0;
}

bool shares_tensor(const Operation& a, const Operation& b) {
    const auto tensors = [](const Operation& operation) -> std::vector<int> {
        if (const auto* conv = std::get_if<Convolution>(&operation)) return {conv->weight, conv->bias};
        if (const auto* separable = std::get_if<Separable>(&operation))
            return {separable->depthwise, separable->middle_bias, separable->pointwise, separable->bias};
        return {};
    };
    for (const int one : tensors(a))
        for (const int other : tensors(b))
            if (one >= 0 && one == other) return true;
    return false;
}

class Planner {
public:
    Planner(const Network& network, bool keep, bool input_gradient)
        : network_(network),
          operations_(static_cast<int>(network.operations.size())),
          values_(static_cast<int>(network.shapes.size())),
          keep_(keep),
          input_gradient_(input_gradient) {
        for (int v = 0; v < values_; ++v) {
            ValuePlan value{};
            value.shape = network.shapes[v];
            value.alias = v;
            plan_.values.push_back(value);
            plan_.max_channels = std::max(plan_.max_channels, value.shape.channels);
        }
        plan_.operations.resize(operations_);
    }

    Plan make() {
        find_deferred();
        place_parameters();
        order_forward();
        if (keep_) find_recomputed();
        place_values();
        if (keep_) {
            find_needed_gradients();
            order_backward();
            place_gradients();
        }
        order_parts();
        return std::move(plan_);
    }

private:
    const Operation& operation(int i) const { return network_.operations[i]; }
    const OperationBase& op(int i) const { return base(network_.operations[i]); }

    // How many operations read each value.
    std::vector<int> readers() const {
        std::vector<int> readers(values_, 0);
        readers[network_.output] = 1;
        for (int i = 0; i < operations_; ++i)
            for (const int input : op(i).inputs) ++readers[input];
        return readers;
    }

    // Normalizations that separable convolutions do as they read.
    void find_deferred() {
        writer_.assign(values_, -1);
        const std::vector<int> readers = this->readers();
        for (int i = 0; i < operations_; ++i) {
            writer_[op(i).output] = i;
            const int input = op(i).inputs[0], before = writer_[input];
            if (before < 0 || readers[input] != 1) continue;
            const auto* norm = std::get_if<Norm>(&operation(before));
            if (norm && std::holds_alternative<Separable>(operation(i)) && norm->pool == PoolKind::None &&
                !norm->dropped) {
                plan_.operations[i].applies = before;
                plan_.operations[before].applied_by = i;
                plan_.values[input].deferred = true;
            }
            norm = std::get_if<Norm>(&operation(i));
            const auto* block = std::get_if<Separable>(&operation(before));
            if (norm && keep_ && block && !block->relu && !norm->dropped) {
                plan_.operations[before].undoes = i;
                plan_.operations[i].undone_by = before;
            }
        }
    }

    // A value that an operation reads as an input, or where that is deferred, the one it is made of.
    int source(int value) const { return plan_.values[value].deferred ? op(writer_[value]).inputs[0] : value; }

    // Whether an operation's backward pass begins with the ReLU of its own output.
    bool masks(int i) const {
        const Products* products = products_of(operation(i));
        return products && smidgen::masks(*products);
    }

    // The values, not gradients, that an operation's backward pass reads.
    std::vector<int> read_by_backward(int i) const {
        const Operation& o = operation(i);
        const OperationBase& op = base(o);
        if (products_of(o)) {
            const bool reads_output = masks(i) || plan_.operations[i].undoes >= 0;
            return reads_output ? std::vector<int>{source(op.inputs[0]), op.output}
                                : std::vector<int>{source(op.inputs[0])};
        }
        const auto* pool = std::get_if<Pool>(&o);
        const bool reads_input = std::holds_alternative<Norm>(o) || std::holds_alternative<Activation>(o) ||
                                 (pool && pool->kind == PoolKind::Max);
        return reads_input ? std::vector<int>{op.inputs[0]} : std::vector<int>{};
    }

    void place_parameters() {
        for (int i = 0; i < operations_; ++i) {
            OperationPlan& place = plan_.operations[i];
            place.scales = plan_.scales;
            place.partials = plan_.block_partials;
            place.sums = plan_.block_sums;
            if (products_of(operation(i))) {
                plan_.scales += CONVOLUTION_SCALES * network_.shapes[op(i).output].channels;
                plan_.block_partials += whole_lines(gradient_scalars(operation(i)));
                for (int j = 0; j < i; ++j)
                    plan_.shares_parameters = plan_.shares_parameters || shares_tensor(operation(i), operation(j));
            } else if (std::holds_alternative<Norm>(operation(i))) {
                const int channels = network_.shapes[op(i).inputs[0]].channels;
                plan_.scales += NORM_SCALES * channels;
                plan_.block_sums += 2 * channels;
            }
        }
    }

    // A normalization by the batch's statistics ends a phase: it needs all blocks.
    void order_forward() {
        plan_.forward.emplace_back();
        for (int i = 0; i < operations_; ++i) {
            if (const auto* norm = std::get_if<Norm>(&operation(i)); norm && norm->batch) {
                std::vector<Step>& steps = plan_.forward.back().steps;
                const int before = steps.empty() || steps.back().kind != Step::Run ? -1 : steps.back().operation;
                if (before >= 0 && products_of(operation(before)) && op(before).output == norm->inputs[0])
                    plan_.operations[before].gathers_moments = true;
                else
                    steps.push_back({Step::Moments, i});
                plan_.forward.back().normalization = i;
                plan_.forward.emplace_back();
            }
            if (plan_.operations[i].applied_by < 0) plan_.forward.back().steps.push_back({Step::Run, i});
        }
        plan_.values_in_thread = !keep_ && plan_.forward.size() == 1;
    }

    void find_recomputed() {
        // The phases that compute a value cheaply and that read it first and last; how many operations read it.
        std::vector<int> computed(values_, -1), first(values_, std::numeric_limits<int>::max()), last(values_, -1);
        const std::vector<int> readers = this->readers();
        int phase = 0;
        for (const Phase& p : plan_.forward) {
            for (const Step& step : p.steps) {
                for (const int each : op(step.operation).inputs) {
                    const int input = source(each);
                    first[input] = std::min(first[input], phase);
                    last[input] = std::max(last[input], phase);
                }
                if (step.kind == Step::Run && is_cheap(operation(step.operation)))
                    computed[op(step.operation).output] = phase;
            }
            ++phase;
        }
        for (int v = 0; v < values_; ++v)
            plan_.values[v].recomputed = computed[v] >= 0 && v != network_.output && last[v] >= 0 &&
                                         first[v] == computed[v] && last[v] == computed[v];
        // Dropout in place.
        for (int i = 0; i < operations_; ++i) {
            const int input = op(i).inputs[0], output = op(i).output;
            if (std::holds_alternative<Dropout>(operation(i)) && plan_.values[input].recomputed &&
                plan_.values[output].recomputed && readers[input] == 1)
                plan_.values[output].alias = plan_.values[input].alias;
        }
    }

    void place_values() {
        // Where a thread takes a block through the whole network, values share memory as they come and go; so do
        // recomputed values. Time is counted in operations.
        std::vector<int> first(values_, -1), last(values_, -1);
        std::vector<bool> used(values_, false);
        used[0] = true;
        for (int i = 0; i < operations_; ++i) {
            const int output = op(i).output, root = plan_.values[output].alias;
            if (plan_.values[output].deferred) continue;
            used[output] = true;
            if (root == output) first[output] = i;
            last[root] = i;
            for (const int input : op(i).inputs) last[plan_.values[source(input)].alias] = i;
        }
        last[plan_.values[network_.output].alias] = operations_;
        std::vector<Span> stored, recomputed;
        for (int v = 0; v < values_; ++v) {
            const ValuePlan& value = plan_.values[v];
            if (value.alias != v || !used[v]) continue;
            const int64_t floats = block_floats(value.shape);
            if (value.recomputed)
                recomputed.push_back({v, first[v], last[v], floats});
            else if (plan_.values_in_thread)
                stored.push_back({v, first[v], last[v], floats});
            else
                stored.push_back({v, -1, operations_, floats});
        }
        plan_.block_values = place_spans(stored);
        plan_.thread_values = place_spans(recomputed);
        for (const auto& spans : {stored, recomputed})
            for (const Span& span : spans) plan_.values[span.value].offset = span.offset;
        for (ValuePlan& value : plan_.values) value.offset = plan_.values[value.alias].offset;
        for (int i = 0; i < operations_; ++i) {
            plan_.operations[i].mask = plan_.block_values;
            if (dropped(operation(i)))  // 16 bits a pixel
                plan_.block_values += whole_lines((network_.shapes[op(i).output].pixels() + 1) / 2);
        }
    }

    void find_needed_gradients() {
        plan_.values[0].needs_gradient = input_gradient_;
        for (int i = 0; i < operations_; ++i) {
            bool needs = has_parameters(operation(i));
            for (const int input : op(i).inputs) needs = needs || plan_.values[input].needs_gradient;
            plan_.values[op(i).output].needs_gradient = needs;
        }
    }

    // Uses of a value's memory, counted in steps and phases of the backward pass.
    struct Uses {
        int first_step = -1, last_step = -1, first_phase = -1, last_phase = -1;
    };

    int backward_phase() const { return static_cast<int>(plan_.backward.size()) - 1; }

    void use_gradient(int v) {
        Uses& uses = gradients_[v];
        if (uses.first_step < 0) uses.first_step = step_, uses.first_phase = backward_phase();
        uses.last_step = step_, uses.last_phase = backward_phase();
    }

    // Adds the steps that recompute a value in this phase, and before it the values that it is computed from.
    void recompute(int v) {
        if (!plan_.values[v].recomputed) return;
        Uses& uses = recomputed_[plan_.values[v].alias];
        if (recomputed_in_[v] != backward_phase()) {
            for (const int input : op(writer_[v]).inputs) recompute(input);
            plan_.backward.back().steps.push_back({Step::Recompute, writer_[v]});
            recomputed_in_[v] = backward_phase();
            if (uses.first_step < 0) uses.first_step = step_;
            ++step_;
        }
        uses.last_step = step_;
    }

    void order_backward() {
        gradients_.assign(values_, Uses{});
        recomputed_.assign(values_, Uses{});
        recomputed_in_.assign(values_, -1);
        std::vector<bool> written(values_, false);
        plan_.backward.emplace_back();
        use_gradient(network_.output);
        ++step_;
        written[network_.output] = true;
        for (int i = operations_ - 1; i >= 0; --i) {
            OperationPlan& place = plan_.operations[i];
            const OperationBase& o = op(i);
            place.accumulates.assign(o.inputs.size(), false);
            if (!plan_.values[o.output].needs_gradient || !written[o.output]) continue;
            place.in_backward = true;
            if (std::holds_alternative<Norm>(operation(i))) {
                if (place.applied_by < 0) {
                    for (const int v : read_by_backward(i)) recompute(v);
                    plan_.backward.back().steps.push_back({Step::Sums, i});
                    use_gradient(o.output);
                    ++step_;
                }
                plan_.backward.back().normalization = i;
                plan_.backward.emplace_back();
                if (!plan_.values[o.inputs[0]].needs_gradient) continue;
                if (place.undone_by >= 0) {
                    written[o.inputs[0]] = true;
                    place.accumulates[0] = false;
                    continue;
                }
            }
            for (const int v : read_by_backward(i)) recompute(v);
            plan_.backward.back().steps.push_back({Step::Run, i});
            use_gradient(place.undoes >= 0 ? op(place.undoes).output : o.output);
            for (size_t k = 0; k < o.inputs.size(); ++k) {
                const int input = o.inputs[k];
                if (!plan_.values[input].needs_gradient) continue;
                place.accumulates[k] = written[input];
                written[input] = true;
                use_gradient(input);
            }
            ++step_;
        }
        if (input_gradient_) use_gradient(0);
    }

    // Statistics are of all rows of a value, and products are of the gradient behind the ReLU, so neither can be left to
    // the parts of a convolution.
    void order_parts() {
        for (Phase phase : plan_.forward) {
            const int norm = phase.normalization;
            if (norm >= 0 && (phase.steps.empty() || phase.steps.back().kind != Step::Moments))
                phase.steps.push_back({Step::Moments, norm});
            plan_.parted_forward.push_back(std::move(phase));
        }
        for (const Phase& phase : plan_.backward) {
            plan_.parted_backward.push_back({{}, phase.normalization});
            for (const Step& step : phase.steps) {
                if (step.kind == Step::Run && masks(step.operation))
                    plan_.parted_backward.back().steps.push_back({Step::Mask, step.operation});
                plan_.parted_backward.back().steps.push_back(step);
            }
        }
    }

    void place_gradients() {
        std::vector<Span> in_thread, in_block;
        for (int v = 0; v < values_; ++v) {
            const Uses& uses = gradients_[v];
            if (uses.first_step < 0) continue;
            ValuePlan& value = plan_.values[v];
            value.gradient_in_thread = uses.first_phase == uses.last_phase;
            (value.gradient_in_thread ? in_thread : in_block)
                .push_back({v, uses.first_step, uses.last_step, block_floats(value.shape)});
        }
        const size_t gradients = in_thread.size();
        for (int v = 0; v < values_; ++v)
            if (recomputed_[v].first_step >= 0)
                in_thread.push_back(
                    {v, recomputed_[v].first_step, recomputed_[v].last_step, block_floats(plan_.values[v].shape)});
        plan_.thread_gradients = place_spans(in_thread);
        plan_.block_gradients = place_spans(in_block);
        for (size_t i = 0; i < in_thread.size(); ++i) {
            ValuePlan& value = plan_.values[in_thread[i].value];
            (i < gradients ? value.gradient_offset : value.recompute_offset) = in_thread[i].offset;
        }
        for (const Span& span : in_block) plan_.values[span.value].gradient_offset = span.offset;
        for (ValuePlan& value : plan_.values) value.recompute_offset = plan_.values[value.alias].recompute_offset;
    }

    const Network& network_;
    const int operations_, values_;  // how many
    const bool keep_, input_gradient_;
    Plan plan_;
    // Of the backward pass.
    int step_ = 0;
    std::vector<Uses> gradients_, recomputed_;  // of each value, recomputed ones at the value whose memory they share
    std::vector<int> recomputed_in_;            // the last phase that recomputes each value
    std::vector<int> writer_;                   // the operation that computes each value
};

}  // namespace

Plan make_plan(const Network& network, bool keep, bool input_gradient) {
    return Planner(network, keep, input_gradient).make();
}

}  // namespace smidgen
