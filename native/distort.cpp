#include "distort.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

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
void sampling_map(const Distortion& d, const uint64_t* words, const Shape& shape, float* map) {
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

}  // namespace

void Loader::load(Team& team, const int64_t* picks, int64_t count, uint64_t epoch, uint64_t step, float* out,
                  int64_t room, int64_t* chosen) const {
    const Distortion& d = distortion;
    const Stream stream{{seed, purpose}, {0, step, epoch, 0}};
    for (int64_t i = 0; i < count; ++i) {
        if (picks[i] < 0 || picks[i] >= available) throw std::out_of_range("a pick is beyond the images");
        if (chosen) chosen[i] = labels[picks[i]];
    }
    const int plane = shape.plane(), blocks = static_cast<int>((count + BLOCK - 1) / BLOCK);
    const bool elastic = d.elastic > 0.0;
    std::vector<float> gaussian;
    double strength = 0.0;
    int radius = 0;
    if (elastic) {
        radius = std::min(static_cast<int>(std::ceil(3.0 * d.smoothness)), 4 * std::max(shape.height, shape.width));
        double total = 0.0, squares = 0.0;
        std::vector<double> exact;
        for (int i = -radius; i <= radius; ++i) {
            exact.push_back(std::exp(-0.5 * (i / d.smoothness) * (i / d.smoothness)));
            total += exact.back();
        }
        for (const double value : exact) {
            gaussian.push_back(static_cast<float>(value / total));
            squares += (value / total) * (value / total);
        }
        // Uniform noise has variance 1/3, of which smoothing in both directions leaves (sum k**2)**2.
        strength = d.elastic * std::sqrt(3.0) / squares;
    }
    const int64_t side = std::max(shape.height, shape.width);
    const int64_t field_floats = elastic ? 2LL * plane * BLOCK : 0, scratch_floats = elastic ? side * BLOCK : 0;
    std::vector<float> memory(static_cast<size_t>((field_floats + scratch_floats) * team.threads() + 16));
    float* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / sizeof(float);
    const int64_t room_bytes = kernels->distort_room(shape);
    std::vector<uint8_t> rooms(static_cast<size_t>(room_bytes * team.threads() + 64));
    uint8_t* first_room = rooms.data() + (64 - reinterpret_cast<uintptr_t>(rooms.data()) % 64) % 64;
    std::vector<uint64_t> words(elastic ? static_cast<size_t>(2 * plane) * team.threads() : 0);

    team.run([&](int thread) {
        team.phase(
            thread, blocks,
            [&](int block) {
                const int64_t first = static_cast<int64_t>(block) * BLOCK;
                const int number = static_cast<int>(std::min<int64_t>(BLOCK, count - first));
                const uint8_t* pixels[BLOCK] = {};
                float maps[BLOCK * 6] = {};
                for (int i = 0; i < number; ++i) {
                    pixels[i] = images + picks[first + i] * shape.pixels();
                    uint64_t drawn[6];
                    stream.words(6 * (first + i), 6, drawn);
                    if (d.affine() || elastic) sampling_map(d, drawn, shape, maps + 6 * i);
                }
                float* field = aligned + thread * (field_floats + scratch_floats);
                if (elastic) {
                    uint64_t* noise = words.data() + static_cast<int64_t>(thread) * 2 * plane;
                    std::fill(field, field + field_floats, 0.0f);
                    for (int i = 0; i < number; ++i) {
                        stream.words(6 * count + (first + i) * 2 * plane, 2 * plane, noise);
                        for (int p = 0; p < 2 * plane; ++p)
                            field[static_cast<int64_t>(p) * BLOCK + i] =
                                (2.0f * static_cast<float>(uniform(noise[p])) - 1.0f) * static_cast<float>(strength);
                    }
                    kernels->smooth(field, 2, shape.height, shape.width, gaussian.data(), radius, field + field_floats);
                }
                DistortArgs a{};
                a.channels = shape.channels;
                a.height = shape.height;
                a.width = shape.width;
                a.images = number;
                a.pixels = pixels;
                a.matrices = d.affine() || elastic ? maps : nullptr;
                a.offsets = elastic ? field : nullptr;
                a.nearest = d.nearest;
                a.scale = scale;
                a.shift = shift;
                kernels->distort(a, first_room + thread * room_bytes, out + first, room);
            },
            [] {});
    });
}

}  // namespace smidgen
