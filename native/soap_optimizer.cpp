#include "soap_optimizer.h"

#include <algorithm>
#include <utility>

namespace smidgen {

SoapSteps::SoapSteps(const Kernels& kernels, std::vector<SoapMatrix> matrices, std::vector<SoapVector> vectors)
    : kernels_(kernels), matrices_(std::move(matrices)), vectors_(std::move(vectors)) {
    const auto axes_of = [](const SoapMatrix& m) { return m.column_axes ? 2 * m.columns * soap_padded(m.columns) : 0; };
    int64_t floats = 0;
    for (const SoapMatrix& matrix : matrices_) floats += soap_scratch(matrix) + axes_of(matrix);
    memory_.reserve(floats);
    float* next = memory_.data();
    for (SoapMatrix& matrix : matrices_) {
        matrix.scratch = next;
        next += soap_scratch(matrix);
        matrix.padded_axes = next;
        padded_.push_back(next);
        std::fill(next, next + axes_of(matrix), 0.0f);
        next += axes_of(matrix);
    }
    renewed();
}

void SoapSteps::renewed() {
    for (size_t m = 0; m < matrices_.size(); ++m) {
        const SoapMatrix& matrix = matrices_[m];
        if (!matrix.column_axes) continue;
        const int64_t columns = matrix.columns, wide = soap_padded(columns);
        float* axes = padded_[m];
        float* transposed = axes + columns * wide;
        for (int64_t i = 0; i < columns; ++i)
            for (int64_t j = 0; j < columns; ++j)
                axes[i * wide + j] = transposed[j * wide + i] = matrix.column_axes[i * columns + j];
    }
}

void SoapSteps::step(Team& team, const SoapFactors& factors) {
    const int matrices = static_cast<int>(matrices_.size());
    team.run([&](int thread) {
        team.phase(
            thread, matrices, [&](int m) { kernels_.soap_step(matrices_[static_cast<size_t>(m)], factors); }, [] {});
    });
    std::vector<float> values;
    for (const SoapVector& vector : vectors_) {
        values.assign(vector.gradients, vector.gradients + vector.count);
        kernels_.soap_adam(values.data(), vector.mean, vector.square, vector.count, factors);
        for (int i = 0; i < vector.count; ++i) vector.weights[i] -= factors.rate * values[static_cast<size_t>(i)];
    }
}

}  // namespace smidgen
