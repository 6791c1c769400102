// Working memory for the kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace smidgen {

// Floats aligned to a cache line, taken when first needed and kept. Their contents are lost when they grow.
class AlignedFloats {
public:
    AlignedFloats() = default;
    AlignedFloats(const AlignedFloats&) = delete;
    AlignedFloats& operator=(const AlignedFloats&) = delete;
    ~AlignedFloats() { std::free(data_); }

    // Makes room for at least so many. Raises std::bad_alloc.
    void reserve(int64_t floats) {
        if (floats <= capacity_) return;
        std::free(data_);
        data_ = nullptr;
        capacity_ = 0;
        const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
        data_ = static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64)));
        if (!data_) throw std::bad_alloc();
        capacity_ = floats;
    }

    float* data() const { return data_; }

private:
    float* data_ = nullptr;
    int64_t capacity_ = 0;
};

inline bool is_aligned(const float* data) { return reinterpret_cast<uintptr_t>(data) % 64 == 0; }

}  // namespace smidgen
