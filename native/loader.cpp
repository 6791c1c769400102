#include "loader.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <vector>

#include "memory.h"

namespace smidgen {

void Stream::words(int64_t first, int64_t count, uint64_t* out) const {
    uint64_t four[4];
    int64_t block = -1;
    for (int64_t i = first; i < first + count; ++i) {
        if (i / 4 != block) {
            block = i / 4;
            // numpy counts up before it draws. The first word of the counter starts at 0 and does
            // not overflow.
            uint64_t c[4] = {counter[0] + static_cast<uint64_t>(block) + 1, counter[1], counter[2], counter[3]};
            uint64_t k0 = key[0], k1 = key[1];
            for (int round = 0; round < 10; ++round) {
                const unsigned __int128 a = static_cast<unsigned __int128>(0xD2E7470EE14C6C93u) * c[0];
                const unsigned __int128 b = static_cast<unsigned __int128>(0xCA5A826395121157u) * c[2];
                const uint64_t next[4] = {static_cast<uint64_t>(b >> 64) ^ c[1] ^ k0, static_cast<uint64_t>(b),
                                          static_cast<uint64_t>(a >> 64) ^ c[3] ^ k1, static_cast<uint64_t>(a)};
                std::copy(next, next + 4, c);
                k0 += 0x9E3779B97F4A7C15u;
                k1 += 0xBB67AE8584CAA73Bu;
            }
            std::copy(c, c + 4, four);
        }
        out[i - first] = four[i % 4];
    }
}

namespace {

double uniform(uint64_t word) { return static_cast<double>(word >> 11) * 0x1p-53; }

// From an output pixel (x, y) to where it is sampled: six numbers, as in
// smidgen.data.augment._sampling_matrices, but in pixels.
void sampling_map(const Augmentation& d, const uint64_t* words, const Shape& shape, float* map) {
    double spread[5];
    for (int i = 0; i < 5; ++i) spread[i] = 2.0 * uniform(words[i]) - 1.0;
    const double angle = d.rotation * spread[0] * (3.14159265358979323846 / 180.0);
    const double shift_x = d.translation * shape.width * spread[1], shift_y = d.translation * shape.height * spread[2];
    const double scale = 1.0 + d.scale * spread[3], shear = d.shear * spread[4];
    const double cosine = std::cos(angle), sine = std::sin(angle);
    const double a = (cosine + shear * sine) / scale, b = (sine - shear * cosine) / scale;
    const double c = -sine / scale, e = cosine / scale;
    const double middle_x = (shape.width - 1) / 2.0, middle_y = (shape.height - 1) / 2.0;
    map[0] = static_cast<float>(a);
    map[1] = static_cast<float>(b);
    map[2] = static_cast<float>(middle_x - a * (shift_x + middle_x) - b * (shift_y + middle_y));
    map[3] = static_cast<float>(c);
    map[4] = static_cast<float>(e);
    map[5] = static_cast<float>(middle_y - c * (shift_x + middle_x) - e * (shift_y + middle_y));
    if (uniform(words[5]) < d.flip) {
        map[0] = -map[0];
        map[1] = -map[1];
        map[2] = static_cast<float>(shape.width - 1) - map[2];
    }
}

// A field of random displacements for each image of a block, smoothed by a Gaussian.
class ElasticField {
public:
    ElasticField(const Augmentation& d, const Shape& shape) : shape_(shape) {
        radius_ = std::min(static_cast<int>(std::ceil(3.0 * d.elastic_smoothness)),
                           4 * std::max(shape.height, shape.width));
        double total = 0.0, squares = 0.0;
        std::vector<double> exact;
        for (int i = -radius_; i <= radius_; ++i) {
            exact.push_back(std::exp(-0.5 * (i / d.elastic_smoothness) * (i / d.elastic_smoothness)));
            total += exact.back();
        }
        for (const double value : exact) {
            gaussian_.push_back(static_cast<float>(value / total));
            squares += (value / total) * (value / total);
        }
        // Uniform noise has variance 1/3, of which smoothing in both directions leaves (sum k**2)**2.
        strength_ = static_cast<float>(d.elastic * std::sqrt(3.0) / squares);
    }

    // The field and the room to smooth it.
    int64_t floats() const { return (2LL * shape_.plane() + std::max(shape_.height, shape_.width)) * BLOCK; }

    // The noise of image i of the batch begins at word i * 2 * height * width of the stream.
    void draw(const Kernels& kernels, const Stream& stream, int64_t first_image, int images, float* field) const {
        const int size = 2 * shape_.plane();
        std::vector<uint64_t> noise(static_cast<size_t>(size));
        std::fill(field, field + static_cast<int64_t>(size) * BLOCK, 0.0f);
        for (int i = 0; i < images; ++i) {
            stream.words((first_image + i) * size, size, noise.data());
            for (int p = 0; p < size; ++p)
                field[static_cast<int64_t>(p) * BLOCK + i] =
                    (2.0f * static_cast<float>(uniform(noise[p])) - 1.0f) * strength_;
        }
        kernels.smooth(field, 2, shape_.height, shape_.width, gaussian_.data(), radius_,
                       field + static_cast<int64_t>(size) * BLOCK);
    }

private:
    Shape shape_;
    std::vector<float> gaussian_;
    float strength_ = 0.0f;
    int radius_ = 0;
};

}  // namespace

void Loader::load(Team& team, const int64_t* picks, int64_t count, uint64_t epoch, uint64_t step, float* blocks,
                  int64_t* picked_labels) const {
    for (int64_t i = 0; i < count; ++i) {
        if (picks[i] < 0 || picks[i] >= available) throw std::out_of_range("a pick is beyond the images");
        if (picked_labels) picked_labels[i] = labels[picks[i]];
    }
    const Stream affine_stream{{seed, affine_purpose}, {0, step, epoch, 0}};
    const Stream elastic_stream{{seed, elastic_purpose}, {0, step, epoch, 0}};
    const bool elastic = augmentation.elastic > 0.0, resampled = augmentation.affine() || elastic;
    std::optional<ElasticField> field;
    if (elastic) field.emplace(augmentation, shape);
    const int64_t scratch_floats = (kernels->augment_scratch_bytes(shape) + 63) / 64 * 16;
    const int64_t thread_floats = scratch_floats + (field ? field->floats() : 0);
    AlignedFloats memory;
    if (resampled) memory.reserve(thread_floats * team.threads());

    team.run([&](int thread) {
        team.phase(
            thread, static_cast<int>((count + BLOCK - 1) / BLOCK),
            [&](int block) {
                const int64_t first = static_cast<int64_t>(block) * BLOCK;
                const int images_here = static_cast<int>(std::min<int64_t>(BLOCK, count - first));
                const uint8_t* pixels[BLOCK] = {};
                float maps[BLOCK * 6] = {};
                for (int i = 0; i < images_here; ++i) {
                    pixels[i] = images + picks[first + i] * shape.pixels();
                    if (!resampled) continue;
                    uint64_t drawn[6];
                    affine_stream.words(6 * (first + i), 6, drawn);
                    sampling_map(augmentation, drawn, shape, maps + 6 * i);
                }
                float* scratch = resampled ? memory.data() + thread * thread_floats : nullptr;
                float* offsets = elastic ? scratch + scratch_floats : nullptr;
                if (elastic) field->draw(*kernels, elastic_stream, first, images_here, offsets);
                const AugmentArgs args{.channels = shape.channels,
                                       .height = shape.height,
                                       .width = shape.width,
                                       .images = images_here,
                                       .pixels = pixels,
                                       .matrices = resampled ? maps : nullptr,
                                       .offsets = offsets,
                                       .nearest = augmentation.nearest,
                                       .scale = scale,
                                       .shift = shift};
                kernels->augment(args, reinterpret_cast<uint8_t*>(scratch), blocks + first * shape.pixels());
            },
            [] {});
    });
}

}  // namespace smidgen
