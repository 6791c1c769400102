#include "work.h"

namespace smidgen {

namespace {

class Counter {
public:
    Counter(const Network& network, const Plan& plan, bool in_parts)
        : network_(network), plan_(plan), in_parts_(in_parts), work_(network.operations.size(), std::array<Work, PASSES>{}) {
        normalized_.assign(network.shapes.size(), false);
        for (const Operation& operation : network.operations)
            if (const auto* norm = std::get_if<Norm>(&operation)) normalized_[norm->inputs[0]] = norm->batch;
        for (const Phase& phase : in_parts ? plan.parted_forward : plan.forward)
            for (const Step& step : phase.steps) forward(step);
        for (const Phase& phase : in_parts ? plan.parted_backward : plan.backward)
            for (const Step& step : phase.steps) backward(step);
    }

    std::vector<std::array<Work, PASSES>> work() && { return std::move(work_); }

private:
    double size(int value) const { return network_.shapes[value].pixels(); }
    double needed(int value) const { return plan_.values[value].needs_gradient ? size(value) : 0; }
    const OperationBase& op(int i) const { return base(network_.operations[i]); }

    // What an operation reads: its inputs, or what a deferred one is made of.
    double inputs(int i) const {
        double total = 0;
        for (const int input : op(i).inputs)
            total += plan_.operations[i].applies >= 0 ? size(op(plan_.operations[i].applies).inputs[0]) : size(input);
        return total;
    }

    static double forward_products(const Operation& operation) {
        if (const auto* conv = std::get_if<Convolution>(&operation))
            return static_cast<double>(conv->geometry.weights()) * conv->geometry.output.plane();
        if (const auto* separable = std::get_if<Separable>(&operation))
            return static_cast<double>(separable->geometry.depthwise_weights() +
                                       separable->geometry.pointwise_weights()) *
                   separable->geometry.output.plane();
        return 0;
    }

    void forward(const Step& step) {
        const int i = step.operation;
        if (step.kind == Step::Moments) {
            work_[i][Statistics].moved += size(op(i).inputs[0]);
            return;
        }
        Work& work = work_[i][Forward];
        work.moved += inputs(i) + size(op(i).output);
        if (products_of(network_.operations[i])) {
            work.products += forward_products(network_.operations[i]);
            work.least += inputs(i) + size(op(i).output);
        }
    }

    void backward(const Step& step) {
        const int i = step.operation;
        const Operation& operation = network_.operations[i];
        const OperationPlan& place = plan_.operations[i];
        const double output = size(op(i).output);
        double gradients = 0;
        for (const int input : op(i).inputs) gradients += needed(input);
        if (step.kind == Step::Mask) {
            work_[i][mask_pass(operation)].moved += 3 * output;
        } else if (step.kind == Step::Recompute) {
            work_[i][Forward].moved += inputs(i) + output;
        } else if (step.kind == Step::Sums) {
            work_[i][Statistics].moved += inputs(i) + output;
        } else if (const auto* conv = std::get_if<Convolution>(&operation)) {
            const double masked = masks(*conv) && !in_parts_ ? 3 * output : 0;
            Work &by_weights = work_[i][WeightGradient], &by_input = work_[i][InputGradient];
            by_weights.products += forward_products(operation);
            by_weights.moved += inputs(i) + output + masked;
            by_weights.least += inputs(i) + output + (normalized_[conv->output] ? output : 0);
            if (gradients > 0) {
                by_input.products += forward_products(operation);
                by_input.moved += output + gradients;
                by_input.least += gradients;
            }
        } else if (const auto* separable = std::get_if<Separable>(&operation)) {
            const SeparableGeometry& g = separable->geometry;
            const double masked = masks(*separable) && !in_parts_ ? 3 * output : 0;
            const double da = place.undoes >= 0 ? size(op(place.undoes).output) + output : output;
            Work& work = work_[i][Backward];
            // The first part's gradient by its input is not needed where the images' is not.
            const double first = g.kernel ? g.depthwise_weights() : g.pointwise_weights();
            work.products += 2 * forward_products(operation) - (gradients > 0 ? 0 : first * g.output.plane());
            work.moved += inputs(i) + da + gradients + masked;
            const double again = place.undoes < 0 && normalized_[separable->output] ? output : 0;
            work.least += inputs(i) + da + again + gradients;
        } else {
            const auto* pool = std::get_if<Pool>(&operation);
            const bool reads = std::holds_alternative<Norm>(operation) ||
                               std::holds_alternative<Activation>(operation) || (pool && pool->kind == PoolKind::Max);
            work_[i][InputGradient].moved += (reads ? inputs(i) : 0) + output + gradients;
        }
    }

    const Network& network_;
    const Plan& plan_;
    const bool in_parts_;
    std::vector<std::array<Work, PASSES>> work_;
    std::vector<bool> normalized_;  // of each value: whether a BatchNorm by the batch's statistics reads it
};

}  // namespace

std::vector<std::array<Work, PASSES>> work_of(const Network& network, const Plan& plan, bool in_parts) {
    return Counter(network, plan, in_parts).work();
}

}  // namespace smidgen
