// Images into blocks and out of them, with or without augmentation.
#pragma once

#include <cmath>

#include "kernels.h"
#include "vector.h"

namespace smidgen {
namespace SMIDGEN_LEVEL {

inline bool gather_block(const float* from, const Strides& strides, const Shape& shape, int images, float* block) {
    // x - x is 0 for every finite x, and NaN otherwise.
    Vec non_finite = zero();
    for (int c = 0; c < shape.channels; ++c)
        for (int y = 0; y < shape.height; ++y) {
            const float* row = from + c * strides.channel + y * strides.row;
            if (strides.image == 1 && images == LANES) {
                for (int x = 0; x < shape.width; ++x, row += strides.column, block += LANES)
                    std::memcpy(block, row, LANES * sizeof(float));
            } else {
                for (int i = 0; i < LANES; ++i)
                    for (int x = 0; x < shape.width; ++x)
                        block[x * LANES + i] = i < images ? row[i * strides.image + x * strides.column] : 0.0f;
                block += static_cast<int64_t>(shape.width) * LANES;
            }
            for (const float* v = block - static_cast<int64_t>(shape.width) * LANES; v < block; v += LANES)
                non_finite += load(v) - load(v);
        }
    return sum(non_finite) == 0.0f;
}

inline void scatter_block(const float* block, const Shape& shape, int images, float* to) {
    const int pixels = shape.pixels();
    for (int i = 0; i < images; ++i)
        for (int p = 0; p < pixels; ++p) *to++ = block[p * LANES + i];
}

// Around an image that is sampled lie two rows and columns of zeros before it and three after.
constexpr int BEFORE = 2, AROUND = 5;

inline int64_t augment_scratch_bytes(const Shape& shape) {
    const int64_t padded =
        static_cast<int64_t>(LANES) * shape.channels * (shape.height + AROUND) * (shape.width + AROUND);
    return (padded + 63) / 64 * 64 + 5 * static_cast<int64_t>(shape.width) * LANES * 4;
}

// Stores a pixel of a block, zeros in the lanes without an image.
SMIDGEN_INLINE void store_images(float* to, const Vec& v, int images) {
    if (images == LANES) return store(to, v);
    float lanes[LANES] = {};
    std::memcpy(lanes, &v, static_cast<size_t>(images) * sizeof(float));
    std::memcpy(to, lanes, sizeof lanes);
}

inline void convert(const AugmentArgs& d, float* block) {
    const int pixels = d.channels * d.height * d.width;
    alignas(64) float values[LANES] = {};
    for (int p = 0; p < pixels; ++p, block += LANES) {
        for (int i = 0; i < d.images; ++i) values[i] = static_cast<float>(d.pixels[i][p]);
        store_images(block, load(values) * d.scale + splat(d.shift), d.images);
    }
}

// Sampling as torch.nn.functional.grid_sample does it with zeros outside and align_corners=False.
inline void augment(const AugmentArgs& d, uint8_t* scratch, float* block) {
    if (!d.matrices && !d.offsets) return convert(d, block);
    const int width = d.width, height = d.height, row = width + AROUND;
    const int64_t plane = static_cast<int64_t>(height + AROUND) * row, image = d.channels * plane;
    std::memset(scratch, 0, static_cast<size_t>(d.images * image));
    for (int i = 0; i < d.images; ++i)
        for (int c = 0; c < d.channels; ++c)
            for (int y = 0; y < height; ++y)
                std::memcpy(scratch + i * image + c * plane + (y + BEFORE) * row + BEFORE,
                            d.pixels[i] + (c * height + y) * width, static_cast<size_t>(width));
    float lanes[6][LANES] = {};
    for (int i = 0; i < d.images; ++i)
        for (int k = 0; d.matrices && k < 6; ++k) lanes[k][i] = d.matrices[i * 6 + k];
    Vec m[6];
    std::memcpy(m, lanes, sizeof lanes);
    // Row by row, each step for the whole row: what a step stores, the next one would have to wait for.
    const int64_t line_floats = static_cast<int64_t>(width) * LANES;
    float* right = reinterpret_cast<float*>(scratch + (LANES * image + 63) / 64 * 64);  // fractions
    float* low = right + line_floats;
    int32_t* corner = reinterpret_cast<int32_t*>(low + line_floats);
    uint32_t* upper = reinterpret_cast<uint32_t*>(corner + line_floats);
    uint32_t* lower = upper + line_floats;
    std::memset(corner, 0, static_cast<size_t>(3 * line_floats) * sizeof(int32_t));
    const float rounding = d.nearest ? 0.5f : 0.0f;
    for (int y = 0; y < height; ++y, block += line_floats) {
        for (int x = 0; x < width; ++x) {
            const float fx = static_cast<float>(x), fy = static_cast<float>(y);
            Vec u = splat(fx), v = splat(fy);
            if (d.matrices) {
                u = m[0] * fx + m[1] * fy + m[2];
                v = m[3] * fx + m[4] * fy + m[5];
            }
            if (d.offsets) {
                u += load(d.offsets + (static_cast<int64_t>(y) * width + x) * LANES);
                v += load(d.offsets + (static_cast<int64_t>(height + y) * width + x) * LANES);
            }
            // Further outside there are only zeros too; NaN goes there as well.
            u = min(splat(static_cast<float>(width) + 1.0f), max(splat(-2.0f), u)) + splat(2.0f + rounding);
            v = min(splat(static_cast<float>(height) + 1.0f), max(splat(-2.0f), v)) + splat(2.0f + rounding);
            SMIDGEN_EACH {
                const int at = x * LANES + p * WIDTH;
                Ints column = __builtin_convertvector(u.part[p], Ints), line = __builtin_convertvector(v.part[p], Ints);
                const Floats fraction_x = u.part[p] - __builtin_convertvector(column, Floats);
                const Floats fraction_y = v.part[p] - __builtin_convertvector(line, Floats);
                if (d.nearest) {  // halves go to the even pixel, as in PyTorch
                    column = column - ((Ints)(fraction_x == 0.0f) & (column & 1));
                    line = line - ((Ints)(fraction_y == 0.0f) & (line & 1));
                }
                *reinterpret_cast<Floats*>(right + at) = fraction_x;
                *reinterpret_cast<Floats*>(low + at) = fraction_y;
                *reinterpret_cast<Ints*>(corner + at) = line * row + column;
            }
        }
        for (int c = 0; c < d.channels; ++c) {
            for (int i = 0; i < d.images; ++i) {
                const uint8_t* from = scratch + i * image + c * plane;
                for (int64_t at = i; at < line_floats; at += LANES) {
                    uint16_t two;
                    std::memcpy(&two, from + corner[at], 2);
                    upper[at] = two;
                    if (d.nearest) continue;
                    std::memcpy(&two, from + corner[at] + row, 2);
                    lower[at] = two;
                }
            }
            float* out = block + static_cast<int64_t>(c) * height * line_floats;
            for (int x = 0; x < width; ++x, out += LANES) {
                Vec result;
                SMIDGEN_EACH {
                    const int at = x * LANES + p * WIDTH;
                    const Ints top = *reinterpret_cast<const Ints*>(upper + at);
                    const Ints bottom = *reinterpret_cast<const Ints*>(lower + at);
                    const Floats across = *reinterpret_cast<const Floats*>(right + at);
                    const Floats down = *reinterpret_cast<const Floats*>(low + at);
                    // The left pixel is in the low byte: both x86-64 and ARM are little-endian here.
                    const Floats a = __builtin_convertvector(top & 255, Floats);
                    if (d.nearest) {
                        result.part[p] = a;
                    } else {
                        const Floats b = __builtin_convertvector(top >> 8, Floats);
                        const Floats e = __builtin_convertvector(bottom & 255, Floats);
                        const Floats f = __builtin_convertvector(bottom >> 8, Floats);
                        const Floats above = a + (b - a) * across, below = e + (f - e) * across;
                        result.part[p] = above + (below - above) * down;
                    }
                }
                store_images(out, result * d.scale + splat(d.shift), d.images);
            }
        }
    }
}

inline void smooth_line(float* line, int count, int64_t stride, const float* kernel, int radius, float* scratch) {
    for (int i = 0; i < count; ++i) std::memcpy(scratch + i * LANES, line + i * stride, LANES * sizeof(float));
    for (int i = 0; i < count; ++i) {
        Vec total = zero();
        const int first = i - radius < 0 ? 0 : i - radius, last = i + radius >= count ? count - 1 : i + radius;
        for (int j = first; j <= last; ++j) total += load(scratch + j * LANES) * kernel[j - i + radius];
        store(line + i * stride, total);
    }
}

inline void smooth(float* field, int planes, int height, int width, const float* kernel, int radius, float* scratch) {
    const int64_t row = static_cast<int64_t>(width) * LANES;
    for (int plane = 0; plane < planes; ++plane, field += height * row) {
        for (int y = 0; y < height; ++y) smooth_line(field + y * row, width, LANES, kernel, radius, scratch);
        for (int x = 0; x < width; ++x) smooth_line(field + x * LANES, height, row, kernel, radius, scratch);
    }
}

}  // namespace SMIDGEN_LEVEL
}  // namespace smidgen
