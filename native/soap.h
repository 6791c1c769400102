// One step of SOAP for one weight matrix; smidgen/engines/soap.py has the formulas.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "kernels.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

// Updates the moments by gradients along their axes, which are replaced by Adam's step for a rate of 1.
static void soap_adam(float* values, float* mean, float* square, int count, const SoapFactors& f) {
    for (int i = 0; i < count; ++i) {
        const float g = values[i];
        const float m = mean[i] + (1.0f - f.beta1) * (g - mean[i]);
        const float s = f.beta2 * square[i] + (1.0f - f.beta2) * g * g;
        mean[i] = m;
        square[i] = s;
        values[i] = (m + (1.0f - f.beta1) * (g - m)) / (std::sqrt(s / f.correction2) + f.epsilon);
    }
}

// Rows of a tile: as many sums as stay in registers, and enough of them to hide the latency of an addition.
constexpr int SOAP_ROWS = WIDTH == 16 ? 8 : WIDTH == 8 ? 4 : 2;

// A matrix to the left of a product, read value by value: any strides.
struct Left {
    const float* values;
    int64_t row, step;
};

template <int ROWS>
static void soap_tile(const Left& a, const float* b, int64_t b_row, int depth, float* c, int64_t c_row) {
    Vec sums[ROWS];
    SMIDGEN_UNROLL for (int r = 0; r < ROWS; ++r) sums[r] = zero();
    for (int k = 0; k < depth; ++k) {
        const Vec values = load(b + k * b_row);
        const float* from = a.values + k * a.step;
        SMIDGEN_UNROLL for (int r = 0; r < ROWS; ++r) sums[r] += values * from[r * a.row];
    }
    SMIDGEN_UNROLL for (int r = 0; r < ROWS; ++r) store(c + r * c_row, sums[r]);
}

// c [rows][columns] = a [rows][depth] b [depth][columns]; columns and the rows' strides are multiples of 16.
static void soap_product(int rows, int64_t columns, int depth, const Left& a, const float* b, float* c) {
    for (int64_t j = 0; j < columns; j += LANES) {
        int i = 0;
        const auto left = [&] { return Left{a.values + i * a.row, a.row, a.step}; };
        for (; i + SOAP_ROWS <= rows; i += SOAP_ROWS)
            soap_tile<SOAP_ROWS>(left(), b + j, columns, depth, c + i * columns + j, columns);
        for (; i < rows; ++i) soap_tile<1>(left(), b + j, columns, depth, c + i * columns + j, columns);
    }
}

static void soap_step(const SoapMatrix& matrix, const SoapFactors& f) {
    const int rows = matrix.rows, columns = matrix.columns;
    const int64_t wide = soap_padded(columns), tall = soap_padded(rows);
    float* g = matrix.scratch;        // [rows][wide], zeros beyond the columns
    float* t = g + rows * wide;       // likewise
    float* products = t + rows * wide;  // of the gradient with itself: the larger of [rows][tall] and [columns][wide]
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < wide; ++j) g[i * wide + j] = j < columns ? matrix.gradients[i * columns + j] : 0.0f;
    const auto average = [&](float* mean, int side, int64_t padded) {
        for (int i = 0; i < side; ++i)
            for (int j = 0; j < side; ++j)
                mean[i * side + j] += (1.0f - f.beta2) * (products[i * padded + j] - mean[i * side + j]);
    };
    if (matrix.row_axes) {
        float* gt = products + std::max(rows * tall, matrix.column_axes ? columns * wide : 0);  // [columns][tall]
        for (int j = 0; j < columns; ++j)
            for (int i = 0; i < tall; ++i) gt[j * tall + i] = i < rows ? g[i * wide + j] : 0.0f;
        soap_product(rows, tall, columns, {g, wide, 1}, gt, products);
        average(matrix.row_products, rows, tall);
    }
    if (matrix.column_axes) {
        soap_product(columns, wide, rows, {g, 1, wide}, g, products);
        average(matrix.column_products, columns, wide);
    }
    float *now = g, *next = t;
    const auto rotate_rows = [&](int64_t row, int64_t step) {
        if (!matrix.row_axes) return;
        soap_product(rows, wide, rows, {matrix.row_axes, row, step}, now, next);
        std::swap(now, next);
    };
    const auto rotate_columns = [&](const float* axes) {
        if (!matrix.column_axes) return;
        soap_product(rows, wide, columns, {now, wide, 1}, axes, next);
        std::swap(now, next);
    };
    rotate_rows(1, rows);  // by the transposed axes
    rotate_columns(matrix.padded_axes);
    for (int i = 0; i < rows; ++i)
        soap_adam(now + i * wide, matrix.mean + i * columns, matrix.square + i * columns, columns, f);
    rotate_rows(rows, 1);
    rotate_columns(matrix.padded_axes + columns * wide);
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
            float& w = matrix.weights[i * columns + j];
            w = f.decay * w - f.rate * now[i * wide + j];
        }
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
